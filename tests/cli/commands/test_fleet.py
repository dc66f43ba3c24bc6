"""``kling-expand fleet``: the database, workers, jobs and live screen from a shell."""

import asyncio
import contextlib
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg
from click.testing import CliRunner
from PIL import Image

from kling_expand.cli import root
from kling_expand.emulator import Emulator
from kling_expand.fleet.queue import Fleet

pytest_plugins = ["support.postgres", "support.fleet"]

# A child inherits ignored signals, and could then not be interrupted.
INTERRUPTIBLE = ("/usr/bin/env", "--default-signal=INT", sys.executable, "-m", "kling_expand", "fleet")


def fleet_command(*words: str) -> Any:
    return CliRunner().invoke(root, ["fleet", *words])


async def test_the_fleet_commands_work_together(
    dsn: str, emulator: Emulator, photo: Path, tmp_path: Path
) -> None:
    """`init`, `submit`, `worker` and `status` work together. SIGTERM ends a worker with exit code 0."""
    at = ["--dsn", dsn]
    assert "fleet init" in (await asyncio.to_thread(fleet_command, "status", *at)).output
    assert (await asyncio.to_thread(fleet_command, "init", *at)).exit_code == 0
    (tmp_path / "list").write_text(f"{photo}\n\nmissing.png\n")
    worker = await asyncio.create_subprocess_exec(
        "/usr/bin/env", f"KLING_API_KEY={emulator.api_key}",
        sys.executable, "-m", "kling_expand", "fleet", "worker", *at, "--base-url", emulator.url,
        "-o", str(tmp_path / "out"), "--shutdown-timeout", "1",
    )  # fmt: skip
    words = ["submit", *at, "--right", "0.5", "--from", str(tmp_path / "list"), "--wait"]
    done = await asyncio.to_thread(fleet_command, *words)
    assert done.exit_code == 1
    assert "2 jobs queued" in done.output
    assert "\nmissing.png: refused: ImageError" in done.output
    assert "1 job failed" in done.output
    assert [str(path) for path in (tmp_path / "out").iterdir()] == [
        line for line in done.output.split("\n") if "/out/" in line
    ]
    # Outcomes of another submission are neither printed nor counted.
    alone = await asyncio.to_thread(fleet_command, "submit", *at, "--right", "0.25", str(photo), "--wait")
    assert (alone.exit_code, alone.output.count("/out/"), "refused" in alone.output) == (0, 1, False)
    picture = Image.new("RGB", (300, 700))
    picture.save(tmp_path / "tower.png")
    portrait = ["submit", *at, "--aspect", "16:9", str(tmp_path / "tower.png"), "--wait"]
    refused = await asyncio.to_thread(fleet_command, *portrait)
    assert (refused.exit_code, "use passes=2" in refused.output) == (1, True)
    twice = await asyncio.to_thread(fleet_command, *portrait, "--passes", "2", "--json")
    assert (twice.exit_code, json.loads(twice.stdout)["units"]) == (0, 16)
    as_json = (await asyncio.to_thread(fleet_command, *words, "--json")).output
    assert {"succeeded", "refused"} == {
        json.loads(line)["status"] for line in as_json.splitlines() if "{" in line
    }
    assert "1 refused, 3 succeeded" in (await asyncio.to_thread(fleet_command, "status", *at)).output
    status = (await asyncio.to_thread(fleet_command, "status", *at, "--json")).output
    assert json.loads(status)["units_billed"] == 32
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(worker.wait(), 20) == 0


async def test_fleet_up_runs_everything_on_one_machine(tmp_path: Path, photo: Path) -> None:
    """`fleet up` prints the URL of its database, runs jobs, and removes everything at Ctrl-C."""
    up = await asyncio.create_subprocess_exec(
        *(*INTERRUPTIBLE, "up", "--workers", "1", "-o", str(tmp_path / "out")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert up.stdout is not None
    try:
        async with asyncio.timeout(180):  # it paints a real picture, perhaps on a busy machine
            dsn = (await up.stdout.readline()).decode().strip()
            words = ["submit", "--dsn", dsn, "--right", "0.02", "--wait", str(photo)]
            done = await asyncio.to_thread(fleet_command, *words)
            up.send_signal(signal.SIGINT)
            assert (done.exit_code, await up.wait()) == (0, 0)
    finally:
        if up.returncode is None:
            up.terminate()
            await up.wait()
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert "cannot be reached" in (await asyncio.to_thread(fleet_command, "status", "--dsn", dsn)).output


def processes_with(words: str) -> list[str]:
    """Return the command lines of all processes that contain *words* (on Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if words in line]


async def test_killing_fleet_up_ends_its_workers_and_database(tmp_path: Path) -> None:
    """A SIGKILL of `fleet up` ends its workers and its database too."""
    up = await asyncio.create_subprocess_exec(
        *(*INTERRUPTIBLE, "up", "--workers", "1", "-o", str(tmp_path / "out")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert up.stdout is not None
    async with asyncio.timeout(60):
        dsn = (await up.stdout.readline()).decode().strip()
        folder = unquote(dsn.partition("@")[2].partition("/")[0])
        assert processes_with(f"-D {folder}")
        assert processes_with(f"--dsn {dsn}")
        up.kill()
        await up.wait()
        while processes_with(f"-D {folder}") or processes_with(f"--dsn {dsn}"):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.05)
    await asyncio.to_thread(shutil.rmtree, Path(folder).parent)


def test_a_missing_dsn_is_explained() -> None:
    """Without --dsn, the message names the environment variable and the command that starts a database."""
    done = fleet_command("status")
    assert done.exit_code == 2
    assert "KLING_FLEET_DSN" in done.output
    assert "fleet up" in done.output


async def test_the_live_view_ends_with_ctrl_c(fleet: Fleet) -> None:
    """`top` runs until Ctrl-C, and prints no traceback."""
    top = await asyncio.create_subprocess_exec(
        *(*INTERRUPTIBLE, "top", "--dsn", fleet.dsn, "--every", "0.1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    queried = "SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%%kling_jobs%%'"
    async with asyncio.timeout(30):
        with psycopg.connect(fleet.dsn, autocommit=True) as database:
            while not database.execute(queried).fetchall():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        top.send_signal(signal.SIGINT)
        _, err = await top.communicate()
    assert b"Traceback" not in err


def test_an_unreachable_database_is_an_error_without_a_traceback() -> None:
    """If the database cannot be reached, the exit code is 1 and there is no traceback."""
    done = fleet_command("status", "--dsn", "postgresql://postgres@127.0.0.1:1/x")
    assert (done.exit_code, "cannot be reached" in done.output) == (1, True)
