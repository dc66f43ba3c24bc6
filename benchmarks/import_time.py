"""What does ``import kling_expand`` cost beyond ``import aiohttp``? Fresh interpreters, by turns.

    python -m benchmarks.import_time --json

CPU time of a whole interpreter less that of one that imports nothing. The table names what of ours is
imported besides aiohttp, dearest first, by the interpreter's own count (``-X importtime``) of one run.
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

from benchmarks.reporting import by_turns, finish, medians, options, rounded, table

NAMES = {"nothing": "pass", "aiohttp": "import aiohttp", "kling_expand": "import kling_expand"}
LINE = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \| +(\S+)")


@cache
def surroundings() -> dict[str, str]:
    """An environment in which byte code is kept, in a folder of its own, whatever the user has set."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}


def started(code: str) -> float:
    """CPU seconds of an interpreter that runs *code*."""
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, env=surroundings())
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


def measure(runs: int) -> dict[str, float]:
    """Median seconds of each import alone."""

    def contestant(code: str) -> Callable[[], dict[str, float]]:
        return lambda: {"seconds": started(code)}

    started(NAMES["kling_expand"])  # byte code written, files in the cache
    found = by_turns({name: contestant(code) for name, code in NAMES.items()}, runs)
    seconds = {name: medians(rows)["seconds"] for name, rows in found.items()}
    return {name: seconds[name] - seconds["nothing"] for name in ("aiohttp", "kling_expand")}


def dearest(least: float) -> list[dict[str, Any]]:
    """What is imported after aiohttp and takes at least so many milliseconds of its own."""
    code = "import aiohttp, sys; sys.stderr.write('here\\n'); import kling_expand"
    command = [sys.executable, "-X", "importtime", "-c", code]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=surroundings()).stderr
    rows = [
        {"module": name, "ms alone": int(own) / 1e3, "ms in all": int(total) / 1e3}
        for own, total, name in LINE.findall(told.partition("here\n")[2])
        if int(own) / 1e3 >= least
    ]
    return sorted(rows, key=itemgetter("ms alone"), reverse=True)


def main() -> None:
    """Measure, and say it in words or as one JSON object."""
    given = options("What does the import cost beyond aiohttp's?", runs=15, least=0.5)
    found = measure(given.runs)
    ratio = rounded(found["kling_expand"] / found["aiohttp"])
    table(dearest(given.least))
    print(f"aiohttp {found['aiohttp'] * 1e3:.0f} ms, kling_expand {found['kling_expand'] * 1e3:.0f} ms")
    print(f"ratio {ratio} (at most 1.15), medians of {given.runs} runs by turns")
    finish(
        {"ratio": ratio} | {f"{name}_ms": rounded(value * 1e3) for name, value in found.items()},
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
