"""The picture side of the emulator: sizes, decoding, pasting, marking."""

import io
import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kling_expand.emulator.painting import pictures
from kling_expand.emulator.painting.canvas import MAX_SIDE, TIER, Canvas, fit_canvas
from kling_expand.emulator.painting.image_headers import Header, PictureError, inspect


def photo(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A smooth but structured scene: no side is flat, no two corners are alike."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    blue = 127 + 90 * np.sin(x / 5) * np.cos(y / 7)
    channels = np.stack([255 * x / width, 255 * y / height, blue], axis=2)
    return Image.fromarray(channels.astype(np.uint8)).convert(mode)


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(float)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def claimed(width: int, height: int) -> bytes:
    """A well-formed PNG that claims a size and holds no more than a few bytes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 3000}])
def test_the_header_of_a_jpeg_is_read(options: dict[str, object]) -> None:
    """Format and size agree with what Pillow wrote, whatever stands before the frame."""
    assert Header("jpeg", 61, 37) == inspect(saved(photo(61, 37), "JPEG", **options))


def test_the_header_of_a_png_is_read() -> None:
    """Format and size agree with what Pillow wrote; what follows the end is no part of the picture."""
    assert Header("png", 61, 37) == inspect(saved(photo(61, 37)) + b"trailing")


def test_jpeg_markers_may_be_padded() -> None:
    """Fill bytes and bare markers before a segment are allowed by the standard."""
    data = saved(photo(61, 37), "JPEG")
    assert Header("jpeg", 61, 37) == inspect(data[:2] + b"\xff\x01\xff\xff" + data[2:])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_cut_off_anywhere_is_refused(kind: str) -> None:
    """No prefix of a picture passes for a picture."""
    data = saved(photo(24, 16), kind)
    for end in range(len(data) - 1):
        with pytest.raises(PictureError):
            inspect(data[:end])


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]))
def test_rubbish_is_refused_in_one_way(body: bytes, start: bytes) -> None:
    """Whatever the bytes, the only exception is PictureError."""
    with pytest.raises(PictureError):
        inspect(start + body)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG"]), st.integers(min_value=0), st.integers(0, 255))
def test_one_wrong_byte_breaks_in_one_way(kind: str, at: int, value: int) -> None:
    """A damaged picture decodes to its size or raises PictureError, and nothing else."""
    data = bytearray(saved(photo(24, 16), kind))
    data[at % len(data)] = value
    try:
        decoded = pictures.decode(bytes(data))
    except PictureError:
        return
    header = inspect(bytes(data))
    assert (header.width, header.height) == decoded.size


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    """A side of zero is not a picture."""
    with pytest.raises(PictureError, match="pixels"):
        inspect(claimed(*size))


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    """A file that claims 2.5 gigapixels is refused, in terms of its size, before Pillow sees it."""
    with pytest.raises(PictureError, match="50000x50000"):
        pictures.outpaint(claimed(50_000, 50_000), (0, 0, 0, 0.5), seed=1, engine="flat")


def test_a_lying_header_is_refused() -> None:
    """A picture with fewer pixels than it claims is broken, not padded."""
    with pytest.raises(PictureError, match="broken png"):
        pictures.decode(claimed(300, 300))


def test_canvas_matches_what_was_seen_live() -> None:
    """640x480 with right 0.5 became 1664x832, its left two thirds the original."""
    assert Canvas(1664, 832, (0, 0, 1109, 832)) == fit_canvas(640, 480, (0, 0, 0, 0.5))


def test_canvas_prefers_multiples_of_32() -> None:
    """600x400 to 16:9, rounded to four decimals as the service's helper does, gives 1536x864."""
    assert Canvas(1536, 864, (120, 0, 1416, 864)) == fit_canvas(600, 400, (0, 0, 0.0926, 0.0926))


sides = st.integers(300, 6000)
ratios = st.floats(0, 2, allow_subnormal=False)


@given(sides, sides, ratios, ratios, ratios, ratios)
def test_canvas_keeps_the_aspect_and_the_place(  # noqa: PLR0917 - two sizes, four sides
    width: int, height: int, up: float, down: float, left: float, right: float
) -> None:
    """Each side is within a pixel of the exact aspect, each edge of the box within a pixel of its place."""
    across, along = 1 + left + right, 1 + up + down
    aspect = across * width / (along * height)
    made = fit_canvas(width, height, (up, down, left, right))
    assert max(made.width, made.height) <= MAX_SIDE
    assert abs(made.width - made.height * aspect) <= 1
    assert abs(made.height - made.width / aspect) <= 1
    assert made.width * made.height <= 1.3 * TIER
    x = made.width / across
    y = made.height / along
    exact = (left * x, up * y, (left + 1) * x, (up + 1) * y)
    assert np.allclose(made.box, exact, rtol=0, atol=1)
    assert 0 <= made.box[0] < made.box[2] <= made.width
    assert 0 <= made.box[1] < made.box[3] <= made.height


@given(st.integers(1, 60_000), st.integers(1, 60_000), ratios, ratios)
def test_canvas_is_capped_for_any_aspect(width: int, height: int, up: float, left: float) -> None:
    """Even a line of pixels gets a canvas with room for it, and none larger than the cap."""
    made = fit_canvas(width, height, (up, 0, left, 0))
    assert 1 <= min(made.width, made.height) <= max(made.width, made.height) <= MAX_SIDE
    assert made.box[2] == made.width
    assert made.box[3] == made.height
    assert made.box[0] < made.box[2]
    assert made.box[1] < made.box[3]


@pytest.mark.parametrize("bad", [(0, 40, 0), (60, 40, -0.1), (60, 40, float("nan")), (60, 40, float("inf"))])
def test_canvas_refuses_what_has_no_size(bad: tuple[int, int, float]) -> None:
    """Empty pictures, negative ratios and numbers that are none raise ValueError."""
    with pytest.raises(ValueError, match="no canvas"):
        fit_canvas(bad[0], bad[1], (0, 0, 0, bad[2]))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_any_png_mode_decodes_as_a_viewer_shows_it(mode: str) -> None:
    """Grey, palette and alpha all become the RGB they stand for."""
    source = photo(32, 24, "RGB").convert("L").convert(mode) if mode in {"LA", "1"} else photo(32, 24, mode)
    expected = np.asarray(source.convert("RGB")).astype(int)
    assert np.abs(np.asarray(pictures.decode(saved(source))).astype(int) - expected).max() <= 1


def test_transparency_is_laid_on_white() -> None:
    """A clear pixel becomes white, a half clear black one grey, also for a palette."""
    source = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    source.putpixel((1, 0), (0, 0, 0, 128))
    source.putpixel((2, 0), (0, 0, 0, 0))
    assert [np.asarray(pictures.decode(saved(source)))[0, x, 0] for x in range(3)] == [0, 127, 255]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30])
    decoded = pictures.decode(saved(palette, transparency=bytes([0])))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_cut() -> None:
    """Half of 65535 is middle grey; cutting at 255 would make everything white."""
    source = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert [np.asarray(pictures.decode(saved(source)))[0, x, 0] for x in range(3)] == [0, 128, 255]


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    """Printers' JPEGs come out in the colours they went in, not inverted."""
    source = photo(32, 24)
    decoded = np.asarray(pictures.decode(saved(source.convert("CMYK"), "JPEG", quality=95))).astype(float)
    assert np.abs(decoded - np.asarray(source)).mean() < 6


def test_pixels_are_taken_as_stored() -> None:
    """An EXIF orientation does not turn the picture, so the ratios mean the stored sides."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(photo(60, 40), "JPEG", exif=exif)
    assert pictures.decode(data).size == (60, 40)
    assert Header("jpeg", 60, 40) == inspect(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_original_lies_untouched_in_its_box(kind: str) -> None:
    """Scaled back to its size, the box is the original; what is around it is as wide as was asked."""
    data = saved(photo(300, 200), kind)
    made = pictures.outpaint(data, (0.25, 0, 0, 0.5), seed=3, engine="flat")
    place = fit_canvas(300, 200, (0.25, 0, 0, 0.5))
    with Image.open(io.BytesIO(made.data)) as result:
        assert (place.width, place.height) == result.size
        back = result.crop(place.box).resize((300, 200), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(back).astype(float) - pixels(data)).mean() < 2
    assert (made.media_type, made.engine, made.watermarked) == ("image/png", "flat", None)


def test_a_picture_survives_the_way_between_processes() -> None:
    """Results can be pickled, and their bytes stay out of logs."""
    made = pictures.outpaint(saved(photo()), (0, 0, 0, 0.5), seed=1, engine="flat", watermark=True)
    assert made == pickle.loads(pickle.dumps(made))
    assert "PNG" not in repr(made)


def test_the_mark_is_drawn_on_a_copy_only() -> None:
    """The marked copy differs at the lower right, visibly but not opaquely, and nowhere else."""
    made = pictures.outpaint(saved(photo()), (0, 0, 0, 0.5), seed=1, engine="flat", watermark=True)
    assert made.watermarked is not None
    difference = np.abs(pixels(made.watermarked) - pixels(made.data)).max(axis=2)
    ys, xs = np.nonzero(difference)
    height, width = difference.shape
    assert ys.min() > 0.8 * height
    assert xs.min() > 0.55 * width
    assert 0.005 < (difference > 30).mean() < 0.1
    assert (pixels(made.watermarked)[difference > 30] < 255).any(axis=1).all()


@pytest.mark.parametrize("colour", ["black", "white", "gray"])
def test_the_mark_reads_on_any_ground(colour: str) -> None:
    """On black, white and grey the mark spans a contrast one can read."""
    marked = np.asarray(pictures.watermarked(Image.new("RGB", (400, 300), colour))).astype(float)
    assert np.ptp(marked[250:, 200:]) > 60
