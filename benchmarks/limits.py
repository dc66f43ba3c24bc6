"""Adaptive slots compared with fixed semaphores on a changing limit, and with an oracle after a recovery.

    python -m benchmarks.limits --json

Limits: the emulator's account has 37 slots, then 12, then 50, and no client knows the limit. Ours may use up
to 100 slots and learns from refusals. Each semaphore has a fixed size and retries a refused create with
exponential backoff, up to 20 s. The same poll loop informs all clients when tasks end. The median duration of
a task is 12 s (log-normal, sigma 0.35). *busy* is the share of the account's slots in use while jobs wait.
The first `--settling` seconds after each change of the limit do not count. *refused* is the share of all
creates that were refused.

Recoveries: 60 jobs of 30 s run on an account of 9 slots, which other tasks hold at first. The oracle knows at
every moment which slots are free, and starts a job in each without delay.

Time is virtual, but every byte crosses a socket.
"""

import asyncio
import heapq
import logging
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from itertools import count, islice
from random import Random
from statistics import fmean
from typing import Any

import aiohttp
from attrs import define, field, frozen

from benchmarks.reporting import finish, interleaved, medians, options, picture, rounded, table
from kling_expand import Dialect, ExpandRequest, KlingClient, Ratios, TaskFuture
from kling_expand.api.codec import create_path
from kling_expand.api.session import retry_waits
from kling_expand.emulator import Emulator
from kling_expand.testing import emulated, loop_clock, run

LIMITS = (37, 12, 50)
ALLOWED = 100  # slots that our client may use at most
SEMAPHORES = (12, 37, 50)
SLOTS = 9  # of the account in the recoveries
JOBS = 60
JOB_SECONDS = 30.0
BURST_SECONDS = 5.0
LONG_SECONDS = 6 * 3600.0
PHOTO = picture()
PHOTO_TEXT = b64encode(PHOTO).decode()

Row = dict[str, float]


# ---------------------------------------------------------------------------- limits


@define
class Usage:
    """The share of the account's slots in use in every second of virtual time, limit by limit."""

    emulator: Emulator
    seconds: float  # duration of each limit
    settling: int  # seconds after each change that do not count
    busy: list[list[float]] = field(factory=list)

    async def record(self) -> None:
        """Apply the limits one after another, and record the use of each."""
        for limit in LIMITS:
            self.emulator.slots = limit
            shares: list[float] = []
            self.busy.append(shares)
            while len(shares) < self.seconds:
                await asyncio.sleep(1.0)
                shares.append(min(1.0, self.emulator.account.used_slots / limit))

    def row(self) -> Row:
        """Return the shares, and the seconds until nine tenths of each limit were in use."""
        account = self.emulator.account
        steady = [fmean(shares[self.settling :]) for shares in self.busy]
        row = {f"busy at {limit}": share for limit, share in zip(LIMITS, steady, strict=True)}
        row |= {"busy": fmean(steady), "refused": account.refusals[1303] / account.requests["create"]}
        for limit, shares in zip(LIMITS, self.busy, strict=True):
            full = next((age for age, share in enumerate(shares, 1) if share >= 0.9), len(shares))
            row[f"seconds to {limit}"] = float(full)
        return row | {"tasks": float(len(account.tasks))}


Work = Callable[[Emulator, KlingClient, Iterator[ExpandRequest]], Coroutine[Any, Any, None]]


async def adaptive(_emulator: Emulator, kling: KlingClient, requests: Iterable[ExpandRequest]) -> None:
    """Run all jobs with `map`, as a user would."""
    async for outcome in kling.map(requests):
        if outcome.error is not None:
            raise outcome.error


@frozen
class FixedSemaphore:
    """A script with a semaphore of this many *slots*, of which a task takes one for each picture."""

    slots: int

    async def __call__(
        self, emulator: Emulator, kling: KlingClient, requests: Iterator[ExpandRequest]
    ) -> None:
        """Create each task by hand, then wait for it."""
        places = asyncio.Semaphore(self.slots)
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        session = aiohttp.ClientSession(emulator.url, headers=headers)
        async with session as http, asyncio.TaskGroup() as group:
            for request in requests:
                for _ in range(request.n):
                    await places.acquire()
                group.create_task(self._follow(http, places, kling, request))

    async def _follow(
        self,
        http: aiohttp.ClientSession,
        places: asyncio.Semaphore,
        kling: KlingClient,
        request: ExpandRequest,
    ) -> None:
        for pause in retry_waits(Random(request.external_task_id), first=1.0):
            answer = await _post(http, request)
            if answer["code"] == 0:
                await kling.attach(answer["data"]["task_id"])
                break
            await asyncio.sleep(pause)
        for _ in range(request.n):
            places.release()


async def _post(http: aiohttp.ClientSession, request: ExpandRequest) -> Any:
    body = {"image": PHOTO_TEXT, "n": request.n, "right_expansion_ratio": 0.5}
    body |= {f"{side}_expansion_ratio": 0.0 for side in ("up", "down", "left")}
    async with http.post(create_path(Dialect.EDITING), json=body) as answer:
        return await answer.json()


def endless(most: int, seed: int, prefix: str = "job") -> Iterator[ExpandRequest]:
    """Yield requests of one to *most* pictures each."""
    rng = Random(seed)
    for number in count():
        pictures = rng.randint(1, most)
        yield ExpandRequest(PHOTO, Ratios(right=0.5), n=pictures, external_task_id=f"{prefix}-{number}")


async def measure_client(work: Work, *, seconds: float, settling: int, most: int, seed: int) -> Row:
    """Measure one client on one account."""
    account = {"queue_seconds": 2.0, "work_seconds": 10.0, "jitter": 0.35, "seed": seed}
    async with emulated({"max_in_flight": ALLOWED, "rng": Random(seed)}, **account) as (emulator, kling):
        usage = Usage(emulator, seconds, settling)
        working = asyncio.create_task(work(emulator, kling, endless(most, seed)))
        recording = asyncio.create_task(usage.record())
        await asyncio.wait({working, recording}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()  # the work never ends, so this raises its error
        row = usage.row()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    return row


def measure(seconds: float, settling: int, most: int, runs: int) -> dict[str, Row]:
    """Return the medians over the runs, each with a seed of its own."""
    works: dict[str, Work] = {"ours": adaptive}
    works |= {f"semaphore of {slots}": FixedSemaphore(slots) for slots in SEMAPHORES}

    def candidate(work: Work) -> Callable[[], Row]:
        seeds = count(1)
        return lambda: run(
            measure_client(work, seconds=seconds, settling=settling, most=most, seed=next(seeds))
        )

    found = interleaved({name: candidate(work) for name, work in works.items()}, runs)
    return {name: medians(results) for name, results in found.items()}


# ---------------------------------------------------------------------------- recoveries


def oracle(free_at: Sequence[float]) -> float:
    """Return when the last job ends, if each slot is free from a given moment on."""
    heap = list(free_at)
    heapq.heapify(heap)
    return max(heapq.heapreplace(heap, heap[0] + JOB_SECONDS) + JOB_SECONDS for _ in range(JOBS))


async def _hold(emulator: Emulator, kling: KlingClient, n: int, seconds: float) -> list[TaskFuture]:
    """Create *n* tasks that run for *seconds*; the jobs created after them run for `JOB_SECONDS`."""
    emulator.work_seconds = seconds
    futures = [kling.submit(request) for request in islice(endless(1, 0, f"held-{seconds:g}"), n)]
    for future in futures:
        await future.accepted()
    emulator.work_seconds = JOB_SECONDS
    return futures


Start = Callable[[Emulator, KlingClient, KlingClient], Coroutine[Any, Any, Sequence[float]]]


async def burst(emulator: Emulator, _kling: KlingClient, other: KlingClient) -> Sequence[float]:
    """Let another program take 8 of 9 slots."""
    await _hold(emulator, other, SLOTS - 1, BURST_SECONDS)
    return [0.0] + [BURST_SECONDS] * (SLOTS - 1)


async def restart(emulator: Emulator, kling: KlingClient, other: KlingClient) -> Sequence[float]:
    """Attach nine tasks that an earlier run left at the service."""
    for future in await _hold(emulator, other, SLOTS, JOB_SECONDS):
        kling.attach(str(future.task_id))
    return [JOB_SECONDS] * SLOTS


async def long_task(emulator: Emulator, kling: KlingClient, other: KlingClient) -> Sequence[float]:
    """Run one long task of ours, and let another program take all other slots."""
    await _hold(emulator, kling, 1, LONG_SECONDS)
    await _hold(emulator, other, SLOTS - 1, BURST_SECONDS)
    return [BURST_SECONDS] * (SLOTS - 1)


RECOVERIES: dict[str, Start] = {
    "burst of 5 s by another program": burst,
    "nine tasks attached after a restart": restart,
    "one task of 6 h, burst of 5 s": long_task,
}


async def recover(start: Start) -> Row:
    """Measure how long all jobs take after *start*, and how long they take with the oracle."""
    account = {"slots": SLOTS, "queue_seconds": 0.0, "jitter": 0.0}
    async with emulated({"max_in_flight": SLOTS}, **account) as (emulator, kling):
        given: dict[str, Any] = {"api_key": emulator.api_key, "base_url": emulator.url, "clock": loop_clock}
        async with KlingClient(rng=Random(2), **given) as other:
            free_at = await start(emulator, kling, other)
            begin = loop_clock()
            await adaptive(emulator, kling, islice(endless(1, 0), JOBS))
            seconds, best = loop_clock() - begin, oracle(free_at)
        refused = emulator.account.refusals[1303] / emulator.account.requests["create"]
    row = {"seconds": seconds, "oracle (s)": best, "ratio": seconds / best, "refused": refused}
    return {name: rounded(value) for name, value in row.items()}


def main() -> None:
    """Measure, and print tables or one JSON object."""
    logging.getLogger("kling_expand").setLevel(logging.ERROR)  # tasks are still running at the end of a run
    numbers = {"seconds": 360.0, "settling": 120, "pictures": 1, "runs": 5, "recoveries": 3}
    given = options("Adaptive slots on a changing limit", **numbers)
    recoveries = {name: run(recover(start)) for name, start in islice(RECOVERIES.items(), given.recoveries)}
    table([{"recovery": name} | row for name, row in recoveries.items()])
    print("goal: ratio at most 1.3\n")
    found = measure(given.seconds, given.settling, given.pictures, given.runs)
    table([{"client": name} | row for name, row in found.items()])
    print(f"medians of {given.runs} runs, {given.seconds:g} s per limit; goal: busy >= 0.9, refused < 0.05")
    worst = max(row["ratio"] for row in recoveries.values())
    finish(
        found["ours"] | {"worst recovery": worst, "recoveries": recoveries, "clients": found},
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
