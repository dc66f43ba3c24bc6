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

from kling_expand.emulator.canvas import Canvas

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_LONG_SIDE = 704  # of the small canvas: more shows no more detail in what is copied, and costs time
_HOLE = 100_000  # pixels to invent: time grows with these, about 25 µs each
_MIRRORED = 0.15  # how far in the guide of a pixel outside may point, in the original's sides
_SIDEWAYS = 0.2  # weight of x against y: what lies beside is a better source than what lies above or below
_WAVER_Y = 0.04  # of the guide outside, in the original's sides: up must stay up,
_WAVER_X = 0.08  # beside may vary more
_GUIDE_WEIGHT = 0.05
_RADIUS = 3
_FADE = 0.15  # over which the seam's correction fades, in the original's shorter side
_MOST_BEND = 12  # levels
_KNIT = 16  # pixels of the result over which all lost detail is given back
_LIKE = 16  # levels that two colours may differ and still count as like
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
    grows = np.minimum(_distance(canvas) / (0.1 * side), 1)
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


def meet(painted: Pixels, canvas: Canvas) -> Pixels:
    """Bend the painted colours to leave the original's edge as they arrive there, less and less outwards.

    Step and change of slope are both taken out: a sky that darkens upwards must not turn bright at once.
    """
    left, top, right, bottom = canvas.box
    around = _around(canvas)
    steps, slopes = _breaks(painted.astype(np.float32), canvas)
    far = _distance(canvas)[..., None]
    fade = np.exp(-((far / (_FADE * min(right - left, bottom - top))) ** 2))
    bend = np.clip(np.pad(slopes, around, mode="edge") * far, -_MOST_BEND, _MOST_BEND)
    shift = (np.pad(steps, around, mode="edge") + bend) * fade
    shift[top:bottom, left:right] = 0
    return _bytes(painted + shift)


def knit(painted: Pixels, original: Pixels, canvas: Canvas) -> Pixels:
    """Give back outside what the small canvas lost of the original (detail, grain), mirrored across the seam.

    All of it next to the seam, so that nothing breaks off there; farther out only where the painted colour is
    like the mirrored one, so that no ghosts of edges appear.
    """
    left, top, right, bottom = canvas.box
    inner = painted[top:bottom, left:right].astype(np.float32)
    around = _around(canvas)
    lost = np.pad(original - inner, around, mode="symmetric")
    unlike = np.abs(np.pad(inner, around, mode="symmetric") - painted).mean(axis=2)
    near = 1 - (_distance(canvas) - 1) / _KNIT
    return _bytes(painted + lost * np.maximum(near, np.exp(-((unlike / _LIKE) ** 2)))[..., None])


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


def _distance(canvas: Canvas) -> Floats:
    """Pixels from each pixel to the box."""
    left, top, right, bottom = canvas.box
    y, x = np.arange(canvas.height), np.arange(canvas.width)
    dy = np.maximum(np.maximum(top - y, y - bottom + 1), 0)
    dx = np.maximum(np.maximum(left - x, x - right + 1), 0)
    return np.hypot(dy[:, None], dx[None, :]).astype(np.float32)
