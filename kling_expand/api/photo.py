"""Photos from any source, checked and sent as Base64 in slices.

According to the official documentation, a photo is a URL, or a PNG or JPEG file of at most 10 MB. Each side
must have at least 300 pixels, and the shape must be between 1:2.5 and 2.5:1. These rules are checked against
the content of the file, never its name. The pixels are not decoded. A JPEG's EXIF orientation is not applied,
so the width and the height are those of the stored photo.

The check follows the chunks of a PNG or the segments of a JPEG to the end marker, so it detects a truncated
file. Only a small part of the file is in memory at a time.
"""

import asyncio
import base64
import hashlib
import importlib
import importlib.util
import inspect
import io
import logging
import math
import os
import re
import stat
import struct
import sys
from collections.abc import AsyncGenerator, Callable
from functools import cache
from threading import Lock
from typing import Any, BinaryIO, Literal, TypeVar, cast
from urllib.parse import urlsplit

from attrs import evolve, field, frozen

from kling_expand.errors import ImageError
from kling_expand.geometry import Canvas, chained_canvas, plan
from kling_expand.models import (
    SOURCES,
    Dialect,
    ExpandRequest,
    ImageSource,
    check,
    is_pillow_image,
    resolve_geometry,
    source_name,
)

# The documentation says "10MB", which may mean MB or MiB. A refused create is free, so the larger value
# costs nothing if it is wrong. The smaller value could refuse photos that the service accepts.
MAX_BYTES = 10 * 1024 * 1024
MIN_SIDE = 300  # pixels (doc)
SLICE = 3 * 64 * 1024  # bytes; a multiple of 3 that takes well under a millisecond to encode
_INLINE = 64 * 1024  # bytes; up to this size, a thread costs more than the work itself

BASE64_HEADS = ("iVBORw0KGgo", "/9j/")  # the first characters of a PNG and of a JPEG in Base64

_WINDOW = 64 * 1024
_MAX_PARTS = 100_000  # chunks or segments; the limit keeps a hostile file from wasting time

ORIENTATION = 0x0112  # the EXIF tag
# The color space that an embedded profile must name, for each mode of a Pillow image.
_PROFILED = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB ", "P": b"RGB ", "CMYK": b"CMYK"}

_CONVERT = "convert it, for example with Pillow: Image.open(name).convert('RGB').save('photo.jpg')"
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_URL = re.compile(r"https?://", re.IGNORECASE)
_TAIL = 1024  # bytes at the end of a file in which its end marker is expected

T = TypeVar("T")

_ROTATE = "to rotate its pixels, pass PIL.ImageOps.exif_transpose(PIL.Image.open(path))"

logger: logging.Logger = logging.getLogger(__name__)

# Patterns of the first bytes of other common formats. The first match gives the name in the error.
_OTHER_FORMATS = {
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


@frozen
class Photo:
    """A checked photo that can be sent any number of times.

    `width` and `height` are in pixels, `format` is ``"PNG"`` or ``"JPEG"``, and `size` is in bytes. All four
    are None for a URL, which only the service reads. `digest` is the hexadecimal SHA-256 of the bytes or of
    the URL. `encoded_length` is the exact number of bytes that `slices` yields. If the photo was converted
    from one of the user's files, `origin` is the path of that file.
    """

    name: str
    digest: str
    encoded_length: int
    width: int | None = None
    height: int | None = None
    format: str | None = None
    size: int | None = None
    url: str | None = None
    origin: str | None = None
    _content: bytes | str | None = field(default=None, repr=False, eq=False)

    @property
    def dimensions(self) -> tuple[int, int] | None:
        """Width and height in pixels, or None for a URL."""
        return None if self.width is None or self.height is None else (self.width, self.height)

    @property
    def source(self) -> str | None:
        """The absolute path or the URL from which another process can read the photo, or None."""
        if self.url is not None:
            return self.url
        path = self.origin or self._content
        return os.path.abspath(path) if isinstance(path, str) else None  # noqa: PTH100 - the path stays a string

    async def slices(self) -> AsyncGenerator[bytes, None]:
        """Yield the value of `image` in slices. It is Base64 text or a URL, and needs no escapes in JSON.

        Each call starts from the beginning. The file is closed between slices, so iteration may stop at any
        slice. Raises `ImageError` if the file has changed since it was checked.
        """
        if self.url is not None:
            yield self.url.encode()
            return
        size, hasher = self.size or 0, hashlib.sha256()
        if isinstance(self._content, bytes) and size <= _INLINE:
            yield _encoder()(self._content)
            return
        for start in range(0, size, SLICE):
            yield await asyncio.to_thread(self._slice, start, min(SLICE, size - start), hasher)

    def _slice(self, start: int, length: int, hasher: Any) -> bytes:
        if isinstance(self._content, bytes):
            return _encoder()(memoryview(self._content)[start : start + length])
        size, piece = self._read(start, length)
        hasher.update(piece)
        last = start + length == self.size
        # The digest is compared before the last slice is sent, so an altered photo is never sent completely.
        if size != self.size or len(piece) != length or (last and hasher.hexdigest() != self.digest):
            raise ImageError(
                "image", self.name, "the file changed while it was being sent", "submit it again"
            )
        return _encoder()(piece)

    def _read(self, start: int, length: int) -> tuple[int, bytes]:
        try:
            with open(cast(str, self._content), "rb") as file:  # noqa: PTH123 - the path is a string
                file.seek(start)
                return os.fstat(file.fileno()).st_size, file.read(length)
        except OSError as error:
            raise ImageError("image", self.name, f"can no longer be read ({error.strerror})") from error


class SharedPhoto(os.PathLike[str]):
    """The path of a photo that several requests share. The photo is read and checked only once.

    The object does not notice changes to the file, so later requests need a new one.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = Lock()
        self._header: PhotoHeader | None = None
        self._photo: Photo | None = None

    def __fspath__(self) -> str:
        return self._path

    def __str__(self) -> str:
        return self._path

    def __repr__(self) -> str:
        return repr(self._path)

    def header(self) -> "PhotoHeader | None":
        """Return the result of `read_header`. Raises `ImageError`."""
        with self._lock:
            self._header = self._header or _file_header(self._path, self._path)
            return self._header

    def load(self) -> Photo:
        """Return the result of `load_photo`. Raises `ImageError`."""
        with self._lock:
            self._photo = self._photo or _from_path(self._path)
            return self._photo


async def load_photo(source: ImageSource) -> Photo:
    """Check a photo from any *source* without blocking the event loop, and return it ready to be sent.

    A source is a path (read again when sent), an ``http(s)`` URL (not fetched), a ``data:`` URI, raw bytes, a
    binary file (read from its current position) or a PIL image. A PIL image is sent as JPEG if it was read
    from a JPEG, and otherwise as PNG. Its EXIF orientation is kept, and so is a color profile that suits its
    mode. Gray levels of more than 8 bits are scaled to 8 bits. Raises `ImageError`.
    """
    if isinstance(source, str) and _URL.match(source):
        return _from_url(source)
    if isinstance(source, bytes) and len(source) <= _INLINE:
        return _from_bytes(source)
    return await asyncio.to_thread(_reader(source), source)


def check_request(
    request: ExpandRequest, *, dialect: Dialect = Dialect.EDITING, passes: int = 1
) -> Canvas | None:
    """Check the photo and the geometry of a *request*, as `KlingClient.submit` does before it sends anything.

    Nothing is sent. The photo is read, so use `asyncio.to_thread` to call this function in an event loop. An
    open file is read from its current position. Return the canvas after at most *passes* passes, or None for
    a photo at a URL, which only the service reads.

    Raises:
        ImageError: if the photo cannot be sent.
        InvalidRequest: if the geometry does not suit the photo or the *dialect*.
    """
    check(request=request, passes=passes)
    image, size = request.image, None
    if not (isinstance(image, str) and _URL.match(image)):
        size = _reader(image)(image).dimensions
    if size is None or dialect is Dialect.DIRECTION or passes == 1:
        expansion = resolve_geometry(request, dialect, size)
        return expansion.ratios().canvas(*size) if size else None
    return chained_canvas(*size, plan(*size, request.geometry, passes))


def _reader(source: ImageSource) -> Callable[[Any], Photo]:
    """Return the function that reads a source of this type."""
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _from_data
    if isinstance(source, SharedPhoto):
        return SharedPhoto.load
    if isinstance(source, str | os.PathLike):
        return _from_path
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes
    if is_pillow_image(source):
        return _from_pillow
    if callable(getattr(source, "read", None)):
        return _from_file
    raise ImageError("image", source_name(source), f"must be {SOURCES}")


def _from_url(url: str) -> Photo:
    try:
        # A URL must not contain quotes, backslashes, spaces or control characters. JSON would escape them.
        valid = bool(urlsplit(url).hostname) and not re.search(r'[\s"\\\x00-\x1f\x7f]', url)
        text = url.encode()
    except ValueError:
        valid = False
    if not valid:
        raise ImageError("image", repr(url), "must be a well-formed URL")
    return Photo(url, hashlib.sha256(text).hexdigest(), len(text), url=url)


def _from_data(uri: str) -> Photo:
    name = source_name(uri)
    head, comma, text = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError("image", name, "must have the form data:image/png;base64,…")
    text = "".join(text.split()).rstrip("=")
    _check_bytes(max(1, len(text) * 3 // 4), name)  # before a possibly large text is decoded
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise ImageError("image", name, f"must hold valid Base64 ({error})") from error
    return _from_bytes(content, name)


def _from_path(path: str | os.PathLike[str]) -> Photo:
    origin: str | None = getattr(path, "origin", None)  # set on the path of a converted photo
    name = origin or source_name(path)
    photo = _read_path(path, name, lambda file, size: _checked(file, size, name, os.fsdecode(path)))
    return evolve(photo, origin=origin) if origin else photo


def _read_path(path: str | os.PathLike[str], name: str, read: Callable[[io.BufferedReader, int], T]) -> T:
    """Return the result of *read* for the open file and its size."""
    try:
        _check_regular(os.stat(path).st_mode, name)  # noqa: PTH116  (a path may be any PathLike)
        with open(path, "rb") as file:  # noqa: PTH123
            return read(file, os.fstat(file.fileno()).st_size)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # a name with a zero byte raises ValueError
        # The path may by mistake be the Base64 text of a whole photo, which a message must not repeat.
        value = repr(name if len(name) <= 200 else f"{name[:60]}…")
        raise ImageError("image", value, *_unreadable(path, error)) from error


def _check_regular(mode: int, name: str) -> None:
    """Raise `ImageError` unless *mode* is that of a regular file. Opening a pipe would block."""
    if not stat.S_ISREG(mode):
        kind = "directory" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise ImageError("image", name, f"must be a file, not a {kind}")


def _unreadable(path: str | os.PathLike[str], error: Exception) -> tuple[str, str]:
    """Return the reason why a path cannot be read, and advice or an empty string."""
    text = os.fspath(path)
    if isinstance(text, str) and (text.startswith(BASE64_HEADS) or len(text) > 1024):
        return "must not be Base64 text", "pass base64.b64decode(text), or a data: URI"
    if isinstance(text, str) and re.match(r"[a-z][a-z0-9+.-]+:/", text, re.IGNORECASE):
        return "must be a file or an http or https URL", ""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file", ""
    return f"cannot be read ({getattr(error, 'strerror', None) or error})", ""


def _from_bytes(source: bytes | bytearray | memoryview, name: str | None = None) -> Photo:
    name = name or source_name(source)
    _check_bytes(memoryview(source).nbytes, name)
    content = bytes(source)  # copies only a mutable buffer, which the caller could still change
    return _checked(io.BytesIO(content), len(content), name, content)


def _from_file(file: BinaryIO) -> Photo:
    name = source_name(file)
    content = bytearray()
    try:
        while len(content) <= MAX_BYTES and (piece := file.read(MAX_BYTES + 1 - len(content))):
            content += _binary(piece, name)
    except ImageError:
        raise
    except Exception as error:  # a foreign file object may raise anything
        raise ImageError("image", name, f"cannot be read ({error})") from error
    return _from_bytes(content, name)


def _binary(piece: Any, name: str) -> bytes | bytearray | memoryview:
    if isinstance(piece, bytes | bytearray | memoryview):
        return piece
    if inspect.iscoroutine(piece):
        piece.close()  # otherwise Python warns that it was never awaited
    hint = "open it with mode 'rb'" if isinstance(piece, str) else "read it first and pass the bytes"
    value = f"{type(piece).__name__} from {name}"
    raise ImageError("image", value, "must have a read() that returns bytes", hint)


def _from_pillow(image: Any) -> Photo:
    name = f"<PIL image {image.width}x{image.height}>"
    check_shape(image.width, image.height, name)
    target, jpeg = io.BytesIO(), image.format in {"JPEG", "MPO"}  # MPO is a JPEG with more images behind it
    try:
        orientation = image.getexif().get(ORIENTATION)  # read first, as a conversion may drop it
        profile = image.info.get("icc_profile")
        image = _to_sendable_mode(image, name, jpeg=jpeg)
        options: dict[str, Any] = {"quality": 95} if jpeg else {}
        # None omits the profile. A profile for other channels would change the colors.
        options["icc_profile"] = profile if _PROFILED.get(image.mode) == (profile or b"")[16:20] else None
        if orientation in range(2, 9):
            options["exif"] = exif = sys.modules["PIL.Image"].Exif()
            exif[ORIENTATION] = orientation
        image.save(target, "JPEG" if jpeg else "PNG", **options)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of errors, often only on save
        raise ImageError("image", name, f"Pillow cannot encode it ({error})") from error
    return _from_bytes(target.getvalue(), name)


def _to_sendable_mode(image: Any, name: str, *, jpeg: bool) -> Any:
    """Return an equivalent image in a mode that PNG supports, or JPEG if *jpeg* is true."""
    if image.mode in ({"L", "RGB", "CMYK"} if jpeg else {"1", "L", "LA", "P", "RGB", "RGBA"}):
        return image
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _scaled(image, name)
    return image.convert("RGBA" if image.has_transparency_data and not jpeg else "RGB")


def _scaled(image: Any, name: str) -> Any:
    """Scale a gray image of more than 8 bits per pixel to 256 levels. `convert` would clip its values.

    In a 16-bit mode, the range of values is 0 to 65535. In other modes, it is the first of these ranges that
    contains all values: 0 to 1 (only for floats), 0 to 255, 0 to 65535. If none does, it is from the lowest
    value to the highest.
    """
    numbers = image if image.mode == "F" else image.convert("I")  # some 16-bit modes lack `getextrema`
    low, high = numbers.getextrema()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("image", name, "must contain only finite numbers")
    min_top = 1 if image.mode == "F" else 65535 if image.mode.startswith("I;16") else 255
    for top in (each for each in (1, 255, 65535) if each >= min_top):
        if low >= 0 and high <= top:
            low, high = 0, top
            break
    scale = 255 / (high - low or 1)
    shift = 0.5 - low * scale  # 0.5 rounds, as the conversion truncates
    return numbers.convert("F").point(lambda value: value * scale + shift).convert("L")


def _checked(file: io.BufferedReader | io.BytesIO, size: int, name: str, content: bytes | str) -> Photo:
    """Check an open, seekable file by every rule, and return the photo. Read only a small part at a time."""
    _check_bytes(size, name)
    kind, width, height = read_shape(file, size, name)
    check_shape(width, height, name)
    if kind == "JPEG" and (header := _jpeg_header(file)) and header.orientation > 1:
        logger.warning("%s is rotated by its EXIF data, which the service may ignore; %s", name, _ROTATE)
    file.seek(0)
    # Bytes are hashed directly, because a file object over them would copy them and block the event loop.
    hasher = hashlib.sha256(content) if isinstance(content, bytes) else hashlib.file_digest(file, "sha256")
    return Photo(name, hasher.hexdigest(), 4 * -(-size // 3), width, height, kind, size, content=content)


def _check_bytes(size: int, name: str) -> None:
    if size == 0:
        raise ImageError("image", name, "must not be empty")
    if size > MAX_BYTES:
        limit = f"must be at most 10 MB ({MAX_BYTES} bytes)"
        raise ImageError("image", f"{name} of {size} bytes", limit, "scale it down, or save it as JPEG")


def check_shape(width: int, height: int, name: str) -> None:
    """Raise `ImageError` if the service would refuse the photo *name* for its size in pixels or its shape."""
    value = f"{name} of {width}x{height} pixels"
    if min(width, height) < MIN_SIDE:
        raise ImageError("image", value, f"must have at least {MIN_SIDE} pixels on each side", "scale it up")
    if 2 * max(width, height) > 5 * min(width, height):
        raise ImageError("image", value, "must have a shape between 1:2.5 and 2.5:1", "crop it")


@cache
def _encoder() -> Callable[[bytes | memoryview], bytes]:
    """Return the Base64 encoder of `pybase64`, which is several times faster, or else the standard one."""
    fast = importlib.util.find_spec("pybase64")
    found = importlib.import_module("pybase64") if fast else base64
    return cast(Callable[[bytes | memoryview], bytes], found.b64encode)


# ---------------------------------------------------------------------------- PNG and JPEG headers


@frozen
class PhotoHeader:
    """The header of a photo. An `orientation` above 1 means that the EXIF data rotates or mirrors it."""

    format: str
    width: int
    height: int
    orientation: int = 1
    has_alpha: bool = False


def read_header(source: str | os.PathLike[str]) -> PhotoHeader | None:
    """Check a photo by its size, its header and its last bytes, and return the header.

    If these are unusual, the whole structure of the file is followed. For a URL, only the syntax is checked,
    and None is returned.

    Raises:
        ImageError: if the photo cannot be sent.
    """
    name = source_name(source)
    if isinstance(source, str) and _URL.match(source):
        _from_url(source)
        return None
    return source.header() if isinstance(source, SharedPhoto) else _file_header(source, name)


def _file_header(path: str | os.PathLike[str], name: str) -> "PhotoHeader":
    return _read_path(path, name, lambda file, size: _checked_header(file, size, name))


def _checked_header(file: BinaryIO, size: int, name: str) -> PhotoHeader:
    _check_bytes(size, name)
    head = file.read(1024)
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    header = None
    if head.startswith(_PNG) and b"IEND" in tail:
        header = _png_header(file)
    elif head.startswith(_JPEG) and b"\xff\xd9" in tail:
        header = _jpeg_header(file)
    if header is None:  # another format, or a file with data after its end marker
        file.seek(0)
        header = PhotoHeader(*read_shape(file, size, name))
    check_shape(header.width, header.height, name)
    return header


def _png_header(file: BinaryIO) -> PhotoHeader | None:
    """Return the header from the chunks before the pixels, or None if no pixels are found."""
    position, shape, alpha = len(_PNG), (0, 0), False
    for _ in range(_MAX_PARTS):
        file.seek(position)
        head = file.read(26)
        length, kind = int.from_bytes(head[:4]), head[4:8]
        if kind == b"IHDR" and len(head) == 26:
            shape, alpha = struct.unpack(">II", head[8:16]), head[17] in {4, 6}
        elif kind in {b"IDAT", b""}:  # the pixels, or the end of the file
            return PhotoHeader("PNG", *shape, has_alpha=alpha) if kind else None
        alpha |= kind == b"tRNS"
        position += 12 + length
    return None


def _jpeg_header(file: BinaryIO) -> PhotoHeader | None:
    """Return the header from the segments up to the frame, which has the size, or None if it is not found."""
    position, orientation = 2, 1
    for _ in range(_MAX_PARTS):
        file.seek(position)
        head = file.read(9)
        if len(head) < 9 or head[0] != 0xFF or head[1] in {_SCAN, _END}:
            return None
        if head[1] in _FRAMES:
            width, height = int.from_bytes(head[7:9]), int.from_bytes(head[5:7])
            return PhotoHeader("JPEG", width, height, orientation) if width and height else None
        if head[1] == _APP1:
            orientation = max(orientation, _orientation(head[4:] + file.read(4096)))
        position += 2 + int.from_bytes(head[2:4])
    return None


def _orientation(segment: bytes) -> int:
    """Return the orientation from 1 to 8 in an EXIF segment, or 1 if there is none."""
    head, tiff = segment[:6], segment[6:]
    if head != b"Exif\0\0" or tiff[:2] not in {b"II", b"MM"}:
        return 1
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    start = int.from_bytes(tiff[4:8], order)
    for entry in range(int.from_bytes(tiff[start : start + 2], order)):
        field = tiff[start + 2 + 12 * entry :][:12]
        if int.from_bytes(field[:2], order) == ORIENTATION:
            found = int.from_bytes(field[8:10], order)
            return found if found in range(1, 9) else 1
    return 1


def read_shape(file: BinaryIO, size: int, name: str) -> tuple[str, int, int]:
    """Return the format, width and height in pixels of a seekable file of *size* bytes.

    The format is ``"PNG"`` or ``"JPEG"``. Raises `ImageError` if the file has another format, or is truncated
    or malformed. The error shows the photo's *name*.
    """
    head = file.read(1024)
    if head.startswith(_PNG):
        return "PNG", *_png(file, size, name)
    if head.startswith(_JPEG):
        return "JPEG", *_jpeg(file, name)
    raise _unsupported_format(head, name)


def _unsupported_format(head: bytes, name: str) -> ImageError:
    limit = "must be PNG or JPEG data"
    if head.lstrip().startswith((*(text.encode() for text in BASE64_HEADS), b"data:")):
        return ImageError("image", f"{name}, which is Base64 text", limit, "decode it, and pass the bytes")
    for kind, start in _OTHER_FORMATS.items():
        if re.match(start, head, re.DOTALL | re.IGNORECASE):
            return ImageError("image", f"{name}, which is {kind}", limit, _CONVERT)
    return ImageError("image", name, limit, _CONVERT)


def _png(file: BinaryIO, size: int, name: str) -> tuple[int, int]:
    """Return the size in a PNG's header after following all chunks to IEND.

    Each chunk must be complete, the header must be the first, and at least one must contain pixels.
    """
    position, shape, pixels = len(_PNG), None, False
    for _ in range(_MAX_PARTS):
        file.seek(position)
        head = file.read(16)
        if len(head) < (8 if shape else 16):
            raise truncated_error(name)
        length, kind = struct.unpack(">I4s", head[:8])
        position += 12 + length
        if position > size:
            raise truncated_error(name)
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


# Any marker except those without a length: stuffing, fill bytes, restarts and a second start.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of the segments that contain the size
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1


def _jpeg(file: BinaryIO, name: str) -> tuple[int, int]:
    """Return the size of a JPEG after following its segments to the end marker. Skip thumbnails in them."""
    position, shape, scanned = 2, None, False
    for _ in range(_MAX_PARTS):
        marker, position = _next_marker(file, position, name)
        if marker == _END:
            if shape is None or not scanned:
                raise _malformed(name)
            return shape
        file.seek(position)
        segment = file.read(7)  # length, precision, height, width
        length = int.from_bytes(segment[:2])
        if length < 2 or (marker in _FRAMES and len(segment) < 7):
            raise truncated_error(name) if len(segment) < 7 else _malformed(name)
        if marker in _FRAMES and shape is None:
            shape = int.from_bytes(segment[5:]), int.from_bytes(segment[3:5])
        scanned |= marker == _SCAN
        position += length
    raise _malformed(name)


def _next_marker(file: BinaryIO, position: int, name: str) -> tuple[int, int]:
    """Return the code of the next marker and the start of its segment. Most calls need one small read."""
    amount = 16
    while True:
        file.seek(position)
        window = file.read(amount)
        if found := _MARKER.search(window):
            return window[found.start() + 1], position + found.end()
        if len(window) < amount:
            raise truncated_error(name)
        position += amount - 1  # a marker may span two windows
        amount = _WINDOW


def truncated_error(name: str) -> ImageError:
    """Return the error for a file whose end is missing."""
    advice = "copy it again from the camera or phone"
    return ImageError("image", name, "the file is incomplete (truncated)", advice)


def _malformed(name: str) -> ImageError:
    return ImageError("image", name, "must be a well-formed PNG or JPEG", _CONVERT)
