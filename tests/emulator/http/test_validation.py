"""The documented rules of a create, each with its documented refusal."""

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.raw_client import order, png

from kling_expand.emulator.http import validation
from kling_expand.emulator.http.codes import Refusal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [*order(), "prompt", "n", "watermark_info", "callback_url", "external_task_id"]


def refusal(dialect: str, body: Any) -> tuple[int, str]:
    """Return (code, message) of the refusal of a body, or (0, "")."""
    try:
        parsed = validation.parse_json(json.dumps(body).encode())
        made = validation.DIALECTS[dialect](parsed)
        if not validation.is_url(made.image):
            validation.decode_image(made.image)
    except Refusal as refused:
        return refused.code, refused.message
    return 0, ""


def four_ratios(*ratios: float) -> dict[str, Any]:
    """Return the fields of the four ratios: up, down, left and right."""
    return {f"{side}_expansion_ratio": ratio for side, ratio in zip(validation.SIDES, ratios, strict=True)}


def encoded(picture: bytes) -> str:
    """Return raw Base64."""
    return base64.b64encode(picture).decode()


@pytest.mark.parametrize(
    "changes",
    [
        {
            "up_expansion_ratio": 0,
            "down_expansion_ratio": 0,
            "left_expansion_ratio": 0,
            "right_expansion_ratio": 2,
        },
        {
            f"{side}_expansion_ratio": value
            for side, value in zip(validation.SIDES, (0.1495, 0.1495, 0.6547, 0.6547), strict=True)
        },
        {"n": 9},
        {"n": 2.0},
        {"n": None, "prompt": None, "watermark_info": None, "callback_url": None, "external_task_id": None},
        {"prompt": "x" * 2500},
        {"prompt": "\ud800"},
        {"image": "https://example.com/dog.png"},
        {"image": "HTTP://example.com:8080/dog.png?x=1"},
        {"watermark_info": {}},
        {"watermark_info": {"enabled": True}},
        {"external_task_id": ""},
        {"unknown": [1]},
        {"image": encoded(png(750, 300))},
    ],
)
def test_allowed_values_are_accepted(changes: dict[str, Any]) -> None:
    """The ends of every range, nulls, integers for floats and unknown fields are accepted."""
    assert refusal("editing", order(**changes)) == (0, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "image can not be null"),
        ({"image": ""}, "image can not be null"),
        ({"image": 5}, "image must be a string"),
        ({"image": "data:image/png;base64," + encoded(png())}, "File is not in a valid base64 format"),
        ({"image": encoded(png()) + "\n"}, "File is not in a valid base64 format"),
        ({"image": "ünsinn"}, "File is not in a valid base64 format"),
        ({"image": "ftp://example.com/dog.png"}, "File is not in a valid base64 format"),
        ({"image": "http://"}, "image is not a valid URL"),
        ({"image": "http://[::1"}, "image is not a valid URL"),
        ({"image": "http://host:99999/"}, "image is not a valid URL"),
        ({"image": "http://a b/"}, "image is not a valid URL"),
        ({"image": encoded(b"GIF89a" + bytes(400))}, "Image format is invalid: neither PNG nor JPEG"),
        ({"image": encoded(png()[:-20])}, "Image format is invalid: PNG cut off before its end"),
        ({"image": encoded(png(299, 300))}, "Image pixel is invalid"),
        ({"image": encoded(png(751, 300))}, "Image aspect ratio must be between 1:2.5 and 2.5:1"),
        ({"up_expansion_ratio": None}, "up_expansion_ratio can not be null"),
        ({"up_expansion_ratio": "0.5"}, "up_expansion_ratio must be a number"),
        ({"up_expansion_ratio": True}, "up_expansion_ratio must be a number"),
        ({"up_expansion_ratio": -0.1}, "up_expansion_ratio must be between 0 and 2"),
        ({"up_expansion_ratio": 2.01}, "up_expansion_ratio must be between 0 and 2"),
        ({"up_expansion_ratio": 10**400}, "up_expansion_ratio is out of range"),
        (
            four_ratios(0, 0, 0, 0),
            "at least one expansion ratio must be greater than 0",
        ),
        (
            four_ratios(0.37, 0.37, 0.37, 0.37),
            "the total area of the new image must not exceed 3 times that of the original image",
        ),
        ({"n": 0}, "n must be an integer between 1 and 9"),
        ({"n": 10}, "n must be an integer between 1 and 9"),
        ({"n": 1.5}, "n must be an integer between 1 and 9"),
        ({"n": "1"}, "n must be a number"),
        ({"prompt": "x" * 2501}, "prompt can not exceed 2500 characters"),
        ({"prompt": 1}, "prompt must be a string"),
        ({"external_task_id": 1}, "external_task_id must be a string"),
        ({"callback_url": "here"}, "callback_url is not a valid URL"),
        ({"watermark_info": True}, "watermark_info.enabled must be a boolean"),
        ({"watermark_info": {"enabled": "yes"}}, "watermark_info.enabled must be a boolean"),
    ],
)
def test_a_broken_rule_is_named(changes: dict[str, Any], message: str) -> None:
    """A request that breaks a rule gets 1201, with a message that names the rule."""
    assert refusal("editing", order(**changes)) == (1201, message)


def test_a_file_of_more_than_10_mb_is_refused() -> None:
    """The limit applies to the bytes of the file, not to its Base64."""
    validation.check_image(png() + bytes(10 * 1024 * 1024 - len(png())))
    with pytest.raises(Refusal, match="10MB"):
        validation.check_image(png() + bytes(10 * 1024 * 1024))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff",
        b'{"n": NaN}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_not_an_object_is_1200(raw: bytes) -> None:
    """Anything except a JSON object gets 1200, even values that only Python accepts as JSON."""
    with pytest.raises(Refusal) as caught:
        validation.parse_json(raw)
    assert caught.value.code == 1200


@pytest.mark.parametrize(
    ("direction", "ratio", "ratios"),
    [
        ("right", 1.5, (0, 0, 0, 0.5)),
        ("left,right", 1.5, (0, 0, 0.25, 0.25)),
        ("top,bottom", 1.4, (0.2, 0.2, 0, 0)),
        ("all", 1.3, (0.15, 0.15, 0.15, 0.15)),
        ("top, left", 1.6, (0.6, 0, 0.6, 0)),
        ("all,left", None, (0.25, 0.25, 0.25, 0.25)),
        ("bottom", 3, (0, 2, 0, 0)),
    ],
)
def test_directions_become_ratios(direction: str, ratio: float | None, ratios: tuple[float, ...]) -> None:
    """The new length relative to the old one on each named axis is split evenly over its named sides."""
    made = validation.direction({"image": encoded(png()), "direction": direction, "expansion_ratio": ratio})
    assert made.ratios == pytest.approx(ratios)


@pytest.mark.parametrize(
    ("direction", "ratio"),
    [
        (None, 1.5),
        ("", 1.5),
        ("up", 1.5),
        ("left,", 1.5),
        ("left\n", 1.5),
        (7, 1.5),
        ("left", 0.9),
        ("left", 1),
        ("left", 3.1),
        ("all", 1.74),
        ("left", "1.5"),
        ("left", math.inf),
    ],
)
def test_bad_directions_are_refused(direction: Any, ratio: Any) -> None:
    """Unknown names, wrong types, and ratios outside the limits get 1201."""
    with pytest.raises(Refusal) as caught:
        validation.direction({"image": encoded(png()), "direction": direction, "expansion_ratio": ratio})
    assert caught.value.code == 1201


@given(st.sampled_from(["editing", "direction"]), st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_object_is_accepted_or_refused(dialect: str, changes: dict[str, Any]) -> None:
    """Any JSON object leads to a request or a documented refusal."""
    assert refusal(dialect, order(direction="all") | changes)[0] in {0, 1200, 1201}


@given(raw=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_1200(raw: bytes) -> None:
    """Any bytes lead to an object or to 1200."""
    try:
        outcome = validation.parse_json(raw)
    except Refusal as refused:
        outcome = {"refused": refused.code}
    assert isinstance(outcome, dict)
    assert outcome.get("refused", 1200) == 1200
