"""Decoding, pasting, watermarks, and the choice of an engine."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from support.sample_pictures import claimed, floats, photo, pixels, saved

from kling_expand.emulator.painting import engine, pictures
from kling_expand.emulator.painting.canvas import fit_canvas
from kling_expand.emulator.painting.image_headers import Header, PictureError, inspect


def test_an_unknown_engine_is_named_with_the_known_ones() -> None:
    """The message has the wrong name and the known names."""
    with pytest.raises(engine.UnknownEngine, match=r"flat.*patchmatch.*'crayon'"):
        pictures.find_engine("crayon")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG"]), st.integers(min_value=0), st.integers(0, 255))
def test_a_damaged_picture_raises_only_picture_error(kind: str, at: int, value: int) -> None:
    """A damaged picture either decodes to its size or raises PictureError."""
    data = bytearray(saved(photo(24, 16), kind))
    data[at % len(data)] = value
    try:
        decoded = pictures.decode(bytes(data))
    except PictureError:
        return
    header = inspect(bytes(data))
    assert (header.width, header.height) == decoded.size


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    """A header of 2.5 gigapixels is refused before Pillow reads the file."""
    with pytest.raises(PictureError, match="50000x50000"):
        pictures.outpaint(claimed(50_000, 50_000), (0, 0, 0, 0.5), seed=1, engine="flat")


def test_a_second_header_is_refused_before_its_pixels_are_decoded() -> None:
    """A picture whose second header has another size is refused before it is decoded."""
    first, second = claimed(400, 400), claimed(13_000, 13_000)
    data = first[:33] + second[8:]
    assert inspect(data) == Header("png", 400, 400)
    with pytest.raises(PictureError, match="a second header says 13000x13000"):
        pictures.decode(data)


def test_a_header_that_claims_too_many_pixels_is_refused() -> None:
    """A picture with fewer pixels than its header claims is refused as broken."""
    with pytest.raises(PictureError, match="broken png"):
        pictures.decode(claimed(300, 300))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_any_png_mode_decodes_as_a_viewer_shows_it(mode: str) -> None:
    """Gray, palette and alpha pictures become the RGB that a viewer shows."""
    source = photo(32, 24, "RGB").convert("L").convert(mode) if mode in {"LA", "1"} else photo(32, 24, mode)
    expected = np.asarray(source.convert("RGB")).astype(int)
    assert np.abs(np.asarray(pictures.decode(saved(source))).astype(int) - expected).max() <= 1


def test_transparent_pixels_become_white() -> None:
    """A transparent pixel becomes white, and a half-transparent black one becomes gray."""
    source = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    source.putpixel((1, 0), (0, 0, 0, 128))
    source.putpixel((2, 0), (0, 0, 0, 0))
    assert [np.asarray(pictures.decode(saved(source)))[0, x, 0] for x in range(3)] == [0, 127, 255]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30])
    decoded = pictures.decode(saved(palette, transparency=bytes([0])))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_cut() -> None:
    """Half of 65535 becomes medium gray."""
    source = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert [np.asarray(pictures.decode(saved(source)))[0, x, 0] for x in range(3)] == [0, 128, 255]


def test_a_cmyk_jpeg_keeps_its_colors() -> None:
    """A CMYK JPEG keeps its colors and is not inverted."""
    source = photo(32, 24)
    decoded = np.asarray(pictures.decode(saved(source.convert("CMYK"), "JPEG", quality=95))).astype(float)
    assert np.abs(decoded - np.asarray(source)).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("space", "kept"), [(b"RGB ", True), (b"GRAY", False), (b"CMYK", False)])
def test_an_rgb_profile_is_kept(kind: str, space: bytes, *, kept: bool) -> None:
    """The result has the RGB profile of its original, and a profile of another color space is dropped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = space
    out = io.BytesIO()
    photo(40, 30).save(out, kind, icc_profile=bytes(profile))
    picture = pictures.outpaint(out.getvalue(), (0, 0, 0, 0.5), seed=1, engine="flat", watermark=True)
    for data in (picture.data, picture.watermarked or b""):
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.info.get("icc_profile") == (bytes(profile) if kept else None)


def test_pixels_are_taken_as_stored() -> None:
    """An EXIF orientation is not applied, so ratios refer to the stored sides."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(photo(60, 40), "JPEG", exif=exif)
    assert pictures.decode(data).size == (60, 40)
    assert Header("jpeg", 60, 40) == inspect(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_original_is_unchanged_in_its_box(kind: str) -> None:
    """The box of the result, scaled back, is the original."""
    data = saved(photo(300, 200), kind)
    made = pictures.outpaint(data, (0.25, 0, 0, 0.5), seed=3, engine="flat")
    place = fit_canvas(300, 200, (0.25, 0, 0, 0.5))
    with Image.open(io.BytesIO(made.data)) as result:
        assert (place.width, place.height) == result.size
        back = result.crop(place.box).resize((300, 200), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(back).astype(float) - pixels(data)).mean() < 2
    assert (made.media_type, made.engine, made.watermarked) == ("image/png", "flat", None)


def test_a_picture_can_be_pickled() -> None:
    """A result can be pickled, and its repr contains no bytes of the picture."""
    made = pictures.outpaint(saved(photo()), (0, 0, 0, 0.5), seed=1, engine="flat", watermark=True)
    assert made == pickle.loads(pickle.dumps(made))
    assert "PNG" not in repr(made)


def test_the_watermark_is_drawn_only_on_a_copy() -> None:
    """The translucent watermark changes only the lower right of a copy."""
    made = pictures.outpaint(saved(photo()), (0, 0, 0, 0.5), seed=1, engine="flat", watermark=True)
    assert made.watermarked is not None
    difference = np.abs(pixels(made.watermarked) - pixels(made.data)).max(axis=2)
    ys, xs = np.nonzero(difference)
    height, width = difference.shape
    assert ys.min() > 0.8 * height
    assert xs.min() > 0.55 * width
    assert 0.005 < (difference > 30).mean() < 0.1
    assert (pixels(made.watermarked)[difference > 30] < 255).any(axis=1).all()


@pytest.mark.parametrize("color", ["black", "white", "gray"])
def test_the_watermark_is_legible_on_any_background(color: str) -> None:
    """The watermark has enough contrast on black, white and gray."""
    marked = np.asarray(pictures.watermarked(Image.new("RGB", (400, 300), color))).astype(float)
    assert np.ptp(marked[250:, 200:]) > 60


@pytest.mark.parametrize("misregister", ["3,-2,1", "0.4,0.7,1.006", "-5,0,0.99"])
def test_a_misregistered_picture_is_moved_and_scaled(misregister: str) -> None:
    """A white square moves by the given shifts and grows by the scale, to a tenth of a pixel."""
    shift_x, shift_y, scale = map(float, misregister.split(","))
    before = np.zeros((200, 300, 3), np.uint8)
    before[60:100, 200:260] = 255
    after = floats(pictures.misregistered(Image.fromarray(before), shift_x, shift_y, scale))[..., 0]
    y, x = np.mgrid[0:200, 0:300] + 0.5
    assert (after * x).sum() / after.sum() == pytest.approx(150 + (230 - 150) * scale + shift_x, abs=0.1)
    assert (after * y).sum() / after.sum() == pytest.approx(100 + (80 - 100) * scale + shift_y, abs=0.1)
    assert after.sum() / 255 == pytest.approx(60 * 40 * scale**2, rel=0.01)


def test_a_misregistered_picture_has_no_empty_edge() -> None:
    """Where the content no longer reaches, the edge is repeated: a white picture stays white."""
    white = Image.new("RGB", (64, 48), "white")
    assert pictures.misregistered(white, -30, 20, 0.9).getcolors() == [(64 * 48, (255, 255, 255))]


def test_outpaint_applies_a_misregistration() -> None:
    """With a misregistration, the original is outside its box, and the picture keeps its size."""
    data = saved(photo(300, 200))
    exact, moved = (
        pictures.outpaint(data, (0, 0, 0, 0.5), seed=1, engine="flat", misregister=text).data
        for text in ("", "4,0,1")
    )
    assert pixels(exact).shape == pixels(moved).shape
    assert np.abs(pixels(moved)[:, 20:500] - pixels(exact)[:, 16:496]).mean() < 0.5
