"""Registration: the position of the original in a picture, to a fraction of a pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.large_photos import texture
from kling_expand import Ratios
from kling_expand.emulator.painting.pictures import misregistered
from kling_expand.pictures.registration import register

FRAME = texture(420, 280, seed=1)
RATIOS = Ratios(0.2, 0.2, 0.25, 0.25)
CANVAS = RATIOS.canvas(280, 200)
ORIGINAL = FRAME.crop(CANVAS.box)


@settings(max_examples=25)
@given(st.floats(-6, 6), st.floats(-6, 6), st.floats(0.98, 1.02))
def test_shift_and_scale_are_found(shift_x: float, shift_y: float, scale: float) -> None:
    """With any small shift and scale, each edge is found to a tenth of a pixel."""
    found = register(ORIGINAL, misregistered(FRAME, shift_x, shift_y, scale), CANVAS)
    assert found.matches
    for edge, (given_at, middle, shift) in zip(
        found.box,
        zip(CANVAS.box, (210, 140, 210, 140), (shift_x, shift_y, shift_x, shift_y), strict=True),
        strict=True,
    ):
        assert edge == pytest.approx(middle + (given_at - middle) * scale + shift, abs=0.1)


def test_other_colors_do_not_move_the_box() -> None:
    """Brightness, contrast and a repainted part move the box by at most a tenth of a pixel."""
    changed = np.asarray(FRAME).astype(float) * 0.7 + 40
    changed[100:150, 150:220] = 128
    found = register(ORIGINAL, Image.fromarray(changed.astype(np.uint8)), CANVAS)
    assert found.matches
    assert found.box == pytest.approx(CANVAS.box, abs=0.1)


@pytest.mark.parametrize(("x", "y"), [(-70, 0), (0, 40), (60, -40)])
def test_an_original_at_another_position_is_found(x: int, y: int) -> None:
    """An original at another position is found, and `offset` is its distance."""
    picture = texture(420, 280, seed=2)
    picture.paste(ORIGINAL, (CANVAS.box[0] + x, CANVAS.box[1] + y))
    found = register(ORIGINAL, picture, CANVAS)
    assert found.matches
    assert found.offset == pytest.approx(np.hypot(x, y), abs=0.2)


def test_another_picture_does_not_match() -> None:
    """Another scene, a mirrored picture and an empty picture do not match."""
    for other in (texture(420, 280, seed=3), FRAME.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        assert not register(ORIGINAL, other, CANVAS).matches
    assert not register(ORIGINAL, Image.new("RGB", FRAME.size, "gray"), CANVAS).matches


def test_a_plain_original_is_not_moved() -> None:
    """A plain original is not moved, and matches if the picture has its color there."""
    plain = Image.new("RGB", ORIGINAL.size, (90, 120, 150))
    picture = texture(420, 280, seed=4)
    picture.paste(plain, CANVAS.box[:2])
    found = register(plain, picture, CANVAS)
    assert found.matches
    assert found.offset < 0.5
