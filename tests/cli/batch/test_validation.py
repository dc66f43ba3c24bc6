"""Checks before the first photo is sent."""

from pathlib import Path

import pytest
from PIL import Image
from support.shell import COFFEE

from kling_expand import ExpandRequest, Ratios, ToAspect, Towards
from kling_expand.cli.batch.validation import check
from kling_expand.errors import GeometryError, ImageError, InvalidRequest
from kling_expand.pictures.fit import ORIENTATION


async def test_a_good_request_is_prepared_as_it_will_be_sent() -> None:
    """It holds the photo and the ratios for that photo, and has no notes."""
    request = ExpandRequest(COFFEE, ToAspect("3:1"))
    checked = await check(request, None)
    assert checked.prepared.request is request
    assert checked.prepared.photo.dimensions == (600, 400)
    assert checked.prepared.expansion == Ratios(left=0.5, right=0.5)
    assert checked.notes == ()


@pytest.mark.parametrize(
    ("image", "geometry", "dialect", "error", "said"),
    [
        ("missing.jpg", Ratios(up=1), None, ImageError, "no such file"),
        (COFFEE, ToAspect("9:1"), None, GeometryError, "aspect"),
        (COFFEE, Ratios(up=1), "direction", InvalidRequest, "use --direction"),
        (
            "https://example.com/a.jpg",
            ToAspect("16:9"),
            None,
            InvalidRequest,
            "use --up/--down/--left/--right or",
        ),
    ],
)
async def test_what_would_be_refused_later_is_refused_now(
    image: str, geometry: object, dialect: str | None, error: type[Exception], said: str
) -> None:
    """The refusal gives advice in the words of the command line."""
    with pytest.raises(error, match=said):
        await check(ExpandRequest(image, geometry), dialect)  # type: ignore[arg-type]  # a geometry


async def test_a_watermark_is_refused_where_the_dialect_has_none() -> None:
    """The advice about geometries is not given for another field."""
    with pytest.raises(InvalidRequest, match="watermark must be False") as caught:
        await check(ExpandRequest(COFFEE, Towards("all"), watermark=True), "direction")
    assert "--direction" not in caught.value.message


async def test_a_rotated_photo_is_noted_or_fitted(tmp_path: Path) -> None:
    """Without a folder it is sent as it is; with one it is written there, upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photo = tmp_path / "rotated.jpg"
    with Image.open(COFFEE) as picture:
        picture.save(photo, exif=exif)
    request = ExpandRequest(str(photo), Ratios(up=0.5))
    noted = await check(request, None)
    assert noted.prepared.request is request
    assert any("--fit" in note for note in noted.notes)
    (tmp_path / "fitted").mkdir()
    fitted = await check(request, None, tmp_path / "fitted")
    assert fitted.prepared.photo.dimensions == (400, 600)
    assert "rotated upright" in fitted.notes


async def test_a_photo_that_fit_would_convert_says_so(tmp_path: Path) -> None:
    """The advice to use --fit is only given where it would help."""
    with Image.open(COFFEE) as picture:
        picture.save(tmp_path / "photo.webp")
    Image.new("RGB", (200, 200)).save(tmp_path / "small.png")
    for name, advised in (("photo.webp", True), ("small.png", False)):
        with pytest.raises(ImageError) as caught:
            await check(ExpandRequest(str(tmp_path / name), Ratios(up=0.5)), None)
        assert ("--fit" in caught.value.message) is advised
