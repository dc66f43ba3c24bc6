"""Full-size pictures: the photo at its own size, next to the picture of the service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.large_photos import stored, texture
from kling_expand import (
    DeadlineExceeded,
    InvalidRequest,
    KlingClient,
    PictureMismatch,
    Ratios,
    ToAspect,
)
from kling_expand.emulator import Emulator
from kling_expand.store.sqlite import SQLiteStore

RIGHT = Ratios(right=0.5)
PHOTO = texture(1200, 800, seed=1)
FAST: dict[str, Any] = {"engine": "flat", "queue_seconds": 0, "work_seconds": 0}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a JPEG photo that is larger than the service's pictures."""
    path = tmp_path_factory.mktemp("photos") / "hills.jpg"
    path.write_bytes(stored(PHOTO, "JPEG"))
    return path


@asynccontextmanager
async def clients(**options: Any) -> AsyncIterator[KlingClient]:
    async with (
        Emulator(**FAST) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url, **options) as kling,
    ):
        yield kling


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def original(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


async def test_both_pictures_are_saved_and_recorded(photo: Path, tmp_path: Path) -> None:
    """The full-size picture is saved next to the service's picture, and the journal has both."""
    async with clients(journal=tmp_path / "run.db") as kling:
        result = await kling.expand(photo, RIGHT, n=2)
        paths = await result.save(tmp_path / "out", full_size=True, format="png")
        assert [path.name for path in paths] == ["hills-0-full.png", "hills-1-full.png"]
        assert names(tmp_path / "out") == {*(path.name for path in paths), "hills-0.png", "hills-1.png"}
        again = await kling.expand(photo, RIGHT, n=2)
        assert again.files == tuple(path.absolute() for path in paths)
    async with SQLiteStore(tmp_path / "run.db") as store:
        (record,) = [record async for record in store.jobs()]
        assert {Path(file).name for file in record.files} == names(tmp_path / "out")
    for path in paths:
        with Image.open(path) as full:
            assert full.size == (1800, 800)
            assert full.crop((0, 0, 1200, 800)).tobytes() == original(photo).tobytes()


async def test_the_format_is_that_of_the_photo(photo: Path, tmp_path: Path) -> None:
    """By default a JPEG stays a JPEG and keeps its date, unless the target names another format."""
    async with clients() as kling:
        result = await kling.expand(photo, RIGHT)
        (path,) = await result.save(tmp_path, full_size=True, quality=80)
        assert path.name == "hills-0-full.jpg"
        with Image.open(path) as full:
            assert full.getexif()[0x0132] == "2026:11:20 10:00:00"
        (path,) = await result.save(tmp_path / "mine.png", full_size=True)
        assert path.name == "mine-full.png"


async def test_an_earlier_full_size_picture_is_kept(photo: Path, tmp_path: Path) -> None:
    """A second save keeps the existing picture, and another file of the same name is not replaced."""
    async with clients() as kling:
        result = await kling.expand(photo, RIGHT)
        (path,) = await result.save(tmp_path, full_size=True)
        before = path.stat()
        assert await result.save(tmp_path, full_size=True) == (path,)
        assert path.stat().st_ino == before.st_ino
        path.unlink()
        path.write_text("mine")
        (other,) = await result.save(tmp_path, full_size=True)
        assert (path.read_text(), other.name) == ("mine", f"hills-0-full-{result.task_id}.jpg")


@pytest.mark.parametrize("kind", ["image", "file"])
async def test_any_photo_that_can_be_read_is_put_back(kind: str, photo: Path, tmp_path: Path) -> None:
    """Photos that are not files can be put back too."""
    source: Any = open(photo, "rb") if kind == "file" else original(photo)  # noqa: PTH123, SIM115, ASYNC230
    async with clients() as kling:
        result = await kling.expand(source, ToAspect("16:9"))
        (path,) = await result.save(tmp_path, full_size=True, format="png")
    if kind == "file":
        source.close()
    with Image.open(path) as full:
        assert full.size == (1422, 800)
        assert full.crop((111, 0, 1311, 800)).tobytes() == original(photo).tobytes()


async def test_another_photo_can_be_given(photo: Path, tmp_path: Path) -> None:
    """If a smaller copy was sent, the path of the large photo can be given."""
    small = tmp_path / "small.jpg"
    original(photo).resize((600, 400)).save(small)
    async with clients() as kling:
        result = await kling.expand(small, RIGHT)
        full = await result.image(full_size=photo)
        plain = await result.image()
    assert full.size == (1800, 800)
    assert full.crop((0, 0, 1200, 800)).tobytes() == original(photo).tobytes()
    assert plain.width < 2000


async def test_a_photo_that_is_not_in_the_picture_is_an_error(photo: Path, tmp_path: Path) -> None:
    """Another photo raises `PictureMismatch`, and only the service's picture is saved."""
    other = tmp_path / "other.png"
    texture(1200, 800, seed=9).save(other, compress_level=1)
    async with clients() as kling:
        result = await kling.expand(photo, RIGHT)
        with pytest.raises(PictureMismatch, match="not found"):
            await result.save(tmp_path / "out", full_size=other)
    assert names(tmp_path / "out") == {"hills-0.png"}


async def test_a_wrong_or_missing_argument_is_named(photo: Path, tmp_path: Path) -> None:
    """The error names the argument that is wrong, or that an attached task needs."""
    async with clients() as kling:
        result = await kling.expand(photo, RIGHT)
        attached = await kling.attach(result.task_id)
        with pytest.raises(InvalidRequest, match="full_size must be the path of the photo"):
            await attached.image(full_size=True)
        with pytest.raises(InvalidRequest, match="position must be less than 1"):
            await result.image(1)
        with pytest.raises(InvalidRequest, match="full_size must be True, False or the path"):
            await result.save(tmp_path, full_size=1)  # type: ignore[arg-type]


async def test_a_deadline_or_a_cancellation_ends_the_process(photo: Path, tmp_path: Path) -> None:
    """After a deadline or a cancellation, no incomplete file is left, and a new save succeeds."""
    async with clients() as kling:
        result = await kling.expand(photo, RIGHT)
        await result.save(tmp_path)
        with pytest.raises(DeadlineExceeded):
            await result.save(tmp_path, full_size=True, deadline=0.05)
        saving = asyncio.ensure_future(result.save(tmp_path, full_size=True))
        await asyncio.sleep(0.1)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert names(tmp_path) == {"hills-0.png"}
        assert len(await result.save(tmp_path, full_size=True)) == 1
