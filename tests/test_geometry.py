"""Geometries: every request is expressed exactly, or refused with an error whose advice works."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kling_expand.emulator.painting.canvas import fit_canvas
from kling_expand.errors import GeometryError
from kling_expand.geometry import (
    MAX_AREA,
    PASSES_ADVICE,
    Anchor,
    Geometry,
    Padding,
    Ratios,
    ToAspect,
    ToSize,
    Towards,
    calculate_expansion_ratios,
    chained_canvas,
    parse_aspect,
    parse_direction,
    plan,
)

SIDE = st.integers(300, 6000)
ANY_SIDE = st.integers(1, 2**31 - 1)
ASPECT = st.one_of(
    st.floats(0.1, 10), st.sampled_from([16 / 9, 4 / 3, 1, 9 / 16, 21 / 9, 2.5, 3]), st.floats(1e-3, 1e3)
)
AREA = st.none() | st.floats(1, 3)
ANCHOR: st.SearchStrategy[Anchor] = st.sampled_from(
    [
        "center",
        "left",
        "right",
        "top",
        "bottom",
        "top-left",
        "top-right",
        "bottom-left",
        "bottom-right",
    ]
)
SIZE = st.tuples(SIDE, SIDE)
FRACTION = st.floats(0, 2)
FOUR = st.tuples(FRACTION, FRACTION, FRACTION, FRACTION)


def refused(attempt: Callable[[], object]) -> GeometryError:
    with pytest.raises(GeometryError) as caught:
        attempt()
    return caught.value


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def within_rules(ratios: Ratios) -> bool:
    sides = (ratios.up, ratios.down, ratios.left, ratios.right)
    return all(type(side) is float and 0 <= side <= 2 for side in sides) and 1 < ratios.area <= 3 + 1e-3


def aspect_of(ratios: Ratios, width: int, height: int) -> float:
    return width * (1 + ratios.left + ratios.right) / (height * (1 + ratios.up + ratios.down))


# ToAspect


@given(ANY_SIDE, ANY_SIDE, ASPECT, AREA, ANCHOR)
@example(100, 300, 1.0, None, "left")
@example(300, 100, 1.0, None, "bottom")
@example(333, 1000, 1.0, 3.0, "right")
def test_an_aspect_is_reached_exactly_or_refused(
    width: int, height: int, aspect: float, area: float | None, anchor: Anchor
) -> None:
    """The aspect is exact to 1e-9 and the area as requested, or `GeometryError` is raised."""
    try:
        ratios = ToAspect(aspect, area, anchor).ratios(width, height)
    except GeometryError:
        return
    assert within_rules(ratios)
    assert math.isclose(aspect, aspect_of(ratios, width, height), rel_tol=1e-8 if area else 1e-9)
    stretch = aspect * height / width
    assert math.isclose(area or max(stretch, 1 / stretch), ratios.area, rel_tol=1e-8)
    if area is None:
        assert min(ratios.up + ratios.down, ratios.left + ratios.right) == 0


@given(SIDE, SIDE, st.floats(0.1, 10), AREA)
def test_suggestions_of_a_refused_aspect_are_accepted(
    width: int, height: int, aspect: float, area: float | None
) -> None:
    """Every area and every aspect that an error suggests is accepted."""
    wanted = ToAspect(aspect, area)
    try:
        wanted.ratios(width, height)
    except GeometryError as error:
        if error.field == "area":
            low, high = numbers(error.limit)[:2]
            assert within_rules(ToAspect(aspect, low).ratios(width, height))
            assert within_rules(ToAspect(aspect, high).ratios(width, height))
        elif "must differ" in error.limit:
            low, high = numbers(error.advice)
            assert within_rules(ToAspect(aspect, low + 1e-4).ratios(width, height))
            assert within_rules(ToAspect(aspect, high).ratios(width, height))
        else:
            allowed = re.match(r"must be between (\S+) and (\S+) for", error.limit)
            assert allowed is not None
            for each in allowed.groups():
                assert within_rules(ToAspect(each).ratios(width, height))


@given(SIDE, SIDE, ASPECT, st.floats(1, 3), ANCHOR)
def test_an_anchor_sets_the_position_of_the_original(
    width: int, height: int, aspect: float, area: float, anchor: Anchor
) -> None:
    """Anchored edges stay in place; an axis without an anchor grows equally on both sides."""
    try:
        ratios = ToAspect(aspect, area, anchor).ratios(width, height)
    except GeometryError:
        return
    words = anchor.split("-")
    assert ("left" not in words) or ratios.left == 0
    assert ("right" not in words) or ratios.right == 0
    assert ("top" not in words) or ratios.up == 0
    assert ("bottom" not in words) or ratios.down == 0
    assert {"left", "right"} & set(words) or ratios.left == ratios.right
    assert {"top", "bottom"} & set(words) or ratios.up == ratios.down


def test_an_aspect_expands_only_one_axis() -> None:
    """A square grows only sideways for 16:9, and only vertically for 9:16."""
    wide = ToAspect("16:9").ratios(900, 900)
    assert math.isclose(7 / 18, wide.left)
    assert (wide.up, wide.down, wide.right) == (0, 0, wide.left)
    tall = ToAspect("9:16", anchor="bottom").ratios(900, 900)
    assert math.isclose(7 / 9, tall.up)
    assert (tall.down, tall.left, tall.right) == (0, 0, 0)


@given(st.integers(300, 3000), st.integers(300, 3000), ANCHOR)
def test_a_photo_that_already_has_the_aspect_is_refused(width: int, height: int, anchor: Anchor) -> None:
    """A photo that has the aspect to within half a pixel raises an error with advice."""
    error = refused(lambda: ToAspect((width, height), anchor=anchor).ratios(width, height))
    assert "must differ" in error.limit
    assert "must differ" in refused(lambda: ToAspect("16:9").ratios(1366, 768)).limit
    assert "must differ" in refused(lambda: ToAspect("1:1", area=1).ratios(500, 500)).limit


def test_an_area_too_small_for_the_aspect_names_the_least() -> None:
    """An area of 1.2 is too small for a square to become 16:9, and the error names 1.7778."""
    error = refused(lambda: ToAspect("16:9", area=1.2).ratios(100, 100))
    assert (
        error.field,
        error.value,
        error.limit,
    ) == ("area", "1.2", "must be between 1.7778 and 3 to expand 100x100 to 16:9")


@pytest.mark.parametrize("area", [0.99, 3.01, -1, math.nan, math.inf, True, "2"])
def test_an_impossible_area_is_refused_at_construction(area: float) -> None:
    """An area that no request can have is refused at construction."""
    assert refused(lambda: ToAspect("16:9", area=area)).field == "area"


@pytest.mark.parametrize(
    "aspect", ["16:9", "16/9", "16x9", " 16 : 9 ", "32:18", 16 / 9, (16, 9), (1.6, 0.9), "1.7777777777777777"]
)
def test_an_aspect_may_be_written_in_many_ways(aspect: str | float | tuple[float, float]) -> None:
    """All notations of an aspect give the same value."""
    assert math.isclose(16 / 9, parse_aspect(aspect))


@pytest.mark.parametrize(
    "aspect",
    [
        "",
        "wide",
        "16:9:1",
        "16:",
        "0:9",
        "9:0",
        "-16:9",
        "nan",
        "inf",
        0,
        -1,
        math.nan,
        math.inf,
        True,
        None,
        (1,),
        (1, 2, 3),
        (),
        ("a", "b"),
        (1, 0),
        0.0001,
        1001,
        b"16:9",
        pytest.param(10**400, id="huge"),
    ],
)
def test_an_invalid_aspect_is_refused(aspect: str) -> None:
    """The error names any other value, with examples of valid ones."""
    error = refused(lambda: ToAspect(aspect))
    assert error.field == "aspect"
    assert '"16:9"' in error.limit


@pytest.mark.parametrize("make", [lambda word: ToAspect(1, anchor=word), lambda word: ToSize(1, 1, word)])
@pytest.mark.parametrize("word", ["middle", "", None, "left-top", 5])
def test_an_unknown_anchor_is_refused_with_the_known_ones(
    make: Callable[[object], object], word: object
) -> None:
    """The error lists the valid anchors."""
    error = refused(lambda: make(word))
    assert error.field == "anchor"
    assert "top-left" in error.limit


# ToSize and Padding


@given(SIDE, SIDE, st.integers(1, 20_000), st.integers(1, 20_000), ANCHOR)
def test_a_size_is_met_to_the_pixel_or_refused(
    width: int, height: int, wide: int, high: int, anchor: Anchor
) -> None:
    """The canvas has exactly the requested size, or the error names a possible one."""
    wanted = ToSize(wide, high, anchor)
    if wide >= width and high >= height and width * height < wide * high <= 3 * width * height:
        ratios = wanted.ratios(width, height)
        canvas = ratios.canvas(width, height)
        assert within_rules(ratios)
        assert (wide, high) == (canvas.width, canvas.height)
        return
    error = refused(lambda: wanted.ratios(width, height))
    if error.field == "size":
        sizes = re.findall(r"(\d+)x(\d+)", error.advice)
        assert sizes
        for least in sizes:
            ratios = ToSize(int(least[0]), int(least[1])).ratios(width, height)
            assert within_rules(ratios)
    else:
        assert {"width": wide < width, "height": high < height}[error.field]
        assert numbers(error.limit)[-1] == {"width": width, "height": height}[error.field]


PIXELS = st.integers(0, 3000)


@given(SIZE, st.tuples(PIXELS, PIXELS, PIXELS, PIXELS))
def test_padding_adds_exactly_the_given_pixels_or_is_refused(
    size: tuple[int, int], sides: tuple[int, int, int, int]
) -> None:
    """Each margin of the canvas is exactly the requested padding."""
    (width, height), (up, down, left, right) = size, sides
    padding = Padding(up, down, left, right)
    wide, high = width + left + right, height + up + down
    if width * height < wide * high <= 3 * width * height:
        canvas = padding.ratios(width, height).canvas(width, height)
        assert (wide, high, (left, up, left + width, up + height)) == (
            canvas.width,
            canvas.height,
            canvas.box,
        )
    else:
        assert f"{wide}x{high}" == refused(lambda: padding.ratios(width, height)).value


@pytest.mark.parametrize("value", [-1, 1.5, True, None, "3", 2**31])
def test_pixels_are_whole_numbers(value: int) -> None:
    """Fractional, negative and boolean pixels of paddings and sizes are refused by name."""
    assert refused(lambda: Padding(left=value)).field == "left"
    assert refused(lambda: ToSize(value, 5)).field == "width"
    assert refused(lambda: ToSize(5, value)).field == "height"


@pytest.mark.parametrize("geometry", [ToAspect("16:9"), ToSize(900, 900), Padding(up=9)])
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5), (5.0, 5), (True, 5), (5, 2**31)])
def test_a_photo_has_a_whole_positive_size(geometry: Geometry, size: tuple[int, int]) -> None:
    """A size that no photo can have raises an error before any calculation."""
    assert geometry.needs_size
    assert refused(lambda: geometry.ratios(*size)).field in {"width", "height"}


# Towards


@pytest.mark.parametrize(
    ("direction", "ratio", "expected"),
    [
        ("right", 1.5, Ratios(right=0.5)),
        ("left,right", 1.5, Ratios(left=0.25, right=0.25)),
        ("top,bottom", 1.5, Ratios(up=0.25, down=0.25)),
        ("all", 1.5, Ratios(0.25, 0.25, 0.25, 0.25)),
        ("left,right,top,bottom", 1.5, Ratios(0.25, 0.25, 0.25, 0.25)),
        ("top,left,right", 1.5, Ratios(up=0.5, left=0.25, right=0.25)),
        ("bottom", 3, Ratios(down=2)),
        ("left,right", 3, Ratios(left=1, right=1)),
    ],
)
def test_a_direction_lengthens_its_axis(direction: str, ratio: float, expected: Ratios) -> None:
    """The ratio is the new length of each named axis over the old, divided equally among its named sides."""
    assert expected == Towards(direction, ratio).ratios()


WORDS = st.lists(st.sampled_from(["left", "right", "top", "bottom", "all"]), min_size=1, max_size=6)


@given(WORDS, st.floats(1, 3, exclude_min=True), st.randoms())
def test_every_direction_stays_within_the_rules(words: list[str], ratio: float, random: Random) -> None:
    """Order, case, blanks and duplicates do not matter, and an accepted direction stays within the rules."""
    untidy = " , ".join(random.choice([word, word.upper()]) for word in words)
    assert parse_direction(",".join(sorted(set(words)))) == parse_direction(untidy)
    try:
        towards = Towards(untidy, ratio)
    except GeometryError as error:
        greatest = numbers(error.limit)[-1]
        assert ratio > greatest or ratio < 1 + 1e-8
        assert within_rules(Towards(untidy, greatest).ratios())
    else:
        assert within_rules(towards.ratios())
        assert towards.ratios() == towards.ratios(640, 480)
        assert not towards.needs_size


def test_directions_are_normalized() -> None:
    """The direction is normalized, the ratio is a float, and `all` replaces other words."""
    assert (Towards(" Top, left,top").direction, Towards("top").ratio) == ("left,top", 1.5)
    assert Towards("left,all").direction == "all"


@pytest.mark.parametrize("direction", ["", "up", "left,,right", "left;right", None, 5, "left right"])
def test_an_unknown_direction_is_refused_with_the_known_ones(direction: str) -> None:
    """The error lists the valid directions."""
    error = refused(lambda: Towards(direction))
    assert error.field == "direction"
    assert "left, right, top, bottom or all" in error.limit


@pytest.mark.parametrize("ratio", [1, 0.5, 0, -1, 3.0001, math.nan, math.inf, True, "2", None])
def test_a_direction_ratio_is_above_1_and_at_most_3(ratio: float) -> None:
    """A ratio must be above 1, and at most 3 because of the limit on the area."""
    assert refused(lambda: Towards("left", ratio)).field == "ratio"


def test_the_documented_examples_are_possible() -> None:
    """Every documented example of a direction stays within three times the area."""
    for direction, ratio in (("right", 1.5), ("all", 1.3), ("top,bottom", 1.4), ("all", 1.5)):
        assert within_rules(Towards(direction, ratio).ratios())


# The vendor's helper


def test_the_helper_reproduces_the_vendors_example() -> None:
    """The vendor's example gives exactly the documented string."""
    assert calculate_expansion_ratios(100, 100, 3, 16 / 9) == "0.1495,0.1495,0.6547,0.6547"


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.floats(1, 3), st.floats(0.1, 10))
def test_the_helper_agrees_with_the_formula_or_names_an_area(
    width: int, height: int, area: float, aspect: float
) -> None:
    """If no value is negative, the string equals the plain formula to four decimals."""
    across = (math.sqrt(area * width * height * aspect) / width - 1) / 2
    down = (math.sqrt(area * width * height / aspect) / height - 1) / 2
    try:
        text = calculate_expansion_ratios(width, height, area, aspect)
    except GeometryError as error:
        assert min(across, down) < 1e-8
        if error.field == "area":
            calculate_expansion_ratios(width, height, numbers(error.limit)[0], aspect)
        return
    assert re.fullmatch(r"(\d\.\d{4},){3}\d\.\d{4}", text)
    for expected, actual in zip((down, down, across, across), text.split(","), strict=True):
        assert abs(expected - float(actual)) <= 0.51e-4


def test_the_helper_has_no_negative_zero() -> None:
    """The smallest area for an aspect gives a plain zero on the other axis."""
    assert calculate_expansion_ratios(100, 100, 16 / 9, 16 / 9) == "0.0000,0.0000,0.3889,0.3889"


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 1, 2, 1),
        (1, -1, 2, 1),
        (1, 1, 0, 1),
        (1, 1, 4, 1),
        (1, 1, math.nan, 1),
        (1, "1", 2, 1),
        (1, 1, 2, 0),
        (1, 1, 1, 1),
        (1, math.inf, 2, 1),
        (100, 100, 1.2, 16 / 9),
        (1, 9, 3, 9),
    ],
)
def test_the_helper_refuses_what_cannot_be_expanded(arguments: tuple[float, float, float, float]) -> None:
    """Impossible values raise `GeometryError`."""
    assert " must " in str(refused(lambda: calculate_expansion_ratios(*arguments)))


# Ratios


@given(FRACTION, FRACTION, FRACTION, FRACTION)
def test_ratios_are_exactly_those_within_the_rules(up: float, down: float, left: float, right: float) -> None:
    """Ratios are valid if and only if they add something and the area is at most 3 (+1e-3)."""
    area = (1 + up + down) * (1 + left + right)
    if 1 + 1e-9 < area <= 3.001:
        assert area == Ratios(up, down, left, right).area
    else:
        assert refused(lambda: Ratios(up, down, left, right)).field == "ratios"


@given(FRACTION, FRACTION, FRACTION, FRACTION)
def test_the_factor_in_the_error_is_the_greatest_valid_one(
    up: float, down: float, left: float, right: float
) -> None:
    """The factor in the error makes the ratios fit, and uses nearly all of the allowed area."""
    assume((1 + up + down) * (1 + left + right) > 3.0011)
    factor = float(refused(lambda: Ratios(up, down, left, right)).advice.split()[-1])
    fitted = Ratios(up * factor, down * factor, left * factor, right * factor)
    assert 2.999 < fitted.area <= 3 + 1e-9


@pytest.mark.parametrize("side", ["up", "down", "left", "right"])
@pytest.mark.parametrize(
    "value",
    [-0.1, 2.0001, math.nan, math.inf, -math.inf, True, "1", None, pytest.param(10**400, id="huge"), 1j, [1]],
)
def test_a_side_must_be_a_number_from_0_to_2(side: str, value: float) -> None:
    """An invalid side is refused by name."""
    assert side == refused(lambda: Ratios(**{side: value})).field


def test_any_real_number_becomes_a_float() -> None:
    """Integers and fractions are accepted, and a negative zero becomes zero."""
    ratios = Ratios(1, 0, Fraction(1, 4), -0.0)  # type: ignore[arg-type]  # a Fraction is no float to mypy
    assert [repr(side) for side in (1.0, ratios.down, ratios.left, ratios.right)] == [
        "1.0",
        "0.0",
        "0.25",
        "0.0",
    ]
    assert isinstance(ratios.up, float)


def test_ratios_are_the_same_for_every_photo() -> None:
    """`Ratios` need no size and return themselves."""
    ratios = Ratios(right=0.5)
    assert not ratios.needs_size
    assert ratios.ratios() == ratios.ratios(640, 480) == ratios


def test_ratios_that_add_nothing_are_refused() -> None:
    """Ratios that add nothing are refused, because the task would be paid for."""
    for attempt in (Ratios, lambda: Ratios(0, 0, 0, 0), lambda: Ratios(up=1e-300)):
        assert "must add something" in str(refused(attempt))


def test_the_vendors_rounding_is_accepted() -> None:
    """An area of 3.00008 is accepted, because the vendor's helper rounds to it."""
    up, down, left, right = map(float, calculate_expansion_ratios(100, 100, 3, 3 / 2).split(","))
    assert Ratios(up, down, left, right).area > MAX_AREA


# Canvas


@given(FOUR, ANY_SIDE, ANY_SIDE)
def test_the_original_stays_whole_and_inside_its_canvas(
    sides: tuple[float, float, float, float], width: int, height: int
) -> None:
    """At its own scale the original keeps its size, and its position is exact to within a pixel."""
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
def test_the_box_scales_to_a_result_of_any_size(
    sides: tuple[float, float, float, float], size: tuple[int, int], result: tuple[int, int]
) -> None:
    """Each edge of the scaled box is inside the result and within half a pixel of the exact edge."""
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
    """Sizes of zero or fractional pixels raise an error."""
    assert refused(lambda: Ratios(up=1).canvas(*size)).field in {"width", "height"}
    assert refused(lambda: Ratios(up=1).canvas(300, 300).scaled(*size)).field in {"width", "height"}


def test_a_canvas_is_rounded_to_the_nearest_pixel() -> None:
    """Halves are rounded up, on the canvas and in the box."""
    canvas = Ratios(up=1 / 16, left=1 / 32, right=1 / 32).canvas(104, 100)
    assert (canvas.width, canvas.height, canvas.box) == (111, 106, (3, 6, 107, 106))
    result = Ratios(right=0.5).canvas(640, 480).scaled(1664, 832)
    assert (result.width, result.height, result.box) == (1664, 832, (0, 0, 1109, 832))


def test_the_expected_size_is_the_observed_one() -> None:
    """The only observed result of the service has the expected size."""
    assert Ratios(right=0.5).canvas(640, 480).expected_size == (1664, 832)
    assert ToAspect("16:9").ratios(600, 400).canvas(600, 400).expected_size == (1536, 864)


@given(SIDE, SIDE, st.tuples(*[st.sampled_from([0, 0.1, 0.25, 0.5])] * 4))
@example(480, 855, (0.25, 0.5, 0.25, 0.25))  # a multiple of 32 that is exactly one pixel off
def test_the_expected_size_is_that_of_the_emulator(
    width: int, height: int, sides: tuple[float, float, float, float]
) -> None:
    """The emulator's results have the expected size: the canvas's aspect and the pixels of the 1K tier."""
    assume(
        0.4 <= width / height <= 2.5
        and any(sides)
        and math.prod((1 + sum(sides[:2]), 1 + sum(sides[2:]))) <= 3
    )
    found = Ratios(*sides).canvas(width, height).expected_size
    emulated = fit_canvas(width, height, sides)
    assert max(abs(found[0] - emulated.width), abs(found[1] - emulated.height)) <= 1


# Several passes


@given(SIDE, SIDE, st.lists(st.tuples(*[st.floats(0.01, 0.3)] * 4), min_size=1, max_size=3))
def test_passes_add_up(width: int, height: int, passes: list[tuple[float, float, float, float]]) -> None:
    """The canvas of several passes equals expanding each result in turn, and keeps the photo's size."""
    steps = [Ratios(*sides) for sides in passes]
    whole = chained_canvas(width, height, steps)
    across = math.prod(1 + each.left + each.right for each in steps)
    along = math.prod(1 + each.up + each.down for each in steps)
    assert (whole.width, whole.height) == pytest.approx((width * across, height * along), abs=0.51)
    left, top, right, bottom = whole.box
    assert (right - left, bottom - top) == (width, height)
    x = y = 0.0  # the left and top edges in pixels, followed through the passes
    wide, high = float(width), float(height)
    for each in steps:
        x, y = x + each.left * wide, y + each.up * high
        wide, high = wide * (1 + each.left + each.right), high * (1 + each.up + each.down)
    assert (left, top) == pytest.approx((x, y), abs=1.01)
    if len(steps) == 1:
        assert whole == steps[0].canvas(width, height)


PORTRAIT = (1080, 1920)
LARGER: st.SearchStrategy[Geometry] = st.one_of(
    st.builds(ToAspect, st.floats(0.2, 5), st.none(), ANCHOR),
    st.builds(ToSize, st.integers(300, 9000), st.integers(300, 9000), ANCHOR),
    st.builds(Padding, *[st.integers(0, 3000)] * 4),
)


@given(st.integers(300, 3000), st.integers(300, 3000), LARGER, st.integers(1, 4))
def test_passes_reach_the_geometry_within_the_limits(
    width: int, height: int, geometry: Geometry, passes: int
) -> None:
    """The passes add up to the geometry, are as few as the area allows, and each pass can be sent."""
    try:
        steps = plan(width, height, geometry, passes)
    except GeometryError:
        return
    assert 1 <= len(steps) <= passes
    assert all(within_rules(step) for step in steps)
    canvas = chained_canvas(width, height, steps)
    up, down, left, right = geometry.sides(width, height)  # type: ignore[attr-defined]
    assert canvas.width == pytest.approx(width * (1 + left + right), abs=1)
    assert canvas.height == pytest.approx(height * (1 + up + down), abs=1)
    assert canvas.box[:2] == pytest.approx((left * width, up * height), abs=1.01)
    if len(steps) > 1:
        assert len(set(steps)) == 1
        assert refused(lambda: geometry.ratios(width, height))
        assert math.prod(step.area for step in steps) > 3 ** (len(steps) - 1)
    for done in range(1, len(steps)):
        wide, high = chained_canvas(width, height, steps[:done]).expected_size
        assert min(wide, high) >= 300
        assert max(wide, high) <= 2.5 * min(wide, high)


def test_a_portrait_becomes_a_landscape_in_two_passes() -> None:
    """9:16 to 16:9 needs 3.16 times the area. One pass is refused, and the error advises two."""
    wanted = ToAspect("16:9", anchor="left")
    assert refused(lambda: wanted.ratios(*PORTRAIT)).advice == PASSES_ADVICE.format(2)
    first, second = plan(*PORTRAIT, wanted)
    assert first == second
    assert first.area == pytest.approx(math.sqrt(256 / 81))
    assert (first.left, first.up, first.down) == (0, 0, 0)
    canvas = chained_canvas(*PORTRAIT, [first, second])
    assert (canvas.width, canvas.height, canvas.box) == (3413, 1920, (0, 0, 1080, 1920))


@pytest.mark.parametrize("geometry", [ToSize(4000, 4000), Padding(left=1500, up=2000)])
def test_a_canvas_that_is_too_large_suggests_passes(geometry: Geometry) -> None:
    """The error for a canvas that is too large names the sizes that fit and the number of passes needed."""
    assert refused(lambda: geometry.ratios(*PORTRAIT)).advice.endswith(PASSES_ADVICE.format(2))
    assert len(plan(*PORTRAIT, geometry)) == 2


@pytest.mark.parametrize(
    ("geometry", "passes"),
    [
        (ToAspect("16:9"), 1),
        (ToAspect("16:9", area=3), 2),  # one pass gives an area of 3
        (ToAspect(40.0), 2),
        (ToSize(1080, 1920), 2),  # nothing to add
        (ToSize(100, 4000), 2),  # nothing is cut off
    ],
)
def test_a_geometry_that_passes_cannot_reach_is_refused(geometry: Geometry, passes: int) -> None:
    """Too few passes, a given area, and a canvas that is no larger raise the same error as one pass."""
    error = refused(lambda: plan(*PORTRAIT, geometry, passes))
    assert str(error) == str(refused(lambda: geometry.ratios(*PORTRAIT)))


@pytest.mark.parametrize("passes", [0, 5, True, 1.5, "2"])
def test_the_number_of_passes_is_checked(passes: Any) -> None:
    """The number of passes is a whole number from 1 to 4."""
    assert refused(lambda: plan(*PORTRAIT, ToAspect(1), passes)).field == "passes"
