"""Queue writes and commit them in batches on one worker thread, in FIFO order.

The queue knows neither files nor SQL: a *commit* function is called with everything that waited and returns
one outcome for each write. The thread runs only while there is work, and always through the loop's own
`run_in_executor`, so that a loop which counts its executor calls sees it and the interpreter can end.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from kling_expand.errors import JournalError

W = TypeVar("W")

BATCH = 256  # writes in one commit at most, so that waking their callers never holds the loop for long


class WriteQueue(Generic[W]):
    """Writes of one event loop, committed in the order they were put.

    *commit* is called with a list of writes and returns as many outcomes. An outcome that is an exception
    is raised to the caller of that write. An exception raised by *commit* itself reaches all of them.
    """

    def __init__(self, commit: Callable[[list[W]], list[Any]]) -> None:
        self._commit = commit
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "kling-journal")
        self._waiting: list[tuple[W, asyncio.Future[Any]]] = []
        self._writing: asyncio.Future[list[Any]] | None = None

    def put(self, write: W) -> asyncio.Future[Any]:
        """Queue *write* and return a future of its outcome. Cancelling the future does not undo the write."""
        future = self._loop.create_future()
        self._waiting.append((write, future))
        if len(self._waiting) == 1 and self._writing is None:
            self._loop.call_soon(self._next)  # after every other write of this turn of the loop
        return future

    async def run(self, function: Callable[[], None]) -> None:
        """Call *function* on the thread, after the batch that is being written."""
        await self._loop.run_in_executor(self._thread, function)

    async def close(self, last: W, release: Callable[[], None]) -> None:
        """Commit what waits and then *last*, and call *release* on the thread whatever happens."""
        try:
            await asyncio.gather(self.put(last), return_exceptions=True)
            await self.run(release)
        finally:  # after a cancellation too: what still waits is refused
            self.abort(release)

    def abort(self, release: Callable[[], None]) -> None:
        """Refuse what waits, call *release* on the thread, and let the thread end by itself."""
        for _write, future in self._waiting:
            _resolve(future, JournalError("the journal was closed before this was written"))
        self._waiting.clear()
        self._thread.submit(release)
        self._thread.shutdown(wait=False)

    def _next(self) -> None:
        """Hand a batch to the thread, unless it is busy: then the next batch is taken when it is done."""
        if self._writing is not None or not self._waiting:
            return
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        writes = [write for write, _future in batch]
        self._writing = self._loop.run_in_executor(self._thread, self._commit, writes)
        self._writing.add_done_callback(partial(self._written, [future for _write, future in batch]))

    def _written(self, futures: list[asyncio.Future[Any]], written: asyncio.Future[list[Any]]) -> None:
        self._writing = None
        error = written.exception()  # a bug or no memory: every caller must be answered all the same
        outcomes = [error] * len(futures) if error else written.result()
        for future, outcome in zip(futures, outcomes, strict=True):
            _resolve(future, outcome)
        if self._waiting:
            self._loop.call_soon(self._next)  # after the callers just answered, who may write again


def _resolve(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
