"""Composites, which show the original at its own size inside the generated picture (extra `images`).

The service returns pictures of about 1K, whatever the size of the photo. `composite` enlarges the picture to
the photo's scale and puts the photo back, pixel for pixel. The photo determines the form of the composite:

======================  ================================================================================
photo                   composite
======================  ================================================================================
RGB, gray, with alpha   the same mode; the new area is opaque
16-bit gray             16-bit gray; the new area has the picture's 8 bits scaled up
16-bit color            8-bit color, as Pillow reads it
palette, CMYK, others   RGB, or RGBA if transparent; CMYK is converted by its profile
rotated by EXIF         upright
color profile           kept, and the picture is converted into it; sRGB on request
EXIF                    kept without orientation, thumbnail and layout of the file, with this package in the
                        software tag
======================  ================================================================================
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import frozen

from kling_expand.errors import PictureMismatch, require
from kling_expand.geometry import Ratios

from .convert import describe_expanded
from .registration import Box
from .scene import Scene, prepare, to_srgb

require("images", "numpy", "PIL")
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the canvas

TILE_PIXELS = 4_000_000  # enlarged at once; they need memory in addition to the photo and the canvas
SUPPORT = 6  # pixels around a region that Lanczos reads
DEPTH = 4  # pixels of the picture on each side of the seam that are compared
FADE = 0.35  # distance at which a color correction has faded to 1/e, as a share of the photo's shorter side
MAX_STEP = 24.0  # the most levels by which a step at the seam is corrected


def composite(
    photo: Any, picture: Any, ratios: Ratios | Sequence[Ratios], *, feather: int = 0, srgb: bool = False
) -> Any:
    """Return a PIL image of the canvas at the photo's scale, with the photo's own pixels in it.

    *photo* and *picture* are PIL images, paths or binary files. *ratios* are those of the task, or of each
    pass, in order, if *picture* is the result of the last pass. They may refer to the stored photo or to the
    upright one. Inside its box the photo is unchanged, unless *feather* blends that many of its outermost
    pixels into the picture. With *srgb* the colors are converted to sRGB. The `info` of the result has the
    color profile and the EXIF block for saving it.

    Raises:
        PictureMismatch: if the photo was not found in the picture.
        ImageError: if Pillow cannot read one of them.
        MissingExtra: if Pillow is not installed.
    """
    scene = prepare(photo, picture, ratios)
    if not scene.registration.matches:
        found = f"correlation {scene.registration.correlation:.2f}"
        raise PictureMismatch(f"the photo was not found in the picture ({found})")
    result = _assembled(scene, _enlarger(scene), feather)
    result.info = _metadata(scene, result.size)
    return to_srgb(result) if srgb else result


# ---------------------------------------------------------------------------- colors at the picture's scale


def matched(scene: Scene) -> tuple[Pixels, int]:
    """Return the levels of the picture with colors matched to the photo, and the width of the added margin.

    Inside the box, the levels are those of the photo. Outside, the difference along the seam is added, and
    fades with the distance.
    """
    margin = _margin(scene)
    picture = np.pad(
        np.asarray(scene.picture), ((margin, margin), (margin, margin), (0, 0)), mode="symmetric"
    )
    left, top, right, bottom = (edge + margin for edge in scene.registration.box)
    height, width = scene.small.height, scene.small.width
    # The position of each column and row of the picture in the small photo.
    x = (np.arange(picture.shape[1], dtype=np.float32) + 0.5 - left) * (width / (right - left))
    y = (np.arange(picture.shape[0], dtype=np.float32) + 0.5 - top) * (height / (bottom - top))
    shifts = _shifts(scene)
    inside = _pixels_inside((left, top, right, bottom))
    for x0, y0, x1, y1 in _around(inside, picture.shape[1], picture.shape[0]):
        at_x, at_y = x[x0:x1], y[y0:y1]
        far = np.hypot(_outside(at_y, height)[:, None], _outside(at_x, width)[None, :])
        fade = np.exp(-((far / (FADE * min(width, height))) ** 2))
        columns, rows = (
            np.clip(at, 0, length - 1).astype(int) for at, length in ((at_x, width), (at_y, height))
        )
        levels = shifts[rows[:, None], columns[None, :]]
        levels *= fade[..., None]
        levels += picture[y0:y1, x0:x1]
        picture[y0:y1, x0:x1] = np.rint(np.clip(levels, 0, 255, out=levels), out=levels)
    _paste_photo(scene, picture, (left, top, right, bottom), inside)
    return picture, margin


def _margin(scene: Scene) -> int:
    """Return the padding in pixels with which the picture covers the canvas and the support of Lanczos."""
    left, top, right, bottom = _region(scene, (0, 0, scene.canvas.width, scene.canvas.height))
    beyond: float = max(-left, -top, right - scene.picture.width, bottom - scene.picture.height, 0)
    return math.ceil(beyond) + SUPPORT


def _region(scene: Scene, rectangle: Rectangle) -> Box:
    """Return the region of the picture for a rectangle of the canvas."""
    box_left, box_top, box_right, box_bottom = scene.registration.box
    left, top, right, bottom = scene.canvas.box
    scale_x, scale_y = (box_right - box_left) / (right - left), (box_bottom - box_top) / (bottom - top)
    x0, y0, x1, y1 = rectangle
    return (
        box_left + (x0 - left) * scale_x,
        box_top + (y0 - top) * scale_y,
        box_left + (x1 - left) * scale_x,
        box_top + (y1 - top) * scale_y,
    )


def _outside(at: Floats, length: int) -> Floats:
    """Return how far positions are outside [0, length]."""
    return np.maximum(np.maximum(-at, at - length), 0)


def _pixels_inside(box: Box) -> Rectangle:
    """Return the rectangle of the pixels that have their centers in a box."""
    left, top, right, bottom = box
    return math.ceil(left - 0.5), math.ceil(top - 0.5), math.ceil(right - 0.5), math.ceil(bottom - 0.5)


def _paste_photo(scene: Scene, picture: Pixels, box: Box, inside: Rectangle) -> None:
    """Replace the pixels of the picture inside the box with those of the photo."""
    from PIL import Image

    left, top, right, bottom = box
    x0, y0, x1, y1 = inside
    scale_x, scale_y = scene.small.width / (right - left), scene.small.height / (bottom - top)
    # The outermost pixels may extend half a pixel beyond the photo, so the photo is padded.
    padded = np.pad(np.asarray(scene.small), ((1, 1), (1, 1), (0, 0)), mode="edge")
    region = (
        (x0 - left) * scale_x + 1,
        (y0 - top) * scale_y + 1,
        (x1 - left) * scale_x + 1,
        (y1 - top) * scale_y + 1,
    )
    photo = Image.fromarray(padded).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box=region)
    picture[y0:y1, x0:x1] = np.asarray(photo)


def _shifts(scene: Scene) -> Floats:
    """Return an array of the small photo's size, with the corrections along the seam in its border."""
    from PIL import Image

    small = np.asarray(scene.small, np.float32)
    height, width = small.shape[:2]
    left, top, right, bottom = scene.registration.box
    step_x, step_y = DEPTH * (right - left) / width, DEPTH * (bottom - top) / height

    def sample(size: tuple[int, int], region: Box) -> Floats:
        fitted = _within(region, scene.picture.size)
        return np.asarray(scene.picture.resize(size, Image.Resampling.BICUBIC, box=fitted), np.float32)

    shifts = np.zeros_like(small)
    if scene.canvas.box[1] > 0:
        inner = sample((width, DEPTH), (left, top, right, top + step_y))
        outer = sample((width, DEPTH), (left, top - step_y, right, top))
        shifts[0] = _shift(small[:DEPTH], inner, outer, axis=0)
    if scene.canvas.box[3] < scene.canvas.height:
        inner = sample((width, DEPTH), (left, bottom - step_y, right, bottom))
        outer = sample((width, DEPTH), (left, bottom, right, bottom + step_y))
        shifts[-1] = _shift(small[-DEPTH:], inner, outer, axis=0)
    if scene.canvas.box[0] > 0:
        inner = sample((DEPTH, height), (left, top, left + step_x, bottom))
        outer = sample((DEPTH, height), (left - step_x, top, left, bottom))
        shifts[:, 0] = _shift(small[:, :DEPTH], inner, outer, axis=1)
    if scene.canvas.box[2] < scene.canvas.width:
        inner = sample((DEPTH, height), (right - step_x, top, right, bottom))
        outer = sample((DEPTH, height), (right, top, right + step_x, bottom))
        shifts[:, -1] = _shift(small[:, -DEPTH:], inner, outer, axis=1)
    return shifts


def _within(region: Box, size: tuple[int, int]) -> Box:
    """Return a region clipped to a picture of *size*. An empty region becomes about one pixel wide."""
    left, right = max(0.0, region[0]), min(float(size[0]), region[2])
    top, bottom = max(0.0, region[1]), min(float(size[1]), region[3])
    left, right = (left, right) if right > left else (max(0.0, right - 1), max(1.0, right))
    top, bottom = (top, bottom) if bottom > top else (max(0.0, bottom - 1), max(1.0, bottom))
    return left, top, right, bottom


def _shift(photo: Floats, seen: Floats, outer: Floats, *, axis: int) -> Floats:
    """Return the correction along one side of the seam, from strips of equal shape.

    The photo and the same area of the picture are aligned, so their difference is exact and followed closely.
    A step within the picture is mixed with its content, so only a wide mean above the noise is used.
    """
    inner = _smooth((photo - seen).mean(axis=axis), 20)
    raw = (seen - outer).mean(axis=axis)
    step = _smooth(raw, 3)
    noise = (raw - step).std(axis=0) / math.sqrt(max(1, len(raw) / 30))
    kept = np.maximum(0, 1 - (2 * noise / np.maximum(np.abs(step), 1e-3)) ** 2)
    return np.asarray(inner + np.clip(step * kept, -MAX_STEP, MAX_STEP), np.float32)


def _smooth(line: Floats, share: int) -> Floats:
    """Return a line of colors smoothed by a triangular moving average over 2/*share* of its length."""
    half = max(1, len(line) // share)
    weights = np.bartlett(2 * half + 3)[1:-1]
    padded = np.pad(line, ((half, half), (0, 0)), mode="edge")
    columns = [np.convolve(column, weights / weights.sum(), mode="valid") for column in padded.T]
    return np.stack(columns, axis=1).astype(np.float32)


# ---------------------------------------------------------------------------- the canvas at the photo's scale


@frozen
class Enlarger:
    """A callable that enlarges rectangles of the canvas from the picture with matched colors."""

    scene: Scene
    source: Any
    margin: int
    mode: str

    def __call__(self, rectangle: Rectangle) -> Any:
        """Return a rectangle of the canvas as an image of the photo's mode."""
        from PIL import Image

        size = rectangle[2] - rectangle[0], rectangle[3] - rectangle[1]
        region = tuple(edge + self.margin for edge in _region(self.scene, rectangle))
        tile = self.source.resize(size, Image.Resampling.LANCZOS, box=region)
        if self.mode == "I;16":
            return Image.fromarray(np.clip(np.rint(np.asarray(tile) * 257), 0, 65535).astype(np.uint16))
        return tile if tile.mode == self.mode else tile.convert(self.mode)


def _enlarger(scene: Scene) -> Enlarger:
    from PIL import Image

    levels, margin = matched(scene)
    mode = scene.photo.mode
    if mode == "I;16":
        gray = levels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        return Enlarger(scene, Image.fromarray(gray), margin, mode)
    source = Image.fromarray(levels)
    return Enlarger(scene, source.convert("L") if mode in {"L", "LA"} else source, margin, mode)


def _assembled(scene: Scene, enlarger: Enlarger, feather: int) -> Any:
    """Return the canvas, assembled from tiles of the enlarged picture and the photo in its box."""
    from PIL import Image

    canvas = scene.canvas
    size = canvas.width, canvas.height
    result = Image.new(scene.photo.mode, size, None)
    rectangles = _around(canvas.box, *size) if not feather else [(0, 0, *size)]
    for tile in (tile for rectangle in rectangles for tile in _tiles(rectangle)):
        result.paste(enlarger(tile), tile[:2])
    result.paste(scene.photo, canvas.box[:2], _mask(scene, feather) if feather else None)
    if not feather:
        for band, line, axis in _seams(scene):
            _join(result, enlarger, band, line, axis)
    return result


def _around(box: Rectangle, width: int, height: int) -> list[Rectangle]:
    """Return the rectangles around a box in an image of *width* by *height*."""
    left, top, right, bottom = box
    found = [
        (0, 0, width, top),
        (0, bottom, width, height),
        (0, top, left, bottom),
        (right, top, width, bottom),
    ]
    return [each for each in found if each[0] < each[2] and each[1] < each[3]]


def _tiles(rectangle: Rectangle) -> Iterator[Rectangle]:
    """Yield the bands of a rectangle, each with about `TILE_PIXELS`."""
    left, top, right, bottom = rectangle
    rows = max(1, TILE_PIXELS // (right - left))
    for start in range(top, bottom, rows):
        yield left, start, right, min(bottom, start + rows)


def _seams(scene: Scene) -> Iterator[tuple[Rectangle, Rectangle, int]]:
    """Yield each side's band outside the seam, the photo's outermost line, and the axis across the seam."""
    left, top, right, bottom = scene.canvas.box
    width, height = scene.canvas.width, scene.canvas.height
    depth = min(32, 3 * math.ceil((right - left) / scene.small.width))
    if top > 0:
        yield (left, max(0, top - depth), right, top), (left, top, right, top + 1), 0
    if bottom < height:
        yield (left, bottom, right, min(height, bottom + depth)), (left, bottom - 1, right, bottom), 0
    if left > 0:
        yield (max(0, left - depth), top, left, bottom), (left, top, left + 1, bottom), 1
    if right < width:
        yield (right, top, min(width, right + depth), bottom), (right - 1, top, right, bottom), 1


def _join(result: Any, enlarger: Enlarger, band: Rectangle, line: Rectangle, axis: int) -> None:
    """Continue the finest detail of the photo a few pixels beyond the seam, so that the seam is invisible."""
    from PIL import Image

    mode, limit = result.mode, 65535 if result.mode == "I;16" else 255
    detail = np.asarray(result.crop(line), np.float32) - np.asarray(enlarger(line), np.float32)
    levels = np.asarray(result.crop(band), np.float32)
    distances = np.arange(1, levels.shape[axis] + 1, dtype=np.float32)
    if band[0] < line[0] or band[1] < line[1]:  # the band lies to the left or above
        distances = distances[::-1]
    weight = np.exp(-3 * distances / len(distances))
    weight = weight[:, None] if axis == 0 else weight[None, :]
    levels = levels + detail * (weight[..., None] if levels.ndim == 3 else weight)
    joined = np.clip(np.rint(levels), 0, limit).astype(np.uint16 if mode == "I;16" else np.uint8)
    if mode in {"RGBA", "LA"}:
        joined[..., -1] = 255
    result.paste(Image.fromarray(joined, None), band[:2])


def _mask(scene: Scene, feather: int) -> Any:
    """Return the opacity of the photo, which decreases towards the expanded sides."""
    from PIL import Image

    width, height = scene.photo.size
    left, top, right, bottom = scene.canvas.box
    x, y = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32) + 0.5
    across, down = np.full(width, feather, np.float32), np.full(height, feather, np.float32)
    across = np.minimum(across, x) if left > 0 else across
    across = np.minimum(across, width - x) if right < scene.canvas.width else across
    down = np.minimum(down, y) if top > 0 else down
    down = np.minimum(down, height - y) if bottom < scene.canvas.height else down
    return Image.fromarray(np.rint(np.minimum(across, down[:, None]) * (255 / feather)).astype(np.uint8))


# ---------------------------------------------------------------------------- metadata


def _metadata(scene: Scene, size: tuple[int, int]) -> dict[str, Any]:
    """Return the `info` of the composite."""
    found = {
        "exif": describe_expanded(scene.exif, size),
        "icc_profile": scene.icc_profile,
        "dpi": scene.photo.info.get("dpi"),
    }
    return {name: value for name, value in found.items() if value}
