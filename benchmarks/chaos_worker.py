"""What is killed? A script that has many photos expanded, and is simply started again after each crash.

    python -m benchmarks.chaos_worker {sdk|naive} URL FOLDER JOBS PARALLEL

Two scripts with one task: `sdk` is `kling.map` with a journal, and `naive` what one writes without
an SDK: try again on every error, poll, save, skip what is on disk. Exit code 0: every picture is
there, as far as the script can tell.
"""

import argparse
import asyncio
import base64
import json
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from kling_expand import ExpandRequest, KlingClient, KlingError, Ratios
from kling_expand.jobs.future import ExpandResult

PATH = "/v1/images/editing/expand"
SAVES = 32  # pictures brought to disk at once
TRIES = 10  # of each call, by the naive script


def prompt(number: int) -> str:
    """What a job is told by, in the service's books and in ours."""
    return f"chaos job {number}"


def picture(folder: Path, number: int) -> Path:
    """Where a job's picture belongs."""
    return folder / "out" / f"job-{number:06}.png"


def photo(folder: Path) -> Path:
    """What all jobs are made of."""
    return folder / "photo.png"


# ---------------------------------------------------------------------------- with the SDK


async def with_sdk(url: str, folder: Path, jobs: int, parallel: int) -> int:
    """Expand and save them all; how many could not be."""
    requests = (
        ExpandRequest(photo(folder), Ratios(right=2.0), prompt=prompt(number), key=f"job-{number}")
        for number in range(jobs)
    )
    failures = 0
    places = asyncio.Semaphore(SAVES)

    async def save(result: ExpandResult, target: Path) -> None:
        nonlocal failures
        try:
            await result.save(target)
        except KlingError as error:
            failures += 1
            _complain(target.name, error)
        finally:
            places.release()

    journal = folder / "run.db"
    async with (
        KlingClient(base_url=url, journal=journal, run="chaos", max_in_flight=parallel) as kling,
        asyncio.TaskGroup() as saves,
    ):
        async for outcome in kling.map(requests):
            if outcome.result is None:
                failures += 1
                _complain(f"job {outcome.index}", outcome.error)
            elif not outcome.result.files:
                await places.acquire()
                saves.create_task(save(outcome.result, picture(folder, outcome.index)))
    return failures


# ---------------------------------------------------------------------------- without it


async def naively(url: str, folder: Path, jobs: int, parallel: int) -> int:
    """The same as it is often written; how many failed."""
    image = base64.b64encode(photo(folder).read_bytes()).decode()
    token = {"Authorization": f"Bearer {os.environ['KLING_API_KEY']}"}
    places = asyncio.Semaphore(parallel)

    async with aiohttp.ClientSession(base_url=url, headers=token) as http:

        async def call(method: str, path: str, **more: Any) -> dict[str, Any]:
            async with http.request(method, path, **more) as response:
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
            async with places:
                task = await _again(lambda: call("POST", PATH, json=body))
                read = partial(call, "GET", f"{PATH}/{task['task_id']}")
                while task["task_status"] not in {"succeed", "failed"}:
                    await asyncio.sleep(1)
                    task = await _again(read)
            data = await _again(lambda: fetch(task["task_result"]["images"][0]["url"]))
            picture(folder, number).write_bytes(data)

        wanted = [number for number in range(jobs) if not picture(folder, number).exists()]
        ends = await asyncio.gather(*map(expand, wanted), return_exceptions=True)
    for number, end in zip(wanted, ends, strict=True):
        if end is not None:
            _complain(f"job {number}", end)
    return sum(end is not None for end in ends)


async def _again(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat a call while it fails."""
    for tried in range(TRIES):
        try:
            return await call()
        except Exception:  # as naive as it comes
            if tried == TRIES - 1:
                raise
            await asyncio.sleep(0.5 * (tried + 1))
    raise AssertionError("unreachable")


SCRIPTS = {"sdk": with_sdk, "naive": naively}


def _complain(what: str, error: BaseException | None) -> None:
    print(json.dumps({"what": what, "error": repr(error)}), file=sys.stderr)


def main() -> int:
    """Run one of the scripts once."""
    parser = argparse.ArgumentParser(description="The script that the chaos benchmark kills.")
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", type=int)
    parser.add_argument("parallel", type=int)
    options = parser.parse_args()
    picture(options.folder, 0).parent.mkdir(exist_ok=True)
    script = SCRIPTS[options.script]
    return 1 if asyncio.run(script(options.url, options.folder, options.jobs, options.parallel)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
