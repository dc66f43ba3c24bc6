"""The benchmarks run at a small size and print the promised figures, whose values are not checked."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.all import RUNS, STEPS, main
from benchmarks.fleet import LONGEST_CREATE, reserved, standstill, usage
from benchmarks.goals import Goal, figure_at, goals, in_row
from benchmarks.schedules import first_task

ROOT = Path(__file__).parent.parent

TINY = {
    "composite": (
        ["--runs", "1", "--longer", "600", "--megapixels", "0.3", "--engine", "flat"],
        {"photos", "costs", "ratios"},
    ),
    "emulator": (
        ["--pairs", "2", "--jobs", "20", "--tasks", "20", "--runs", "1"],
        {"ready (ms)", "jobs per second", "growth for each expired task (bytes)"},
    ),
    "import_time": (["--runs", "1"], {"ratio", "aiohttp_ms", "kling_expand_ms"}),
    "inspect_pictures": (
        ["--pictures", "2", "--engine", "flat"],
        {"kinds", "found", "false alarms"},
    ),
    "bulk": (["--runs", "1", "--photos", "3", "--megabytes", "0.1"], {"dry run (s)", "hashing ratio"}),
    "journal": (["--runs", "1", "--jobs", "200"], {"ms_per_job", "longest_block_ms"}),
    "limits": (
        ["--runs", "1", "--seconds", "20", "--settling", "15", "--recoveries", "1"],
        {"busy", "refused", "clients"},
    ),
    "memory": (
        ["--runs", "1", "--futures", "1000", "--jobs", "200"],
        {"bytes_per_future", "map_growth_mb", "upload_growth_mb"},
    ),
    "open_tasks": (
        ["--runs", "1", "--few", "20", "--many", "200", "--events", "200"],
        {"ratios", "microseconds"},
    ),
    "report_page": (["--jobs", "3", "--megapixels", "0.5"], {"photos", "noisy photos", "photos, again"}),
    "overhead": (["--runs", "1", "--calls", "20", "--photo", "1000"], {"ratio", "calls"}),
    "shell_start": (["--runs", "1"], {"click_ms", "--help", "expand --help"}),
    "schedules": (
        ["--runs", "1", "--tasks", "650", "--first-tasks", "20", "--distributions", "drifting,queue"],
        {"worst_ratio", "distributions", "limit"},
    ),
    "throughput": (["--runs", "1", "--jobs", "3", "--in-flight", "3"], {"ratio", "clients"}),
    "virtual": (
        ["--distributions", "queue", "--callbacks", "tenth", "--concurrent", "20", "--jobs", "60"],
        {"rows"},
    ),
    "upload": (["--runs", "1", "--times", "1", "--megabytes", "0.5"], {"blocked_ms", "ways"}),
}
FIGURES = {
    "requests per job",
    "latency (s)",
    "latency p95 (s)",
    "CPU per job (ms)",
    "peak memory (MB)",
    "wall time (s)",
}


def results(name: str, *options: str) -> dict[str, Any]:
    """Return the JSON object that a benchmark prints as its last line."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    *table, last = process.stdout.splitlines()
    assert table
    found: dict[str, Any] = json.loads(last)
    return found


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_benchmark_prints_a_table_and_one_object(name: str) -> None:
    """A benchmark prints a table, and with --json an object with the documented keys."""
    options, keys = TINY[name]
    assert keys <= results(name, *options).keys()


def test_clients_are_compared_by_the_same_figures() -> None:
    """The clients that need no extra are measured with all figures and no failure."""
    clients = ["kling_expand", "kling_expand+callbacks", "script"]
    sizes = ["--concurrent", "2", "--warm", "1", "--median", "0.2", "--distribution", "bimodal"]
    found = results("compare", *sizes, "--only", ",".join(clients))
    assert [row["client"] for row in found["rows"]] == clients
    for row in found["rows"]:
        assert row.keys() >= FIGURES
        assert row["failed jobs"] == 0


def test_results_are_drawn_as_svg(tmp_path: Path) -> None:
    """Both kinds of results are drawn as SVG with escaped names."""
    row = {"concurrent jobs": 10, "client": "a & b", "requests per job": 2.0, "latency (s)": 0.5}
    rows = [row, row | {"client": "c", "requests per job": 40}]
    (tmp_path / "compare.json").write_text(json.dumps({"rows": rows, "peers": []}))
    schedule = {"polls per task": 6.0, "latency (s)": 0.5, "optimal polls": 5.0}
    distributions = {"log-normal": {"adaptive": schedule}}
    (tmp_path / "schedules.json").write_text(json.dumps({"distributions": distributions}))
    files = [str(tmp_path / name) for name in ("compare.json", "schedules.json")]
    drawn = results("plot", *files, "--out", str(tmp_path))["pictures"]
    assert [Path(path).name for path in drawn] == ["compare.svg", "schedules.svg"]
    for path in drawn:
        text = Path(path).read_text()
        assert text.startswith("<svg")
        assert "nan" not in text
    assert "a &amp; b" in (tmp_path / "compare.svg").read_text()


def test_a_goal_is_met_or_not() -> None:
    """A row says whether the figure is within its bound, and a missing figure is not met."""
    found = {"ratio": 1.2, "rows": [{"client": "kling_expand", "concurrent jobs": 1, "requests per job": 7}]}
    assert Goal("a", "x", figure_at("ratio"), at_most=1.1).row({"x": found})["met"] is False
    assert Goal("a", "x", figure_at("ratio"), at_least=1.1).row({"x": found})["met"] is True
    assert in_row("requests per job", client="kling_expand", concurrent_jobs=1)(found) == 7
    for missing in (figure_at("other"), in_row("requests per job", client="script")):
        row = Goal("a", "x", missing, at_most=1).row({"x": found})
        assert (row["measured"], row["met"]) == (None, False)


def test_each_goal_belongs_to_a_run_and_each_run_to_a_step() -> None:
    """Every figure of the table is measured, each run once."""
    assert {goal.run for goal in goals()} <= RUNS.keys()
    assert sorted(name for step in STEPS for sequence in step for name in sequence) == sorted(RUNS)


def test_results_of_other_runs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --only, a file keeps the results of other runs, and the table shows both."""
    file = tmp_path / "all.json"
    file.write_text(json.dumps({"machine": {}, "results": {"upload": {"blocked_ms": 1.5}}}))
    monkeypatch.setitem(RUNS, "import_time", ["import_time", "--runs", "1"])
    monkeypatch.setattr(sys, "argv", ["all", "--only", "import_time", "--json", str(file)])
    assert main() == 0
    assert json.loads(file.read_text())["results"].keys() == {"upload", "import_time"}
    shown = capsys.readouterr().out
    assert "loop blocked by an upload" in shown
    assert "CPU of the import" in shown


def test_a_first_task_is_polled_until_its_end() -> None:
    """Tasks that take up to 1 s need one poll at 1 s, and their mean latency is half a second."""
    assert first_task(0, 1, "fixed 1 s", 5) == {"polls": 1, "latency (s)": pytest.approx(0.5)}


def test_the_use_of_slots_is_counted_correctly() -> None:
    """Peak and utilization of a fleet exclude outages and equal values calculated by hand."""
    times = [(0.0, 10.0), (0.0, 10.0), (10.0, 15.0), (20.0, 30.0), (20.0, 30.0), (30.0, 40.0), (30.0, 40.0)]
    found = usage(times, 2, [])
    assert (found["peak"], found["utilization"]) == (2, round(25 / 40, 4))
    assert usage(times, 2, [(10.0, 20.0)])["utilization"] == 1.0
    assert usage([*times, (5.0, 6.0)], 2, [])["peak"] == 3
    kept = usage(times, 2, [], [(10.0, 20.0)])
    assert (kept["utilization"], kept["reserved"]) == (round(35 / 40, 4), round(10 / 40, 4))
    assert usage(times, 2, [], [(0.0, 10.0)])["utilization"] == found["utilization"]  # not above the limit


def test_a_slot_is_reserved_until_its_task_appears() -> None:
    """A create without a usable response keeps its slot until its task appears or can no longer appear."""
    tasks = [{"external_task_id": "a", "created_at": 12.0}, {"external_task_id": "b", "created_at": 4.0}]
    unanswered = [(10.0, "a"), (11.0, "a"), (5.0, "b"), (0.0, "c"), (LONGEST_CREATE, "c")]
    assert reserved(tasks, unanswered) == [
        (0.0, LONGEST_CREATE),
        (10.0, 12.0),
        (LONGEST_CREATE, 2 * LONGEST_CREATE),
    ]


def test_a_standstill_is_counted_without_outages() -> None:
    """A standstill is the longest time between two creates, minus outages."""
    assert standstill([30.0, 0.0, 10.0], []) == 20.0
    assert standstill([30.0, 0.0, 10.0], [(5.0, 25.0)]) == 5.0
    assert standstill([1.0], []) == 0.0
