"""Statistics of events, compared with values calculated by hand."""

from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.errors import APIError, KlingError, RateLimited, SubmissionUnknown
from kling_expand.events import WINDOW, Event, EventKind, Quantiles, Stats, StatsCollector
from kling_expand.models import Task

SUCCEEDED = Task("1", "succeed", final_unit_deduction="8")
FAILED = Task("2", "failed")


def numbers(collector: StatsCollector) -> Stats:
    """Return what the collector has counted."""
    return collector.stats(waiting=1, running=2, units_due=3)


def stats_of(*events: Event) -> Stats:
    """Return the statistics after these events."""
    collector = StatsCollector()
    for event in events:
        collector.emit(event)
    return numbers(collector)


def test_in_the_beginning_there_is_nothing() -> None:
    """Without events all counts are zero, except those passed in, and there are no quantiles."""
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
    """Whatever the order of events, every number depends on its own events only."""
    stats = stats_of(*(KINDS[index][0] for index in chosen))
    for index, (_, number) in enumerate(KINDS):
        assert number(stats) == chosen.count(index)
    ended = stats.succeeded + stats.failed + stats.refused + stats.unknown
    assert ended == sum(index >= 4 for index in chosen)
    assert stats.units_billed == 8 * chosen.count(4)


def test_errors_are_those_of_calls() -> None:
    """Errors of calls are counted by class; a job that fails because of one adds no second error."""
    stats = stats_of(
        Event(EventKind.READ, error=RateLimited()),
        Event(EventKind.LIST, error=RateLimited()),
        Event(EventKind.CREATE, error=KlingError()),
        Event(EventKind.FAILED, error=KlingError()),
    )
    assert stats.errors == {"RateLimited": 2, "KlingError": 1}


@pytest.mark.parametrize(("words", "units"), [("8", 8), ("0.5", Decimal("0.5")), ("much", 0), (None, 0)])
def test_what_was_billed_is_what_the_service_says(words: str | None, units: Decimal) -> None:
    """Billed units are the service's exact value; anything that is no number counts as zero."""
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


def test_only_the_newest_are_remembered() -> None:
    """Only the newest durations are kept, so memory is bounded."""
    collector = StatsCollector()
    for seconds in [1e6] + [float(index) for index in range(WINDOW)]:
        collector.emit(Event(EventKind.ENDED, task=SUCCEEDED, seconds=seconds))
    stats = numbers(collector)
    assert stats.succeeded == WINDOW + 1
    assert stats.duration == Quantiles(round((WINDOW - 1) * 0.5), round((WINDOW - 1) * 0.95), WINDOW - 1)


def test_a_listener_gets_events_in_order_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    """Exceptions of a listener are logged and counting goes on; a `BaseException` is raised."""
    received: list[EventKind] = []

    def listener(event: Event) -> None:
        received.append(event.kind)
        if event.kind is EventKind.READ:
            raise ValueError("the listener's own")
        if event.kind is EventKind.LIST:
            raise KeyboardInterrupt

    collector = StatsCollector(listener)
    for kind in (EventKind.SUBMITTED, EventKind.READ, EventKind.CREATE):
        collector.emit(Event(kind))
    with pytest.raises(KeyboardInterrupt):
        collector.emit(Event(EventKind.LIST))
    assert received == [EventKind.SUBMITTED, EventKind.READ, EventKind.CREATE, EventKind.LIST]
    assert (numbers(collector).reads, numbers(collector).creates) == (1, 1)
    assert "the listener failed on read" in caplog.text
