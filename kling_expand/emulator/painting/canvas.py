"""How large is the result, and where in it does the original lie? Arithmetic only.

The aspect is exact and the size is not: the service scales results to about a "1K tier" of multiples of 32
(seen live: 640x480 with right 0.5 became 1664x832).
"""

import math
from collections.abc import Iterator

from attrs import frozen

TIER = 1664 * 832  # pixels of a result, about
LONGEST = 4096  # pixels of its longer side, at most
_STEP = 32
_NEAR = (0.8, 1.25)  # multiples of 32 are preferred only this near the tier's area


@frozen
class Canvas:
    """Width and height in pixels, and where the original lies in it: (left, top, right, bottom)."""

    width: int
    height: int
    box: tuple[int, int, int, int]


def canvas(  # noqa: PLR0917 — a size and the API's four sides, always given in this order
    width: int, height: int, up: float, down: float, left: float, right: float
) -> Canvas:
    """Fit an original of width x height pixels, expanded by ratios of its sides, into the 1K tier.

    Raises ValueError for a side below one pixel and for ratios that are negative or not finite. Whether the
    service would accept them is not asked here.
    """
    ratios = (up, down, left, right)
    if min(width, height) < 1 or not all(math.isfinite(ratio) and ratio >= 0 for ratio in ratios):
        raise ValueError(f"no canvas for {width}x{height} expanded by {ratios}")
    across, along = 1 + left + right, 1 + up + down
    wide, high = _size(across * width / (along * height))
    x0, x1 = _span(wide, left, across)
    y0, y1 = _span(high, up, along)
    return Canvas(wide, high, (x0, y0, x1, y1))


def _span(length: int, before: float, total: float) -> tuple[int, int]:
    """Where the original begins and ends on one axis; at least one pixel, within the canvas."""
    begin = min(round(length * before / total), length - 1)
    return begin, max(begin + 1, round(length * (before + 1) / total))


def _size(aspect: float) -> tuple[int, int]:
    tidy = min(_tidy(aspect), key=lambda size: abs(size[0] * size[1] - TIER), default=None)
    return tidy or _nearest(aspect)


def _tidy(aspect: float) -> Iterator[tuple[int, int]]:
    """Pairs of multiples of 32, near the tier's area, of which neither side is a pixel off the aspect."""
    for height in range(_STEP, LONGEST + 1, _STEP):
        width = _STEP * round(height * aspect / _STEP)
        fits = abs(width - height * aspect) <= 1 and abs(height - width / aspect) <= 1
        if fits and width <= LONGEST and _NEAR[0] <= width * height / TIER <= _NEAR[1]:
            yield width, height


def _nearest(aspect: float) -> tuple[int, int]:
    """The pair nearest the tier's area; the short side is rounded first, so the long one is off by a half."""
    stretch = max(aspect, 1 / aspect)
    short = max(1, min(round(math.sqrt(TIER / stretch)), int(LONGEST / stretch)))
    long = min(LONGEST, round(short * stretch))
    return (long, short) if aspect >= 1 else (short, long)
