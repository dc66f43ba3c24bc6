"""The events of a client, and the statistics and log lines that are derived from them.

==========  =====================  ==================================================================
level       logger                 one line for
==========  =====================  ==================================================================
INFO        `kling_expand.jobs`    each end of a job
INFO        `kling_expand.calls`   each create that waits for a free slot after a 1303
WARNING     `kling_expand.calls`   each 1303 for several pictures while no other task runs
WARNING     `kling_expand.calls`   each other retry, and each pause of a route after a 1302
DEBUG       `kling_expand.calls`   each request, without its body
==========  =====================  ==================================================================

A line has the job's number and ids, the route, the attempt and the wait. Except for requests, each kind of
event is logged at most once a second. Events in between are held back and combined in the next line.
"""

import asyncio
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from enum import StrEnum
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from attrs import field, frozen

from .errors import DuplicateTask, KlingError, ParallelLimit, RateLimited, SubmissionUnknown, printable
from .models import Status, Task
from .serialization import Serializable

if TYPE_CHECKING:
    from decimal import Decimal

_logger = logging.getLogger(__name__)
_calls, _jobs = logging.getLogger("kling_expand.calls"), logging.getLogger("kling_expand.jobs")

LOG_INTERVAL = 1.0  # seconds between two lines about one kind of event
MAX_HELD = 200  # the most events that one line names
BILLED_TASKS = 10_000  # tasks that are remembered, so that the units of each are counted only once
WINDOW = 1024  # the number of newest values from which quantiles are computed


class EventKind(StrEnum):
    """The kinds of events."""

    CREATE = "create"  # a create got a response or failed
    READ = "read"  # a read of one task got a response or failed
    LIST = "list"  # a read of a list page got a response or failed
    SUBMITTED = "submitted"  # a job began
    ACCEPTED = "accepted"  # the service has accepted the task of a job
    MERGED = "merged"  # a job is the same as another open job of this client, and shares its task
    ENDED = "ended"  # a task succeeded or failed
    FAILED = "failed"  # a job ended without a task, or before the outcome of its task was known
    RETRY = "retry"  # a call or a download failed and is retried
    PAUSE = "pause"  # a route pauses because there were too many requests (1302)


CALLS = (EventKind.CREATE, EventKind.READ, EventKind.LIST)  # a tuple, because hashing an enum is slow


class Caller(NamedTuple):
    """The job for which a call is made."""

    number: int | None = None
    external_task_id: str | None = None
    task_id: str | None = None


# Set in the asyncio task of each job and each poll, and read when a call is made. It must not refer to a job,
# because a connection keeps the context in which it was opened.
CALLER: ContextVar[Caller] = ContextVar("kling_expand_caller", default=Caller())  # noqa: B039 - immutable


class Event(NamedTuple):
    """One event of a client, as a listener receives it. A field that does not apply is None.

    `seconds` is the duration of the call or of the task. `latency` is the time in seconds from the end of a
    task to the response that reported it, both by the service's clock. `number` is the number of the job's
    future. All events of a job have it, including those of its calls. `route` is create, read, list or
    download. `attempt` counts from 1. `found` is True if this client did not create the task.

    `wait` is in seconds. For a retry, it is the time until the next attempt, or None if that is not known.
    For a pause, it is its length. For a call, it is the time for which a pause delayed the call.
    """

    kind: EventKind
    external_task_id: str | None = None
    task: Task | None = None
    error: KlingError | None = None
    seconds: float | None = None
    latency: float | None = None
    number: int | None = None
    task_id: str | None = None
    route: str | None = None
    attempt: int | None = None
    wait: float | None = None
    found: bool = False


Listener = Callable[[Event], object]


class Quantiles(NamedTuple):
    """The quantiles of the newest values, in seconds. They are None while there are no values."""

    median: float | None = None
    p95: float | None = None
    highest: float | None = None


@frozen(kw_only=True)
class Stats(Serializable):
    """The statistics of a client since it was created.

    - Jobs: each of the `submitted` jobs is `waiting` (for a slot or its create), `running` at the service
      (including attached tasks), `succeeded`, `failed` (the task failed), `refused` (there is no task, or it
      is no longer polled) or `unknown` (it is not known whether a task exists).
    - Calls: the number of `creates`, of `reads` of one task and of `lists`. `errors` counts the errors of all
      these calls by class.
    - Money, in units: `units_due` was or may be billed for tasks that this client created. `units_billed` was
      billed for them according to the service, and `units_found` for all other tasks, such as those of
      earlier runs.
    - Times, in seconds: the `duration` of tasks by the service's clock, and the `latency` from the end of a
      task until the client detected it.
    """

    submitted: int
    waiting: int
    running: int
    succeeded: int
    failed: int
    refused: int
    unknown: int
    creates: int
    reads: int
    lists: int
    errors: dict[str, int]
    units_due: int
    units_billed: "Decimal"
    units_found: "Decimal" = field(factory=lambda: _decimal(0))
    duration: Quantiles = field(factory=Quantiles)
    latency: Quantiles = field(factory=Quantiles)


class StatsCollector:
    """A counter of events. It passes each event on to *listeners*: functions, sequences of them or None."""

    def __init__(self, *listeners: Listener | Sequence[Listener] | None) -> None:
        several = (each if isinstance(each, Sequence) else [each] for each in listeners if each)
        self._listeners = tuple(chain.from_iterable(several))
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._billed: Decimal | int = 0
        self._found: Decimal | int = 0
        self._billed_tasks: dict[str, None] = {}  # the newest ones
        self._durations: deque[float] = deque(maxlen=WINDOW)
        self._latencies: deque[float] = deque(maxlen=WINDOW)

    def emit(self, event: Event) -> None:
        """Count an event and pass it on. An exception in a listener is logged and affects no job."""
        self._counts[event.kind] += 1
        if event.kind is EventKind.ENDED and event.task is not None:
            self._ended(event.task, event)
        elif event.kind is EventKind.FAILED:
            self._counts["unknown"] += isinstance(event.error, SubmissionUnknown)
        elif event.error is not None and event.kind in CALLS:
            self._errors[type(event.error).__name__] += 1
        for listener in self._listeners:
            try:
                listener(event)
            except (Exception, asyncio.CancelledError):  # such as the result of a cancelled task
                _logger.exception("a listener failed on the event %s", event.kind)

    def stats(self, *, waiting: int, running: int, units_due: int) -> Stats:
        """Return the current statistics, with the given numbers, which are counted elsewhere."""
        counts = self._counts
        ended = counts[EventKind.ENDED]
        return Stats(
            submitted=counts[EventKind.SUBMITTED] - counts[EventKind.MERGED],
            waiting=waiting,
            running=running,
            succeeded=counts[Status.SUCCEED],
            failed=ended - counts[Status.SUCCEED],
            refused=counts[EventKind.FAILED] - counts["unknown"],
            unknown=counts["unknown"],
            creates=counts[EventKind.CREATE],
            reads=counts[EventKind.READ],
            lists=counts[EventKind.LIST],
            errors=dict(self._errors),
            units_due=units_due,
            units_billed=_decimal(self._billed),
            units_found=_decimal(self._found),
            duration=_quantiles(self._durations),
            latency=_quantiles(self._latencies),
        )

    def _ended(self, task: Task, event: Event) -> None:
        if task.status is Status.SUCCEED:
            self._counts[Status.SUCCEED] += 1
            self._bill(task, found=event.found)
        if event.seconds is not None:
            self._durations.append(event.seconds)
        if event.latency is not None:
            self._latencies.append(event.latency)

    def _bill(self, task: Task, *, found: bool) -> None:
        """Add the cost of a task, but only once: a job or `attach` may receive its end again."""
        if task.task_id in self._billed_tasks:
            return
        if found:
            self._found += task.units or 0
        else:
            self._billed += task.units or 0
        self._billed_tasks[task.task_id] = None
        if len(self._billed_tasks) > BILLED_TASKS:
            del self._billed_tasks[next(iter(self._billed_tasks))]


def _decimal(units: "Decimal | int") -> "Decimal":
    from decimal import Decimal  # imported here, to keep the import of the package fast

    return Decimal(units)


def _quantiles(values: deque[float]) -> Quantiles:
    if not values:
        return Quantiles()
    ordered = sorted(values)
    last = len(ordered) - 1
    return Quantiles(ordered[round(last * 0.5)], ordered[round(last * 0.95)], ordered[last])


# ---------------------------------------------------------------------------- the log


_FULL = "full"  # the kind of line about a create for which no slot was free
_NO_ROOM = "no room"  # the same, although the client had no other task running


class EventLog:
    """A listener that logs events, as described at the top of this module."""

    def __init__(self) -> None:
        self._written_at: defaultdict[str, float] = defaultdict(lambda: -inf)
        self._held: dict[str, list[str]] = {}  # the events that wait for the next line, by kind
        self._more: Counter[str] = Counter()  # further events, which are only counted
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __call__(self, event: Event) -> None:
        """Log one event, or hold it back."""
        if event.kind in CALLS:
            if _calls.isEnabledFor(logging.DEBUG):
                _calls.debug("%s", _call_text(event))
            return
        kind = _line_kind(event)
        if kind is None:
            return
        logger, level = _place(kind)
        if logger.isEnabledFor(level):
            self._write(kind, _end_text(event) if logger is _jobs else _retry_text(event))

    def flush(self) -> None:
        """Log the events that are held back, and forget when each kind was last logged.

        The next event may come from another event loop, which has another clock.
        """
        for kind in tuple(self._held):
            self._write_held(kind)
        self._written_at.clear()

    def _write(self, kind: str, text: str) -> None:
        loop = asyncio.get_running_loop()
        if kind in self._held:
            self._hold(kind, text)
        elif loop.time() - self._written_at[kind] >= LOG_INTERVAL:
            self._line(kind, text)
        else:
            self._held[kind] = [text]
            self._timers[kind] = loop.call_at(self._written_at[kind] + LOG_INTERVAL, self._write_held, kind)

    def _hold(self, kind: str, text: str) -> None:
        held = self._held[kind]
        if len(held) < MAX_HELD:
            held.append(text)
        else:
            self._more[kind] += 1

    def _write_held(self, kind: str) -> None:
        self._timers.pop(kind).cancel()
        held, more = self._held.pop(kind), self._more.pop(kind, 0)
        rest = f"; and {more} more" if more else ""
        total = len(held) + more
        self._line(kind, f"{total} more: {'; '.join(held)}{rest}" if total > 1 else held[0])

    def _line(self, kind: str, text: str) -> None:
        self._written_at[kind] = asyncio.get_running_loop().time()
        logger, level = _place(kind)
        logger.log(level, "%s", text)


def _line_kind(event: Event) -> str | None:
    """Return the kind of log line for an event, or None if the event is not logged."""
    if event.kind in {EventKind.ENDED, EventKind.FAILED}:
        return str(event.kind)
    if event.kind is EventKind.RETRY and isinstance(event.error, ParallelLimit):
        return _NO_ROOM if event.error.alone else _FULL
    # The retry after a 1302 has no separate line, as the pause before it has one.
    if event.kind is EventKind.PAUSE or (
        event.kind is EventKind.RETRY and not isinstance(event.error, RateLimited)
    ):
        return f"{event.kind} {event.route}"
    return None


def _place(kind: str) -> tuple[logging.Logger, int]:
    """Return the logger and the level of a kind of line."""
    if kind in {EventKind.ENDED, EventKind.FAILED}:
        return _jobs, logging.INFO
    return _calls, logging.INFO if kind == _FULL else logging.WARNING


def _name(event: Event) -> str:
    """Return the number and the ids of the job of an event."""
    ids = (event.external_task_id, event.task.task_id if event.task else event.task_id)
    known = ", ".join(dict.fromkeys(each for each in ids if each))
    if event.number is None:
        return f"task {known}" if known else "a call without a job"
    return f"job {event.number} ({known})" if known else f"job {event.number}"


def _reason(event: Event) -> str:
    return f"{type(event.error).__name__}: {event.error.message}" if event.error else "no reason"


def _call_text(event: Event) -> str:
    duration = f"{event.seconds or 0.0:.3f} s"
    held = f", held back for {event.wait:.1f} s" if event.wait else ""
    outcome = _reason(event) if event.error else "answered"
    return f"{event.route} for {_name(event)}, attempt {event.attempt}: {outcome} after {duration}{held}"


def _retry_text(event: Event) -> str:
    if event.kind is EventKind.PAUSE:
        return f"{event.route} paused for {event.wait or 0.0:.1f} s after {_name(event)}: {_reason(event)}"
    if isinstance(event.error, DuplicateTask):
        return f"{event.route} for {_name(event)}: a task with this id already exists and is looked up"
    if isinstance(event.error, ParallelLimit):
        next_step = "retrying when a slot is free"
        if n := event.error.alone:
            next_step = (
                f"retrying later, as {n} pictures found no room although this client ran no other task"
            )
    elif event.wait is None:
        next_step = "looking up its id" if event.route == EventKind.CREATE else "waiting for the next list"
    else:
        next_step = f"retrying in {event.wait:.1f} s"
    return f"{event.route} for {_name(event)} failed, attempt {event.attempt}, {next_step}: {_reason(event)}"


def _end_text(event: Event) -> str:
    task = event.task
    if event.error is not None or task is None:
        return f"{_name(event)} ended with {_reason(event)}"
    duration = f" after {event.seconds:.1f} s" if event.seconds is not None else ""
    if task.status is not Status.SUCCEED:
        return f"{_name(event)} failed{duration}: {printable(task.task_status_msg or 'no reason')}"
    pictures = "1 picture" if len(task.images) == 1 else f"{len(task.images)} pictures"
    return f"{_name(event)} succeeded{duration}: {pictures}, {task.units or 0} units"
