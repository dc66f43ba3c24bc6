"""How do many small writes share one flush of the disk? What waits together is written together.

It knows neither files nor SQL: a function is given everything that waited, on a thread of its own,
and answers each of it. The thread runs only while there is work, always through the loop's own
`run_in_executor`, so a loop that watches its executor calls knows when something is under way, and
nothing is left hanging when the interpreter ends.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from kling_expand.errors import JournalError

W = TypeVar("W")

SIZE = 256  # so that waking the callers of one batch never holds the loop for long


class Batches(Generic[W]):
    """Work in, answers out, in the order it came; for the loop it is made in.

    *commit* gets a list of work and returns as many outcomes; one that is an exception is raised
    to the one who asked; should it raise itself, all who asked are told.
    """

    def __init__(self, commit: Callable[[list[W]], list[Any]]) -> None:
        self._commit = commit
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "kling-journal")
        self._waiting: list[tuple[W, asyncio.Future[Any]]] = []
        self._writing: asyncio.Future[list[Any]] | None = None

    def put(self, work: W) -> asyncio.Future[Any]:
        """Queue *work*: a future of its outcome. It is done even where the future is cancelled."""
        future = self._loop.create_future()
        self._waiting.append((work, future))
        if len(self._waiting) == 1 and self._writing is None:
            self._loop.call_soon(self._next)  # after everybody who has something to write right now
        return future

    async def alone(self, function: Callable[[], None]) -> None:
        """Call *function* on the thread, after the batch that is being written."""
        await self._loop.run_in_executor(self._thread, function)

    async def finish(self, work: W, last: Callable[[], None]) -> None:
        """Write what waits and then *work*; call *last* on the thread, whatever happens."""
        try:
            await asyncio.gather(self.put(work), return_exceptions=True)
            await self.alone(last)
        finally:  # cancelled: quicker, and in line all the same
            self.stop(last)

    def stop(self, last: Callable[[], None]) -> None:
        """Refuse what waits, call *last* on the thread, and let that end by itself."""
        for _work, future in self._waiting:
            _answer(future, JournalError("the journal was closed before this was written"))
        self._waiting.clear()
        self._thread.submit(last)
        self._thread.shutdown(wait=False)

    def _next(self) -> None:
        """Hand a batch to the thread, unless it is busy: then what waits is the next one."""
        if self._writing is not None or not self._waiting:
            return
        batch, self._waiting = self._waiting[:SIZE], self._waiting[SIZE:]
        work = [item for item, _future in batch]
        self._writing = self._loop.run_in_executor(self._thread, self._commit, work)
        self._writing.add_done_callback(partial(self._written, [future for _item, future in batch]))

    def _written(self, asked: list[asyncio.Future[Any]], written: asyncio.Future[list[Any]]) -> None:
        self._writing = None
        error = written.exception()  # a bug, or no memory: whatever it is, nobody is left hanging
        for future, outcome in zip(asked, [error] * len(asked) if error else written.result(), strict=True):
            _answer(future, outcome)
        if self._waiting:
            self._loop.call_soon(self._next)  # after those just answered, who may go on writing


def _answer(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
