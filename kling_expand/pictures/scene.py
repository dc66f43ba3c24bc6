"""Alignment of a photo and its generated picture, in orientation, color space and position."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import frozen

from kling_expand.geometry import Canvas, Ratios, chained_canvas

from .fit import ORIENTATION, decoding, open_image, open_picture, read_exif
from .preview import opaque
from .registration import Registration, register

PLAIN_MODES = {"L", "LA", "RGB", "RGBA", "I;16"}
COMPARISON_SIZE = (48, 48)  # pixels; the size at which orientations and color spaces are compared

# The sides of a stored photo that become up, down, left and right under each EXIF orientation.
TURNED_SIDES = {
    2: ("up", "down", "right", "left"),
    3: ("down", "up", "right", "left"),
    4: ("down", "up", "left", "right"),
    5: ("left", "right", "up", "down"),
    6: ("left", "right", "down", "up"),
    7: ("right", "left", "down", "up"),
    8: ("right", "left", "up", "down"),
}


@frozen
class Scene:
    """A photo and its picture, with the position of the photo in the picture.

    `photo` is upright and in one of `PLAIN_MODES`. `picture` is RGB, rotated like the photo and in its color
    space. `small` is the photo at the picture's scale, in RGB on white. `canvas` has the photo's scale.
    """

    photo: Any
    picture: Any
    small: Any
    canvas: Canvas
    registration: Registration
    icc_profile: bytes | None
    exif: Any


def prepare(photo: Any, picture: Any, ratios: Ratios | Sequence[Ratios]) -> Scene:
    """Align *photo* and *picture*, which are PIL images, paths or binary files.

    *ratios* are those of a task, or of each pass, in order. They may refer to the stored photo or to the
    upright one. The interpretation that matches better is used.

    Raises:
        ImageError: if Pillow cannot read one of them.
        MissingExtra: if Pillow is not installed.
    """
    passes = [ratios] if isinstance(ratios, Ratios) else list(ratios)
    opened, seen = open_image(photo), open_picture(picture)
    for source, image in ((photo, opened), (picture, seen)):
        with decoding(source):
            image.load()
    exif = read_exif(opened)
    turned = exif.get(ORIENTATION, 1)
    upright, profile = _plain(_turned(opened, turned))
    readings = list(_readings(upright, profile, seen, passes, turned))
    if len(readings) > 1:
        thumbnail = _shrunk(upright, COMPARISON_SIZE)
        readings.sort(key=lambda reading: _difference(thumbnail, *reading))
    colored, canvas = readings[0]
    left, top, right, bottom = canvas.scaled(*colored.size).box
    small = _shrunk(upright, (right - left, bottom - top))
    return Scene(upright, colored, small, canvas, register(small, colored, canvas), profile, exif)


def _turned(image: Any, turned: int) -> Any:
    """Return an image with an EXIF orientation applied."""
    from PIL.Image import Transpose

    methods = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(methods[turned]) if turned in methods else image


def _plain(image: Any) -> tuple[Any, bytes | None]:
    """Return an image in one of `PLAIN_MODES`, and its color profile or None."""
    profile = image.info.get("icc_profile")
    if image.mode in PLAIN_MODES:
        image.load()
        return image, profile
    if image.mode.startswith("I;16"):
        return image.convert("I").convert("I;16"), profile
    if image.mode == "1":
        return image.convert("L"), None
    if image.mode == "CMYK" and profile and (changed := _converted(image, profile, _srgb())):
        return changed, _srgb()
    kept = profile if image.mode == "P" else None
    return image.convert("RGBA" if image.has_transparency_data else "RGB"), kept


def _shrunk(image: Any, size: tuple[int, int]) -> Any:
    """Return an image at a smaller size as RGB, with white in transparent areas."""
    from PIL.Image import Resampling

    size = max(1, size[0]), max(1, size[1])
    if image.mode == "I;16":
        levels = image.resize(size, Resampling.BOX).convert("F").point(lambda value: value / 257 + 0)
        return levels.convert("L").convert("RGB")
    return opaque(image.resize(size, Resampling.LANCZOS, reducing_gap=2.0))


def _readings(
    upright: Any, profile: bytes | None, seen: Any, passes: Sequence[Ratios], turned: int
) -> Iterator[tuple[Any, Canvas]]:
    """Yield all possible interpretations of the picture and the canvas.

    The service may or may not apply the EXIF orientation, and may or may not respect the color profile.
    """
    for colored in _colored(seen, profile):
        plain = opaque(colored)
        yield plain, chained_canvas(upright.width, upright.height, passes)
        if turned in TURNED_SIDES:
            sides = [Ratios(*(getattr(each, side) for side in TURNED_SIDES[turned])) for each in passes]
            yield _turned(plain, turned), chained_canvas(upright.width, upright.height, sides)


def _difference(thumbnail: Any, picture: Any, canvas: Canvas) -> float:
    """Return the difference in levels between the small photo and the expected part of the picture."""
    from PIL.Image import Resampling
    from PIL.ImageChops import difference
    from PIL.ImageStat import Stat

    frame = zip(canvas.frame, (*picture.size, *picture.size), strict=True)
    given = picture.resize(thumbnail.size, Resampling.BOX, box=tuple(share * side for share, side in frame))
    return sum(Stat(difference(thumbnail, given)).mean)


# ---------------------------------------------------------------------------- color profiles


def _srgb() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _colored(picture: Any, profile: bytes | None) -> Iterator[Any]:
    """Yield the picture unchanged, converted to the photo's profile, or both if either may be right."""
    own, changed = picture.info.get("icc_profile"), None
    if own != profile and (own or picture.mode == "RGB"):
        changed = _converted(picture, own or _srgb(), profile or _srgb())
    if own is None or changed is None:
        yield picture
    if changed is not None:
        yield changed


def _converted(image: Any, source: bytes, target: bytes) -> Any:
    """Return an image converted between two color profiles, or None if they do not suit it or are damaged."""
    from PIL import ImageCms

    try:
        before, after = (ImageCms.ImageCmsProfile(io.BytesIO(each)) for each in (source, target))
        return ImageCms.profileToProfile(image, before, after, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def to_srgb(image: Any) -> Any:
    """Return an image converted to sRGB. One without a profile is returned unchanged."""
    profile = image.info.get("icc_profile")
    if profile is None or image.mode not in {"RGB", "RGBA"}:
        return image
    changed = _converted(image.convert("RGB"), profile, _srgb())
    if changed is None:
        return image
    if image.mode == "RGBA":
        changed.putalpha(image.getchannel("A"))
    changed.info = image.info | {"icc_profile": _srgb()}
    return changed
