"""Is nothing lost that was acknowledged, whatever kills the emulator?"""

import asyncio
import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.raw_client import EDITING, Caller, calling, order, png

from kling_expand.emulator import Emulator
from kling_expand.emulator.state.store import Store
from kling_expand.emulator.state.tasks import Task, dump_task, load_task

OPTIONS = ("--engine=flat", "--slots=1000", "--queue-seconds=0", "--work-seconds=0")
NOW = 1_800_000_000.0


def task(number: int = 1, **changes: Any) -> Task:
    """A task with an awkward prompt."""
    usual: dict[str, Any] = {
        "task_id": str(10**17 + number),
        "external_task_id": f"x{number}",
        "dialect": "editing",
        "ratios": (0.1, 0.2, 0.3, 0.4),
        "n": 2,
        "prompt": "日本 \ud800 \x00 'quoted'",
        "watermark": True,
        "callback_url": "",
        "created_at": NOW,
        "starts_at": NOW + 1,
        "due_at": NOW + 2,
        "seed": 3,
        "engine": "flat",
        "digest": "d",
    }
    return Task(**(usual | changes))


def test_a_task_survives_its_text() -> None:
    """Every field, whatever letters are in it."""
    assert load_task(dump_task(task(ready_at=5.5, failure="no"))) == task(ready_at=5.5, failure="no")


async def test_what_was_flushed_is_there_again(tmp_path: Path) -> None:
    """Tasks in order, the newest of each, images and facts."""
    path = str(tmp_path / "state.db")
    store = Store(path)
    store.put_image("d", b"\x00picture")
    for number in (3, 1, 2):
        store.put_task(task(number))
    store.put_task(task(1).painted(NOW))
    store.put_number("clock_offset", 12.5)
    await store.flush()
    again = Store(path)
    assert again.tasks() == [task(1).painted(NOW), task(2), task(3)]
    assert (await again.image("d"), again.number("clock_offset"), again.number("other")) == (
        b"\x00picture",
        12.5,
        0.0,
    )
    with pytest.raises(KeyError):
        await again.image("unknown")
    await again.aclose()
    await store.aclose()


async def test_one_sync_serves_many(tmp_path: Path) -> None:
    """Whatever is put while a commit runs goes together into the next: 100 creates cost a few."""
    path = str(tmp_path / "state.db")
    store = Store(path)
    commits: list[str] = []
    store._database.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)

    async def create(number: int) -> None:
        await asyncio.sleep(0)
        store.put_task(task(number))
        await store.flush()
        assert task(number) in Store(path).tasks()

    await asyncio.gather(*(create(number) for number in range(100)))
    assert len(commits) < 20
    await store.aclose()


async def test_a_failed_write_is_told(tmp_path: Path) -> None:
    """Nobody is answered as if it were on the disk, and the next write works again."""
    store = Store(str(tmp_path / "state.db"))
    trigger = "CREATE TRIGGER full BEFORE INSERT ON tasks BEGIN SELECT RAISE(FAIL, 'full'); END"
    store._database.execute(trigger)
    store.put_task(task())
    with pytest.raises(sqlite3.Error, match="full"):
        await store.flush()
    store._database.execute("DROP TRIGGER full")
    store.put_task(task())
    await store.flush()
    assert store.tasks() == [task()]
    await store.aclose()


async def test_without_a_file_uploads_are_found_too() -> None:
    """The same interface, for the life of the process."""
    store = Store()
    store.put_image("d", b"picture")
    assert await store.image("d") == b"picture"
    await store.aclose()


async def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    """Tasks, statuses, moved time, ids and pictures are those of before; ended lives are cleared away."""
    options: dict[str, Any] = {
        "state": str(tmp_path / "state.db"),
        "queue_seconds": 10,
        "work_seconds": 10,
        "clock": lambda: NOW,
    }
    async with calling(**options) as call:
        first = await call.create(external_task_id="a", watermark_info={"enabled": True})
        call.emulator.advance(20)
        before = await call.task(first)
        async with call.session.get(before["task_result"]["images"][0]["url"]) as answer:
            picture = await answer.read()
        second = await call.create(external_task_id="b")
    async with calling(**options) as call:
        after = await call.task("a")
        async with call.session.get(after["task_result"]["images"][0]["url"]) as answer:
            assert await answer.read() == picture
        assert after["updated_at"] == before["updated_at"]
        assert (await call.task("b"))["task_status"] == "submitted"
        status, body = await call("POST", EDITING, json=order(external_task_id="a"))
        assert (status, body["code"]) == (400, 1201)
        assert int(await call.create()) > int(second)
        call.emulator.advance(31 * 86400)
    async with calling(**options) as call:
        assert call.emulator.account.tasks == {}
    with sqlite3.connect(options["state"]) as database:
        counts = database.execute("SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM images)")
        assert counts.fetchone() == (0, 0)
    database.close()


async def test_what_was_being_painted_is_taken_up_again(tmp_path: Path) -> None:
    """A task that waits for its picture when the emulator stops has it after the next start."""
    options: dict[str, Any] = {"state": str(tmp_path / "state.db"), "engine": "patchmatch"}
    async with calling(queue_seconds=0, work_seconds=0, **options) as call:
        task_id = await call.create()
    async with calling(queue_seconds=0, work_seconds=0, **options) as call:
        await call.emulator.painted()
        assert (await call.task(task_id))["task_status"] == "succeed"


def start(path: Path) -> tuple["subprocess.Popen[str]", Emulator]:
    """A real process on a state file, and where it is."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kling_expand.emulator", f"--state={path}", *OPTIONS],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    line = process.stdout.readline() if process.stdout else ""
    emulator = Emulator()
    emulator.url = line.split()[0]
    return process, emulator


async def test_sigkill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Killed in the middle of 40 creates: all that were answered are found again, picture and all."""
    process, emulator = start(tmp_path / "state.db")
    answered: list[str] = []

    async def create(call: Caller, number: int) -> None:
        image = base64.b64encode(png(300 + number, 300)).decode()
        try:
            status, _ = await call("POST", EDITING, json=order(external_task_id=f"x{number}", image=image))
        except aiohttp.ClientError:
            return
        assert status == 200
        answered.append(f"x{number}")
        if len(answered) == 15:
            process.send_signal(signal.SIGKILL)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(create(Caller(emulator, session), number) for number in range(40)))
    process.communicate()
    assert len(answered) >= 15
    process, emulator = start(tmp_path / "state.db")
    async with aiohttp.ClientSession() as session:
        call = Caller(emulator, session)
        for name in answered:
            done = await call.task(name)
            assert done["task_status"] == "succeed"
        async with session.get(done["task_result"]["images"][0]["url"]) as answer:
            assert answer.status == 200
    process.terminate()
    process.communicate()
    assert process.returncode == 0


async def test_the_command_line_says_where_it_is_in_one_line(tmp_path: Path) -> None:
    """Address and credentials, then silence; a signal ends it with code 0."""
    process, emulator = start(tmp_path / "state.db")
    async with aiohttp.ClientSession() as session:
        assert (await Caller(emulator, session)("GET", EDITING))[0] == 200
    os.kill(process.pid, signal.SIGINT)
    rest, _ = process.communicate()
    assert (process.returncode, rest) == (0, "")


def test_what_cannot_start_says_so_in_one_sentence(tmp_path: Path) -> None:
    """A port that is taken, a state file that is none: exit code 2."""
    (tmp_path / "no.db").write_text(json.dumps({"not": "a database"}) * 100)
    for options in (["--host", "203.0.113.1"], ["--state", str(tmp_path / "no.db")]):
        ended = subprocess.run(
            [sys.executable, "-m", "kling_expand.emulator", *options],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[3],
        )
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
