"""Conversions between formats, which keep a picture's metadata or raise a clear error."""

import io
from typing import Any

import pytest
from PIL import Image, ImageCms
from support.sample_pictures import claimed

from kling_expand.downloads.files import FORMATS
from kling_expand.errors import DownloadError, InvalidRequest
from kling_expand.geometry import Ratios
from kling_expand.pictures.composite import composite
from kling_expand.pictures.convert import (
    EXIF_IFD,
    MAKER_NOTE,
    Metadata,
    convert,
    encode,
    insert_metadata,
    read_metadata,
)

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
CAMERA = 0x0110  # the EXIF tag of the camera's model


def picture(mode: str, kind: str = "PNG", **options: Any) -> bytes:
    """Return a small picture of this mode."""
    out = io.BytesIO()
    Image.new(mode, (40, 30), **options).save(out, kind)
    return out.getvalue()


def described(kind: str) -> bytes:
    """Return a picture with EXIF data and a color profile."""
    out = io.BytesIO()
    exif = Image.Exif()
    exif[CAMERA] = "a camera"
    Image.new("RGB", (40, 30), "red").save(out, kind, exif=exif.tobytes(), icc_profile=PROFILE)
    return out.getvalue()


def opened(content: bytes) -> Image.Image:
    """Return the decoded picture."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


@pytest.mark.parametrize("wanted", FORMATS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_data_and_color_profile_are_kept(kind: str, wanted: str) -> None:
    """A conversion between any two of the formats keeps the EXIF data and the color profile."""
    image = opened(convert(described(kind), wanted, None))
    assert image.format == wanted.upper()
    assert image.info["icc_profile"] == PROFILE
    assert image.getexif()[CAMERA] == "a camera"


@pytest.mark.parametrize("wanted", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_every_mode_can_be_converted(mode: str, wanted: str) -> None:
    """Every mode of a PNG can be converted, and the size does not change."""
    assert opened(convert(picture(mode), wanted, None)).size == (40, 30)


def test_transparency_becomes_white_in_jpeg_and_stays_elsewhere() -> None:
    """Transparency becomes white in JPEG, and is kept in other formats."""
    clear = picture("RGBA", color=(255, 0, 0, 0))
    assert opened(convert(clear, "jpeg", 100)).getpixel((0, 0)) == (255, 255, 255)
    for wanted in ("png", "webp", "tiff"):
        assert opened(convert(clear, wanted, None)).convert("RGBA").getpixel((0, 0))[3] == 0  # type: ignore[index] # a tuple


def test_sixteen_bits_are_scaled() -> None:
    """A middle gray stays middle gray instead of becoming white."""
    gray = picture("I;16", color=0x8000)
    assert opened(convert(gray, "jpeg", 100)).getpixel((0, 0)) == pytest.approx(128, abs=1)


def test_a_better_quality_is_a_larger_file() -> None:
    """The quality is passed to the encoder, and the default is neither the lowest nor the highest."""
    noise = io.BytesIO()
    Image.effect_noise((200, 200), 90).convert("RGB").save(noise, "PNG")
    for wanted in ("jpeg", "webp"):
        sizes = [len(convert(noise.getvalue(), wanted, quality)) for quality in (20, None, 100)]
        assert sizes == sorted(sizes)
        assert len(set(sizes)) == 3


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", picture("RGB")[:-40], b"<html>", claimed(13_000, 13_000)]
)
def test_an_undecodable_picture_names_the_requested_format(content: bytes) -> None:
    """The error names the requested format."""
    with pytest.raises(DownloadError, match="cannot be converted to webp"):
        convert(content, "webp", None)


ORIENTATION, SOFTWARE, DATE, GPS = 0x0112, 0x0131, 0x0132, 0x8825


def taken(kind: str) -> bytes:
    """Return a photo with a date, a place, a camera and an EXIF orientation."""
    exif, out = Image.Exif(), io.BytesIO()
    exif[CAMERA], exif[DATE], exif[ORIENTATION] = "a camera", "2024:05:01 10:00:00", 6
    exif.get_ifd(GPS)[1] = "N"
    Image.new("RGB", (400, 300), "red").save(out, kind, exif=exif.tobytes(), icc_profile=PROFILE)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("wanted", ["PNG", "JPEG"])
def test_a_picture_gets_the_metadata_of_its_photo(kind: str, wanted: str) -> None:
    """A picture gets the date, place, camera and profile, but not the orientation, and keeps its pixels."""
    before = picture("RGB", wanted, color="navy")
    image = opened(insert_metadata(before, read_metadata(taken(kind))))
    exif = image.getexif()
    assert (exif[CAMERA], exif[DATE], exif[SOFTWARE]) == ("a camera", "2024:05:01 10:00:00", "kling-expand")
    assert exif.get_ifd(GPS)[1] == "N"
    assert ORIENTATION not in exif
    assert image.info["icc_profile"] == PROFILE
    assert image.tobytes() == opened(before).tobytes()


def test_existing_metadata_is_not_replaced() -> None:
    """Existing metadata is not replaced, and a profile for other channels is not added."""
    for kind in ("PNG", "JPEG"):
        own = described(kind)
        assert insert_metadata(own, Metadata(b"MM\0*\0\0\0\x08\0\0", b"other")) == own
    gray = opened(insert_metadata(picture("L"), Metadata(icc_profile=PROFILE)))
    assert "icc_profile" not in gray.info
    assert insert_metadata(picture("RGB", "WEBP"), Metadata(b"x")) == picture("RGB", "WEBP")
    assert insert_metadata(picture("RGB"), read_metadata(picture("RGB"))) == picture("RGB")


def test_metadata_of_an_unreadable_photo_is_an_error() -> None:
    """A photo at a URL, or an unknown photo, raises an error."""
    for photo in (None, "https://x.example/a.jpg"):
        with pytest.raises(InvalidRequest, match="metadata must be the path"):
            read_metadata(photo)


def test_a_long_profile_is_split() -> None:
    """A profile that exceeds one JPEG segment is read back completely."""
    profile = PROFILE + bytes(200_000)
    image = opened(insert_metadata(picture("RGB", "JPEG"), Metadata(icc_profile=profile)))
    assert image.info["icc_profile"] == profile


def square(side: int, mode: str = "RGB") -> Image.Image:
    """Return an image of two areas, in which a photo can be found."""
    image = Image.new("RGB", (side, side), "navy")
    image.paste("orange", (side // 8, side // 4, side // 2, side * 3 // 4))
    return image.convert(mode)


@pytest.mark.parametrize(
    "tags", [{256: 40, 257: 30}, {256: 4000, 257: 3000, 258: (8, 8, 8), 277: 3}, {338: 1}]
)
def test_layout_tags_of_a_photo_do_not_reach_a_tiff(tags: dict[int, Any]) -> None:
    """A TIFF is complete and the same size, whatever width and channels the photo's EXIF data claim."""
    exif, out = Image.Exif(), io.BytesIO()
    exif.update({CAMERA: "a phone", **tags})
    square(64).save(out, "JPEG", exif=exif.tobytes())
    whole = composite(io.BytesIO(out.getvalue()), square(64).resize((96, 64)), Ratios(right=0.5))
    tagged = insert_metadata(picture("RGB"), read_metadata(out.getvalue()))
    saved = io.BytesIO()
    encode(whole, saved, "tiff")
    for content, size in ((saved.getvalue(), (96, 64)), (convert(tagged, "tiff", None), (40, 30))):
        image = opened(content)
        assert (image.size, image.mode, image.getexif()[CAMERA]) == (size, "RGB", "a phone")
    assert not tags.keys() & opened(tagged).getexif().keys()


def test_a_tiff_photo_has_a_full_size_tiff() -> None:
    """The layout of a TIFF photo is not that of its full-size picture."""
    photo, saved = io.BytesIO(), io.BytesIO()
    square(64).save(photo, "TIFF", compression="tiff_lzw")
    encode(composite(photo, square(64).resize((96, 64)), Ratios(right=0.5)), saved, "tiff")
    assert opened(saved.getvalue()).size == (96, 64)


def test_exif_data_too_long_for_a_jpeg_is_shortened(caplog: pytest.LogCaptureFixture) -> None:
    """A JPEG leaves out a long MakerNote, or all EXIF data if that does not suffice, with a warning."""
    for tag, camera in ((MAKER_NOTE, "a camera"), (CAMERA, None)):
        exif, out = Image.Exif(), io.BytesIO()
        exif[CAMERA] = "a camera"
        (exif if tag == CAMERA else exif.get_ifd(EXIF_IFD))[tag] = "x" * 70_000
        Image.new("RGB", (40, 30)).save(out, "PNG", exif=exif.tobytes())
        assert opened(convert(out.getvalue(), "jpeg", None)).getexif().get(CAMERA) == camera
    assert [record.getMessage().partition(" is ")[0] for record in caplog.records] == [
        "the MakerNote of the EXIF data",
        "the EXIF data",
    ]


@pytest.mark.parametrize("space", [b"CMYK", b"Lab ", b"GRAY"])
def test_a_profile_for_other_channels_is_left_out(space: bytes) -> None:
    """A picture never gets a color profile that is for other channels than its own."""
    profile = PROFILE[:16] + space + PROFILE[20:]
    assert "icc_profile" not in opened(insert_metadata(picture("RGB"), Metadata(icc_profile=profile))).info
    for wanted in FORMATS:
        image = Image.new("RGB", (40, 30))
        image.info["icc_profile"] = profile
        saved = io.BytesIO()
        encode(image, saved, wanted)
        assert "icc_profile" not in opened(saved.getvalue()).info


def test_a_gray_profile_is_kept_where_pictures_can_be_gray() -> None:
    """A gray picture keeps its profile in every format except WebP, which only has colors."""
    profile = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    content = insert_metadata(picture("L"), Metadata(icc_profile=profile))
    kept = {wanted for wanted in FORMATS if opened(convert(content, wanted, None)).info.get("icc_profile")}
    assert kept == {*FORMATS} - {"webp"}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_damaged_exif_data_is_left_out(kind: str) -> None:
    """A photo with damaged EXIF data is read, and its picture has none. A paid picture is always saved."""
    content = picture("RGB", kind, color="navy")
    out = io.BytesIO()
    opened(content).save(out, kind, exif=b"Exif\0\0MM\0+not a TIFF header")
    assert read_metadata(out.getvalue()).exif == b""
    assert not opened(convert(out.getvalue(), "tiff", None)).getexif().get(CAMERA)
