"""Workers in the test's process or their own, jobs for them, and waits for the results."""

import asyncio
import os
import signal
import sys
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
async def working(
    dsn: str, emulator: Emulator, *, run: str = "default", **options: Any
) -> AsyncIterator[Worker]:
    """Run a worker with its own database connections, and stop it at the end of the block."""
    given: dict[str, Any] = {
        "heartbeat_timeout": 1.5,
        "shutdown_timeout": 0.0,
        "base_url": emulator.url,
        "api_key": emulator.api_key,
        "schedule": FrequentSchedule(Random(0)),
    }
    async with Fleet(dsn, run=run, webhook_secrets=[]) as own:
        worker = Worker(own, **given | options)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await running


def requests(photo: Path, count: int) -> Iterator[ExpandRequest]:
    """Yield requests with the keys k0, k1 and so on."""
    for number in range(count):
        yield ExpandRequest(photo, Ratios(right=1.0), prompt=f"job {number}", key=f"k{number}")


async def created(emulator: Emulator, tasks: int) -> None:
    """Wait until the service has this number of tasks."""
    async with asyncio.timeout(30):
        while len(emulator.account.tasks) < tasks:  # noqa: ASYNC110 - the emulator has no event for it
            await asyncio.sleep(0.02)


async def outcomes(fleet: Fleet) -> list[JobOutcome]:
    """Read outcomes until no job is open, and return them."""
    async with asyncio.timeout(40):
        return [outcome async for outcome in fleet.results()]


class WorkerProcess:
    """A worker in its own process, with the *options* of ``kling-expand fleet worker``."""

    def __init__(self, dsn: str, emulator: Emulator, *options: object, setup: str = "") -> None:
        words = ["--dsn", dsn, "--base-url", emulator.url, *map(str, options)]
        code = f"{setup}\nfrom kling_expand.__main__ import main\nmain()"
        program = ["-c", code] if setup else ["-m", "kling_expand"]
        self._command = [sys.executable, *program, "fleet", "worker", *words]
        self._environ = {**os.environ, "KLING_API_KEY": emulator.api_key}
        self._process: asyncio.subprocess.Process | None = None
        self.ends = 0

    async def start(self) -> None:
        """Start the process, or restart it."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stderr=asyncio.subprocess.DEVNULL, env=self._environ
        )

    async def supervise(self) -> None:
        """Restart the process whenever it ends, until cancelled."""
        try:
            while True:
                await self.start()
                assert self._process is not None
                await self._process.wait()
                self.ends += 1
        finally:
            self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, unless it has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill the process and wait for its end."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> None:
        """Wait for the end of the process."""
        if self._process is not None:
            await self._process.wait()
