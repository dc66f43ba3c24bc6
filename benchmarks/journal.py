"""What does the journal cost? All five writes of a job, and how long they hold the event loop.

    python -m benchmarks.journal --jobs 5000 --in-flight 64

Every run is followed by a control of the same shape that sleeps instead of writing: what the
control's heartbeat misses is the machine's doing, not the journal's. Medians of the runs.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from kling_expand.models import Image, Task
from kling_expand.store.base import JobIdentity
from kling_expand.store.sqlite import SQLiteStore
from kling_expand.testing import prepared

BEAT = 0.001  # seconds between two beats


class Stopwatch:
    """Wall time, the duration of each await, and the longest time the loop was late for a beat."""

    def __init__(self) -> None:
        self.awaits: list[float] = []
        self.held = 0.0
        self.wall = 0.0

    async def step(self, awaitable: Awaitable[Any]) -> Any:
        """Await it, and note how long that took."""
        begin = time.perf_counter()
        try:
            return await awaitable
        finally:
            self.awaits.append(time.perf_counter() - begin)

    async def heartbeat(self) -> None:
        """Sleep a beat again and again; whatever is more was held."""
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(BEAT)
            self.held = max(self.held, time.perf_counter() - begin - BEAT)

    async def run(self, job: Callable[[int], Awaitable[None]], jobs: int, in_flight: int) -> None:
        """All jobs, so many at once."""
        numbers = iter(range(jobs))

        async def worker() -> None:
            for number in numbers:
                await job(number)

        beating = asyncio.create_task(self.heartbeat())
        begin = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        self.wall = time.perf_counter() - begin
        beating.cancel()


async def journalled(jobs: int, in_flight: int) -> Stopwatch:
    """The journal's whole work for each job, in a new file."""
    watch, request = Stopwatch(), prepared("photo", prompt="a sunlit park")
    with tempfile.TemporaryDirectory() as folder:
        async with SQLiteStore(Path(folder, "run.db")) as journal:

            async def job(number: int) -> None:
                name = f"job-{number:08}"
                url = f"https://cdn.example.com/results/{number:032x}.png"
                task = Task(f"{number:018}", "succeed", images=(Image(0, url),), final_unit_deduction="8")
                record = await watch.step(journal.record_intent(JobIdentity(name, f"{number:064x}"), request))
                await watch.step(journal.mark_sending(record.external_task_id))
                running = Task(task.task_id, "submitted")
                await watch.step(journal.observe(record.external_task_id, running))
                await watch.step(journal.observe(record.external_task_id, task))
                await watch.step(journal.mark_saved(record.external_task_id, [f"out/{name}-0.png"]))

            await watch.run(job, jobs, in_flight)
    return watch


async def slept(like: Stopwatch, jobs: int, in_flight: int) -> Stopwatch:
    """As many awaits of the usual length, and no journal."""
    watch = Stopwatch()
    nap = median(like.awaits)

    async def job(_number: int) -> None:
        for _ in range(5):
            await watch.step(asyncio.sleep(nap))

    await watch.run(job, jobs, in_flight)
    return watch


def measure(jobs: int, in_flight: int, runs: int) -> dict[str, Any]:
    """Medians over the runs, in milliseconds."""
    with_journal, without = [], []
    for _ in range(runs):
        with_journal.append(asyncio.run(journalled(jobs, in_flight)))
        without.append(asyncio.run(slept(with_journal[-1], jobs, in_flight)))
    return {
        "jobs": jobs,
        "in_flight": in_flight,
        "runs": runs,
        "ms_per_job": round(median(watch.wall / jobs for watch in with_journal) * 1e3, 3),
        "await_ms_p50": round(median(median(watch.awaits) for watch in with_journal) * 1e3, 3),
        "longest_hold_ms": round(median(watch.held for watch in with_journal) * 1e3, 2),
        "control_longest_hold_ms": round(median(watch.held for watch in without) * 1e3, 2),
    }


def main() -> None:
    """Measure, and say it in words or as one JSON object."""
    parser = argparse.ArgumentParser(description="What does the journal cost?")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    found = measure(options.jobs, options.in_flight, options.runs)
    print(f"{found['jobs']} jobs, {found['in_flight']} in flight, medians of {found['runs']} runs")
    print(f"  all five writes of a job     {found['ms_per_job']:8.3f} ms   (at most 0.3)")
    print(f"  one await                    {found['await_ms_p50']:8.3f} ms")
    print(f"  longest hold of the loop     {found['longest_hold_ms']:8.2f} ms   (at most 5)")
    print(f"  … without a journal          {found['control_longest_hold_ms']:8.2f} ms")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
