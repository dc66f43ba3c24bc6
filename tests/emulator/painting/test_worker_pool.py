"""Is each picture painted off the loop, once, again if it was dropped, and never at the cost of another?"""

import asyncio
import base64
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.raw_client import calling, png

from kling_expand.emulator.painting.image_headers import PictureError
from kling_expand.emulator.painting.worker import Worker, WorkerLost, receive, send, serve
from kling_expand.emulator.painting.worker_pool import PictureKey, WorkerPool

RATIOS = (0.0, 0.0, 0.1, 0.1)
BROKEN = png()[:60] + b"\x00\x00\x00\x00" + png()[64:]  # the header is sound, the pixels are not


def key(seed: int = 0, engine: str = "flat", *, watermark: bool = False) -> PictureKey:
    """A picture of the small grey square."""
    return PictureKey("digest", RATIOS, seed, engine, watermark)


class Shelf:
    """An original, and how often it was asked for."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.asked = 0

    async def __call__(self) -> bytes:
        self.asked += 1
        return self.image


@asynccontextmanager
async def painting(cache_bytes: int = 256_000_000) -> AsyncIterator[WorkerPool]:
    """A painter that is closed in the end."""
    painter = WorkerPool(cache_bytes=cache_bytes)
    try:
        yield painter
    finally:
        await painter.aclose()


async def test_many_who_ask_at_once_share_one_painting() -> None:
    """And those who come later get it from the cache."""
    shelf = Shelf(png())
    async with painting() as painter:
        pictures = await asyncio.gather(*(painter.paint(key(), shelf) for _ in range(5)))
        assert len(set(pictures)) == 1
        assert await painter.paint(key(), shelf) == pictures[0]
        assert shelf.asked == 1


async def test_a_dropped_picture_is_painted_again_alike() -> None:
    """A cache that holds one forgets the older; the same key gives the same bytes."""
    shelf = Shelf(png())
    async with painting(cache_bytes=1) as painter:
        first = await painter.paint(key(1), shelf)
        assert await painter.paint(key(2), shelf) != first
        assert await painter.paint(key(1), shelf) == first
        assert shelf.asked == 3


async def test_one_who_gives_up_disturbs_no_other() -> None:
    """Cancelling a waiter leaves the painting to the rest."""
    shelf = Shelf(png())
    async with painting() as painter:
        waiters = [asyncio.ensure_future(painter.paint(key(), shelf)) for _ in range(2)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        assert (await waiters[1])[0].startswith(b"\x89PNG")


@pytest.mark.parametrize("engine", ["flat", "patchmatch"])
async def test_a_broken_original_is_told(engine: str) -> None:
    """Here and from the other process, where the next picture is none the worse for it."""
    async with painting() as painter:
        with pytest.raises(PictureError, match="broken png"):
            await painter.paint(key(1, engine), Shelf(BROKEN))
        assert (await painter.paint(key(2, "flat"), Shelf(png())))[1] is None


async def test_a_killed_process_is_replaced() -> None:
    """A picture asked for while the process dies is painted by another."""
    async with painting() as painter:
        with pytest.raises(PictureError):
            await painter.paint(key(1, "patchmatch"), Shelf(BROKEN))
        (worker,) = painter._workers
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(PictureError):
            await painter.paint(key(2, "patchmatch"), Shelf(BROKEN))
        assert len(painter._workers) == 2


async def test_a_painter_that_cannot_be_had_fails_the_task() -> None:
    """When the processes die again and again, the task ends; it does not hang."""
    async with calling(engine="patchmatch", queue_seconds=0, work_seconds=0) as call:
        call.emulator.service.renderer._pool._closing = True
        task_id = await call.create()
        await call.emulator.painted()
        task = await call.task(task_id)
        assert (task["task_status"], task["task_status_msg"]) == ("failed", "Server internal error")


async def test_closing_stops_what_is_being_painted() -> None:
    """At once, however long it would have taken."""
    painter = WorkerPool()
    waiter = asyncio.ensure_future(painter.paint(key(1, "patchmatch"), Shelf(png(1500, 1500))))
    while not painter._workers:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.001)
    await painter.aclose()
    with pytest.raises((asyncio.CancelledError, WorkerLost)):
        await waiter
    assert all(worker._process.returncode is not None for worker in painter._workers)


async def test_who_comes_after_closing_finds_it_closed() -> None:
    """A painting thread that was late starts no process that would stay."""
    painter = WorkerPool()
    await painter.aclose()
    with pytest.raises(WorkerLost):
        painter._paint(key(1, "patchmatch"), png())
    assert all(worker._process.returncode is not None for worker in painter._workers)


def test_a_worker_answers_and_goes_when_the_pipe_closes() -> None:
    """It outlives no parent, not even one that was killed: its pipe closes all the same."""
    worker = Worker()
    with pytest.raises(PictureError, match="neither PNG nor JPEG"):
        worker.outpaint(b"nonsense", RATIOS, seed=0, engine="flat", watermark=False)
    picture, marked = worker.outpaint(png(), RATIOS, seed=0, engine="flat", watermark=True)
    assert picture.startswith(b"\x89PNG")
    assert marked not in {picture, None}
    worker.close()
    assert worker._process.returncode == 0
    with pytest.raises(WorkerLost):
        worker.outpaint(png(), RATIOS, seed=0, engine="flat", watermark=False)


def test_messages_that_stop_half_way_are_the_end() -> None:
    """A line without its end, and parts without theirs."""
    whole = io.BytesIO()
    send(whole, {"a": 1}, b"part", b"")
    assert receive(io.BytesIO(whole.getvalue())) == ({"a": 1, "sizes": [4, 0]}, [b"part", b""])
    for length in range(len(whole.getvalue())):
        with pytest.raises(EOFError):
            receive(io.BytesIO(whole.getvalue()[:length]))
    with pytest.raises(EOFError):
        receive(None)
    with pytest.raises(EOFError):
        send(None, {})


def test_an_error_of_any_kind_is_an_answer() -> None:
    """So that one bad picture costs one task, and the loop ends with the asking."""
    asks, answers = io.BytesIO(), io.BytesIO()
    ask = {"ratios": RATIOS, "seed": 0, "engine": "unheard of", "watermark": False}
    send(asks, ask, png())
    send(asks, ask | {"engine": "flat"}, png())
    asks.seek(0)
    serve(asks, answers)
    answers.seek(0)
    head, parts = receive(answers)
    assert ("unheard of" in head["error"], parts) == (True, [])
    head, parts = receive(answers)
    assert (head["error"], len(parts)) == ("", 1)


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    """The painting process does not import the caller's script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\n"
        "from kling_expand.emulator.painting.worker import Worker\n"
        "worker = Worker()\n"
        f"picture = worker.outpaint({png()!r}, (0, 0, 0.1, 0.1), seed=0, engine='flat', watermark=False)\n"
        "worker.close()\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "started\n", "")


async def test_a_picture_that_cannot_be_painted_fails_its_task() -> None:
    """Where it is painted at once, the task fails; where on demand, the file is missing."""
    for engine, status in (("patchmatch", "failed"), ("flat", "succeed")):
        async with calling(engine=engine, queue_seconds=0, work_seconds=0) as call:
            task_id = await call.create(image=base64.b64encode(BROKEN).decode())
            await call.emulator.painted()
            task = await call.task(task_id)
            assert task["task_status"] == status
            if status == "failed":
                assert task["task_status_msg"].startswith("Image pixel is invalid: broken png")
                continue
            async with call.session.get(task["task_result"]["images"][0]["url"]) as answer:
                assert answer.status == 404
