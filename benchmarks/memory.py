"""The memory of an open future, of `map` over many jobs, and of a large upload.

    python -m benchmarks.memory --json
    python -m benchmarks.memory --jobs 1000000 --json

All figures are resident memory, including memory that the allocator does not return to the system. Each part
has its own process:

  - *futures*: 50,000 submitted tasks are open. The figure is the memory of one future with its request,
    without the memory of the stub for its task. All futures share one photo.
  - *map*: the growth from the first tenth of the jobs to the highest value, extrapolated to a million jobs.
  - *upload*: the largest growth while a 10 MB photo is sent from a file over a socket.

The first two parts use virtual time and a stub instead of a network. The third sends real bytes. The figures
are medians of `--runs` runs, and the parts take turns.
"""

import asyncio
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.reporting import (
    finish,
    interleaved,
    options,
    peak_memory,
    picture,
    reset_peak_memory,
    resident_memory,
    rounded,
    table,
)
from benchmarks.server import serving
from benchmarks.stub import Service
from kling_expand import ExpandRequest, KlingClient, Ratios
from kling_expand.testing import run

PHOTO = picture()
IN_FLIGHT = 512  # jobs of `map`
MEGABYTES = 10


def client(service: Service, slots: int) -> KlingClient:
    """Return a client whose session is a stub."""
    return KlingClient(
        api_key="key", base_url="http://stub.example", http=service.as_session(), max_in_flight=slots
    )


def requests(number: int) -> Iterator[ExpandRequest]:
    """Yield *number* requests."""
    geometry = Ratios(right=0.5)
    for _ in range(number):
        yield ExpandRequest(PHOTO, geometry)


async def future_bytes(number: int) -> float:
    """Return the bytes per future while *number* futures are open."""
    service = Service(3600.0)
    async with client(service, number + 1) as kling:
        await kling.create(PHOTO, Ratios(right=0.5))
        futures: list[Any] = [None] * number
        gc.collect()
        before = resident_memory()
        for index, request in enumerate(requests(number)):
            futures[index] = kling.submit(request)
            if index % 1000 == 999:
                await asyncio.gather(*(future.accepted() for future in futures[index - 999 : index + 1]))
        gc.collect()
        return (resident_memory() - before - service.size) / number


async def map_growth(number: int) -> float:
    """Return the growth in bytes after the first tenth of *number* jobs."""
    async with client(Service(12.0), IN_FLIGHT) as kling:
        first, highest, ended = 0, 0, 0
        async for outcome in kling.map(requests(number)):
            if outcome.error is not None:
                raise outcome.error
            ended += 1
            if ended % (number // 100) == 0:
                highest = max(highest, resident_memory())
                first = first or (highest if ended >= number // 10 else 0)
        return float(highest - first)


async def _upload_growth(url: str, small: Path, large: Path) -> float:
    async with KlingClient(api_key="key", base_url=url) as kling:
        await kling.create(small, Ratios(right=0.5))  # start the threads and open the connection
        gc.collect()
        reset_peak_memory()
        before = resident_memory()
        await kling.create(large, Ratios(right=0.5))
        return float(peak_memory() - before)


def upload_growth(url: str) -> float:
    """Return the largest growth in bytes while a large photo is sent from a file."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small.png"), Path(folder, "large.png")
        small.write_bytes(picture(weight=1_000_000))
        large.write_bytes(picture(weight=MEGABYTES * 1_000_000))
        return asyncio.run(_upload_growth(url, small, large))


PARTS: dict[str, Callable[[str], float]] = {
    "futures": lambda number: run(future_bytes(int(number))),
    "map": lambda number: run(map_growth(int(number))),
    "upload": upload_growth,
}


def in_process(part: str, argument: object) -> float:
    """Return the result of a part, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", part, str(argument)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print the results, or measure the named part in this process."""
    if len(sys.argv) > 2 and sys.argv[1] in PARTS:
        print(PARTS[sys.argv[1]](sys.argv[2]))
        return
    given = options("Memory of futures, of map and of an upload.", futures=50_000, jobs=100_000, runs=5)
    with serving(0.0) as server:
        arguments = {"futures": given.futures, "map": given.jobs, "upload": server.url}
        parts = {part: partial(in_process, part, value) for part, value in arguments.items()}
        found = {part: rounded(median(figures)) for part, figures in interleaved(parts, given.runs).items()}
    found = {
        "bytes_per_future": found["futures"],
        "map_growth_mb": rounded(found["map"] / given.jobs),  # bytes per job are megabytes per million jobs
        "upload_growth_mb": rounded(found["upload"] / 1e6),
    }
    goals = {
        f"one of {given.futures} futures (bytes)": ("bytes_per_future", 1024),
        f"growth of map over a million jobs, from {given.jobs} (MB)": ("map_growth_mb", 20),
        f"growth by an upload of {MEGABYTES} MB (MB)": ("upload_growth_mb", 2),
    }
    table(
        [{"memory": what, "found": found[key], "goal, at most": most} for what, (key, most) in goals.items()]
    )
    finish(found, as_json=given.json)


if __name__ == "__main__":
    main()
