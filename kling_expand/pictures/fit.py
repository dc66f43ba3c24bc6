"""Conversion of a photo into one that the service accepts, with a list of the changes (Pillow)."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attrs import frozen

from kling_expand.api.photo import MAX_BYTES, MIN_SIDE, truncated_error
from kling_expand.errors import ImageError, KlingError, MissingExtra, require
from kling_expand.models import source_name

ORIENTATION = 0x0112  # the EXIF tag
MAX_PICTURE_PIXELS = 50_000_000  # of a generated picture; the service makes about 1.4 million
QUALITIES = (95, 90, 85)


@frozen
class Fitted:
    """The path of the photo to send, and the changes that were made to the original."""

    path: str
    changes: tuple[str, ...] = ()


def fit(photo: str, folder: Path, *, acceptable: bool) -> Fitted:
    """Convert the file *photo* and write the result into *folder*, unless it can be sent as it is.

    The result is a PNG if the photo is transparent, and a JPEG otherwise. It is upright, keeps its color
    profile, and is scaled down until it is at most 10 MB. If *acceptable* is true, the service accepts the
    file unchanged, and it is converted only if EXIF rotates it.

    Raises:
        ImageError: if Pillow cannot read the photo.
        MissingExtra: if Pillow is not installed.
    """
    with decoding(photo), open_image(photo) as image:
        turned = orientation(image)
        if acceptable and turned == 1:
            return Fitted(photo)
        return _reworked(image, turned, folder / (Path(photo).stem or "photo"))


def check_pixels(photo: str) -> None:
    """Decode the photo, as `fit` would, because a file with a valid header may still be damaged.

    Raises:
        ImageError: if Pillow cannot read the photo.
        MissingExtra: if Pillow is not installed.
    """
    with decoding(photo), open_image(photo) as image:
        image.draft("RGB", (1, 1))  # a JPEG is decoded at a smaller size, which is faster
        image.load()


@contextmanager
def decoding(source: Any) -> Iterator[None]:
    """Convert the errors that Pillow raises in the block for the image *source* to an `ImageError`."""
    try:
        yield
    except KlingError:
        raise
    except Exception as error:  # each format raises its own kinds for damaged content
        name, reason = source_name(source), str(error) or type(error).__name__
        if "truncated" in reason.lower():
            raise truncated_error(name) from error
        raise ImageError("image", name, f"Pillow cannot read it ({reason})") from error


def orientation(image: Any) -> int:
    """Return the EXIF orientation of an image, where 1 is upright. It is 1 for formats such as PNG."""
    if image.format not in {"JPEG", "MPO", "HEIF", "WEBP", "AVIF", "TIFF"}:
        return 1  # for a PNG, `getexif` would decode the whole picture
    turned = read_exif(image).get(ORIENTATION, 1)
    return turned if turned in range(1, 9) else 1


def read_exif(image: Any) -> Any:
    """Return the EXIF data of an image without decoding a PNG, or empty data if it is damaged."""
    from PIL import Image

    exif = Image.Exif()
    try:
        if image.format != "PNG":
            return image.getexif()
        # For a PNG, `getexif` would decode the pixels to find a block behind them.
        exif.load(image.info.get("exif") or b"")
        return exif
    except Exception:  # noqa: BLE001 - Pillow raises many kinds
        return Image.Exif()


def upright_size(photo: str) -> tuple[int, int]:
    """Return the width and height in pixels of the upright photo, as it will be sent.

    Raises:
        ImageError: if Pillow cannot read the photo.
        MissingExtra: if Pillow is not installed.
    """
    with open_image(photo) as image:
        width, height = image.size
        return (height, width) if orientation(image) > 4 else (width, height)


def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of files that Pillow can read, such as ``.webp``.

    Raises:
        MissingExtra: if Pillow is not installed.
    """
    image = _pillow()
    image.init()
    return frozenset(suffix for suffix, name in image.registered_extensions().items() if name in image.OPEN)


def can_fit(photo: str) -> bool:
    """Return whether `fit` would make the photo acceptable. False if Pillow is not installed."""
    try:
        with open_image(photo) as image:
            shorter, longer = sorted(image.size)
        check_pixels(photo)
        return bool(shorter >= MIN_SIDE and 2 * longer <= 5 * shorter)
    except (ImageError, MissingExtra):
        return False


def _pillow() -> Any:
    """Return the module `PIL.Image`, with HEIC support if `pillow_heif` is installed."""
    require("images", "PIL")
    from PIL import Image

    if find_spec("pillow_heif") is not None:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return Image


def open_image(source: Any) -> Any:
    """Open a path or a binary file as a PIL image, without decoding its pixels.

    A PIL image is returned unchanged.

    Raises:
        ImageError: if Pillow cannot read it.
        MissingExtra: if Pillow is not installed.
    """
    Image = _pillow()  # noqa: N806 - the name of the module
    if isinstance(source, Image.Image):
        return source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # Pillow raises an error for twice as many pixels
            image = Image.open(source)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        hint = "" if find_spec("pillow_heif") else "; to read HEIC, pip install 'kling-expand[heif]'"
        raise ImageError("image", source_name(source), f"Pillow cannot read it ({error}){hint}") from error
    if image.format == "EPS":  # a program, which Pillow would run with Ghostscript
        raise ImageError("image", source_name(source), "must not be PostScript data")
    return image


def open_picture(source: Any) -> Any:
    """Open a generated picture as `open_image` does, with a limit on its size in pixels.

    Raises:
        ImageError: if Pillow cannot read it, or it has more than `MAX_PICTURE_PIXELS`.
        MissingExtra: if Pillow is not installed.
    """
    image = open_image(source)
    if image is not source and image.width * image.height > MAX_PICTURE_PIXELS:
        found = f"got {image.width}x{image.height}"
        limit = f"the generated picture must have at most {MAX_PICTURE_PIXELS} pixels, {found}"
        raise ImageError("image", source_name(source), limit)
    return image


def _reworked(image: Any, turned: int, target: Path) -> Fitted:
    from PIL import ImageOps

    source_format, profile = image.format, image.info.get("icc_profile")
    frames = getattr(image, "n_frames", 1) if source_format in {"GIF", "WEBP", "PNG", "TIFF", "AVIF"} else 1
    upright = ImageOps.exif_transpose(image)
    plain = _plain(upright)
    # A color profile is valid only for the channels that it was made for.
    profile = profile if plain.mode == upright.mode else None
    kind = "PNG" if plain.mode in {"RGBA", "LA"} else "JPEG"
    small, content, quality = _encoded(plain, kind, profile)
    changes = [
        *([f"first of {frames} frames"] if frames > 1 else []),
        *(["rotated upright"] if turned != 1 else []),
        *([f"{source_format} converted to {kind}"] if source_format != kind else [f"{kind} encoded again"]),
        *([f"quality {quality}"] if quality else []),
        *([_scaled(plain, small)] if small.size != plain.size else []),
    ]
    path = target.with_name(f"{target.name}.{kind.lower()}")
    path.write_bytes(content)
    return Fitted(str(path), tuple(changes))


def _plain(image: Any) -> Any:
    """Return an equivalent image in a mode that PNG or JPEG supports."""
    if image.mode in {"RGB", "L", "CMYK", "RGBA", "LA"}:
        return image
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256).convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _encoded(image: Any, kind: str, profile: bytes | None) -> tuple[Any, bytes, int | None]:
    """Return the image, scaled down if necessary, its file of at most 10 MB, and the JPEG quality or None."""
    small = image
    while True:
        for quality, content in _files(small, kind, profile):
            if len(content) <= MAX_BYTES:
                return small, content, quality
        shrink = 0.95 * (MAX_BYTES / len(content)) ** 0.5
        small = image.resize([max(1, round(side * shrink)) for side in small.size])


def _files(image: Any, kind: str, profile: bytes | None) -> Iterator[tuple[int | None, bytes]]:
    for quality in QUALITIES if kind == "JPEG" else (None,):
        target = io.BytesIO()
        image.save(target, kind, icc_profile=profile, **({"quality": quality} if quality else {}))
        yield quality, target.getvalue()


def _scaled(image: Any, small: Any) -> str:
    return f"scaled from {image.width}x{image.height} to {small.width}x{small.height}"
