"""Events of a client as they happen, and the statistics made of them, without clock or I/O."""

import logging
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from attrs import field, frozen

from .errors import KlingError, SubmissionUnknown
from .models import Status, Task

if TYPE_CHECKING:
    from decimal import Decimal

_logger = logging.getLogger(__name__)

WINDOW = 1024  # number of the newest values from which quantiles are computed


class EventKind(StrEnum):
    """The kinds of events."""

    CREATE = "create"  # a call to the API was answered, or failed
    READ = "read"
    LIST = "list"
    SUBMITTED = "submitted"  # a job began
    ACCEPTED = "accepted"  # the service has its task
    MERGED = "merged"  # the job is the same as another of this client, which serves its futures
    ENDED = "ended"  # its task succeeded or failed
    FAILED = "failed"  # the job ended without an end of its task being known


class Event(NamedTuple):
    """One event. `seconds` is how long the call, or the task, took.

    `latency` is the time from the end of a task to the answer that showed it, both by the service's clock.
    `number` is that of the job's future: all events of one job have it, those of calls have none.
    """

    kind: EventKind
    external_task_id: str | None = None
    task: Task | None = None
    error: KlingError | None = None
    seconds: float | None = None
    latency: float | None = None
    number: int | None = None


Listener = Callable[[Event], object]


class Quantiles(NamedTuple):
    """Quantiles of the newest values, in seconds; None before there is one."""

    median: float | None = None
    p95: float | None = None
    highest: float | None = None


@frozen(kw_only=True, eq=False)
class Stats:
    """The statistics of a client since it was made.

    Jobs: those `submitted` are `waiting` (for a slot, or for their create to be settled), `running` at the
    service (attached ones too), `succeeded`, `failed` (the task failed), `refused` (it never came to a
    task, or its task is no longer polled) or `unknown` (whether a task exists could not be settled).
    Calls: `creates`, `reads` of one task, `lists`, and `errors` of any of them by class.
    Money, in units: `units_due` is what was or may be billed, `units_billed` what the service says it was.
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
    duration: Quantiles = field(factory=Quantiles)
    latency: Quantiles = field(factory=Quantiles)


class StatsCollector:
    """A collector that adds up events, and passes each on to *listener*."""

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._billed: Decimal | int = 0
        self._durations: deque[float] = deque(maxlen=WINDOW)
        self._latencies: deque[float] = deque(maxlen=WINDOW)

    def emit(self, event: Event) -> None:
        """Count an event, and pass it on; an exception of the listener is logged and affects no job."""
        self._counts[event.kind] += 1
        if event.kind is EventKind.ENDED and event.task is not None:
            self._ended(event.task, event)
        elif event.kind is EventKind.FAILED:
            self._counts["unknown"] += isinstance(event.error, SubmissionUnknown)
        elif event.error is not None:
            self._errors[type(event.error).__name__] += 1
        if self._listener is not None:
            try:
                self._listener(event)
            except Exception:
                _logger.exception("the listener failed on %s", event.kind)

    def stats(self, *, waiting: int, running: int, units_due: int) -> Stats:
        """Return the numbers as they are now, with those that are counted elsewhere."""
        from decimal import Decimal  # imported here, to keep the import of the package fast

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
            units_billed=Decimal(self._billed),
            duration=_quantiles(self._durations),
            latency=_quantiles(self._latencies),
        )

    def _ended(self, task: Task, event: Event) -> None:
        if task.status is Status.SUCCEED:
            self._counts[Status.SUCCEED] += 1
            self._billed += task.units or 0
        if event.seconds is not None:
            self._durations.append(event.seconds)
        if event.latency is not None:
            self._latencies.append(event.latency)


def _quantiles(values: deque[float]) -> Quantiles:
    if not values:
        return Quantiles()
    ordered = sorted(values)
    last = len(ordered) - 1
    return Quantiles(ordered[round(last * 0.5)], ordered[round(last * 0.95)], ordered[last])
