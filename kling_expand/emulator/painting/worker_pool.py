"""When is a picture painted, and by whom? Off the event loop, never twice at once, kept for a while.

A picture is a function of its key, so one that was dropped from the cache is simply painted again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from attrs import frozen

from kling_expand.emulator.http.validation import Ratios

from .worker import Painted, Worker, WorkerLost

LAZY = "flat"  # so quick that it needs no process, and no painting before somebody downloads


@frozen
class Key:
    """All that decides how a picture looks; `digest` names the original."""

    digest: str
    ratios: Ratios
    seed: int
    engine: str
    watermark: bool


class Painter:
    """Paints in `workers` threads, each with a process of its own; keeps `cache_bytes` of results."""

    def __init__(self, *, workers: int = 2, cache_bytes: int = 256_000_000) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="painter")
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._closing = False
        self._kept: OrderedDict[Key, Painted] = OrderedDict()
        self._room = cache_bytes
        self._running: dict[Key, asyncio.Future[Painted]] = {}

    async def paint(self, key: Key, original: Callable[[], Awaitable[bytes]]) -> Painted:
        """The picture of `key`; raises PictureError when it cannot be painted."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._running:
            self._running[key] = running = asyncio.ensure_future(self._start(key, original))
            running.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(self._running[key])

    async def _start(self, key: Key, original: Callable[[], Awaitable[bytes]]) -> Painted:
        image = await original()
        loop = asyncio.get_running_loop()
        painted = await loop.run_in_executor(self._threads, self._paint, key, image)
        self._keep(key, painted)
        return painted

    def _keep(self, key: Key, painted: Painted) -> None:
        self._kept[key] = painted
        self._room -= _size(painted)
        while self._room < 0 and len(self._kept) > 1:
            self._room += _size(self._kept.popitem(last=False)[1])

    def _paint(self, key: Key, image: bytes) -> Painted:
        if key.engine == LAZY:
            return _here(key, image)
        try:
            return self._paint_apart(key, image)
        except WorkerLost:  # killed from outside, by a lack of memory say: once more, with a new one
            if self._closing:
                raise
            return self._paint_apart(key, image)

    def _paint_apart(self, key: Key, image: bytes) -> Painted:
        worker = self._idle.pop() if self._idle else self._hire()
        try:
            painted = worker.outpaint(
                image, key.ratios, seed=key.seed, engine=key.engine, watermark=key.watermark
            )
        except WorkerLost:
            worker.close()
            raise
        except ValueError:
            self._idle.append(worker)
            raise
        self._idle.append(worker)
        return painted

    def _hire(self) -> Worker:
        self._workers.append(worker := Worker())
        if self._closing:  # since whoever closes may have gone through the list already
            worker.close()
            raise WorkerLost("closing")
        return worker

    async def aclose(self) -> None:
        """Stop at once; what is being painted is thrown away."""
        self._closing = True
        for running in list(self._running.values()):
            running.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()


def _here(key: Key, image: bytes) -> Painted:
    from .pictures import outpaint

    picture = outpaint(image, key.ratios, seed=key.seed, engine=key.engine, watermark=key.watermark)
    return picture.data, picture.watermarked


def _size(painted: Painted) -> int:
    return len(painted[0]) + len(painted[1] or b"")
