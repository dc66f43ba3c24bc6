"""Every goal with what was measured, in one run: medians, the machine and the versions in one file.

    python -m benchmarks.all --json results.json
    python -m benchmarks.plot results.json --out benchmarks

Each benchmark runs in a process of its own, one after the other, which takes up to an hour. A goal that is
not met is printed as such; `benchmarks/README.md` gives the reason. The exit code is 1 only if a benchmark
fails.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attrs import frozen

from benchmarks.open_tasks import PARTS
from benchmarks.reporting import table

# The command of each benchmark, by the name under which its results are kept.
RUNS: dict[str, list[str]] = {
    "overhead": ["overhead"],
    "import_time": ["import_time"],
    "shell_start": ["shell_start"],
    "memory": ["memory"],
    "journal": ["journal"],
    "upload": ["upload"],
    "open_tasks": ["open_tasks"],
    "schedules": ["schedules"],
    "limits": ["limits"],
    "compare": ["compare", "--concurrent", "1,10,100", "--runs", "5"],
    "throughput": ["throughput", "--runs", "5"],
    "emulator": ["emulator", "--tasks", "100000"],
    "composite": ["composite"],
    "inspect_pictures": ["inspect_pictures"],
    "chaos": ["chaos"],
    "chaos of two passes": ["chaos", "--jobs", "200", "--kills", "10", "--passes", "2"],
}
Results = Mapping[str, Any]
Figure = Callable[[Results], float]


@frozen
class Goal:
    """One figure of the results of a run, and what it should at most or at least be."""

    name: str
    run: str
    figure: Figure
    at_most: float | None = None
    at_least: float | None = None
    peer: Callable[[Results], str] | None = None

    def row(self, results: Mapping[str, Results]) -> dict[str, Any]:
        """Return the row of the table."""
        found = results[self.run]
        measured = self.figure(found)
        met = (self.at_most is None or measured <= self.at_most) and (
            self.at_least is None or measured >= self.at_least
        )
        goal = f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"
        peer = self.peer(found) if self.peer else None
        return {"what": self.name, "goal": goal, "measured": measured, "met": met, "best peer": peer}


def figure_at(*keys: str) -> Figure:
    """Return the function that reads a figure at a path of keys."""

    def figure(results: Results) -> float:
        found: Any = results
        for key in keys:
            found = found[key]
        return float(found)

    return figure


def ours(concurrent: int, name: str) -> Figure:
    """Return the function that reads a figure of our client at a number of concurrent jobs."""

    def figure(results: Results) -> float:
        rows = [row for row in results["rows"] if row["client"] == "kling_expand"]
        return next(float(row[name]) for row in rows if row["concurrent jobs"] == concurrent)

    return figure


def _fewest(concurrent: int) -> Callable[[Results], str]:
    """Return what describes the peer that makes the fewest requests for a job, with its latency."""

    def peer(results: Results) -> str:
        rows = [
            row
            for row in results["rows"]
            if row["concurrent jobs"] == concurrent and not row["client"].startswith("kling_expand")
        ]
        best = min(rows, key=lambda row: float(row["requests per job"]))
        return f"{best['client']}: {best['requests per job']:g} at {best['latency (s)']:g} s"

    return peer


def goals() -> list[Goal]:
    """Return the goals in the order of the table."""
    cpu = {"query": 1.10, "page": 1.10, "list": 1.5, "job": 0.75}
    start = {"--help": 2.5, "--version": 2.5, "expand --help": 1.15}
    reads = {1: 8.0, 10: 2.0, 100: 0.5}
    return [
        *(
            Goal(f"CPU of a {name}, raw aiohttp = 1", "overhead", figure_at("calls", name), most)
            for name, most in cpu.items()
        ),
        Goal("import, aiohttp = 1", "import_time", figure_at("ratio"), 1.15),
        *(Goal(f"start of {name!r}", "shell_start", figure_at(name), most) for name, most in start.items()),
        Goal("memory of an open future (bytes)", "memory", figure_at("bytes_per_future"), 1024),
        Goal("growth by an upload of 10 MB (MB)", "memory", figure_at("upload_growth_mb"), 2),
        Goal("journal of a job (ms)", "journal", figure_at("ms_per_job"), 0.3),
        Goal("loop blocked by an upload (ms)", "upload", figure_at("blocked_ms"), 5),
        *(
            Goal(f"{part}, 10,000 against 100 open tasks", "open_tasks", figure_at("ratios", part), 1.3)
            for part in PARTS
        ),
        Goal("polls, optimum = 1, worst law", "schedules", figure_at("worst_ratio"), 1.3),
        Goal("unknown limit in use", "limits", figure_at("busy"), at_least=0.9),
        Goal("worst recovery, oracle = 1", "limits", figure_at("worst recovery"), 1.3),
        *(
            Goal(
                f"reads of a job, {number} at once",
                "compare",
                ours(number, "requests per job"),
                most,
                peer=_fewest(number),
            )
            for number, most in reads.items()
        ),
        Goal("throughput, script = 1", "throughput", figure_at("ratio"), at_least=0.8),
        Goal("emulator and client ready (ms)", "emulator", figure_at("ready (ms)"), 30),
        Goal("jobs a second of the emulator", "emulator", figure_at("jobs per second"), at_least=500),
        *(
            Goal(f"jobs {what}, {name}", name, figure_at(key), 0)
            for name in ("chaos", "chaos of two passes")
            for what, key in (("paid twice", "duplicates"), ("lost", "lost"))
        ),
    ]


def machine() -> dict[str, Any]:
    """Return what the results depend on."""
    versions = {name: version(name) for name in ("aiohttp", "attrs", "cattrs", "pyjwt", "backoff")}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def run(command: list[str]) -> Results | None:
    """Return the results of one benchmark, or None where it fails."""
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:], "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = process.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        return None
    found: Results = json.loads(lines[-1])
    return found


def main() -> int:
    """Run the benchmarks, print the table and return the exit code."""
    parser = argparse.ArgumentParser(description="Every goal with what was measured.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to FILE")
    parser.add_argument(
        "--only", default=",".join(RUNS), help="names of runs, joined by commas (default: all)"
    )
    given = parser.parse_args()
    results: dict[str, Results] = {}
    for name in given.only.split(","):
        begin = time.monotonic()
        found = run(RUNS[name])
        print(f"{name}: {time.monotonic() - begin:.0f} s{'' if found else ', failed'}", flush=True)
        if found is not None:
            results[name] = found
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items() if name != "versions"))
    table([goal.row(results) for goal in goals() if goal.run in results])
    if given.json:
        given.json.write_text(json.dumps({"machine": about, "results": results}) + "\n", encoding="utf-8")
    return 0 if len(results) == len(given.only.split(",")) else 1


if __name__ == "__main__":
    raise SystemExit(main())
