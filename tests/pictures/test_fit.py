"""`fit`: conversion of photos that the service would refuse."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from pillow_heif import register_heif_opener
from support.shell import COFFEE, Shell, shell

from kling_expand.api.photo import MAX_BYTES, load_photo
from kling_expand.errors import ImageError
from kling_expand.pictures.fit import ORIENTATION, can_fit, fit


@cache  # it bears the second it was made in
def profile() -> bytes:
    """Return a color profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def coffee(path: Path, **options: Any) -> str:
    """Save the coffee photo in another format, and return its path."""
    register_heif_opener()
    with Image.open(COFFEE) as picture:
        picture.save(path, **options)
    return str(path)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return an image that cannot be compressed."""
    shape = (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8), mode)


@pytest.mark.parametrize("ending", ["webp", "tiff", "bmp", "gif", "heic", "avif"])
async def test_other_formats_become_jpeg(tmp_path: Path, ending: str) -> None:
    """The result is the same photo in the same size."""
    photo = coffee(tmp_path / f"photo.{ending}")
    assert can_fit(photo)
    fitted = fit(photo, tmp_path, acceptable=False)
    assert any("converted to JPEG" in change for change in fitted.changes)
    loaded = await load_photo(fitted.path)
    assert (loaded.format, loaded.width, loaded.height) == ("JPEG", 600, 400)
    with Image.open(fitted.path) as after, Image.open(COFFEE) as before:
        difference = np.abs(np.asarray(after, float) - np.asarray(before, float)).mean()
        assert difference < (20 if ending == "gif" else 6)


async def test_a_rotated_photo_becomes_upright(tmp_path: Path) -> None:
    """The pixels are rotated, the EXIF orientation is removed, and the color profile is kept."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photo = coffee(tmp_path / "turned.jpg", exif=exif, icc_profile=profile())
    (tmp_path / "fitted").mkdir()
    fitted = fit(photo, tmp_path / "fitted", acceptable=True)
    with Image.open(fitted.path) as picture:
        assert (picture.size, picture.getexif().get(ORIENTATION)) == ((400, 600), None)
        assert picture.info["icc_profile"] == profile()
    assert "rotated upright" in fitted.changes


def test_an_acceptable_photo_is_not_changed(tmp_path: Path) -> None:
    """An acceptable photo is not written again, and has no changes."""
    fitted = fit(COFFEE, tmp_path, acceptable=True)
    assert (fitted.path, fitted.changes, list(tmp_path.iterdir())) == (COFFEE, (), [])


async def test_quality_is_reduced_before_the_size(tmp_path: Path) -> None:
    """The quality is reduced before the size, and the result has at most 10 MB."""
    noise(2600, 2000).save(tmp_path / "heavy.png")
    assert (tmp_path / "heavy.png").stat().st_size > MAX_BYTES
    fitted = fit(str(tmp_path / "heavy.png"), tmp_path, acceptable=False)
    loaded = await load_photo(fitted.path)
    assert loaded.size is not None
    assert loaded.size <= MAX_BYTES
    assert (loaded.width, loaded.height) == (2600, 2000)
    assert any(change.startswith("quality") for change in fitted.changes)


async def test_transparency_is_kept(tmp_path: Path) -> None:
    """A transparent photo becomes a PNG, and is scaled down if the file is too large."""
    noise(1900, 1600, "RGBA").save(tmp_path / "heavy.tiff")
    fitted = fit(str(tmp_path / "heavy.tiff"), tmp_path, acceptable=False)
    loaded = await load_photo(fitted.path)
    assert loaded.format == "PNG"
    assert loaded.width is not None
    assert loaded.width < 1900
    assert any("scaled from 1900x1600" in change for change in fitted.changes)
    with Image.open(fitted.path) as picture:
        assert picture.mode == "RGBA"


async def test_sixteen_bits_a_pixel_keep_their_brightness(tmp_path: Path) -> None:
    """Levels of 16 bits are scaled to 8 bits."""
    Image.fromarray(np.full((300, 300), 0x8000, np.uint16)).save(tmp_path / "deep.tiff")
    fitted = fit(str(tmp_path / "deep.tiff"), tmp_path, acceptable=False)
    with Image.open(fitted.path) as picture:
        assert picture.getpixel((150, 150)) == pytest.approx(128, abs=2)


def test_an_animation_becomes_its_first_frame(tmp_path: Path) -> None:
    """An animation is replaced by its first frame, and the change is listed."""
    frames = [Image.new("RGB", (300, 300), (shade, 0, 0)) for shade in (10, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    fitted = fit(str(tmp_path / "moving.gif"), tmp_path, acceptable=False)
    assert "first of 2 frames" in fitted.changes


def test_an_unreadable_photo_raises_image_error(tmp_path: Path) -> None:
    """Text and a truncated photo raise `ImageError`."""
    (tmp_path / "text.heic").write_text("no picture")
    buffer = io.BytesIO()
    noise(400, 400).save(buffer, "WEBP", lossless=True)
    (tmp_path / "cut.webp").write_bytes(buffer.getvalue()[:2000])
    for name in ("text.heic", "cut.webp"):
        with pytest.raises(ImageError, match="Pillow cannot read it"):
            fit(str(tmp_path / name), tmp_path, acceptable=False)
    assert not can_fit(str(tmp_path / "text.heic"))


def test_small_and_narrow_photos_stay_refused(tmp_path: Path) -> None:
    """Small and narrow photos are refused rather than scaled up or cropped."""
    for name, size in (("small.webp", (200, 200)), ("narrow.webp", (1000, 300))):
        Image.new("RGB", size).save(tmp_path / name)
        assert not can_fit(str(tmp_path / name))
        done = Shell()("expand", tmp_path / name, "--up", 1, "--fit")
        assert done.exit_code == 2
        assert "300 pixels" in done.stderr or "1:2.5" in done.stderr


def test_the_command_reports_the_changes(tmp_path: Path) -> None:
    """The changes are on stderr or in the JSON, and the result is named after the original photo."""
    photo = coffee(tmp_path / "mug.webp")
    with shell() as kling:
        done = kling("expand", photo, "--up", 0.5, "--fit", "-o", tmp_path / "out")
        again = kling("expand", photo, "--up", 0.5, "--fit", "-o", tmp_path / "out", "--json", "--fresh")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'out' / 'mug-0.png'}\n")
    assert f"{photo}: WEBP converted to JPEG" in done.stderr
    assert "WEBP converted to JPEG" in again.stdout


@pytest.mark.parametrize("arguments", [("bulk", "--dry-run"), ("bulk",), ("expand",), ("bulk", "--no-fit")])
def test_a_truncated_photo_is_reported(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A truncated photo is reported once with the reason, also by a dry run, and is not sent."""
    cut = tmp_path / "photos" / "cut.jpg"
    cut.parent.mkdir()
    whole = Path(coffee(tmp_path / "whole.jpg")).read_bytes()
    cut.write_bytes(whole[: len(whole) // 3])
    coffee(tmp_path / "photos" / "mug.webp")
    fits = "--no-fit" not in arguments
    words = [each for each in arguments if each != "--no-fit"] + ["--fit"] * fits
    files = sorted(cut.parent.iterdir()) if words[0] == "expand" else [cut.parent]
    with shell() as kling:
        done = kling(*words, *files, "--up", 0.5, "-o", tmp_path / "out")
        sent = len(kling.emulator.account.tasks)
    said = f"{cut}: image: the file is incomplete (truncated): {cut}; copy it again from the camera or phone"
    assert [line for line in done.stderr.splitlines() if str(cut) in line] in ([said], [f"{said}; not sent"])
    assert sent == (1 if arguments == ("bulk",) else 0)
    if "--dry-run" in words:
        assert "1 photo can be sent, 1 cannot" in done.stdout
    if words[0] == "expand":
        assert "1 of 2 photos cannot be sent, so nothing was sent" in done.stderr


def test_without_fit_the_error_suggests_it(tmp_path: Path) -> None:
    """The error suggests --fit if it would help. A rotated photo is sent with a warning."""
    done = Shell()("expand", coffee(tmp_path / "mug.webp"), "--up", 1, KLING_API_KEY="none")
    assert (done.exit_code, "--fit" in done.stderr) == (2, True)
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    with shell() as kling:
        turned = kling("expand", coffee(tmp_path / "t.jpg", exif=exif), "--up", 1, "-o", tmp_path)
    assert turned.exit_code == 0
    assert "rotated by its EXIF data" in turned.stderr
