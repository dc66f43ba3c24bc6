"""The format and size of a photo are read from its bytes, and an incomplete photo is refused."""

import contextlib
import io
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from kling_expand.api.photo import read_shape
from kling_expand.errors import ImageError

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))


def shape_of(content: bytes) -> tuple[str, int, int]:
    return read_shape(io.BytesIO(content), len(content), "it")


def reason(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        shape_of(content)
    assert caught.value.field == "image"
    return str(caught.value)


def picture(size: tuple[int, int] = (61, 47), *, mode: str = "RGB", **options: Any) -> bytes:
    target = io.BytesIO()
    pixels = Random(1).randbytes(size[0] * size[1])
    noise = Image.frombytes("L", size, pixels).convert(mode)
    noise.save(target, options.pop("format", "JPEG"), **options)
    return target.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def segment(marker: int, data: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


THUMBNAIL = picture((16, 12))
WHOLE = {
    "png": picture(format="PNG"),
    "png-interlaced-palette": picture(mode="P", format="PNG", compress_level=0),
    "jpeg": picture(),
    "jpeg-progressive": picture(progressive=True, quality=95),
    "jpeg-restarts": picture(restart_marker_blocks=1),
    "jpeg-with-thumbnail": picture(exif=b"Exif\x00\x00" + THUMBNAIL, comment=b"\xff\xd9"),
    "jpeg-gray": picture(mode="L"),
    "jpeg-cmyk": picture(mode="CMYK"),
}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 640, 480, 8, 2, 0, 0, 0))
FRAME = segment(0xC0, struct.pack(">BHHB", 8, 480, 640, 1) + b"\x01\x11\x00")
SCAN = segment(0xDA, b"\x01\x01\x00\x00\x3f\x00") + b"\x12\x34\xff\x00\x56"


@pytest.mark.parametrize("name", WHOLE)
def test_format_and_size_of_a_complete_photo_are_read(name: str) -> None:
    """The size of a complete photo is read correctly in every encoding."""
    assert shape_of(WHOLE[name]) == (name[:4].rstrip("-").upper(), 61, 47)


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_a_real_photo_has_the_size_that_pillow_reads(path: Path) -> None:
    """The size of each example photo equals the size that Pillow reads."""
    with Image.open(path) as image:
        assert shape_of(path.read_bytes()) == ("JPEG", *image.size)


@pytest.mark.parametrize("name", WHOLE)
def test_a_photo_truncated_anywhere_is_refused(name: str) -> None:
    """A photo that is truncated at any length is refused."""
    content = WHOLE[name]
    for length in range(len(content)):
        assert reason(content[:length])


@given(st.sampled_from(PHOTOS), st.floats(0, 1, exclude_max=True))
def test_a_real_photo_truncated_anywhere_is_refused(path: Path, part: float) -> None:
    """An example photo that is truncated at any length is refused."""
    content = path.read_bytes()
    assert reason(content[: int(part * len(content))])


@pytest.mark.parametrize("name", WHOLE)
def test_bytes_after_the_end_are_ignored(name: str) -> None:
    """Bytes after the end marker, as some cameras append them, are ignored."""
    assert shape_of(WHOLE[name] + b"\x00\xff\xd8 more") == shape_of(WHOLE[name])


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", SIGNATURE, SIGNATURE + HEADER, b"\xff\xd8", b"\xff\xd8" + FRAME]),
)
@example(b"\xff\xd9", b"\xff\xd8" + FRAME)
@example(b"\xff\xc0\x00\x02", b"\xff\xd8")
def test_any_bytes_give_a_size_or_an_image_error(content: bytes, start: bytes) -> None:
    """Any bytes lead to a size or an `ImageError`, in bounded time."""
    try:
        kind, width, height = shape_of(start + content)
    except ImageError:
        return
    assert kind in {"PNG", "JPEG"}
    assert width >= 0
    assert height >= 0


@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_a_damaged_photo_gives_a_size_or_an_image_error(name: str, data: st.DataObject) -> None:
    """A damaged photo leads to a size or an `ImageError`."""
    content = bytearray(WHOLE[name])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert shape_of(bytes(content))[0] in {"PNG", "JPEG"}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("WebP", picture(format="WEBP")),
        ("a GIF", picture(format="GIF")),
        ("a BMP", picture(format="BMP")),
        ("TIFF", picture(format="TIFF")),
        ("TIFF", b"MM\x00*\x00\x00\x00\x08"),
        ("a PDF", picture(format="PDF")),
        ("AVIF", b"\x00\x00\x00\x20ftypavif\x00\x00\x00\x00"),
        ("HEIC", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00"),
        ("HEIC", b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00"),
        ("JPEG XL", b"\xff\x0a\xfa\x7f"),
        ("JPEG 2000", b"\x00\x00\x00\x0cjP  \r\n\x87\n"),
        ("a Photoshop file", b"8BPS\x00\x01"),
        ("SVG", b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("SVG", b"  <svg/>"),
        ("an HTML page", b"<!DOCTYPE html><title>404</title>"),
        ("an HTML page", b"\n<html>"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unsupported_format_is_named_with_advice(kind: str, content: bytes) -> None:
    """The error names the other format, and says how to convert it."""
    assert f"which is {kind}; " in reason(content)
    assert "Pillow" in reason(content)


@pytest.mark.parametrize(
    "content",
    [b"hello", b"\x00" * 40, b"\x89PNG\n\x1a\n" + HEADER, b"BM is not a bitmap"],
    ids=["text", "zeros", "rewritten", "bm"],
)
def test_bytes_that_are_not_a_photo_are_refused(content: bytes) -> None:
    """Bytes that are not a photo are refused, including a PNG with rewritten line endings."""
    assert "must be PNG or JPEG" in reason(content)


@pytest.mark.parametrize(
    "content", [b"iVBORw0KGgoAAAANSUhEUg", b"\n/9j/4AAQSkZJRg", b"data:image/png;base64,iVBO"]
)
def test_base64_text_is_recognized(content: bytes) -> None:
    """A photo that is still Base64 text is refused with a message that says so."""
    assert "Base64 text" in reason(content)


@pytest.mark.parametrize(
    "content",
    [
        SIGNATURE + chunk(b"IDAT", b"x") + HEADER + chunk(b"IEND"),
        SIGNATURE + chunk(b"IHDR", b"\x00" * 12) + chunk(b"IDAT") + chunk(b"IEND"),
        SIGNATURE + HEADER + chunk(b"IEND"),
        SIGNATURE + HEADER + chunk(b"tEXt") * 100_000 + chunk(b"IDAT") + chunk(b"IEND"),
        b"\xff\xd8" + FRAME + b"\xff\xd9",
        b"\xff\xd8" + SCAN + b"\xff\xd9",
        b"\xff\xd8\xff\xe0\x00\x00" + FRAME + SCAN + b"\xff\xd9",
        b"\xff\xd8" + FRAME + segment(0xFE) * 100_000 + SCAN + b"\xff\xd9",
    ],
    ids=[
        "late-header",
        "short-header",
        "no-pixels",
        "chunks",
        "no-scan",
        "no-frame",
        "no-length",
        "segments",
    ],
)
def test_a_malformed_photo_is_refused(content: bytes) -> None:
    """Header, pixels and end must be present in order, with a limited number of segments."""
    assert "must be a well-formed" in reason(content)


def test_markers_are_found_across_window_boundaries() -> None:
    """Fill bytes, stuffing and scans that cross a reading window neither hide a marker nor count as one."""
    for length in [*range(20), *range(65_530, 65_560)]:
        scan = SCAN + b"\xff\x00" * (length // 2) + b"\xab" * (length % 2)
        assert shape_of(b"\xff\xd8\xff\xff" + FRAME + scan + b"\xff" * 3 + b"\xd9") == ("JPEG", 640, 480)
        assert "truncated" in reason(b"\xff\xd8" + FRAME + scan + b"\xff\xd0\xff\x00\xff")


def test_a_short_last_segment_is_not_a_truncation() -> None:
    """An empty comment just before the end marker is not a truncation."""
    assert shape_of(b"\xff\xd8" + FRAME + SCAN + segment(0xFE) + b"\xff\xd9") == ("JPEG", 640, 480)


def test_a_file_that_shrinks_while_being_read_is_refused() -> None:
    """A file that shrinks while it is being read is refused as incomplete."""
    with pytest.raises(ImageError, match="truncated"):
        read_shape(io.BytesIO(SIGNATURE + HEADER[:10]), 10_000, "it")
