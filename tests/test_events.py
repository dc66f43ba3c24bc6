"""Statistics and log lines of events, compared with values calculated by hand."""

import asyncio
import logging
import re
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.errors import APIError, KlingError, RateLimited, ServerError, SubmissionUnknown
from kling_expand.events import (
    MAX_HELD,
    WINDOW,
    Event,
    EventKind,
    EventLog,
    Quantiles,
    Stats,
    StatsCollector,
)
from kling_expand.models import Task
from kling_expand.testing import virtual_time

SUCCEEDED = Task("1", "succeed", final_unit_deduction="8")
FAILED = Task("2", "failed")


def numbers(collector: StatsCollector) -> Stats:
    """Return the statistics of the collector."""
    return collector.stats(waiting=1, running=2, units_due=3)


def stats_of(*events: Event) -> Stats:
    """Return the statistics after these events."""
    collector = StatsCollector()
    for event in events:
        collector.emit(event)
    return numbers(collector)


def test_counts_start_at_zero() -> None:
    """Without events all counts are zero, except those that are passed in, and there are no quantiles."""
    stats = stats_of()
    assert (stats.waiting, stats.running, stats.units_due) == (1, 2, 3)
    assert (stats.submitted, stats.succeeded, stats.failed, stats.refused, stats.unknown) == (0, 0, 0, 0, 0)
    assert not stats.units_billed
    assert not stats.errors
    assert stats.duration == stats.latency == Quantiles(None, None, None)


KINDS: list[tuple[Event, Callable[[Stats], int]]] = [
    (Event(EventKind.SUBMITTED), lambda stats: stats.submitted),
    (Event(EventKind.CREATE), lambda stats: stats.creates),
    (Event(EventKind.READ), lambda stats: stats.reads),
    (Event(EventKind.LIST), lambda stats: stats.lists),
    (Event(EventKind.ENDED, task=SUCCEEDED), lambda stats: stats.succeeded),
    (Event(EventKind.ENDED, task=FAILED), lambda stats: stats.failed),
    (Event(EventKind.FAILED, error=APIError()), lambda stats: stats.refused),
    (Event(EventKind.FAILED, error=SubmissionUnknown()), lambda stats: stats.unknown),
]


@given(st.lists(st.sampled_from(range(len(KINDS)))))
def test_each_event_counts_once_and_in_one_place(chosen: list[int]) -> None:
    """Whatever the order of events, every number depends only on its own events."""
    stats = stats_of(*(KINDS[index][0] for index in chosen))
    for index, (_, number) in enumerate(KINDS):
        assert number(stats) == chosen.count(index)
    ended = stats.succeeded + stats.failed + stats.refused + stats.unknown
    assert ended == sum(index >= 4 for index in chosen)
    assert stats.units_billed == (8 if 4 in chosen else 0)  # all events are of one task


def test_errors_of_calls_are_counted_by_class() -> None:
    """Errors of calls are counted by class, and a job or a retry that results adds no second error."""
    stats = stats_of(
        Event(EventKind.RETRY, error=RateLimited()),
        Event(EventKind.PAUSE, error=RateLimited()),
        Event(EventKind.READ, error=RateLimited()),
        Event(EventKind.LIST, error=RateLimited()),
        Event(EventKind.CREATE, error=KlingError()),
        Event(EventKind.FAILED, error=KlingError()),
    )
    assert stats.errors == {"RateLimited": 2, "KlingError": 1}


@pytest.mark.parametrize(("words", "units"), [("8", 8), ("0.5", Decimal("0.5")), ("much", 0), (None, 0)])
def test_billed_units_are_those_of_the_service(words: str | None, units: Decimal) -> None:
    """Billed units are the service's exact value, and a value that is not a number counts as zero."""
    assert (
        stats_of(Event(EventKind.ENDED, task=Task("1", "succeed", final_unit_deduction=words))).units_billed
        == units
    )


def test_a_failed_task_bills_nothing() -> None:
    """A failed task counts no units, whatever its snapshot says."""
    assert (
        stats_of(Event(EventKind.ENDED, task=Task("1", "failed", final_unit_deduction="8"))).units_billed == 0
    )


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_quantiles_are_values_in_order(values: list[float]) -> None:
    """Median, 95th percentile and maximum are in order, and each is one of the values."""
    stats = stats_of(*(Event(EventKind.ENDED, task=SUCCEEDED, seconds=v, latency=v / 2) for v in values))
    found = (stats.duration.median, stats.duration.p95, stats.duration.highest)
    assert list(found) == sorted(v for v in found if v is not None)
    assert {*found} <= {*values}
    assert stats.duration.highest == max(values)
    assert stats.latency.highest == max(values) / 2


def test_only_the_newest_durations_are_kept() -> None:
    """Only the newest durations are kept, so memory is bounded."""
    collector = StatsCollector()
    for seconds in [1e6] + [float(index) for index in range(WINDOW)]:
        collector.emit(Event(EventKind.ENDED, task=SUCCEEDED, seconds=seconds))
    stats = numbers(collector)
    assert stats.succeeded == WINDOW + 1
    assert stats.duration == Quantiles(round((WINDOW - 1) * 0.5), round((WINDOW - 1) * 0.95), WINDOW - 1)


def test_a_listener_gets_events_in_order_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    """Exceptions of a listener are logged and do not stop the counting, but Ctrl-C is raised."""
    received: list[EventKind] = []
    received_too: list[Event] = []

    def listener(event: Event) -> None:
        received.append(event.kind)
        if event.kind is EventKind.READ:
            raise ValueError("the listener's own")
        if event.kind is EventKind.CREATE:
            raise asyncio.CancelledError("the result of a cancelled task")
        if event.kind is EventKind.LIST:
            raise KeyboardInterrupt

    collector = StatsCollector(listener, received_too.append)
    for kind in (EventKind.SUBMITTED, EventKind.READ, EventKind.CREATE):
        collector.emit(Event(kind))
    with pytest.raises(KeyboardInterrupt):
        collector.emit(Event(EventKind.LIST))
    assert received == [EventKind.SUBMITTED, EventKind.READ, EventKind.CREATE, EventKind.LIST]
    assert [event.kind for event in received_too] == received[:3]
    assert (numbers(collector).reads, numbers(collector).creates) == (1, 1)
    assert "a listener failed on the event read" in caplog.text
    assert "a listener failed on the event create" in caplog.text


# ------------------------------------------------------------------ the log


def lines(caplog: pytest.LogCaptureFixture, logger: str = "kling_expand") -> list[str]:
    """Return the messages of the package's loggers."""
    return [record.getMessage() for record in caplog.records if record.name.startswith(logger)]


def retry(number: int, wait: float | None = 1.5) -> Event:
    """Return an event of a failed read of one job."""
    error = ServerError("busy")
    event = Event(EventKind.RETRY, f"kx-{number}", error=error, number=number, task_id=f"t{number}")
    return event._replace(route="read", attempt=2, wait=wait)


@virtual_time
async def test_a_line_names_job_route_attempt_and_wait(caplog: pytest.LogCaptureFixture) -> None:
    """Each kind of event has its level and its line, and the start of a job is not logged."""
    caplog.handler.setLevel(logging.DEBUG)
    log = EventLog()
    called = Event(EventKind.LIST, seconds=0.25, route="create", attempt=1)
    for event in (
        retry(3),
        Event(EventKind.PAUSE, "kx-4", error=RateLimited("x"), number=4, route="create", wait=60.0),
        Event(EventKind.ENDED, "kx-1", SUCCEEDED, seconds=12.34, number=1),
        Event(EventKind.FAILED, "kx-5", error=SubmissionUnknown("it may exist"), number=5),
        Event(
            EventKind.CREATE, "kx-1", error=APIError("no"), seconds=0.25, number=1, route="create", attempt=1
        ),
        called._replace(route="list", wait=2.0),
        Event(EventKind.SUBMITTED, "kx-1", number=1),
        Event(EventKind.ACCEPTED, "kx-1", SUCCEEDED, number=1),
        Event(EventKind.MERGED, "kx-1", number=1),
    ):
        log(event)
    assert [
        (record.levelname, record.name, record.getMessage())
        for record in caplog.records
        if record.name != "asyncio"
    ] == [
        (
            "WARNING",
            "kling_expand.calls",
            "read for job 3 (kx-3, t3) failed, attempt 2, retrying in 1.5 s: ServerError: busy",
        ),
        ("WARNING", "kling_expand.calls", "create paused for 60.0 s after job 4 (kx-4): RateLimited: x"),
        ("INFO", "kling_expand.jobs", "job 1 (kx-1, 1) succeeded after 12.3 s: 0 pictures, 8 units"),
        ("INFO", "kling_expand.jobs", "job 5 (kx-5) ended with SubmissionUnknown: it may exist"),
        ("DEBUG", "kling_expand.calls", "create for job 1 (kx-1), attempt 1: APIError: no after 0.250 s"),
        (
            "DEBUG",
            "kling_expand.calls",
            "list for a call without a job, attempt 1: answered after 0.250 s, held back for 2.0 s",
        ),
    ]


@virtual_time
async def test_a_burst_of_events_is_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """The first event is logged at once. Those of the next second follow in one line with every id."""
    log = EventLog()
    for number in range(30):
        log(retry(number))
        await asyncio.sleep(0.1)
    log.flush()
    found = lines(caplog)
    assert 4 <= len(found) <= 5  # in 3 s, with the rest at the end
    assert found[0].startswith("read for job 0 ")
    assert re.match(r"(9|10) more: read for job 1 \(kx-1, t1\) failed.*; read for job 2 ", found[1])
    for number in range(30):
        assert sum(f"job {number} (kx-{number}, t{number})" in line for line in found) == 1
    assert lines(caplog) == found


@virtual_time
async def test_the_number_of_held_events_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """The number of events held back is bounded, and further events are only counted."""
    log = EventLog()
    for number in range(MAX_HELD + 50):
        log(retry(number, None))
    await asyncio.sleep(2)
    (first, rest) = lines(caplog)
    assert first.endswith("waiting for the next list: ServerError: busy")
    assert rest.startswith(f"{MAX_HELD + 49} more: read for job 1 ")
    assert rest.endswith("; and 49 more")


@virtual_time
async def test_each_kind_of_event_is_limited_separately(caplog: pytest.LogCaptureFixture) -> None:
    """Each kind and route is limited separately, and closing the client writes the lines held back."""
    log = EventLog()
    for route in ("read", "create", "list", "download"):
        for _ in range(2):
            log(retry(1)._replace(route=route))
    assert len(lines(caplog)) == 4
    log.flush()
    log.flush()
    assert len(lines(caplog)) == 8


@virtual_time
async def test_nothing_is_formatted_for_a_disabled_level(caplog: pytest.LogCaptureFixture) -> None:
    """If a level is off, neither a text nor a timer is made."""
    caplog.set_level(logging.ERROR, "kling_expand")
    log = EventLog()
    for _ in range(3):
        log(retry(1))
        log(Event(EventKind.ENDED, "kx-1", SUCCEEDED, number=1))
        log(Event(EventKind.READ, number=1))
    log.flush()
    assert lines(caplog) == []
