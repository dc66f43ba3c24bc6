"""Requests, which are validated at construction, and task statuses, which have a strict order."""

import copy
import os
import pickle
from collections.abc import Callable
from decimal import Decimal
from io import BytesIO
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, get_type_hints

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.errors import InvalidRequest
from kling_expand.geometry import Geometry, Padding, Ratios, ToAspect, ToSize, Towards
from kling_expand.models import (
    NEXT,
    Dialect,
    ExpandRequest,
    Image,
    RequestField,
    RequestFields,
    Status,
    Task,
    request_fields,
    resolve_geometry,
    source_name,
    source_stem,
)

RIGHT = Ratios(right=0.5)


# ------------------------------------------------------------------ the order of statuses


def test_the_order_of_statuses_is_strict() -> None:
    """The order of statuses is irreflexive, asymmetric and transitive."""
    for one, two in product(Status, Status):
        assert not (two in NEXT[one] and one in NEXT[two])
        for three in NEXT[two] if two in NEXT[one] else ():
            assert three in NEXT[one]
    assert set(NEXT) == set(Status)


def test_only_ends_are_final() -> None:
    """A final status has no successor; every other status can lead to either end."""
    assert {each for each in Status if each.final} == {Status.SUCCEED, Status.FAILED}
    for each in Status:
        assert each.final or {Status.SUCCEED, Status.FAILED} <= NEXT[each]


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("submitted", Status.SUBMITTED),
        ("processing", Status.PROCESSING),
        ("succeed", Status.SUCCEED),
        ("succeeded", Status.SUCCEED),
        ("failed", Status.FAILED),
        ("SUCCEEDED", Status.SUCCEED),
        ("Succeed ", Status.SUCCEED),
        (" Processing\n", Status.PROCESSING),
        ("pending", Status.UNKNOWN),
        ("success", Status.UNKNOWN),
        ("", Status.UNKNOWN),
    ],
)
def test_documented_statuses_are_known(word: str, status: Status) -> None:
    """Documented words are known, including both forms of success."""
    assert Task("1", word).status is status
    assert Task("1", word).task_status == word


@given(st.text())
def test_an_undocumented_status_is_unknown(word: str) -> None:
    """Any other word is an unknown status, which is not final."""
    if word.strip().lower() not in {"submitted", "processing", "succeed", "succeeded", "failed"}:
        assert Task("1", word).status is Status.UNKNOWN
        assert not Task("1", word).status.final


@pytest.mark.parametrize(
    ("said", "units"),
    [
        ("16", Decimal(16)),
        ("8.5", Decimal("8.5")),
        ("0", Decimal(0)),
        (" 8 ", Decimal(8)),
        (None, None),
        ("", None),
        ("free", None),
        ("NaN", None),
        ("Infinity", None),
        ("sNaN", None),
        ("8,5", None),
        ("-8", None),
        ("1E+999999999", None),
        ("1E-999999999", None),
        ("9" * 13, None),
    ],
)
def test_units_are_a_finite_number_or_none(said: str | None, units: Decimal | None) -> None:
    """Units that are no finite number are None, so that units can be summed."""
    assert Task("1", "succeed", final_unit_deduction=said).units == units


# ------------------------------------------------------------------ requests


@pytest.mark.parametrize("n", range(1, 10))
def test_a_request_costs_eight_units_a_picture(n: int) -> None:
    """A request costs eight units per picture (documented)."""
    assert ExpandRequest("dog.png", RIGHT, n=n).units == 8 * n


BAD: list[tuple[str, Any]] = [("n", each) for each in (0, 10, -1, 1.0, "1", True, None)]
BAD += [("prompt", each) for each in ("x" * 2501, 5, b"x", ["x"])]
BAD += [("callback_url", each) for each in ("", "example.com", "ftp://x", 5, b"https://x")]
BAD += [
    (name, each)
    for name in ("external_task_id", "key")
    for each in (" a", "a\n", "a\x00b", ".", "..", 5, b"a", "\ud800")
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_request_is_refused_at_construction(name: str, value: Any) -> None:
    """A bad request raises an error at construction that names the field."""
    with pytest.raises(InvalidRequest) as caught:
        ExpandRequest("dog.png", RIGHT, **{name: value})
    assert caught.value.field == name
    assert len(str(caught.value)) < 200


GOOD: list[tuple[str, Any]] = [
    ("prompt", None),
    ("prompt", ""),
    ("prompt", "ü" * 2500),
    ("n", 9),
    ("key", ""),
]
GOOD += [("external_task_id", each) for each in ("", "a b", "a/b", "ü", "...", "a.b")]
GOOD += [("callback_url", "http://x"), ("callback_url", "https://x/y?z"), ("watermark", True)]


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_values_of_a_valid_request_are_not_changed(name: str, value: Any) -> None:
    """Values are neither trimmed nor changed."""
    assert getattr(ExpandRequest("dog.png", RIGHT, **{name: value}), name) == value


def test_requests_and_tasks_can_be_hashed_copied_and_pickled() -> None:
    """Requests and tasks can be compared, hashed, copied and pickled."""
    request, task = ExpandRequest("dog.png", RIGHT), Task("1", "succeed", images=(Image(0, "u"),))
    value: Any
    for value in (request, task):
        assert hash(value) == hash(copy.copy(value))
        assert pickle.loads(pickle.dumps(value)) == value
        with pytest.raises(AttributeError):
            value.n = 2


@pytest.mark.parametrize("kind", [os.fsencode, str])
def test_a_directory_entry_is_replaced_by_its_path(tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    """A photo from `os.scandir` can be pickled and named, whether its path is text or bytes."""
    (tmp_path / "dog.png").touch()
    with os.scandir(kind(tmp_path)) as entries:
        request = ExpandRequest(next(entries), RIGHT)
    assert request.image == str(tmp_path / "dog.png")
    assert pickle.loads(pickle.dumps(request)) == request


# ------------------------------------------------------------------ names of photos


class BytesPath(os.PathLike[bytes]):
    """A path whose text is bytes, one of which is not valid UTF-8."""

    def __fspath__(self) -> bytes:
        return b"a/dog\xff.png"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("dog.png", "dog.png"),
        (PurePosixPath("a/dog.png"), "a/dog.png"),
        (BytesPath(), "a/dog\udcff.png"),
        ("https://example.com/dog.png", "https://example.com/dog.png"),
        (b"123", "<3 bytes>"),
        (bytearray(5), "<5 bytes>"),
        (memoryview(b"1234"), "<4 bytes>"),
        (BytesIO(b"x"), "<BytesIO>"),
    ],
)
def test_a_photo_has_a_short_name(source: Any, name: str) -> None:
    """The name of a photo never contains its bytes."""
    assert source_name(source) == name
    assert f"image={name}" in repr(ExpandRequest(source, RIGHT))


def test_the_content_of_a_data_uri_is_not_shown() -> None:
    """The name of a `data:` URI is only its beginning."""
    assert len(source_name("data:image/png;base64," + "A" * 10_000)) < 40


# ------------------------------------------------------------------ fields are declared once


def test_typed_fields_match_the_fields_of_the_request() -> None:
    """The typed keyword arguments have the names, types and order of the fields of a request."""
    declared = {each.name: each.type for each in fields(ExpandRequest)[2:]}
    assert list(declared.items()) == list(get_type_hints(RequestFields).items())
    assert list(declared) == [each.name for each in request_fields()]


def test_no_two_fields_share_a_name() -> None:
    """Each wire path, option and column belongs to one field."""
    for place in ("wire", "option", "column"):
        names = [name for each in request_fields() if (name := getattr(each, place)) is not None]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("each", request_fields(), ids=lambda each: each.name)
def test_every_field_has_a_help_text_and_a_column(each: RequestField) -> None:
    """Every field has a help text and a manifest column."""
    assert each.help.endswith(".")
    assert each.column is not None
    assert (each.metavar is None) == (each.option is None or each.kind is bool)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("prompt", "a park", "a park"),
        ("prompt", "1", "1"),
        ("n", "3", 3),
        ("watermark", "true", True),
        ("watermark", "YES", True),
        ("watermark", "1", True),
        ("watermark", "no", False),
        ("watermark", "False", False),
        ("key", "dog-1", "dog-1"),
    ],
)
def test_text_is_converted_to_the_type_of_the_field(name: str, text: str, value: object) -> None:
    """Text from the command line or a manifest is converted to the field's type."""
    assert named(name).parse(text) == value
    assert type(named(name).parse(text)) is type(value)


@pytest.mark.parametrize(("name", "text"), [("n", "two"), ("n", "1.5"), ("n", ""), ("watermark", "maybe")])
def test_text_that_cannot_be_converted_names_its_field(name: str, text: str) -> None:
    """The message for text that cannot be converted names the field and the text."""
    with pytest.raises(InvalidRequest) as caught:
        named(name).parse(text)
    assert caught.value.field == name
    assert repr(text) in str(caught.value)


def named(name: str) -> RequestField:
    """Return the field with this name."""
    return next(each for each in request_fields() if each.name == name)


# ------------------------------------------------------------------ geometry for a photo in a dialect


def refusal(request: ExpandRequest, dialect: Dialect, size: tuple[int, int] | None) -> str:
    """Return the message about an invalid geometry, without the name of the field."""
    with pytest.raises(InvalidRequest) as caught:
        resolve_geometry(request, dialect, size)
    return str(caught.value)


@pytest.mark.parametrize(
    "geometry", [RIGHT, Towards("all"), ToAspect("16:9"), ToSize(900, 700), Padding(up=20)]
)
def test_the_editing_dialect_sends_the_ratios_of_this_photo(geometry: Geometry) -> None:
    """Every geometry becomes the four ratios of the documented create."""
    found = resolve_geometry(ExpandRequest("a", geometry), Dialect.EDITING, (800, 600))
    assert found == geometry.ratios(800, 600)


@pytest.mark.parametrize("geometry", [RIGHT, Towards("left,right")])
def test_a_photo_at_a_url_needs_a_geometry_without_a_size(geometry: Geometry) -> None:
    """The size of a photo at a URL is unknown, so a geometry that needs it is refused."""
    found = resolve_geometry(ExpandRequest("https://a.example", geometry), Dialect.EDITING, None)
    assert found == geometry.ratios(1, 1)
    shaped = ExpandRequest("https://a.example", ToAspect("16:9"))
    assert "must not need the size" in refusal(shaped, Dialect.EDITING, None)


def test_the_direction_dialect_sends_the_direction_itself() -> None:
    """The direction dialect accepts directions and no other geometry."""
    towards = Towards("right", 1.4)
    for size in (None, (800, 600)):
        assert resolve_geometry(ExpandRequest("a", towards), Dialect.DIRECTION, size) is towards
    assert "must be Towards" in refusal(ExpandRequest("a", RIGHT), Dialect.DIRECTION, (800, 600))
    for each in request_fields():
        if each.editing_only:
            marked = ExpandRequest("a", towards, **{each.name: True})  # type: ignore[arg-type]
            assert refusal(marked, Dialect.DIRECTION, None).startswith(each.name)


@pytest.mark.parametrize(
    ("source", "stem"),
    [
        ("photos/dog.jpg", "dog"),
        (PurePosixPath("dog.tar.gz"), "dog.tar"),
        (BytesPath(), "dog\udcff"),
        ("https://x.org/a/dog.png?size=3#top", "dog"),
        ("s3://bucket/dog.jpg", "dog"),
        ("https://x.org/", None),
        ("data:image/png;base64,AAAA", None),
        (b"bytes", None),
    ],
)
def test_results_are_named_after_the_file_of_the_photo(source: Any, stem: str | None) -> None:
    """The client, the fleet and the command line share one naming rule, and bytes have no name."""
    assert source_stem(source) == stem
