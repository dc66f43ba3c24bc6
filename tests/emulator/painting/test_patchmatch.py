"""The PatchMatch engine: natural continuations without visible seams."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.sample_pictures import floats, grain

from kling_expand.emulator.painting import patchmatch, pictures
from kling_expand.emulator.painting.canvas import Canvas, Ratios, fit_canvas

PHOTOS = Path(__file__).parents[3] / "examples" / "photos"


@lru_cache  # painting takes seconds, and several tests use the same picture
def expanded(name: str, ratios: Ratios, seed: int = 1) -> tuple[Image.Image, Image.Image, Canvas]:
    """Return the original, its expansion, and the expected canvas."""
    data = (PHOTOS / name).read_bytes()
    original = Image.open(io.BytesIO(data)).convert("RGB")
    made = pictures.outpaint(data, ratios, seed=seed)
    result = Image.open(io.BytesIO(made.data)).convert("RGB")
    return original, result, fit_canvas(*original.size, ratios)


def test_a_photo_is_continued_to_wide_screen() -> None:
    """The middle is the original, and the new sides are not flat, black or mirrored."""
    original, result, place = expanded("coffee.jpg", (0, 0, 0.0926, 0.0926))
    back = result.crop(place.box).resize(original.size, Image.Resampling.LANCZOS)
    assert result.size == (1536, 864)
    assert np.abs(floats(back) - floats(original)).mean() < 6
    left, right = place.box[0], result.width - place.box[2]
    strips = {0: left, place.box[2]: right}
    pixels = floats(result)
    for start, width in strips.items():
        strip = pixels[:, start : start + width]
        edge = (
            pixels[:, place.box[0] : place.box[0] + width] if start == 0 else pixels[:, start - width : start]
        )
        assert strip.std() > 15
        assert strip.mean() > 25
        assert np.abs(strip - edge[:, ::-1]).mean() > 12


def test_the_seam_is_invisible() -> None:
    """Colors change across the seam as much as between columns near it."""
    _, result, place = expanded("coffee.jpg", (0, 0, 0.0926, 0.0926))
    pixels = floats(result)
    change = np.abs(np.diff(pixels, axis=1)).mean(axis=(0, 2))
    for seam in (place.box[0], place.box[2]):
        around = np.concatenate([change[seam - 14 : seam - 2], change[seam + 2 : seam + 14]])
        assert change[seam - 1] < 1.6 * around.mean() + 0.5
        step = pixels[:, seam : seam + 4].mean(axis=(0, 1)) - pixels[:, seam - 4 : seam].mean(axis=(0, 1))
        assert np.abs(step).max() < 4


def test_seeds_decide_the_picture() -> None:
    """Equal seeds give equal pixels, and another seed gives another picture."""
    picture, place = grain(), Canvas(160, 60, (0, 0, 90, 60))
    first, again, other = (floats(patchmatch.paint_patches(picture, place, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.abs(first - other)[:, 90:].mean() > 3


@pytest.mark.parametrize(
    "ratios", [(0.5, 0, 0, 0), (0, 0.5, 0, 0), (0, 0, 0.5, 0), (0, 0, 0, 0.5), (0.3,) * 4]
)
def test_every_side_is_filled_with_brightness_and_grain(ratios: Ratios) -> None:
    """A new side has grain and the brightness of the nearest part of the original."""
    picture = grain()
    place = Canvas(*_around(picture.size, ratios))
    pixels = floats(patchmatch.paint_patches(picture, place, seed=3))
    hole = np.ones(pixels.shape[:2], bool)
    left, top, right, bottom = place.box
    hole[top:bottom, left:right] = False
    nearest = np.pad(
        floats(picture), ((top, place.height - bottom), (left, place.width - right), (0, 0)), mode="edge"
    )
    assert pixels[hole].min() > 10
    assert abs(pixels[hole].mean() - nearest[hole].mean()) < 25
    rough = np.abs(np.diff(pixels, axis=1))[hole[:, 1:] & hole[:, :-1]].mean()
    assert rough > 0.3 * np.abs(np.diff(floats(picture), axis=1)).mean()


def _around(size: tuple[int, int], ratios: Ratios) -> tuple[int, int, tuple[int, int, int, int]]:
    """Return the canvas at the scale of the original."""
    width, height = size
    up, down, left, right = (
        round(r * side) for r, side in zip(ratios, (height, height, width, width), strict=True)
    )
    return width + left + right, height + up + down, (left, up, left + width, up + height)


def test_fine_grain_continues_in_the_new_area() -> None:
    """The new area has grain that the small canvas does not contain."""
    picture = grain(900, 120)
    pixels = floats(patchmatch.paint_patches(picture, Canvas(1050, 120, (0, 0, 900, 120)), seed=1))
    rough = np.abs(np.diff(pixels, axis=1)).mean(axis=(0, 2))
    assert rough[905:1045].mean() > 0.7 * np.abs(np.diff(floats(picture), axis=1)).mean()


def test_a_gradient_continues_beyond_the_seam() -> None:
    """A smooth gradient continues beyond the seam without a crease."""
    rows = np.linspace(60, 180, 80)[:, None, None] + np.zeros((80, 100, 3))
    place = Canvas(100, 120, (0, 40, 100, 120))
    pixels = floats(patchmatch.paint_patches(Image.fromarray(rows.astype(np.uint8)), place, seed=1)).mean(
        axis=(1, 2)
    )
    assert np.abs(pixels[37:43] - pixels[40]).max() < 8
    assert pixels[34] < pixels[40] + 1


def test_the_guide_of_an_outside_pixel_is_near_its_side() -> None:
    """The guide of an inside pixel is its own position, and that of an outside pixel is near its side."""
    place = Canvas(200, 140, (40, 30, 160, 110))
    where = patchmatch.guide(place, seed=1)
    ys = (np.arange(80) + 0.5) / 80
    assert np.allclose(where[30:110, 40:160, 0], ys[:, None], atol=1e-6)
    assert where[:30, :, 0].mean() < 0.2
    assert where[110:, :, 0].mean() > 0.8
    assert where[:, :40, 1].mean() < 0.2 * where[:, 160:, 1].mean()
    assert where.min() >= 0
    assert where.max() <= 1


numbers = st.integers(1, 2000)


@settings(max_examples=200)
@given(numbers, numbers, st.integers(0, 900), st.integers(0, 900), st.integers(0, 900), st.integers(0, 900))
def test_the_small_canvas_covers_the_large_one(  # noqa: PLR0917 - a size and four margins
    width: int, height: int, up: int, down: int, left: int, right: int
) -> None:
    """Scaled up around its box, the small canvas covers the large one exactly."""
    large = Canvas(left + width + right, up + height + down, (left, up, left + width, up + height))
    small, x, y = patchmatch.shrink(large)
    assert abs((small.box[2] - small.box[0]) * x - width) < 1e-6
    assert abs((small.box[3] - small.box[1]) * y - height) < 1e-6
    margins = [(small.box[0] * x, left, x), ((small.width - small.box[2]) * x, right, x)]
    margins += [(small.box[1] * y, up, y), ((small.height - small.box[3]) * y, down, y)]
    for reached, wanted, step in margins:
        assert wanted - 1e-6 <= reached < wanted + step + 1e-6


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 1)])
def test_the_smallest_originals_are_continued_too(size: tuple[int, int]) -> None:
    """An original of a few pixels is continued."""
    picture = Image.new("RGB", size, (200, 100, 50))
    place = Canvas(size[0] + 12, size[1] + 10, (5, 4, 5 + size[0], 4 + size[1]))
    assert patchmatch.paint_patches(picture, place, seed=1).size == (place.width, place.height)


def test_nothing_to_paint_leaves_the_original() -> None:
    """A canvas of the size of the original returns it unchanged."""
    picture = grain()
    made = patchmatch.paint_patches(picture, Canvas(90, 60, (0, 0, 90, 60)), seed=1)
    assert np.array_equal(floats(picture), floats(made))
