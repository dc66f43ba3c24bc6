"""What is the news? One loop reads for all open tasks, and tells their futures.

With several open, list pages are read for all of them at once; what they do not show is read singly when
its own time has come. Nothing is assumed of a list's order or completeness: one that keeps missing our
tasks is left alone for a while.
"""

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Iterable
from itertools import count
from math import inf, sqrt
from types import TracebackType
from typing import Any, Protocol, Self

from kling_expand.errors import APIError, KlingError, RateLimited, TaskNotFound
from kling_expand.events import Event, EventKind, Listener
from kling_expand.models import Task

from .future import TaskFuture
from .poll_schedule import PollSchedule
from .watched import PolledTask, TaskRegistry

READS = 16  # single reads under way at once
UNSEEN = 30.0  # seconds a task may be unknown to the service before that is believed
PAGES = 4  # of a list, read at most for one look, unless more tasks than that are looked for
LEAST_PAGE, MOST_PAGE = 30, 500  # tasks on a page; the most is the service's limit (doc)
SPARE = 20  # tasks of others that may stand between ours
FADING = 0.97  # of a crowd with each look: its stragglers are still looked at as a part of it
SHUN = 20.0  # seconds a list that does not show our tasks is left alone, at first


class Reads(Protocol):
    """The two questions the loop asks. Each is one call, not repeated."""

    async def one(self, any_id: str) -> Task:
        """One task. Raises `KlingError`."""
        ...

    async def page(
        self, number: int, size: int, heard: Callable[[str], str | None]
    ) -> tuple[dict[str, Task | None], bool]:
        """What a list page shows of our tasks, and whether it was the last. Raises `KlingError`.

        *heard* gives the status last heard of, or None where a task is not ours; one in which nothing has
        changed need not be made a value.
        """
        ...


class Poller:
    """Polls open tasks when *schedule* says, and outlives passing failures for *budget* seconds.

    If the loop itself breaks, every open future fails with what broke it.
    """

    def __init__(
        self, reads: Reads, schedule: PollSchedule, *, budget: float = 900.0, tell: Listener | None = None
    ) -> None:
        self._reads = reads
        self._tell = tell
        self._schedule = schedule
        self._budget = budget
        self._open = TaskRegistry()
        self._forget_it = self._forget  # one for all: each attribute access would make another
        self._heap: list[tuple[float, int, PolledTask]] = []
        self._bell = asyncio.Event()
        self._places = asyncio.Semaphore(READS)
        self._running: set[asyncio.Task[None]] = set()
        self._list = _ListTrust()
        self._sweep_at = inf  # when lists are read next
        self._swept = False  # whether any task relies on that
        self._crowd = 0.0  # tasks that lately shared a look

    async def __aenter__(self) -> Self:
        self._start(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._open)

    def open_futures(self) -> tuple[TaskFuture, ...]:
        """What is being watched."""
        return self._open.futures()

    def watch(self, future: TaskFuture, *, soon: bool = False) -> None:
        """Look at this task from now on, at once if *soon*."""
        if future.done() or future in self._open:
            return
        now = asyncio.get_running_loop().time()
        entry = self._open.add(future, now)
        share = _worth(len(self._open)) / len(self._open) if self._sharing() else 1.0
        first = 0.0 if soon else self._schedule.wait([0.0], share)
        future.add_done_callback(self._forget_it)
        self._push(entry, now + first)

    def poll_now(self, any_id: str) -> bool:
        """Read a task now, because somebody says there is news; True if it is one of ours.

        However often that is said, no more than one such read is under way.
        """
        entry = self._open.get(any_id)
        if entry is not None and entry.due is not None:
            entry.due = None
            self._start(self._look_at(entry))
        return entry is not None

    def tell(self, news: Task) -> bool:
        """Pass on a snapshot that somebody else was given; True if it is of one of ours."""
        entries = self._open.named(news.task_id)
        for entry in entries:
            entry.future.observe(news)
        return bool(entries)

    # ------------------------------------------------------------------ within

    def _push(self, entry: PolledTask, due: float) -> None:
        entry.due = due
        heapq.heappush(self._heap, (due, entry.serial, entry))
        self._bell.set()

    def _forget(self, future: TaskFuture) -> None:
        entry = self._open.remove(future)
        if len(self._open) == 1:
            self._bell.set()  # the last one is read by itself
        task = entry.future.task
        if task is not None and task.status.final:
            seen = asyncio.get_running_loop().time() - entry.began
            took = _duration(task, seen)
            self._schedule.learn(took)
            if self._tell is not None:
                late = max(0.0, seen - took)
                ids = future.external_task_id, task
                self._tell(Event(EventKind.ENDED, *ids, seconds=took, latency=late, number=future.number))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = self._take_due(loop.time())
            fresh = any(entry.listed is None for entry in due)
            if self._sharing() and (fresh or self._sweep_at <= loop.time()):
                due = await self._sweep(due)
            if self._swept and not self._sharing():
                self._part()
            for entry in due:
                await self._places.acquire()
                self._start(self._look(entry))
            await self._rest()

    def _sharing(self) -> bool:
        """Whether one look at a list may tell of several tasks."""
        return len(self._open) > 1 and self._list.trusted(asyncio.get_running_loop().time())

    async def _rest(self) -> None:
        """Sleep until something is due, or a change may make something else the earliest."""
        due = min(self._sweep_at, self._heap[0][0] if self._heap else inf)
        self._bell.clear()
        try:
            async with asyncio.timeout_at(None if due == inf else due):
                await self._bell.wait()
        except TimeoutError:
            pass

    def _take_due(self, now: float) -> list[PolledTask]:
        """What is to be looked at by itself now."""
        taken = []
        while self._heap and self._heap[0][0] <= now:
            due, _, entry = heapq.heappop(self._heap)
            if due == entry.due and not entry.future.done():  # otherwise ended, hurried or listed meanwhile
                entry.due = None
                taken.append(entry)
        return taken

    async def _sweep(self, due: list[PolledTask]) -> list[PolledTask]:
        """Read list pages for all open tasks; those of the *due* that they did not show."""
        hoped = (entry for entry in self._open if entry.listed is not False)
        asked, urgent = dict.fromkeys((*due, *hoped)), set(due)
        missing = dict(asked)
        try:
            pages, limited = await self._read_pages(missing) if missing else 0, False
        except RateLimited:  # this says nothing of the list, and single reads would only make it worse
            pages, limited = 1, not self._silent(missing)
        now = asyncio.get_running_loop().time()
        # What is neither was not due yet, and may be too new for a list.
        absent = [] if limited else [entry for entry in missing if entry.listed or entry in urgent]
        for entry in absent:
            entry.listed = False
            if entry.due == inf:
                self._again(entry)
        for entry in due:
            if limited or entry not in missing:
                self._again(entry)
        self._list.showed(len(asked) - len(missing), len(absent), now)
        ages = [now - entry.began for entry in self._open if entry.listed]
        self._crowd = max(float(len(ages)), FADING * self._crowd)
        self._sweep_at = now + self._schedule.wait(ages, pages * _worth(self._crowd)) if ages else inf
        self._swept = True
        return [] if limited else [entry for entry in due if entry in missing]

    def _silent(self, entries: Iterable[PolledTask]) -> bool:
        """Whether nothing was heard of one of these for longer than may be."""
        return asyncio.get_running_loop().time() - min(entry.good for entry in entries) >= self._budget

    async def _read_pages(self, missing: dict[PolledTask, None]) -> int:
        """Tell the futures what list pages show, and take them out of *missing*; how many pages were read.

        Raises `RateLimited`.
        """
        # In a list that begins with the newest, the oldest of these stands behind all that came after it.
        size = min(
            max(LEAST_PAGE, SPARE + self._open.so_far - min(entry.serial for entry in missing)), MOST_PAGE
        )
        for number in count(1):
            try:
                shown, last = await self._reads.page(number, size, self._status)
            except RateLimited:
                raise
            except KlingError:
                break
            for task_id, news in shown.items():
                for entry in self._open.named(task_id):
                    self._heard(entry, news)
                    entry.listed = True
                    entry.due = entry.due and inf  # unless it is being read singly just now
                    missing.pop(entry, None)
            # A page with none of ours ends the search, and so does one page more than there are single
            # reads to be saved.
            if last or not missing or not shown or number >= max(PAGES, len(missing)):
                break
        return number

    def _part(self) -> None:
        """Have each task read by itself again."""
        self._sweep_at, self._swept = inf, False
        for entry in self._open:
            entry.listed = None
            if entry.due == inf:
                self._again(entry)

    async def _look_at(self, entry: PolledTask) -> None:
        await self._places.acquire()
        await self._look(entry)

    async def _look(self, entry: PolledTask) -> None:
        """Read one task; a place for it is held."""
        hint = None
        try:
            self._heard(entry, await self._reads.one(entry.future.any_id))
        except KlingError as error:
            hint = error.retry_after if isinstance(error, APIError) else None
            silence = asyncio.get_running_loop().time() - entry.good
            if not _may_pass(error, silence, self._budget):
                entry.future.fail(error)
        finally:
            self._places.release()
        self._again(entry, hint)

    def _status(self, task_id: str) -> str | None:
        """The status last heard of: None if the task is not ours, nothing if it must be told anyway."""
        entry = self._open.get(task_id)
        if entry is None:
            return None
        task = entry.future.task
        return task.task_status if task and not entry.twin else ""

    def _heard(self, entry: PolledTask, news: Task | None) -> None:
        """Good news, even if nothing is new in it."""
        entry.good = asyncio.get_running_loop().time()
        if news is None:
            return
        entry.future.observe(news)
        if not entry.future.done():
            self._open.rename(entry)

    def _again(self, entry: PolledTask, hint: float | None = None) -> None:
        """Look at it by itself when its pace or the service says, if lists do not serve it."""
        if entry.future.done():
            return
        now = asyncio.get_running_loop().time()
        entry.due = inf
        if not entry.listed:
            self._push(entry, now + max(hint or 0.0, self._schedule.wait([now - entry.began])))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="kling-expand poll")
        self._running.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        for future in self.open_futures():  # a bug here must not leave anybody waiting for ever
            broken = KlingError(f"the poll loop broke: {error!r}")
            broken.__cause__ = error
            future.fail(broken)


class _ListTrust:
    """Whether list pages are worth reading: a list that shows under half of what is due is not."""

    def __init__(self) -> None:
        self._again_at = 0.0
        self._shun = SHUN

    def trusted(self, now: float) -> bool:
        return now >= self._again_at

    def showed(self, seen: int, absent: int, now: float) -> None:
        if seen >= absent:
            self._shun = SHUN
        else:
            self._again_at = now + self._shun
            self._shun *= 2


def _worth(tasks: float) -> float:
    """What a look at so many tasks is worth, as a multiple of one at a single task.

    If it were worth no more, all that sharing saves would go into earlier news; if it were worth as many
    times as much, all of it into fewer requests. This is for some of both.
    """
    return sqrt(tasks)


def _duration(task: Task, seen: float) -> float:
    """How long the task took, by the service's clock where it tells: ours knows only when we heard."""
    if task.created_at is not None and task.updated_at is not None:
        told = (task.updated_at - task.created_at) / 1000
        if 0 < told <= seen + 1:
            return told
    return seen


def _may_pass(error: KlingError, silence: float, budget: float) -> bool:
    """Whether to go on looking after *silence* seconds without good news."""
    if isinstance(error, TaskNotFound):
        return silence < min(UNSEEN, budget)
    return error.retryable and silence < budget
