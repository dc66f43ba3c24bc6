"""Values as text: control characters, times, durations and money."""

import pytest

from kling_expand.cli.terminal import billed_units, clean, moment, money, plural, span
from kling_expand.models import Task


def test_control_characters_are_escaped() -> None:
    """Control characters, line ends and direction marks are escaped. Letters of any script are not."""
    assert clean("a\x1b[2Jb\r\n\u202ec\u00e9\u4e2d") == r"a\x1b[2Jb\r\n\u202ec" "\u00e9\u4e2d"


def test_missing_and_impossible_times_are_shown() -> None:
    """A missing time is shown as a dash, and an impossible one as a number."""
    assert moment(None) == "-"
    assert moment(10**20) == str(10**20)
    assert moment(1_750_000_000_000) == "2025-06-15 15:06:40 UTC"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (185, "3:05"), (7210, "2:00:10"), (273_700, "3 days 4 h")],
)
def test_durations_use_the_largest_useful_unit(seconds: float, text: str) -> None:
    """A duration is written in its largest useful unit."""
    assert span(seconds) == text


def test_money_is_units_and_dollars() -> None:
    """Units are converted to dollars at the documented price."""
    assert money(10_000_000) == "10000000 units ($35,000.00)"
    assert money(7.5) == "7.5 units ($0.03)"


@pytest.mark.parametrize(("billed", "units"), [("8", 8), ("7.5", 7.5), ("", None), (None, None), ("x", None)])
def test_units_are_a_number(billed: str | None, units: float | None) -> None:
    """Units, which the API sends as text, become numbers. Whole ones become integers."""
    found = billed_units(Task("1", "succeed", final_unit_deduction=billed))
    assert (found, type(found)) == (units, type(units))
    assert billed_units(None) is None


def test_plurals() -> None:
    """Only 1 takes the singular."""
    assert [plural(number, "task") for number in (0, 1, 2)] == ["0 tasks", "1 task", "2 tasks"]
