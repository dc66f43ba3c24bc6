"""Format and size of PNG and JPEG files, read without decoding a pixel.

No memory is allocated for the size in a header, so a small file that claims a billion pixels costs nothing.
"""

import struct
import zlib
from collections.abc import Iterator

from attrs import frozen

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# Start of frame (ITU T.81, table B.1): C0 to CF except DHT (C4), JPG (C8) and DAC (CC).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers without a length: RST0 to RST7 and TEM
_SCAN = 0xDA
_END = b"\xff\xd9"


class PictureError(ValueError):
    """The error for bytes that are not a usable picture. The message has the reason."""


@frozen
class Header:
    """The format, "png" or "jpeg", and the stored size in pixels, before any EXIF orientation."""

    format: str
    width: int
    height: int


def inspect(image: bytes) -> Header:
    """Return format and size of a picture.

    Raises:
        PictureError: if the format is neither PNG nor JPEG, or the file is broken or incomplete.
    """
    if image.startswith(_PNG):
        header = Header("png", *_png_size(image))
    elif image.startswith(_JPEG):
        header = Header("jpeg", *_jpeg_size(image))
    else:
        raise PictureError("neither PNG nor JPEG")
    if header.width < 1 or header.height < 1:
        raise PictureError(f"a picture must have pixels, got {header.width}x{header.height} pixels")
    return header


def _png_size(image: bytes) -> tuple[int, int]:
    """Return width and height from IHDR. A complete file has chunks up to IEND."""
    ihdr = image[8:33]
    if len(ihdr) < 25 or ihdr[:8] != b"\0\0\0\rIHDR" or zlib.crc32(ihdr[4:21]) != int.from_bytes(ihdr[21:25]):
        raise PictureError("PNG with a broken header")
    kinds = list(_png_chunks(image))
    if b"IDAT" not in kinds or kinds[-1] != b"IEND":
        raise PictureError("PNG cut off before its end")
    width, height = struct.unpack(">II", ihdr[8:16])
    return width, height


def _png_chunks(image: bytes) -> Iterator[bytes]:
    at = 8
    while at + 12 <= len(image):
        length, kind = struct.unpack_from(">I4s", image, at)
        at += 12 + length
        if at > len(image):
            return
        yield kind
        if kind == b"IEND":  # trailing bytes are not part of the picture
            return


def _jpeg_size(image: bytes) -> tuple[int, int]:
    """Return width and height from the start of frame. A scan and an end marker must follow."""
    size: tuple[int, int] | None = None
    for marker, at, length in _jpeg_segments(image):
        if marker in _FRAME_MARKERS and length >= 8:
            height, width = struct.unpack_from(">HH", image, at + 1)
            size = width, height
        if marker == _SCAN and size is not None and image.find(_END, at + length - 2) >= 0:
            return size
    raise PictureError("JPEG cut off or without a picture")


def _jpeg_segments(image: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start of its content, its length) up to the first scan, inclusive."""
    at = 2
    while at + 4 <= len(image) and image[at] == 0xFF:
        marker = image[at + 1]
        if marker == 0xFF or marker in _BARE_MARKERS:  # fill bytes may precede any marker
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(image[at + 2 : at + 4])
        if length < 2 or at + 2 + length > len(image):
            return
        yield marker, at + 4, length
        if marker == _SCAN:
            return
        at += 2 + length
