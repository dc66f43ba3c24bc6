"""`kling-expand expand`: from photos to saved results."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.shell import CHELSEA, COFFEE, Shell, shell

from kling_expand.api import photo as photo_module
from kling_expand.emulator.faults.plan import Fault


def test_stdout_contains_only_the_paths_of_the_results(tmp_path: Path) -> None:
    """Only the paths are on stdout, progress is on stderr, and the picture has the requested shape."""
    with shell() as kling:
        done = kling("expand", COFFEE, "--aspect", "16:9", "-n", 2, "-o", tmp_path)
        assert (done.exit_code, done.stdout.splitlines()) == (
            0,
            [str(tmp_path / "coffee-0.png"), str(tmp_path / "coffee-1.png")],
        )
        assert "processing" in done.stderr or "succeed" in done.stderr
        with Image.open(tmp_path / "coffee-0.png") as picture:
            assert abs(picture.width * 9 / 16 - picture.height) <= 1
        assert kling.emulator.account.units_billed == 16


def test_the_emulator_option_needs_no_credentials(tmp_path: Path) -> None:
    """`--emulator` needs neither credentials nor a running emulator."""
    done = Shell()("expand", CHELSEA, "--right", 0.02, "--emulator", "-o", tmp_path)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'chelsea-0.png'}\n")


def test_photos_of_the_same_name_do_not_replace_each_other(tmp_path: Path) -> None:
    """Results of photos with the same name, ignoring case, are distinguished by their directories."""
    photos = [tmp_path / "a" / "dog.jpg", tmp_path / "b" / "dog.jpg", tmp_path / "a" / "Dog.jpeg"]
    for photo in photos:
        photo.parent.mkdir(exist_ok=True)
        shutil.copy(COFFEE, photo)
    with shell() as kling:
        done = kling("expand", *photos, "--up", 0.5, "-o", tmp_path / "out")
    names = sorted(Path(line).name for line in done.stdout.splitlines())
    assert [name[:5] for name in names] == ["Dog-a", "b-dog", "dog-a"] or names[-1].startswith("dog-")
    assert "b-dog-0.png" in names
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names
    assert len({name.lower() for name in names}) == 3


def test_json_prints_one_object_for_each_photo(tmp_path: Path) -> None:
    """With --json, one object is printed for each photo, and nothing else on either stream."""
    with shell() as kling:
        done = kling("expand", COFFEE, CHELSEA, "--left", 0.5, "--json", "-o", tmp_path)
        objects = {facts["source"]: facts for facts in map(json.loads, done.stdout.splitlines())}
        assert set(objects) == {COFFEE, CHELSEA}
        assert {facts["units"] for facts in objects.values()} == {8}
        assert objects[COFFEE]["files"] == [str(tmp_path / "coffee-0.png")]
        assert objects[COFFEE]["error"] is None
        assert set(kling.emulator.account.tasks) == {facts["task_id"] for facts in objects.values()}
    assert done.stderr == ""


def test_one_failed_task_does_not_affect_the_others(tmp_path: Path) -> None:
    """The exit code is 1, the failure is on stderr with its ids, and the other photos are saved."""
    with shell() as kling:
        kling.emulator.faults.script("create", Fault("error", code=1301))
        done = kling("expand", COFFEE, CHELSEA, "--left", 0.5, "-o", tmp_path)
    assert done.exit_code == 1
    assert len(done.stdout.splitlines()) == 1
    assert "code=1301" in done.stderr
    assert "resume" not in done.stderr


def test_a_failure_is_a_json_object_too(tmp_path: Path) -> None:
    """With --json the photo's object has the type and message of the error."""
    with shell() as kling:
        kling.emulator.faults.script("create", Fault("error", code=1301))
        done = kling("expand", COFFEE, "--left", 0.5, "--json", "-o", tmp_path)
    assert (done.exit_code, json.loads(done.stdout)["error"]["type"]) == (1, "PolicyRefusal")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([COFFEE], "exactly one way"),
        ([COFFEE, "--aspect", "16:9", "--up", "1"], "exactly one way"),
        ([COFFEE, "--up", "1", "--area", "2"], "--area"),
        ([COFFEE, "--up", "9"], "between 0 and 2"),
        ([COFFEE, "--aspect", "9:1"], "aspect"),
        ([COFFEE, "missing.jpg", "--up", "1"], "no such file"),
        ([__file__, "--up", "1"], "must be PNG or JPEG"),
        ([COFFEE, "--up", "1", "-n", "10"], "between 1 and 9"),
        ([COFFEE, "--up", "1", "-o", "{nonsense}"], "{nonsense}"),
        ([COFFEE, CHELSEA, "--up", "1", "-o", "out.png"], "would share a path"),
        ([COFFEE, "--up", "1", "-o", "out/{name"], "must be a directory or a template"),
        ([COFFEE, "--up", "1", "-o", "out.jpg"], "suffix of another format"),
        ([COFFEE, "--up", "1", "-o", "out/{name}-{index}.WebP"], "end it in {ext}"),
        (
            [COFFEE, "--up", "1", "-o", "{name}.png", "--format", "jpeg"],
            "'{name}.png'; --format png converts",
        ),
        (["https://example.com/a.jpg", "--aspect", "16:9"], "use --up"),
        ([COFFEE, "--up", "1", "--dialect", "direction"], "use --direction"),
        ([COFFEE, "--up", "1", "--base-url", "ftp://here"], "http"),
        ([COFFEE, "--up", "1", "--deadline", "0"], "--deadline"),
    ],
)
def test_an_invalid_command_is_refused_before_anything_is_sent(arguments: list[str], message: str) -> None:
    """The exit code is 2, the message is short, and no task is created for any photo."""
    done = Shell()("expand", *arguments, KLING_API_KEY="none")
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) < 400


def test_missing_credentials_are_explained() -> None:
    """The message names the environment variables, and --emulator, which needs no credentials."""
    done = Shell()("expand", COFFEE, "--up", "1")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "KLING_ACCESS_KEY" in done.stderr
    assert "--emulator" in done.stderr


@pytest.mark.parametrize("option", ["--skip-existing", "--overwrite"])
def test_a_result_never_replaces_an_input_photo(tmp_path: Path, option: str) -> None:
    """A result whose path is that of a photo gets another name, even with --overwrite."""
    for name in ("dog.png", "dog-0.png"):
        with Image.open(COFFEE) as picture:
            picture.save(tmp_path / name, pnginfo=None, compress_level=len(name) % 9)
    before = (tmp_path / "dog-0.png").read_bytes()
    with shell() as kling:
        done = kling(
            "expand", tmp_path / "dog.png", tmp_path / "dog-0.png", "--up", 1, "-o", tmp_path, option
        )
        assert len(kling.emulator.account.tasks) == 2
    assert (done.exit_code, (tmp_path / "dog-0.png").read_bytes()) == (0, before)
    assert len(set(done.stdout.splitlines())) == 2


def test_no_file_is_replaced_without_overwrite(tmp_path: Path) -> None:
    """Results of other options and the user's own files are kept. The journal has each job's own file."""
    (tmp_path / "coffee-0.png").write_text("mine")
    with shell() as kling:
        runs = [kling("expand", COFFEE, "--up", up, "-o", tmp_path).stdout.strip() for up in (0.2, 0.4, 0.2)]
        assert len(kling.emulator.account.tasks) == 2
        assert runs[0] == runs[2] != runs[1]
        assert (tmp_path / "coffee-0.png").read_text() == "mine"
        again = kling("expand", COFFEE, "--up", 0.6, "-o", tmp_path, "--overwrite").stdout.strip()
        assert again == str(tmp_path / "coffee-0.png")
        assert (tmp_path / "coffee-0.png").read_bytes()[1:4] == b"PNG"
        replaced = kling("expand", COFFEE, "--up", 0.8, "-o", tmp_path, "--overwrite").stdout.strip()
        back = kling("expand", COFFEE, "--up", 0.6, "-o", tmp_path).stdout.strip()
        assert (replaced, len(kling.emulator.account.tasks)) == (again, 4)
    with Image.open(replaced) as eight, Image.open(back) as six:
        assert eight.size != six.size


def test_the_same_command_pays_for_nothing_twice(tmp_path: Path) -> None:
    """The journal in the output directory has the task. --fresh and --no-journal create another task."""
    arguments = ["expand", COFFEE, "--up", 0.2, "-o", tmp_path]
    with shell() as kling:
        first, again = kling(*arguments), kling(*arguments)
        assert (again.exit_code, again.stdout) == (0, first.stdout)
        assert "saved by an earlier run; --fresh makes another picture" in again.stderr
        Path(first.stdout.strip()).unlink()
        assert kling(*arguments).stdout == first.stdout
        assert len(kling.emulator.account.tasks) == 1
        fresh = kling(*arguments, "--fresh")
        assert (fresh.exit_code, len(kling.emulator.account.tasks)) == (0, 2)
        assert fresh.stdout != first.stdout
        assert kling(*arguments).stdout == fresh.stdout
        (tmp_path / ".kling-expand.db").unlink()
        assert kling(*arguments, "--no-journal").exit_code == 0
        assert len(kling.emulator.account.tasks) == 3
    assert not (tmp_path / ".kling-expand.db").exists()


def test_all_bad_photos_are_named_at_once(tmp_path: Path) -> None:
    """Nothing is sent if one photo is bad, and the last line says so. --dry-run also prints the cost."""
    (tmp_path / "text.jpg").write_text("no picture")
    photos = [COFFEE, tmp_path / "text.jpg", "missing.jpg"]
    with shell() as kling:
        done = kling("expand", *photos, "--up", 0.2)
        dry = kling("expand", *photos, "--up", 0.2, "--dry-run")
        assert kling.emulator.account.tasks == {}
    for each in (done, dry):
        assert f"{tmp_path / 'text.jpg'}: image must be PNG or JPEG" in each.stderr
        assert "missing.jpg: image: no such file" in each.stderr
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (
        2,
        "Error: 2 of 3 photos cannot be sent, so nothing was sent",
    )
    assert (dry.exit_code, dry.stdout.splitlines()[0]) == (
        1,
        "1 photo can be sent, 2 cannot; cost: at most 8 units ($0.03)",
    )


def test_a_budget_applies_to_expand_too(tmp_path: Path) -> None:
    """Photos beyond the budget are not sent, and the exit code is 1."""
    with shell() as kling:
        done = kling("expand", COFFEE, CHELSEA, "--up", 0.2, "-o", tmp_path, "--budget", 8)
        assert kling.emulator.account.units_billed == 8
    assert (done.exit_code, len(done.stdout.splitlines())) == (1, 1)
    assert "nothing more is sent" in done.stderr


def test_wrong_credentials_are_explained_once(tmp_path: Path) -> None:
    """With wrong credentials, one message says what to check."""
    with shell() as kling:
        done = kling("expand", COFFEE, CHELSEA, "--up", 0.2, "-o", tmp_path, KLING_API_KEY="wrong")
    assert (done.exit_code, done.stdout) == (3, "")
    (line,) = [line for line in done.stderr.splitlines() if "(code=1002" in line]
    assert "nothing more is sent: check KLING_API_KEY" in line
    assert "doctor" in line


def test_a_result_can_be_saved_after_the_deadline(tmp_path: Path) -> None:
    """After the deadline, the exit code is 1. The printed command saves the result later."""
    with shell(work_seconds=600) as kling:
        done = kling("expand", COFFEE, "--up", 0.5, "--deadline", 0.6, "-o", tmp_path)
        assert (done.exit_code, done.stdout) == (1, "")
        resume = done.stderr.strip().splitlines()[-1].removeprefix("resume with: kling-expand ")
        kling.within(kling.emulator.advance, 700)
        again = kling(*resume.split())
        assert (again.exit_code, kling.emulator.account.units_billed) == (0, 8)
        assert Path(again.stdout.strip()).parent == tmp_path


def test_direction_works_in_both_dialects(tmp_path: Path) -> None:
    """`--direction` works in both dialects."""
    with shell() as kling:
        arguments = ["expand", COFFEE, "--direction", "left,top", "--ratio", 1.4, "-o", tmp_path]
        for dialect in ("editing", "direction"):
            assert kling(*arguments, "--dialect", dialect).exit_code == 0
        assert len(kling.emulator.account.tasks) == 2


def test_a_watermarked_copy_is_saved_beside_the_picture(tmp_path: Path) -> None:
    """With --watermark both pictures are saved."""
    with shell() as kling:
        kling("expand", COFFEE, "--up", 0.5, "--watermark", "--prompt", "a park", "-o", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.*g")) == ["coffee-0-watermark.png", "coffee-0.png"]


def test_a_url_can_be_a_photo(tmp_path: Path) -> None:
    """The result is named after the file in the URL."""
    with shell(allow_private=True) as kling:
        first = json.loads(kling("expand", COFFEE, "--up", 0.5, "-o", tmp_path, "--json").stdout)
        done = kling("expand", first["urls"][0], "--left", 0.1, "-o", tmp_path)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / '0-0.png'}\n")


def files(folder: Path) -> list[str]:
    """Return the results below a directory."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_each_shape_of_a_photo_has_its_own_files(tmp_path: Path) -> None:
    """Each shape has its own file names, by default and with a template, and is paid for once."""
    words = ("--aspect", "16:9", "--for", "og")
    with shell() as kling:
        done = kling("expand", COFFEE, CHELSEA, *words, "-o", tmp_path / "a")
        assert done.exit_code == 0, done.stderr
        assert files(tmp_path / "a") == [
            f"{name}-{shape}-0.png" for name in ("chelsea", "coffee") for shape in ("1200x630", "16x9")
        ]
        template = tmp_path / "b" / "{shape}" / "{name}{ext}"
        assert kling("bulk", COFFEE, *words, "-o", template, "--journal", tmp_path / "j").exit_code == 0
        assert files(tmp_path / "b") == ["1200x630/coffee.png", "16x9/coffee.png"]
        units = kling.emulator.account.units_billed
        assert units == 4 * 8  # the second journal found two of them at the service
        assert kling("expand", COFFEE, CHELSEA, *words, "-o", tmp_path / "a").exit_code == 0
        assert kling.emulator.account.units_billed == units
        done = kling("expand", COFFEE, *words, "-o", tmp_path / "{index}{ext}")
        assert (done.exit_code, "two shapes would share a path" in done.stderr) == (2, True)


def test_a_shape_that_a_photo_already_has_is_left_out(tmp_path: Path) -> None:
    """Of several shapes, one that the photo already has is counted but not requested."""
    Image.new("RGB", (600, 600), "navy").save(tmp_path / "square.png")
    with shell() as kling:
        done = kling(
            *("expand", tmp_path / "square.png", "--aspect", "1:1", "--aspect", "5:4", "-o", tmp_path / "o")
        )
        assert (done.exit_code, files(tmp_path / "o")) == (0, ["square-5x4-0.png"])
        message = f"1 left out, because the photo already has the shape: {tmp_path / 'square.png'} 1x1\n"
        assert message in done.stderr
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (800, 450)).save(tmp_path / "side.jpg", exif=exif)
        side = ("expand", tmp_path / "side.jpg", "--aspect", "16:9", "--aspect", "1:1", "--dry-run")
        refused = kling(*side, "-o", tmp_path / "o")
        assert (refused.exit_code, "so use --fit" in refused.stderr) == (1, True)
        assert "already: " not in kling(*side, "--fit", "--passes", 2, "-o", tmp_path / "o").stderr
        alone = kling("expand", tmp_path / "square.png", "--aspect", "1:1", "-o", tmp_path / "o")
        assert (alone.exit_code, kling.emulator.account.units_billed) == (2, 8)


def test_the_photo_of_several_shapes_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run reads each header once to check it, and hashes each content once before it is sent."""
    read = [count_calls(monkeypatch, name) for name in ("_checked_header", "_checked")]
    words = ("--aspect", "16:9", "--aspect", "9:16", "--aspect", "5:4")
    with shell() as kling:
        for shapes in (words, words[:2]):
            assert kling("bulk", COFFEE, CHELSEA, *shapes, "-o", tmp_path).exit_code == 0
            assert [len(calls) for calls in read] == [2, 2]
            for calls in read:
                calls.clear()


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """Count the calls of a function of the photo module."""
    function, calls = getattr(photo_module, name), list[object]()

    def counted(*args: object) -> object:
        calls.append(args)
        return function(*args)

    monkeypatch.setattr(photo_module, name, counted)
    return calls


def portrait(folder: Path) -> Path:
    """Write a portrait, which 16:9 needs two passes for."""
    path = folder / "tower.png"
    Image.effect_noise((540, 960), 40).convert("RGB").save(path)
    return path


def test_two_passes_make_one_picture(tmp_path: Path) -> None:
    """The price is printed first, both tasks are paid for once, and the photo is put back at its own size."""
    path = portrait(tmp_path)
    words = ("--aspect", "16:9", "--passes", 2, "-o", tmp_path / "out")
    with shell() as kling:
        refused = kling("expand", path, "--aspect", "16:9", "-o", tmp_path / "out")
        assert (refused.exit_code, "use --passes 2" in refused.stderr) == (2, True)
        assert "cost: at most 16 units" in kling("expand", path, *words, "--dry-run").stdout
        short = kling("expand", path, *words, "--budget", 15)
        assert (short.exit_code, kling.emulator.account.units_billed) == (1, 0)
        done = kling("expand", path, *words, "--full-size", "--check", "--json", "--budget", 16)
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert (facts["units"], len(facts["earlier_task_ids"])) == (16, 1)
        assert "needs 2 passes, 16 units in all" in facts["notes"]
        with Image.open(facts["files"][0]) as picture, Image.open(facts["full_size_files"][0]) as full:
            assert abs(picture.width * 9 / 16 - picture.height) <= 1
            assert full.size == (1707, 960)
        for command in ("expand", "bulk"):
            assert kling(command, path, *words).exit_code == 0
        assert "at most 0 units" in kling("expand", path, *words, "--dry-run").stdout
        assert kling.emulator.account.units_billed == 16
        assert "1 job: 1 saved" in kling("status", tmp_path / "out").stdout
