"""The poll loop: one asyncio task reads the service's tasks of all open records.

A single open task is read on its own. With several open tasks, list pages are read for all of them, and tasks
that the pages do not show are read one by one when due. Nothing is assumed about a list:

=====================================  =======================================================
a list that                            is handled by
=====================================  =======================================================
omits some of our tasks                single reads of those
omits more than it shows,              single reads of all, for 20 seconds, then twice
is refused, or is out of date          as long each time it happens again
never changes                          a single read if an expected end was not shown
=====================================  =======================================================

If callbacks arrive for the tasks that ask for them, reads are only a safety net, and a task is read when it
is overdue. All tasks are read when so many ends were expected since the last callback that callbacks must
have stopped. A single missed callback is enough to poll more often at once.

No single bad response ends the wait for a task that is known to exist. Transient failures are tolerated for
`poll_timeout` seconds and refusals for `refusal_timeout` seconds. Both are counted from the first of at least
`MIN_FAILURES` bad responses in a row. A response with an unknown status counts as good, but the wait ends
with an error after `poll_timeout` seconds of it. The next read waits as long as a ``Retry-After`` asks for,
but at most `max_retry_after` seconds.
"""

import asyncio
import heapq
import logging
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from math import inf, sqrt
from types import TracebackType
from typing import Any, Protocol, Self

from attrs import evolve

from kling_expand.api.session import is_cancelled
from kling_expand.config import Settings
from kling_expand.errors import (
    APIError,
    KlingError,
    ProtocolError,
    RateLimited,
    TaskNotFound,
    TransportError,
)
from kling_expand.events import CALLER, Caller, Event, EventKind, Listener
from kling_expand.models import Status, Task

from .future import TaskRecord, TaskRegistry
from .poll_schedule import STALE_AFTER, CallbackTrust, ListTrust, PollSchedule

logger: logging.Logger = logging.getLogger(__name__)

MAX_READS = 16  # concurrent single reads
NOT_FOUND_TIMEOUT = 30.0  # seconds an attached task may be unknown to the service
MIN_FAILURES = 4  # bad responses in a row before a wait can end
INCOMPLETE_TIMEOUT = 60.0  # seconds a task may have succeeded without all of its pictures
INCOMPLETE_PAUSE = 2.0  # seconds between reads of such a task
FAILURE_PAUSE = 20.0  # seconds between reads of a task that cannot be read, at most
RESTART_PAUSE = 1.0  # seconds after an unexpected exception in the loop
MAX_PAGES = 4  # list pages read in one poll, unless more tasks than that are missing
MIN_PAGE, MAX_PAGE = 30, 500  # tasks on a page; the maximum is the service's (documented)
FOREIGN_TASKS = 20  # other programs' tasks that may stand between ours on a page
SMOOTHING = 0.97  # factor by which the remembered number of listed tasks falls per list poll
CHECK_AFTER = 5.0  # seconds without evidence that a list is up to date before it is checked
EXPECTED_ENDS = 2.0  # number of probably missed ends at which a list is checked
CHECK_SPACING = 0.05  # seconds between the single reads that replace a bad list or missed callbacks
CALLBACK_CHECK = 1.0  # seconds between checks that callbacks still arrive
SAMPLE_SIZE = 32  # tasks in the sample for a check, so that its cost is bounded


class Reads(Protocol):
    """The two calls that the loop makes. Neither is retried."""

    async def one(self, any_id: str) -> Task:
        """Read one task, or raise `KlingError`."""
        ...

    async def page(
        self, number: int, size: int, known_status: Callable[[str], str | None]
    ) -> tuple[dict[str, Task | None], bool]:
        """Return our tasks on a list page, and whether it was the last page, or raise `KlingError`.

        *known_status* returns the last known status of a task, or None if the task is not ours. A task whose
        status has not changed may be returned as None.
        """
        ...


class PolledTask:
    """One open record in the poll loop: its start, its last response, and when its next read is due."""

    __slots__ = (
        "called", "calls_back", "due_at", "failing_since", "failures", "incomplete_since", "listed",
        "listed_at", "record", "resumed", "serial", "stale", "started_at", "unknown_since",
    )  # fmt: skip

    def __init__(
        self, record: TaskRecord, serial: int, now: float, *, resumed: bool, calls_back: bool
    ) -> None:
        self.record: TaskRecord = record
        self.serial: int = serial
        self.started_at: float = now
        self.resumed: bool = resumed  # the task may have begun long before
        self.calls_back: bool = calls_back  # the service was asked for callbacks
        self.called: bool = False  # a callback delivers the snapshot or caused the read
        self.failing_since: float = inf
        self.incomplete_since: float = inf
        self.unknown_since: float = inf
        self.failures: int = 0  # bad responses in a row
        self.listed: bool | None = None  # whether lists show it, None before a list was read
        self.listed_at: float = -inf  # when a list last showed it unfinished
        self.due_at: float | None = inf  # when its single read is due: inf if lists cover it, None during one
        self.stale: bool = False  # a callback arrived during a read, whose response may be older


class Poller:
    """A poller of open tasks.

    *schedule* decides when tasks are read, and the snapshots go to the records in *registry*.
    """

    def __init__(
        self,
        reads: Reads,
        schedule: PollSchedule,
        settings: Settings,
        *,
        registry: TaskRegistry | None = None,
        emit: Listener | None = None,
    ) -> None:
        self.registry: TaskRegistry = TaskRegistry() if registry is None else registry
        self.registry.on_end.append(self._ended)
        self.registry.on_merge.append(self._merged)
        self._reads = reads
        self._emit = emit
        self._schedule = schedule
        self._settings = settings
        self._open: dict[TaskRecord, PolledTask] = {}
        self._added = 0  # tasks added so far
        self._heap: list[tuple[float, int, PolledTask]] = []
        self._wake = asyncio.Event()
        self._read_slots = asyncio.Semaphore(MAX_READS)
        self._running: set[asyncio.Task[None]] = set()
        self._list = ListTrust()
        self._callbacks = CallbackTrust()
        self._callbacks_due_at = -inf  # when callbacks are checked next
        self._list_due_at = inf  # finite only while lists are used, -inf if one must be read now
        self._list_read_at, self._list_price = -inf, 1.0  # of the last list poll
        self._lists_used = False  # whether any task relies on lists
        self._smoothed_listed = 0.0  # tasks that lately shared a list read

    async def __aenter__(self) -> Self:
        # New ones each time, because a client may be reopened in another event loop.
        self._wake, self._read_slots = asyncio.Event(), asyncio.Semaphore(MAX_READS)
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
        """Return the records of all polled tasks."""
        return tuple(self._open)

    def add(self, record: TaskRecord, *, resumed: bool = False, calls_back: bool = False) -> None:
        """Poll the task of *record* from now on.

        A *resumed* task is read at once, because it may have begun long before. *calls_back* says whether the
        request asked for callbacks.
        """
        record = self.registry.add(record)
        if record.done() or record in self._open:
            return
        now = asyncio.get_running_loop().time()
        self._added += 1
        entry = PolledTask(record, self._added, now, resumed=resumed, calls_back=calls_back)
        self._open[record] = entry
        share = _read_value(len(self._open)) / len(self._open) if self._can_share_reads() else 1.0
        self._push(entry, now + (0.0 if resumed else self._next_read([entry], now, share)))

    def poll_now(self, any_id: str) -> bool:
        """Read a task now because a callback reported a change. Return whether the task is ours.

        However often this is called, at most one read of the task is in progress and one more follows it.
        """
        entry = self._find(any_id)
        if entry is None:
            self._callbacks.arrived(any_id, asyncio.get_running_loop().time())
            return False
        entry.called = True
        self._read_at_once(entry)
        return True

    def deliver(self, task: Task) -> bool:
        """Deliver a snapshot from a callback. Return whether the task is ours."""
        entry = self._find(task.task_id)
        if entry is not None:
            entry.called = True
            self._deliver(entry, task)
            entry.called = False
        return entry is not None

    # ------------------------------------------------------------------ the loop

    async def _run(self) -> None:
        """Poll forever. An unexpected exception is logged, and the loop continues."""
        while True:
            try:
                await self._poll_due()
                await self._sleep()
            except (Exception, asyncio.CancelledError):
                if is_cancelled():
                    raise
                logger.exception("the poll loop failed and continues in %s s", RESTART_PAUSE)
                await asyncio.sleep(RESTART_PAUSE)

    async def _poll_due(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._callbacks.active and self._callbacks_due_at <= now:
            self._check_callbacks(now)
        due = self._pop_due(now)
        fresh = any(entry.listed is None for entry in due)
        if self._can_share_reads() and (fresh or self._list_due(now)):
            due = await self._poll_lists(due)
        if self._lists_used and not self._can_share_reads():
            self._stop_using_lists()
        for entry in due:
            await self._read_slots.acquire()
            self._start(self._read(entry))

    def _list_due(self, now: float) -> bool:
        """Return whether a list read is due."""
        if -inf < self._list_due_at <= now and self._callbacks.missed < 1:
            self._list_due_at = self._next_list()  # a callback may have ended the task that made it due
        return self._list_due_at <= now

    async def _sleep(self) -> None:
        """Sleep until a read is due, or until a change may make an earlier one due."""
        due_at = min(self._list_due_at, self._heap[0][0] if self._heap else inf)
        if self._callbacks.active and self._open:
            due_at = min(due_at, self._callbacks_due_at)
        self._wake.clear()
        try:
            async with asyncio.timeout_at(None if due_at == inf else due_at):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _can_share_reads(self) -> bool:
        """Return whether one list page may show several tasks."""
        return len(self._open) > 1 and self._list.trusted(asyncio.get_running_loop().time())

    def _pop_due(self, now: float) -> list[PolledTask]:
        """Return the tasks whose single read is due."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            due_at, _, entry = heapq.heappop(self._heap)
            if due_at == entry.due_at and entry.record in self._open:  # else ended or rescheduled
                entry.due_at = None
                due.append(entry)
        return due

    def _push(self, entry: PolledTask, due_at: float) -> None:
        entry.due_at = due_at
        heapq.heappush(self._heap, (due_at, entry.serial, entry))
        self._wake.set()

    def _next_read(self, entries: list[PolledTask], now: float, price: float = 1.0) -> float:
        """Return the seconds until the next read of *entries*, which were just read or have just begun."""
        polled = [now - entry.started_at for entry in entries if not self._relies_on_callback(entry)]
        called = [now - entry.started_at for entry in entries if self._relies_on_callback(entry)]
        wait = self._wait(polled, price) if polled else inf
        if called:
            missed, sample = self._callbacks.missed, called[:: _stride(called)]
            overdue = getattr(self._schedule, "overdue", None)
            min_wait = min(overdue(age, missed) for age in sample) if overdue else 0.0
            wait = min(wait, max(self._wait(called, price), min_wait))
        return wait

    def _wait(self, ages: list[float], price: float = 1.0) -> float:
        """Return the wait of the schedule, or a fixed wait if a custom schedule fails."""
        try:
            wait = self._schedule.wait(ages, price)
            if not 0 <= wait < inf:
                raise ValueError(f"a wait must be 0 or more seconds, got {wait!r}")  # noqa: TRY301
        except (Exception, asyncio.CancelledError):
            logger.exception("the poll schedule failed; the next read is in %s s", CHECK_AFTER)
            return CHECK_AFTER
        return wait

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="kling-expand poll")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _read_at_once(self, entry: PolledTask) -> None:
        if entry.due_at is None:
            entry.stale = True
        else:
            entry.due_at = None
            self._start(self._read_soon(entry))

    # ------------------------------------------------------------------ callbacks

    def _relies_on_callback(self, entry: PolledTask) -> bool:
        return entry.calls_back and self._callbacks.missed < 1

    def _check_callbacks(self, now: float) -> None:
        """Read tasks earlier if callbacks were missed or have stopped."""
        self._callbacks_due_at = now + CALLBACK_CHECK
        self._callbacks.expire(now)
        waiting = [entry for entry in self._open.values() if entry.calls_back]
        if self._callbacks.missed_more:
            self._callbacks.missed_more = False
            self._reschedule(waiting, now)
        if not self._can_share_reads() or self._callbacks.missed == 1:
            return
        stride = _stride(waiting)
        ages = [now - entry.started_at for entry in waiting[::stride]]
        expected = self._expected_ends(ages, now - self._callbacks.evidence_at)
        if expected is not None and expected * stride >= self._callbacks.max_silent_ends:
            self._list_due_at = -inf

    def _reschedule(self, waiting: list[PolledTask], now: float) -> None:
        """Bring forward the next reads of *waiting* tasks, spread over time."""
        for number, entry in enumerate(waiting):
            if entry.due_at is not None and now < entry.due_at < inf:
                wait = max(self._next_read([entry], now), number * CHECK_SPACING)
                self._push(entry, min(entry.due_at, now + wait))
        self._list_due_at = min(self._list_due_at, self._next_list())

    def _expected_ends(self, ages: list[float], since: float) -> float | None:
        """Return how many tasks at *ages* should have ended in the last *since* seconds, or None."""
        expected_ends = getattr(self._schedule, "expected_ends", None)
        found: float | None = (
            expected_ends(ages, [min(age, since) for age in ages]) if expected_ends else None
        )
        return found

    # ------------------------------------------------------------------ list pages

    async def _poll_lists(self, due: list[PolledTask]) -> list[PolledTask]:
        """Read list pages for all open tasks. Return the *due* tasks that still need a single read."""
        expected = (entry for entry in self._open.values() if entry.listed is not False)
        expected_entries, urgent = dict.fromkeys((*due, *expected)), set(due)
        self._lists_used = True
        missing = dict(expected_entries)
        pages = await self._read_pages(missing) if missing else 0
        now = asyncio.get_running_loop().time()
        # A task that is neither listed nor due may be too new for a list.
        absent = [entry for entry in missing if entry.listed or entry in urgent]
        for entry in absent:
            entry.listed = False
            if entry.due_at == inf:
                self._schedule_next(entry)
        for entry in due:
            if entry not in missing:
                self._schedule_next(entry)
        self._list.record_coverage(len(expected_entries) - len(missing), len(absent), now)
        listed = [entry for entry in self._open.values() if entry.listed]
        self._smoothed_listed = max(float(len(listed)), SMOOTHING * self._smoothed_listed)
        self._list_read_at, self._list_price = now, pages * _read_value(self._smoothed_listed)
        self._list_due_at = self._next_list()
        self._callbacks.evidence_at = now
        self._check_list([entry for entry in listed if not self._relies_on_callback(entry)], now)
        return [entry for entry in due if entry in missing]

    def _next_list(self) -> float:
        """Return the loop time of the next list read, or infinity."""
        listed = [entry for entry in self._open.values() if entry.listed]
        read_at = self._list_read_at
        return read_at + self._next_read(listed, read_at, self._list_price) if listed else inf

    async def _read_pages(self, missing: dict[PolledTask, None]) -> int:
        """Deliver the tasks on list pages and remove them from *missing*. Return how many pages were read."""
        # Lists begin with the newest task, so later tasks of other programs precede the oldest of ours.
        size = self._added - min(entry.serial for entry in missing) + FOREIGN_TASKS
        size = min(max(MIN_PAGE, size), MAX_PAGE)
        for number in count(1):
            try:
                shown, last = await self._reads.page(number, size, self._known_status)
            except KlingError as error:
                self._list.distrust(asyncio.get_running_loop().time(), str(error))
                break
            except (Exception, asyncio.CancelledError) as error:
                if is_cancelled():
                    raise
                logger.exception("reading a list page failed unexpectedly")
                self._list.distrust(asyncio.get_running_loop().time(), repr(error))
                break
            for task_id, task in shown.items():
                self._listed(task_id, task, missing)
            # The search ends at a page without any of our tasks, or when it has taken as many reads as single
            # reads would take.
            if last or not missing or not shown or number >= max(MAX_PAGES, len(missing)):
                break
        return number

    def _listed(self, task_id: str, task: Task | None, missing: dict[PolledTask, None]) -> None:
        """Process one task on a list page."""
        now = asyncio.get_running_loop().time()
        entry = self._find(task_id)
        if entry is None:  # the task has already ended, as a single read has shown
            self._list.compare(task_id, task, now)
            return
        entry.listed = True
        entry.due_at = entry.due_at and inf  # unless a single read of it is in progress
        missing.pop(entry, None)
        ended_at = _ended_at(entry, task)
        if ended_at is None:
            entry.listed_at = now
        elif entry.listed_at > ended_at + STALE_AFTER:
            self._list.distrust(now, "the status of a task was out of date")
        if self._deliver(entry, task):
            self._list.evidence(now)

    def _known_status(self, task_id: str) -> str | None:
        """Return the last known status of a task, None if it is not ours, or empty if any is wanted."""
        entry = self._find(task_id)
        if entry is None:
            return "" if self._list.is_expected(task_id) else None
        task = entry.record.task
        return task.task_status if task else ""

    def _check_list(self, listed: list[PolledTask], now: float) -> None:
        """Read the oldest listed task on its own if the list has shown no end although some were due."""
        since = now - self._list.evidence_at
        if not listed or since < CHECK_AFTER:
            return
        stride = _stride(listed)
        expected = self._expected_ends([now - entry.started_at for entry in listed[::stride]], since)
        if expected is None or expected * stride >= EXPECTED_ENDS:
            self._list.evidence(now)  # the next check is after the same interval
            self._read_at_once(min(listed, key=lambda entry: entry.started_at))

    def _stop_using_lists(self) -> None:
        """Return to single reads, spread over time."""
        self._list_due_at, self._lists_used = inf, False
        now = asyncio.get_running_loop().time()
        for number, entry in enumerate(self._open.values()):
            entry.listed = None
            if entry.due_at == inf:
                # A task that is the only one left, or that has callbacks, keeps its schedule.
                keeps_schedule = len(self._open) == 1 or self._relies_on_callback(entry)
                wait = self._next_read([entry], now)
                self._push(entry, now + (wait if keeps_schedule else min(wait, number * CHECK_SPACING)))

    # ------------------------------------------------------------------ single reads

    async def _read_soon(self, entry: PolledTask) -> None:
        await self._read_slots.acquire()
        await self._read(entry)

    async def _read(self, entry: PolledTask) -> None:
        """Read one task, and release the read slot that the caller has acquired."""
        record = entry.record
        CALLER.set(Caller(record.number, record.external_task_id, record.task_id))
        entry.stale = False
        failure: KlingError | None = None
        try:
            task = await self._reads.one(entry.record.any_id)
        except KlingError as error:
            failure = error
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled():
                raise
            logger.exception("reading task %s failed unexpectedly", entry.record.any_id)
            failure = ProtocolError(f"the read failed unexpectedly: {error!r}")
        else:
            if entry.listed and self._lists_used and task.status.final:
                now = asyncio.get_running_loop().time()
                self._list.expect(task.task_id, now)  # the list must show it soon, or is out of date
                self._list_due_at = min(self._list_due_at, now + STALE_AFTER)
                self._wake.set()
            self._deliver(entry, task)
        finally:
            entry.called = entry.stale
            self._read_slots.release()
        if failure is not None:
            self._failed(entry, failure)
        self._schedule_next(entry, failure)
        if failure is not None:
            self._report(entry, failure)

    def _schedule_next(self, entry: PolledTask, failure: KlingError | None = None) -> None:
        """Schedule the next single read, unless lists serve the task."""
        if entry.record not in self._open:
            return
        now = asyncio.get_running_loop().time()
        entry.due_at = inf
        if entry.stale:
            self._push(entry, now)
        elif entry.incomplete_since < inf:
            self._push(entry, now + INCOMPLETE_PAUSE)
        elif not entry.listed:
            wait = self._next_read([entry], now)
            if failure is not None:
                asked = failure.retry_after if isinstance(failure, APIError) else None
                wait = max(min(asked or 0.0, self._settings.max_retry_after), min(wait, FAILURE_PAUSE))
            self._push(entry, now + wait)

    def _failed(self, entry: PolledTask, error: KlingError) -> None:
        """Count a bad response, and end the wait if bad responses have lasted too long."""
        now = asyncio.get_running_loop().time()
        if entry.failing_since == inf:
            entry.failing_since = now
        entry.failures += 1
        failing = now - entry.failing_since
        if self._ends_wait(entry, error, failing):
            entry.record.fail(error)

    def _report(self, entry: PolledTask, error: KlingError) -> None:
        """Emit an event for a tolerated bad response, with the time until the next read."""
        record = entry.record
        if self._emit is None or record not in self._open:
            return
        wait = None
        if entry.due_at is not None and entry.due_at < inf:
            wait = max(0.0, entry.due_at - asyncio.get_running_loop().time())
        event = Event(EventKind.RETRY, record.external_task_id, record.task, error, number=record.number)
        self._emit(event._replace(route=EventKind.READ, attempt=entry.failures, wait=wait))

    def _ends_wait(self, entry: PolledTask, error: KlingError, failing: float) -> bool:
        """Return whether *error* ends the wait after *failing* seconds of bad responses."""
        known = entry.record.task is not None or entry.record.job is not None
        if not error.retryable and not known:
            limit = min(NOT_FOUND_TIMEOUT, self._settings.poll_timeout)
            return not isinstance(error, TaskNotFound) or failing >= limit
        # Neither a failed first connection nor a pause beyond `max_retry_after` ends the wait for a known
        # task.
        temporary = error.retryable or isinstance(error, RateLimited | TransportError)
        limit = (
            self._settings.poll_timeout
            if temporary
            else min(self._settings.refusal_timeout, self._settings.poll_timeout)
        )
        return failing >= limit and entry.failures >= MIN_FAILURES

    # ------------------------------------------------------------------ responses

    def _find(self, any_id: str) -> PolledTask | None:
        """Return the polled task with this id, or None."""
        record = self.registry.get(any_id)
        return self._open.get(record) if record else None

    def _deliver(self, entry: PolledTask, task: Task | None) -> bool:
        """Process a response (None if nothing changed). Return whether it was newer than the known status."""
        if task is None:
            entry.failing_since, entry.failures = inf, 0
            return False
        if not _belongs(entry.record, task):
            error = ProtocolError(f"the service returned another task, {task.task_id}")
            self._failed(entry, error)
            self._report(entry, error)
            return False
        entry.failing_since, entry.failures = inf, 0
        now = asyncio.get_running_loop().time()
        if entry.resumed:
            entry.started_at = min(entry.started_at, now - (_reported_duration(task) or 0.0))
        newer = entry.record.deliver(self._completed(entry, task, now))
        if task.status is not Status.UNKNOWN:
            entry.unknown_since = inf
        elif now - min(entry.unknown_since, now) >= self._settings.poll_timeout:
            word = task.task_status
            entry.record.fail(ProtocolError(f"the service keeps returning the unknown status {word!r}"))
        else:
            entry.unknown_since = min(entry.unknown_since, now)
        return newer

    def _completed(self, entry: PolledTask, task: Task, now: float) -> Task:
        """Return *task*, marked as still in progress if it succeeded but lacks some of its pictures."""
        wanted = entry.record.pictures
        if task.status is not Status.SUCCEED or len(task.images) >= wanted:
            return task
        entry.incomplete_since = min(entry.incomplete_since, now)
        if now - entry.incomplete_since >= INCOMPLETE_TIMEOUT:
            logger.warning("task %s succeeded with %d of %d pictures", task.task_id, len(task.images), wanted)
            return task
        if entry.due_at == inf:
            self._push(entry, now + INCOMPLETE_PAUSE)
        return evolve(task, task_status=Status.PROCESSING.value)

    def _merged(self, record: TaskRecord) -> None:
        """Stop polling a record that another one replaced."""
        self._open.pop(record, None)

    def _ended(self, record: TaskRecord) -> None:
        """Stop polling a record whose end is known, and learn its duration."""
        entry = self._open.pop(record, None)
        if len(self._open) == 1:
            self._wake.set()  # the last open task is read on its own
        task = record.task
        if task is None or not task.status.final:
            return
        duration = latency = None
        if entry is not None:
            now = asyncio.get_running_loop().time()
            duration, latency = _timing(entry, task, now)
            if entry.calls_back and latency is not None:
                self._callbacks.ended(task.task_id, latency, now, called=entry.called)
        if duration is not None:
            self._learn(duration)
        if self._emit is not None:
            ids = record.external_task_id, task
            event = Event(EventKind.ENDED, *ids, seconds=duration, latency=latency, number=record.number)
            self._emit(event._replace(found=record.job is None or record.job.found))

    def _learn(self, duration: float) -> None:
        try:
            self._schedule.learn(duration)
        except (Exception, asyncio.CancelledError):
            logger.exception("the poll schedule failed to learn a duration")


def _read_value(tasks: float) -> float:
    """Return the value of one read of that many tasks, as a multiple of the value of reading one task.

    With a value of 1, sharing a read saves only latency, and with a value of *tasks* only requests. The
    square root saves some of both.
    """
    return sqrt(tasks)


def _stride(tasks: Sequence[object]) -> int:
    """Return the step with which to sample *tasks*."""
    return max(1, -(-len(tasks) // SAMPLE_SIZE))


def _belongs(record: TaskRecord, task: Task) -> bool:
    """Return whether *task* is the task of *record*."""
    if record.task is not None:
        return task.task_id == record.task.task_id
    return task.external_task_id is None or record.any_id in {task.task_id, task.external_task_id}


def _reported_duration(task: Task) -> float | None:
    """Return the seconds from the task's creation to its last change by the service's clock, or None."""
    if task.created_at is None or task.updated_at is None:
        return None
    return max(0.0, (task.updated_at - task.created_at) / 1000)


def _ended_at(entry: PolledTask, task: Task | None) -> float | None:
    """Return the loop time of the task's end, infinity if that is not known, or None before the end."""
    if task is None or not task.status.final:
        return None
    reported = _reported_duration(task)
    return inf if reported is None or entry.resumed else entry.started_at + reported


def _timing(entry: PolledTask, task: Task, now: float) -> tuple[float | None, float | None]:
    """Return the duration of the task and the latency of its end, each None if it is not known.

    The service's clock is used if it is plausible. An attached task began at an unknown time, so it has no
    latency, and no duration measured by our clock.
    """
    reported, elapsed = _reported_duration(task), now - entry.started_at
    if entry.resumed:
        return reported or None, None
    duration = reported if reported is not None and 0 < reported <= elapsed + 1 else elapsed
    return duration, max(0.0, elapsed - duration)
