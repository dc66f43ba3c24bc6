"""The scale of a fleet: throughput by workers, cost of a job, a long queue, and 100 workers at one limit.

    python -m benchmarks.fleet_scale                      everything
    python -m benchmarks.fleet_scale --queued 1000000     only the long queue

The results:

    workers      real processes at a limit that grows with them: jobs per second, and CPU per job of the
                 workers and of PostgreSQL
    engine       CPU per job of queue, store and permits without a service, and jobs queued per second
    queue        the time of each operation with many jobs queued, in milliseconds: per job for submit, cancel
                 and results, with the ratio to 10,000 jobs; and per call for status, top, one more submit,
                 the first result, a take and a cancel of one job, with the ratio to 1,000 jobs
    simulation   the slots that workers estimate, on a virtual clock: a million jobs and 100 workers, one of
                 which dies half-way
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from attrs import field, frozen

from benchmarks.processes import Emulator, Process
from benchmarks.reporting import picture
from kling_expand import ExpandRequest, Ratios
from kling_expand.cli.commands.fleet_stats import stats_table
from kling_expand.fleet.dev_server import Cluster, temporary_folder
from kling_expand.fleet.job import WorkerContext, pack
from kling_expand.fleet.lease import Lease, Permits, SharedSlots
from kling_expand.fleet.queue import Consumer, Fleet
from kling_expand.fleet.schema import FOLLOW
from kling_expand.jobs.future import ExpandResult
from kling_expand.jobs.scheduler import Slots
from kling_expand.models import Image, Task
from kling_expand.store.postgres import PostgresStore
from kling_expand.testing import record_job, virtual_time

SLOTS = 20  # of the account, for each worker
PER_JOB = ("submit", "cancel", "results")  # operations measured per job; all others are measured per call
CALLS = 51  # calls of an operation, whose median is shown
TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process and its children (Linux)."""
    total, parents = 0.0, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1]), sum(map(int, fields[11:13])) / TICKS, fields
    for number, (parent, seconds, fields) in parents.items():
        if number == pid:
            total += seconds + sum(map(int, fields[13:15])) / TICKS
        elif parent == pid:
            total += seconds
    return total


def postmaster(folder: Path) -> int:
    """Return the process id of the database server."""
    return int((folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


async def workers(count: int, folder: Path) -> dict[str, float]:
    """Run *count* workers at *count* times the limit, and return jobs per second and CPU per job."""
    jobs = 150 * count
    service = Emulator(folder, f"--slots={SLOTS * count}", "--work-seconds=1", "--queue-seconds=0")
    processes: list[asyncio.subprocess.Process] = []
    await service.start()
    try:
        async with Cluster(folder / "postgres") as cluster, Fleet(cluster.dsn) as fleet:
            await fleet.init()
            photo = folder / "photo.png"
            photo.write_bytes(picture(300))
            words = ("-m", "kling_expand", "fleet", "worker", "--dsn", cluster.dsn, "--base-url", service.url)
            for number in range(count):
                worker = Process(folder / f"worker-{number}.log", *words, "--shutdown-timeout", 1)
                processes.append(await worker.start(KLING_API_KEY=service.keys["api_key"]))
            while len((await fleet.stats()).workers) < count:  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.1)
            used = sum(cpu(process.pid) for process in processes), cpu(postmaster(folder))
            begin = time.monotonic()
            await fleet.submit_many(
                ExpandRequest(photo, Ratios(right=1.0), prompt=f"{number}", key=f"{number}")
                for number in range(jobs)
            )
            outcomes = [outcome async for outcome in fleet.results()]
            seconds = time.monotonic() - begin
            spent = (
                sum(cpu(process.pid) for process in processes) - used[0],
                cpu(postmaster(folder)) - used[1],
            )
            for process in processes:
                process.terminate()
            await asyncio.gather(*(process.wait() for process in processes))
    finally:
        await service.kill()
    return {
        "workers": count,
        "limit": SLOTS * count,
        "jobs": sum(outcome.status == "succeeded" for outcome in outcomes),
        "jobs_per_second": round(jobs / seconds, 2),
        "worker_cpu_ms_per_job": round(1000 * spent[0] / jobs, 2),
        "database_cpu_ms_per_job": round(1000 * spent[1] / jobs, 2),
    }


@frozen
class StoreOnlyClient:
    """A client that records the same states as a real client, and calls no service."""

    store: PostgresStore

    async def submit(self, request: ExpandRequest, *, priority: int = 0, note: object = None) -> ExpandResult:
        """Store the states of a job that succeeds at once."""
        del priority, note
        key = str(request.key)
        job = await record_job(self.store, key)
        await self.store.mark_sending(job.external_task_id)
        running = Task(key, "submitted", external_task_id=job.external_task_id)
        await self.store.observe(job.external_task_id, running)
        task = Task(key, "succeed", None, job.external_task_id, (Image(0, "https://host/0.png"),), "8")
        await self.store.observe(job.external_task_id, task)
        return ExpandResult(task, request)


async def engine(folder: Path, jobs: int = 3000) -> dict[str, float]:
    """Return the CPU per job of queue, store and exact permits, and the jobs queued per second."""
    async with Cluster(folder / "postgres") as cluster, Fleet(cluster.dsn) as fleet:
        await fleet.init()
        pid = postmaster(folder)
        used = time.process_time(), cpu(pid)
        await fleet.submit_many(
            ExpandRequest(f"https://host/{n}.png", Ratios(up=1.0), key=f"e{n}") for n in range(jobs)
        )
        lease = Lease(fleet.database, fleet.queue, fleet.run, timeout=600.0, exact=True)
        await lease.begin()
        store = PostgresStore(fleet.database, owner=lease.worker, leased=True)
        async with Permits(lease, SLOTS) as allowed:
            context = WorkerContext(StoreOnlyClient(store), store, hold=allowed.hold)  # type: ignore[arg-type]  # it has all methods that are called
            consumer = Consumer(lease, context, concurrency=32, enough=SLOTS)
            task = asyncio.create_task(consumer.take_jobs())
            while (await fleet._counts()) != (0, 0):  # noqa: ASYNC110, SLF001 - the queue is measured alone
                await asyncio.sleep(0.5)
            task.cancel()
            await asyncio.wait([task])
        spent = time.process_time() - used[0], cpu(pid) - used[1]
        begin = time.monotonic()
        many = 20_000
        requests = (ExpandRequest(f"https://host/{n}.png", Ratios(up=1.0), key=f"q{n}") for n in range(many))
        await fleet.submit_many(requests)
        queued = time.monotonic() - begin
    return {
        "enqueue_per_second": round(many / queued),
        "worker_cpu_ms_per_job": round(1000 * spent[0] / jobs, 2),
        "database_cpu_ms_per_job": round(1000 * spent[1] / jobs, 2),
        "cpu_ms_per_job": round(1000 * sum(spent) / jobs, 2),
    }


@frozen
class Costs:
    """The costs of calls: seconds, and CPU seconds of this process and of the database at *folder*."""

    folder: Path
    found: dict[str, tuple[float, float]] = field(factory=dict)

    def _cpu(self) -> dict[str, int]:
        """Return the nanoseconds of CPU time of each process of the database (Linux)."""
        parent = postmaster(self.folder)
        pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return {pid: int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids}

    async def measure(
        self, name: str, work: Callable[[], Awaitable[object]], *, calls: int = CALLS, jobs: int = 1
    ) -> None:
        """Record the median of the seconds, and the mean of the CPU seconds, that *work* takes per job."""
        times, own, before = [], time.process_time(), self._cpu()
        for _ in range(calls):
            begin = time.monotonic()
            await work()
            times.append(time.monotonic() - begin)
        spent = sum(now - before.get(pid, now) for pid, now in self._cpu().items()) / 1e9
        cost = (time.process_time() - own + spent) / calls
        self.found[name] = median(times) / jobs, cost / jobs


def _row(number: int) -> ExpandRequest:
    """Return a request that takes 200 bytes in the queue."""
    location, key = f"https://photos.example/{number:07}.png", f"job-{number:07}"
    return ExpandRequest(location, Ratios(up=1.0), prompt="x" * 34, key=key)


async def _verbs(folder: Path, queued: int) -> dict[str, tuple[float, float]]:
    """Return the seconds and the CPU seconds of each operation while *queued* jobs are in the queue."""
    assert len(json.dumps(pack(_row(0)))) == 200
    async with Cluster(folder / "postgres") as cluster, Fleet(cluster.dsn) as fleet:
        await fleet.init()

        async def submit() -> None:
            await fleet.submit_many(map(_row, range(queued)), max_queued=2 * queued)

        async def top() -> None:
            stats_table(await fleet.stats())

        async def take() -> None:
            lease = Lease(fleet.database, fleet.queue, fleet.run, timeout=600.0)
            await lease.begin()
            await lease.take(8, 8, FOLLOW)
            await lease.end()

        async def results() -> None:
            async for _ in fleet.results():
                pass

        async def first_results() -> None:
            await anext(fleet.results())

        one = iter(range(queued))
        costs = Costs(folder)
        await costs.measure("submit", submit, calls=1, jobs=queued)
        await costs.measure("status", fleet.stats)
        await costs.measure("top", top)
        await costs.measure("submit one", lambda: fleet.submit(_row(queued + next(one))))
        await costs.measure("take and requeue", take)
        await costs.measure("cancel one", lambda: fleet.cancel(f"job-{next(one):07}"))
        await costs.measure("cancel", fleet.cancel, calls=1, jobs=queued)
        await costs.measure("results", results, calls=1, jobs=queued)
        await costs.measure("first results", first_results)
    return costs.found


async def long_queue(queued: int, few: tuple[int, int] = (1_000, 10_000)) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each operation for three queue lengths, and the ratios of the longest.

    An operation that is measured per job is compared with the second length. An operation that is measured
    per call should not depend on the length, so it is compared with the first. The ratio of CPU times is
    reliable on a busy machine too.
    """
    sizes, found = (*few, queued), []
    for size in sizes:
        with temporary_folder() as folder:
            found.append(await _verbs(folder, size))
    rows: dict[str, dict[str, float]] = {}
    for name in found[0]:
        base, last = found[name in PER_JOB][name], found[2][name]
        rows[name] = {
            str(size): round(1000 * each[name][0], 4) for size, each in zip(sizes, found, strict=True)
        }
        rows[name] |= {"ratio": round(last[0] / base[0], 2), "cpu_ratio": round(last[1] / base[1], 2)}
    return rows


class Account:
    """A simulated account with *limit* slots, and its statistics."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.refusals, self.done = limit, 0, 0, 0
        self.busy = self._since = 0.0

    def move(self, step: int) -> None:
        """Take (1) or release (-1) a slot now."""
        now = asyncio.get_running_loop().time()
        self.busy += self.used * (now - self._since)
        self._since = now
        self.used += step


async def _job(account: Account, slots: Slots, rng: Random) -> None:
    """Execute a job with a simulated account and duration, while the real `Slots` decide when to send."""
    refused = False
    while True:
        epoch = await slots.acquire(1, first=refused)
        if account.used < account.limit:
            break
        account.refusals += 1
        refused = True
        slots.refused(1, epoch)
    account.move(1)
    slots.accepted(1)
    await asyncio.sleep(rng.lognormvariate(2.485, 0.35))  # a median of 12 s
    account.move(-1)
    account.done += 1
    await asyncio.sleep(rng.uniform(0, 1.0))  # until a poll detects the end
    slots.ended(1)


async def _machine(account: Account, jobs: list[int], rng: Random, *, dies: bool) -> None:
    """Run a worker with 32 jobs in hand, until no job is left or it dies half-way."""
    slots, half = SharedSlots(32), jobs[0] // 2

    async def run_slot() -> None:
        while jobs[0] > 0 and not (dies and jobs[0] < half):
            jobs[0] -= 1
            await _job(account, slots, rng)

    await asyncio.gather(*(run_slot() for _ in range(32)))


async def simulate(
    seed: int, machines: int = 100, jobs: int = 1_000_000, limit: int = 1000
) -> dict[str, float]:
    """Return the utilization and the refused creates per job if every worker estimates the limit itself."""
    account, left = Account(limit), [jobs]
    rng = Random(seed)
    await asyncio.gather(
        *(_machine(account, left, Random(rng.random()), dies=n == 0) for n in range(machines))
    )
    seconds = asyncio.get_running_loop().time()
    return {
        "workers": machines,
        "jobs": account.done,
        "limit": limit,
        "utilization": round(account.busy / seconds / limit, 4),
        "refusals_per_job": round(account.refusals / account.done, 4),
    }


async def scale(seed: int) -> dict[str, Any]:
    """Return all results."""
    rows = []
    for count in (1, 2, 4, 8):
        with temporary_folder() as folder:
            rows.append(await workers(count, folder))
    with temporary_folder() as folder:
        cost = await engine(folder)
    simulation = await asyncio.to_thread(virtual_time(simulate), seed)
    return {"workers": rows, "engine": cost, "queue": await long_queue(100_000), "simulation": simulation}


def main() -> int:
    """Print the results as one JSON line."""
    parser = argparse.ArgumentParser(description="Measure the scale of a fleet.")
    parser.add_argument("--queued", type=int, help="measure only a queue of so many jobs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="no effect: the output is always JSON")
    options = parser.parse_args()
    if options.queued:
        found: Any = asyncio.run(long_queue(options.queued))
    else:
        found = asyncio.run(scale(options.seed))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
