"""What do a photo and its results look like, small? WebP pictures as text for a page (Pillow)."""

import base64
import io
from pathlib import Path
from typing import Any

from attrs import frozen

QUALITY = 78


@frozen
class Thumbnail:
    """A small picture as a ``data:`` URI, and how large the whole is, in pixels."""

    uri: str
    width: int
    height: int


def thumbnail(path: str, longest: int) -> Thumbnail | None:
    """The picture at *path*, at most *longest* pixels wide and high; None where there is none to read.

    It is shown as it is stored, which is how the service sees it.
    """
    from PIL import Image

    if "://" in path or not Path(path).is_file():
        return None
    try:
        with Image.open(path) as image:
            size = image.size
            image.draft("RGB", (longest, longest))
            small = _opaque(image)
            small.thumbnail((longest, longest))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    target = io.BytesIO()
    small.save(target, "WEBP", quality=QUALITY)
    text = base64.b64encode(target.getvalue()).decode()
    return Thumbnail(f"data:image/webp;base64,{text}", *size)


def _opaque(image: Any) -> Any:
    """RGB, on white where it is transparent."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
