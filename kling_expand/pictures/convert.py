"""Conversion of a picture to another format; needs Pillow (extra `images`)."""

from io import BytesIO
from typing import Any

from kling_expand.errors import DownloadError

DEFAULT_QUALITY = 92  # of JPEG and WebP


def convert(content: bytes, picture_format: str, quality: int | None) -> bytes:
    """Return a picture in another format, with its EXIF data and its color profile.

    JPEG has no transparency: what is transparent becomes white. 16 bits become 8 in JPEG and WebP.

    Raises:
        DownloadError: the picture cannot be decoded.
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
    """Write a PIL image to a path or a binary file, with its EXIF data and its color profile."""
    extra = {"exif": image.getexif().tobytes(), "icc_profile": image.info.get("icc_profile")}
    options: dict[str, Any] = {name: value for name, value in extra.items() if value}
    if picture_format in {"jpeg", "webp"}:
        options["quality"] = quality or DEFAULT_QUALITY
    _suited(image, picture_format).save(target, picture_format, **options)


def _suited(image: Any, picture_format: str) -> Any:
    """Return *image* in a mode that the format has."""
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
