"""A pool of worker processes with a cache of painted pictures.

A picture depends only on its key, so a picture that was dropped from the cache can be painted again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from attrs import frozen

from kling_expand.emulator.settings import FLAT_ENGINE

from .canvas import Ratios
from .worker import Painted, PaintingOptions, Worker, WorkerLost


@frozen
class PictureKey:
    """Everything that a picture depends on. `digest` identifies the original."""

    digest: str
    ratios: Ratios
    seed: int
    engine: str
    watermark: bool
    misregister: str = ""


class WorkerPool:
    """Up to *workers* processes, each with a thread, and a cache of *cache_bytes*."""

    def __init__(self, *, workers: int = 2, cache_bytes: int = 256_000_000) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="painting")
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._closing = False
        self._cache: OrderedDict[PictureKey, Painted] = OrderedDict()
        self._cache_room = cache_bytes
        self._running: dict[PictureKey, asyncio.Future[Painted]] = {}

    async def paint(self, key: PictureKey, original: Callable[[], Awaitable[bytes]]) -> Painted:
        """Return the picture of *key*. Concurrent calls for one key share one painting.

        Raises:
            PictureError: if it cannot be painted.
            WorkerLost: if two processes in a row end before they respond.
        """
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        if key not in self._running:
            self._running[key] = running = asyncio.ensure_future(self._start(key, original))
            running.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(self._running[key])

    async def _start(self, key: PictureKey, original: Callable[[], Awaitable[bytes]]) -> Painted:
        image = await original()
        loop = asyncio.get_running_loop()
        painted = await loop.run_in_executor(self._threads, self._paint, key, image)
        self._add_to_cache(key, painted)
        return painted

    def _add_to_cache(self, key: PictureKey, painted: Painted) -> None:
        self._cache[key] = painted
        self._cache_room -= _size(painted)
        while self._cache_room < 0 and len(self._cache) > 1:
            self._cache_room += _size(self._cache.popitem(last=False)[1])

    def _paint(self, key: PictureKey, image: bytes) -> Painted:
        if key.engine == FLAT_ENGINE:
            return _paint_in_process(key, image)
        try:
            return self._paint_in_worker(key, image)
        except WorkerLost:  # for example, killed when memory ran out: retry in a new process
            if self._closing:
                raise
            return self._paint_in_worker(key, image)

    def _paint_in_worker(self, key: PictureKey, image: bytes) -> Painted:
        worker = self._idle.pop() if self._idle else self._start_worker()
        try:
            painted = worker.outpaint(image, key.ratios, **_options(key))
        except WorkerLost:
            worker.close()
            raise
        except ValueError:
            self._idle.append(worker)
            raise
        self._idle.append(worker)
        return painted

    def _start_worker(self) -> Worker:
        self._workers.append(worker := Worker())
        if self._closing:  # `aclose` may have closed the listed workers already
            worker.close()
            raise WorkerLost("closing")
        return worker

    async def aclose(self) -> None:
        """Stop at once, and discard unfinished pictures."""
        self._closing = True
        for running in list(self._running.values()):
            running.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()


@lru_cache(maxsize=32)  # shared by all emulators of the process, because tests start many with equal photos
def _paint_in_process(key: PictureKey, image: bytes) -> Painted:
    from .pictures import outpaint

    picture = outpaint(image, key.ratios, **_options(key))
    return picture.data, picture.watermarked


def _options(key: PictureKey) -> PaintingOptions:
    return {
        "seed": key.seed,
        "engine": key.engine,
        "watermark": key.watermark,
        "misregister": key.misregister,
    }


def _size(painted: Painted) -> int:
    return len(painted[0]) + len(painted[1] or b"")
