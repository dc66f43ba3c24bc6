"""Thumbnails: small WebP pictures as ``data:`` URIs (Pillow)."""

import base64
import io
from pathlib import Path

from attrs import frozen

from kling_expand.pictures.preview import opaque

QUALITY = 78


@frozen
class Thumbnail:
    """A small picture as a ``data:`` URI, with the size of the whole picture in pixels."""

    uri: str
    width: int
    height: int


def thumbnail(path: str, longest: int) -> Thumbnail | None:
    """Return the picture at *path* with sides of at most *longest* pixels; None where none can be read.

    EXIF orientation is not applied: the picture looks as the service sees it.
    """
    from PIL import Image

    if "://" in path or not Path(path).is_file():
        return None
    try:
        with Image.open(path) as image:
            size = image.size
            image.draft("RGB", (longest, longest))
            small = opaque(image)
            small.thumbnail((longest, longest))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    target = io.BytesIO()
    small.save(target, "WEBP", quality=QUALITY)
    text = base64.b64encode(target.getvalue()).decode()
    return Thumbnail(f"data:image/webp;base64,{text}", *size)
