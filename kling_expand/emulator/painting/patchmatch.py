"""How is a picture continued with pieces of itself? PatchMatch on a small canvas, scaled up and made to meet.

The search is told where to look: every pixel carries its place in units of the original's sides, and those
outside are mirrored a little way in. So sky stays up, ground stays down, a face in the middle stays alone.
"""

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .canvas import Canvas
from .seams import Floats, Pixels, distance, knit, meet, mend

_LONG_SIDE = 704  # of the small canvas: more shows no more detail in what is copied, and costs time
_HOLE = 100_000  # pixels to invent: time grows with these, about 25 µs each
_MIRRORED = 0.15  # how far in the guide of a pixel outside may point, in the original's sides
_SIDEWAYS = 0.2  # weight of x against y: what lies beside is a better source than what lies above or below
_WAVER_Y = 0.04  # of the guide outside, in the original's sides: up must stay up,
_WAVER_X = 0.08  # beside may vary more
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
    painted = Image.fromarray(mend(meet(_search(pixels, small, seed), small), small))
    x, y = left - canvas.box[0] / scale_x, top - canvas.box[1] / scale_y
    region = (x, y, x + canvas.width / scale_x, y + canvas.height / scale_y)
    large = painted.resize((canvas.width, canvas.height), Image.Resampling.BICUBIC, box=region)
    return Image.fromarray(knit(np.asarray(large), np.asarray(original), canvas))


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


def guide(canvas: Canvas, seed: int) -> Floats:
    """Where each pixel looks for its like: (y, x, unused) in units of the original's sides, wavering outside.

    Without the wavering whole rows and columns would find one line of the original, and show it as streaks.
    """
    left, top, right, bottom = canvas.box
    y = _fold((np.arange(canvas.height) - top + 0.5) / (bottom - top), _MIRRORED)[:, None]
    x = _fold((np.arange(canvas.width) - left + 0.5) / (right - left), _MIRRORED)[None, :]
    side = min(right - left, bottom - top)
    grows = np.minimum(distance(canvas) / (0.1 * side), 1)
    waver = np.random.default_rng(seed)
    size = (canvas.width, canvas.height)
    result = np.zeros((canvas.height, canvas.width, 3), np.float32)
    result[..., 0] = _fold(y + _WAVER_Y * grows * _waves(size, side / 6, waver), 1)
    result[..., 1] = _fold(x + _WAVER_X * grows * _waves(size, side / 6, waver), 1) * _SIDEWAYS
    return result


def _fold(at: NDArray[np.floating[Any]], depth: float) -> Floats:
    """Reflect what lies outside [0, 1] to and fro within `depth` of the nearer end."""
    outside = np.mod(np.where(at < 0, -at, at - 1), 2 * depth)
    inside = np.minimum(outside, 2 * depth - outside)
    return np.where(at < 0, inside, np.where(at > 1, 1 - inside, at)).astype(np.float32)


def _waves(size: tuple[int, int], length: float, chance: np.random.Generator) -> Floats:
    """A smooth random surface of this size: mean 0, deviation about 1, one wave in about `length` pixels."""
    knots = chance.standard_normal([int(side / length) + 3 for side in reversed(size)], dtype=np.float32)
    return np.asarray(Image.fromarray(knots).resize(size, Image.Resampling.BICUBIC))


def _search(pixels: Pixels, canvas: Canvas, seed: int) -> Pixels:
    import patchmatch  # loads a native library, so only where it is needed

    left, top, right, bottom = canvas.box
    hole = np.ones(pixels.shape[:2], np.uint8)
    hole[top:bottom, left:right] = 0
    with _SEED:
        patchmatch.set_random_seed(seed)
        result: Any = patchmatch.inpaint_regularity(
            pixels, hole, guide(canvas, seed), patch_size=_RADIUS, guide_weight=_GUIDE_WEIGHT
        )
    return np.asarray(result, np.uint8)
