"""How do the bytes of a picture become the bytes of a larger one? Decode, paint, paste, mark, encode.

Meant for a worker process: every argument and answer can be pickled. Choices where the service says nothing:
pixels are taken as stored (an EXIF orientation is not applied), transparency is laid on white, 16 bits become
8, CMYK becomes RGB without a profile, and of an animation the first frame counts. Results are PNG.
"""

import io
import struct
import warnings
import zlib

import numpy as np
from attrs import field, frozen
from PIL import Image, ImageDraw, ImageFont

from .canvas import Canvas, canvas
from .engines import find
from .image_headers import Header, PictureError, inspect

__all__ = [
    "Canvas",
    "Header",
    "Picture",
    "PictureError",
    "canvas",
    "decode",
    "inspect",
    "outpaint",
    "watermarked",
]

MOST_PIXELS = 50_000_000  # of an input: about 200 MB decoded
# What Pillow raises for broken files: OSError and SyntaxError of its own, the rest escapes from its parsers.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, struct.error, zlib.error)


@frozen
class Picture:
    """The bytes of one result, those of its marked copy where one was asked for, and the engine's name."""

    data: bytes = field(repr=False)
    media_type: str
    watermarked: bytes | None = field(repr=False)
    engine: str


def outpaint(
    image: bytes,
    ratios: tuple[float, float, float, float],
    *,
    seed: int,
    engine: str = "patchmatch",
    watermark: bool = False,
) -> Picture:
    """Expand PNG or JPEG bytes by (up, down, left, right), each in sides of the original.

    Raises PictureError (bytes), ValueError (ratios), engines.UnknownEngine. Equal arguments give equal bytes.
    """
    paint = find(engine)
    header = inspect(image)
    place = canvas(header.width, header.height, *ratios)
    left, top, right, bottom = place.box
    original = decode(image).resize((right - left, bottom - top), Image.Resampling.LANCZOS, reducing_gap=3.0)
    result = paint(original, place, seed=seed)
    result.paste(original, (left, top))
    marked = encode(watermarked(result)) if watermark else None
    return Picture(encode(result), "image/png", marked, engine)


def decode(image: bytes) -> Image.Image:
    """The pixels as RGB; raises PictureError, and for more than MOST_PIXELS before anything is allocated."""
    header = inspect(image)
    if header.width * header.height > MOST_PIXELS:
        raise PictureError(f"{header.width}x{header.height} is more than {MOST_PIXELS} pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd but readable files are none of the caller's business
        try:
            with Image.open(io.BytesIO(image), formats=("PNG", "JPEG")) as opened:
                opened.load()
                return _rgb(opened)
        except _BROKEN as error:
            raise PictureError(f"broken {header.format}: {error}") from error


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion cuts at 255 instead of scaling
        return Image.fromarray((np.asarray(picture).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    opaque = Image.new("RGBA", picture.size, "white")
    opaque.alpha_composite(picture.convert("RGBA"))
    return opaque.convert("RGB")


def watermarked(picture: Image.Image) -> Image.Image:
    """A copy with EMULATOR half transparent at the lower right, rimmed so that it reads on any ground."""
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


def encode(picture: Image.Image) -> bytes:
    """PNG with little effort: twice the size of the best, a tenth of the time."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()
