"""`--full-size` and `--check`: the processing of a picture after it is saved."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat
from support.shell import shell

from benchmarks.large_photos import display_p3, stored, texture
from kling_expand import ExpandRequest, Ratios, ToAspect
from kling_expand.api import codec
from kling_expand.cli.batch.pictures import own_result
from kling_expand.jobs.future import ExpandResult
from kling_expand.store.base import JobRecord
from kling_expand.testing import SUCCEEDED

FAST: dict[str, Any] = {"engine": "flat", "queue_seconds": 0, "work_seconds": 0}
PHOTO = texture(900, 600, seed=1)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("command", ["expand", "bulk"])
def test_a_photo_is_put_back(command: str, orientation: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Whether the photo was converted or not, the user's own file is put back. A second run costs nothing."""
    monkeypatch.chdir(tmp_path)
    photo = tmp_path / "hills.jpg"
    photo.write_bytes(stored(PHOTO, "JPEG", orientation=orientation))
    with shell(**FAST) as kling:
        words = [command, photo, "--aspect", "16:9", "--fit", "--full-size", "--json"]
        for _ in range(2):
            done = kling(*words)
            assert done.exit_code == 0, done.output
            facts = json.loads(done.stdout.splitlines()[0])
            assert facts["full_size_files"] == ["out/hills-0-full.jpg"]
        assert kling.emulator.account.units_billed == 8
    with Image.open("out/hills-0-full.jpg") as full:
        assert full.size == (1067, 600)
        difference = ImageChops.difference(full.crop((83, 0, 983, 600)), PHOTO)
        assert max(ImageStat.Stat(difference).mean) < 4


def test_check_reports_a_suspicious_picture(tmp_path: Path, monkeypatch: Any) -> None:
    """`--check` names the picture and the side, and counts it in the summary. The exit code is still 0."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hills.png").write_bytes(stored(PHOTO, "PNG"))
    with shell(**FAST) as kling:
        done = kling("bulk", "hills.png", "--right", "0.5", "--check", "--no-recursive")
    assert done.exit_code == 0, done.output
    assert re.search(r"suspicious: \S*hills-0\.png: the new area \(right\) is flat", done.stderr)
    assert "1 photo with a suspicious result" in done.stderr


def test_wait_can_save_the_full_size_later(tmp_path: Path, monkeypatch: Any) -> None:
    """`wait --full-size` finds the photo of a task in the journal next to the results."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hills.jpg").write_bytes(stored(PHOTO, "JPEG"))
    with shell(**FAST) as kling:
        first = json.loads(kling("expand", "hills.jpg", "--right", "0.5", "--json").stdout.splitlines()[0])
        assert first["full_size_files"] == []
        done = kling("wait", first["task_id"], "--full-size", "--json")
        assert done.exit_code == 0, done.output
        later = json.loads(done.stdout.splitlines()[0])
        assert later["full_size_files"] == ["out/hills-0-full.jpg"]
        assert later["files"] == first["files"]


def test_the_format_of_pictures_can_be_chosen(tmp_path: Path, monkeypatch: Any) -> None:
    """Format, quality and metadata apply to all new files, also with --full-size. No file is made twice."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hills.jpg").write_bytes(stored(PHOTO, "JPEG", icc_profile=display_p3()))
    form = ("--format", "jpeg", "--quality", "80", "--metadata", "--full-size")
    with shell(**FAST) as kling:
        wrong = kling("expand", "hills.jpg", "--right", 0.5, "--quality", 80)
        assert (wrong.exit_code, "--quality requires --format" in wrong.stderr) == (2, True)
        for _ in range(2):
            done = kling("expand", "hills.jpg", "--right", 0.5, *form)
            assert done.stdout.splitlines() == ["out/hills-0.jpg", "out/hills-0-full.jpg"]
        assert sorted(path.name for path in Path("out").glob("*.*g")) == ["hills-0-full.jpg", "hills-0.jpg"]
        with Image.open("out/hills-0.jpg") as image:
            assert image.info["icc_profile"] == display_p3()
            assert image.getexif()[0x0132] == "2026:11:20 10:00:00"
        assert (
            kling("expand", "hills.jpg", "--right", 0.5, "-o", "b/{name}.tiff", "--format", "tiff").exit_code
            == 0
        )
        assert Path("b/hills.tiff").is_file()
        assert kling.emulator.account.units_billed == 8


def test_the_photo_of_the_row_is_put_back() -> None:
    """If a photo was renamed, its new path is used in every pass, and not the old one in the journal."""
    ratios = Ratios(right=0.5)
    old, new = ExpandRequest("/in/old.jpg", ratios), ExpandRequest("in/new.jpg", ToAspect("16:9"), key="k")
    record = JobRecord("x", key="fit-1", source="/in/old.jpg", params=codec.pack_request(old, ratios))
    result = own_result(ExpandResult(SUCCEEDED, earlier=ExpandResult(SUCCEEDED, old)), new, record)
    expected = ExpandRequest("in/new.jpg", ratios, key="k")
    assert result.request == expected
    assert result.earlier is not None
    assert result.earlier.request == expected


def test_an_unexpected_error_fails_only_its_row(tmp_path: Path, monkeypatch: Any) -> None:
    """After an unexpected error of a library, the row fails, and every row has its line of JSON."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.jpg", 1), ("b.jpg", 2)):
        Path(name).write_bytes(stored(texture(400, 300, seed=seed), "JPEG"))
    with shell(**FAST) as kling:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        done = kling("bulk", ".", "--right", 0.5, "--full-size", "--json")
    assert done.exit_code == 1
    *rows, summary = map(json.loads, done.stdout.splitlines())
    assert [(row["outcome"], len(row["files"]), row["error"]["message"][:17]) for row in rows] == [
        ("failed", 1, "FileNotFoundError")
    ] * 2
    assert summary["summary"]["failed"] == 2
