"""The pool of workers and its cache."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.raw_client import png
from support.sample_pictures import BROKEN

from kling_expand.emulator.painting.image_headers import PictureError
from kling_expand.emulator.painting.worker import WorkerLost
from kling_expand.emulator.painting.worker_pool import PictureKey, WorkerPool

RATIOS = (0.0, 0.0, 0.1, 0.1)


def key(seed: int = 0, engine: str = "flat", *, watermark: bool = False) -> PictureKey:
    """Return the key of a picture of the small gray square."""
    return PictureKey("digest", RATIOS, seed, engine, watermark)


class CountedOriginal:
    """An original that counts how often it is read."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.reads = 0

    async def __call__(self) -> bytes:
        self.reads += 1
        return self.image


@asynccontextmanager
async def painting(cache_bytes: int = 256_000_000) -> AsyncIterator[WorkerPool]:
    """Yield a pool, and close it afterwards."""
    painter = WorkerPool(cache_bytes=cache_bytes)
    try:
        yield painter
    finally:
        await painter.aclose()


async def test_concurrent_calls_share_one_painting() -> None:
    """Concurrent calls for a picture paint it once, and later calls read the cache."""
    original = CountedOriginal(png())
    async with painting() as painter:
        pictures = await asyncio.gather(*(painter.paint(key(), original) for _ in range(5)))
        assert len(set(pictures)) == 1
        assert await painter.paint(key(), original) == pictures[0]
        assert original.reads == 1


async def test_a_dropped_picture_is_painted_again() -> None:
    """A picture dropped from the cache is painted again with equal bytes."""
    original = CountedOriginal(png())
    async with painting(cache_bytes=1) as painter:
        first = await painter.paint(key(1), original)
        assert await painter.paint(key(2), original) != first
        assert await painter.paint(key(1), original) == first
        assert original.reads == 3


async def test_cancelling_one_call_affects_no_other() -> None:
    """After one call is cancelled, painting continues for the other calls."""
    original = CountedOriginal(png())
    async with painting() as painter:
        waiters = [asyncio.ensure_future(painter.paint(key(), original)) for _ in range(2)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        assert (await waiters[1])[0].startswith(b"\x89PNG")


@pytest.mark.parametrize("engine", ["flat", "patchmatch"])
async def test_a_broken_original_raises(engine: str) -> None:
    """A broken original raises an error, in this process and in a worker, without later effects."""
    async with painting() as painter:
        with pytest.raises(PictureError, match="broken png"):
            await painter.paint(key(1, engine), CountedOriginal(BROKEN))
        assert (await painter.paint(key(2, "flat"), CountedOriginal(png())))[1] is None


async def test_a_killed_process_is_replaced() -> None:
    """When a worker is killed, a new one paints its picture."""
    async with painting() as painter:
        with pytest.raises(PictureError):
            await painter.paint(key(1, "patchmatch"), CountedOriginal(BROKEN))
        (worker,) = painter._workers
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(PictureError):
            await painter.paint(key(2, "patchmatch"), CountedOriginal(BROKEN))
        assert len(painter._workers) == 2


async def test_closing_stops_a_running_painting() -> None:
    """Closing the pool ends a running painting at once."""
    painter = WorkerPool()
    waiter = asyncio.ensure_future(painter.paint(key(1, "patchmatch"), CountedOriginal(png(1500, 1500))))
    while not painter._workers:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.001)
    await painter.aclose()
    with pytest.raises((asyncio.CancelledError, WorkerLost)):
        await waiter
    assert all(worker._process.returncode is not None for worker in painter._workers)


async def test_a_closed_pool_starts_no_process() -> None:
    """A thread that runs after the close leaves no process behind."""
    painter = WorkerPool()
    await painter.aclose()
    with pytest.raises(WorkerLost):
        painter._paint(key(1, "patchmatch"), png())
    assert all(worker._process.returncode is not None for worker in painter._workers)
