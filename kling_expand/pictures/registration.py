"""Registration, which locates the original in a generated picture to a fraction of a pixel.

The service repaints the whole picture at about 1K. So the original may be shifted and scaled a little from
the position that the ratios give. Its position is described by a box with fractional edges, which amounts to
a scale and a shift for each axis. It is found in two steps:

1. A normalized cross-correlation over the whole picture, at a coarse size, finds the approximate position.
2. Gauss-Newton steps at finer and finer sizes move the four edges until the overlap matches best. They also
   solve for brightness and contrast. Pixels that differ a lot have less weight, as they were repainted.
"""

import math
from collections.abc import Iterator
from typing import Any

from attrs import frozen

from kling_expand.errors import require
from kling_expand.geometry import Canvas

require("images", "numpy", "PIL")
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]  # left, top, right, bottom

COARSE_SIDE = 96  # pixels; the longer side of the picture in the coarse search
FINE_PIXELS = 120_000  # of the overlap in the last steps; more would cost time and add no precision
MARGIN = 0.06  # share of the longer side by which the picture is padded, so that a shifted box stays inside
MIN_ADVANTAGE = 0.1  # by which the correlation elsewhere must exceed that at the expected position
STEPS = 5  # the most Gauss-Newton steps at each size
MIN_STEP = 0.02  # pixels at that size; after a smaller step, the edges are not moved again
RIDGE = 0.02  # keeps the edges in place where the overlap has no texture
MIN_CORRELATION = 0.7  # the least correlation of an overlap that matches
MIN_CONTRAST = 6.0  # levels; with less contrast in the original, the correlation is meaningless
MAX_DIFFERENCE = 6.0  # levels; the largest difference of a plain original that matches


@frozen
class Registration:
    """The position of the original in a picture, in fractional pixels of the picture.

    `expected` is the box according to the ratios. `correlation` is 1 if the overlap is the original, and
    about 0 if it is unrelated. `difference` is the mean difference in levels (0 to 255) after brightness and
    contrast were matched. `contrast` is the standard deviation of the original in levels.
    """

    box: Box
    expected: Box
    correlation: float
    difference: float
    contrast: float

    @property
    def offset(self) -> float:
        """The distance in pixels between the centers of the box and of the expected box."""
        left, top, right, bottom = (a - b for a, b in zip(self.box, self.expected, strict=True))
        return math.hypot((left + right) / 2, (top + bottom) / 2)

    @property
    def stretch(self) -> float:
        """The relative difference in size between the box and the expected box, on the worse axis."""
        pairs = zip(_extent(self.box), _extent(self.expected), strict=True)
        return max(abs(found / expected - 1) for found, expected in pairs)

    @property
    def matches(self) -> bool:
        """Whether the original was found in the picture."""
        if self.contrast < MIN_CONTRAST:
            return self.difference <= MAX_DIFFERENCE
        return self.correlation >= MIN_CORRELATION


def register(original: Any, picture: Any, canvas: Canvas) -> Registration:
    """Find *original* in *picture*, where both are PIL images at about the same scale.

    *canvas* is the requested canvas. The box that is found may be partly outside the picture.
    """
    target = _plane(np.asarray(original.convert("L")))
    margin = math.ceil(MARGIN * max(picture.size))
    around = _plane(np.pad(np.asarray(picture.convert("L")), margin, mode="edge"))
    frame = zip(canvas.frame, (*picture.size, *picture.size), strict=True)
    left, top, right, bottom = (margin + share * side for share, side in frame)
    box = expected = (left, top, right, bottom)
    box = _found(target, around, expected, COARSE_SIDE / max(picture.size))
    size = target.size
    for size in _sizes(expected):
        box = _refined(target, around, box, size)
    correlation, difference = _similarity(_sampled(target, size), _sampled(around, size, box))
    contrast = float(np.asarray(target).std())
    return Registration(_moved(box, -margin), _moved(expected, -margin), correlation, difference, contrast)


def _plane(levels: NDArray[Any]) -> Any:
    """Return levels as an image of floats, which `resize` can sample at fractional positions."""
    from PIL import Image

    return Image.fromarray(levels.astype(np.float32))


def _moved(box: Box, by: float) -> Box:
    return box[0] + by, box[1] + by, box[2] + by, box[3] + by


def _sampled(plane: Any, size: tuple[int, int], box: Box | None = None) -> Floats:
    """Return the content of *box*, or of the whole plane, at *size*."""
    from PIL import Image

    return np.asarray(plane.resize(size, Image.Resampling.BICUBIC, box=box))


# ---------------------------------------------------------------------------- coarse search


def _found(target: Any, around: Any, expected: Box, scale: float) -> Box:
    """Return the box with the best correlation, or *expected* if no other is clearly better."""
    from PIL import Image

    bilinear = Image.Resampling.BILINEAR
    width, height = (max(8, round(scale * side)) for side in _extent(expected))
    small = np.asarray(target.resize((width, height), bilinear))
    step_x, step_y = _extent(expected)[0] / width, _extent(expected)[1] / height
    # The grid of the search is aligned so that the expected position is one of its points.
    start_x, start_y = expected[0] % step_x, expected[1] % step_y
    columns, rows = int((around.width - start_x) / step_x), int((around.height - start_y) / step_y)
    region = (start_x, start_y, start_x + columns * step_x, start_y + rows * step_y)
    scores = _correlations(small, np.asarray(around.resize((columns, rows), bilinear, box=region)))
    y, x = (int(at) for at in np.unravel_index(int(scores.argmax()), scores.shape))
    expected_at = round((expected[1] - start_y) / step_y), round((expected[0] - start_x) / step_x)
    if scores[y, x] < scores[expected_at] + MIN_ADVANTAGE:
        y, x = expected_at
    left, top = start_x + x * step_x, start_y + y * step_y
    return left, top, left + _extent(expected)[0], top + _extent(expected)[1]


def _extent(box: Box) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


def _correlations(small: Floats, large: Floats) -> Floats:
    """Return the normalized correlation of *small* with each part of *large* that has the same size."""
    height, width = small.shape
    rows, columns = large.shape[0] - height + 1, large.shape[1] - width + 1
    template = (small - small.mean()).astype(np.float64)
    spectrum = np.fft.rfft2(large) * np.conj(np.fft.rfft2(template, large.shape))
    products = np.fft.irfft2(spectrum, large.shape)[:rows, :columns]
    count = width * height
    spread = _sums(large.astype(np.float64) ** 2, height, width)
    spread -= _sums(large.astype(np.float64), height, width) ** 2 / count
    scale = np.sqrt(np.maximum(spread, 1e-3 * count) * max(float((template**2).sum()), 1e-3 * count))
    return np.asarray(products / scale, np.float32)


def _sums(levels: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Return the sum of each window of *height* by *width* pixels."""
    total: NDArray[np.float64] = np.pad(levels, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return (
        total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    )


# ---------------------------------------------------------------------------- fine alignment


def _sizes(box: Box) -> Iterator[tuple[int, int]]:
    """Yield the sizes at which the edges are moved, from coarse to fine."""
    width, height = _extent(box)
    finest = min(1.0, math.sqrt(FINE_PIXELS / (width * height)))
    for factor in (8, 4, 2, 1):
        size = round(finest * width / factor), round(finest * height / factor)
        if factor == 1 or min(size) >= 24:
            yield max(8, size[0]), max(8, size[1])


def _refined(target: Any, around: Any, box: Box, size: tuple[int, int]) -> Box:
    """Return the box after the steps at one size, which end at a step that would leave the picture."""
    wanted = _sampled(target, size)
    for _ in range(STEPS):
        step = _step(wanted, _sampled(around, size, box))
        scale_x, scale_y = _extent(box)[0] / size[0], _extent(box)[1] / size[1]
        left, right, top, bottom = (
            float(edge) * scale
            for edge, scale in zip(step, (scale_x, scale_x, scale_y, scale_y), strict=True)
        )
        moved = box[0] + left, box[1] + top, box[2] + right, box[3] + bottom
        if not (0 <= moved[0] < moved[2] <= around.width and 0 <= moved[1] < moved[3] <= around.height):
            return box
        box = moved
        if np.abs(step).max() < MIN_STEP:
            return box
    return box


def _step(target: Floats, warped: Floats) -> NDArray[np.float64]:
    """Return how far the left, right, top and bottom edges must move, in pixels of the arrays."""
    height, width = target.shape
    slope_y, slope_x = np.gradient(warped)
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    columns = [slope_x * (1 - x), slope_x * x, slope_y * (1 - y), slope_y * y, warped, np.ones_like(warped)]
    inner = (slice(2, -2), slice(2, -2))
    matrix = np.stack([column[inner].ravel() for column in columns])
    wanted = target[inner].ravel()
    rest = np.abs(wanted - _fitted(wanted, matrix[4]))
    weights = 1 / (1 + (rest / (3 * float(np.median(rest)) + 1)) ** 2)
    weighted = matrix * weights
    square = (weighted @ matrix.T).astype(np.float64)
    square[:4, :4] += RIDGE * len(wanted) * np.eye(4)
    square += 1e-6 * len(wanted) * np.eye(6)
    found = np.linalg.solve(square, (weighted @ wanted).astype(np.float64))
    limit = 2.0  # the slopes contain no information about larger distances
    return np.asarray(np.clip(found[:4] / max(0.2, float(found[4])), -limit, limit))


def _fitted(wanted: Floats, given: Floats) -> Floats:
    """Return *given* with the brightness and contrast that best match *wanted*."""
    mean, spread = given.mean(), given.std()
    gain = float(np.mean((given - mean) * (wanted - wanted.mean()))) / max(float(spread) ** 2, 1e-3)
    return np.asarray((given - mean) * gain + wanted.mean(), np.float32)


def _similarity(wanted: Floats, given: Floats) -> tuple[float, float]:
    """Return the correlation of two arrays, and their mean difference after levels were matched."""
    spread = max(float(wanted.std() * given.std()), 1e-3)
    correlation = float(np.mean((wanted - wanted.mean()) * (given - given.mean()))) / spread
    return correlation, float(np.abs(wanted - _fitted(wanted, given)).mean())
