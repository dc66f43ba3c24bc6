"""The promises of a fleet under faults: no job is paid for twice or lost, the limit holds and work continues.

    python -m benchmarks.fleet --jobs 2000 --workers 4
    python -m benchmarks.fleet --jobs 200 --passes 2
    python -m benchmarks.fleet --scale

Everything is a real process: PostgreSQL, the emulator with its state in SQLite, a proxy that injects faults
into a share of all API calls (`benchmarks.proxy`), and workers with the settings of `examples/deploy` under
a supervisor that restarts them. Workers, database and emulator are SIGKILLed at random moments. In addition
all workers are killed at the same moment once (a reboot), one worker is stopped for good with SIGTERM (a
scale-in), and one is frozen for longer than its lease (SIGSTOP). At the end the emulator is restarted from
its file alone, and its records are compared with the outcomes and the files. The result is one JSON line:

    created               tasks at the service
    duplicates            jobs with more than one task, or with ``--passes 2`` more than two
    lost                  jobs whose picture on disk is missing or differs from the service's, or that have
                          no outcome in the store with their last task and their price
    billed due            units billed for all tasks; units that the necessary tasks cost
    peak                  most tasks at the service at once, by the service's own times of each task
    utilization           the share of the limit in use, from the first moment at which it was nearly reached
                          until all but `limit` tasks were created. Outages do not count (from a kill of
                          database or emulator until SETTLE seconds after its return), nor do the leases of
                          dead or frozen workers
    reserved              the part of the utilization that is not a task at the service but a slot kept for
                          a create without a usable response, whose task may still appear
    standstill            the longest time between two creates, excluding outages (s)
    statements_per_job    statements that PostgreSQL executed, counted every 0.5 s

A job needs about 7 statements: it is taken with 7 others, asks for a permit and releases it (1 to 2), and
records its intent, each send, its task and its end. Its outcome is recorded when it leaves the queue. A
worker adds 0.2 to 0.4 statements a second and a reader 0.5. So four workers with a limit of 9 and tasks of
10 s add 2 to 3 for each job.

A create without a usable response must keep its slot for 35 s (`create_timeout` and 5 s), unless its task is
found. Until then no lookup can prove that the task will not appear. If it appeared after the slot was
released, the limit would be exceeded. A share f of all requests fails, and in three of ten failures the
create never arrives. So tasks of t seconds run in at most 1 / (1 + 0.3 f 35 / t) of the limit: 0.905 for
f = 0.1 and t = 10.

With ``--passes 2`` each job is a portrait that becomes 16:9 in two tasks, one after the other.

With ``--policy permits`` (the default) the service would accept ten times the limit, so only the fleet limits
the peak. With ``--policy aimd`` the service refuses creates above the limit, and each worker estimates it.
"""

import argparse
import asyncio
import hashlib
import json
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import psycopg
from aiohttp import web
from attrs import define, field, frozen

from benchmarks.processes import Emulator, Process
from benchmarks.proxy import Proxy
from benchmarks.reporting import picture
from kling_expand import ExpandRequest, Ratios, ToAspect
from kling_expand.config import Settings
from kling_expand.errors import WebhookError
from kling_expand.fleet.dev_server import Cluster, temporary_folder
from kling_expand.fleet.queue import Fleet
from kling_expand.jobs.submission import APPEAR_TIMEOUT
from kling_expand.models import UNITS_PER_IMAGE
from kling_expand.store.postgres import JobOutcome

SETTLE = 5.0  # seconds after an outage until work resumes: an uncertain create is looked up for that long
SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"
MAX_BEAT = 5.0  # seconds between the end of a lease and the heartbeat of another worker that notices it
MAX_STANDSTILL = 15.0  # seconds, after a lease
MIN_UTILIZATION = 0.85
LONGEST_CREATE = Settings().create_timeout + APPEAR_TIMEOUT  # seconds until an unanswered create has failed


@frozen(kw_only=True)
class Conditions:
    """The parameters of a run, which is stopped after `seconds`."""

    jobs: int
    passes: int
    workers: int
    worker_kills: int
    db_kills: int
    emulator_kills: int
    reboots: int
    scale_ins: int
    freezes: int
    faults: float
    limit: int
    seed: int
    policy: str
    unique: bool
    work_seconds: float
    lease: float
    in_hand: int
    callbacks: bool
    seconds: float
    folder: Path

    def moments(self, what: str, count: int) -> list[float]:
        """Return the moments at which to kill, as sorted shares of all jobs."""
        rng = Random(f"{self.seed} {what}")
        return sorted(rng.uniform(0.03, 0.9) for _ in range(count))


@define
class Observed:
    """The records of the run itself: kills, statements, and outages and leases as pairs of Unix seconds."""

    leases: list[tuple[float, float]] = field(factory=list)
    kills: Counter[str] = field(factory=Counter)
    outages: list[tuple[float, float]] = field(factory=list)
    statements: int = 0
    finished: bool = False


class Run:
    """One run under the given conditions."""

    def __init__(self, conditions: Conditions, cluster: Cluster, service: Emulator, proxy: Proxy) -> None:
        self.conditions = conditions
        self.observed = Observed()
        self.proxy = proxy
        self._cluster, self._service = cluster, service
        self._workers: list[Process] = []
        self._retired: set[Process] = set()

    async def execute(self, fleet: Fleet, callback_url: str) -> dict[str, JobOutcome]:
        """Queue all jobs, kill as planned, and return the outcomes by key."""
        c = self.conditions
        words: list[Any] = ["-m", "kling_expand", "fleet", "worker", "--dsn", self._cluster.dsn]
        words += ["--base-url", self.proxy.url, "-o", c.folder / "out"]
        words += ["--callback-url", callback_url] if c.callbacks else []
        words += ["--heartbeat-timeout", c.lease, "--concurrency", c.in_hand, "--shutdown-timeout", 20]
        words += ["--max-in-flight", c.limit] if c.policy == "permits" else []
        self._workers = [Process(c.folder / f"worker-{number}.log", *words) for number in range(c.workers)]
        photo = _photo(c)
        geometry = Ratios(right=2.0) if c.passes == 1 else ToAspect("16:9")
        requests = (
            ExpandRequest(photo, geometry, prompt=f"fleet job {number}", key=f"job-{number}")
            for number in range(c.jobs)
        )
        await fleet.submit_many(requests, passes=c.passes)
        outcomes: dict[str, JobOutcome] = {}
        supervisors = map(self._supervise, self._workers)
        beside = [asyncio.create_task(work) for work in (self._count(), *self._killers(), *supervisors)]
        try:
            async with asyncio.timeout(c.seconds):
                async for outcome in fleet.results():
                    outcomes[outcome.key] = outcome
            self.observed.finished = True
        except TimeoutError:
            pass
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await asyncio.gather(*(worker.kill() for worker in self._workers))
        return outcomes

    def _killers(self) -> list[Any]:
        c = self.conditions
        plan = (
            ("worker", c.worker_kills, self._kill_worker),
            ("db", c.db_kills, self._kill_database),
            ("emulator", c.emulator_kills, self._kill_service),
            ("reboot", c.reboots, self._reboot),
            ("scale-in", c.scale_ins, self._scale_in),
            ("freeze", c.freezes, self._freeze),
        )
        return [self._at(c.moments(what, count), what, kill) for what, count, kill in plan]

    async def _at(self, moments: list[float], what: str, kill: Any) -> None:
        rng = Random(f"{self.conditions.seed} {what} pauses")
        for moment in moments:
            await self.proxy.reached(moment * self.conditions.jobs * self.conditions.passes)
            await asyncio.sleep(rng.uniform(0, 1))
            await kill(rng)
            self.observed.kills[what] += 1

    async def _supervise(self, worker: Process) -> None:
        """Restart the worker a second after each end, as systemd would."""
        keys = {f"KLING_{name.upper()}": self._service.keys[name] for name in ("access_key", "secret_key")}
        while worker not in self._retired:
            await (await worker.start(KLING_WEBHOOK_SECRET=SECRET, **keys)).wait()
            await asyncio.sleep(1.0)

    def _choose(self, rng: Random) -> Process:
        return rng.choice([worker for worker in self._workers if worker not in self._retired])

    def _note_lease(self, seconds: float = 0.0) -> None:
        """Record how long the lease of a worker lasts that is dead now, or frozen for *seconds*."""
        now = time.time()
        self.observed.leases.append((now, now + max(seconds, self.conditions.lease) + MAX_BEAT))

    async def _kill_worker(self, rng: Random) -> None:
        while not await self._choose(rng).kill():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.2)  # that worker was not running
        self._note_lease()

    async def _reboot(self, _rng: Random) -> None:
        await asyncio.gather(*(worker.kill() for worker in self._workers))
        self._note_lease()

    async def _scale_in(self, rng: Random) -> None:
        chosen = self._choose(rng)
        self._retired.add(chosen)
        chosen.signal(signal.SIGTERM)

    async def _freeze(self, rng: Random) -> None:
        chosen = self._choose(rng)
        if chosen.signal(signal.SIGSTOP):
            seconds = self.conditions.lease + 10
            self._note_lease(seconds)
            await asyncio.sleep(seconds)
            chosen.signal(signal.SIGCONT)

    async def _kill_database(self, rng: Random) -> None:
        begin = time.time()
        await asyncio.to_thread(self._cluster.kill)
        await asyncio.sleep(rng.uniform(0, 2))
        await self._cluster.start()
        self.observed.outages.append((begin, time.time() + SETTLE))

    async def _kill_service(self, rng: Random) -> None:
        begin = time.time()
        await self._service.kill()
        await asyncio.sleep(rng.uniform(0, 2))
        await self._service.start()
        self.observed.outages.append((begin, time.time() + SETTLE))

    async def _count(self) -> None:
        """Add up the executed statements regularly, because a killed database loses its count."""
        before = 0
        while True:
            with suppress(psycopg.OperationalError):
                now = await asyncio.to_thread(_statements, self._cluster.dsn)
                self.observed.statements += now - before if now >= before else now
                before = now
            await asyncio.sleep(0.5)


def _photo(conditions: Conditions) -> Path:
    """Write the photo of all jobs and return its path."""
    path = conditions.folder / "photo.png"
    if conditions.passes == 1:
        path.write_bytes(picture(300))
    else:
        from PIL import Image  # in the same extra as the emulator

        Image.new("RGB", (400, 900), (90, 120, 160)).save(path)
    return path


# The statements of this count itself are excluded.
_CALLS = """
SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'
"""


def _statements(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True, connect_timeout=2) as database:
        database.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        row = database.execute(_CALLS).fetchone()
        return int(row[0]) if row else 0


@asynccontextmanager
async def callbacks(fleet: Fleet) -> AsyncIterator[str]:
    """Run a web server that forwards every callback to the fleet, and yield its URL."""

    async def receive(request: web.Request) -> web.Response:
        try:
            await fleet.receive(request.headers, await request.read())
        except WebhookError as error:
            return web.Response(status=400, text=str(error))
        return web.Response(status=204)

    app = web.Application()
    app.add_routes([web.post("/", receive)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


async def audit(
    conditions: Conditions, url: str, outcomes: dict[str, JobOutcome], run: Run
) -> dict[str, Any]:
    """Compare the tasks of the service with the outcomes and the files."""
    async with aiohttp.ClientSession(url, raise_for_status=True) as http:
        # Running tasks are billed when they end.
        async with http.post("/_emulator/advance", json={"seconds": 3600}) as response:
            account = (await response.json())["data"]["account"]
        async with http.get("/_emulator/tasks") as response:
            tasks = (await response.json())["data"]
        task_ids, price = defaultdict(list), UNITS_PER_IMAGE * conditions.passes
        for task in tasks:
            task_ids[task["prompt"]].append(task["task_id"])

        async def intact(number: int) -> bool:
            outcome = outcomes.get(f"job-{number}")
            if outcome is None or outcome.status != "succeeded" or not outcome.files:
                return False
            async with http.get(f"/files/{outcome.task_id}/0.png") as served:
                digest = hashlib.sha256(await served.read()).digest()
            known = outcome.task_id in task_ids[f"fleet job {number}"] and outcome.units == price
            return known and _digest(outcome.files[0]) == digest

        verified = [await intact(number) for number in range(conditions.jobs)]
    observed = run.observed
    times = [(task["created_at"], max(task["due_at"], task["ready_at"] or 0)) for task in tasks]
    return {
        "jobs": conditions.jobs,
        "created": len(tasks),
        "duplicates": sum(len(ids) > conditions.passes for ids in task_ids.values()),
        "lost": verified.count(False),
        "billed": account["units_billed"],
        "due": price * conditions.jobs,
        "standstill": round(standstill([begin for begin, _ in times], observed.outages), 1),
        **usage(
            times,
            conditions.limit,
            observed.outages + observed.leases,
            reserved(tasks, run.proxy.unanswered),
        ),
    }


def reserved(tasks: list[dict[str, Any]], unanswered: list[tuple[float, str]]) -> list[tuple[float, float]]:
    """Return the times in which a slot was kept for a create without a usable response or a task."""
    begins = {task["external_task_id"]: task["created_at"] for task in tasks}
    spans: list[tuple[float, float]] = []
    until: dict[str, float] = {}
    for at, name in sorted(unanswered):
        begin, end = max(at, until.get(name, at)), min(begins.get(name, inf), at + LONGEST_CREATE)
        if begin < end:
            spans.append((begin, end))
            until[name] = end
    return spans


def standstill(begins: list[float], outages: list[tuple[float, float]]) -> float:
    """Return the longest time between two creates, excluding outages."""

    def working(begin: float, end: float) -> float:
        away = sum(max(0.0, min(end, until) - max(begin, since)) for since, until in outages)
        return end - begin - away

    begins = sorted(begins)
    return max(map(working, begins, begins[1:]), default=0.0)


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()


def usage(
    times: list[tuple[float, float]],
    limit: int,
    outages: list[tuple[float, float]],
    kept: list[tuple[float, float]] | None = None,
) -> dict[str, float]:
    """Return the peak and the utilization of the *limit* by tasks with these *times* and by *kept* slots."""
    moves = [(begin, 1, 0) for begin, _ in times] + [(end, -1, 0) for _, end in times]
    moves += [(begin, 0, 1) for begin, _ in kept or ()] + [(end, 0, -1) for _, end in kept or ()]
    moves += [(edge, 0, 0) for edge in {edge for outage in outages for edge in outage}]
    last = sorted(begin for begin, _ in times)[max(0, len(times) - limit - 1)]
    now = held = peak = 0
    before = busy = running = length = 0.0
    full = False
    for at, task, slot in sorted(moves):
        out = any(begin <= before < end for begin, end in outages)
        if full and not out and at <= last:
            busy += min(now + held, limit) * (at - before)
            running += min(now, limit) * (at - before)
            length += at - before
        now, held, before = now + task, held + slot, at
        peak = max(peak, now)
        full = full or now + held >= limit * 0.95
    shares = (busy / length / limit, (busy - running) / length / limit) if length else (0.0, 0.0)
    return {"peak": peak, "limit": limit} | dict(
        zip(("utilization", "reserved"), (round(share, 4) for share in shares), strict=True)
    )


async def measure(conditions: Conditions) -> dict[str, Any]:
    """Start everything, execute the run, and return its figures."""
    c = conditions
    slots = c.limit * 10 if c.policy == "permits" else c.limit
    words = [f"--slots={slots}", f"--work-seconds={c.work_seconds}", "--queue-seconds=0", "--allow-private"]
    words += [f"--webhook-secret={SECRET}"] + ([] if c.unique else ["--allow-duplicates"])
    service = Emulator(c.folder, *words)
    cluster = Cluster(c.folder / "postgres", "shared_preload_libraries=pg_stat_statements")
    begin = time.monotonic()
    try:
        await service.start()
        async with (
            cluster,
            Proxy(service.url, probability=c.faults, seed=c.seed) as proxy,
            Fleet(cluster.dsn, webhook_secrets=[SECRET]) as fleet,
            callbacks(fleet) as callback_url,
        ):
            await fleet.init()
            run = Run(c, cluster, service, proxy)
            outcomes = await run.execute(fleet, callback_url)
            seconds = time.monotonic() - begin
        await service.kill()  # the audit uses only the state on disk
        await service.start()
        numbers = await audit(c, service.url, outcomes, run)
    finally:
        await service.kill()
    observed = run.observed
    return numbers | {
        "worker_kills": observed.kills["worker"],
        "db_kills": observed.kills["db"],
        "emulator_kills": observed.kills["emulator"],
        "reboots": observed.kills["reboot"],
        "scale_ins": observed.kills["scale-in"],
        "freezes": observed.kills["freeze"],
        "jobs_per_second": round(c.jobs / seconds, 2),
        "statements_per_job": round(observed.statements / c.jobs, 1),
        "faults": proxy.faults.total(),
        "passes": c.passes,
        "policy": c.policy,
        "seed": c.seed,
        "finished": observed.finished,
        "seconds": round(seconds, 1),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Kill the parts of a fleet, and count jobs paid for twice or lost."
    )
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--passes", type=int, choices=[1, 2], default=1, help="tasks of each job")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--worker-kills", type=int, default=10)
    parser.add_argument("--db-kills", type=int, default=2)
    parser.add_argument("--emulator-kills", type=int, help="default: one in five of --worker-kills")
    parser.add_argument("--reboots", type=int, default=1, help="kills of all workers at one moment")
    parser.add_argument("--scale-ins", type=int, default=1, help="workers that are stopped for good")
    parser.add_argument("--freezes", type=int, default=1, help="workers stopped for longer than their lease")
    parser.add_argument("--lease", type=float, default=30.0, help="heartbeat timeout of a worker, in seconds")
    parser.add_argument("--in-hand", type=int, default=32, help="new jobs that a worker takes at once")
    parser.add_argument("--callbacks", action="store_true", help="let the service send callbacks")
    parser.add_argument("--faults", type=float, default=0.10, help="share of API calls with a fault")
    parser.add_argument("--limit", type=int, default=9, help="slots of the account")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policy", choices=["permits", "aimd"], default="permits")
    parser.add_argument(
        "--unique", choices=["on", "off"], default="on", help="whether the service refuses an id it knows"
    )
    parser.add_argument("--work-seconds", type=float, default=10.0, help="seconds a task takes")
    parser.add_argument("--seconds", type=float, default=7200.0, help="stop the run after so many seconds")
    parser.add_argument("--folder", type=Path, help="keep all files in this empty folder")
    parser.add_argument("--scale", action="store_true", help="measure throughput and cost instead")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    return parser


def main() -> int:
    """Run the benchmark, print its figures, and return 0 if every promise was kept."""
    options = vars(_parser().parse_args())
    quiet = options.pop("json")
    if options.pop("scale"):
        from benchmarks.fleet_scale import scale

        print(json.dumps(asyncio.run(scale(options["seed"]))))
        return 0
    folder = options.pop("folder")
    if options["emulator_kills"] is None:
        options["emulator_kills"] = options["worker_kills"] // 5
    options["unique"] = options["unique"] == "on"
    with temporary_folder() as temporary:
        path = (folder or temporary).absolute()
        path.mkdir(parents=True, exist_ok=True)
        found = asyncio.run(measure(Conditions(**options, folder=path)))
    if not quiet:
        print(f"{found['jobs']} jobs: {found['duplicates']} paid for twice, {found['lost']} lost,", end=" ")
        print(f"at most {found['peak']} of {found['limit']} slots in use, in {found['seconds']} s")
    print(json.dumps(found))
    bad = found["duplicates"] or found["lost"] or found["peak"] > found["limit"]
    idle = found["utilization"] < MIN_UTILIZATION
    return 1 if bad or idle or found["standstill"] > options["lease"] + MAX_STANDSTILL else 0


if __name__ == "__main__":
    raise SystemExit(main())
