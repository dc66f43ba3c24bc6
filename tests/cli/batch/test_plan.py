"""The plan of a batch: rows counted and priced, and the usage of a journal."""

from typing import Any

from kling_expand import ExpandRequest, Ratios
from kling_expand.cli.batch.manifest import Row
from kling_expand.cli.batch.plan import Survey


def row(name: str, tag: str = "", **fields: Any) -> Row:
    """Return a row that can be sent."""
    return Row(1, name, name, tag, ExpandRequest(f"{name}.jpg", Ratios(up=0.5), **fields))


def test_names_that_several_rows_share_become_distinct() -> None:
    """The tag depends on what a row asks for, so rows may be added and moved between two runs."""
    rows = [row("a", "1"), row("a", "2"), row("A", "3"), row("c", "4")]
    survey = Survey()
    for each in rows:
        survey.count(each)
    assert [survey.candidates(each) for each in rows] == [("a-1",), ("a-2",), ("A-3",), ("c", "c-4")]


def test_a_bad_row_costs_nothing() -> None:
    """Neither a bad row nor a row that is paid for adds to the cost."""
    survey = Survey()
    survey.count(Row(1, "bad", error="no photo"))
    survey.count(row("a", n=9), paid=True)
    survey.count(row("b", n=3))
    assert (
        survey.text() == "2 rows can be sent (1 already paid for), 1 cannot; cost: at most 24 units ($0.08)"
    )
    assert survey.facts() == {"rows": 3, "good": 2, "bad": 1, "paid": 1, "units": 24}
    assert survey.most_images == 9
