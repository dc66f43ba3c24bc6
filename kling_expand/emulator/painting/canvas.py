"""The canvas: the size of a result, and the position of the original in it.

A result has the requested aspect to within a pixel, but not the requested size. The service scales it to
about 1K, in multiples of 32 pixels (observed: 640x480 with right 0.5 became 1664x832).
"""

import math
from collections.abc import Iterator

from attrs import frozen

Ratios = tuple[float, float, float, float]  # up, down, left, right, in sides of the original

TIER = 1664 * 832  # approximate number of pixels of a result
MAX_SIDE = 4096  # pixels
_STEP = 32  # pixels
_PIXEL = 1 + 1e-9  # one pixel, with a margin for the rounding of floats
_NEAR_TIER = (0.8, 1.25)  # multiples of 32 are preferred within these factors of TIER


@frozen
class Canvas:
    """The width and height in pixels, and the box of the original: (left, top, right, bottom)."""

    width: int
    height: int
    box: tuple[int, int, int, int]


def fit_canvas(width: int, height: int, ratios: Ratios) -> Canvas:
    """Return the canvas of an original of *width* x *height* pixels, expanded by *ratios*.

    The service's limits are not checked.

    Raises:
        ValueError: if a side is below one pixel, or a ratio is negative or not finite.
    """
    if min(width, height) < 1 or not all(math.isfinite(ratio) and ratio >= 0 for ratio in ratios):
        raise ValueError(f"no canvas for {width}x{height} pixels expanded by {ratios}")
    up, down, left, right = ratios
    across, along = 1 + left + right, 1 + up + down
    canvas_width, canvas_height = _size(across * width / (along * height))
    x0, x1 = _span(canvas_width, left, across)
    y0, y1 = _span(canvas_height, up, along)
    return Canvas(canvas_width, canvas_height, (x0, y0, x1, y1))


def _span(length: int, before: float, total: float) -> tuple[int, int]:
    """Return the start and end of the original on one axis: at least one pixel, within the canvas."""
    start = min(round(length * before / total), length - 1)
    return start, max(start + 1, round(length * (before + 1) / total))


def _size(aspect: float) -> tuple[int, int]:
    sizes = _multiples_of_step(aspect)
    best = min(sizes, key=lambda size: abs(size[0] * size[1] - TIER), default=None)
    return best or _nearest(aspect)


def _multiples_of_step(aspect: float) -> Iterator[tuple[int, int]]:
    """Yield sizes in multiples of 32 near the tier, with each side within a pixel of the aspect."""
    for height in range(_STEP, MAX_SIDE + 1, _STEP):
        width = _STEP * round(height * aspect / _STEP)
        fits = max(abs(width - height * aspect), abs(height - width / aspect)) <= _PIXEL
        if fits and width <= MAX_SIDE and _NEAR_TIER[0] <= width * height / TIER <= _NEAR_TIER[1]:
            yield width, height


def _nearest(aspect: float) -> tuple[int, int]:
    """Return the size nearest to the tier. The long side is off by half a pixel at most."""
    stretch = max(aspect, 1 / aspect)
    short = max(1, min(round(math.sqrt(TIER / stretch)), int(MAX_SIDE / stretch)))
    long = min(MAX_SIDE, round(short * stretch))
    return (long, short) if aspect >= 1 else (short, long)
