"""Drawings of a canvas: the position of the photo, the labels, and the size of the drawing."""

from pathlib import Path

import pytest
from PIL import Image
from support.shell import COFFEE

from kling_expand import Ratios
from kling_expand.pictures.preview import FRAME, LARGEST, SMALLEST, draw, opaque

RIGHT = Ratios(right=0.5)


def test_the_photo_is_at_its_position_in_the_result() -> None:
    """The photo has a frame around it and hatching next to it."""
    picture = draw(COFFEE, RIGHT.canvas(600, 400), ["a line"])
    assert picture.width == 900
    assert picture.height > 400
    assert picture.getpixel((599, 200)) == FRAME
    with Image.open(COFFEE) as photo:
        assert picture.getpixel((300, 200)) == photo.getpixel((300, 200))
    assert 1 < len(picture.crop((605, 5, 895, 150)).getcolors() or ()) < 10


@pytest.mark.parametrize(("side", "longest"), [(300, SMALLEST), (4000, LARGEST), (1000, 1000)])
def test_the_drawing_has_a_readable_size(tmp_path: Path, side: int, longest: int) -> None:
    """Small canvases are enlarged, and large ones are scaled down."""
    Image.new("RGB", (side, side)).save(tmp_path / "photo.png")
    ratios = Ratios(up=0.000001 + (1000 / side - 1 if side == 1000 else 0), down=1e-6)
    picture = draw(str(tmp_path / "photo.png"), ratios.canvas(side, side), [])
    assert picture.width == longest


def test_a_narrow_band_has_no_label() -> None:
    """A narrow band has no label, so that no label covers the photo."""
    wide, narrow = Ratios(right=0.5), Ratios(right=0.02)
    bands = []
    for ratios in (wide, narrow):
        picture = draw(COFFEE, ratios.canvas(600, 400), [])
        bands.append(
            picture.crop((int(600 * picture.width / (600 * (1 + ratios.right))) + 2, 0, *picture.size))
        )
    assert len(bands[0].getcolors() or ()) > 10
    assert len(bands[1].getcolors() or ()) < 10


def test_transparency_becomes_white() -> None:
    """Transparent pixels become white in every mode, and an opaque image is only converted to RGB."""
    half = opaque(Image.new("RGBA", (1, 1), (200, 30, 30, 128)))
    assert half.getpixel((0, 0)) == pytest.approx((227, 142, 142), abs=2)
    assert opaque(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert opaque(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)
