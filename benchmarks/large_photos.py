"""Large photos with texture down to single pixels, and with the metadata that cameras write.

The photos of the examples are small, so they are enlarged and given detail at several sizes. The other photos
are made from noise alone.
"""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from PIL import Image, ImageCms

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
ORIENTATION, DATE_TIME = 0x0112, 0x0132
# The colorants of Display P3 as XYZ under D50: red, green and blue.
P3_COLORANTS = (
    (b"rXYZ", (0.51512, 0.24120, -0.00105)),
    (b"gXYZ", (0.29198, 0.69225, 0.04189)),
    (b"bXYZ", (0.15710, 0.06657, 0.78407)),
)


@frozen
class LargePhoto:
    """A full frame, upright, with the profile and the EXIF orientation with which its photo is stored."""

    name: str
    frame: Image.Image
    icc_profile: bytes | None = None
    orientation: int = 1


def large_photos(longer: int = 4800) -> Iterator[LargePhoto]:
    """Yield five photos with *longer* pixels on the longer side: one has a P3 profile, one is rotated."""
    yield LargePhoto("coffee", enlarged("coffee.jpg", longer, seed=1))
    yield LargePhoto("rocket in P3", enlarged("rocket.jpg", longer, seed=2), icc_profile=display_p3())
    yield LargePhoto("cat, turned", enlarged("chelsea.jpg", longer, seed=3), orientation=6)
    yield LargePhoto("hills", texture(longer, round(longer * 0.7), seed=4))
    yield LargePhoto("portrait", texture(round(longer * 0.75), longer, seed=5))


def enlarged(name: str, longer: int, *, seed: int) -> Image.Image:
    """Return a photo of the examples at another size, with detail that the original does not have."""
    with Image.open(PHOTOS / name) as photo:
        factor = longer / max(photo.size)
        size = round(photo.width * factor), round(photo.height * factor)
        return detailed(photo.convert("RGB").resize(size, Image.Resampling.BICUBIC), seed=seed)


def texture(width: int, height: int, *, seed: int) -> Image.Image:
    """Return a scene of colored waves of many sizes, lighter at the top."""
    rng = np.random.default_rng(seed)
    small = rng.normal(0, 1, (12, 12, 3)).astype(np.float32)
    planes = [Image.fromarray(small[..., index]) for index in range(3)]
    planes = [plane.resize((width, height), Image.Resampling.BICUBIC) for plane in planes]
    light = np.linspace(160, 90, height, dtype=np.float32)[:, None]
    levels = [np.clip(light + 30 * np.asarray(plane), 0, 255).astype(np.uint8) for plane in planes]
    return detailed(Image.merge("RGB", [Image.fromarray(each) for each in levels]), seed=seed)


def detailed(image: Image.Image, *, seed: int) -> Image.Image:
    """Add gray detail of 1, 4, 16 and 64 pixels."""
    rng = np.random.default_rng(seed)
    detail = np.zeros((image.height, image.width), np.float32)
    for size, strength in ((1, 3), (4, 5), (16, 8), (64, 10)):
        shape = image.height // size + 2, image.width // size + 2
        plane = Image.fromarray(rng.normal(0, strength, shape).astype(np.float32))
        detail += np.asarray(plane.resize(image.size, Image.Resampling.BICUBIC))
    whole = np.asarray(image) + detail[..., None]
    return Image.fromarray(np.clip(whole, 0, 255, out=whole).astype(np.uint8))


def display_p3() -> bytes:
    """Return an ICC profile with the colorants of Display P3 and the tone curve of sRGB."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(profile[start : start + 4]): struct.unpack_from(">I", profile, start + 4)[0]
        for start in range(132, 132 + 12 * struct.unpack_from(">I", profile, 128)[0], 12)
    }
    for name, colorant in P3_COLORANTS:
        struct.pack_into(">3i", profile, tags[name] + 8, *(round(value * 65536) for value in colorant))
    profile[24:36] = bytes(12)  # remove the time of its creation
    return bytes(profile)


def stored(photo: Image.Image, kind: str, *, icc_profile: bytes | None = None, orientation: int = 1) -> bytes:
    """Return the file of an upright photo as a camera held in this *orientation* would store it."""
    back: dict[int, Any] = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    exif = Image.Exif()
    exif[DATE_TIME] = "2026:11:20 10:00:00"
    exif[ORIENTATION] = orientation
    target = io.BytesIO()
    turned = photo.transpose(back[orientation]) if orientation != 1 else photo
    options: dict[str, Any] = {"quality": 90} if kind == "JPEG" else {"compress_level": 1}
    turned.save(target, kind, exif=exif, icc_profile=icc_profile, **options)
    return target.getvalue()
