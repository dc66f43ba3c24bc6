"""Does each benchmark run and tell what it promises to tell? Tiny sizes: no number is judged here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet import usage

ROOT = Path(__file__).parent.parent

TINY = {
    "import_time": (["--runs", "1"], {"ratio", "aiohttp_ms", "kling_expand_ms"}),
    "limits": (["--runs", "1", "--seconds", "130"], {"busy", "refused", "clients"}),
    "memory": (
        ["--runs", "1", "--futures", "1000", "--jobs", "1000"],
        {"bytes_per_future", "map_growth_mb", "upload_growth_mb"},
    ),
    "overhead": (["--runs", "1", "--calls", "20", "--photo", "1000"], {"ratio", "calls"}),
    "pacing": (["--runs", "1", "--tasks", "650"], {"worst_ratio", "laws"}),
    "throughput": (["--runs", "1", "--jobs", "3", "--in-flight", "2"], {"ratio", "clients"}),
    "upload": (["--runs", "1", "--times", "1", "--megabytes", "0.5"], {"hold_ms", "ways"}),
}


def told(name: str, *options: str) -> dict[str, Any]:
    """The JSON object that a benchmark prints as its last line."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    *table, last = process.stdout.splitlines()
    assert table
    found: dict[str, Any] = json.loads(last)
    return found


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_benchmark_prints_a_table_and_one_object(name: str) -> None:
    """Its keys are what the README and whoever checks the numbers read."""
    options, keys = TINY[name]
    assert keys <= told(name, *options).keys()


def test_clients_are_compared_by_the_same_numbers() -> None:
    """The two that need no extra are always there; who is absent is named."""
    found = told("compare", "--at", "2", "--warm", "1", "--median", "0.2", "--only", "kling_expand,script")
    assert [row["client"] for row in found["rows"]] == ["kling_expand", "script"]
    for row in found["rows"]:
        assert {"reads", "late s", "late p95 s", "CPU ms", "peak MB", "wall s", "failed"} <= row.keys()
        assert row["failed"] == 0


def test_results_are_drawn(tmp_path: Path) -> None:
    """Both kinds of results become pictures that any browser shows."""
    row = {"at once": 10, "client": "a & b", "reads": 2.0, "late s": 0.5}
    (tmp_path / "compare.json").write_text(json.dumps({"rows": [row, row | {"client": "c", "reads": 40}]}))
    schedule = {"looks": 6.0, "lateness s": 0.5, "hindsight looks": 5.0}
    (tmp_path / "pacing.json").write_text(json.dumps({"laws": {"log-normal": {"learned": schedule}}}))
    files = [str(tmp_path / name) for name in ("compare.json", "pacing.json")]
    drawn = told("plot", *files, "--out", str(tmp_path))["pictures"]
    assert [Path(path).name for path in drawn] == ["compare.svg", "pacing.svg"]
    for path in drawn:
        text = Path(path).read_text()
        assert text.startswith("<svg")
        assert "nan" not in text
    assert "a &amp; b" in (tmp_path / "compare.svg").read_text()


def test_the_use_of_slots_is_counted_right() -> None:
    """Peak and utilisation of a fleet equal those worked out by hand, outages left out."""
    times = [(0.0, 10.0), (0.0, 10.0), (10.0, 15.0), (20.0, 30.0), (20.0, 30.0), (30.0, 40.0), (30.0, 40.0)]
    found = usage(times, 2, [])
    assert (found["peak"], found["utilisation"]) == (2, round(25 / 40, 4))
    assert usage(times, 2, [(10.0, 20.0)])["utilisation"] == 1.0
    assert usage([*times, (5.0, 6.0)], 2, [])["peak"] == 3
