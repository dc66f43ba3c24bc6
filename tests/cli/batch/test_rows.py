"""What a row asks for: its fields over the command's options, or a reason why not."""

from pathlib import Path
from typing import Any

import pytest

from kling_expand import ExpandRequest, Ratios, ToAspect, ToSize, Towards
from kling_expand.cli.batch.manifest import Entry, Manifest
from kling_expand.cli.batch.rows import Defaults, Row, _row
from kling_expand.cli.batch.survey import Survey
from kling_expand.cli.geometry import OPTIONS

LISTED = Manifest("jobs/m.csv", "table")


def row(fields: dict[str, Any], **geometry: Any) -> Row:
    """A row of a table in `jobs`, over options."""
    defaults = Defaults(dict.fromkeys(OPTIONS) | geometry, "a park", 2, watermark=True)
    return _row(Entry(7, {"image": "a.jpg"} | fields), LISTED, defaults)


def request(fields: dict[str, Any], **geometry: Any) -> ExpandRequest:
    """What the row asks for."""
    made = row(fields, **geometry)
    assert made.request is not None, made.error
    return made.request


def test_options_count_where_a_row_says_nothing() -> None:
    """Blank cells, JSON's null and fields of one's own say nothing."""
    found = request({"up": "", "prompt": None, "_id": 5}, aspect="16:9", area=2.0)
    assert found == ExpandRequest("jobs/a.jpg", ToAspect("16:9", area=2.0), "a park", n=2, watermark=True)


@pytest.mark.parametrize(
    ("fields", "geometry"),
    [
        ({"up": "0.5"}, Ratios(up=0.5)),
        ({"up": 1, "left": 0.25}, Ratios(up=1, left=0.25)),
        ({"aspect": "1:1"}, ToAspect("1:1", area=2.0, anchor="top")),
        ({"area": 3}, ToAspect("16:9", area=3.0, anchor="top")),
        ({"aspect": 1.5, "anchor": "left"}, ToAspect(1.5, area=2.0, anchor="left")),
        ({"size": "1920x1080"}, ToSize(1920, 1080, anchor="top")),
        ({"direction": "left,right", "ratio": "1.2"}, Towards("left,right", 1.2)),
    ],
)
def test_a_row_that_says_how_far_says_it_alone(fields: dict[str, Any], geometry: object) -> None:
    """Of the options only what belongs to its way still counts."""
    assert request(fields, aspect="16:9", area=2.0, anchor="top").geometry == geometry


def test_every_field_is_read() -> None:
    """From text, as a table has it."""
    fields = {"up": "1", "prompt": "sea", "n": "3", "watermark": "no", "key": "k", "name": "wide"}
    made = row({"image": "https://x.org/a.jpg"} | fields)
    assert made.request == ExpandRequest("https://x.org/a.jpg", Ratios(up=1), "sea", n=3, key="k")
    assert (made.name, made.label) == ("wide", "line 7 (https://x.org/a.jpg)")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "say how far to expand in one way: aspect"),
        ({"up": "1", "aspect": "1:1"}, "in one way"),
        ({"up": "much"}, "a number is needed"),
        ({"up": "3"}, "between 0 and 2"),
        ({"up": True}, "a number is needed"),
        ({"up": [1]}, "text or a number is needed"),
        ({"size": "large"}, "1920x1080"),
        ({"area": 2, "up": 1}, "area only says something together with aspect"),
        ({"up": 1, "n": "2.5"}, "a whole number is needed"),
        ({"up": 1, "n": 10}, "between 1 and 9"),
        ({"up": 1, "watermark": "perhaps"}, "true or false is needed"),
        ({"up": 1, "key": " x "}, "key"),
        ({"up": 1, "image": ""}, "a path or a URL is needed"),
        ({"up": 1, "prompt": "x" * 2501}, "at most 2500"),
    ],
)
def test_a_bad_row_has_a_reason(fields: dict[str, Any], said: str) -> None:
    """In words of columns, not of options, and with its line."""
    made = row(fields)
    assert made.request is None
    assert said in (made.error or "")
    assert "--" not in (made.error or "")
    assert made.line == 7


def test_names_that_several_rows_share_are_told_apart() -> None:
    """By what is asked for, not by where it stands: rows may be added and moved between two runs."""
    rows = [
        row({"up": 0.5}),
        row({"up": 0.6}),
        row({"image": "b/A.jpg", "up": 0.5}),
        row({"image": "c.jpg", "up": 1}),
    ]
    survey = Survey()
    for each in rows:
        survey.count(each)
    names = [survey.candidates(each) for each in rows]
    assert [len(each) for each in names] == [1, 1, 1, 2]
    assert len({each[0].casefold() for each in names}) == 4
    assert names[3][0] == "c"
    assert survey.candidates(row({"up": 0.5})) == names[0]


def test_a_bad_row_costs_nothing() -> None:
    """Nor does one that is paid for already."""
    survey = Survey()
    survey.count(row({}))
    survey.count(row({"up": 1, "n": 9}), paid=True)
    survey.count(row({"up": 1, "n": 3}))
    assert (
        survey.words() == "2 rows can be sent, 1 of them already paid for; 1 cannot; 24 units ($0.08) at most"
    )
    assert survey.facts() == {"rows": 3, "good": 2, "bad": 1, "paid": 1, "units": 24}
    assert survey.most == 9


def test_relative_paths_begin_at_the_manifest() -> None:
    """So that it can be run from anywhere; an absolute one stays."""
    assert request({"up": 1}).image == str(Path("jobs/a.jpg"))
    assert request({"up": 1, "image": "/x/a.jpg"}).image == "/x/a.jpg"
