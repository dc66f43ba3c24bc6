"""`kling-expand bulk`: a run can be repeated and pays for nothing twice."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from cli.test_interrupted import press_ctrl_c
from PIL import Image
from support.shell import CHELSEA, COFFEE, Shell, shell

from kling_expand.emulator.faults.plan import Fault

ROWS = 300


def table(path: Path, *rows: str, head: str = "image,up,prompt") -> Path:
    """Write a manifest with these rows, and return its path."""
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def rows_and_summary(stdout: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the summary of a run with --json."""
    *rows, last = map(json.loads, stdout.splitlines())
    return rows, last["summary"]


def test_an_interrupted_run_can_be_repeated_without_paying_twice(tmp_path: Path) -> None:
    """After Ctrl-C in the middle of 300 rows, the same command completes each row once."""
    manifest = table(
        tmp_path / "m.csv", *(f"{CHELSEA},0.2,,{row}" for row in range(ROWS)), head="image,up,prompt,key"
    )
    arguments = ["bulk", manifest, "--max-in-flight", 60, "-o", tmp_path / "out"]
    with shell(slots=60, work_seconds=0.02) as kling:
        account = kling.emulator.account
        with kling.start(*arguments) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            for _ in range(40):
                process.stdout.readline()
            press_ctrl_c(process)
            err = process.stderr.read()
            process.stdout.read()
        assert (process.returncode, "Traceback" in err) == (130, False), err
        assert "nothing is paid for twice" in err
        assert "resume with" not in err
        summary_line = re.search(rf"^{ROWS} rows: (\d+) saved, \d+ not finished$", err, re.MULTILINE)
        assert summary_line is not None, err
        before = int(summary_line[1])
        assert before == len(list((tmp_path / "out").glob("*.png")))
        assert 40 <= before < ROWS
        again = kling(*arguments, "--json")
        assert again.exit_code == 0, again.stdout
        rows, summary = rows_and_summary(again.stdout)
        assert (len(account.tasks), account.units_billed) == (ROWS, 8 * ROWS)
        assert max(account.accepted.values()) == 1
    files = {path for row in rows for path in row["files"]}
    assert len(files) == ROWS == len(list((tmp_path / "out").glob("*.png")))
    assert sorted(row["line"] for row in rows) == list(range(2, ROWS + 2))
    done = {key: summary[key] for key in ("rows", "saved", "known", "failed", "bad", "not_sent")}
    assert done == {
        "rows": ROWS,
        "saved": ROWS - before,
        "known": before,
        "failed": 0,
        "bad": 0,
        "not_sent": 0,
    }
    assert (summary["units_billed"], summary["open_tasks"]) == (8 * ROWS, 0)


def test_bad_rows_are_reported_and_the_others_are_expanded(tmp_path: Path) -> None:
    """Each bad row or photo is reported once with its line and reason, and the others are expanded."""
    manifest = table(
        tmp_path / "m.csv", f"{COFFEE},0.5,", f"{COFFEE},much,", "gone.jpg,1,", f"{CHELSEA},0.5,"
    )
    with shell() as kling:
        done = kling("bulk", manifest, "-o", tmp_path / "out")
        assert (done.exit_code, len(done.stdout.splitlines())) == (1, 2)
        assert kling.emulator.account.units_billed == 16
    assert done.stderr.count(f"line 3 ({COFFEE})") == 1
    assert done.stderr.count("line 4 (gone.jpg)") == 1
    assert "no such file" in done.stderr
    assert "4 rows: 2 saved, 2 bad" in done.stderr
    assert "16 units ($0.06) billed" in done.stderr


def test_strict_sends_nothing_if_a_photo_is_bad(tmp_path: Path) -> None:
    """With --strict one bad photo stops the run with exit code 2, and no output is created."""
    manifest = table(tmp_path / "m.csv", f"{COFFEE},0.5,", "gone.jpg,1,")
    with shell() as kling:
        done = kling("bulk", manifest, "--strict", "-o", tmp_path / "out")
        assert (done.exit_code, kling.emulator.account.tasks) == (2, {})
        assert "1 of 2 rows cannot be sent" in done.stderr
        good = kling("bulk", COFFEE, "--up", 0.5, "--strict", "--journal", tmp_path / "j", "-o", tmp_path)
        assert good.exit_code == 0
    assert not (tmp_path / "out").exists()


def test_a_dry_run_sends_nothing_and_prints_the_remaining_cost(tmp_path: Path) -> None:
    """A dry run prints the remaining cost and the bad rows. It sends and writes nothing."""
    other = tmp_path / "other.png"
    Image.new("RGB", (600, 600)).save(other)
    manifest = table(tmp_path / "m.csv", f"{COFFEE},0.5,", f"{other},0.5,", "gone.jpg,1,")
    dry = Shell()("bulk", manifest, "--dry-run", "-n", 2)
    assert (dry.exit_code, dry.stdout.splitlines()[0]) == (
        1,
        "2 rows can be sent, 1 cannot; cost: at most 32 units ($0.11)",
    )
    assert "line 4 (gone.jpg): image: " in dry.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "other.png"]
    with shell() as kling:
        kling("bulk", manifest, "-o", tmp_path / "out")
        requests = kling.emulator.account.requests.copy()
        table(manifest, f"{other},0.5,", f"{COFFEE},0.6,", f"{COFFEE},0.5,")
        dry = kling("bulk", manifest, "--dry-run", "--json", "-o", tmp_path / "out")
        assert kling.emulator.account.requests == requests
    assert dry.exit_code == 0
    paid = {"rows": 3, "good": 3, "bad": 0, "paid": 2, "units": 8, "paid_in_part": 0, "left_out": {}}
    found = json.loads(dry.stdout)
    assert sum(found.pop("expected_sizes").values()) == 3
    assert found == paid


def test_a_dry_run_leaves_out_the_price_of_a_paid_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only the first pass was paid for, the price is that of the second, and the text says so."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (300, 700)).save("tower.png")
    words = ("bulk", "tower.png", "--aspect", "16:9", "--passes", 2, "-o", "out")
    with shell() as kling:
        kling.emulator.faults.script("create", "ok", Fault("error", code=1301))
        assert kling(*words).exit_code == 1
        dry = kling(*words, "--dry-run")
    known = "1 photo can be sent (the first passes of 1 already paid for), 0 cannot; cost: at most 8 units"
    assert dry.stdout.startswith(known)


def test_a_dry_run_prints_bad_rows_as_json(tmp_path: Path) -> None:
    """Each bad row is a JSON object, and so are the totals. The rules of the dialect apply."""
    manifest = table(tmp_path / "m.csv", f"{COFFEE},,all", f"{COFFEE},1,", head="image,up,direction")
    dry = Shell()("bulk", manifest, "--dry-run", "--json", "--dialect", "direction")
    bad, whole = map(json.loads, dry.stdout.splitlines())
    assert (dry.exit_code, bad["line"], bad["bad"], whole["units"]) == (1, 3, True, 8)


def test_an_edited_manifest_only_pays_for_new_rows(tmp_path: Path) -> None:
    """Moved rows are not paid for again, and existing results are never replaced."""
    manifest = table(tmp_path / "m.csv", f"{COFFEE},0.5,")
    with shell() as kling:
        first = kling("bulk", manifest, "-o", tmp_path / "out").stdout
        content = Path(first.strip()).read_bytes()
        table(manifest, f"{CHELSEA},0.5,,coffee", f"{COFFEE},0.5,,", head="image,up,prompt,name")
        table(tmp_path / "n.csv", f"{CHELSEA},0.5,,coffee", head="image,up,prompt,name")
        done = kling("bulk", tmp_path / "n.csv", "-o", tmp_path / "out")
        assert len(set(done.stdout.split())) == 1
        again = kling("bulk", manifest, "-o", tmp_path / "out")
        assert kling.emulator.account.units_billed == 16
    assert (again.exit_code, len(set(again.stdout.split()))) == (0, 2)
    assert Path(first.strip()).read_bytes() == content
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_identical_rows_share_one_task(tmp_path: Path) -> None:
    """Identical rows share one task, unless their keys differ."""
    manifest = table(
        tmp_path / "m.csv", f"{COFFEE},0.5,", f"{COFFEE},0.5,", f"{COFFEE},0.5,b", head="image,up,key"
    )
    with shell() as kling:
        done = kling("bulk", manifest, "-o", tmp_path / "out")
        assert (done.exit_code, kling.emulator.account.units_billed) == (0, 16)
    assert len(set(done.stdout.split())) == 2


def test_failed_rows_are_retried_by_the_next_run(tmp_path: Path) -> None:
    """A failed row is retried by the next run, and reported with its line and ids."""
    manifest = table(tmp_path / "m.csv", f"{COFFEE},0.5,", f"{CHELSEA},0.5,emulate-risk-control")
    with shell() as kling:
        done = kling("bulk", manifest, "-o", tmp_path / "out")
        assert done.exit_code == 1
        assert f"line 3 ({CHELSEA}): Failure to pass the risk control system (task_id=" in done.stderr
        assert "2 rows: 1 saved, 1 failed" in done.stderr
        assert "run the same command again to retry" in done.stderr
        rows, summary = rows_and_summary(kling("bulk", manifest, "-o", tmp_path / "out", "--json").stdout)
        assert (len(kling.emulator.account.tasks), kling.emulator.account.units_billed) == (3, 8)
    assert [(row["line"], row["outcome"]) for row in sorted(rows, key=lambda row: row["line"])] == [
        (2, "known"),
        (3, "failed"),
    ]
    assert rows[0]["error"] is None or rows[0]["error"]["type"] == "TaskModerated"
    assert (summary["known"], summary["failed"]) == (1, 1)


def test_a_budget_applies_to_all_runs_of_a_journal(tmp_path: Path) -> None:
    """The budget applies to all runs of a journal together. Rows beyond it count as not sent."""
    manifest = table(tmp_path / "m.csv", *(f"{COFFEE},0.5,{row}" for row in range(30)))
    with shell() as kling:
        for _ in range(2):
            done = kling("bulk", manifest, "--budget", 20, "-o", tmp_path / "out", "--max-in-flight", 2)
            assert done.exit_code == 1
            assert "nothing more is sent" in done.stderr
            assert kling.emulator.account.units_billed == 16
        assert "30 rows: 0 saved, 2 already done, 28 not sent" in done.stderr


def test_nothing_is_sent_after_max_failures(tmp_path: Path) -> None:
    """After --max-failures nothing more is sent."""
    manifest = table(tmp_path / "m.csv", *(f"{COFFEE},0.5,emulate-1301 {row}" for row in range(30)))
    with shell() as kling:
        done = kling("bulk", manifest, "--max-failures", 2, "--max-in-flight", 1, "-o", tmp_path / "out")
        assert kling.emulator.account.requests["create"] < 10
    assert done.exit_code == 1
    assert "not sent" in done.stderr.splitlines()[-3]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("image\n", [], "no photo was found"),
        ("image,up\na.jpg,x\n", [], "no row can be sent (1 bad row)"),
        (f"image,up\n{COFFEE},1\n{COFFEE},0.5\n", ["-o", "{index}.png"], "would share a path"),
        ("image,up\na.jpg,1\n", ["-o", "{nme}"], "must use only the fields"),
        ("image,up\na.jpg,1\n", ["--up", 1, "--aspect", "1:1"], "exactly one way"),
        ("image,up\na.jpg,1\n", ["-n", 10], "between 1 and 9"),
        (f"image,up,n\n{COFFEE},1,2\n", ["-o", "{name}.png"], "add {index}"),
        (f"image,up\n{COFFEE},1\n", [], "no credentials"),
    ],
)
def test_a_run_that_cannot_start_creates_no_journal(
    tmp_path: Path, text: str, arguments: list[object], message: str
) -> None:
    """If nothing can be sent, the exit code is 2 and no journal is created."""
    (tmp_path / "m.csv").write_text(text)
    done = Shell()("bulk", tmp_path / "m.csv", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


def test_a_dry_run_without_photos_exits_with_1(tmp_path: Path) -> None:
    """For a dry run without a photo, the exit code is 1, because the pattern is probably wrong."""
    assert Shell()("bulk", f"{tmp_path}/*.jpg", "--up", 0.5, "--dry-run").exit_code == 1


def test_a_missing_shape_is_reported_once(tmp_path: Path) -> None:
    """A missing shape is an error of the command, not of each photo. The message also names --for."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(Path(COFFEE).read_bytes())
    done = Shell()("bulk", tmp_path, "-o", tmp_path / "out", "--dry-run")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("exactly one way to expand is required: --aspect or --for, --size") == 1


def test_a_bad_photo_is_reported_once_for_all_its_shapes(tmp_path: Path) -> None:
    """The shapes that have the same reason are on one line. Each photo has its own line."""
    rows = "".join(f'{{"image": "https://x.org/{name}.jpg"}}\n' for name in "ab")
    (tmp_path / "m.jsonl").write_text(rows)
    shapes = ("--aspect", "16:9", "--aspect", "1:1")
    done = Shell()("bulk", tmp_path / "m.jsonl", *shapes, "--full-size", "--dry-run")
    assert [line.partition(": image")[0] for line in done.stderr.splitlines()] == [
        f"line {number} (https://x.org/{name}.jpg) 16x9, line {number} (https://x.org/{name}.jpg) 1x1"
        for number, name in enumerate("ab", 1)
    ]


@pytest.mark.parametrize("option", ["--full-size", "--metadata", "--check"])
def test_a_url_is_refused_where_the_file_is_needed(option: str) -> None:
    """The pictures of a photo at a URL could be paid for, but not be saved at full size or checked."""
    done = Shell()("bulk", "https://x.org/a.jpg", "--up", 1, option, "--dry-run")
    assert (done.exit_code, "image must be a file for --full-size" in done.stderr) == (1, True)


@pytest.mark.parametrize("command", ["bulk --up 1", "wait", "resume"])
@pytest.mark.parametrize("option", ["--full-size", "--check"])
def test_a_missing_extra_ends_a_command_before_anything_is_paid(
    option: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the extra, and the exit code says that nothing was started."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    done = Shell()(*command.split(), "x", option)
    assert (done.exit_code, "numpy is not installed: pip install" in done.stderr) == (2, True)


def test_ctrl_c_lets_a_started_download_finish(tmp_path: Path) -> None:
    """Ctrl-C lets a download that has started finish."""
    with shell() as kling:
        kling.emulator.faults.script("file", Fault("slow_body", seconds=0.6))
        arguments = ["bulk", COFFEE, "--up", 0.5, "--journal", tmp_path / "j", "-o", tmp_path / "out"]
        with kling.start(*arguments) as process:
            while not kling.emulator.account.requests["file"]:
                assert process.poll() is None
            press_ctrl_c(process)
            assert process.stdout is not None
            assert process.stderr is not None
            err, out = process.stderr.read(), process.stdout.read()
    assert (process.returncode, out) == (130, f"{tmp_path / 'out' / 'coffee-0.png'}\n"), err
    assert "1 photo: 1 saved" in err


def test_the_emulator_has_its_own_journal(tmp_path: Path) -> None:
    """With --emulator, a separate journal is used, and a second run finds everything done."""
    manifest = table(tmp_path / "m.csv", f"{CHELSEA},0.02,")
    first, again = (
        Shell()("bulk", manifest, "--emulator", "-o", tmp_path / "out", "--json") for _ in range(2)
    )
    assert (
        first.exit_code,
        rows_and_summary(first.stdout)[1]["saved"],
        rows_and_summary(again.stdout)[1]["known"],
    ) == (0, 1, 1)
    journal = ".kling-expand-emulator.db"
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {journal, f"{journal}.tasks"}


def test_a_dry_run_prints_the_expected_sizes(tmp_path: Path) -> None:
    """A dry run prints the expected sizes in pixels and the cost, and says that an emulator bills nothing."""
    words = ["bulk", COFFEE, CHELSEA, "--aspect", "16:9", "-o", tmp_path / "out", "--dry-run", "--emulator"]
    lines = Shell()(*words).stdout.splitlines()
    assert "16 units (about $0.06 on the real service; not billed here)" in lines[0]
    assert "1536x864 (2 pictures)" in lines[1]
    facts = json.loads(Shell()(*words, "--json").stdout.splitlines()[-1])
    assert facts["expected_sizes"] == {"1536x864": 2}


def test_quiet_prints_only_the_pictures(tmp_path: Path) -> None:
    """With -q, notes, progress and summary are not printed, but failures are."""
    with shell() as kling:
        done = kling("bulk", COFFEE, "--up", 0.5, "-o", tmp_path, "-q")
        kling.emulator.faults.script("create", Fault("error", code=1301))
        failed = kling("bulk", CHELSEA, "--up", 0.5, "-o", tmp_path, "-q")
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'coffee-0.png'}\n", "")
    assert (failed.exit_code, failed.stderr.count("\n"), "code=1301" in failed.stderr) == (1, 1, True)
    assert "1 row: 0 saved, 1 failed" not in failed.stderr
