"""Checks of a generated picture against the photo that it was made from (extra `images`).

=========  ========================================================  ======================================
check      measurement                                               unit
=========  ========================================================  ======================================
aspect     difference of a side from its expected length             pixels of the picture
original   mean difference between the photo and the picture         levels (0 to 255)
place      distance of the original from its expected place          pixels of the picture
size       relative error of the size of the original                share
sharpness  detail of the original in the picture                     multiple of the photo's
colors     mean difference of the channel that differs most          levels
black      black pixels of the new area, minus those of the photo    share of a side
flat       contrast of the new area                                  multiple of the photo's at that side
mirrored   correlation of the new area with the photo mirrored       -1 to 1
levels     levels in use in the new area                             share of those between its extremes
bands      stripes along or across the new area                      multiple of the photo's
seam       step in the levels at the seam                            multiple of the steps next to it
=========  ========================================================  ======================================

Each side of the new area is compared with the photo next to it, so a white background that continues as white
is not a fault. The limits were tuned on pictures from the emulator and on damaged copies of them
(`benchmarks.inspect_pictures`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import frozen

from kling_expand.errors import require
from kling_expand.geometry import Ratios

from .registration import Floats
from .scene import Scene, prepare

require("images", "numpy", "PIL")
import numpy as np

BLOCK = 12  # pixels; the scale at which contrast and stripes are measured
REACH = 10  # pixels next to the seam that count as its surroundings
SEGMENT = 24  # pixels along the seam over which a step is averaged
SMALLEST = 8  # pixels; a narrower side is not checked
BLACK = 10  # levels; a pixel is black if all its channels are lower


@frozen
class Check:
    """One measured value, its limit, and the message if the picture fails the check."""

    name: str
    value: float
    limit: float
    failed: bool
    message: str


@frozen
class Report:
    """The checks of one picture. `str` returns a summary on one line."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """The problems of the picture, empty if every check passed."""
        return tuple(check.message for check in self.checks if check.failed)

    def __str__(self) -> str:
        return "; ".join(self.problems) or "nothing suspicious"


def inspect(photo: Any, picture: Any, ratios: Ratios | Sequence[Ratios]) -> Report:
    """Check a generated *picture* against its *photo*, and return a report.

    *photo* and *picture* are paths, open files or PIL images. *ratios* are those of the task, or of each
    pass. If the original is not found, the checks that depend on its position are skipped.

    Raises:
        ImageError: if Pillow cannot read one of the images.
        MissingExtra: if Pillow or numpy is not installed.
    """
    scene = prepare(photo, picture, ratios)
    checks = [_aspect(scene), _original(scene)]
    if scene.registration.matches:
        checks += [*_position(scene), *_overlap(scene), *_new_area(scene)]
    return Report(tuple(checks))


def _above(name: str, value: float, limit: float, message: str) -> Check:
    return Check(name, value, limit, value > limit, message)


def _below(name: str, value: float, limit: float, message: str) -> Check:
    return Check(name, value, limit, value < limit, message)


# ---------------------------------------------------------------------------- the original


def _aspect(scene: Scene) -> Check:
    width, height = scene.picture.size
    aspect = scene.canvas.width / scene.canvas.height
    wrong = min(abs(width - height * aspect), abs(height - width / aspect))
    wanted = f"{scene.canvas.width}:{scene.canvas.height}"
    # The canvas has whole pixels. Its rounding error is multiplied by the scale of the picture.
    rounding = max(width / scene.canvas.width, height / scene.canvas.height)
    message = f"the picture of {width}x{height} does not have the aspect {wanted}"
    return _above("aspect", wrong, 1.0 + rounding, message)


def _original(scene: Scene) -> Check:
    found = scene.registration
    message = "the original is not in the picture"
    return Check("original", found.difference, 255.0, not found.matches, message)


def _position(scene: Scene) -> Iterator[Check]:
    offset, stretch = scene.registration.offset, scene.registration.stretch
    yield _above("place", offset, 4.0, f"the original is {offset:.0f} pixels out of place")
    yield _above("size", stretch, 0.02, f"the original is {stretch:.0%} off in size")


def _overlap(scene: Scene) -> Iterator[Check]:
    """Yield the checks of the original as the picture shows it."""
    from PIL.Image import Resampling

    box = scene.registration.box
    width, height = scene.picture.size
    inside = max(0.0, box[0]), max(0.0, box[1]), min(width, box[2]), min(height, box[3])
    seen = np.asarray(scene.picture.resize(scene.small.size, Resampling.BICUBIC, box=inside), np.float32)
    photo = np.asarray(scene.small, np.float32)
    detail = _detail(photo)
    sharpness = _detail(seen) / detail if detail >= 0.5 else 1.0  # blur is not visible in a smooth original
    yield _below("sharpness", sharpness, 0.45, "the original is blurred")
    color_cast = float(np.abs((seen - photo).mean(axis=(0, 1))).max())
    yield _above("colors", color_cast, 5.0, f"the colors of the original differ by {color_cast:.0f} levels")


def _detail(levels: Floats) -> float:
    """Return the strength, in levels, of the detail that is only a few pixels wide."""
    gray = levels.mean(axis=2)
    middle = gray[1:-1, 1:-1]
    around = (gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]) / 4
    return float(np.abs(middle - around).mean())


# ---------------------------------------------------------------------------- the new area


@frozen
class Side:
    """One side of the new area and the photo next to it. Row 0 of both is at the seam."""

    name: str
    outer: Floats
    inner: Floats


def sides(scene: Scene) -> Iterator[Side]:
    """Yield the expanded sides, without the corners of the new area."""
    picture = np.asarray(scene.picture, np.float32)
    height, width = picture.shape[:2]
    left, top, right, bottom = (round(edge) for edge in scene.registration.box)
    left, top, right, bottom = max(0, left), max(0, top), min(width, right), min(height, bottom)
    columns, rows = picture[:, left:right], picture[top:bottom].transpose(1, 0, 2)
    towards = (
        ("up", columns[::-1], height - top),
        ("down", columns, bottom),
        ("left", rows[::-1], width - left),
        ("right", rows, right),
    )
    for name, lines, seam in towards:
        inner = lines[:seam][::-1][: (bottom - top if name in {"up", "down"} else right - left)]
        if len(lines) - seam >= SMALLEST and len(inner) >= SMALLEST:
            yield Side(name, lines[seam:], inner)


def _new_area(scene: Scene) -> Iterator[Check]:
    """Yield each check with the value of the worst side."""
    found = list(sides(scene))
    if not found:
        return
    for name, measure, limit, problem in _SIDE_CHECKS:
        values = {side.name: measure(side) for side in found}
        low = name in _LOW
        worst = (min if low else max)(values, key=values.__getitem__)
        check = _below if low else _above
        yield check(name, values[worst], limit, f"the new area ({worst}) {problem}")


def _black(side: Side) -> float:
    reference = side.inner[: len(side.outer)]
    return float((side.outer.max(axis=2) < BLACK).mean() - (reference.max(axis=2) < BLACK).mean())


def _flatness(side: Side) -> float:
    reference = _contrast(side.inner[: max(SMALLEST, len(side.outer))])
    return _contrast(side.outer) / reference if reference > 1.0 else 1.0


def _contrast(levels: Floats) -> float:
    """Return the median standard deviation of the blocks, in levels."""
    gray = levels.mean(axis=2)
    size = min(BLOCK, *gray.shape)
    rows, columns = gray.shape[0] // size, gray.shape[1] // size
    blocks = gray[: rows * size, : columns * size].reshape(rows, size, columns, size)
    return float(np.median(blocks.std(axis=(1, 3))))


def _mirrored(side: Side) -> float:
    """Return the correlation of the new area with the photo mirrored at the seam.

    A line that runs straight across the seam is the same in both, so levels that are constant across the seam
    are subtracted.
    """
    depth = min(len(side.outer), len(side.inner), 160)
    outer, inner = (_band_pass(part[:depth].mean(axis=2))[3:] for part in (side.outer, side.inner))
    outer, inner = outer - outer.mean(axis=0), inner - inner.mean(axis=0)
    spread = float(outer.std() * inner.std())
    return float((outer * inner).mean()) / spread if spread > 0.25 else 0.0


def _band_pass(gray: Floats) -> Floats:
    """Return the detail that is between about 3 and 20 pixels wide."""
    from PIL import Image, ImageFilter

    image = Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8))
    fine, coarse = (image.filter(ImageFilter.BoxBlur(radius)) for radius in (1, 10))
    return np.asarray(fine, np.float32) - np.asarray(coarse, np.float32)


def _levels_in_use(side: Side) -> float:
    shares = []
    for channel in np.clip(np.rint(side.outer), 0, 255).astype(np.uint8).reshape(-1, 3).T:
        counts = np.bincount(channel, minlength=256)
        low, high = np.percentile(channel, (2, 98)).astype(int)
        if high - low >= 32:
            shares.append(float((counts[low : high + 1] > 1e-4 * len(channel)).mean()))
    return min(shares, default=1.0)


def _bands(side: Side) -> float:
    """Return the strength of the stripes in the new area, as a multiple of those in the photo next to it."""
    worst = 0.0
    inner = side.inner[: max(len(side.outer), 3 * BLOCK)]
    for axis in (0, 1):
        outer, reference = (_stripes(part.mean(axis=2).mean(axis=axis)) for part in (side.outer, inner))
        worst = max(worst, outer / max(reference, 0.8))
    return worst


def _stripes(profile: Floats) -> float:
    """Return the strength of stripes up to about 30 pixels wide."""
    if len(profile) < 3 * BLOCK:
        return 0.0
    half = BLOCK
    padded = np.pad(profile, half, mode="reflect", reflect_type="odd")
    smooth = np.convolve(padded, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid")
    return float(np.median(np.abs(profile - smooth)))


def _seam(side: Side) -> float:
    """Return the step at the seam, as a multiple of the steps between the lines parallel to it."""
    near = np.concatenate([side.inner[: 2 * REACH][::-1], side.outer[: 2 * REACH]])
    seam = min(len(side.inner), 2 * REACH)
    steps = np.array([_step(near, at) for at in range(2, len(near) - 1)])
    place = seam - 2
    reference = np.delete(steps, range(max(0, place - 3), min(len(steps), place + 4)), axis=0)
    if not len(reference):
        return 0.0
    at_seam = steps[max(0, place - 1) : place + 2].max(axis=0)
    return float((at_seam / np.maximum(np.quantile(reference, 0.75, axis=0), (0.7, 1.0))).max())


def _step(lines: Floats, at: int) -> tuple[float, float]:
    """Return the step in front of a line, averaged over segments of the line and for single pixels."""
    pixels = np.abs(lines[at] - lines[at - 1]).mean(axis=1)
    change = lines[at : at + 2].mean(axis=0) - lines[at - 2 : at].mean(axis=0)
    length = min(SEGMENT, len(change))
    segments = change[: len(change) // length * length].reshape(-1, length, 3).mean(axis=1)
    return float(np.abs(segments).max(axis=1).mean()), float(np.median(pixels))


_LOW = {"flat", "levels"}
_SIDE_CHECKS: tuple[tuple[str, Callable[[Side], float], float, str], ...] = (
    ("black", _black, 0.5, "is black"),
    ("flat", _flatness, 0.15, "is flat"),
    ("mirrored", _mirrored, 0.6, "mirrors the photo"),
    ("levels", _levels_in_use, 0.6, "has few levels of color"),
    ("bands", _bands, 4.0, "has stripes"),
    ("seam", _seam, 2.5, "does not join the photo: the seam shows"),
)
