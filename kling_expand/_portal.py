"""An event loop in a background thread, for callers without asyncio."""

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar
from weakref import WeakSet

from .errors import ClientClosed

T = TypeVar("T")

_END: Any = object()
_NAME = "kling-expand"
_CLOSED = "the client is not open: use it inside `with`, and never from its own background thread"
_FORKED = (
    "the client was opened before os.fork(), and its background thread does not exist in the child process: "
    "open a new client there"
)


class LoopThread:
    """An event loop that runs in a background thread from `start` to `stop`.

    Its methods may be called from any other thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._sources: WeakSet[AsyncGenerator[Any, None]] = WeakSet()  # being iterated; used only in the loop

    def start(self) -> bool:
        """Start the thread. Return False if it is already running.

        Raises:
            ClientClosed: if it was started in the parent process, before a fork.
        """
        if self._forked:
            raise ClientClosed(_FORKED)
        with self._lock:
            if self._loop is not None:
                return False
            started: Future[asyncio.AbstractEventLoop] = Future()
            self._thread = threading.Thread(target=self._serve, args=[started], name=_NAME, daemon=True)
            self._thread.start()
            self._loop, self._pid = started.result(), os.getpid()
            return True

    def stop(self) -> None:
        """Cancel all tasks of the loop, wait until they have ended, and stop the thread."""
        if self._forked:  # the parent still uses the loop's file descriptors
            return
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* in the loop, wait for it, and return its result.

        If an exception such as `KeyboardInterrupt` interrupts the wait, *work* is cancelled.

        Raises:
            ClientClosed: if the thread is not running, or was stopped in the meantime.
        """
        # Created before the work is handed over, so that an exception at any moment can cancel the work.
        ticket: Future[T] = Future()
        try:
            self._hand_over(work, ticket)
            return ticket.result()
        except CancelledError:
            raise ClientClosed("the client was closed by another thread") from None
        except BaseException:
            ticket.cancel()
            raise

    def call_soon(self, function: Callable[[T], object], argument: T) -> None:
        """Call *function* in the loop soon, without waiting for it.

        Raises:
            ClientClosed: if the thread is not running.
        """
        if self._forked:
            raise ClientClosed(_FORKED)
        with self._lock:
            if self._loop is None:
                raise ClientClosed(_CLOSED)
            self._loop.call_soon_threadsafe(function, argument)

    def iterate(self, source: AsyncGenerator[T, None]) -> Iterator[T]:
        """Yield the items of *source*, requesting each only when it is needed, and close *source* at the end.

        Raises:
            ClientClosed: if the thread is not running, or was stopped in the meantime.
        """
        lock = asyncio.Lock()  # an interrupted step may still be running when the source is closed
        try:
            while (item := self.run(self._next(source, lock))) is not _END:
                yield item
        finally:
            # Raised if `stop` has closed the source, or if the garbage collector runs in the loop's thread.
            with suppress(ClientClosed):
                self.run(self._close(source, lock))

    @property
    def _forked(self) -> bool:
        """Whether the thread was started in the parent process, before a fork.

        It is checked before the lock is acquired, because another thread may have held the lock at the fork.
        """
        return self._loop is not None and self._pid != os.getpid()

    def _hand_over(self, work: Coroutine[Any, Any, T], ticket: Future[T]) -> None:
        if self._forked:
            work.close()
            raise ClientClosed(_FORKED)
        with self._lock:  # otherwise work could arrive after the loop's last iteration and wait forever
            if self._loop is None or threading.current_thread() is self._thread:
                work.close()
                raise ClientClosed(_CLOSED)
            self._loop.call_soon_threadsafe(_begin, self._loop, work, ticket)

    def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        # `asyncio.run` cannot be used. At its end it starts a thread that waits for the executor's threads.
        # No thread can start while the interpreter exits, and the wait for a blocked thread would never end.
        loop = asyncio.new_event_loop()
        started.set_result(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(self._cancel_all(loop))
        finally:
            loop.close()

    async def _cancel_all(self, loop: asyncio.AbstractEventLoop) -> None:
        tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._sources:  # the outermost generators first, because `shutdown_asyncgens` has no order
            await asyncio.gather(self._sources.pop().aclose(), return_exceptions=True)
        await loop.shutdown_asyncgens()

    async def _next(self, source: AsyncGenerator[T, None], lock: asyncio.Lock) -> T:
        async with lock:
            self._sources.add(source)
            return await anext(source, _END)

    async def _close(self, source: AsyncGenerator[Any, None], lock: asyncio.Lock) -> None:
        async with lock:
            self._sources.discard(source)
            await source.aclose()


def _begin(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], ticket: Future[T]) -> None:
    """Start *work* and set its outcome on *ticket*. If *ticket* is cancelled, cancel *work*."""
    task = loop.create_task(work)

    def finish(task: asyncio.Task[T]) -> None:
        error = CancelledError() if task.cancelled() else task.exception()
        if not ticket.set_running_or_notify_cancel():
            return
        if error is not None:
            ticket.set_exception(error)
        else:
            ticket.set_result(task.result())

    task.add_done_callback(finish)
    ticket.add_done_callback(lambda _: loop.call_soon_threadsafe(task.cancel))


async def pull(items: Iterable[T]) -> AsyncGenerator[T, None]:
    """Yield *items*, but read them in a separate thread, where the iterable may block.

    Each iterable has its own thread, so several iterables do not wait for each other. The thread is a daemon.
    So an iterable that blocks forever delays neither a reader that stops early nor the end of the program.
    """
    tickets: SimpleQueue[Future[T] | None] = SimpleQueue()
    arguments = [_pull_items, items, tickets]
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=arguments, name="kling-expand source", daemon=True).start()
    try:
        while True:
            ticket: Future[T] = Future()
            tickets.put(ticket)
            item = await asyncio.wrap_future(ticket)
            if item is _END:
                return
            yield item
    finally:
        tickets.put(None)


def _pull_items(items: Iterable[T], tickets: "SimpleQueue[Future[T] | None]") -> None:
    """Take one item for each ticket, until a ticket is None."""
    iterator: Iterator[T] | None = None
    while (ticket := tickets.get()) is not None:
        if not ticket.set_running_or_notify_cancel():
            continue
        try:
            iterator = iter(items) if iterator is None else iterator
            item = next(iterator, _END)
        except Exception as error:  # noqa: BLE001 - it is raised where the item is awaited
            ticket.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the event loop
            ticket.set_exception(RuntimeError(f"the source of the requests raised {error!r}"))
        else:
            ticket.set_result(item)
