"""Ratios: exactly what the service takes, and where the original then lies."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kling_expand.errors import GeometryError
from kling_expand.geometry import calculate_expansion_ratios
from kling_expand.ratios import MAX_AREA, Ratios

SIDE = st.integers(300, 6000)
ANY_SIDE = st.integers(1, 2**31 - 1)
FRACTION = st.floats(0, 2)
FOUR = st.tuples(FRACTION, FRACTION, FRACTION, FRACTION)


def refused(attempt: Callable[[], object]) -> GeometryError:
    with pytest.raises(GeometryError) as caught:
        attempt()
    return caught.value


# Ratios


@given(FRACTION, FRACTION, FRACTION, FRACTION)
def test_ratios_are_exactly_those_within_the_rules(up: float, down: float, left: float, right: float) -> None:
    """Four numbers are taken if and only if something is added and the area is at most 3 (+1e-3)."""
    area = (1 + up + down) * (1 + left + right)
    if 1 + 1e-9 < area <= 3.001:
        assert area == Ratios(up, down, left, right).area
    else:
        assert refused(lambda: Ratios(up, down, left, right)).field == "ratios"


@given(FRACTION, FRACTION, FRACTION, FRACTION)
def test_the_factor_named_for_too_large_an_area_works_and_is_the_greatest(
    up: float, down: float, left: float, right: float
) -> None:
    """Ratios that are too large come with a factor that makes them fit, and hardly wastes anything."""
    assume((1 + up + down) * (1 + left + right) > 3.0011)
    factor = float(refused(lambda: Ratios(up, down, left, right)).limit.split()[-3])
    fitted = Ratios(up * factor, down * factor, left * factor, right * factor)
    assert 2.999 < fitted.area <= 3 + 1e-9


@pytest.mark.parametrize("side", ["up", "down", "left", "right"])
@pytest.mark.parametrize(
    "value",
    [-0.1, 2.0001, math.nan, math.inf, -math.inf, True, "1", None, pytest.param(10**400, id="huge"), 1j, [1]],
)
def test_no_side_takes_what_is_not_a_number_from_0_to_2(side: str, value: float) -> None:
    """A bad side is refused by its name."""
    assert side == refused(lambda: Ratios(**{side: value})).field


def test_any_real_number_becomes_a_float() -> None:
    """Whole numbers and fractions are numbers too, and a negative zero is a zero."""
    ratios = Ratios(1, 0, Fraction(1, 4), -0.0)  # type: ignore[arg-type]  # a Fraction is no float to mypy
    assert [repr(side) for side in (1.0, ratios.down, ratios.left, ratios.right)] == [
        "1.0",
        "0.0",
        "0.25",
        "0.0",
    ]
    assert isinstance(ratios.up, float)


def test_ratios_are_the_same_for_every_photo() -> None:
    """They need no size, and are their own answer."""
    ratios = Ratios(right=0.5)
    assert not ratios.needs_size
    assert ratios.ratios() == ratios.ratios(640, 480) == ratios


def test_nothing_added_is_refused() -> None:
    """Four zeros, and what vanishes next to 1, would be paid for and change nothing."""
    for attempt in (Ratios, lambda: Ratios(0, 0, 0, 0), lambda: Ratios(up=1e-300)):
        assert "nothing is added" in str(refused(attempt))


def test_the_vendors_rounding_is_let_pass() -> None:
    """What the vendor's helper prints for three times 3:2 reaches 3.00008, and is taken."""
    up, down, left, right = map(float, calculate_expansion_ratios(100, 100, 3, 3 / 2).split(","))
    assert Ratios(up, down, left, right).area > MAX_AREA


# Canvas


@given(FOUR, ANY_SIDE, ANY_SIDE)
def test_the_original_stays_whole_and_inside_its_canvas(
    sides: tuple[float, float, float, float], width: int, height: int
) -> None:
    """At its own scale the original keeps its size, and lies where the ratios say to within a pixel."""
    up, down, left, right = sides
    assume(1 + 1e-9 < (1 + up + down) * (1 + left + right) <= 3)
    canvas = Ratios(up, down, left, right).canvas(width, height)
    x0, y0, x1, y1 = canvas.box
    assert (width, height) == (x1 - x0, y1 - y0)
    assert 0 <= x0 < x1 <= canvas.width
    assert 0 <= y0 < y1 <= canvas.height
    assert abs(x0 - width * left) <= 1
    assert abs(y0 - height * up) <= 1
    assert abs(canvas.width - width * (1 + left + right)) <= 0.51
    assert abs(canvas.height - height * (1 + up + down)) <= 0.51


@given(FOUR, st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE))
def test_the_box_follows_into_a_result_of_any_size(
    sides: tuple[float, float, float, float], size: tuple[int, int], result: tuple[int, int]
) -> None:
    """Scaled to the service's pixels, each edge is within half a pixel of the exact one, and inside."""
    (up, down, left, right), (wide, high) = sides, result
    assume(1 + 1e-9 < (1 + up + down) * (1 + left + right) <= 3)
    canvas = Ratios(up, down, left, right).canvas(*size)
    scaled = canvas.scaled(wide, high)
    x0, y0, x1, y1 = scaled.box
    assert (scaled.width, scaled.height) == (wide, high)
    assert 0 <= x0 < x1 <= wide
    assert 0 <= y0 < y1 <= high
    assert abs(x0 - wide * left / (1 + left + right)) <= 0.5 + 1e-9
    assert abs(x1 - wide * (1 + left) / (1 + left + right)) <= 0.5 + 1e-9
    assert abs(y0 - high * up / (1 + up + down)) <= 0.5 + 1e-9
    assert abs(y1 - high * (1 + up) / (1 + up + down)) <= 0.5 + 1e-9
    assert canvas.scaled(17, 23).scaled(wide, high) == scaled


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5), (5.0, 5), (True, 5), (5, 2**31)])
def test_a_canvas_has_a_whole_positive_size(size: tuple[int, int]) -> None:
    """Neither a photo nor a result of no pixels, or half a pixel, is reckoned with."""
    assert refused(lambda: Ratios(up=1).canvas(*size)).field in {"width", "height"}
    assert refused(lambda: Ratios(up=1).canvas(300, 300).scaled(*size)).field in {"width", "height"}


def test_a_canvas_is_rounded_to_the_nearest_pixel() -> None:
    """Halves are rounded upwards, on the canvas and in the box."""
    canvas = Ratios(up=1 / 16, left=1 / 32, right=1 / 32).canvas(104, 100)
    assert (canvas.width, canvas.height, canvas.box) == (111, 106, (3, 6, 107, 106))
    result = Ratios(right=0.5).canvas(640, 480).scaled(1664, 832)
    assert (result.width, result.height, result.box) == (1664, 832, (0, 0, 1109, 832))
