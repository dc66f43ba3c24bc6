"""Composites: the photo's own pixels in their place, and a new area that continues them."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.composite import seam_ratio
from benchmarks.large_photos import display_p3, stored, texture
from kling_expand import PictureMismatch, Ratios
from kling_expand.emulator.painting.pictures import misregistered, outpaint
from kling_expand.pictures.composite import composite

FRAME = texture(900, 600, seed=1)
RATIOS = Ratios(0.1, 0.1, 0.25, 0.25)
CANVAS = RATIOS.canvas(600, 500)
PHOTO = FRAME.crop(CANVAS.box)
PICTURE = FRAME.resize((300, 200), Image.Resampling.LANCZOS)  # the picture of an ideal service
SIDES = [Ratios(up=0.3), Ratios(down=0.3), Ratios(left=0.3), Ratios(right=0.3), RATIOS]


def levels(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB")).astype(float)


def inside(image: Any) -> Any:
    return image.crop(CANVAS.box)


@pytest.mark.parametrize("misregister", [(0, 0, 1), (0.7, -1.3, 1.004), (-2.2, 0.4, 0.99)])
def test_the_photo_is_put_back_unchanged(misregister: tuple[float, float, float]) -> None:
    """Inside its box the photo is unchanged. Outside, the enlarged picture is in its exact place."""
    result = composite(PHOTO, misregistered(PICTURE, *misregister), RATIOS)
    assert result.size == FRAME.size
    assert inside(result).tobytes() == PHOTO.tobytes()
    ideal = levels(PICTURE.resize(FRAME.size, Image.Resampling.LANCZOS))
    seen = slice(20, -20)
    assert np.abs(levels(result)[seen, seen] - ideal[seen, seen]).mean() < 3
    assert seam_ratio(result, CANVAS.box) <= 1.5


@pytest.mark.parametrize("ratios", SIDES)
def test_seams_are_smooth_on_every_side(ratios: Ratios) -> None:
    """On every side, the step at the seam is at most 1.5 times the steps next to it."""
    canvas = ratios.canvas(600, 500)
    frame = texture(canvas.width, canvas.height, seed=3)
    photo = frame.crop(canvas.box)
    picture = frame.resize((canvas.width // 3, canvas.height // 3), Image.Resampling.LANCZOS)
    shifted = misregistered(picture, 1.2, -0.8, 1.0)
    result = composite(photo, shifted, ratios)
    assert result.crop(canvas.box).tobytes() == photo.tobytes()
    assert seam_ratio(result, canvas.box) <= 1.5
    assert np.abs(levels(result) - levels(frame)).mean() < 8


def test_a_color_cast_disappears_near_the_seam() -> None:
    """A color cast disappears near the seam, remains far from it, and changes gradually in between."""
    frame = texture(1200, 300, seed=2)
    ratios = Ratios(right=2.0)
    photo = frame.crop((0, 0, 400, 300))
    cast = np.clip(levels(frame) + np.array([18, -12, 6]), 0, 255).astype(np.uint8)
    picture = Image.fromarray(cast).resize((600, 150), Image.Resampling.LANCZOS)
    error = levels(composite(photo, picture, ratios)) - levels(frame)
    near, far = (np.abs(error[:, part].mean(axis=(0, 1))) for part in (slice(402, 422), slice(1000, 1200)))
    assert near.max() < 3
    assert far.max() == pytest.approx(18, abs=3)
    columns = error[..., 0].reshape(300, 60, 20).mean(axis=(0, 2))[21:]
    assert np.abs(np.diff(columns)).max() < 5


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16", "P", "1", "CMYK"])
def test_every_mode_is_supported(mode: str) -> None:
    """Gray, alpha and 16 bits are kept, palettes and CMYK become RGB, and the photo's pixels are kept."""
    photo = PHOTO.convert("L").convert("RGBA") if mode == "RGBA" else PHOTO.convert("L").convert(mode)
    if mode == "I;16":
        photo = Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257 - 100)
    if mode in {"RGBA", "LA"}:
        photo.putalpha(Image.linear_gradient("L").resize(photo.size).point(lambda value: max(value, 128)))
    kept = {"P": "RGB", "1": "L", "CMYK": "RGB"}.get(mode, mode)
    expected = photo.convert(kept)
    result = composite(photo, PICTURE if mode != "1" else PICTURE.convert("L"), RATIOS)
    assert result.mode == kept
    assert inside(result).tobytes() == expected.tobytes()
    corner = np.asarray(result)[5:60, 5:60].astype(float)
    if mode in {"RGBA", "LA"}:
        assert (corner[..., -1] == 255).all()
    scale = 257 if mode == "I;16" else 1
    gray = np.asarray(PICTURE.convert("L"))[2:20, 2:20].mean() * scale
    assert corner[..., :1].mean() == pytest.approx(gray, rel=0.3)


def test_metadata_is_kept() -> None:
    """Date, place, camera and profile are kept, but not the orientation, the thumbnail or the old size."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0132], exif[0x0131], exif[0x0112] = "Maker", "2026:11:20 10:00:00", "Lightroom", 6
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8769).update({0x9003: "2026:11:20 10:00:00", 0xA002: 600, 0xA003: 500})
    target = io.BytesIO()
    turned = PHOTO.transpose(Image.Transpose.ROTATE_90)
    turned.save(target, "JPEG", exif=exif, icc_profile=display_p3(), quality=95)
    result = composite(target, PICTURE, RATIOS)
    saved = io.BytesIO()
    result.save(saved, "JPEG", exif=result.info["exif"], icc_profile=result.info["icc_profile"])
    with Image.open(saved) as image:
        found = image.getexif()
        assert (found[0x010F], found[0x0132]) == ("Maker", "2026:11:20 10:00:00")
        assert found[0x0131] == "Lightroom; kling-expand"
        assert 0x0112 not in found
        assert found.get_ifd(0x8825)[1] == "N"
        inner = found.get_ifd(0x8769)
        assert (inner[0x9003], inner[0xA002], inner[0xA003]) == ("2026:11:20 10:00:00", *FRAME.size)
        assert image.info["icc_profile"] == display_p3()
        assert not found.get_ifd(0x0201)


def test_srgb_converts_the_composite() -> None:
    """With `srgb` the composite is converted to sRGB. Without it, the photo's profile is kept."""
    photo = PHOTO.copy()
    photo.info["icc_profile"] = display_p3()
    kept, changed = (composite(photo, PICTURE, RATIOS, srgb=srgb) for srgb in (False, True))
    assert kept.info["icc_profile"] == display_p3()
    assert inside(kept).tobytes() == photo.tobytes()
    assert changed.info["icc_profile"] != display_p3()
    assert np.abs(levels(inside(changed)) - levels(photo)).mean() > 1


def test_a_feather_blends_the_outermost_pixels_only() -> None:
    """With a feather, only the outermost pixels of the photo are blended into the picture."""
    result = composite(PHOTO, PICTURE, RATIOS, feather=12)
    changed = np.abs(levels(inside(result)) - levels(PHOTO)).max(axis=2)
    assert changed[:4].mean() > 1
    assert changed[12:-12, 12:-12].max() == 0


def test_the_result_of_two_passes_is_aligned() -> None:
    """For the result of two passes, the photo is at the position that both passes give."""
    first, second = Ratios(left=0.25, right=0.25), Ratios(up=0.1, down=0.1)
    result = composite(PHOTO, PICTURE, [first, second])
    assert result.size == FRAME.size
    assert inside(result).tobytes() == PHOTO.tobytes()


def test_a_picture_of_another_photo_is_refused() -> None:
    """A picture that does not contain the photo is refused, and the error has the correlation."""
    with pytest.raises(PictureMismatch, match=r"not found in the picture \(correlation"):
        composite(PHOTO, texture(300, 200, seed=9), RATIOS)


@pytest.mark.parametrize("engine", ["flat"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_photo_is_put_back_into_the_emulators_picture(engine: str, orientation: int) -> None:
    """The photo is put back into the emulator's picture, whether or not EXIF rotates the photo."""
    data = stored(PHOTO, "PNG", orientation=orientation)
    ratios = RATIOS if orientation == 1 else Ratios(0.25, 0.25, 0.1, 0.1)
    sides = (ratios.up, ratios.down, ratios.left, ratios.right)
    picture = outpaint(data, sides, seed=1, engine=engine, misregister="1.4,-0.6,1.002").data
    result = composite(io.BytesIO(data), io.BytesIO(picture), ratios)
    assert result.size == FRAME.size
    assert inside(result).tobytes() == PHOTO.tobytes()
