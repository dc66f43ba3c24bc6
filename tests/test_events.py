"""How is it going? Numbers of events, added up by hand."""

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


def numbers(tally: StatsCollector) -> Stats:
    """What it has counted."""
    return tally.stats(waiting=1, running=2, units_due=3)


def told(*events: Event) -> Stats:
    """The numbers after these events."""
    tally = StatsCollector()
    for event in events:
        tally.emit(event)
    return numbers(tally)


def test_in_the_beginning_there_is_nothing() -> None:
    """All zero but what is counted elsewhere, and no quantile of nothing."""
    stats = told()
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
    """Whatever comes in whatever order, every number is that of its own events."""
    stats = told(*(KINDS[index][0] for index in chosen))
    for index, (_, number) in enumerate(KINDS):
        assert number(stats) == chosen.count(index)
    ended = stats.succeeded + stats.failed + stats.refused + stats.unknown
    assert ended == sum(index >= 4 for index in chosen)
    assert stats.units_billed == 8 * chosen.count(4)


def test_errors_are_those_of_calls() -> None:
    """By class; a job that failed because of one is not a second error."""
    stats = told(
        Event(EventKind.READ, error=RateLimited()),
        Event(EventKind.LIST, error=RateLimited()),
        Event(EventKind.CREATE, error=KlingError()),
        Event(EventKind.FAILED, error=KlingError()),
    )
    assert stats.errors == {"RateLimited": 2, "KlingError": 1}


@pytest.mark.parametrize(("words", "units"), [("8", 8), ("0.5", Decimal("0.5")), ("much", 0), (None, 0)])
def test_what_was_billed_is_what_the_service_says(words: str | None, units: Decimal) -> None:
    """As exactly as it says it; what is no number is nothing."""
    assert (
        told(Event(EventKind.ENDED, task=Task("1", "succeed", final_unit_deduction=words))).units_billed
        == units
    )


def test_a_failed_task_bills_nothing() -> None:
    """Whatever its snapshot says."""
    assert told(Event(EventKind.ENDED, task=Task("1", "failed", final_unit_deduction="8"))).units_billed == 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_quantiles_are_values_in_order(values: list[float]) -> None:
    """The median is not above the 95th, that not above the highest, and each is one of them."""
    stats = told(*(Event(EventKind.ENDED, task=SUCCEEDED, seconds=v, latency=v / 2) for v in values))
    found = (stats.duration.median, stats.duration.p95, stats.duration.highest)
    assert list(found) == sorted(v for v in found if v is not None)
    assert {*found} <= {*values}
    assert stats.duration.highest == max(values)
    assert stats.latency.highest == max(values) / 2


def test_only_the_newest_are_remembered() -> None:
    """Memory does not grow with the number of tasks."""
    tally = StatsCollector()
    for seconds in [1e6] + [float(index) for index in range(WINDOW)]:
        tally.emit(Event(EventKind.ENDED, task=SUCCEEDED, seconds=seconds))
    stats = numbers(tally)
    assert stats.succeeded == WINDOW + 1
    assert stats.duration == Quantiles(round((WINDOW - 1) * 0.5), round((WINDOW - 1) * 0.95), WINDOW - 1)


def test_a_listener_is_told_in_order_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged and counted on; what is no ordinary error is nobody's to hide."""
    heard: list[EventKind] = []

    def listener(event: Event) -> None:
        heard.append(event.kind)
        if event.kind is EventKind.READ:
            raise ValueError("the listener's own")
        if event.kind is EventKind.LIST:
            raise KeyboardInterrupt

    tally = StatsCollector(listener)
    for kind in (EventKind.SUBMITTED, EventKind.READ, EventKind.CREATE):
        tally.emit(Event(kind))
    with pytest.raises(KeyboardInterrupt):
        tally.emit(Event(EventKind.LIST))
    assert heard == [EventKind.SUBMITTED, EventKind.READ, EventKind.CREATE, EventKind.LIST]
    assert (numbers(tally).reads, numbers(tally).creates) == (1, 1)
    assert "the listener failed on read" in caplog.text
