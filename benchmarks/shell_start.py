"""The wall time of starting commands, compared with importing the packages that they need.

    python -m benchmarks.shell_start --json

`--help`, `--version` and `ratios` are compared with an interpreter that imports click, other commands with
one that imports aiohttp, click and rich. Each runs in a new process, and the processes take turns.
"""

import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.import_time import environment
from benchmarks.reporting import finish, interleaved, medians, options, rounded, table

BASES = {"click": "import click", "all three": "import aiohttp, click, rich"}
# For each command, the imports that it is compared with and the highest ratio that meets the goal.
COMMANDS = {
    "--help": ("click", 2.5),
    "--version": ("click", 2.5),
    "ratios 100x100 --aspect 16:9": ("click", 2.5),
    "expand --help": ("all three", 1.15),
    "bulk --help": ("all three", 1.15),
    "wait --help": ("all three", 1.15),
    "list --help": ("all three", 1.15),
    "doctor --help": ("all three", 1.15),
    "report --help": ("all three", 1.15),
    "fleet --help": ("all three", 1.15),
}


def seconds(words: list[str]) -> Callable[[], dict[str, float]]:
    """Return a candidate that measures the wall time of a Python process."""

    def run() -> dict[str, float]:
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment())
        return {"seconds": time.perf_counter() - began}

    return run


def measure(runs: int) -> dict[str, float]:
    """Return the median wall seconds of each import and each command."""
    candidates = {name: seconds(["-c", code]) for name, code in BASES.items()}
    candidates |= {command: seconds(["-m", "kling_expand", *command.split()]) for command in COMMANDS}
    return {name: medians(rows)["seconds"] for name, rows in interleaved(candidates, runs).items()}


def main() -> None:
    """Measure and print the results."""
    given = options("Wall time of commands compared with the imports that they need.", runs=15)
    found = measure(given.runs)
    rows = [
        {
            "command": command,
            "time (ms)": found[command] * 1e3,
            "compared with": base,
            "ratio": rounded(found[command] / found[base]),
            "goal, at most": goal,
        }
        for command, (base, goal) in COMMANDS.items()
    ]
    table(rows)
    print(f"click {found['click'] * 1e3:.0f} ms, all three {found['all three'] * 1e3:.0f} ms")
    ratios = {str(row["command"]): row["ratio"] for row in rows}
    finish({"click_ms": rounded(found["click"] * 1e3)} | ratios, as_json=given.json)


if __name__ == "__main__":
    main()
