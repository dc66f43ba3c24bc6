"""Ctrl-C leaves no partial file, loses no task, and lists the tasks that continue."""

import os
import signal
import subprocess
import time
from pathlib import Path

from support.shell import CHELSEA, COFFEE, Shell, shell

from kling_expand.emulator.faults.plan import Fault


def read_until(process: "subprocess.Popen[str]", word: str) -> str:
    """Read stderr up to a line with *word*, and return what was read."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if word in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def press_ctrl_c(process: "subprocess.Popen[str]") -> None:
    """Send SIGINT to the command and all of its children, as a terminal does for Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


def test_running_tasks_are_listed_and_can_be_fetched_later(tmp_path: Path) -> None:
    """The exit code is 130. Tasks are listed with both ids, and the printed command saves their results."""
    arguments = ["expand", COFFEE, CHELSEA, "--up", 0.5, "-o", tmp_path / "out"]
    with shell(work_seconds=600) as kling, kling.start(*arguments) as process:
        seen = read_until(process, "jpg: ") + read_until(process, "jpg: ")
        press_ctrl_c(process)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (130, ""), seen + err
        assert "Traceback" not in err
        assert not list(tmp_path.rglob("*.*g"))
        for task in kling.emulator.account.tasks.values():
            assert task.task_id in err
        resume = err.strip().splitlines()[-1].removeprefix("resume with: kling-expand ")
        kling.within(kling.emulator.advance, 700)
        again = kling(*resume.split())
        assert (again.exit_code, len(again.stdout.splitlines())) == (0, 2)
        assert (kling.emulator.account.units_billed, len(kling.emulator.account.tasks)) == (16, 2)


def test_an_interrupted_download_leaves_no_partial_file(tmp_path: Path) -> None:
    """A stalled download is cut off at once, its task is listed, and no partial file is left."""
    with shell() as kling:
        kling.emulator.faults.script("file", Fault("slow_body", seconds=60))
        with kling.start("expand", COFFEE, "--up", 0.5, "-o", tmp_path / "out") as process:
            read_until(process, "succeed")
            began = time.monotonic()
            press_ctrl_c(process)
            _, err = process.communicate(timeout=30)
            assert time.monotonic() - began < 5  # of which 1.5 s are for downloads that are nearly complete
            assert process.returncode == 130, err
            assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".kling-expand.db"]
            (task_id,) = kling.emulator.account.tasks
            assert f"kling-expand wait -o {tmp_path / 'out'} {task_id}" in err


def test_a_create_without_a_response_is_listed_by_its_external_id(tmp_path: Path) -> None:
    """A second Ctrl-C ends the command at once. It prints the external id of a create without a response."""
    with shell() as kling:
        kling.emulator.faults.script("create", Fault("slow_headers", seconds=60))
        with kling.start("expand", COFFEE, "--up", 0.5, "-o", tmp_path, "--json") as process:
            while not kling.emulator.account.faults:
                assert process.poll() is None
            press_ctrl_c(process)
            read_until(process, "interrupted")
            press_ctrl_c(process)
            _, err = process.communicate(timeout=30)
            assert process.returncode == 130, err
            assert "Traceback" not in err
            assert "kx-" in err
            assert kling("status", err.split()[-1]).exit_code == 0


def test_no_resume_command_is_printed_for_a_local_emulator(tmp_path: Path) -> None:
    """With --emulator nothing continues, so no resume command is printed."""
    with Shell().start("expand", COFFEE, "--up", 0.5, "--emulator", "-o", tmp_path) as process:
        read_until(process, "jpg: ")
        press_ctrl_c(process)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert "nothing is billed" in err
        assert "resume" not in err
        assert "Traceback" not in err
        assert not list(tmp_path.glob("*.*g"))
