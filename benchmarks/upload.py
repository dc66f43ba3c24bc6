"""How long does a 10 MB photo hold the event loop, and how fast does it leave? Against `json.dumps`.

    python -m benchmarks.upload --json

The photo goes to a server in a process of its own, from a file and from bytes through ours, and as a
script does it: all of it Base64, all of that JSON. A heartbeat sleeps a millisecond again and again
meanwhile; the longest time it was late is the *hold*. What it misses while nothing is sent at all is the
machine's doing, and stands in the row *control*. *MB/s* counts the photo's own bytes.
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

from benchmarks.reporting import by_turns, finish, medians, options, picture, rounded, table
from benchmarks.server import KLING, serving
from kling_expand import KlingClient, Ratios

BEAT = 0.001  # seconds
Send = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def ours(url: str, photo: bytes | Path) -> AsyncIterator[Send]:
    """Through the SDK."""
    async with KlingClient(api_key="key", base_url=url) as kling:
        yield lambda: kling.create(photo, Ratios(right=0.5))


@asynccontextmanager
async def script(url: str, photo: bytes) -> AsyncIterator[Send]:
    """By hand."""
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer key"}) as http:

        async def send() -> None:
            body = {"image": b64encode(photo).decode(), "right_expansion_ratio": 0.5}
            async with http.post(url + KLING, json=body) as answer:
                await answer.json()

        yield send


@asynccontextmanager
async def control() -> AsyncIterator[Send]:
    """Nothing, for as long as an upload takes."""
    yield lambda: asyncio.sleep(0.1)


async def beat(late: list[float]) -> None:
    """Note each time by how much a sleep was too long."""
    while True:
        begin = time.perf_counter()
        await asyncio.sleep(BEAT)
        late.append(time.perf_counter() - begin - BEAT)


async def timed(opened: Any, times: int) -> dict[str, float]:
    """Seconds of one upload, and the longest hold in the median upload of several."""
    walls, holds = [], []
    async with opened as send:
        await send()  # threads begun, the connection opened
        for _ in range(times):
            late: list[float] = []
            beating = asyncio.create_task(beat(late))
            await asyncio.sleep(2 * BEAT)
            begin = time.perf_counter()
            await send()
            walls.append(time.perf_counter() - begin)
            await asyncio.sleep(2 * BEAT)
            beating.cancel()
            holds.append(max(late))
    return medians({"seconds": wall, "hold": hold} for wall, hold in zip(walls, holds, strict=True))


def measure(url: str, file: Path, *, times: int, runs: int) -> dict[str, dict[str, float]]:
    """Medians over the runs: MB/s and milliseconds."""
    photo = file.read_bytes()
    ways: dict[str, Callable[[], Any]] = {
        "ours, from a file": partial(ours, url, file),
        "ours, from bytes": partial(ours, url, photo),
        "json.dumps": partial(script, url, photo),
        "control": control,
    }
    contestants = {name: partial(_run, way, times) for name, way in ways.items()}
    found = {name: medians(results) for name, results in by_turns(contestants, runs).items()}
    return {
        name: {"MB/s": rounded(len(photo) / 1e6 / row["seconds"]), "hold ms": rounded(row["hold"] * 1e3)}
        for name, row in found.items()
    }


def _run(way: Callable[[], Any], times: int) -> dict[str, float]:
    return asyncio.run(timed(way(), times))


def main() -> None:
    """Measure, and say it in words or as one JSON object."""
    given = options("How long does an upload hold the loop?", megabytes=10.0, times=5, runs=5)
    with tempfile.TemporaryDirectory() as folder, serving(0.0) as server:
        file = Path(folder, "photo.png")
        file.write_bytes(picture(weight=int(given.megabytes * 1e6)))
        found = measure(server.url, file, times=given.times, runs=given.runs)
    found["control"]["MB/s"] = 0.0
    table([{"way": name} | row for name, row in found.items()])
    print(f"a photo of {given.megabytes:g} MB, medians of {given.runs} runs by turns; at most 5 ms")
    hold = max(found[name]["hold ms"] for name in ("ours, from a file", "ours, from bytes"))
    finish({"hold_ms": hold, "ways": found}, as_json=given.json)


if __name__ == "__main__":
    main()
