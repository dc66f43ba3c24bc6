"""The CPU time of ``from kling_expand import KlingClient`` compared with ``import aiohttp``.

    python -m benchmarks.import_time --json

Each import runs in a new interpreter, and the interpreters take turns. The CPU time of an interpreter that
imports nothing is subtracted. The table lists the modules that are imported in addition to those of aiohttp,
slowest first, as ``-X importtime`` reports them for one run.
"""

import atexit
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from operator import itemgetter
from typing import Any

from benchmarks.reporting import finish, interleaved, medians, options, rounded, table

OURS = "from kling_expand import KlingClient"
NAMES = {"nothing": "pass", "aiohttp": "import aiohttp", "kling_expand": OURS}
LINE = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \| +(\S+)")


@cache
def environment() -> dict[str, str]:
    """Return an environment that stores byte code in a temporary folder, whatever the user has set."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}


def cpu_seconds(code: str) -> float:
    """Return the CPU seconds of an interpreter that runs *code*."""
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


def measure(runs: int) -> dict[str, float]:
    """Return the median CPU seconds of each import alone."""

    def candidate(code: str) -> Callable[[], dict[str, float]]:
        return lambda: {"seconds": cpu_seconds(code)}

    cpu_seconds(NAMES["kling_expand"])  # compile the byte code and fill the file cache
    found = interleaved({name: candidate(code) for name, code in NAMES.items()}, runs)
    seconds = {name: medians(rows)["seconds"] for name, rows in found.items()}
    return {name: seconds[name] - seconds["nothing"] for name in ("aiohttp", "kling_expand")}


def slowest(least: float) -> list[dict[str, Any]]:
    """Return the modules imported after aiohttp that take at least *least* milliseconds themselves."""
    code = "import aiohttp, sys; sys.stderr.write('here\\n'); " + OURS
    command = [sys.executable, "-X", "importtime", "-c", code]
    report = subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stderr
    rows = [
        {"module": name, "self (ms)": int(own) / 1e3, "cumulative (ms)": int(total) / 1e3}
        for own, total, name in LINE.findall(report.partition("here\n")[2])
        if int(own) / 1e3 >= least
    ]
    return sorted(rows, key=itemgetter("self (ms)"), reverse=True)


def main() -> None:
    """Measure and print the results."""
    given = options("CPU time of the import compared with aiohttp.", runs=15, least=0.5)
    found = measure(given.runs)
    ratio = rounded(found["kling_expand"] / found["aiohttp"])
    table(slowest(given.least))
    print(f"aiohttp {found['aiohttp'] * 1e3:.0f} ms, kling_expand {found['kling_expand'] * 1e3:.0f} ms")
    print(f"ratio {ratio} (goal: at most 1.15), medians of {given.runs} runs")
    finish(
        {"ratio": ratio} | {f"{name}_ms": rounded(value * 1e3) for name, value in found.items()},
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
