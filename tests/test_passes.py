"""Several passes: each is a job that is paid for once, and the photo is put back at the end."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.large_photos import stored, texture
from kling_expand import (
    BudgetExceeded,
    DeadlineExceeded,
    ExpandRequest,
    GeometryError,
    InvalidRequest,
    KlingClient,
    Ratios,
    ToAspect,
    testing,
)
from kling_expand.cli.batch.fitting import FittedPath
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.geometry import shape_name
from kling_expand.passes import Pass, pass_of
from kling_expand.store.base import JobRecord
from kling_expand.store.sqlite import SQLiteStore
from kling_expand.testing import virtual_time

WIDE = ToAspect("16:9")
PORTRAIT = texture(540, 960, seed=1)
PHOTO = stored(PORTRAIT, "PNG")
FAST: dict[str, Any] = {"engine": "flat", "queue_seconds": 0, "work_seconds": 0}


@asynccontextmanager
async def emulated() -> AsyncIterator[Emulator]:
    async with Emulator(**FAST) as emulator:
        yield emulator


def client(emulator: Emulator, **options: Any) -> KlingClient:
    return KlingClient(api_key=emulator.api_key, base_url=emulator.url, **options)


async def test_two_passes_reach_a_wide_picture(tmp_path: Path) -> None:
    """A portrait becomes 16:9 in two tasks of 8 units, and the photo is put back unchanged."""
    async with emulated() as emulator, client(emulator) as kling:
        result = await kling.expand(PHOTO, WIDE, passes=2, n=2)
        assert emulator.account.units_billed == 8 + 2 * 8
        assert result.earlier is not None
        assert (len(result.images), len(result.earlier.images)) == (2, 1)
        assert result.shape == shape_name(WIDE)
        paths = await result.save(tmp_path, full_size=True, format="png")
    for path in paths:
        with Image.open(path) as full:
            assert full.size == (1707, 960)
            assert full.crop((583, 0, 583 + 540, 960)).tobytes() == PORTRAIT.tobytes()
    with Image.open(tmp_path / f"{result.task_id}-0.png") as plain:
        assert plain.width / plain.height == pytest.approx(16 / 9, abs=0.01)


async def test_one_pass_is_used_where_it_is_enough() -> None:
    """No more passes are made than needed."""
    async with emulated() as emulator, client(emulator) as kling:
        result = await kling.expand(PHOTO, ToAspect(1), passes=3)
        assert (result.earlier, emulator.account.units_billed) == (None, 8)


@pytest.mark.parametrize("key", [None, "dog"])
async def test_no_pass_is_paid_twice(
    key: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If a run stops between the passes or after them, a second run pays only for the missing passes.

    `resume` never yields a single pass as a result. It logs an unfinished one.
    """
    async with emulated() as emulator:
        async with client(emulator, journal=tmp_path / "run.db") as kling:
            await first_pass(kling, key=key)
        assert emulator.account.units_billed == 8
        for _ in range(2):
            async with client(emulator, journal=tmp_path / "run.db", budget=16) as kling:
                assert [future async for future in kling.resume()] == []
                result = await kling.expand(PHOTO, WIDE, passes=2, key=key)
                await result.save(tmp_path / "out")
                assert [future async for future in kling.resume()] == []
            assert emulator.account.units_billed == 16
    assert caplog.text.count("is not resumed, as it is one pass of several: call") == 1


def test_a_note_of_the_caller_is_no_pass() -> None:
    """A caller may call a value of a note `pass`."""
    assert pass_of(JobRecord("id", params='{}\n{"pass": "gold"}')) is None


async def first_pass(kling: KlingClient, **fields: Any) -> None:
    """Make the first of two passes and stop."""
    chain = kling.expand_passes(ExpandRequest(PHOTO, WIDE, n=2, **fields), 2, note={"name": "tower"})
    async with aclosing(chain.futures()) as futures:
        await (await anext(futures))


async def test_passes_resume_from_the_journal_without_the_photo(tmp_path: Path) -> None:
    """The journal has all that later passes need, wherever the run was stopped."""
    async with emulated() as emulator:
        async with client(emulator, journal=tmp_path / "run.db") as kling:
            await first_pass(kling, prompt="a tower")
        for billed in (24, 24):
            async with SQLiteStore(tmp_path / "run.db") as store, client(emulator, journal=store) as kling:
                known = [job async for job in store.jobs()]
                for job in known:
                    chain = kling.resume_passes(job)
                    async for future in chain.futures():
                        await future
                    assert chain.result
                    assert chain.result.earlier
                    assert (len(chain.result.images), len(chain.result.earlier.images)) == (2, 1)
                    assert job.note["name"] == "tower"
                    found = pass_of(job)
                    assert found
                    assert found.request.prompt == "a tower"
            assert emulator.account.units_billed == billed
        assert len(known) == 2


async def test_the_budget_counts_all_passes_beforehand(tmp_path: Path) -> None:
    """Nothing is sent if the budget does not cover the later passes, and their units are reserved."""
    async with emulated() as emulator:
        for journal in (None, tmp_path / "run.db"):
            async with client(emulator, budget=15, journal=journal) as kling:
                with pytest.raises(BudgetExceeded, match="8 units and 8 for later passes"):
                    await kling.expand(PHOTO, WIDE, passes=2)
            assert emulator.account.counts()["tasks"] == 0
        async with client(emulator, budget=16) as kling:
            chain = kling.expand_passes(ExpandRequest(PHOTO, WIDE), 2)
            async with aclosing(chain.futures()) as futures:
                await (await anext(futures))
                with pytest.raises(BudgetExceeded):
                    await kling.expand(PHOTO, Ratios(right=0.5))
            await kling.expand(PHOTO, Ratios(right=0.5))  # the failed passes have released their units


async def test_a_file_is_read_once_and_the_last_task_has_the_given_id(tmp_path: Path) -> None:
    """An open file is enough for all passes, and an external id becomes the id of the last task."""
    path = tmp_path / "photo.png"
    path.write_bytes(PHOTO)
    async with emulated() as emulator, client(emulator) as kling:
        with path.open("rb") as file:
            result = await kling.expand(file, WIDE, passes=2, external_task_id="mine")
        assert result.external_task_id == "mine"
        assert result.earlier
        assert result.earlier.external_task_id != "mine"


async def test_invalid_passes_raise_before_any_task_is_created() -> None:
    """Too few passes, an invalid number and a photo at a URL raise an error before any task is created."""
    async with emulated() as emulator, client(emulator) as kling:
        with pytest.raises(GeometryError, match="use passes=2"):
            await kling.expand(PHOTO, WIDE)
        with pytest.raises(InvalidRequest, match="passes must be between 1 and 4"):
            await kling.expand(PHOTO, WIDE, passes=5)
        with pytest.raises(InvalidRequest, match="must not be a URL, because an expansion in passes"):
            await kling.expand("https://example.com/a.png", Ratios(right=0.5), passes=2)
        assert emulator.account.counts()["tasks"] == 0


async def test_one_deadline_bounds_all_passes() -> None:
    """The deadline counts from the start of the first pass and covers all passes."""
    async with Emulator(**FAST | {"work_seconds": 0.6}) as emulator, client(emulator) as kling:
        with pytest.raises(DeadlineExceeded):
            await kling.expand(PHOTO, WIDE, passes=2, deadline=0.9)


@virtual_time
async def test_the_deadline_bounds_the_download_between_two_passes() -> None:
    """If the picture of a pass cannot be downloaded, `expand` still ends at its deadline."""
    async with testing.emulated(work_seconds=5) as (emulator, kling):
        emulator.faults.for_seconds("file", Fault("reset"), 1000)
        began = testing.loop_clock()
        with pytest.raises(DeadlineExceeded) as caught:
            await kling.expand(PHOTO, WIDE, passes=2, deadline=40)
        assert testing.loop_clock() - began == pytest.approx(40)
        assert caught.value.task_id in emulator.account.tasks


def test_a_journal_records_the_photo_from_which_another_was_converted() -> None:
    """A converted photo is a temporary file, so a later run needs the path of the user's own photo."""
    photo = FittedPath("/tmp/0/dog.jpg", "/photos/dog.webp")
    packed = Pass(1, (Ratios(up=1), Ratios(up=1)), ExpandRequest(photo, WIDE)).packed()
    assert packed["pass"]["photo"] == "/photos/dog.webp"
