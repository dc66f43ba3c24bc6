"""A script that expands many photos and is restarted after each crash, with or without the SDK.

    python -m benchmarks.chaos_worker {sdk|naive} URL FOLDER JOBS SLOTS [options]

`sdk` uses `kling.map` with a journal, or `kling.expand` for jobs of several passes. `naive` is a typical
script without an SDK: it retries after each error, polls, saves, and skips files that exist. The exit code is
0 if the script reports no failure. With ``--clock-back`` the clock of the SDK is that many seconds slow.
"""

import argparse
import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from kling_expand import ExpandRequest, KlingClient, KlingError, Ratios, ToAspect
from kling_expand.jobs.future import ExpandResult

PATH = "/v1/images/editing/expand"
SAVES = 32  # concurrent downloads
ATTEMPTS = 10  # of each call of the naive script


def prompt(number: int) -> str:
    """Return the prompt of a job, which identifies its tasks at the service."""
    return f"chaos job {number}"


def picture(folder: Path, number: int) -> Path:
    """Return the path of a job's picture."""
    return folder / "out" / f"job-{number:06}.png"


def photo(folder: Path) -> Path:
    """Return the path of the photo of all jobs."""
    return folder / "photo.png"


# ---------------------------------------------------------------------------- with the SDK


async def with_sdk(given: argparse.Namespace) -> int:
    """Expand and save all jobs with the SDK and return the number of failures."""
    folder: Path = given.folder
    geometry = Ratios(right=2.0) if given.passes == 1 else ToAspect("16:9")
    requests = (
        ExpandRequest(photo(folder), geometry, prompt=prompt(number), key=f"job-{number}")
        for number in range(given.jobs)
    )
    failures = 0
    semaphore = asyncio.Semaphore(SAVES)

    async def save(result: ExpandResult, target: Path) -> None:
        nonlocal failures
        try:
            await result.save(target)
        except KlingError as error:
            failures += 1
            _report(target.name, error)
        finally:
            semaphore.release()

    async with (
        KlingClient(
            base_url=given.url,
            journal=folder / "run.db",
            run="chaos",
            max_in_flight=given.slots,
            create_timeout=given.create_timeout,
            clock=lambda: time.time() - given.clock_back,
        ) as kling,
        asyncio.TaskGroup() as saves,
    ):
        if given.passes > 1:
            return await _in_passes(kling, requests, given)
        async for outcome in kling.map(requests):
            if outcome.result is None:
                failures += 1
                _report(f"job {outcome.index}", outcome.error)
            elif not outcome.result.files:
                await semaphore.acquire()
                saves.create_task(save(outcome.result, picture(folder, outcome.index)))
    return failures


async def _in_passes(kling: KlingClient, requests: Iterable[ExpandRequest], given: argparse.Namespace) -> int:
    """Expand and save jobs of several passes and return the number of failures."""
    semaphore = asyncio.Semaphore(given.slots)

    async def job(number: int, request: ExpandRequest) -> None:
        async with semaphore:
            result = await kling.expand(request, passes=given.passes)
            if not result.files:
                await result.save(picture(given.folder, number))

    jobs = [job(number, request) for number, request in enumerate(requests)]
    errors = [found for found in await asyncio.gather(*jobs, return_exceptions=True) if found]
    for error in errors:
        _report("a job", error)
    return len(errors)


# ---------------------------------------------------------------------------- without the SDK


async def naive(given: argparse.Namespace) -> int:
    """Expand and save all jobs without the SDK and return the number of failures."""
    folder: Path = given.folder
    image = base64.b64encode(photo(folder).read_bytes()).decode()
    token = {"Authorization": f"Bearer {os.environ['KLING_API_KEY']}"}
    semaphore = asyncio.Semaphore(given.slots)

    async with aiohttp.ClientSession(base_url=given.url, headers=token) as http:

        async def call(method: str, path: str, **options: Any) -> dict[str, Any]:
            async with http.request(method, path, **options) as response:
                response.raise_for_status()
                data: dict[str, Any] = (await response.json())["data"]
                return data

        async def fetch(link: str) -> bytes:
            async with http.get(link) as response:
                response.raise_for_status()
                return await response.read()

        async def expand(number: int) -> None:
            body = {"image": image, "right_expansion_ratio": 2, "prompt": prompt(number)}
            body |= {"up_expansion_ratio": 0, "down_expansion_ratio": 0, "left_expansion_ratio": 0}
            async with semaphore:
                task = await _retry(lambda: call("POST", PATH, json=body))
                read = partial(call, "GET", f"{PATH}/{task['task_id']}")
                while task["task_status"] not in {"succeed", "failed"}:
                    await asyncio.sleep(1)
                    task = await _retry(read)
            data = await _retry(lambda: fetch(task["task_result"]["images"][0]["url"]))
            picture(folder, number).write_bytes(data)

        missing = [number for number in range(given.jobs) if not picture(folder, number).exists()]
        errors = await asyncio.gather(*map(expand, missing), return_exceptions=True)
    for number, error in zip(missing, errors, strict=True):
        if error is not None:
            _report(f"job {number}", error)
    return sum(error is not None for error in errors)


async def _retry(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat a call until it succeeds."""
    for attempt in range(ATTEMPTS):
        try:
            return await call()
        except Exception:  # a naive script retries after any error
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(0.5 * (attempt + 1))
    raise AssertionError("unreachable")


SCRIPTS = {"sdk": with_sdk, "naive": naive}


def _report(job: str, error: BaseException | None) -> None:
    print(json.dumps({"job": job, "error": repr(error)}), file=sys.stderr)


def main() -> int:
    """Run one of the scripts once."""
    parser = argparse.ArgumentParser(description="The script that benchmarks.chaos kills.")
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", type=int)
    parser.add_argument("slots", type=int)
    parser.add_argument("--create-timeout", type=float, default=30.0)
    parser.add_argument("--clock-back", type=float, default=0.0)
    parser.add_argument("--passes", type=int, default=1)
    given = parser.parse_args()
    picture(given.folder, 0).parent.mkdir(exist_ok=True)
    return 1 if asyncio.run(SCRIPTS[given.script](given)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
