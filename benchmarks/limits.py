"""Who finds a limit nobody tells? Our slots against fixed semaphores, on an account that changes its mind.

    python -m benchmarks.limits --json

The emulator's account has 37 slots, then 12, then 50, and no client is told. Ours is allowed 100 and
learns from refusals; each semaphore is a number somebody guessed, and whoever is refused waits as a
careful script would: twice as long each time, up to 20 s. Everybody hears of ends by the same poll loop.
A task takes 12 s in the median (log-normal, sigma 0.35). Time is virtual, every byte crosses a socket.

*busy* is the share of the account's slots at work while there is more to do than it takes, once each
limit has stood for 120 s; *refused* the share of all creates that were refused, from the first on.
"""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from random import Random
from statistics import fmean
from typing import Any

import aiohttp
from attrs import define, field, frozen

from benchmarks.reporting import by_turns, finish, medians, options, picture, table
from kling_expand import Dialect, ExpandRequest, KlingClient, Ratios
from kling_expand.api.codec import create_path
from kling_expand.api.retry import retry_waits
from kling_expand.emulator import Emulator
from kling_expand.testing import emulated, run

LIMITS = (37, 12, 50)
ALLOWED = 100  # slots ours may use at most
GUESSES = (12, 37, 50)
SETTLING = 120  # seconds a limit stands before it counts
PHOTO = picture()
PHOTO_TEXT = b64encode(PHOTO).decode()


@define
class Watch:
    """How busy the account was in every second of virtual time, limit by limit."""

    emulator: Emulator
    lasts: float
    busy: list[list[float]] = field(factory=list)

    async def follow(self) -> None:
        """Change the limit and look on; it takes as long as there are limits."""
        for limit in LIMITS:
            self.emulator.slots = limit
            seconds: list[float] = []
            self.busy.append(seconds)
            while len(seconds) < self.lasts:
                await asyncio.sleep(1.0)
                seconds.append(min(1.0, self.emulator.account.used_slots / limit))

    def found(self) -> dict[str, float]:
        """Shares, and how long each limit took to be filled to nine tenths."""
        account = self.emulator.account
        steady = [fmean(seconds[SETTLING:]) for seconds in self.busy]
        found = {f"busy at {limit}": share for limit, share in zip(LIMITS, steady, strict=True)}
        found |= {"busy": fmean(steady), "refused": account.refusals[1303] / account.requests["create"]}
        for limit, seconds in zip(LIMITS, self.busy, strict=True):
            full = next((age for age, share in enumerate(seconds, 1) if share >= 0.9), len(seconds))
            found[f"seconds to {limit}"] = float(full)
        return found | {"tasks": float(len(account.tasks))}


Work = Callable[[Emulator, KlingClient, Iterator[ExpandRequest]], Coroutine[Any, Any, None]]


async def learned(_emulator: Emulator, kling: KlingClient, requests: Iterator[ExpandRequest]) -> None:
    """Everything through `map`, as a user would."""
    async for outcome in kling.map(requests):
        if outcome.error is not None:
            raise outcome.error


@frozen
class Guess:
    """A script with a semaphore of so many slots, of which a task takes as many as it has pictures."""

    slots: int

    async def __call__(
        self, emulator: Emulator, kling: KlingClient, requests: Iterator[ExpandRequest]
    ) -> None:
        """Each task is submitted by hand and then waited for."""
        places = asyncio.Semaphore(self.slots)
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        session = aiohttp.ClientSession(emulator.url, headers=headers)
        async with session as http, asyncio.TaskGroup() as group:
            for request in requests:
                for _ in range(request.n):
                    await places.acquire()
                group.create_task(self._see_through(http, places, kling, request))

    async def _see_through(
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


def requests(most: int, seed: int) -> Iterator[ExpandRequest]:
    """More than anybody can take, of one to *most* pictures each."""
    rng = Random(seed)
    for number in count():
        pictures = rng.randint(1, most)
        yield ExpandRequest(PHOTO, Ratios(right=0.5), n=pictures, external_task_id=f"job-{number}")


async def contest(work: Work, *, lasts: float, most: int, seed: int) -> dict[str, float]:
    """One contestant on one account."""
    account = {"queue_seconds": 2.0, "work_seconds": 10.0, "jitter": 0.35, "seed": seed}
    async with emulated({"max_in_flight": ALLOWED, "rng": Random(seed)}, **account) as (emulator, kling):
        watch = Watch(emulator, lasts)
        working = asyncio.create_task(work(emulator, kling, requests(most, seed)))
        watching = asyncio.create_task(watch.follow())
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()  # it has no end, so this raises what broke it
        found = watch.found()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    return found


def measure(lasts: float, most: int, runs: int) -> dict[str, dict[str, float]]:
    """Medians over the runs, each with a seed of its own."""
    works: dict[str, Work] = {"ours": learned}
    works |= {f"semaphore of {slots}": Guess(slots) for slots in GUESSES}

    def contestant(work: Work) -> Callable[[], dict[str, float]]:
        seeds = count(1)
        return lambda: run(contest(work, lasts=lasts, most=most, seed=next(seeds)))

    found = by_turns({name: contestant(work) for name, work in works.items()}, runs)
    return {name: medians(results) for name, results in found.items()}


def main() -> None:
    """Measure, and say it in words or as one JSON object."""
    given = options("Who finds a limit nobody tells?", seconds=360.0, pictures=1, runs=5)
    found = measure(given.seconds, given.pictures, given.runs)
    table([{"client": name} | row for name, row in found.items()])
    print(
        f"medians of {given.runs} runs of {given.seconds:g} s a limit; at least 0.9 busy, under 0.05 refused"
    )
    finish(found["ours"] | {"clients": found}, as_json=given.json)


if __name__ == "__main__":
    main()
