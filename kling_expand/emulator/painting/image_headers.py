"""What does an image file say about itself? Its header and its end are read; no pixel is decoded.

Nothing here allocates by what a file claims: 100 bytes that claim a billion pixels cost nothing.
"""

import struct
import zlib
from collections.abc import Iterator

from attrs import frozen

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# Start of frame, as in ITU T.81 table B.1: C0..CF but for DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers without a length: restarts and TEM
_SCAN = 0xDA
_END = b"\xff\xd9"


class PictureError(ValueError):
    """These bytes are not a picture we can work on; the text says why."""


@frozen
class Header:
    """Format ("png" or "jpeg") and size in pixels, as stored: an EXIF orientation is not applied."""

    format: str
    width: int
    height: int


def inspect(image: bytes) -> Header:
    """Read format and size; raises PictureError for other formats and for broken or cut-off files."""
    if image.startswith(_PNG):
        header = Header("png", *_png_size(image))
    elif image.startswith(_JPEG):
        header = Header("jpeg", *_jpeg_size(image))
    else:
        raise PictureError("neither PNG nor JPEG")
    if header.width < 1 or header.height < 1:
        raise PictureError(f"a picture of {header.width}x{header.height} pixels")
    return header


def _png_size(image: bytes) -> tuple[int, int]:
    """Width and height from IHDR, after walking the chunks to IEND: a cut file stops short of it."""
    head = image[8:33]
    if len(head) < 25 or head[:8] != b"\0\0\0\rIHDR" or zlib.crc32(head[4:21]) != int.from_bytes(head[21:25]):
        raise PictureError("PNG with a broken header")
    kinds = list(_png_chunks(image))
    if b"IDAT" not in kinds or kinds[-1] != b"IEND":
        raise PictureError("PNG cut off before its end")
    width, height = struct.unpack(">II", head[8:16])
    return width, height


def _png_chunks(image: bytes) -> Iterator[bytes]:
    at = 8
    while at + 12 <= len(image):
        length, kind = struct.unpack_from(">I4s", image, at)
        at += 12 + length
        if at > len(image):
            return
        yield kind
        if kind == b"IEND":  # what follows is not part of the picture
            return


def _jpeg_size(image: bytes) -> tuple[int, int]:
    """Width and height from the start of frame; the scan must exist and be followed by an end marker."""
    size: tuple[int, int] | None = None
    for marker, at, length in _jpeg_segments(image):
        if marker in _FRAMES and length >= 8:
            height, width = struct.unpack_from(">HH", image, at + 1)
            size = width, height
        if marker == _SCAN and size is not None and image.find(_END, at + length - 2) >= 0:
            return size
    raise PictureError("JPEG cut off or without a picture")


def _jpeg_segments(image: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, where its content begins, its stated length) up to and with the first scan."""
    at = 2
    while at + 4 <= len(image) and image[at] == 0xFF:
        marker = image[at + 1]
        if marker == 0xFF or marker in _BARE:  # fill bytes are allowed before any marker
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(image[at + 2 : at + 4])
        if length < 2 or at + 2 + length > len(image):
            return
        yield marker, at + 4, length
        if marker == _SCAN:
            return
        at += 2 + length
