"""The geometry of an expansion: the four ratios of the API, and classes that compute them.

========================  =====================================================  ==========
`Ratios`                  the four numbers of the API                            any photo
`Towards`                 the direction dialect: sides, and one ratio            any photo
`ToAspect`                a shape such as 16:9, with the least or a given area   needs size
`ToSize`                  a canvas in pixels of the original                     needs size
`Padding`                 pixels to add on each side                             needs size
========================  =====================================================  ==========

Rules (documented): up and down are multiples of the original's height, left and right of its width.
Each is in [0, 2], and the new area is at most three times the old one. Four zeros are invalid here, because
nothing would be expanded.
"""

import math
import re
from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar, Literal, Protocol, get_args

from attrs import field, frozen

from .errors import GeometryError

__all__ = [
    "Anchor",
    "Canvas",
    "Expansion",
    "Geometry",
    "Padding",
    "Ratios",
    "ToAspect",
    "ToSize",
    "Towards",
    "calculate_expansion_ratios",
    "chained_canvas",
    "parse_aspect",
    "parse_direction",
    "plan",
    "shape_name",
]

MAX_SIDE = 2.0  # (doc)
MAX_AREA = 3.0  # (doc)
MAX_PASSES = 4  # each pass is billed
PASSES_ADVICE = "use passes={0} (--passes {0} in the shell)"
MIN_INPUT_SIDE = 300  # minimum side of a photo in pixels (doc), and so of a result that is expanded again
MAX_INPUT_ASPECT = 2.5  # longer over shorter side of a photo (doc)
AREA_TOLERANCE = 1e-3  # the vendor's helper rounds to four decimals and can reach 3.00008
NOISE = 1e-9  # the rounding error of binary fractions
ROUND_CEILING, ROUND_FLOOR = "ROUND_CEILING", "ROUND_FLOOR"  # the values in `decimal`
MAX_PIXELS = 2**31 - 1  # the longest side that a PNG can have
TIER = 1664 * 832  # approximate pixels of a result (observed once: 640x480 with right 0.5 became 1664x832)
TIER_STEP = 32  # pixels; the sides of a result are multiples of it (observed)
TIER_MAX_SIDE = 4096  # pixels (inferred)
_PIXEL = 1 + 1e-9  # one pixel, with room for the rounding error of an aspect


Sides = tuple[float, float, float, float]  # growth up, down, left and right, possibly beyond the limits


def real(value: float) -> float:
    """Return a real number as a float, and anything else unchanged, so that the validator refuses it."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return value
    try:
        return float(value) + 0.0  # turns a negative zero into zero
    except OverflowError:
        return math.inf


def _side(_ratios: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, float) or not 0 <= value <= MAX_SIDE:
        raise GeometryError(attribute.name, repr(value), "must be a number between 0 and 2")


@frozen
class Canvas:
    """The size of the expanded picture in pixels, and the position of the original in it.

    `box` is (left, top, right, bottom) in whole pixels, right and bottom exclusive. `frame` has the same four
    values as exact fractions of the width and the height.
    """

    width: int
    height: int
    box: tuple[int, int, int, int]
    frame: tuple[float, float, float, float] = field(repr=False)

    @property
    def expected_size(self) -> tuple[int, int]:
        """The expected width and height of the service's picture in pixels (inferred).

        The service scales every result to about 1K, whatever the size of the photo. The aspect is kept.
        """
        (x0, y0, x1, y1), (left, top, right, bottom) = self.box, self.frame
        aspect = (x1 - x0) / (right - left) * (bottom - top) / (y1 - y0)  # before rounding to pixels
        candidates = [
            (TIER_STEP * nearest(height * aspect / TIER_STEP), height)
            for height in range(TIER_STEP, TIER_MAX_SIDE + 1, TIER_STEP)
        ]
        fitting = [
            (width, height)
            for width, height in candidates
            if abs(width - height * aspect) <= _PIXEL and abs(height - width / aspect) <= _PIXEL
            if width <= TIER_MAX_SIDE and 0.8 <= width * height / TIER <= 1.25
        ]
        if fitting:
            return min(fitting, key=lambda size: abs(size[0] * size[1] - TIER))
        stretch = max(aspect, 1 / aspect)
        short = max(1, min(nearest(math.sqrt(TIER / stretch)), int(TIER_MAX_SIDE / stretch)))
        long = min(TIER_MAX_SIDE, nearest(short * stretch))
        return (long, short) if aspect >= 1 else (short, long)

    @property
    def sides(self) -> Sides:
        """The ratios up, down, left and right, which may be those of several passes combined."""
        left, top, right, bottom = self.frame
        width, height = right - left, bottom - top
        return top / height, (1 - bottom) / height, left / width, (1 - right) / width

    def scaled(self, width: int, height: int) -> "Canvas":
        """Return the same canvas at another size, such as that of the service's result.

        Each edge is rounded to the nearest pixel, with halves rounded up.
        """
        check_size(width, height)
        left, top, right, bottom = self.frame
        box = (nearest(left * width), nearest(top * height), nearest(right * width), nearest(bottom * height))
        return Canvas(width, height, box, self.frame)


@frozen
class Ratios:
    """The growth of each side: `up` and `down` in heights of the original, `left` and `right` in widths.

    Raises:
        GeometryError: if a side is outside [0, 2], if all four are 0, or if the new area is above 3 times
            the old one. (The tolerance is 1e-3, which the vendor's helper needs.)
    """

    needs_size: ClassVar[bool] = False

    up: float = field(default=0.0, converter=real, validator=_side)
    down: float = field(default=0.0, converter=real, validator=_side)
    left: float = field(default=0.0, converter=real, validator=_side)
    right: float = field(default=0.0, converter=real, validator=_side)

    def __attrs_post_init__(self) -> None:
        if self.area <= 1 + NOISE:
            raise GeometryError("ratios", self._numbers(), "must add something on at least one side")
        if self.area > MAX_AREA + AREA_TOLERANCE:
            fit = _fitting(self.left + self.right, self.up + self.down)
            value = f"{self.area:.4f} times ({self._numbers()})"
            advice = f"multiply all four by {fit}"
            raise GeometryError("ratios", value, "must give at most 3 times the area", advice)

    @property
    def area(self) -> float:
        """The new area as a multiple of the old one."""
        return (1 + self.up + self.down) * (1 + self.left + self.right)

    def ratios(self, width: int = 0, height: int = 0) -> "Ratios":  # noqa: ARG002 - as in the protocol
        """Return these ratios, whatever the *width* and *height* of the photo."""
        return self

    def canvas(self, width: int, height: int) -> Canvas:
        """Return the canvas of an original of *width* by *height* pixels, at the original's scale.

        The new size and the original's left and top edges are rounded to the nearest pixel, with halves
        rounded up. The original keeps its size and stays inside.
        """
        return _canvas(width, height, (self.up, self.down, self.left, self.right))

    def _numbers(self) -> str:
        return f"up {self.up:g}, down {self.down:g}, left {self.left:g}, right {self.right:g}"


def chained_canvas(width: int, height: int, passes: Sequence[Ratios]) -> Canvas:
    """Return the canvas after several passes, each of which expands the result of the previous one.

    It has the scale of the first photo, which has *width* by *height* pixels. Its box is the position of that
    photo.
    """
    up = down = left = right = 0.0
    for each in passes:
        across, along = 1 + left + right, 1 + up + down
        up, down = up + each.up * along, down + each.down * along
        left, right = left + each.left * across, right + each.right * across
    return _canvas(width, height, (up, down, left, right))


def _canvas(width: int, height: int, sides: Sides) -> Canvas:
    check_size(width, height)
    up, down, left, right = sides
    across, along = 1 + left + right, 1 + up + down
    new_width, new_height = nearest(width * across), nearest(height * along)
    x = min(nearest(width * left), new_width - width)
    y = min(nearest(height * up), new_height - height)
    frame = (left / across, up / along, (1 + left) / across, (1 + up) / along)
    return Canvas(new_width, new_height, (x, y, x + width, y + height), frame)


def _fitting(wider: float, higher: float) -> str:
    """Return the largest factor by which both growths can be multiplied within three times the area."""
    linear, square = wider + higher, wider * higher
    # The positive root of (1 + t*wider)(1 + t*higher) = 3, in the form that also holds for square = 0.
    return shown(4 / (linear + math.sqrt(linear * linear + 8 * square)), ROUND_FLOOR)


def check_size(width: int, height: int) -> None:
    """Raise `GeometryError` for a side that is not a positive whole number of pixels."""
    for name, value in (("width", width), ("height", height)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_PIXELS:
            raise GeometryError(name, repr(value), "must be a whole number of pixels, at least 1")


def nearest(value: float) -> int:
    """Return the nearest whole number, with halves rounded up."""
    return math.floor(value + 0.5)


def shown(value: float, rounding: str) -> str:
    """Return *value* with five significant digits, rounded in the direction *rounding*."""
    from decimal import Context  # imported here, as only messages need it

    return format(Context(prec=5, rounding=rounding).create_decimal_from_float(value).normalize(), "f")


# The position of the original in the new picture: "left" puts it at the left, so the right side grows.
Anchor = Literal[
    "center", "left", "right", "top", "bottom", "top-left", "top-right", "bottom-left", "bottom-right"
]


class Geometry(Protocol):
    """A rule for the expansion of a photo of *width* by *height* pixels.

    If `needs_size` is False, the ratios are the same for every photo, and the size may be omitted.
    """

    needs_size: ClassVar[bool]

    def ratios(self, width: int, height: int) -> Ratios:
        """Return the four ratios for this photo, or raise `GeometryError` if there are none."""
        ...


def shape_name(geometry: Geometry) -> str:
    """Return a short name of a geometry for file names: ``16x9``, ``1920x1080``, ``right0.5``."""
    if isinstance(geometry, ToAspect):
        return _named(geometry.aspect).replace(":", "x")
    if isinstance(geometry, ToSize):
        return f"{geometry.width}x{geometry.height}"
    if isinstance(geometry, Towards):
        return f"{geometry.direction.replace(',', '-')}{geometry.ratio:.5g}"
    growth = {side: getattr(geometry, side, 0) for side in ("up", "down", "left", "right")}
    return "-".join(f"{side}{value:.5g}" for side, value in growth.items() if value) or "shape"


def parse_aspect(aspect: str | float | tuple[float, float]) -> float:
    """Return width over height from ``"16:9"``, ``"16x9"``, ``"1.78"``, ``16 / 9`` or ``(16, 9)``.

    Raises:
        GeometryError: if *aspect* has none of these forms, or is beyond 1:1000 or 1000:1.
    """
    parts: Sequence[Any] = aspect if isinstance(aspect, tuple) else (aspect, 1)
    if isinstance(aspect, str):
        parts = re.split("[:/x]", aspect if re.search("[:/x]", aspect) else f"{aspect}:1")
    try:
        width, height = (real(float(part) if isinstance(part, str) else part) for part in parts)
        value = width / height
    except (ValueError, TypeError, ZeroDivisionError):
        value = math.nan
    if any(isinstance(part, bool) for part in parts) or not 1e-3 <= value <= 1e3:
        limit = 'must be width over height, such as "16:9", 16 / 9 or (16, 9)'
        raise GeometryError("aspect", repr(aspect), limit)
    return value


def _anchor(_geometry: Any, _attribute: Any, value: Any) -> None:
    if value not in get_args(Anchor):
        raise GeometryError("anchor", repr(value), f"must be one of {', '.join(get_args(Anchor))}")


def _area(_geometry: Any, _attribute: Any, value: Any) -> None:
    if value is not None and (not isinstance(value, float) or not 1 <= value <= MAX_AREA):
        raise GeometryError("area", repr(value), "must be between 1 and 3 times the original's area")


def _optional_float(value: float | None) -> float | None:
    return None if value is None else real(value)


@frozen
class ToAspect:
    """An expansion to an `aspect`, width over height, such as ``"16:9"``, ``16 / 9`` or ``(16, 9)``.

    Without `area`, it is the smallest expansion to that aspect, which grows along one axis. With `area`, the
    result has that multiple of the original's area, 1 to 3, as in the vendor's helper. `anchor` is the
    position of the original in the result: ``center``, ``left``, ``right``, ``top``, ``bottom``, or a corner
    such as ``top-left``.

    Raises:
        GeometryError: if an argument is invalid.
    """

    needs_size: ClassVar[bool] = True

    aspect: float = field(converter=parse_aspect)
    area: float | None = field(default=None, converter=_optional_float, validator=_area)
    anchor: Anchor = field(default="center", validator=_anchor)

    def ratios(self, width: int, height: int) -> Ratios:
        """Return exact ratios for a photo of *width* by *height* pixels.

        Raises:
            GeometryError: if there are none. The message names the possible areas or aspects. Without `area`,
                this includes a photo that already has the aspect to within half a pixel.
        """
        check_size(width, height)
        across, down = _growth(width, height, self.aspect, self.area)
        if self.area is None and (nearest(width * across), nearest(height * down)) == (width, height):
            raise _nothing_to_add(width, height, self.aspect)
        return Ratios(*_placed(across - 1, down - 1, self.anchor))

    def sides(self, width: int, height: int) -> Sides:
        """Return the least growth of a *width* by *height* photo, ignoring the limits of one pass."""
        stretch = self.aspect * height / width
        return _placed(max(1.0, stretch) - 1, max(1.0, 1 / stretch) - 1, self.anchor)


@frozen
class ToSize:
    """An expansion to a canvas of `width` by `height` pixels, at the original's scale.

    `anchor` is the position of the original in the result: ``center``, ``left``, ``right``, ``top``,
    ``bottom``, or a corner such as ``top-left``.

    Raises:
        GeometryError: if an argument is invalid.
    """

    needs_size: ClassVar[bool] = True

    width: int
    height: int
    anchor: Anchor = field(default="center", validator=_anchor)

    def __attrs_post_init__(self) -> None:
        check_size(self.width, self.height)

    def ratios(self, width: int, height: int) -> Ratios:
        """Return exact ratios for a photo of *width* by *height* pixels.

        Raises:
            GeometryError: if the canvas is not larger than the photo, or is above 3 times its area.
        """
        check_size(width, height)
        for name, wanted, current in (("width", self.width, width), ("height", self.height, height)):
            if wanted < current:
                limit = f"must be at least {current}, because the photo is never cropped"
                raise GeometryError(name, wanted, limit)
        _check_canvas(width, height, self.width, self.height)
        return Ratios(*self.sides(width, height))

    def sides(self, width: int, height: int) -> Sides:
        """Return the growth of each side of a *width* by *height* photo, ignoring the limits of one pass."""
        return _placed((self.width - width) / width, (self.height - height) / height, self.anchor)


def _pixels(_padding: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PIXELS:
        raise GeometryError(attribute.name, repr(value), "must be a whole number of pixels, at least 0")


@frozen
class Padding:
    """An expansion by `up`, `down`, `left` and `right` pixels, at the original's scale.

    Raises:
        GeometryError: if an argument is invalid.
    """

    needs_size: ClassVar[bool] = True

    up: int = field(default=0, validator=_pixels)
    down: int = field(default=0, validator=_pixels)
    left: int = field(default=0, validator=_pixels)
    right: int = field(default=0, validator=_pixels)

    def ratios(self, width: int, height: int) -> Ratios:
        """Return exact ratios for a photo of *width* by *height* pixels.

        Raises:
            GeometryError: if nothing is added, or the area is above 3 times that of the photo.
        """
        check_size(width, height)
        _check_canvas(width, height, width + self.left + self.right, height + self.up + self.down)
        return Ratios(*self.sides(width, height))

    def sides(self, width: int, height: int) -> Sides:
        """Return the growth of each side of a *width* by *height* photo, ignoring the limits of one pass."""
        return self.up / height, self.down / height, self.left / width, self.right / width


_SIDES = {"left": "left", "right": "right", "top": "up", "bottom": "down"}


def parse_direction(direction: str) -> str:
    """Return the sides in *direction* in canonical order, joined by commas. ``all`` replaces the others.

    Raises:
        GeometryError: if *direction* is empty or contains an unknown word.
    """
    words = [word.strip().lower() for word in direction.split(",")] if isinstance(direction, str) else []
    if not words or not set(words) <= {*_SIDES, "all"}:
        limit = "must be left, right, top, bottom or all, or several joined by commas"
        raise GeometryError("direction", repr(direction), limit)
    return "all" if "all" in words else ",".join(word for word in _SIDES if word in words)


@frozen
class Towards:
    """An expansion as in the direction dialect: ``Towards("left,right", ratio=1.5)``.

    The API calls the two `direction` and `expansion_ratio`, but does not define the ratio. Here it is the new
    length over the old length of each axis that has a named side. The growth is split evenly between the
    named sides of an axis. So ``right`` 1.5 adds 0.5 on the right, ``left,right`` 1.5 adds 0.25 on each of
    the two, and ``all`` 1.5 adds 0.25 on each of the four. The documented examples stay within three times
    the area only with this interpretation (inferred).

    Raises:
        GeometryError: if an argument is invalid, or the new area is above 3 times the old one.
    """

    needs_size: ClassVar[bool] = False

    direction: str = field(converter=parse_direction)
    ratio: float = field(default=1.5, converter=real)

    def __attrs_post_init__(self) -> None:
        sides = self._sides()
        both = bool({"left", "right"} & sides and {"up", "down"} & sides)
        max_ratio = math.sqrt(MAX_AREA + AREA_TOLERANCE) if both else MAX_AREA
        if not isinstance(self.ratio, float) or not 1 + 2 * NOISE < self.ratio <= max_ratio:
            bounds = f"above 1 and at most {shown(max_ratio, ROUND_FLOOR)}"
            limit = f"must be {bounds} for the direction {self.direction}"
            raise GeometryError("ratio", repr(self.ratio), limit)

    def _sides(self) -> set[str]:
        words = _SIDES if self.direction == "all" else self.direction.split(",")
        return {_SIDES[word] for word in words}

    def ratios(self, width: int = 0, height: int = 0) -> Ratios:  # noqa: ARG002 - as in the protocol
        """Return the ratios, which do not depend on the photo's *width* and *height*."""
        sides = self._sides()
        pairs = (("left", "right"), ("up", "down"))
        counts = {side: len(sides.intersection(pair)) for pair in pairs for side in pair if side in sides}
        return Ratios(**{side: (self.ratio - 1) / shared for side, shared in counts.items()})


# The geometry of a create: ratios in the editing dialect, a direction in the direction dialect.
Expansion = Ratios | Towards


def calculate_expansion_ratios(
    width: float, height: float, area_multiplier: float, aspect_ratio: float
) -> str:
    """Return ``"up,down,left,right"`` with four decimals, centered, as the vendor's helper does.

    A photo of *width* by *height* pixels grows to *area_multiplier* times its area at *aspect_ratio*, which
    is width over height. For example, ``calculate_expansion_ratios(100, 100, 3, 16 / 9)`` returns
    ``"0.1495,0.1495,0.6547,0.6547"``.

    Raises:
        GeometryError: if an argument is invalid, or if the vendor's result would be negative, zero or too
            large. The message then names a possible area.
    """
    for name, value in (("width", width), ("height", height), ("area_multiplier", area_multiplier)):
        if not isinstance(real(value), float) or not 0 < value < MAX_PIXELS:
            raise GeometryError(name, repr(value), "must be a positive number")
    across, down = _growth(width, height, parse_aspect(aspect_ratio), area_multiplier)
    vertical, horizontal = f"{(down - 1) / 2:.4f}", f"{(across - 1) / 2:.4f}"
    return f"{vertical},{vertical},{horizontal},{horizontal}"


def _growth(width: float, height: float, aspect: float, area: float | None) -> tuple[float, float]:
    """Return the new width and height as multiples (≥ 1) of the old ones. *area* may be None."""
    stretch = aspect * height / width
    least = max(stretch, 1 / stretch)
    if least > MAX_AREA + NOISE:
        raise _too_far(width, height, aspect, least, passes=area is None)
    if area is None:
        area = least
    if not least - NOISE <= area <= MAX_AREA + NOISE:
        bounds = f"{shown(least, ROUND_CEILING)} and 3"
        limit = f"must be between {bounds} to expand {width}x{height} to {_named(aspect)}"
        raise GeometryError("area", f"{area:g}", limit)
    across, down = max(1.0, math.sqrt(area * stretch)), max(1.0, math.sqrt(area / stretch))
    if across * down <= 1 + 2 * NOISE:
        raise _nothing_to_add(width, height, aspect)
    return min(across, 3.0), min(down, 3.0)


def _too_far(width: float, height: float, aspect: float, least: float, *, passes: bool) -> GeometryError:
    named, low, high = _named(aspect), width / height / MAX_AREA, width / height * MAX_AREA
    end = int(named.partition(":")[2] or 1)  # so that the limits are written as the aspect is
    bounds = [shown(low * end, ROUND_CEILING), shown(high * end, ROUND_FLOOR)]
    allowed = " and ".join(f"{each}:{end}" if ":" in named else each for each in bounds)
    limit = f"must be between {allowed} for a photo of {width}x{height}, as one task allows 3 times the area"
    value = f"{named}, which needs {shown(least, ROUND_CEILING)} times"
    stretch = aspect * height / width
    sides = _placed(max(1.0, stretch) - 1, max(1.0, 1 / stretch) - 1, "center")
    return GeometryError("aspect", value, limit, _possible(width, height, sides) if passes else "")


def _nothing_to_add(width: float, height: float, aspect: float) -> GeometryError:
    stretch = aspect * height / width
    least = shown(max(stretch, 1 / stretch), ROUND_CEILING)
    limit = f"must differ from that of the {width}x{height} photo, so that there is something to add"
    advice = f"use another aspect, or an area above {least} and at most 3"
    return GeometryError("aspect", _named(aspect), limit, advice)


def _placed(wider: float, higher: float, anchor: str) -> Sides:
    """Return the growth of each side, given the growth of each axis and the anchor."""
    before = 0.0 if "left" in anchor else 1.0 if "right" in anchor else 0.5
    above = 0.0 if "top" in anchor else 1.0 if "bottom" in anchor else 0.5
    return higher * above, higher * (1 - above), wider * before, wider * (1 - before)


def _check_canvas(width: int, height: int, new_width: int, new_height: int) -> None:
    """Raise `GeometryError` unless the canvas is larger than the photo, up to three times its area."""
    max_pixels = 3 * width * height
    if new_width * new_height > max_pixels:
        options = [f"{max_pixels // new_height}x{new_height}"] if max_pixels // new_height >= width else []
        options += [f"{new_width}x{max_pixels // new_width}"] if max_pixels // new_width >= height else []
        options = options or [f"{3 * width}x{height}", f"{width}x{3 * height}"]
        limit = f"must be at most 3 times the area of {width}x{height}"
        sides = _placed(new_width / width - 1, new_height / height - 1, "center")
        advice = [f"{' or '.join(options)} fits", _possible(width, height, sides)]
        raise GeometryError("size", f"{new_width}x{new_height}", limit, ", or ".join(filter(None, advice)))
    if (new_width, new_height) == (width, height):
        limit = "must be larger than the photo"
        raise GeometryError("size", f"{width}x{height}", limit, f"for example {width + 1}x{height}")


def _named(aspect: float) -> str:
    """Return the aspect as a fraction of small numbers, such as ``16:9``, or else as a decimal."""
    from fractions import Fraction  # imported here, as only messages need it

    fraction = Fraction(aspect).limit_denominator(50)
    is_close = abs(fraction - Fraction(aspect)) < NOISE
    return f"{fraction.numerator}:{fraction.denominator}" if is_close else f"{aspect:.5g}"


# ---------------------------------------------------------------------------- several passes


def plan(width: int, height: int, geometry: Geometry, passes: int = 2) -> list[Ratios]:
    """Return the ratios of as few passes as possible, at most *passes*, that expand a photo to *geometry*.

    The photo has *width* by *height* pixels. Each pass expands the result of the previous one by the same
    factors. The expected size of each result but the last must be one that the service accepts for a photo.
    Only `ToAspect` without an area, `ToSize` and `Padding` can take more than one pass.

    Raises:
        GeometryError: if more passes are needed, or the geometry is impossible for this photo.
    """
    if not isinstance(passes, int) or isinstance(passes, bool) or not 1 <= passes <= MAX_PASSES:
        raise GeometryError("passes", repr(passes), f"must be between 1 and {MAX_PASSES}")
    check_size(width, height)
    try:
        return [geometry.ratios(width, height)]
    except GeometryError:
        match geometry:
            case ToSize() | Padding() | ToAspect(area=None):
                found = _equal_passes(width, height, geometry.sides(width, height))
            case _:
                found = []
        if not 1 < len(found) <= passes:
            raise
        return found


def _equal_passes(width: float, height: float, sides: Sides) -> list[Ratios]:
    """Return the fewest equal passes that add up to *sides*, or an empty list if there are none."""
    up, down, left, right = sides
    across, along = 1 + left + right, 1 + up + down
    if min(sides) < 0 or across * along <= 1 + NOISE:
        return []
    least = max(1, math.ceil(math.log(across * along, MAX_AREA) - NOISE))
    for count in range(least, MAX_PASSES + 1):
        wider, higher = across ** (1 / count) - 1, along ** (1 / count) - 1
        # Every pass divides its growth between opposite sides in the proportion of the whole expansion.
        above, before = up / (up + down or 1), left / (left + right or 1)
        step = Ratios(higher * above, higher * (1 - above), wider * before, wider * (1 - before))
        done = (chained_canvas(round(width), round(height), [step] * each) for each in range(1, count))
        sizes = [canvas.expected_size for canvas in done]
        if all(min(size) >= MIN_INPUT_SIDE and max(size) <= MAX_INPUT_ASPECT * min(size) for size in sizes):
            return [step] * count
    return []


def _possible(width: float, height: float, sides: Sides) -> str:
    """Return the advice for a growth that needs several passes, or an empty string."""
    found = _equal_passes(width, height, sides)
    return PASSES_ADVICE.format(len(found)) if len(found) > 1 else ""
