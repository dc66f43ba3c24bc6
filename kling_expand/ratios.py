"""What does the service take? Four ratios within its rules, and the canvas they make; pure arithmetic.

Rules (official documentation): up and down are multiples of the original's height, left and
right of its width; each lies in [0, 2]; the new area is at most three times the old one.
All four zero is refused here, because there would be nothing to pay for.
"""

import math
from numbers import Real
from typing import Any, ClassVar

from attrs import field, frozen

from .errors import GeometryError

MAX_SIDE = 2.0  # (doc)
MAX_AREA = 3.0  # (doc)
AREA_TOLERANCE = 1e-3  # the vendor's helper rounds to four decimals, and so reaches 3.00008
NOISE = 1e-9  # what binary fractions may add to an exact result
ROUND_CEILING, ROUND_FLOOR = "ROUND_CEILING", "ROUND_FLOOR"  # as `decimal` has them
MAX_PIXELS = 2**31 - 1  # the longest side a PNG can state


def real(value: float) -> float:
    """A real number as a float; whatever else it is, is left for the validator to name."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return value
    try:
        return float(value) + 0.0  # and never a negative zero
    except OverflowError:
        return math.inf


def _side(_ratios: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, float) or not 0 <= value <= MAX_SIDE:
        raise GeometryError(attribute.name, repr(value), "each side grows by a number from 0 to 2")


@frozen
class Canvas:
    """The expanded picture's size in pixels, and where the original lies in it.

    `box` is (left, top, right, bottom) in whole pixels, right and bottom exclusive;
    `frame` the same four as exact fractions of the width and the height.
    """

    width: int
    height: int
    box: tuple[int, int, int, int]
    frame: tuple[float, float, float, float] = field(repr=False)

    def scaled(self, width: int, height: int) -> "Canvas":
        """The same picture at another size, say that of the service's result.

        The service rescales to about a 1K tier. Each edge is rounded to the nearest pixel, halves upwards.
        """
        check_size(width, height)
        left, top, right, bottom = self.frame
        box = (nearest(left * width), nearest(top * height), nearest(right * width), nearest(bottom * height))
        return Canvas(width, height, box, self.frame)


@frozen
class Ratios:
    """How far each side grows: up and down in original heights, left and right in widths.

    Raises `GeometryError` for a side outside [0, 2], an area above 3 (1e-3 more is let pass,
    as the vendor's own helper needs it) and for four zeros.
    """

    needs_size: ClassVar[bool] = False

    up: float = field(default=0.0, converter=real, validator=_side)
    down: float = field(default=0.0, converter=real, validator=_side)
    left: float = field(default=0.0, converter=real, validator=_side)
    right: float = field(default=0.0, converter=real, validator=_side)

    def __attrs_post_init__(self) -> None:
        if self.area <= 1 + NOISE:
            raise GeometryError(
                "ratios", self._numbers(), "nothing is added: at least one side must be above 0"
            )
        if self.area > MAX_AREA + AREA_TOLERANCE:
            fit = _fitting(self.left + self.right, self.up + self.down)
            value = f"{self._numbers()}, {self.area:.4f} times the area,"
            raise GeometryError(
                "ratios", value, f"at most 3 times is allowed; all four times {fit} would fit"
            )

    @property
    def area(self) -> float:
        """The new area as a multiple of the old one."""
        return (1 + self.up + self.down) * (1 + self.left + self.right)

    def ratios(self, width: int = 0, height: int = 0) -> "Ratios":  # noqa: ARG002  (the protocol asks)
        """These ratios, whatever the photo's size."""
        return self

    def canvas(self, width: int, height: int) -> Canvas:
        """The expanded picture at the scale of an original of *width* by *height* pixels.

        The new size and the original's left and top edge are rounded to the nearest pixel,
        halves upwards; the original keeps its size and stays inside.
        """
        check_size(width, height)
        across, down = 1 + self.left + self.right, 1 + self.up + self.down
        new_width, new_height = nearest(width * across), nearest(height * down)
        left = min(nearest(width * self.left), new_width - width)
        top = min(nearest(height * self.up), new_height - height)
        ends = (1 + self.left) / across, (1 + self.up) / down
        frame = (self.left / across, self.up / down, *ends)
        return Canvas(new_width, new_height, (left, top, left + width, top + height), frame)

    def _numbers(self) -> str:
        return f"up {self.up:g}, down {self.down:g}, left {self.left:g}, right {self.right:g}"


def _fitting(wider: float, higher: float) -> str:
    """The greatest factor under which both growths stay within three times the area."""
    linear, square = wider + higher, wider * higher
    # The positive root of (1 + t*wider)(1 + t*higher) = 3, in the form that also holds for square = 0.
    return shown(4 / (linear + math.sqrt(linear * linear + 8 * square)), ROUND_FLOOR)


def check_size(width: int, height: int) -> None:
    """Refuse what is no picture's size, by the name of the side."""
    for name, value in (("width", width), ("height", height)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_PIXELS:
            raise GeometryError(name, repr(value), "a whole number of pixels from 1 is needed")


def nearest(value: float) -> int:
    """The nearest whole number, halves upwards."""
    return math.floor(value + 0.5)


def shown(value: float, rounding: str) -> str:
    """Five digits, rounded to the side on which the number still holds when it is typed back."""
    from decimal import Context  # here, as it is only asked for in a message

    return format(Context(prec=5, rounding=rounding).create_decimal_from_float(value).normalize(), "f")
