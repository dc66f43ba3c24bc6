"""Workers in the test's process, jobs for them, and waiting for what comes of those."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from kling_expand import ExpandRequest, Ratios
from kling_expand.emulator import Emulator
from kling_expand.fleet.queue import Fleet
from kling_expand.fleet.worker import Worker
from kling_expand.jobs.poll_schedule import ExponentialSchedule
from kling_expand.store.postgres import JobOutcome


class FrequentSchedule(ExponentialSchedule):
    """A schedule that polls every 20 ms."""

    def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
        """Return 20 ms."""
        del ages, price
        return 0.02


@asynccontextmanager
async def working(dsn: str, emulator: Emulator, **options: Any) -> AsyncIterator[Worker]:
    """A worker with database connections of its own, stopped at the end of the block."""
    given: dict[str, Any] = {
        "heartbeat_timeout": 1.5,
        "shutdown_timeout": 0.0,
        "base_url": emulator.url,
        "api_key": emulator.api_key,
        "schedule": FrequentSchedule(Random(0)),
    }
    async with Fleet(dsn, webhook_secrets=[]) as own:
        worker = Worker(own, **given | options)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await running


def requests(photo: Path, count: int) -> Iterator[ExpandRequest]:
    """Requests with the keys k0, k1 and so on."""
    for number in range(count):
        yield ExpandRequest(photo, Ratios(right=1.0), prompt=f"job {number}", key=f"k{number}")


async def created(emulator: Emulator, tasks: int) -> None:
    """Wait until the service has so many tasks."""
    async with asyncio.timeout(30):
        while len(emulator.account.tasks) < tasks:  # noqa: ASYNC110 - the emulator has no event for it
            await asyncio.sleep(0.02)


async def outcomes(fleet: Fleet) -> list[JobOutcome]:
    """Read the outcomes until no job is open."""
    async with asyncio.timeout(40):
        return [outcome async for outcome in fleet.results()]
