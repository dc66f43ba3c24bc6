"""What is the news? One loop reads for all open tasks, and tells their futures."""

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from itertools import count
from types import TracebackType
from typing import Self

from .errors import APIError, KlingError, TaskNotFound
from .future import TaskFuture
from .models import Task
from .pacing import Pace

READS = 16  # single reads under way at once
UNSEEN = 30.0  # seconds a task may be unknown to the service before that is believed


class _Open:
    """One open task: when it began, when news of it was last good, when to look next."""

    __slots__ = ("began", "due", "future", "good", "known_as")

    def __init__(self, future: TaskFuture, now: float, due: float) -> None:
        self.future = future
        self.known_as = future.any_id
        self.began = self.good = now
        self.due = due


class Poller:
    """Watches open tasks. Each is looked at when *pace* says; what may pass is outlived for *budget* seconds.

    If the loop itself breaks, every open future fails with what broke it.
    """

    def __init__(self, read: Callable[[str], Awaitable[Task]], pace: Pace, *, budget: float = 900.0) -> None:
        self._read = read
        self._pace = pace
        self._budget = budget
        self._open: dict[TaskFuture, _Open] = {}
        self._by_id: dict[str, _Open] = {}
        self._heap: list[tuple[float, int, _Open]] = []
        self._order = count()
        self._bell = asyncio.Event()
        self._places = asyncio.Semaphore(READS)
        self._reads: set[asyncio.Task[None]] = set()
        self._loop_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop_task = asyncio.create_task(self._run(), name="kling-expand poll loop")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._loop_task, *self._reads) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._open)

    def open_futures(self) -> tuple[TaskFuture, ...]:
        """What is being watched."""
        return tuple(self._open)

    def watch(self, future: TaskFuture, *, soon: bool = False) -> None:
        """Look at this task from now on, at once if *soon*."""
        if future.done() or future in self._open:
            return
        now = asyncio.get_running_loop().time()
        entry = _Open(future, now, now if soon else now + self._pace.wait(0.0))
        self._open[future] = self._by_id[entry.known_as] = entry
        future.add_done_callback(self._forget)
        self._push(entry)

    def hurry(self, any_id: str) -> bool:
        """Look at a task now, because somebody says there is news; True if it is one of ours."""
        entry = self._by_id.get(any_id)
        if entry is None:
            return False
        entry.due = asyncio.get_running_loop().time()
        self._push(entry)
        return True

    def tell(self, news: Task) -> bool:
        """Pass on a snapshot that somebody else was given; True if it is of one of ours."""
        entry = self._by_id.get(news.task_id)
        if entry is not None:
            entry.future.observe(news)
        return entry is not None

    def _push(self, entry: _Open) -> None:
        heapq.heappush(self._heap, (entry.due, next(self._order), entry))
        self._bell.set()

    def _know(self, entry: _Open) -> None:
        """Keep a task that was watched by your id under the service's, once that is known."""
        if not entry.future.done() and entry.known_as != entry.future.any_id:
            self._by_id.pop(entry.known_as, None)
            entry.known_as = entry.future.any_id
            self._by_id[entry.known_as] = entry

    def _forget(self, future: TaskFuture) -> None:
        entry = self._open.pop(future, None)
        if entry is not None:
            self._by_id.pop(entry.known_as, None)
        if entry is not None and future.error is None:
            self._pace.learn(asyncio.get_running_loop().time() - entry.began)

    async def _run(self) -> None:
        try:
            while True:
                await self._until_due()
                await self._places.acquire()
                entry = self._next_due()
                if entry is None:
                    self._places.release()
                    continue
                task = asyncio.create_task(self._look(entry))
                self._reads.add(task)
                task.add_done_callback(self._looked)
        except Exception as error:  # a bug here must not leave anybody waiting for ever
            self._fail_all(error)
            raise

    async def _until_due(self) -> None:
        """Sleep until the earliest open task is due, or something changes."""
        loop = asyncio.get_running_loop()
        while not self._heap or self._heap[0][0] > loop.time():
            self._bell.clear()
            try:
                async with asyncio.timeout_at(self._heap[0][0] if self._heap else None):
                    await self._bell.wait()
            except TimeoutError:
                return

    def _next_due(self) -> _Open | None:
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            due, _, entry = heapq.heappop(self._heap)
            if due == entry.due and entry.future in self._open:  # otherwise ended, or hurried meanwhile
                return entry
        return None

    async def _look(self, entry: _Open) -> None:
        loop = asyncio.get_running_loop()
        future = entry.future
        hint = None
        try:
            future.observe(await self._read(future.any_id))
            entry.good = loop.time()
            self._know(entry)
        except KlingError as error:
            hint = error.retry_after if isinstance(error, APIError) else None
            if not _may_pass(error, loop.time() - entry.good, self._budget):
                future.fail(error)
        if not future.done():
            age = loop.time() - entry.began
            entry.due = loop.time() + max(hint or 0.0, self._pace.wait(age))
            self._push(entry)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._places.release()
        self._reads.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail_all(error)

    def _fail_all(self, error: BaseException) -> None:
        for future in self.open_futures():
            broken = KlingError(f"the poll loop broke: {error!r}")
            broken.__cause__ = error
            future.fail(broken)


def _may_pass(error: KlingError, silence: float, budget: float) -> bool:
    """Whether to go on looking after *silence* seconds without good news."""
    if isinstance(error, TaskNotFound):
        return silence < min(UNSEEN, budget)
    return error.retryable and silence < budget
