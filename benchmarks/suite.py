"""The time of the whole test suite, and its slowest tests.

    python -m benchmarks.suite --json

The tests run in `--processes` processes, with pytest-xdist.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.reporting import finish, options, rounded, table

LINE = re.compile(r"([0-9.]+)s call +(\S+)")


def main() -> None:
    """Run the tests and print the results.

    Raises:
        RuntimeError: a test failed.
    """
    given = options(str(__doc__).splitlines()[0], processes=4, tests="tests", slowest=10)
    words = ["-q", "-n", str(given.processes), f"--durations={given.slowest}", given.tests]
    begin = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = rounded(time.perf_counter() - begin)
    if process.returncode:
        raise RuntimeError(f"all tests must pass:\n{process.stdout[-5000:]}")
    slowest = {test: float(took) for took, test in LINE.findall(process.stdout)}
    table([{"test": test, "seconds": took} for test, took in slowest.items()])
    print(f"all tests: {seconds:g} s with {given.processes} processes; goal: at most 180 s")
    finish({"seconds": seconds, "slowest": slowest}, as_json=given.json)


if __name__ == "__main__":
    main()
