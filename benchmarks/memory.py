"""How much does waiting hold? Bytes of an open future, growth while a million jobs pass, and of an upload.

    python -m benchmarks.memory --json
    python -m benchmarks.memory --jobs 1000000 --json

What the process holds (resident memory, the allocator's waste included), each in a process of its own:
  - *future*: 100,000 submitted tasks that all wait, everything that is kept for one of them counted,
    its request too; the photo is one for all.
  - *map*: how far memory grows from the first tenth of the jobs to its highest point.
  - *upload*: how far it grows at most while a 10 MB photo is sent from a file over a socket.
For the first two the network is a stub and time is virtual; the third sends real bytes.
"""

import asyncio
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.reporting import finish, medians, options, picture, resident, table
from benchmarks.server import serving
from benchmarks.stub import Service
from kling_expand import ExpandRequest, KlingClient, Ratios
from kling_expand.testing import run

PHOTO = picture()
AHEAD = 512  # of map's jobs in flight
MEGABYTES = 10


def client(service: Service, slots: int) -> KlingClient:
    """One that speaks to a stub."""
    return KlingClient(
        api_key="key", base_url="http://stub.example", http=service.as_session(), max_in_flight=slots
    )


def requests(number: int) -> Iterator[ExpandRequest]:
    """One after another."""
    geometry = Ratios(right=0.5)
    for _ in range(number):
        yield ExpandRequest(PHOTO, geometry)


async def futures(number: int) -> float:
    """Bytes for each of so many open futures."""
    async with client(Service(3600.0), number + 1) as kling:
        await kling.create(PHOTO, Ratios(right=0.5))
        held = [None] * number
        gc.collect()
        before = resident()
        waiting: list[Any] = held
        for index, request in enumerate(requests(number)):
            waiting[index] = kling.submit(request)
            if index % 1000 == 999:
                await asyncio.gather(*(future.accepted() for future in waiting[index - 999 : index + 1]))
        gc.collect()
        return (resident() - before) / number


async def mapped(number: int) -> float:
    """Bytes by which memory grows at most after the first tenth of so many jobs."""
    async with client(Service(12.0), AHEAD) as kling:
        first, most, seen = 0, 0, 0
        async for outcome in kling.map(requests(number)):
            if outcome.error is not None:
                raise outcome.error
            seen += 1
            if seen % (number // 100) == 0:
                most = max(most, resident())
                first = first or (most if seen >= number // 10 else 0)
        return float(most - first)


async def uploaded(url: str, small: Path, large: Path) -> float:
    """Bytes by which memory grows at most while the *large* photo is sent."""
    async with KlingClient(api_key="key", base_url=url) as kling:
        await kling.create(small, Ratios(right=0.5))  # threads begun, the connection opened
        gc.collect()
        forget_highest()
        before = resident()
        await kling.create(large, Ratios(right=0.5))
        return float(highest() - before)


def upload(url: str) -> float:
    """The same, with photos in files."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small.png"), Path(folder, "large.png")
        small.write_bytes(picture(weight=1_000_000))
        large.write_bytes(picture(weight=MEGABYTES * 1_000_000))
        return asyncio.run(uploaded(url, small, large))


def forget_highest() -> None:
    """Let the highest point of memory count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def highest() -> int:
    """Bytes of memory held at the highest point."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell")


PARTS: dict[str, Callable[[str], float]] = {
    "futures": lambda number: run(futures(int(number))),
    "mapped": lambda number: run(mapped(int(number))),
    "uploaded": upload,
}


def alone(part: str, argument: object) -> float:
    """What a part finds in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", part, str(argument)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, and say it in words or as one JSON object; or one part, for a process of its own."""
    if len(sys.argv) > 2 and sys.argv[1] in PARTS:
        print(PARTS[sys.argv[1]](sys.argv[2]))
        return
    given = options("How much does waiting hold?", futures=100_000, jobs=100_000, runs=5)
    with serving(0.0) as server:
        uploads = medians({"upload": alone("uploaded", server.url)} for _ in range(given.runs))
    found = {
        "bytes_per_future": alone("futures", given.futures),
        "map_growth_mb": alone("mapped", given.jobs) / 1e6,
        "upload_growth_mb": uploads["upload"] / 1e6,
    }
    table(
        [
            {
                "what": f"bytes of one of {given.futures} futures",
                "found": found["bytes_per_future"],
                "at most": 1536,
            },
            {
                "what": f"MB that {given.jobs} jobs of map grow by",
                "found": found["map_growth_mb"],
                "at most": 20,
            },
            {
                "what": f"MB that an upload of {MEGABYTES} MB grows by",
                "found": found["upload_growth_mb"],
                "at most": 2,
            },
        ]
    )
    finish(found, as_json=given.json)


if __name__ == "__main__":
    main()
