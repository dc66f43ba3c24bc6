"""Conversion of a picture to another format; needs Pillow (extra `images`)."""

from io import BytesIO
from typing import Any

from kling_expand.errors import DownloadError

DEFAULT_QUALITY = 92  # of JPEG and WebP


def convert(content: bytes, picture_format: str, quality: int | None) -> bytes:
    """Return a picture in another format, with its EXIF data and its color profile.

    JPEG has no transparency: what is transparent becomes white. 16 bits per color become 8.

    Raises:
        DownloadError: the picture cannot be decoded.
    """
    from PIL import Image

    target = BytesIO()
    try:
        with Image.open(BytesIO(content)) as image:
            image.load()
            extra = {"exif": image.getexif().tobytes(), "icc_profile": image.info.get("icc_profile")}
            options: dict[str, Any] = {name: value for name, value in extra.items() if value}
            if picture_format in {"jpeg", "webp"}:
                options["quality"] = quality or DEFAULT_QUALITY
            _suited(image, picture_format).save(target, picture_format, **options)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DownloadError(f"the picture cannot be converted to {picture_format}: {error}") from error
    return target.getvalue()


def _suited(image: Any, picture_format: str) -> Any:
    """Return *image* in a mode that the format has."""
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
