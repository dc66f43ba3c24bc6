"""The size of a PNG or JPEG from its bytes, and whether its end is there, without decoding it.

A file is what it begins with, whatever its name says. Chunks (PNG) and segments (JPEG) are walked
to the end mark, so a file that was cut short is told from a whole one. Only a window of the
file is held at a time.
"""

import re
import struct
from typing import BinaryIO, cast

from kling_expand.errors import ImageError

BASE64_HEADS = ("iVBORw0KGgo", "/9j/")  # how a PNG and a JPEG begin in Base64

_WINDOW = 64 * 1024
_MOST_PARTS = 100_000  # chunks or segments; a file with more was made to waste our time

_CONVERT = "convert it, for example with Pillow: Image.open(name).convert('RGB').save('photo.jpg')"
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"

# How the formats begin that people try to send; the first that matches names it.
_OTHERS = {
    "WebP": rb"RIFF....WEBP",
    "a GIF": rb"GIF8[79]a",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(hei|hev|mif|msf)",
    "TIFF": rb"II\*\x00|MM\x00\*",
    "a BMP": rb"BM.{4}\x00{4}",
    "JPEG XL": rb"\xff\x0a|....JXL ",
    "JPEG 2000": rb"....jP  ",
    "a Photoshop file": rb"8BPS",
    "a PDF": rb"%PDF-",
    "SVG": rb"\s*(<\?xml.*)?<svg",
    "an HTML page": rb"\s*<(!doctype html|html)",
}


def read_shape(file: BinaryIO, size: int, name: str) -> tuple[str, int, int]:
    """Return ``"PNG"`` or ``"JPEG"``, width and height in pixels, of a seekable file of *size* bytes.

    Raises `ImageError` that calls the photo *name*: another format, cut short, or not well-formed.
    """
    head = file.read(1024)
    if head.startswith(_PNG):
        return "PNG", *_png(file, size, name)
    if head.startswith(_JPEG):
        return "JPEG", *_jpeg(file, name)
    raise _other(head, name)


def _other(head: bytes, name: str) -> ImageError:
    limit = "must be PNG or JPEG by its content"
    if head.lstrip().startswith((*(text.encode() for text in BASE64_HEADS), b"data:")):
        return ImageError("image", f"{name}, which is Base64 text", limit, "decode it, and pass the bytes")
    for kind, start in _OTHERS.items():
        if re.match(start, head, re.DOTALL | re.IGNORECASE):
            return ImageError("image", f"{name}, which is {kind}", limit, _CONVERT)
    return ImageError("image", name, limit, _CONVERT)


def _png(file: BinaryIO, size: int, name: str) -> tuple[int, int]:
    """Walk the chunks to IEND; each must be there whole, the header first, and pixels among them."""
    position, shape, pixels = len(_PNG), None, False
    for _ in range(_MOST_PARTS):
        file.seek(position)
        head = file.read(16)
        if len(head) < (8 if shape else 16):
            raise _cut(name)
        length, kind = struct.unpack(">I4s", head[:8])
        position += 12 + length
        if position > size:
            raise _cut(name)
        if shape is None:
            if kind != b"IHDR" or length != 13:
                raise _malformed(name)
            shape = struct.unpack(">II", head[8:])
        pixels |= kind == b"IDAT"
        if kind == b"IEND":
            if not pixels:
                raise _malformed(name)
            return cast(tuple[int, int], shape)
    raise _malformed(name)


# A marker, but for those that carry no length: stuffing, fill bytes, restarts, a second start.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # they state the size
_SCAN, _END = 0xDA, 0xD9


def _jpeg(file: BinaryIO, name: str) -> tuple[int, int]:
    """Walk the segments to the end marker, stepping over those that hold thumbnails of their own."""
    position, shape, scanned = 2, None, False
    for _ in range(_MOST_PARTS):
        marker, position = _next_marker(file, position, name)
        if marker == _END:
            if shape is None or not scanned:
                raise _malformed(name)
            return shape
        file.seek(position)
        segment = file.read(7)  # length, precision, height, width
        length = int.from_bytes(segment[:2])
        if length < 2 or (marker in _FRAMES and len(segment) < 7):
            raise _cut(name) if len(segment) < 7 else _malformed(name)
        if marker in _FRAMES and shape is None:
            shape = int.from_bytes(segment[5:]), int.from_bytes(segment[3:5])
        scanned |= marker == _SCAN
        position += length
    raise _malformed(name)


def _next_marker(file: BinaryIO, position: int, name: str) -> tuple[int, int]:
    """Return the code of the next marker, and where its segment begins. Most need one small read."""
    amount = 16
    while True:
        file.seek(position)
        window = file.read(amount)
        if found := _MARKER.search(window):
            return window[found.start() + 1], position + found.end()
        if len(window) < amount:
            raise _cut(name)
        position += amount - 1  # a marker may lie across two windows
        amount = _WINDOW


def _cut(name: str) -> ImageError:
    return ImageError("image", name, "must be a whole file, not one that was cut short", "fetch it again")


def _malformed(name: str) -> ImageError:
    return ImageError("image", name, "must be a well-formed PNG or JPEG", _CONVERT)
