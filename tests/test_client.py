"""The front door, against the emulator, in virtual time."""

from pathlib import Path

from kling_expand import ExpandRequest, Ratios, ToAspect
from kling_expand.testing import emulated, virtual_time

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"


@virtual_time
async def test_one_photo_goes_in_and_its_pictures_come_out(tmp_path: Path) -> None:
    """The main job: as many pictures on disk as were asked for, billed once."""
    async with emulated(work_seconds=40) as (emulator, kling):
        result = await kling.expand(PHOTOS / "coffee.jpg", ToAspect("16:9"), n=2)
        paths = await result.save(tmp_path)
        assert [path.name for path in paths] == ["coffee-0.png", "coffee-1.png"]
        assert emulator.books.units_billed == 16
        assert set(emulator.books.accepted.values()) == {1}


@virtual_time
async def test_many_photos_are_never_more_than_the_account_takes() -> None:
    """Slots are weighted by n, and the service never has to refuse."""
    async with emulated(work_seconds=10, slots=9) as (emulator, kling):
        requests = [ExpandRequest(PHOTOS / "chelsea.jpg", Ratios(up=0.5), n=1 + i % 4) for i in range(30)]
        outcomes = [outcome async for outcome in kling.map(requests, ordered=True)]
        assert [outcome.index for outcome in outcomes] == list(range(30))
        assert not any(outcome.error for outcome in outcomes)
        assert emulator.books.refusals == {}
        assert emulator.books.most_slots <= 9
