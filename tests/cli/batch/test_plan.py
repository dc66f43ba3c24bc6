"""The plan of a batch: the check of its rows, their number and price, the output and the journal."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.shell import CHELSEA, COFFEE

from kling_expand import ExpandRequest, Ratios, ToAspect, Towards
from kling_expand.cli.batch.manifest import Defaults, Row, Selection, path_key
from kling_expand.cli.batch.plan import (
    BulkPlan,
    Survey,
    check,
    default_journal,
    open_journal,
    output_folder,
    saved_files,
    try_output,
)
from kling_expand.cli.options import Connection, EmulatedConnection, GeometryOptions, OutputOptions
from kling_expand.cli.terminal import NothingDone
from kling_expand.errors import GeometryError, ImageError, InvalidRequest
from kling_expand.models import Dialect, Task
from kling_expand.store.base import JobIdentity, JobState
from kling_expand.store.sqlite import SQLiteStore
from kling_expand.testing import prepared, record_job

EDITING = Dialect.EDITING
ORIENTATION = 0x0112  # the EXIF tag of the orientation


def row(name: str, *others: str, **fields: Any) -> Row:
    """Return a row that can be sent."""
    return Row(1, name, (name, *others), ExpandRequest(f"{name}.jpg", Ratios(up=0.5), **fields))


def plan(target: str, connection: Connection | None = None, **options: Any) -> BulkPlan:
    """Return the plan of a batch of one photo."""
    return BulkPlan(
        title="x",
        connection=connection or Connection(None, None),
        output=OutputOptions(target),
        sources=(COFFEE,),
        selection=Selection(),
        defaults=Defaults(GeometryOptions(up=0.5)),
        **options,
    )


# ------------------------------------------------------------------------ the survey


def test_names_that_several_rows_share_become_distinct() -> None:
    """A row gets the first of its names that no other row has, or else its last name."""
    rows = [row("a", "x-a", "a-1"), row("A", "y-a", "a-2"), row("a", "y-A", "a-3"), row("c", "x-c", "c-4")]
    survey = Survey()
    for each in rows:
        survey.count(each)
    assert [survey.names_for(each)[0] for each in rows] == ["x-a", "a-2", "a-3", "c"]
    assert survey.names_for(rows[0]) == ("x-a", "a", "a-1")


def test_a_bad_row_costs_nothing() -> None:
    """A bad row adds nothing to the cost, and neither do units that are already paid."""
    survey = Survey()
    survey.count(Row(1, "bad", error="no photo"))
    survey.count(row("a", "a-1", n=9), paid=72)
    survey.count(row("b", "b-1", n=3))
    assert (
        survey.text() == "2 rows can be sent (1 already paid for), 1 cannot; cost: at most 24 units ($0.08)"
    )
    assert survey.facts() == {"rows": 3, "good": 2, "bad": 1, "paid": 1, "units": 24} | {
        "paid_in_part": 0,
        "left_out": {},
        "expected_sizes": {},
    }
    assert (survey.max_images, survey.pictures, survey.problems) == (
        9,
        12,
        {(1, ""): ("InvalidRequest", "no photo")},
    )


# ------------------------------------------------------------------------ the check of a row


def test_a_good_request_has_its_geometry_and_no_notes() -> None:
    """The geometry is resolved for the photo's size."""
    expansion, notes, canvas, steps = check(ExpandRequest(COFFEE, ToAspect("3:1")), EDITING)
    assert (expansion, notes, steps) == (Ratios(left=0.5, right=0.5), (), ())
    assert canvas is not None
    assert canvas.expected_size == (2016, 672)


@pytest.mark.parametrize(
    ("image", "geometry", "dialect", "error", "message"),
    [
        ("missing.jpg", Ratios(up=1), EDITING, ImageError, "no such file"),
        (COFFEE, ToAspect("9:1"), EDITING, GeometryError, "aspect"),
        (COFFEE, Ratios(up=1), Dialect.DIRECTION, InvalidRequest, "use --direction"),
        ("https://example.com/a.jpg", ToAspect("16:9"), EDITING, InvalidRequest, "use --up/--down/"),
        ("https://", Ratios(up=1), EDITING, ImageError, "well-formed URL"),
        ("ftp://example.com/a.jpg", Ratios(up=1), EDITING, ImageError, "http or https URL"),
    ],
)
def test_a_request_that_would_be_refused_is_refused_locally(
    image: str, geometry: object, dialect: Dialect, error: type[Exception], message: str
) -> None:
    """The advice of the error names options of the command line."""
    with pytest.raises(error, match=message):
        check(ExpandRequest(image, geometry), dialect)  # type: ignore[arg-type]  # a geometry


def test_a_watermark_is_refused_where_the_dialect_has_none() -> None:
    """The advice about geometries is not given for another field."""
    with pytest.raises(InvalidRequest, match="watermark must be False") as caught:
        check(ExpandRequest(COFFEE, Towards("all"), watermark=True), Dialect.DIRECTION)
    assert "--direction" not in caught.value.message


def test_rotated_transparent_and_small_photos_get_a_note(tmp_path: Path) -> None:
    """A rotated, a transparent and a small photo can be sent, and each gets a note."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    with Image.open(COFFEE) as picture:
        picture.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (600, 600)).save(tmp_path / "clear.png")
    Image.new("P", (600, 600)).save(tmp_path / "palette.png", transparency=0)
    Image.new("RGB", (310, 400)).save(tmp_path / "small.png")
    wide = ToAspect("16:9")
    for name, message in (
        ("turned.jpg", "--fit rotates it"),
        ("clear.png", "alpha channel"),
        ("palette.png", "alpha channel"),
        ("small.png", "fewer than 512 pixels"),
    ):
        _, notes, _, _ = check(ExpandRequest(str(tmp_path / name), wide), EDITING)
        assert [message in note for note in notes] == [True], name
    # The upright photo is higher than wide, so the new area is on other sides.
    expansion, notes, _, _ = check(ExpandRequest(str(tmp_path / "turned.jpg"), wide), EDITING, fit=True)
    assert (notes, expansion) == ((), wide.ratios(400, 600))


def test_fit_is_advised_only_if_it_would_help(tmp_path: Path) -> None:
    """The advice to use --fit is given only if it would help. With --fit, such a photo is accepted."""
    with Image.open(COFFEE) as picture:
        picture.save(tmp_path / "photo.webp")
    Image.new("RGB", (200, 200)).save(tmp_path / "small.png")
    (tmp_path / "text.webp").write_text("no picture")
    for name, advised in (("photo.webp", True), ("small.png", False), ("text.webp", False)):
        request = ExpandRequest(str(tmp_path / name), Ratios(up=0.5))
        with pytest.raises(ImageError) as caught:
            check(request, EDITING)
        assert ("--fit" in caught.value.message) is advised
        if advised:
            assert check(request, EDITING, fit=True)[1] == ()
        else:
            with pytest.raises(ImageError, match=name):
                check(request, EDITING, fit=True)


# ------------------------------------------------------------------------ the output


@pytest.mark.parametrize(
    ("target", "folder"),
    [
        ("out", "out"),
        ("out/", "out/"),
        ("a/{name}{ext}", "a"),
        ("a/b-{index}/{name}", "a"),
        ("{name}{ext}", "."),
        ("a/b.png", "a"),
        ("b.png", "."),
        ("a.png/{name}", "a.png"),
        ("", "."),
    ],
)
def test_the_directory_of_a_target_holds_all_results(target: str, folder: str) -> None:
    """The journal is in this directory, and its files are never taken for photos."""
    assert output_folder(target) == folder


def test_the_output_directory_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing directory is created and stays empty. A file in its place or a full disk is an error."""
    try_output(str(tmp_path / "a" / "b"))
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for path, message in ((tmp_path / "file", "it is a file"), (tmp_path / "file" / "x", "Not a directory")):
        with pytest.raises(NothingDone, match=message):
            try_output(str(path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage._replace(free=10 << 20))
    try_output(str(tmp_path), pictures=3)
    with pytest.raises(NothingDone, match="10 MB are free, and 4 pictures may take 12 MB"):
        try_output(str(tmp_path), pictures=4)


# ------------------------------------------------------------------------ the journal


async def test_each_account_has_its_own_default_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each account, and the emulator, has its own file. The same account finds its file again."""
    target = str(tmp_path / "out")
    try_output(target)
    monkeypatch.setenv("KLING_API_KEY", "one")
    paths = []
    for key, connection in (
        ("one", Connection(None, None)),
        ("two", Connection(None, None)),
        ("one", Connection("http://127.0.0.1:1", None)),
        ("one", EmulatedConnection(None, None, emulator=True)),
        ("one", Connection(None, None)),
        ("two", Connection(None, None)),
    ):
        monkeypatch.setenv("KLING_API_KEY", key)
        journal = default_journal(target, connection)
        async with open_journal(plan(target, connection, journal=journal)) as store:
            assert store is not None
            paths.append(Path(store.path).name)
            job = await record_job(store, key)
            await store.mark_sending(job.external_task_id)
    assert paths[0] == paths[4] == ".kling-expand.db"
    assert paths[1] == paths[5]
    assert paths[3] == ".kling-expand-emulator.db"
    assert len(set(paths)) == 4
    with pytest.raises(NothingDone, match="belongs to https://api-singapore"):
        async with open_journal(plan(target, journal=str(tmp_path / "out" / paths[0]), own_journal=True)):
            pass


async def test_a_batch_may_have_no_journal() -> None:
    """Without a journal, no file is opened."""
    async with open_journal(plan("out")) as store:
        assert store is None


async def test_the_results_of_every_attempt_are_known(tmp_path: Path) -> None:
    """The files of earlier attempts are known too, while a process has the journal open."""
    async with SQLiteStore(tmp_path / "j") as journal:
        for attempt in range(2):
            job = await journal.record_intent(JobIdentity("a", "h"), prepared("a"), after=attempt)
            await journal.mark_sending(job.external_task_id)
            task = Task(f"task {attempt}", "succeed", external_task_id=job.external_task_id)
            await journal.observe(job.external_task_id, task)
            await journal.mark_saved(job.external_task_id, [tmp_path / f"{attempt}.png"])
        assert (await journal.counts())[JobState.DONE] == 1
        found = await saved_files([str(tmp_path / "j"), str(tmp_path / "missing")])
    assert found == {path_key(str(tmp_path / f"{attempt}.png")) for attempt in range(2)}


async def test_results_are_known_after_their_directory_was_moved(tmp_path: Path) -> None:
    """Results that were moved or copied with their journal, even twice, are known at their new paths."""
    (tmp_path / "0").mkdir()
    for number in range(3):
        folder = tmp_path / str(number)
        async with SQLiteStore(folder / "j") as journal:
            job = await record_job(journal, str(number))
            await journal.mark_sending(job.external_task_id)
            task = Task(f"task {number}", "succeed", external_task_id=job.external_task_id)
            await journal.observe(job.external_task_id, task)
            await journal.mark_saved(job.external_task_id, [folder / "s" / f"{number}.png"])
        shutil.copytree(folder, tmp_path / str(number + 1))
    found = await saved_files([str(tmp_path / "3" / "j")])
    assert {path_key(str(tmp_path / "3" / "s" / f"{number}.png")) for number in range(3)} <= found


def test_a_thousand_photos_are_checked_by_their_headers(tmp_path: Path) -> None:
    """A few kilobytes of each photo are read, so a library of large files is checked quickly."""
    photo = tmp_path / "large.jpg"
    content = Path(CHELSEA).read_bytes()
    photo.write_bytes(content[:-2] + bytes(9 << 20) + content[-2:])
    request = ExpandRequest(str(photo), Ratios(up=0.5))
    began_at = time.thread_time()
    for _ in range(1000):
        check(request, EDITING)
    assert time.thread_time() - began_at < 1.0  # reading one such file takes 2 ms, hashing it 6 ms


def test_a_check_of_the_header_agrees_with_a_check_of_the_file(tmp_path: Path) -> None:
    """A truncated file and a file of another format are refused. Bytes after the end are accepted."""
    content = Path(COFFEE).read_bytes()
    photo = tmp_path / "a.jpg"
    request = ExpandRequest(str(photo), Ratios(up=0.5))
    photo.write_bytes(content + b"trailer of a telephone" * 100)
    assert check(request, EDITING)[1] == ()
    for wrong in (content[:-100], content[:300], b"", b"\xff\xd8\xff"):
        photo.write_bytes(wrong)
        with pytest.raises(ImageError):
            check(request, EDITING)
    assert asyncio.run(saved_files([])) == set()
