"""How many jobs a second? The emulator's whole service, 512 jobs in flight, against a script by hand.

    python -m benchmarks.throughput --json
    python -m benchmarks.throughput --jobs 10000 --json

The emulator runs in a process of its own, with room for all; a task takes 0.5 + 2 s. The script creates,
then looks at each task every second; ours is `map`. `ratio` is ours over the script's.
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

from benchmarks.peers import PHOTO, by_hand
from benchmarks.reporting import by_turns, finish, medians, options, rounded, table
from kling_expand import ExpandRequest, KlingClient, Ratios

KEY = "api-key-kling-emulator"
STEP = 1.0  # seconds between the script's looks


@contextmanager
def emulator() -> Iterator[str]:
    """The address of one that refuses nothing."""
    command = [sys.executable, "-m", "kling_expand.emulator", "--engine", "flat"]
    command += ["--slots", "1000000", "--port", "0", "--api-key", KEY]
    with Popen(command, stdout=PIPE, text=True) as process:
        try:
            if process.stdout is None or not (line := process.stdout.readline()):
                raise RuntimeError("the emulator did not start")
            yield line.split()[0]
        finally:
            os.kill(process.pid, signal.SIGTERM)


async def ours(url: str, jobs: int, in_flight: int) -> None:
    """`map`, with its slots as the only limit."""
    request = ExpandRequest(PHOTO, Ratios(right=0.5))
    async with KlingClient(api_key=KEY, base_url=url, max_in_flight=in_flight) as kling:
        async for outcome in kling.map(request for _ in range(jobs)):
            if outcome.error is not None:
                raise outcome.error


async def script(url: str, jobs: int, in_flight: int) -> None:
    """So many workers, each with one job after the other."""
    left = iter(range(jobs))
    headers = {"Authorization": f"Bearer {KEY}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:

        async def worker() -> None:
            for _ in left:
                await by_hand(http, url, STEP)

        await asyncio.gather(*(worker() for _ in range(in_flight)))


def timed(work: Callable[[str, int, int], Coroutine[Any, Any, None]], jobs: int, at: int) -> dict[str, float]:
    """Jobs a second, and CPU milliseconds a job, on an emulator of its own."""
    with emulator() as url:
        cpu, wall = time.process_time(), time.perf_counter()
        asyncio.run(work(url, jobs, at))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"jobs/s": jobs / wall, "CPU ms": cpu / jobs * 1e3}


def main() -> None:
    """Measure, and say it in words or as one JSON object."""
    given = options("How many jobs a second?", jobs=1500, in_flight=512, runs=3)
    contestants = {"ours": partial(timed, ours, given.jobs, given.in_flight)}
    contestants["script"] = partial(timed, script, given.jobs, given.in_flight)
    found = {name: medians(rows) for name, rows in by_turns(contestants, given.runs).items()}
    table([{"client": name} | row for name, row in found.items()])
    ratio = rounded(found["ours"]["jobs/s"] / found["script"]["jobs/s"])
    print(f"{given.jobs} jobs, medians of {given.runs} runs by turns; ratio {ratio} (at least 0.8)")
    finish({"ratio": ratio, "clients": found}, as_json=given.json)


if __name__ == "__main__":
    main()
