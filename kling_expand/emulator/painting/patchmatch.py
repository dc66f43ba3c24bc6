"""The PatchMatch engine, which continues a picture with pieces of itself.

The search runs on a small canvas. Its result is scaled up and matched to the original. Every pixel has a
guide, which is its position in units of the original's sides. Positions outside are mirrored a little way
into the original. So sky stays at the top, ground at the bottom, and a face in the middle is not repeated.
"""

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .canvas import Canvas
from .seams import Floats, Pixels, distance, match_colors, restore_detail, smooth_seam

_LONG_SIDE = 480  # pixels of the small canvas; more would cost time and add no visible detail
_HOLE = 60_000  # most new pixels of the small canvas; each costs about 25 µs
_MIRRORED = 0.15  # depth to which positions outside are mirrored, in the original's sides
_X_WEIGHT = 0.2  # weight of x relative to y: pixels beside are a better source than those above or below
_NOISE_Y = 0.04  # vertical noise of the guide outside, in the original's sides: sky must stay at the top
_NOISE_X = 0.08  # horizontal noise, which may be larger
_GUIDE_WEIGHT = 0.05
_PATCH_SIZE = 3
_SEED_LOCK = threading.Lock()  # the library has one seed for the whole process


def paint_patches(original: Image.Image, canvas: Canvas, *, seed: int) -> Image.Image:
    """Continue the original beyond its box, in at most a few seconds for any size."""
    small, scale_x, scale_y = shrink(canvas)
    left, top, right, bottom = small.box
    pixels = np.zeros((small.height, small.width, 3), np.uint8)
    pixels[top:bottom, left:right] = np.asarray(
        original.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    )
    painted = Image.fromarray(smooth_seam(match_colors(_search(pixels, small, seed), small), small))
    x, y = left - canvas.box[0] / scale_x, top - canvas.box[1] / scale_y
    region = (x, y, x + canvas.width / scale_x, y + canvas.height / scale_y)
    large = painted.resize((canvas.width, canvas.height), Image.Resampling.BICUBIC, box=region)
    return Image.fromarray(restore_detail(np.asarray(large), np.asarray(original), canvas))


def shrink(canvas: Canvas) -> tuple[Canvas, float, float]:
    """Return a smaller canvas of the same scene, and its scale along x and y: old pixels per new pixel.

    The two boxes correspond exactly, so that the painted area joins the original without a step.
    """
    left, top, right, bottom = canvas.box
    hole = canvas.width * canvas.height - (right - left) * (bottom - top)
    factor = min(1.0, _LONG_SIDE / max(canvas.width, canvas.height), math.sqrt(_HOLE / max(hole, 1)))
    width, height = max(1, round((right - left) * factor)), max(1, round((bottom - top) * factor))
    scale_x, scale_y = (right - left) / width, (bottom - top) / height
    x, y = math.ceil(left / scale_x), math.ceil(top / scale_y)
    box = (x, y, x + width, y + height)
    small_width = box[2] + math.ceil((canvas.width - right) / scale_x)
    small_height = box[3] + math.ceil((canvas.height - bottom) / scale_y)
    return Canvas(small_width, small_height, box), scale_x, scale_y


def guide(canvas: Canvas, seed: int) -> Floats:
    """Return the guide (y, x, unused) of each pixel, in units of the original's sides, with noise outside.

    Without noise, whole rows and columns would match one line of the original and repeat it as streaks.
    """
    left, top, right, bottom = canvas.box
    y = _fold((np.arange(canvas.height) - top + 0.5) / (bottom - top), _MIRRORED)[:, None]
    x = _fold((np.arange(canvas.width) - left + 0.5) / (right - left), _MIRRORED)[None, :]
    side = min(right - left, bottom - top)
    growth = np.minimum(distance(canvas) / (0.1 * side), 1)
    rng = np.random.default_rng(seed)
    size = (canvas.width, canvas.height)
    result = np.zeros((canvas.height, canvas.width, 3), np.float32)
    result[..., 0] = _fold(y + _NOISE_Y * growth * _waves(size, side / 6, rng), 1)
    result[..., 1] = _fold(x + _NOISE_X * growth * _waves(size, side / 6, rng), 1) * _X_WEIGHT
    return result


def _fold(at: NDArray[np.floating[Any]], depth: float) -> Floats:
    """Reflect positions outside [0, 1] back and forth within *depth* of the nearer end."""
    outside = np.mod(np.where(at < 0, -at, at - 1), 2 * depth)
    inside = np.minimum(outside, 2 * depth - outside)
    return np.where(at < 0, inside, np.where(at > 1, 1 - inside, at)).astype(np.float32)


def _waves(size: tuple[int, int], length: float, rng: np.random.Generator) -> Floats:
    """Return a smooth random surface with mean 0, deviation about 1, and waves of about *length* pixels."""
    knots = rng.standard_normal([int(side / length) + 3 for side in reversed(size)], dtype=np.float32)
    return np.asarray(Image.fromarray(knots).resize(size, Image.Resampling.BICUBIC))


def _search(pixels: Pixels, canvas: Canvas, seed: int) -> Pixels:
    import patchmatch  # imported here because it loads a native library

    left, top, right, bottom = canvas.box
    hole = np.ones(pixels.shape[:2], np.uint8)
    hole[top:bottom, left:right] = 0
    with _SEED_LOCK:
        patchmatch.set_random_seed(seed)
        result: Any = patchmatch.inpaint_regularity(
            pixels, hole, guide(canvas, seed), patch_size=_PATCH_SIZE, guide_weight=_GUIDE_WEIGHT
        )
    return np.asarray(result, np.uint8)
