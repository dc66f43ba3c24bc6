"""The seam between the painted area and the original: matched colors, a smooth edge, restored detail.

The functions take arrays of (height, width, 3) levels from 0 to 255, and a canvas with the original's box.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_FADE = 0.15  # distance over which the color correction fades, relative to the original's shorter side
_MAX_BEND = 12  # levels
_DETAIL = 16  # pixels from the seam over which full detail is restored
_SIMILAR = 16  # levels by which similar colors may differ


def match_colors(painted: Pixels, canvas: Canvas) -> Pixels:
    """Shift the painted colors to match the original at the seam, and less and less farther out.

    Both the step and the change of slope are removed, so that a sky that darkens upwards continues to darken.
    """
    left, top, right, bottom = canvas.box
    around = _around(canvas)
    steps, slopes = _breaks(painted.astype(np.float32), canvas)
    far = distance(canvas)[..., None]
    fade = np.exp(-((far / (_FADE * min(right - left, bottom - top))) ** 2))
    bend = np.clip(np.pad(slopes, around, mode="edge") * far, -_MAX_BEND, _MAX_BEND)
    shift = (np.pad(steps, around, mode="edge") + bend) * fade
    shift[top:bottom, left:right] = 0
    return _bytes(painted + shift)


def smooth_seam(painted: Pixels, canvas: Canvas) -> Pixels:
    """Replace each row along the seam with the mean of its neighbors, because the search leaves dark rows."""
    left, top, right, bottom = canvas.box
    smoothed = painted.astype(np.uint16)
    columns, rows_as_columns = smoothed[:, left:right], smoothed.transpose(1, 0, 2)[:, top:bottom]
    for rows, first, end in ((columns, top, bottom), (rows_as_columns, left, right)):
        if first > 1:
            rows[first - 1] = (rows[first - 2] + rows[first] + 1) // 2
        if end < len(rows) - 1:
            rows[end] = (rows[end - 1] + rows[end + 1] + 1) // 2
    return smoothed.astype(np.uint8)


def restore_detail(painted: Pixels, original: Pixels, canvas: Canvas) -> Pixels:
    """Add the detail and grain that the small canvas lost, mirrored from the original across the seam.

    Next to the seam all of it is added, so that no edge shows. Farther out, only grain of usual strength is
    added, and only where the painted color resembles the mirrored one. So no edges of objects are repeated.
    """
    left, top, right, bottom = canvas.box
    inner = painted[top:bottom, left:right].astype(np.float32)
    around = _around(canvas)
    lost = np.pad(original - inner, around, mode="symmetric")
    strength = 4 * float(np.median(np.abs(original - inner)))
    unlike = np.abs(np.pad(inner, around, mode="symmetric") - painted).mean(axis=2)
    near = np.clip(1 - (distance(canvas) - 1) / _DETAIL, 0, 1)
    far = (1 - near) * np.exp(-((unlike / _SIMILAR) ** 2))
    return _bytes(painted + lost * near[..., None] + np.clip(lost, -strength, strength) * far[..., None])


def _around(canvas: Canvas) -> tuple[tuple[int, int], ...]:
    """Return the margins around the box on each axis, as numpy.pad takes them."""
    left, top, right, bottom = canvas.box
    return (top, canvas.height - bottom), (left, canvas.width - right), (0, 0)


def _bytes(levels: NDArray[np.floating[Any]]) -> Pixels:
    return np.asarray(np.clip(np.rint(levels), 0, 255), np.uint8)


def _breaks(painted: Floats, canvas: Canvas) -> tuple[Floats, Floats]:
    """Return the steps in color, and in its outward slope, as the borders of two arrays of the box's size."""
    left, top, right, bottom = canvas.box
    steps, slopes = (np.zeros((bottom - top, right - left, 3), np.float32) for _ in range(2))
    columns, rows = painted[:, left:right], painted[top:bottom].transpose(1, 0, 2)
    if top > 0:
        steps[0], slopes[0] = _break(columns[top - 1 :: -1], columns[top:bottom])
    if bottom < canvas.height:
        steps[-1], slopes[-1] = _break(columns[bottom:], columns[bottom - 1 : top - 1 if top else None : -1])
    if left > 0:
        steps[:, 0], slopes[:, 0] = _break(rows[left - 1 :: -1], rows[left:right])
    if right < canvas.width:
        steps[:, -1], slopes[:, -1] = _break(rows[right:], rows[right - 1 : left - 1 if left else None : -1])
    return steps, slopes


def _break(outer: Floats, inner: Floats) -> tuple[Floats, Floats]:
    """Return the step and the change of slope between two stacks of rows, both counted from the seam."""
    step = _smooth(inner[:3].mean(axis=0) - outer[:3].mean(axis=0), 20)
    depth = min(max(1, len(inner) // 20), len(inner) // 2, len(outer) // 2)
    if depth == 0:  # a single row has no slope
        return step, np.zeros_like(step)
    inner_slope = (inner[:depth].mean(axis=0) - inner[depth : 2 * depth].mean(axis=0)) / depth
    outer_slope = (outer[depth : 2 * depth].mean(axis=0) - outer[:depth].mean(axis=0)) / depth
    return step, _smooth(inner_slope - outer_slope, 6)


def _smooth(line: Floats, share: int) -> Floats:
    """Return a line smoothed by a triangular mean over 1/*share* of its length, with its ends repeated."""
    half = max(1, len(line) // (2 * share))
    weights = np.bartlett(2 * half + 3)[1:-1]
    padded = np.pad(line, ((half, half), (0, 0)), mode="edge")
    columns = [np.convolve(padded[:, channel], weights / weights.sum(), mode="valid") for channel in range(3)]
    return np.stack(columns, axis=1).astype(np.float32)


def distance(canvas: Canvas) -> Floats:
    """Return the distance in pixels from each pixel to the box."""
    left, top, right, bottom = canvas.box
    y, x = np.arange(canvas.height), np.arange(canvas.width)
    dy = np.maximum(np.maximum(top - y, y - bottom + 1), 0)
    dx = np.maximum(np.maximum(left - x, x - right + 1), 0)
    return np.hypot(dy[:, None], dx[None, :]).astype(np.float32)
