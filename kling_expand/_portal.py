"""How does an event loop run beside a program that has none? In one thread, which work is handed to."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

from .errors import ClientClosed

T = TypeVar("T")

_END: Any = object()
_NAME = "kling-expand"
_CLOSED = "the client is not open: use it inside `with`, and never from within its own thread"


class LoopThread:
    """An event loop in a thread of its own, between `start` and `stop`. Any other thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Begin; False, and nothing changes, where it has begun before."""
        with self._lock:
            if self._loop is not None:
                return False
            started: Future[asyncio.AbstractEventLoop] = Future()
            self._thread = threading.Thread(target=_serve, args=[started], name=_NAME, daemon=True)
            self._thread.start()
            self._loop = started.result()
            return True

    def stop(self) -> None:
        """End, once all that runs in the loop has been cancelled and has ended."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of *work*; whoever is interrupted while waiting cancels it. Raises `ClientClosed`."""
        ticket: Future[T] = Future()  # there before the work is: it can be taken back at any moment
        try:
            self._hand_over(work, ticket)
            return ticket.result()
        except CancelledError:
            raise ClientClosed("the client was closed by another thread") from None
        except BaseException:
            ticket.cancel()
            raise

    def iterate(self, source: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items of *source*, each asked for when it is wanted; it is closed with the iterator."""
        turn = asyncio.Lock()  # an interrupted step may still be ending when the source is to be closed
        try:
            while (item := self.run(_next(source, turn))) is not _END:
                yield item
        finally:
            # Not open: the loop's end closed it, or the garbage collector asks from within the loop.
            with suppress(ClientClosed):
                self.run(_close(source, turn))

    def _hand_over(self, work: Coroutine[Any, Any, T], ticket: Future[T]) -> None:
        with self._lock:  # so nothing is handed over behind the loop's last round, to wait for ever
            if self._loop is None or threading.current_thread() is self._thread:
                work.close()
                raise ClientClosed(_CLOSED)
            self._loop.call_soon_threadsafe(_begin, self._loop, work, ticket)


def _begin(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], ticket: Future[T]) -> None:
    """Start *work*; its end is told by *ticket*, and *ticket* can be cancelled to end it."""
    task = loop.create_task(work)

    def tell(task: asyncio.Task[T]) -> None:
        error = CancelledError() if task.cancelled() else task.exception()
        if not ticket.set_running_or_notify_cancel():
            return
        if error is not None:
            ticket.set_exception(error)
        else:
            ticket.set_result(task.result())

    task.add_done_callback(tell)
    ticket.add_done_callback(lambda _: loop.call_soon_threadsafe(task.cancel))


async def pull(items: Iterable[T]) -> AsyncGenerator[T, None]:
    """The *items*, each taken in a worker thread, where they may wait for whatever they like."""
    iterator = iter(items)
    while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
        yield item


def _serve(started: Future[asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        started.set_result(loop)
        loop.run_forever()


async def _next(source: AsyncGenerator[T, None], turn: asyncio.Lock) -> T:
    async with turn:
        return await anext(source, _END)


async def _close(source: AsyncGenerator[Any, None], turn: asyncio.Lock) -> None:
    async with turn:
        await source.aclose()
