"""The CPU time of the SDK's calls compared with a raw aiohttp script that makes the same calls.

    python -m benchmarks.overhead --json
    python -m benchmarks.overhead --fast on --json

One server in its own process answers both, and its request counts prove that both made the same calls. The
script signs one token and sends the same URLs, headers and bodies (the photo as Base64 in JSON) through a
session with the same settings. It reads each response and decodes its JSON. The SDK does the same and also
its own work: deadlines, classification of refusals, validation into models, and preparation of retries. For a
create it also checks and hashes the photo, and manages the id, the slots, the budget and the future.

CPU time is that of the whole process with its threads. A *page* of 30 tasks is read as the poll loop reads
it. A *list* converts such a page to 30 models. A *job* is one create with a photo and six queries. `ratio` is
the ratio of a job.

With ``--fast on`` the extra `fast` is used: both clients run on uvloop, and the SDK encodes Base64 with
pybase64. Otherwise neither is used, even if they are installed.
"""

import asyncio
import gc
import importlib
import json
import sys
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import aiohttp

from benchmarks.reporting import finish, interleaved, medians, options, picture, rounded, table
from benchmarks.server import KLING, Server, serving
from kling_expand import KeyPair, KlingClient, Ratios

ACCESS_KEY, SECRET_KEY = "a-benchmarks-access-key", "a-benchmarks-secret-key-of-32-bytes-and-more"
CONCURRENT = 16
QUERIES = 6  # of one job
Call = Callable[[], Awaitable[Any]]


async def cpu_seconds(call: Call, calls: int) -> float:
    """Return the CPU seconds of one of *calls* calls, some of them concurrent."""
    remaining = iter(range(calls))

    async def worker() -> None:
        for _ in remaining:
            await call()

    gc.collect()
    begin = time.process_time()
    await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
    return (time.process_time() - begin) / calls


async def raw(url: str, photo: bytes, calls: dict[str, int]) -> dict[str, float]:
    """Measure the raw aiohttp script."""
    token = KeyPair(ACCESS_KEY, SECRET_KEY).token()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http:

        async def get(path: str) -> Any:
            async with http.get(url + path, headers=headers) as response:
                return await response.json()

        async def create() -> Any:
            body: dict[str, Any] = {"image": b64encode(photo).decode()}
            body |= {f"{side}_expansion_ratio": 0.0 for side in ("up", "down", "left")}
            body |= {"right_expansion_ratio": 0.5, "n": 1, "external_task_id": f"kx-{uuid4().hex}"}
            data = json.dumps(body, separators=(",", ":")).encode()
            async with http.post(url + KLING, data=data, headers=headers) as response:
                return await response.json()

        task_id = (await create())["data"]["task_id"]
        work: dict[str, Call] = {
            "create": create,
            "query": lambda: get(f"{KLING}/{task_id}"),
            "page": lambda: get(f"{KLING}?pageNum=1&pageSize=30"),
            "list": lambda: get(f"{KLING}?pageNum=1&pageSize=30"),
        }
        return await _each(work, calls)


async def ours(url: str, photo: bytes, calls: dict[str, int]) -> dict[str, float]:
    """Measure the SDK."""
    async with KlingClient(access_key=ACCESS_KEY, secret_key=SECRET_KEY, base_url=url) as kling:
        task_id = (await kling.create(photo, Ratios(right=0.5))).task_id
        # The poll loop knows all tasks of the page, and none has changed.
        known: defaultdict[str, str] = defaultdict(lambda: "succeed")
        reads = kling._poller._reads  # noqa: SLF001 - what the poll loop calls
        work: dict[str, Call] = {
            "create": lambda: kling.create(photo, Ratios(right=0.5)),
            "query": lambda: kling.get(task_id),
            "page": lambda: reads.page(1, 30, known.__getitem__),
            "list": lambda: kling.list(1, 30),
        }
        return await _each(work, calls)


async def _each(work: dict[str, Call], calls: dict[str, int]) -> dict[str, float]:
    found = {}
    for name, call in work.items():
        await cpu_seconds(call, CONCURRENT)  # open the connections and warm up
        found[name] = await cpu_seconds(call, calls[name])
    return found


def event_loop(*, fast: bool) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of the event loop for both clients, and hide pybase64 unless *fast* is true."""
    if fast:
        found: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
        return found
    sys.modules["pybase64"] = None  # type: ignore[assignment]  # so that it counts as not installed
    return asyncio.new_event_loop


def measure(
    server: Server, weight: int, calls: int, runs: int, loop: Callable[[], asyncio.AbstractEventLoop]
) -> dict[str, dict[str, float]]:
    """Return the median CPU seconds of each call of both clients.

    Raises:
        RuntimeError: the two clients did not make the same requests.
    """
    photo = picture(weight=weight)
    counts = {"create": max(calls // 5, CONCURRENT), "query": calls, "page": calls, "list": calls}
    requests = []

    def candidate(client: Callable[[str, bytes, dict[str, int]], Any]) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            server.reset()
            with asyncio.Runner(loop_factory=loop) as runner:
                found: dict[str, float] = runner.run(client(server.url, photo, counts))
            requests.append(server.statistics()["requests"])
            return found

        return once

    found = interleaved({"raw": candidate(raw), "ours": candidate(ours)}, runs)
    if any(each != requests[0] for each in requests):
        raise RuntimeError(f"all runs must make the same requests, got {requests}")
    return {name: medians(results) for name, results in found.items()}


def main() -> None:
    """Measure and print the results."""
    numbers = {"photo": 500_000, "calls": 1000, "runs": 7}
    given = options("CPU time of the calls compared with raw aiohttp.", fast="off", **numbers)
    loop = event_loop(fast=given.fast == "on")
    with serving(0.0) as server:
        found = measure(server, given.photo, given.calls, given.runs, loop)
    for cost in found.values():
        cost["job"] = cost["create"] + QUERIES * cost["query"]
    rows = [
        {
            "call": name,
            "aiohttp CPU (µs)": found["raw"][name] * 1e6,
            "kling_expand CPU (µs)": cost * 1e6,
            "ratio": rounded(cost / found["raw"][name]),
        }
        for name, cost in found["ours"].items()
    ]
    table(rows)
    print(f"medians of {given.runs} runs, a photo of {given.photo} bytes; goal: at most 0.75 for a job")
    ratios = {row["call"]: row["ratio"] for row in rows}
    finish({"ratio": ratios["job"], "calls": ratios}, as_json=given.json)


if __name__ == "__main__":
    main()
