"""The rows of a batch that are not saved: a JSON line for each, and a table that `bulk` can read again."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from support.shell import CHELSEA, COFFEE, Shell, shell

from kling_expand.cli.batch.failures import FailuresFile
from kling_expand.cli.terminal import ServiceFailed


def jobs(stdout: str) -> list[dict[str, Any]]:
    """Return the JSON objects of the rows, in the order of the input."""
    found = [json.loads(line) for line in stdout.splitlines()]
    return sorted((each for each in found if "outcome" in each), key=lambda each: each["line"])


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_failures_file_can_be_run_as_a_manifest(tmp_path: Path) -> None:
    """Bad, refused and unsent rows are in the JSON and in the table. Running the table finishes the batch."""
    (tmp_path / "cut.jpg").write_bytes(Path(COFFEE).read_bytes()[:9000])
    lines = [f"{CHELSEA},0.{number},a,{number}" for number in range(1, 7)]
    manifest, left = tmp_path / "m.csv", tmp_path / "left.csv"
    manifest.write_text("\n".join(["image,up,prompt,_id", "cut.jpg,0.5,,0", *lines]) + "\n")
    arguments = ["--json", "-o", tmp_path / "out", "--failures", left]
    with shell() as kling:
        done = kling("bulk", manifest, *arguments, "--budget", 16, "--max-in-flight", 1)
        rows = jobs(done.stdout)
        assert [row["line"] for row in rows] == list(range(2, 9))
        assert [row["outcome"] for row in rows] == ["bad", *["saved"] * 2, *["not sent"] * 4]
        assert rows[0]["error"]["type"] == "ImageError"
        assert {row["error"]["type"] for row in rows[3:]} == {"BudgetExceeded", "NotSubmitted"}
        assert "budget" in rows[6]["error"]["message"]
        missing = table(left)
        assert {row["_id"] for row in missing} == {"0", "3", "4", "5", "6"}
        assert missing[0]["_reason"].startswith("ImageError: ")
        assert missing[0]["image"] == "cut.jpg"
        again = kling("bulk", left, *arguments)
        assert sorted(row["outcome"] for row in jobs(again.stdout)) == ["bad", *["saved"] * 4]
        assert len(kling.emulator.account.tasks) == 6
    assert [row["_id"] for row in table(left)] == ["0"]


@pytest.mark.parametrize("options", [["--strict"], ["--budget", "0"]])
def test_every_row_is_listed_even_if_nothing_is_sent(tmp_path: Path, options: list[str]) -> None:
    """Even if nothing is sent, each row has its line. A run of these lines keeps directories and shapes."""
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "dog.jpg").write_bytes(Path(COFFEE).read_bytes() + folder.encode())
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no photo")
    shapes = ["--aspect", "16:9", "--aspect", "3:2", "--aspect", "1:1"]
    left = tmp_path / "left.jsonl"
    with shell() as kling:
        done = kling(
            "bulk", tmp_path / "in", *shapes, *options, "--json", "-o", tmp_path / "out", "--failures", left
        )
        assert sorted(row["outcome"] for row in jobs(done.stdout)) == [
            *["bad"] * 3,
            *["left out"] * 2,
            *["not sent"] * 4,
        ]
        assert len(kling.emulator.account.tasks) == 0
        assert len(left.read_text().splitlines()) == 7
        kling("bulk", left, *shapes, "-o", tmp_path / "out")
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in tmp_path.glob("out/*/*.png")) == [
        f"{folder}/dog-{shape}-0.png" for folder in "ab" for shape in ("16x9", "1x1")
    ]


def test_a_failures_file_with_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    """The suffix determines the format, so any other suffix is refused before anything is sent."""
    with shell() as kling:
        done = kling("bulk", COFFEE, "--aspect", "16:9", "--failures", tmp_path / "left.txt")
        assert (done.exit_code, "must end in .csv" in done.stderr) == (2, True)
        done = kling("bulk", COFFEE, "--aspect", "16:9", "--failures", tmp_path / "gone" / "left.csv")
        assert (done.exit_code, "cannot be written" in done.stderr) == (2, True)


def test_a_photo_keeps_its_place_and_a_bad_row_stays_bad(tmp_path: Path) -> None:
    """The pictures of a photo keep their directory. A row that cannot be read is never sent in part."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.jpg").write_bytes(b"no photo")
    left, manifest = tmp_path / "left.csv", tmp_path / "m.csv"
    Shell()("bulk", tmp_path / "in", "--up", 1, "--failures", left, KLING_API_KEY="none")
    assert [(row["image"], row["name"]) for row in table(left)] == [("in/cut.jpg", "cut")]
    lines = tmp_path / "m.jsonl"
    manifest.write_text(f"image,up,prompt\n{COFFEE},1,a cat, sitting\n")
    lines.write_text(json.dumps({"image": COFFEE, "up": 1, "prompt": ["a cat", "sitting"]}))
    for source, prompt in (manifest, "a cat, sitting"), (lines, '["a cat", "sitting"]'):
        Shell()("bulk", source, "--failures", left, KLING_API_KEY="none")
        rows = [(row["image"], row["_image"], row["_prompt"]) for row in table(left)]
        assert rows == [("", COFFEE, prompt)]
        done = Shell()("bulk", left, "--up", 1, "--dry-run", "--json")
        assert json.loads(done.stdout.splitlines()[-1])["good"] == 0


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    """If the file cannot be written at the end, the message names it, and its partial file is removed."""
    path = tmp_path / "left.csv"
    failures = FailuresFile(str(path))
    failures.__enter__()
    path.unlink()
    path.mkdir()
    with pytest.raises(ServiceFailed, match=r"--failures .*left\.csv cannot be written"):
        failures.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == [path]
