"""The speed of a 10 MB upload and how long it blocks the event loop, compared with `json.dumps`.

    python -m benchmarks.upload --json

The photo is sent to a server in its own process: by the SDK from a file and from bytes, and by a script that
encodes the whole photo with Base64 and `json.dumps`. A heartbeat repeatedly sleeps for one millisecond. The
excess of its longest sleep is the time for which the loop was blocked. The row *control* sends nothing, so
its value is due to the machine. *speed (MB/s)* counts the bytes of the photo.
"""

import asyncio
import tempfile
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.reporting import finish, interleaved, medians, options, picture, rounded, table
from benchmarks.server import KLING, serving
from kling_expand import KlingClient, Ratios

INTERVAL = 0.001  # seconds between two heartbeats
SPEED, BLOCKED = "speed (MB/s)", "loop blocked (ms)"
Send = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def ours(url: str, photo: bytes | Path) -> AsyncIterator[Send]:
    """Send through the SDK."""
    async with KlingClient(api_key="key", base_url=url) as kling:
        yield lambda: kling.create(photo, Ratios(right=0.5))


@asynccontextmanager
async def script(url: str, photo: bytes) -> AsyncIterator[Send]:
    """Send with raw aiohttp and `json.dumps`."""
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer key"}) as http:

        async def send() -> None:
            body = {"image": b64encode(photo).decode(), "right_expansion_ratio": 0.5}
            async with http.post(url + KLING, json=body) as response:
                await response.json()

        yield send


@asynccontextmanager
async def control() -> AsyncIterator[Send]:
    """Send nothing for as long as an upload takes."""
    yield lambda: asyncio.sleep(0.1)


async def heartbeat(blocks: list[float]) -> None:
    """Sleep repeatedly and record by how much each sleep exceeded the interval."""
    while True:
        begin = time.perf_counter()
        await asyncio.sleep(INTERVAL)
        blocks.append(time.perf_counter() - begin - INTERVAL)


async def timed(opened: Any, times: int) -> dict[str, float]:
    """Return the medians of several uploads: the seconds, and the longest block in seconds."""
    walls, longest = [], []
    async with opened as send:
        await send()  # start the threads and open the connection
        for _ in range(times):
            blocks: list[float] = []
            beating = asyncio.create_task(heartbeat(blocks))
            await asyncio.sleep(2 * INTERVAL)
            begin = time.perf_counter()
            await send()
            walls.append(time.perf_counter() - begin)
            await asyncio.sleep(2 * INTERVAL)
            beating.cancel()
            longest.append(max(blocks))
    return medians({"seconds": wall, "block": block} for wall, block in zip(walls, longest, strict=True))


def measure(url: str, file: Path, *, times: int, runs: int) -> dict[str, dict[str, float]]:
    """Return the medians over the runs."""
    photo = file.read_bytes()
    ways: dict[str, Callable[[], Any]] = {
        "ours, from a file": partial(ours, url, file),
        "ours, from bytes": partial(ours, url, photo),
        "json.dumps": partial(script, url, photo),
        "control": control,
    }
    candidates = {name: partial(_run, way, times) for name, way in ways.items()}
    found = {name: medians(results) for name, results in interleaved(candidates, runs).items()}
    return {
        name: {SPEED: rounded(len(photo) / 1e6 / row["seconds"]), BLOCKED: rounded(row["block"] * 1e3)}
        for name, row in found.items()
    }


def _run(way: Callable[[], Any], times: int) -> dict[str, float]:
    return asyncio.run(timed(way(), times))


def main() -> None:
    """Measure and print the results."""
    given = options("Speed of an upload and how long it blocks the loop.", megabytes=10.0, times=5, runs=5)
    with tempfile.TemporaryDirectory() as folder, serving(0.0) as server:
        file = Path(folder, "photo.png")
        file.write_bytes(picture(weight=int(given.megabytes * 1e6)))
        found = measure(server.url, file, times=given.times, runs=given.runs)
    found["control"][SPEED] = 0.0
    table([{"way": name} | row for name, row in found.items()])
    print(f"a photo of {given.megabytes:g} MB, medians of {given.runs} runs; goal: at most 5 ms")
    blocked = max(found[name][BLOCKED] for name in ("ours, from a file", "ours, from bytes"))
    finish({"blocked_ms": blocked, "ways": found}, as_json=given.json)


if __name__ == "__main__":
    main()
