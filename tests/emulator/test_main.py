"""The emulator as a process of its own."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
from support.raw_client import EDITING, Caller, order, png

from kling_expand.emulator import Emulator

OPTIONS = ("--engine=flat", "--slots=1000", "--queue-seconds=0", "--work-seconds=0")


def start(path: Path) -> tuple["subprocess.Popen[str]", Emulator]:
    """Start a process on a state file, and return it with its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kling_expand.emulator", f"--state={path}", *OPTIONS],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    line = process.stdout.readline() if process.stdout else ""
    emulator = Emulator()
    emulator.url = line.split()[0]
    return process, emulator


async def test_sigkill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """After a SIGKILL during 40 creates, every acknowledged task still exists, with its picture."""
    process, emulator = start(tmp_path / "state.db")
    acknowledged: list[str] = []

    async def create(call: Caller, number: int) -> None:
        image = base64.b64encode(png(300 + number, 300)).decode()
        try:
            status, _ = await call("POST", EDITING, json=order(external_task_id=f"x{number}", image=image))
        except aiohttp.ClientError:
            return
        assert status == 200
        acknowledged.append(f"x{number}")
        if len(acknowledged) == 15:
            process.send_signal(signal.SIGKILL)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(create(Caller(emulator, session), number) for number in range(40)))
    process.communicate()
    assert len(acknowledged) >= 15
    process, emulator = start(tmp_path / "state.db")
    async with aiohttp.ClientSession() as session:
        call = Caller(emulator, session)
        for name in acknowledged:
            done = await call.task(name)
            assert done["task_status"] == "succeed"
        async with session.get(done["task_result"]["images"][0]["url"]) as response:
            assert response.status == 200
    process.terminate()
    process.communicate()
    assert process.returncode == 0


async def test_the_command_line_prints_what_a_shell_needs(tmp_path: Path) -> None:
    """The process prints its address, credentials and `export` lines, and ends with code 0 on SIGINT."""
    process, emulator = start(tmp_path / "state.db")
    async with aiohttp.ClientSession() as session:
        assert (await Caller(emulator, session)("GET", EDITING))[0] == 200
    os.kill(process.pid, signal.SIGINT)
    rest, _ = process.communicate()
    exports = [line for line in rest.splitlines() if line.startswith("export ")]
    assert (process.returncode, [line.partition("=")[0].split()[1] for line in exports]) == (
        0,
        ["KLING_BASE_URL", "KLING_API_KEY"],
    )


def test_a_failed_start_prints_one_line(tmp_path: Path) -> None:
    """An unusable address or state file leads to one line on stderr and exit code 2."""
    (tmp_path / "no.db").write_text(json.dumps({"not": "a database"}) * 100)
    for options in (["--host", "203.0.113.1"], ["--state", str(tmp_path / "no.db")]):
        ended = subprocess.run(
            [sys.executable, "-m", "kling_expand.emulator", *options],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
