"""How is a picture continued with pieces of itself? PatchMatch on a small canvas, scaled up, its colours made to meet.

The search is told where to look: every pixel carries its place in units of the original's sides, and those outside
are mirrored a little way in. So sky stays up, ground stays down, and what is in the middle (a face) is not copied.
"""

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kling_expand.emulator.canvas import Canvas

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_LONG_SIDE = 704  # of the small canvas: more shows no more detail in what is copied, and costs time
_HOLE = 100_000  # pixels to invent: time grows with these, about 25 µs each
_MIRRORED = 0.15  # how far in the guide of a pixel outside may point, in the original's sides
_SIDEWAYS = 0.35  # what lies beside is a better source than what lies above or below
_GUIDE_WEIGHT = 0.05
_RADIUS = 3
_SEED = threading.Lock()  # the library keeps one seed for the whole process


def paint_patches(original: Image.Image, canvas: Canvas, *, seed: int) -> Image.Image:
    """Continue the original beyond its box; a few seconds at most, whatever the size."""
    small, scale_x, scale_y = shrink(canvas)
    left, top, right, bottom = small.box
    pixels = np.zeros((small.height, small.width, 3), np.uint8)
    pixels[top:bottom, left:right] = np.asarray(
        original.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    )
    painted = Image.fromarray(meet(_search(pixels, small, seed), small))
    x, y = left - canvas.box[0] / scale_x, top - canvas.box[1] / scale_y
    region = (x, y, x + canvas.width / scale_x, y + canvas.height / scale_y)
    return painted.resize((canvas.width, canvas.height), Image.Resampling.BICUBIC, box=region)


def shrink(canvas: Canvas) -> tuple[Canvas, float, float]:
    """A smaller canvas that covers the same scene, and how many pixels make one of it along x and y.

    The two boxes correspond exactly, so that what is painted meets the original without a step.
    """
    left, top, right, bottom = canvas.box
    hole = canvas.width * canvas.height - (right - left) * (bottom - top)
    factor = min(1.0, _LONG_SIDE / max(canvas.width, canvas.height), math.sqrt(_HOLE / max(hole, 1)))
    width, height = max(1, round((right - left) * factor)), max(1, round((bottom - top) * factor))
    scale_x, scale_y = (right - left) / width, (bottom - top) / height
    x, y = math.ceil(left / scale_x), math.ceil(top / scale_y)
    box = (x, y, x + width, y + height)
    wide = box[2] + math.ceil((canvas.width - right) / scale_x)
    high = box[3] + math.ceil((canvas.height - bottom) / scale_y)
    return Canvas(wide, high, box), scale_x, scale_y


def guide(canvas: Canvas) -> Floats:
    """Where each pixel looks for its like: (y, x, unused) in units of the original's sides."""
    left, top, right, bottom = canvas.box
    result = np.zeros((canvas.height, canvas.width, 3), np.float32)
    result[..., 0] = _fold((np.arange(canvas.height) - top + 0.5) / (bottom - top))[:, None]
    result[..., 1] = _fold((np.arange(canvas.width) - left + 0.5) / (right - left)) * _SIDEWAYS
    return result


def _fold(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mirror what lies outside [0, 1], no further in than `_MIRRORED`."""
    low = np.where(at < 0, np.minimum(-at, _MIRRORED), at)
    return np.where(low > 1, 1 - np.minimum(low - 1, _MIRRORED), low)


def _search(pixels: Pixels, canvas: Canvas, seed: int) -> Pixels:
    import patchmatch  # loads a native library, so only where it is needed

    left, top, right, bottom = canvas.box
    hole = np.ones(pixels.shape[:2], np.uint8)
    hole[top:bottom, left:right] = 0
    with _SEED:
        patchmatch.set_random_seed(seed)
        result: Any = patchmatch.inpaint_regularity(
            pixels, hole, guide(canvas), patch_size=_RADIUS, guide_weight=_GUIDE_WEIGHT
        )
    return np.asarray(result, np.uint8)


def meet(painted: Pixels, canvas: Canvas) -> Pixels:
    """Shift the painted colours so that they meet the original's along the seam, less and less outwards."""
    left, top, right, bottom = canvas.box
    around = ((top, canvas.height - bottom), (left, canvas.width - right), (0, 0))
    nearest = np.pad(_offsets(painted.astype(np.float32), canvas), around, mode="edge")
    strength = np.exp(-_distance(canvas) / (0.1 * min(right - left, bottom - top)))
    strength[top:bottom, left:right] = 0
    return np.clip(np.rint(painted + nearest * strength[..., None]), 0, 255).astype(np.uint8)


def _offsets(painted: Floats, canvas: Canvas) -> Floats:
    """On the border of a picture the size of the box: inner minus outer colour there, smoothed along the side."""
    left, top, right, bottom = canvas.box
    result = np.zeros((bottom - top, right - left, 3), np.float32)
    strip = 3
    if top > 0:
        result[0] = _step(painted[:, left:right], top, -strip)
    if bottom < canvas.height:
        result[-1] = _step(painted[:, left:right], bottom, strip)
    turned = painted.transpose(1, 0, 2)[:, top:bottom]
    if left > 0:
        result[:, 0] = _step(turned, left, -strip)
    if right < canvas.width:
        result[:, -1] = _step(turned, right, strip)
    return result


def _step(rows: Floats, at: int, reach: int) -> Floats:
    """Mean of the rows just inside the border minus those just outside, smoothed along it."""
    before, after = rows[max(at - abs(reach), 0) : at].mean(axis=0), rows[at : at + abs(reach)].mean(axis=0)
    inner, outer = (after, before) if reach < 0 else (before, after)
    return _smooth(inner - outer)


def _smooth(line: Floats) -> Floats:
    """Triangular mean over about a twentieth of the line, its ends repeated."""
    half = max(1, len(line) // 40)
    weights = np.bartlett(2 * half + 3)[1:-1]
    padded = np.pad(line, ((half, half), (0, 0)), mode="edge")
    columns = [np.convolve(padded[:, channel], weights / weights.sum(), mode="valid") for channel in range(3)]
    return np.stack(columns, axis=1).astype(np.float32)


def _distance(canvas: Canvas) -> Floats:
    """Pixels from each pixel to the box."""
    left, top, right, bottom = canvas.box
    y, x = np.arange(canvas.height), np.arange(canvas.width)
    dy = np.maximum(np.maximum(top - y, y - bottom + 1), 0)
    dx = np.maximum(np.maximum(left - x, x - right + 1), 0)
    return np.hypot(dy[:, None], dx[None, :]).astype(np.float32)
