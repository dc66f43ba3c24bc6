"""The emulator as a test double: how soon it is ready, how many jobs it serves, and its memory.

    python -m benchmarks.emulator --json
    python -m benchmarks.emulator --tasks 100000 --json

ready    the time until an emulator runs and a client is open, as in the pytest fixtures
jobs     two processes create tasks and read each after its end; the emulator has its own process, and its
         engine is `flat`
memory   the growth of the emulator's process for each task after the first tenth of the tasks, and for each
         new task once the results of all earlier tasks have expired
"""

import asyncio
import os
import sys
import time
from base64 import b64encode
from pathlib import Path
from statistics import median
from subprocess import PIPE, Popen
from typing import Any, Self

import aiohttp

from benchmarks.reporting import finish, options, picture, rounded, table

CREATE = "/v1/images/editing/expand"
PARALLEL = 16  # requests of one client at a time
FLAT = ("--engine=flat", "--queue-seconds=0", "--work-seconds=0", "--slots=100000")


async def ready(pairs: int) -> float:
    """Return the median time in milliseconds until an emulator runs and a client is open."""
    from kling_expand import KlingClient  # imported here because the sending processes need neither
    from kling_expand.emulator import Emulator

    times = []
    for _ in range(pairs):
        begin = time.perf_counter()
        async with (
            Emulator(engine="flat") as emulator,
            KlingClient(api_key=emulator.api_key, base_url=emulator.url, cache_dir=False),
        ):
            times.append(time.perf_counter() - begin)
    return 1000 * median(times)


async def send(url: str, key: str, jobs: int) -> None:
    """Create tasks and read each once, when it has ended."""
    image = b64encode(picture()).decode()
    body: dict[str, Any] = {"image": image, "right_expansion_ratio": 1, "up_expansion_ratio": 0}
    body |= {"left_expansion_ratio": 0, "down_expansion_ratio": 0}
    todo = iter(range(jobs))

    async def client() -> None:
        for _ in todo:
            async with http.post(CREATE, json=body) as response:
                task_id = (await response.json())["data"]["task_id"]
            async with http.get(f"{CREATE}/{task_id}") as response:
                assert (await response.json())["data"]["task_status"] == "succeed"

    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(url, headers=headers, raise_for_status=True) as http:
        await asyncio.gather(*(client() for _ in range(PARALLEL)))


class Running:
    """An emulator in a process of its own."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "kling_expand.emulator", "--port=0", *FLAT]
        self._process = Popen(command, stdout=PIPE, text=True)
        assert self._process.stdout is not None
        self.url, *pairs = self._process.stdout.readline().split()
        self.key = dict(pair.split("=", 1) for pair in pairs)["api_key"]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def send(self, jobs: int) -> float:
        """Send jobs from two processes, and return how many seconds they took."""
        command = [sys.executable, "-m", "benchmarks.emulator", "send", self.url, self.key, str(jobs // 2)]
        begin = time.perf_counter()
        clients = [Popen(command) for _ in range(2)]
        if any(client.wait() for client in clients):
            raise RuntimeError("a client of the emulator must end without an error")
        return time.perf_counter() - begin

    def cpu(self) -> float:
        """Return the CPU time of the process in seconds (Linux)."""
        spent = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Return the resident memory of the process in bytes (Linux)."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the process must report VmRSS; run this benchmark on Linux")

    async def expire(self) -> None:
        """Advance the emulator's clock past the retention of every task."""
        async with aiohttp.ClientSession(raise_for_status=True) as http:
            await http.post(f"{self.url}/_emulator/advance", json={"seconds": 31 * 86400})


def throughput(jobs: int, runs: int) -> tuple[float, float]:
    """Return the median number of jobs per second, and the emulator's CPU milliseconds per job."""
    with Running() as emulator:
        emulator.send(100)
        before = emulator.cpu()
        rates = [jobs / emulator.send(jobs) for _ in range(runs)]
        return median(rates), 1000 * (emulator.cpu() - before) / (jobs * runs)


def growth(tasks: int) -> tuple[float, float]:
    """Return the growth of the emulator in bytes for each kept task, and for each expired task."""
    tenth = tasks // 10
    with Running() as emulator:
        emulator.send(tenth)
        first = emulator.memory()
        emulator.send(tasks - tenth)
        kept = emulator.memory() - first
        asyncio.run(emulator.expire())
        before = emulator.memory()
        emulator.send(tasks)
        return kept / (tasks - tenth), max(0, emulator.memory() - before) / tasks


def main() -> None:
    """Measure and print the results."""
    given = options(__doc__ or "", pairs=50, jobs=2000, tasks=10_000, runs=5)
    kept, expired = growth(given.tasks)
    rate, cpu = throughput(given.jobs, given.runs)
    found = {
        "ready (ms)": rounded(asyncio.run(ready(given.pairs))),
        "jobs per second": rounded(rate),
        "CPU per job (ms)": rounded(cpu),
        "memory of a kept task (bytes)": rounded(kept),
        "growth for each expired task (bytes)": rounded(expired),
    }
    table([{"emulator": name, "found": value} for name, value in found.items()])
    finish(found, as_json=given.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["send"]:
        asyncio.run(send(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    else:
        main()
