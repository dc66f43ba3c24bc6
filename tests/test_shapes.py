"""Several shapes of one photo: one request for each shape, in any notation."""

import pytest
from support.shell import COFFEE

from kling_expand import GeometryError, InvalidRequest, KlingClient, Ratios, ToAspect
from kling_expand.emulator import Emulator
from kling_expand.shapes import SETS, shapes


def test_each_shape_is_one_request() -> None:
    """Aspects, sizes, geometries and sets may be mixed, and a shape that occurs twice is requested once."""
    right = Ratios(right=0.5)
    found = shapes(COFFEE, ["16:9", "youtube", right, "1200x630", ToAspect("16:9")], prompt="a table", n=2)
    expected = [ToAspect("16:9"), ToAspect("9:16"), right, ToAspect(1200 / 630)]
    assert [request.geometry for request in found] == expected
    assert {(request.image, request.prompt, request.n) for request in found} == {(COFFEE, "a table", 2)}
    assert [request.geometry for request in shapes(COFFEE, "og")] == [ToAspect(1200 / 630)]


def test_a_key_names_each_shape() -> None:
    """With a key each shape has a key of its own, so that each shape is a separate job."""
    assert [request.key for request in shapes(COFFEE, "youtube", key="cup")] == ["cup-16:9", "cup-9:16"]
    assert {request.key for request in shapes(COFFEE, "youtube")} == {None}


@pytest.mark.parametrize("name", sorted(SETS))
def test_every_shape_of_every_set_can_be_requested(name: str) -> None:
    """Each shape of each set is an aspect that a square photo reaches within three times its area."""
    for request in shapes(COFFEE, name):
        assert isinstance(request.geometry, ToAspect)
        assert request.geometry.aspect == 1 or request.geometry.ratios(1000, 1000).area <= 3


def test_an_invalid_shape_is_named() -> None:
    """A misspelt set raises an error that names the nearest. Wrong aspects and external ids are refused."""
    with pytest.raises(InvalidRequest, match=r"shape must be .*got 'instagramm'; did you mean instagram\?"):
        shapes(COFFEE, ["instagramm"])
    with pytest.raises(GeometryError, match="aspect must be width over height"):
        shapes(COFFEE, ["16-9"])
    with pytest.raises(InvalidRequest, match="external_task_id must not be given"):
        shapes(COFFEE, ["1:1"], external_task_id="mine")


async def test_map_accepts_shapes() -> None:
    """All shapes of a photo run at the same time, and each is paid for."""
    async with (
        Emulator(engine="flat", queue_seconds=0, work_seconds=0) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url) as kling,
    ):
        outcomes = [outcome async for outcome in kling.map(shapes(COFFEE, ["16:9", "1:1"]))]
        assert [outcome.error for outcome in outcomes] == [None, None]
        assert emulator.account.units_billed == 16
