"""Conversion of pictures to other formats, and the metadata of photos (extra `images`)."""

import logging
import os
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from attrs import frozen

from kling_expand.errors import DownloadError, InvalidRequest, require
from kling_expand.models import ImageSource, shown

from .fit import ORIENTATION, open_image, read_exif

DEFAULT_QUALITY = 92  # of JPEG and WebP
PRODUCER = "kling-expand"  # added to the software tag
SOFTWARE, EXIF_IFD, EXIF_WIDTH, EXIF_HEIGHT, MAKER_NOTE = 0x0131, 0x8769, 0xA002, 0xA003, 0x927C
# The TIFF tags that describe how a file stores its pixels, and its color profile. They are wrong in any other
# file. The tags that are subtracted describe the picture: orientation, names, camera, resolution, software,
# date, artist and computer.
_LAYOUT = {*range(254, 533), 0x8773} - {*range(269, 273), ORIENTATION, 282, 283, 285, 296, 305, 306, 315, 316}
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_HEAD = 33  # bytes of the signature and the first chunk of a PNG
_EXIF, _ICC = b"Exif\0\0", b"ICC_PROFILE\0"
_SEGMENT = 65_500  # the most bytes of data in a JPEG segment

logger: logging.Logger = logging.getLogger(__name__)


def convert(content: bytes, picture_format: str, quality: int | None) -> bytes:
    """Return a picture in another format, with its EXIF data and its color profile.

    JPEG has no transparency, so transparent areas become white. In JPEG and WebP, 16-bit levels become 8-bit.

    Raises:
        DownloadError: if the picture cannot be decoded.
    """
    from .fit import open_picture  # imported here, as few saves convert

    target = BytesIO()
    try:
        with open_picture(BytesIO(content)) as image:
            image.load()
            encode(image, target, picture_format, quality)
    except (OSError, SyntaxError, ValueError) as error:
        raise DownloadError(f"the picture cannot be converted to {picture_format}: {error}") from error
    return target.getvalue()


def encode(image: Any, target: Any, picture_format: str, quality: int | None = None) -> None:
    """Write a PIL image to a path or a binary file, with its EXIF data and its color profile.

    A profile for other channels is left out. An EXIF block that is too long for a JPEG is left out with a
    warning, or shortened if that suffices.
    """
    exif, profile = read_exif(image), image.info.get("icc_profile") or b""
    image = _suited(image, picture_format)
    gray = image.mode in {"L", "I;16"} and picture_format != "webp"  # which has only RGB
    options: dict[str, Any] = {
        "exif": _exif_block(exif, picture_format),
        "icc_profile": profile if _suits(profile, gray=gray) else None,  # None overrides that of the image
    }
    if picture_format in {"jpeg", "webp"}:
        options["quality"] = quality or DEFAULT_QUALITY
    image.save(target, picture_format, **options)


def _exif_block(exif: Any, picture_format: str) -> bytes:
    """Return the EXIF data for a file of this format, or nothing if it has none."""
    _drop_layout(exif)
    content = _serialized(exif)
    if picture_format != "jpeg" or len(content) <= _SEGMENT:
        return content
    exif.get_ifd(EXIF_IFD).pop(MAKER_NOTE, None)
    shorter = _serialized(exif)
    kept = len(shorter) <= _SEGMENT
    what = "the MakerNote of the EXIF data" if kept else "the EXIF data"
    logger.warning("%s is left out, because a JPEG has at most 64 KB of EXIF data", what)
    return shorter if kept else b""


def _serialized(exif: Any) -> bytes:
    """Return EXIF data as a block, or nothing if it has values that Pillow can read but not write."""
    try:
        return exif.tobytes() if exif else b""
    except Exception as error:  # noqa: BLE001 - Pillow raises many kinds
        logger.warning("the EXIF data is damaged and is left out: %s", error)
        return b""


def _suited(image: Any, picture_format: str) -> Any:
    """Return *image* in a mode that the format supports."""
    if image.mode == "I;16" and picture_format in {"png", "tiff"}:
        return image
    if image.mode.startswith(("I", "F")):  # one channel of more than 8 bits
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    transparent = image.has_transparency_data
    if picture_format == "jpeg" and transparent:
        from PIL import Image

        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode in {"RGB", "L"} or (image.mode == "RGBA" and transparent):
        return image
    return image.convert("RGBA" if transparent else "RGB")


# ---------------------------------------------------------------------------- metadata


@frozen
class Metadata:
    """The EXIF block of a photo without its orientation, and its color profile. Either may be empty."""

    exif: bytes = b""
    icc_profile: bytes = b""


def _drop_layout(exif: Any) -> None:
    """Remove the tags that describe how a file stores its pixels, which a TIFF would obey."""
    for tag in _LAYOUT & set(exif):
        del exif[tag]


def _suits(profile: bytes, *, gray: bool) -> bool:
    """Return whether a color profile is for gray pixels or, if not *gray*, for RGB."""
    return profile[16:20] == (b"GRAY" if gray else b"RGB ")


def describe_expanded(exif: Any, size: tuple[int, int] | None = None) -> bytes:
    """Change the EXIF data of a photo to describe an expanded, upright picture, and return the block.

    *size* is the width and height of the picture in pixels, if they are known.
    """
    _drop_layout(exif)
    exif.pop(ORIENTATION, None)
    before = str(exif.get(SOFTWARE, "")).strip("\0 ")
    exif[SOFTWARE] = f"{before}; {PRODUCER}" if before else PRODUCER
    inner = exif.get_ifd(EXIF_IFD)
    for place, tag in enumerate((EXIF_WIDTH, EXIF_HEIGHT)):
        inner.pop(tag, None)
        if inner and size:
            inner[tag] = size[place]
    return _serialized(exif)


def read_metadata(photo: ImageSource | None) -> Metadata:
    """Return the EXIF data and the color profile of a photo, without decoding its pixels.

    Raises:
        InvalidRequest: if the photo is not known, or is at a URL.
        ImageError: if Pillow cannot read it.
        MissingExtra: if Pillow is not installed.
    """
    require("images", "PIL")
    if photo is None or (isinstance(photo, str) and "://" in photo):
        limit = "must be the path of a photo that can be read on this machine"
        raise InvalidRequest("metadata", photo and shown(photo), limit)
    source = BytesIO(photo) if isinstance(photo, bytes | bytearray | memoryview) else photo
    if isinstance(source, os.PathLike):
        source = getattr(source, "origin", None) or os.fsdecode(source)
    with open_image(source) as image:
        exif = read_exif(image)
        block = describe_expanded(exif).removeprefix(_EXIF) if exif else b""
        return Metadata(block, image.info.get("icc_profile") or b"")


def insert_metadata(content: bytes, metadata: Metadata) -> bytes:
    """Add metadata to a PNG or JPEG that has none, without decoding its pixels.

    A picture of another format is returned unchanged. A color profile for other channels is left out.
    """
    if content.startswith(_PNG):
        known = {kind for kind, _ in _chunks(content)}
        return content[:_HEAD] + _png_chunks(metadata, known, content[25]) + content[_HEAD:]
    if content.startswith(_JPEG):
        # A JFIF segment must remain the first.
        start = 4 + int.from_bytes(content[4:6]) if content[2:4] == b"\xff\xe0" else 2
        return content[:start] + _jpeg_segments(metadata, content[start : start + _SEGMENT]) + content[start:]
    return content


def _chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the type and position of each chunk of a PNG before its pixels."""
    at = len(_PNG)
    while at + 8 <= len(content) and content[at + 4 : at + 8] not in {b"IDAT", b"IEND"}:
        yield content[at + 4 : at + 8], at
        at += 12 + int.from_bytes(content[at : at + 4])


def _png_chunks(metadata: Metadata, known: set[bytes], color_type: int) -> bytes:
    profile, added = metadata.icc_profile, b""
    if _suits(profile, gray=color_type in {0, 4}) and not known & {b"iCCP", b"sRGB"}:
        added += _chunk(b"iCCP", b"photo\0\0" + zlib.compress(profile))
    if metadata.exif and b"eXIf" not in known:
        added += _chunk(b"eXIf", metadata.exif)
    return added


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def _jpeg_segments(metadata: Metadata, head: bytes) -> bytes:
    profile, added = metadata.icc_profile, b""
    if metadata.exif and len(metadata.exif) <= _SEGMENT and _EXIF not in head:
        added += _segment(b"\xff\xe1", _EXIF + metadata.exif)
    if _suits(profile, gray=False) and _ICC not in head:
        parts = [profile[start : start + _SEGMENT - 14] for start in range(0, len(profile), _SEGMENT - 14)]
        for number, part in enumerate(parts, 1):
            added += _segment(b"\xff\xe2", _ICC + bytes((number, len(parts))) + part)
    return added


def _segment(marker: bytes, data: bytes) -> bytes:
    return marker + (len(data) + 2).to_bytes(2) + data
