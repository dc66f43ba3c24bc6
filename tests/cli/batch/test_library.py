"""A library of photos through `bulk`: however often it runs, nothing is paid for twice, lost or replaced."""

import hashlib
import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image
from support.shell import CHELSEA, COFFEE, Shell, shell

from benchmarks.library import make_library
from kling_expand.emulator.faults.plan import Fault


def photos(folder: Path, number: int) -> list[Path]:
    """Write small photos, each with different content."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"p{index}.png" for index in range(number)]
    for index, path in enumerate(paths):
        Image.new("RGB", (600, 400), (index, 90, 30)).save(path)
    return paths


def results(folder: Path) -> dict[str, str]:
    """Return the digests of all results below *folder*, by path."""
    found = [path for path in folder.rglob("*-*.*g") if not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_a_library_is_expanded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill, in other directories, and after files and the journal are deleted, no picture is missing.

    Photos with the same content share one task, and no file is replaced.
    """
    good, tasks = make_library(tmp_path / "photos", 22)
    out = tmp_path / "out"

    def run(*arguments: object) -> None:
        done = kling("bulk", *arguments, "--fit", "--right", 0.5, "--max-in-flight", 20)
        assert done.exit_code == 1, done.stderr  # because of the bad photos
        assert f"{len(good) + 5} photos: " in done.stderr
        assert len(kling.emulator.account.tasks) == tasks, done.stderr
        found = results(out)
        for photo in good:
            name = (out / photo.relative_to(tmp_path / "photos")).with_suffix("").relative_to(out)
            assert any(path.startswith(f"{name}-") for path in found), done.stderr
        assert len(found) == len(good)
        assert {path: found[path] for path in before} == before
        before.update(found)

    before: dict[str, str] = {}
    with shell(work_seconds=0.1, slots=20) as kling:
        arguments = [tmp_path / "photos", "--fit", "--right", 0.5, "-o", out, "--max-in-flight", 4]
        with kling.start("bulk", *arguments) as process:
            while kling.emulator.account.requests["file"] < 4:
                assert process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
        before.update(results(out))
        for folder, words in (
            ("", ("photos", "-o", "out")),
            ("elsewhere", ("../photos", "-o", "../out")),
            ("photos", (".", "-o", "../out")),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            monkeypatch.chdir(tmp_path / folder)
            run(*words)
        for path in sorted(before)[::5]:
            (out / path).unlink()
        run(tmp_path / "photos", "-o", out)
        (out / ".kling-expand.db").unlink()
        run(tmp_path / "photos", "-o", out)
        assert max(kling.emulator.account.accepted.values()) == 1


@pytest.mark.parametrize("words", [["photos"], ["photos/*"]])
def test_results_are_never_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Results next to the photos are left out and counted, for a directory or a pattern, and any journal."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", 3)
    arguments = ["bulk", *words, "--right", 0.5, "-o", "photos"]
    with shell() as kling:
        for _ in range(2):
            assert kling(*arguments, "--journal", "run.db").exit_code == 0
        done = kling("bulk", *words, "--right", 0.2, "-o", "photos", "--journal", "run.db")
        assert kling.emulator.account.units_billed == 48
        again = kling("bulk", *words, "--right", 0.2, "-o", "photos", "--journal", "run.db")
        assert kling.emulator.account.units_billed == 48
    assert "3 results of earlier runs left out" in done.stderr
    assert "6 results of earlier runs left out" in again.stderr
    assert "3 photos: 0 saved, 3 already done" in again.stderr


def test_results_of_other_commands_are_never_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All journals in the directories and in the output are read for results, including earlier attempts."""
    monkeypatch.chdir(tmp_path)
    (photo,) = photos(tmp_path / "photos", 1)
    with shell() as kling:
        for option in ("--skip-existing", "--fresh"):
            assert kling("expand", photo, "--right", 0.5, "-o", "photos", option).exit_code == 0
        dry = kling("bulk", "photos", "--right", 0.5, "--dry-run")
        assert dry.stdout.startswith("1 photo can be sent, 0 cannot; cost: at most 8 units ($0.03)\n")
        assert "2 results of earlier runs left out" in dry.stderr
        assert kling("expand", *sorted((tmp_path / "photos").glob("*.png")), "--right", 0.5).exit_code == 0
        assert len(kling.emulator.account.tasks) == 2


def test_a_journal_of_another_service_is_refused(tmp_path: Path) -> None:
    """A named journal of another service is refused. Without a name, another file is used."""
    (photo,) = photos(tmp_path / "photos", 1)
    named = ["bulk", photo, "--right", 0.02, "-o", tmp_path / "out", "--journal", tmp_path / "run.db"]
    with shell() as kling, shell() as other:
        assert kling(*named, "--emulator").exit_code == 0
        done = kling(*named)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "belongs to the local emulator (--emulator), not to http://127.0.0.1" in done.stderr
        for service in (kling, other, kling):
            assert service("bulk", photo, "--right", 0.02, "-o", tmp_path / "real").exit_code == 0
        assert len(kling.emulator.account.tasks) == len(other.emulator.account.tasks) == 1
    assert len(results(tmp_path / "real")) == 2


def test_directories_are_recreated_in_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories are recreated in the output. Each of several identical photos has its own picture."""
    monkeypatch.chdir(tmp_path)
    for name, source in (("100/IMG_1", COFFEE), ("101/IMG_1", CHELSEA), ("101/deep [1]/IMG_1", CHELSEA)):
        (tmp_path / "DCIM" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "DCIM" / f"{name}.jpg")
    wanted = {"100/IMG_1-0.png", "101/IMG_1-0.png", "101/deep [1]/IMG_1-0.png"}
    with shell() as kling:
        assert kling("bulk", "DCIM", "--right", 0.5, "-o", "wide").exit_code == 0
        assert set(results(tmp_path / "wide")) == wanted
        (tmp_path / "wide/101/IMG_1-0.png").unlink()
        assert kling("bulk", "DCIM/**/*.jpg", "--right", 0.5, "-o", "wide").exit_code == 0
        assert set(results(tmp_path / "wide")) == wanted
        template = "flat/{path}/{folder}-{name}{ext}"
        assert kling("bulk", "DCIM", "--right", 0.5, "-o", template, "--no-recursive").exit_code == 2
        for _ in range(2):
            assert kling("bulk", "DCIM", "--right", 0.5, "-o", template, "--json").exit_code == 0
        assert {*results(tmp_path / "flat")} == {
            "100/100-IMG_1.png",
            "101/101-IMG_1.png",
            "101/deep [1]/deep [1]-IMG_1.png",
        }
        assert kling("bulk", "DCIM/101", "--right", 0.5, "-o", "flat/{name}-{task_id}{ext}").exit_code == 0
        assert len(kling.emulator.account.tasks) == 2
    assert len({*results(tmp_path / "wide").values()}) == 2


def test_heic_photos_need_fit(tmp_path: Path) -> None:
    """Without --fit, HEIC files are counted, and one named .jpg is a bad photo. With it, all are sent."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    (tmp_path / "photos" / "2024").mkdir(parents=True)
    for index, name in enumerate(("IMG_0.HEIC", "2024/IMG_1.heic", "x.jpg")):
        Image.new("RGB", (600, 400), (index * 80, 0, 0)).save(tmp_path / "photos" / name, format="HEIF")
    arguments = ["bulk", tmp_path / "photos", "--aspect", "1:1", "-o", tmp_path / "out"]
    with shell() as kling:
        done = kling(*arguments)
        assert (done.exit_code, kling.emulator.account.tasks) == (2, {})
        assert "2 photos in other formats left out (2 HEIC); --fit converts them" in done.stderr
        assert "x.jpg, which is HEIC" in done.stderr
        assert done.stderr.count("HEIC)") == 1
        fitted = kling(*arguments, "--fit")
        assert (fitted.exit_code, len(kling.emulator.account.tasks)) == (0, 3)
        uploads = kling.emulator.account.requests["create"]
        assert kling(*arguments, "--fit").exit_code == 0
        assert kling.emulator.account.requests["create"] == uploads
    assert set(results(tmp_path / "out")) == {"IMG_0-0.png", "2024/IMG_1-0.png", "x-0.png"}


@pytest.mark.parametrize(
    ("code", "message"),
    [(1002, "check KLING_API_KEY"), (1102, "resource packs"), (1103, "console"), (1304, "whitelist")],
)
def test_a_refusal_that_any_job_would_get_stops_the_batch(tmp_path: Path, code: int, message: str) -> None:
    """After a refusal that any job would get, nothing more is sent. The last line says what to check."""
    photos(tmp_path / "photos", 40)
    with shell() as kling:
        kling.emulator.faults.chance("create", Fault("error", code=code), 1.0)
        done = kling(
            "bulk", tmp_path / "photos", "--right", 0.5, "-o", tmp_path / "out", "--max-in-flight", 4
        )
        assert kling.emulator.account.requests["create"] <= 8
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.count("nothing more is sent") == 1
    assert "not sent" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("stopped: ")
    assert message in done.stderr.splitlines()[-1]


def test_an_unusable_output_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    """If the output directory is a file, the exit code is 2 and nothing is sent."""
    (tmp_path / "out").touch()
    with shell() as kling:
        for command in ("bulk", "expand"):
            done = kling(command, COFFEE, "--right", 0.5, "-o", tmp_path / "out")
            assert (done.exit_code, kling.emulator.account.requests.total()) == (2, 0)
            assert "cannot be written to (it is a file)" in done.stderr


def test_photos_are_listed_on_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are read as `find` prints them, and their directories are recreated in the output."""
    monkeypatch.chdir(tmp_path)
    listed = photos(tmp_path / "a" / "b", 2)
    text = "".join(f"{path.relative_to(tmp_path)}\n" for path in listed)
    with shell() as kling:
        done = kling.with_input("bulk", "-", "--right", 0.5, text=text)
    assert done.exit_code == 0, done.stderr
    assert set(results(tmp_path / "out")) == {"a/b/p0-0.png", "a/b/p1-0.png"}


def test_an_example_is_printed() -> None:
    """The option needs no other argument and no credentials."""
    done = Shell()("bulk", "--example-manifest")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "image,aspect,prompt,n,name\n" in done.stdout
