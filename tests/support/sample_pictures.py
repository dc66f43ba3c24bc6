"""Pictures made for tests of the emulator's painting."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from support.raw_client import png

BROKEN = png()[:60] + b"\x00\x00\x00\x00" + png()[64:]  # a valid header with invalid pixels


def photo(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Return a smooth scene whose sides and corners all differ."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    blue = 127 + 90 * np.sin(x / 5) * np.cos(y / 7)
    channels = np.stack([255 * x / width, 255 * y / height, blue], axis=2)
    return Image.fromarray(channels.astype(np.uint8)).convert(mode)


def grain(width: int = 90, height: int = 60, seed: int = 5) -> Image.Image:
    """Return a picture with smooth light and rough grain."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    light = 90 + 60 * x / width + 40 * y / height
    rough = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(light[..., None] + rough, 0, 255).astype(np.uint8))


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of a picture in a format."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def floats(picture: Image.Image) -> NDArray[np.float64]:
    """Return the channel levels of a picture as floats."""
    return np.asarray(picture.convert("RGB")).astype(float)


def pixels(data: bytes) -> NDArray[np.float64]:
    """Return the channel levels of an encoded picture as floats."""
    with Image.open(io.BytesIO(data)) as picture:
        return floats(picture)


def claimed(width: int, height: int) -> bytes:
    """Return a well-formed PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")
