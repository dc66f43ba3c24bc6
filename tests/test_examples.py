"""The examples run unchanged in another folder without credentials and print their closing comments."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))

# The parts of the output that differ between runs.
VARYING = {
    "id": re.compile(r"\b\d{18}\b|\bkx-[0-9a-f]{32}\b"),
    "origin": re.compile(r"\b127\.0\.0\.1:\d+"),
    "seconds": re.compile(r"\b\d+\.\d+(?= s\b)"),
}


def steady(text: str) -> list[str]:
    """Return the lines of *text* with the varying parts replaced by numbers in order of appearance."""
    for kind, pattern in VARYING.items():
        text = pattern.sub(numbering(kind), text)
    return text.splitlines()


def numbering(kind: str) -> Callable[[re.Match[str]], str]:
    """Return a function that gives equal matches equal names."""
    met: dict[str, str] = {}
    return lambda match: met.setdefault(match[0], f"<{kind} {len(met) + 1}>")


def promised(example: Path) -> str:
    """Return the output that the closing comment shows."""
    _, _, comment = example.read_text(encoding="utf-8").partition("\n# Output:\n")
    lines = comment.splitlines()
    assert lines, f"{example.name} does not show its output"
    assert all(line.startswith("#") for line in lines)
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_its_closing_comment(example: Path, tmp_path: Path) -> None:
    """An example exits with 0, prints its closing comment, leaves no file behind, and logs only retries."""
    keyless = {name: value for name, value in os.environ.items() if not name.startswith("KLING")}
    command = [sys.executable, "-W", "error", str(example)]
    ran = subprocess.run(
        command,
        cwd=tmp_path,
        env=keyless | {"PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert [
        line for line in ran.stderr.splitlines() if not re.search(" retrying in | looking up ", line)
    ] == []
    assert [*tmp_path.iterdir()] == []
    assert ran.returncode == 0
    assert steady(ran.stdout) == steady(promised(example))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_one_short_lesson(example: Path) -> None:
    """An example begins with a declarative sentence and has 15 to 60 lines, except the complete service."""
    text = example.read_text(encoding="utf-8")
    code, _, _ = text.partition("\n# Output:\n")
    summary = text.splitlines()[0].removesuffix('"""')
    assert summary.startswith('"""')
    assert summary.endswith(".")
    assert 15 <= len(code.splitlines()) <= (115 if example.stem == "12_web_service_workers" else 60)
    assert max(map(len, text.splitlines())) <= 110


def test_the_photographs_are_credited() -> None:
    """The credits list each photo of the examples."""
    credited = (FOLDER / "photos" / "CREDITS.md").read_text(encoding="utf-8")
    photos = [path.name for path in (FOLDER / "photos").iterdir() if path.suffix != ".md"]
    assert photos
    assert [name for name in photos if name not in credited] == []
