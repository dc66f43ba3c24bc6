"""The throughput of `map` on the emulator with 512 jobs in flight, compared with a raw aiohttp script.

    python -m benchmarks.throughput --json
    python -m benchmarks.throughput --jobs 10000 --json

The emulator runs in its own process with slots for all jobs. A task waits for 0.5 s and is processed for 2 s.
The script polls each task every second. `ratio` is the throughput of `map` divided by the script's.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from subprocess import PIPE, Popen
from typing import Any

import aiohttp

from benchmarks.peers import PHOTO, raw_job
from benchmarks.reporting import finish, interleaved, medians, options, rounded, table
from kling_expand import ExpandRequest, KlingClient, Ratios

KEY = "api-key-kling-emulator"
INTERVAL = 1.0  # seconds between two polls of the script


@contextmanager
def emulator() -> Iterator[str]:
    """Run an emulator that refuses nothing and yield its address.

    Raises:
        RuntimeError: the emulator ended during its start.
    """
    command = [sys.executable, "-m", "kling_expand.emulator", "--engine", "flat"]
    command += ["--slots", "1000000", "--port", "0", "--api-key", KEY]
    with Popen(command, stdout=PIPE, text=True) as process:
        try:
            if process.stdout is None or not (line := process.stdout.readline()):
                raise RuntimeError("the emulator must print its address, but it ended; see its error above")
            yield line.split()[0]
        finally:
            os.kill(process.pid, signal.SIGTERM)


async def ours(url: str, jobs: int, in_flight: int) -> None:
    """Run all jobs with `map`."""
    request = ExpandRequest(PHOTO, Ratios(right=0.5))
    async with KlingClient(api_key=KEY, base_url=url, max_in_flight=in_flight) as kling:
        async for outcome in kling.map(request for _ in range(jobs)):
            if outcome.error is not None:
                raise outcome.error


async def script(url: str, jobs: int, in_flight: int) -> None:
    """Run all jobs with *in_flight* workers, each with one job at a time."""
    remaining = iter(range(jobs))
    headers = {"Authorization": f"Bearer {KEY}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:

        async def worker() -> None:
            for _ in remaining:
                await raw_job(http, url, INTERVAL)

        await asyncio.gather(*(worker() for _ in range(in_flight)))


Work = Callable[[str, int, int], Coroutine[Any, Any, None]]


def timed(work: Work, jobs: int, in_flight: int) -> dict[str, float]:
    """Measure a client on a new emulator."""
    with emulator() as url:
        cpu, wall = time.process_time(), time.perf_counter()
        asyncio.run(work(url, jobs, in_flight))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"jobs per second": jobs / wall, "CPU per job (ms)": cpu / jobs * 1e3}


def main() -> None:
    """Measure and print the results."""
    given = options("Throughput compared with a raw aiohttp script.", jobs=1500, in_flight=512, runs=3)
    candidates = {"ours": partial(timed, ours, given.jobs, given.in_flight)}
    candidates["script"] = partial(timed, script, given.jobs, given.in_flight)
    found = {name: medians(rows) for name, rows in interleaved(candidates, given.runs).items()}
    table([{"client": name} | row for name, row in found.items()])
    ratio = rounded(found["ours"]["jobs per second"] / found["script"]["jobs per second"])
    print(f"{given.jobs} jobs, medians of {given.runs} runs; ratio {ratio} (goal: at least 0.8)")
    finish({"ratio": ratio, "clients": found}, as_json=given.json)


if __name__ == "__main__":
    main()
