"""`wait` and `download`: the results of earlier tasks, by either of their ids."""

import json
from pathlib import Path

from cli.commands.test_tasks import ids, submitted
from support.shell import CHELSEA, COFFEE, shell

from kling_expand.emulator.faults.plan import Fault


def test_wait_saves_each_task_once_under_its_id(tmp_path: Path) -> None:
    """A repeated id is one task, and either kind of id is accepted."""
    with shell(work_seconds=600) as kling:
        first, second = submitted(kling, COFFEE, CHELSEA)
        external = json.loads(kling("get", second, "--json").stdout)["external_task_id"]
        kling.within(kling.emulator.advance, 700)
        done = kling("wait", first, external, first, "-o", tmp_path)
    assert done.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{first}-0.png", f"{second}-0.png"])


def test_a_failed_task_is_reported_with_its_reason(tmp_path: Path) -> None:
    """For a failed task, the exit code is 1. The reason is printed, without advice to wait again."""
    with shell(work_seconds=600) as kling:
        kling("expand", COFFEE, "--up", 0.5, "--prompt", "emulate-risk-control", "--deadline", 0.3)
        (task_id,) = ids(kling)
        kling.within(kling.emulator.advance, 700)
        done = kling("wait", task_id, "-o", tmp_path)
        assert kling("status", task_id).exit_code == 1
    assert (done.exit_code, done.stdout) == (1, "")
    assert "risk control" in done.stderr
    assert "resume" not in done.stderr


def test_download_does_not_wait(tmp_path: Path) -> None:
    """An ended task is saved. For a running task, the error says how to wait for it."""
    with shell(work_seconds=600) as kling:
        (first,) = submitted(kling, COFFEE)
        kling.within(kling.emulator.advance, 700)
        second = submitted(kling, CHELSEA)[-1]
        done = kling("download", first, second, "-o", tmp_path)
        assert (done.exit_code, done.stdout) == (1, f"{tmp_path / f'{first}-0.png'}\n")
        assert "has not ended" in done.stderr
        assert f"kling-expand wait -o {tmp_path} {second}" in done.stderr


def test_a_result_that_cannot_be_fetched_stays_open(tmp_path: Path) -> None:
    """After a failed download, the command that retries it is printed, because the task is paid for."""
    with shell() as kling:
        kling("expand", COFFEE, "--up", 0.5, "-o", tmp_path)
        (task_id,) = ids(kling)
        kling.emulator.faults.script("file", Fault("expired", times=2))
        done = kling("download", task_id, "-o", tmp_path / "again")
    assert done.exit_code == 1
    assert f" {task_id}" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "again").glob("*")) == []
