"""Alignment of a photo and its picture in orientation and color space."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from support.sample_pictures import BROKEN, claimed, saved

from benchmarks.large_photos import display_p3, texture
from kling_expand import Ratios
from kling_expand.errors import ImageError
from kling_expand.pictures.fit import open_image
from kling_expand.pictures.scene import TURNED_SIDES, prepare, to_srgb

FRAME = texture(360, 240, seed=1)
RATIOS = Ratios(0.1, 0.2, 0.3, 0.4)
ORIENTATION = 0x0112
DAMAGED = b"no profile" * 20


def photo_of(frame: Image.Image, ratios: Ratios) -> Image.Image:
    """Return the part of a frame that the ratios expand to the whole frame."""
    width = round(frame.width / (1 + ratios.left + ratios.right))
    height = round(frame.height / (1 + ratios.up + ratios.down))
    left, top = round(width * ratios.left), round(height * ratios.up)
    return frame.crop((left, top, left + width, top + height))


def turned(photo: Image.Image, orientation: int) -> Image.Image:
    """Return a photo with an EXIF orientation, opened from a file."""
    exif, target = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    photo.save(target, "JPEG", exif=exif, quality=98)
    return Image.open(target)


@pytest.mark.parametrize("orientation", sorted(TURNED_SIDES))
@pytest.mark.parametrize("applied", [False, True])
def test_every_orientation_becomes_upright(orientation: int, *, applied: bool) -> None:
    """Whether or not the service applies EXIF, photo, picture and canvas become upright and match."""
    photo, picture = turned(photo_of(FRAME, RATIOS), orientation), FRAME
    if applied:  # the service and the ratios refer to the upright photo
        upright = ImageOps.exif_transpose(photo)
        canvas = RATIOS.canvas(*upright.size)
        picture = texture(canvas.width, canvas.height, seed=2)
        picture.paste(upright, canvas.box[:2])
    scene = prepare(photo, picture, RATIOS)
    assert scene.photo.size == ImageOps.exif_transpose(photo).size
    assert scene.registration.matches
    assert scene.registration.offset < 1
    assert abs(scene.canvas.width / scene.canvas.height - scene.picture.width / scene.picture.height) < 0.02


@pytest.mark.parametrize("respected", [False, True])
def test_a_picture_is_read_in_the_colors_of_the_photo(*, respected: bool) -> None:
    """Whether or not the service respects the profile, the picture has the photo's values."""
    photo = photo_of(FRAME, RATIOS)
    photo.info["icc_profile"] = display_p3()
    picture = FRAME.copy()
    if respected:
        wide, usual = ImageCms.ImageCmsProfile(io.BytesIO(display_p3())), ImageCms.createProfile("sRGB")
        ImageCms.profileToProfile(picture, wide, usual, inPlace=True)
        picture.info.pop("icc_profile", None)
    scene = prepare(photo, picture, RATIOS)
    assert np.abs(np.asarray(scene.picture, float) - np.asarray(FRAME, float)).mean() < 1.5


def test_a_profile_of_the_picture_is_applied() -> None:
    """A picture with its own profile is converted to that of the photo, which is sRGB by default."""
    picture = FRAME.copy()
    picture.info["icc_profile"] = display_p3()
    scene = prepare(photo_of(FRAME, RATIOS), picture, RATIOS)
    assert np.abs(np.asarray(scene.picture, float) - np.asarray(FRAME, float)).mean() > 1


@pytest.mark.parametrize(
    ("mode", "profile", "own"),
    [("RGB", DAMAGED, None), ("CMYK", DAMAGED, None), ("CMYK", display_p3(), None), ("RGB", None, DAMAGED)],
)
def test_a_profile_that_cannot_be_applied_is_ignored(
    mode: str, profile: bytes | None, own: bytes | None
) -> None:
    """A photo or a picture with a damaged profile, or with one for other channels, is matched without it."""
    photo, picture = photo_of(FRAME, RATIOS).convert(mode), FRAME.copy()
    photo.info["icc_profile"], picture.info["icc_profile"] = profile, own
    assert prepare(photo, picture, RATIOS).registration.matches


def test_srgb_is_made_on_request_only() -> None:
    """An image with a profile is converted once. An image without one is returned unchanged."""
    image = FRAME.copy()
    assert to_srgb(image) is image
    image.info["icc_profile"] = display_p3()
    changed = to_srgb(image)
    assert np.abs(np.asarray(changed, float) - np.asarray(image, float)).mean() > 1
    assert np.array_equal(np.asarray(to_srgb(changed)), np.asarray(changed))


def test_a_picture_of_too_many_pixels_is_not_decoded() -> None:
    """A picture with too many pixels is refused by its header. A photo may be larger."""
    with pytest.raises(ImageError, match="at most 50000000 pixels, got 13000x13000"):
        prepare(FRAME, io.BytesIO(claimed(13_000, 13_000)), RATIOS)
    assert open_image(io.BytesIO(claimed(13_000, 13_000))).size == (13_000, 13_000)


def test_postscript_is_not_run() -> None:
    """A file that Pillow would run with Ghostscript is refused."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 400 400\n%%EndComments\n"
    with pytest.raises(ImageError, match="must not be PostScript"):
        prepare(io.BytesIO(program), FRAME, RATIOS)


def test_an_unreadable_picture_is_refused() -> None:
    """A file that Pillow cannot read raises an `ImageError` with its name."""
    with pytest.raises(ImageError, match=r"BytesIO"):
        prepare(FRAME, io.BytesIO(b"no picture"), RATIOS)


@pytest.mark.parametrize("damaged", ["photo", "picture"])
def test_damaged_pixels_are_refused(damaged: str) -> None:
    """A photo or picture with a valid header but damaged pixels raises an `ImageError`."""
    images = {"photo": saved(photo_of(FRAME, RATIOS)), "picture": saved(FRAME)} | {damaged: BROKEN}
    with pytest.raises(ImageError, match=r"Pillow cannot read it|incomplete"):
        prepare(io.BytesIO(images["photo"]), io.BytesIO(images["picture"]), RATIOS)
