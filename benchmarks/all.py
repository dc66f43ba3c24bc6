"""All benchmarks in one run: a table of goals and figures, and a file with all results.

    python -m benchmarks.all --json results.json
    python -m benchmarks.all --only overhead,memory --json results.json
    python -m benchmarks.plot results.json --out benchmarks

Each benchmark runs in a process of its own, and all together take 55 minutes. They form steps, which run one
after another. Within a step, clients that mostly sleep share the machine with benchmarks whose figures are
counts, bytes or virtual time. These benchmarks have a low priority. The file also has the machine and the
versions. It is written after each step. With ``--only`` it keeps the results of all other runs.

For each goal that is not met the reason is printed. The exit code is 1 only if a benchmark fails.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.durations import DISTRIBUTIONS
from benchmarks.goals import Results, goals
from benchmarks.peers import CLIENTS
from benchmarks.reporting import table

FEW = ["kling_expand", "kling_expand+callbacks", "kling_expand+callbacks:stopping", "script", "runwayml"]


def compared(number: int, clients: list[str]) -> list[str]:
    """Return the command that compares *clients* at a number of concurrent jobs."""
    return ["compare", "--concurrent", str(number), "--runs", "5", "--only", ",".join(clients)]


# The command of each benchmark, by the name under which its results are kept.
RUNS: dict[str, list[str]] = {
    "compare 1": compared(1, list(CLIENTS)),
    "compare 10": compared(10, list(CLIENTS)),
    "compare 100": compared(100, list(CLIENTS)),
    "compare 1000": compared(1000, FEW),
    "callbacks": ["virtual", "--distributions", "log-normal"],
    "distributions": [
        "virtual",
        "--distributions",
        ",".join(DISTRIBUTIONS),
        "--concurrent",
        "10,100",
        "--callbacks",
        "",
    ],
    "schedules": ["schedules", "--tasks", "2000"],
    "memory": ["memory"],
    "limits": ["limits"],
    "inspect_pictures": ["inspect_pictures"],
    "fleet": ["fleet", "--jobs", "150", "--worker-kills", "2", "--db-kills", "1", "--emulator-kills", "1"],
    "overhead": ["overhead"],
    "overhead with [fast]": ["overhead", "--fast", "on"],
    "import_time": ["import_time"],
    "shell_start": ["shell_start"],
    "bulk": ["bulk"],
    "journal": ["journal"],
    "upload": ["upload"],
    "open_tasks": ["open_tasks"],
    "throughput": ["throughput", "--runs", "5"],
    "emulator": ["emulator", "--tasks", "50000"],
    "composite": ["composite"],
    "report_page": ["report_page"],
    "library": ["library", "--photos", "100", "--kills", "3"],
    "chaos": ["chaos", "--jobs", "600", "--kills", "10"],
    "chaos of two passes": ["chaos", "--jobs", "200", "--kills", "10", "--passes", "2"],
    "fleet_scale": ["fleet_scale"],
    "suite": ["suite"],
}
# Runs whose figures are counts, bytes or virtual time, which a busy machine does not change.
EXACT = {"callbacks", "distributions", "schedules", "memory", "limits", "inspect_pictures"}
# Each step has several sequences of runs. The sequences run side by side, the runs of a sequence in order.
SIDE_BY_SIDE = [
    [["compare 1"], ["compare 10"], ["callbacks", "distributions", "schedules"], ["fleet"]],
    [["compare 100", "compare 1000"], ["memory", "limits"], ["inspect_pictures"]],
]
STEPS = SIDE_BY_SIDE + [
    [[name]] for name in RUNS if not any(name in sequence for step in SIDE_BY_SIDE for sequence in step)
]


def machine() -> dict[str, Any]:
    """Return the date, the machine and the versions, on which the results depend."""
    versions = {name: version(name) for name in ("aiohttp", "attrs", "cattrs", "pyjwt", "backoff")}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    """Return the model name of the processor (Linux), or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def run(name: str, nice: int) -> Results | None:
    """Return the results of one benchmark, or None if it fails."""
    command = ["nice", "-n", str(nice), sys.executable, "-m"]
    command += [f"benchmarks.{RUNS[name][0]}", *RUNS[name][1:], "--json"]
    begin = time.monotonic()
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    last = (process.stdout.splitlines() or [""])[-1]
    try:
        found: Results | None = json.loads(last)
    except ValueError:
        found = None
    print(f"{name}: {time.monotonic() - begin:.0f} s{'' if found else ', failed'}", flush=True)
    return found


def run_step(step: list[list[str]]) -> dict[str, Results | None]:
    """Run the sequences of a step side by side, and return the results by run."""

    def run_sequence(sequence: list[str]) -> dict[str, Results | None]:
        return {name: run(name, 10 if name in EXACT else 0) for name in sequence}

    with ThreadPoolExecutor(len(step)) as pool:
        return {name: found for sequence in pool.map(run_sequence, step) for name, found in sequence.items()}


def chosen_steps(names: list[str]) -> list[list[list[str]]]:
    """Return the steps with only the named runs."""
    sequences = [[[name for name in sequence if name in names] for sequence in step] for step in STEPS]
    return [found for step in sequences if (found := [sequence for sequence in step if sequence])]


def show(about: dict[str, Any], results: dict[str, Results]) -> None:
    """Print the goals of the runs that have results, then the reasons why some are not met."""
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    print(", ".join(f"{name} {value}" for name, value in about.items() if name != "versions"))
    print(versions)
    checked = [goal for goal in goals() if goal.run in results]
    rows = [goal.row(results) for goal in checked]
    table(rows)
    print(f"{sum(row['met'] for row in rows)} of {len(rows)} goals are met")
    for goal, row in zip(checked, rows, strict=True):
        if not row["met"] and goal.reason:
            print(f"{goal.name}: {goal.reason}")


def main() -> int:
    """Run the benchmarks, print the table and return the exit code."""
    parser = argparse.ArgumentParser(description="Run all benchmarks and compare them with the goals.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to FILE")
    parser.add_argument(
        "--only", default=",".join(RUNS), help="names of runs, joined by commas (default: all)"
    )
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - RUNS.keys():
        parser.error(f"--only must name runs of {', '.join(RUNS)}, got {', '.join(sorted(unknown))}")
    results: dict[str, Results] = {}
    if given.json and given.json.exists() and len(names) < len(RUNS):
        results = json.loads(given.json.read_text())["results"]
    about, failed = machine(), False
    for step in chosen_steps(names):
        found = run_step(step)
        failed = failed or None in found.values()
        results |= {name: each for name, each in found.items() if each is not None}
        if given.json:
            given.json.write_text(json.dumps({"machine": about, "results": results}) + "\n", encoding="utf-8")
    show(about, results)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
