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

from .future import TaskRecord, TaskRegistry
from .poll_schedule import PollSchedule

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


class PolledTask:
    """One open record in the poll loop: when it began, was last answered for, and is due."""

    __slots__ = ("answered_at", "began_at", "due_at", "listed", "record", "serial", "stale")

    def __init__(self, record: TaskRecord, serial: int, now: float) -> None:
        self.record = record
        self.serial = serial
        self.began_at = self.answered_at = now
        self.listed: bool | None = None  # whether lists show it; None before one has been asked
        self.due_at: float | None = inf  # of a single read: inf while lists serve, None while it is under way
        self.stale = False  # whether the read under way may carry what was true before a callback


class Poller:
    """Polls open tasks when *schedule* says, and outlives passing failures for *poll_timeout* seconds.

    Every snapshot is delivered to the task's record in the *registry*.
    """

    def __init__(
        self,
        reads: Reads,
        schedule: PollSchedule,
        *,
        registry: TaskRegistry | None = None,
        poll_timeout: float = 900.0,
        emit: Listener | None = None,
    ) -> None:
        self.registry = TaskRegistry() if registry is None else registry
        self.registry.on_end.append(self._ended)
        self.registry.on_merge.append(self._merged)
        self._reads = reads
        self._emit = emit
        self._schedule = schedule
        self._poll_timeout = poll_timeout
        self._open: dict[TaskRecord, PolledTask] = {}
        self._added = 0  # tasks so far
        self._heap: list[tuple[float, int, PolledTask]] = []
        self._wake = asyncio.Event()
        self._read_slots = asyncio.Semaphore(READS)
        self._running: set[asyncio.Task[None]] = set()
        self._list = _ListTrust()
        self._list_due_at = inf
        self._lists_serve = False  # whether any task relies on lists
        self._smoothed_listed = 0.0  # tasks that lately shared a list read

    async def __aenter__(self) -> Self:
        # Not those of `__init__`: a client may be opened again in another event loop.
        self._wake, self._read_slots = asyncio.Event(), asyncio.Semaphore(READS)
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

    def records(self) -> tuple[TaskRecord, ...]:
        """The records of all polled tasks."""
        return tuple(self._open)

    def add(self, record: TaskRecord, *, soon: bool = False) -> None:
        """Poll this task from now on, at once if *soon*."""
        record = self.registry.add(record)
        if record.done() or record in self._open:
            return
        now = asyncio.get_running_loop().time()
        self._added += 1
        entry = self._open[record] = PolledTask(record, self._added, now)
        share = _worth(len(self._open)) / len(self._open) if self._sharing() else 1.0
        first = 0.0 if soon else self._schedule.wait([0.0], share)
        self._push(entry, now + first)

    def poll_now(self, any_id: str) -> bool:
        """Read a task now because a callback says that it changed; True if it is one of ours.

        However often that is called, one read is under way and at most one follows it.
        """
        entry = self._find(any_id)
        if entry is None:
            return False
        if entry.due_at is None:
            entry.stale = True
        else:
            entry.due_at = None
            self._start(self._read_soon(entry))
        return True

    def deliver(self, task: Task) -> bool:
        """Pass on a snapshot that came by a callback; True if it is of one of ours."""
        record = self.registry.get(task.task_id)
        if record is None or record not in self._open:
            return False
        record.deliver(task)
        return True

    # ------------------------------------------------------------------ within

    def _find(self, any_id: str) -> PolledTask | None:
        """Return the polled task with this id, or None."""
        record = self.registry.get(any_id)
        return self._open.get(record) if record else None

    def _push(self, entry: PolledTask, due_at: float) -> None:
        entry.due_at = due_at
        heapq.heappush(self._heap, (due_at, entry.serial, entry))
        self._wake.set()

    def _merged(self, record: TaskRecord) -> None:
        """Leave a record that another one replaced."""
        self._open.pop(record, None)

    def _ended(self, record: TaskRecord) -> None:
        """Leave a record whose end is known, and learn from it."""
        entry = self._open.pop(record, None)
        if len(self._open) == 1:
            self._wake.set()  # the last one is read by itself
        task = record.task
        if task is None or not task.status.final:
            return
        ids = record.external_task_id, task
        if entry is None:
            event = Event(EventKind.ENDED, *ids, number=record.number)
        else:
            seen = asyncio.get_running_loop().time() - entry.began_at
            took = _duration(task, seen)
            self._schedule.learn(took)
            late = max(0.0, seen - took)
            event = Event(EventKind.ENDED, *ids, seconds=took, latency=late, number=record.number)
        if self._emit is not None:
            self._emit(event)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = self._pop_due(loop.time())
            fresh = any(entry.listed is None for entry in due)
            if self._sharing() and (fresh or self._list_due_at <= loop.time()):
                due = await self._poll_lists(due)
            if self._lists_serve and not self._sharing():
                self._leave_lists()
            for entry in due:
                await self._read_slots.acquire()
                self._start(self._read(entry))
            await self._sleep()

    def _sharing(self) -> bool:
        """Whether one look at a list may tell of several tasks."""
        return len(self._open) > 1 and self._list.trusted(asyncio.get_running_loop().time())

    async def _sleep(self) -> None:
        """Sleep until something is due, or a change may make something else the earliest."""
        due = min(self._list_due_at, self._heap[0][0] if self._heap else inf)
        self._wake.clear()
        try:
            async with asyncio.timeout_at(None if due == inf else due):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _pop_due(self, now: float) -> list[PolledTask]:
        """What is to be looked at by itself now."""
        taken = []
        while self._heap and self._heap[0][0] <= now:
            due, _, entry = heapq.heappop(self._heap)
            if due == entry.due_at and entry.record in self._open:  # else it ended or is read otherwise
                entry.due_at = None
                taken.append(entry)
        return taken

    async def _poll_lists(self, due: list[PolledTask]) -> list[PolledTask]:
        """Read list pages for all open tasks; those of the *due* that they did not show."""
        hoped = (entry for entry in self._open.values() if entry.listed is not False)
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
            if entry.due_at == inf:
                self._again(entry)
        for entry in due:
            if limited or entry not in missing:
                self._again(entry)
        self._list.showed(len(asked) - len(missing), len(absent), now)
        ages = [now - entry.began_at for entry in self._open.values() if entry.listed]
        self._smoothed_listed = max(float(len(ages)), FADING * self._smoothed_listed)
        price = pages * _worth(self._smoothed_listed)
        self._list_due_at = now + self._schedule.wait(ages, price) if ages else inf
        self._lists_serve = True
        return [] if limited else [entry for entry in due if entry in missing]

    def _silent(self, entries: Iterable[PolledTask]) -> bool:
        """Whether nothing was heard of one of these for longer than may be."""
        return (
            asyncio.get_running_loop().time() - min(entry.answered_at for entry in entries)
            >= self._poll_timeout
        )

    async def _read_pages(self, missing: dict[PolledTask, None]) -> int:
        """Tell the futures what list pages show, and take them out of *missing*; how many pages were read.

        Raises `RateLimited`.
        """
        # In a list that begins with the newest, the oldest of these stands behind all that came after it.
        size = min(max(LEAST_PAGE, SPARE + self._added - min(entry.serial for entry in missing)), MOST_PAGE)
        for number in count(1):
            try:
                shown, last = await self._reads.page(number, size, self._status)
            except RateLimited:
                raise
            except KlingError:
                break
            for task_id, task in shown.items():
                entry = self._find(task_id)
                if entry is not None:
                    self._deliver(entry, task)
                    entry.listed = True
                    entry.due_at = entry.due_at and inf  # unless it is being read singly just now
                    missing.pop(entry, None)
            # A page with none of ours ends the search, and so does one page more than there are single
            # reads to be saved.
            if last or not missing or not shown or number >= max(PAGES, len(missing)):
                break
        return number

    def _leave_lists(self) -> None:
        """Have each task read by itself again."""
        self._list_due_at, self._lists_serve = inf, False
        for entry in self._open.values():
            entry.listed = None
            if entry.due_at == inf:
                self._again(entry)

    async def _read_soon(self, entry: PolledTask) -> None:
        await self._read_slots.acquire()
        await self._read(entry)

    async def _read(self, entry: PolledTask) -> None:
        """Read one task; a place for it is held."""
        hint = None
        entry.stale = False
        try:
            self._deliver(entry, await self._reads.one(entry.record.any_id))
        except KlingError as error:
            hint = error.retry_after if isinstance(error, APIError) else None
            silence = asyncio.get_running_loop().time() - entry.answered_at
            if not _may_pass(error, silence, self._poll_timeout):
                entry.record.fail(error)
        finally:
            self._read_slots.release()
        self._again(entry, hint)

    def _status(self, task_id: str) -> str | None:
        """The status last heard of: None if the task is not ours, nothing if it must be told anyway."""
        entry = self._find(task_id)
        if entry is None:
            return None
        task = entry.record.task
        return task.task_status if task else ""

    def _deliver(self, entry: PolledTask, task: Task | None) -> None:
        """Take a good answer, even if nothing changed (None)."""
        entry.answered_at = asyncio.get_running_loop().time()
        if task is not None:
            entry.record.deliver(task)

    def _again(self, entry: PolledTask, hint: float | None = None) -> None:
        """Look at it by itself when its pace or the service says, if lists do not serve it."""
        if entry.record not in self._open:
            return
        now = asyncio.get_running_loop().time()
        entry.due_at = inf
        if entry.stale:
            self._push(entry, now)
        elif not entry.listed:
            self._push(entry, now + max(hint or 0.0, self._schedule.wait([now - entry.began_at])))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="kling-expand poll")
        self._running.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        for record in self.records():  # a bug here must not leave a caller waiting for ever
            broken = KlingError(f"the poll loop broke: {error!r}")
            broken.__cause__ = error
            record.fail(broken)


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
