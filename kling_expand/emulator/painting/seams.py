"""How does the painted area meet the original? Colours bent to meet, rows mended, lost detail given back.

Everything here works on arrays of (height, width, 3) levels from 0 to 255 and on a canvas that says where in
them the original lies; no engine is known here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_FADE = 0.15  # over which the seam's correction fades, in the original's shorter side
_MOST_BEND = 12  # levels
_KNIT = 16  # pixels of the result over which all lost detail is given back
_LIKE = 16  # levels that two colours may differ and still count as like


def meet(painted: Pixels, canvas: Canvas) -> Pixels:
    """Bend the painted colours to leave the original's edge as they arrive there, less and less outwards.

    Step and change of slope are both taken out: a sky that darkens upwards must not turn bright at once.
    """
    left, top, right, bottom = canvas.box
    around = _around(canvas)
    steps, slopes = _breaks(painted.astype(np.float32), canvas)
    far = distance(canvas)[..., None]
    fade = np.exp(-((far / (_FADE * min(right - left, bottom - top))) ** 2))
    bend = np.clip(np.pad(slopes, around, mode="edge") * far, -_MOST_BEND, _MOST_BEND)
    shift = (np.pad(steps, around, mode="edge") + bend) * fade
    shift[top:bottom, left:right] = 0
    return _bytes(painted + shift)


def mend(painted: Pixels, canvas: Canvas) -> Pixels:
    """Lay each row along the seam between its neighbours: the search leaves some darker than both."""
    left, top, right, bottom = canvas.box
    mended = painted.astype(np.uint16)
    upright, turned = mended[:, left:right], mended.transpose(1, 0, 2)[:, top:bottom]
    for rows, first, end in ((upright, top, bottom), (turned, left, right)):
        if first > 1:
            rows[first - 1] = (rows[first - 2] + rows[first] + 1) // 2
        if end < len(rows) - 1:
            rows[end] = (rows[end - 1] + rows[end + 1] + 1) // 2
    return mended.astype(np.uint8)


def knit(painted: Pixels, original: Pixels, canvas: Canvas) -> Pixels:
    """Give back outside what the small canvas lost of the original (detail, grain), mirrored across the seam.

    All of it next to the seam, so that nothing breaks off there. Farther out only grain of usual strength,
    where the painted colour is like the mirrored one, so that no ghosts of edges appear.
    """
    left, top, right, bottom = canvas.box
    inner = painted[top:bottom, left:right].astype(np.float32)
    around = _around(canvas)
    lost = np.pad(original - inner, around, mode="symmetric")
    strength = 4 * float(np.median(np.abs(original - inner)))
    unlike = np.abs(np.pad(inner, around, mode="symmetric") - painted).mean(axis=2)
    near = np.clip(1 - (distance(canvas) - 1) / _KNIT, 0, 1)
    far = (1 - near) * np.exp(-((unlike / _LIKE) ** 2))
    return _bytes(painted + lost * near[..., None] + np.clip(lost, -strength, strength) * far[..., None])


def _around(canvas: Canvas) -> tuple[tuple[int, int], ...]:
    """What lies before and after the box on each axis, as numpy's pad wants it."""
    left, top, right, bottom = canvas.box
    return (top, canvas.height - bottom), (left, canvas.width - right), (0, 0)


def _bytes(levels: NDArray[np.floating[Any]]) -> Pixels:
    return np.asarray(np.clip(np.rint(levels), 0, 255), np.uint8)


def _breaks(painted: Floats, canvas: Canvas) -> tuple[Floats, Floats]:
    """On the border of arrays the size of the box: how much colour and its slope outwards must change."""
    left, top, right, bottom = canvas.box
    steps, slopes = (np.zeros((bottom - top, right - left, 3), np.float32) for _ in range(2))
    upright, turned = painted[:, left:right], painted[top:bottom].transpose(1, 0, 2)
    if top > 0:
        steps[0], slopes[0] = _break(upright[top - 1 :: -1], upright[top:bottom])
    if bottom < canvas.height:
        steps[-1], slopes[-1] = _break(upright[bottom:], upright[bottom - 1 : top - 1 if top else None : -1])
    if left > 0:
        steps[:, 0], slopes[:, 0] = _break(turned[left - 1 :: -1], turned[left:right])
    if right < canvas.width:
        steps[:, -1], slopes[:, -1] = _break(
            turned[right:], turned[right - 1 : left - 1 if left else None : -1]
        )
    return steps, slopes


def _break(outer: Floats, inner: Floats) -> tuple[Floats, Floats]:
    """Step and change of slope between two stacks of rows, each counted away from the seam they share."""
    step = _smooth(inner[:3].mean(axis=0) - outer[:3].mean(axis=0), 20)
    deep = min(max(1, len(inner) // 20), len(inner) // 2, len(outer) // 2)
    if deep == 0:  # one row has no slope
        return step, np.zeros_like(step)
    arrives = (inner[:deep].mean(axis=0) - inner[deep : 2 * deep].mean(axis=0)) / deep
    leaves = (outer[deep : 2 * deep].mean(axis=0) - outer[:deep].mean(axis=0)) / deep
    return step, _smooth(arrives - leaves, 6)


def _smooth(line: Floats, share: int) -> Floats:
    """Triangular mean over one part in `share` of the line, its ends repeated."""
    half = max(1, len(line) // (2 * share))
    weights = np.bartlett(2 * half + 3)[1:-1]
    padded = np.pad(line, ((half, half), (0, 0)), mode="edge")
    columns = [np.convolve(padded[:, channel], weights / weights.sum(), mode="valid") for channel in range(3)]
    return np.stack(columns, axis=1).astype(np.float32)


def distance(canvas: Canvas) -> Floats:
    """Pixels from each pixel to the box."""
    left, top, right, bottom = canvas.box
    y, x = np.arange(canvas.height), np.arange(canvas.width)
    dy = np.maximum(np.maximum(top - y, y - bottom + 1), 0)
    dx = np.maximum(np.maximum(left - x, x - right + 1), 0)
    return np.hypot(dy[:, None], dx[None, :]).astype(np.float32)
