"""What does a call cost beyond aiohttp's own work? CPU seconds, against raw aiohttp making the same calls.

    python -m benchmarks.overhead --json

One server in a process of its own answers both, and its books prove that both asked the same. The raw
script signs one token, sends the same URLs, headers and bodies (Base64 of the photo in JSON) over a
session set up alike, reads each answer and decodes its JSON. Ours does that and what it is for: deadlines,
refusals told apart, answers checked and made values, retries ready, and for a create the photo's
rules and digest, its id, its slots, its budget and its future. CPU is that of the whole process, threads
too. `ratio` is that of a whole job: its create with a photo, and its reads. A *page* of 30 tasks is read as
the poll loop reads it, a *list* is made into 30 values.
"""

import asyncio
import gc
import json
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import aiohttp

from benchmarks.reporting import by_turns, finish, medians, options, picture, rounded, table
from benchmarks.server import KLING, Server, serving
from kling_expand import KeyPair, KlingClient, Ratios

ACCESS_KEY, SECRET_KEY = "a-benchmarks-access-key", "a-benchmarks-secret-key-of-32-bytes-and-more"
AT_ONCE = 16
READS = 6  # of a job that is alone
Call = Callable[[], Awaitable[Any]]


async def seconds(call: Call, calls: int) -> float:
    """CPU seconds of one of so many calls, some at once."""
    left = iter(range(calls))

    async def worker() -> None:
        for _ in left:
            await call()

    gc.collect()
    begin = time.process_time()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return (time.process_time() - begin) / calls


async def raw(url: str, photo: bytes, calls: dict[str, int]) -> dict[str, float]:
    """What a script by hand takes."""
    token = KeyPair(ACCESS_KEY, SECRET_KEY).token()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http:

        async def ask(path: str) -> Any:
            async with http.get(url + path, headers=headers) as answer:
                return await answer.json()

        async def create() -> Any:
            body: dict[str, Any] = {"image": b64encode(photo).decode()}
            body |= {f"{side}_expansion_ratio": 0.0 for side in ("up", "down", "left")}
            body |= {"right_expansion_ratio": 0.5, "n": 1, "external_task_id": f"kx-{uuid4().hex}"}
            data = json.dumps(body, separators=(",", ":")).encode()
            async with http.post(url + KLING, data=data, headers=headers) as answer:
                return await answer.json()

        task_id = (await create())["data"]["task_id"]
        work: dict[str, Call] = {
            "create": create,
            "query": lambda: ask(f"{KLING}/{task_id}"),
            "page": lambda: ask(f"{KLING}?pageNum=1&pageSize=30"),
            "list": lambda: ask(f"{KLING}?pageNum=1&pageSize=30"),
        }
        return await _each(work, calls)


async def ours(url: str, photo: bytes, calls: dict[str, int]) -> dict[str, float]:
    """What the SDK takes."""
    async with KlingClient(access_key=ACCESS_KEY, secret_key=SECRET_KEY, base_url=url) as kling:
        task_id = (await kling.create(photo, Ratios(right=0.5))).task_id
        # Every task is ours, and there is nothing new of any.
        ended: defaultdict[str, str] = defaultdict(lambda: "succeed")
        reads = kling._poller._reads  # noqa: SLF001 - what the poll loop asks
        work: dict[str, Call] = {
            "create": lambda: kling.create(photo, Ratios(right=0.5)),
            "query": lambda: kling.get(task_id),
            "page": lambda: reads.page(1, 30, ended.__getitem__),
            "list": lambda: kling.list(1, 30),
        }
        return await _each(work, calls)


async def _each(work: dict[str, Call], calls: dict[str, int]) -> dict[str, float]:
    found = {}
    for name, call in work.items():
        await seconds(call, AT_ONCE)  # connections opened, code warmed
        found[name] = await seconds(call, calls[name])
    return found


def measure(server: Server, weight: int, calls: int, runs: int) -> dict[str, dict[str, float]]:
    """Median CPU seconds of each call, of both."""
    photo = picture(weight=weight)
    counts = {"create": max(calls // 5, AT_ONCE), "query": calls, "page": calls, "list": calls}
    asked = []

    def contestant(
        play: Callable[[str, bytes, dict[str, int]], Any],
    ) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            server.forget()
            found: dict[str, float] = asyncio.run(play(server.url, photo, counts))
            asked.append(server.account()["requests"])
            return found

        return once

    found = by_turns({"raw": contestant(raw), "ours": contestant(ours)}, runs)
    if any(account != asked[0] for account in asked):
        raise RuntimeError(f"not the same calls: {asked}")
    return {name: medians(results) for name, results in found.items()}


def job(cost: dict[str, float]) -> float:
    """A job that is alone: one create and its reads."""
    return cost["create"] + READS * cost["query"]


def main() -> None:
    """Measure, and say it in words or as one JSON object."""
    given = options("What does a call cost beyond aiohttp's own work?", photo=500_000, calls=1000, runs=7)
    with serving(0.0) as server:
        found = measure(server, given.photo, given.calls, given.runs)
    rows = [
        {
            "call": name,
            "raw µs": found["raw"][name] * 1e6,
            "ours µs": cost * 1e6,
            "ratio": rounded(cost / found["raw"][name]),
        }
        for name, cost in found["ours"].items()
    ]
    ratio = rounded(job(found["ours"]) / job(found["raw"]))
    rows.append(
        {
            "call": "job",
            "raw µs": job(found["raw"]) * 1e6,
            "ours µs": job(found["ours"]) * 1e6,
            "ratio": ratio,
        }
    )
    table(rows)
    print(f"medians of {given.runs} runs by turns; a photo of {given.photo} bytes; at most 1.25 for a job")
    finish({"ratio": ratio, "calls": {row["call"]: row["ratio"] for row in rows}}, as_json=given.json)


if __name__ == "__main__":
    main()
