"""The cost of the journal: the time of all five writes of a job, and how long they block the event loop.

    python -m benchmarks.journal --jobs 5000 --in-flight 64

After each run a control of the same shape sleeps instead of writing. The time for which the event loop is
blocked during the control is due to the machine, not to the journal. All results are medians of the runs.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.reporting import finish, options
from kling_expand.models import Image, Task
from kling_expand.store.base import JobIdentity
from kling_expand.store.sqlite import SQLiteStore
from kling_expand.testing import prepared

INTERVAL = 0.001  # seconds between two heartbeats


class Stopwatch:
    """The wall time of a run, the duration of each await, and the longest block of the event loop."""

    def __init__(self) -> None:
        self.awaits: list[float] = []
        self.longest_block = 0.0
        self.wall = 0.0

    async def step(self, awaitable: Awaitable[Any]) -> Any:
        """Await a step and record its duration."""
        begin = time.perf_counter()
        try:
            return await awaitable
        finally:
            self.awaits.append(time.perf_counter() - begin)

    async def heartbeat(self) -> None:
        """Sleep repeatedly, and record how long the event loop was blocked beyond the interval."""
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(INTERVAL)
            self.longest_block = max(self.longest_block, time.perf_counter() - begin - INTERVAL)

    async def run(self, job: Callable[[int], Awaitable[None]], jobs: int, in_flight: int) -> None:
        """Run all jobs, *in_flight* of them concurrently."""
        numbers = iter(range(jobs))

        async def worker() -> None:
            for number in numbers:
                await job(number)

        beating = asyncio.create_task(self.heartbeat())
        begin = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        self.wall = time.perf_counter() - begin
        beating.cancel()


async def with_journal(jobs: int, in_flight: int) -> Stopwatch:
    """Measure all writes of each job in a new file."""
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


async def without_journal(like: Stopwatch, jobs: int, in_flight: int) -> Stopwatch:
    """Measure the control: the same number of awaits, each of which sleeps for the median duration."""
    watch = Stopwatch()
    duration = median(like.awaits)

    async def job(_number: int) -> None:
        for _ in range(5):
            await watch.step(asyncio.sleep(duration))

    await watch.run(job, jobs, in_flight)
    return watch


def measure(jobs: int, in_flight: int, runs: int) -> dict[str, Any]:
    """Return the medians over the runs, in milliseconds."""
    journals, controls = [], []
    for _ in range(runs):
        journals.append(asyncio.run(with_journal(jobs, in_flight)))
        controls.append(asyncio.run(without_journal(journals[-1], jobs, in_flight)))
    return {
        "jobs": jobs,
        "in_flight": in_flight,
        "runs": runs,
        "ms_per_job": round(median(watch.wall / jobs for watch in journals) * 1e3, 3),
        "await_ms_p50": round(median(median(watch.awaits) for watch in journals) * 1e3, 3),
        "longest_block_ms": round(median(watch.longest_block for watch in journals) * 1e3, 2),
        "control_longest_block_ms": round(median(watch.longest_block for watch in controls) * 1e3, 2),
    }


def main() -> None:
    """Measure and print the results."""
    given = options("The cost of the journal.", jobs=5000, in_flight=64, runs=5)
    found = measure(given.jobs, given.in_flight, given.runs)
    print(f"{found['jobs']} jobs, {found['in_flight']} in flight, medians of {found['runs']} runs")
    print(f"  all five writes of a job     {found['ms_per_job']:8.3f} ms   (goal: at most 0.3)")
    print(f"  one await                    {found['await_ms_p50']:8.3f} ms")
    print(f"  longest block of the loop    {found['longest_block_ms']:8.2f} ms   (goal: at most 5)")
    print(f"  same without a journal       {found['control_longest_block_ms']:8.2f} ms")
    finish(found, as_json=given.json)


if __name__ == "__main__":
    main()
