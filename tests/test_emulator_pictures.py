"""The picture side of the emulator: sizes, decoding, pasting, marking."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kling_expand.emulator import pictures


def photo(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A smooth but structured scene: no side is flat, no two corners are alike."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    red = 255 * x / width
    green = 255 * y / height
    blue = 127 + 90 * np.sin(x / 5) * np.cos(y / 7)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8)).convert(mode)


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(float)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_header_is_read_without_decoding(kind: str) -> None:
    """Format and size agree with what Pillow wrote."""
    assert pictures.Header(kind.lower(), 61, 37) == pictures.inspect(saved(photo(61, 37), kind))


def test_canvas_matches_what_was_seen_live() -> None:
    """640x480 with right 0.5 became 1664x832, its left two thirds the original."""
    assert pictures.Canvas(1664, 832, (0, 0, 1109, 832)) == pictures.canvas(640, 480, 0, 0, 0, 0.5)
