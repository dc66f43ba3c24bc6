"""Expansion of a picture, from bytes to bytes: decode, paint, paste, watermark, encode.

These rules cover undocumented behavior. Pixels are taken as stored, without EXIF orientation, in both JPEG
and PNG. An RGB color profile is kept in the result, so that Display P3 stays Display P3. Transparent areas
become white, 16 bits become 8, and CMYK becomes RGB without a profile. The first frame of an animation is
used. Results are PNG.
"""

import io
import math
import struct
import warnings
import zlib

import numpy as np
from attrs import field, frozen
from PIL import Image, ImageDraw, ImageFont

from kling_expand.emulator.settings import FLAT_ENGINE, parse_misregister

from .canvas import Ratios, fit_canvas
from .engine import Engine, UnknownEngine, paint_flat
from .image_headers import PictureError, inspect
from .patchmatch import paint_patches

MAX_PIXELS = 50_000_000  # limit on an input, which takes about 200 MB when decoded
_ENGINES: dict[str, Engine] = {"patchmatch": paint_patches, FLAT_ENGINE: paint_flat}
# Pillow raises OSError and SyntaxError for broken files; its parsers let the others through.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, struct.error, zlib.error)


@frozen
class Picture:
    """An expanded picture: its bytes, those of its watermarked copy if any, and the engine's name."""

    data: bytes = field(repr=False)
    media_type: str
    watermarked: bytes | None = field(repr=False)
    engine: str


def find_engine(name: str) -> Engine:
    """Return the engine called *name*: patchmatch or flat.

    Raises:
        UnknownEngine: if there is no such engine.
    """
    if name not in _ENGINES:
        raise UnknownEngine(f"engine must be {' or '.join(sorted(_ENGINES))}, got {name!r}")
    return _ENGINES[name]


def outpaint(
    image: bytes,
    ratios: Ratios,
    *,
    seed: int,
    engine: str = "patchmatch",
    watermark: bool = False,
    misregister: str = "",
) -> Picture:
    """Return PNG or JPEG bytes expanded by (up, down, left, right). Equal arguments give equal bytes.

    *misregister* is `DX,DY,SCALE` (see `misregistered`), or empty.

    Raises:
        PictureError: if the bytes are not a usable picture.
        ValueError: if a ratio is negative or not finite, or *misregister* has another form.
        UnknownEngine: if there is no such engine.
    """
    paint = find_engine(engine)
    header = inspect(image)
    canvas = fit_canvas(header.width, header.height, ratios)
    left, top, right, bottom = canvas.box
    original = decode(image).resize((right - left, bottom - top), Image.Resampling.LANCZOS, reducing_gap=3.0)
    result = paint(original, canvas, seed=seed)
    result.paste(original, (left, top))
    if misregister:
        result = misregistered(result, *parse_misregister(misregister))
    profile = original.info.get("icc_profile", b"")
    copy = encode(watermarked(result), profile) if watermark else None
    return Picture(encode(result, profile), "image/png", copy, engine)


def misregistered(picture: Image.Image, shift_x: float, shift_y: float, scale: float) -> Image.Image:
    """Return a picture scaled around its middle, then shifted right and down by so many pixels.

    The edge pixels are repeated where the content no longer reaches.
    """
    width, height = picture.size
    margin = math.ceil(max(abs(shift_x), abs(shift_y)) / scale + max(width, height) * abs(1 - 1 / scale)) + 4
    wider = Image.fromarray(np.pad(np.asarray(picture), ((margin, margin), (margin, margin), (0, 0)), "edge"))
    left = margin + width / 2 - (width / 2 + shift_x) / scale
    top = margin + height / 2 - (height / 2 + shift_y) / scale
    region = (left, top, left + width / scale, top + height / scale)
    return wider.resize(picture.size, Image.Resampling.LANCZOS, box=region)


def decode(image: bytes) -> Image.Image:
    """Return the pixels as RGB.

    Raises:
        PictureError: if the bytes are not a usable picture, or have more than MAX_PIXELS.
    """
    header = inspect(image)
    if header.width * header.height > MAX_PIXELS:
        raise PictureError(f"{header.width}x{header.height} is more than {MAX_PIXELS} pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd files that it can read
        try:
            with Image.open(io.BytesIO(image), formats=("PNG", "JPEG")) as opened:
                if opened.size != (header.width, header.height):  # the limit was checked for this size
                    raise PictureError(f"a second header says {opened.width}x{opened.height} pixels")
                opened.load()
                profile = opened.info.get("icc_profile") or b""
                pixels = _rgb(opened)
                pixels.info = {"icc_profile": profile} if profile[16:20] == b"RGB " else {}
                return pixels
        except _BROKEN as error:
            raise PictureError(f"broken {header.format}: {error}") from error


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit gray: Pillow's conversion clips at 255 instead of scaling
        return Image.fromarray((np.asarray(picture).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    opaque = Image.new("RGBA", picture.size, "white")
    opaque.alpha_composite(picture.convert("RGBA"))
    return opaque.convert("RGB")


def watermarked(picture: Image.Image) -> Image.Image:
    """Return a copy with EMULATOR at the lower right, outlined to be legible on any background."""
    size = max(12, min(picture.size) // 12)
    layer = Image.new("RGBA", picture.size)
    corner = (picture.width - size // 2, picture.height - size // 2)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(layer).text(
        corner,
        "EMULATOR",
        font=font,
        anchor="rs",
        fill=(255, 255, 255, 170),
        stroke_width=2,
        stroke_fill=(0, 0, 0, 120),
    )
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def encode(picture: Image.Image, profile: bytes = b"") -> bytes:
    """Return PNG bytes with fast compression: about twice the smallest size in a tenth of the time."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1, icc_profile=profile or None)
    return buffer.getvalue()
