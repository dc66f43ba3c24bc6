"""Workers: whatever is killed, every job is executed once and has one outcome."""

import asyncio
import signal
import sys
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from support.fleet_workers import WorkerProcess, created, outcomes, requests, working

from benchmarks.fleet import callbacks
from kling_expand import ExpandRequest, Ratios
from kling_expand.emulator import Emulator
from kling_expand.errors import JournalError
from kling_expand.fleet.dev_server import Cluster
from kling_expand.fleet.queue import CALLBACK_CHANNEL, Fleet
from kling_expand.fleet.schema import MAX_DEATHS
from kling_expand.fleet.worker import Worker
from kling_expand.jobs.poll_schedule import ExponentialSchedule
from kling_expand.store.base import JobState

pytest_plugins = ["support.postgres", "support.fleet"]
SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"


def first_bytes(path: str) -> bytes:
    return Path(path).read_bytes()[:4]


@pytest.mark.parametrize("limit", [None, 4])
async def test_a_job_queued_twice_is_executed_once(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path, limit: int | None
) -> None:
    """Two workers create one task for each job, save its picture, and record its cost."""
    assert await fleet.submit_many(requests(photo, 12)) == 12
    assert await fleet.submit_many(requests(photo, 12)) == 12
    options: dict[str, Any] = {"max_in_flight": limit, "output": str(photo.parent / "out")}
    async with working(dsn, emulator, **options), working(dsn, emulator, **options):
        found = {outcome.key: outcome for outcome in await outcomes(fleet)}
        stats = await fleet.stats()
    assert {f"k{number}" for number in range(12)} == set(found)
    assert {("succeeded", 8)} == {(outcome.status, outcome.units) for outcome in found.values()}
    assert {b"\x89PNG"} == {first_bytes(outcome.files[0]) for outcome in found.values()}
    assert set(emulator.account.accepted.values()) == {1}
    assert len(emulator.account.tasks) == 12
    assert limit is None or emulator.account.peak_slots <= limit
    assert (stats.queued, stats.running, stats.units_billed, stats.in_flight) == (0, 0, 96, 0)
    assert (stats.outcomes, stats.recent_outcomes) == ({"succeeded": 12}, 12)
    assert len(stats.workers) == 2


async def test_the_jobs_of_a_killed_worker_continue_elsewhere(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """After the heartbeat timeout, another worker follows the running tasks without creating them again."""
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 3))
    options = ["--dsn", dsn, "--base-url", emulator.url, "--heartbeat-timeout", "1.5", "--max-in-flight", "3"]
    victim = await asyncio.create_subprocess_exec(
        "/usr/bin/env", f"KLING_API_KEY={emulator.api_key}",
        sys.executable, "-m", "kling_expand", "fleet", "worker", *options,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await created(emulator, 3)
    victim.send_signal(signal.SIGKILL)
    await victim.wait()
    async with working(dsn, emulator, max_in_flight=3):
        async with asyncio.timeout(1.5 + 15):
            while (await fleet.stats()).workers[-1][1] < 3:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        emulator.advance(2000)
        assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}
    assert emulator.account.requests["create"] == len(emulator.account.tasks) == 3


async def test_a_job_longer_than_the_heartbeat_timeout_stays_with_its_worker(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """A worker that sends heartbeats keeps its jobs, however long they take."""
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 2))
    async with working(dsn, emulator, heartbeat_timeout=0.6), working(dsn, emulator, heartbeat_timeout=0.6):
        await created(emulator, 2)
        await asyncio.sleep(2.0)  # three timeouts by the clock of a real database
        with psycopg.connect(dsn) as database:
            rows = database.execute("SELECT status::text, attempts FROM procrastinate_jobs").fetchall()
            assert rows == [("doing", 0)] * 2
        emulator.advance(2000)
        assert len(await outcomes(fleet)) == 2
    assert emulator.account.requests["create"] == 2


async def test_a_stopped_worker_hands_its_jobs_over(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """The next worker follows the running tasks without creating them again, and runs the waiting jobs."""
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 4))
    async with working(dsn, emulator, max_in_flight=2):
        await created(emulator, 2)
    stats = await fleet.stats()
    assert (stats.queued, stats.running, stats.permits, stats.workers) == (4, 0, 0, ())
    emulator.work_seconds = 0.05
    emulator.advance(2000)
    async with working(dsn, emulator):
        assert len(await outcomes(fleet)) == 4
    assert len(emulator.account.tasks) == 4


async def test_a_killed_database_loses_no_job(own_cluster: Cluster, emulator: Emulator, photo: Path) -> None:
    """After a SIGKILL and a restart of the database, every job succeeds and none is paid for twice."""
    cluster = own_cluster
    emulator.work_seconds = 0.5
    async with cluster, Fleet(cluster.dsn, webhook_secrets=[]) as fleet:
        await fleet.init()
        await fleet.submit_many(requests(photo, 12))
        async with working(cluster.dsn, emulator, max_in_flight=4):
            await created(emulator, 5)
            await asyncio.to_thread(cluster.kill)
            await cluster.start()
            assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}
            assert (await fleet.store.counts())[JobState.SUCCEEDED] == 12
    assert len(emulator.account.tasks) == 12
    assert emulator.account.peak_slots <= 4


async def test_a_callback_reaches_the_worker_of_its_job(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """A callback to any process ends the job on its worker without a poll of the task."""
    emulator.webhook_secret, emulator.work_seconds = SECRET, 0.3
    async with Fleet(dsn, webhook_secrets=[SECRET]) as web, callbacks(web) as url:
        await fleet.submit_many(requests(photo, 2))
        rare = ExponentialSchedule(Random(0), first=1000.0, longest=1000.0)
        async with working(dsn, emulator, callback_url=url, webhook_secret=SECRET, schedule=rare):
            assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}
    assert emulator.account.requests["query"] == 0


async def test_notifications_of_other_programs_are_ignored(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """Any role of the database can send notifications, so those that are not callbacks are ignored."""
    emulator.work_seconds = 0.3
    await fleet.submit_many(requests(photo, 1))
    async with working(dsn, emulator):
        await created(emulator, 1)
        for payload in ("5", "[]", '{"headers": {}, "body": []}', '{"headers": 5, "body": "x"}'):
            await fleet.database.fetch("SELECT pg_notify(%s, %s)", CALLBACK_CHANNEL, payload)
        assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}


async def test_workers_without_permits_share_a_small_account(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """Two workers learn the account's limit from a small number of refusals, which are free."""
    emulator.slots = 1
    await fleet.submit_many(requests(photo, 8))
    async with working(dsn, emulator), working(dsn, emulator):
        assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}
    assert len(emulator.account.tasks) == 8
    assert emulator.account.peak_slots == 1
    assert emulator.account.refusals[1303] < 40


LEASE = 2.0


async def test_tasks_of_a_killed_worker_free_their_slots(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """The tasks of a killed worker free their slots, even if all other workers are full of waiting jobs.

    The restarted worker and the surviving one have as many jobs as they can take, all waiting for permits.
    """
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 12))
    options = ("--max-in-flight", 2, "--concurrency", 4, "--heartbeat-timeout", LEASE)
    victim, survivor = WorkerProcess(dsn, emulator, *options), WorkerProcess(dsn, emulator, *options)
    await victim.start()
    await created(emulator, 2)
    await survivor.start()
    async with asyncio.timeout(20):
        while (await fleet.stats()).running < 8:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    try:
        await victim.kill()
        await victim.start()
        emulator.work_seconds = 0.05
        emulator.advance(2000)
        async with asyncio.timeout(LEASE + 15):
            await created(emulator, 3)
        assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}
    finally:
        await asyncio.gather(victim.kill(), survivor.kill())
    assert len(emulator.account.tasks) == 12
    assert emulator.account.peak_slots <= 2


async def test_a_frozen_worker_loses_its_permits_and_sends_nothing(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """Another worker takes over the jobs. When the frozen one resumes, it starts again and pays for none."""
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 6))
    options = (
        "--max-in-flight",
        2,
        "--concurrency",
        4,
        "--heartbeat-timeout",
        LEASE,
        "--shutdown-timeout",
        0,
    )
    frozen = WorkerProcess(dsn, emulator, *options)
    await frozen.start()
    try:
        await created(emulator, 2)
        frozen.signal(signal.SIGSTOP)
        emulator.work_seconds = 0.05
        emulator.advance(2000)
        async with working(dsn, emulator, max_in_flight=2, heartbeat_timeout=LEASE):
            async with asyncio.timeout(LEASE + 15):
                await created(emulator, 3)
            frozen.signal(signal.SIGCONT)
            assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}
        await fleet.submit_many(requests(photo, 7))  # only the formerly frozen worker is left
        assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}
    finally:
        await frozen.kill()
    assert len(emulator.account.tasks) == 7
    assert set(emulator.account.accepted.values()) == {1}


POISON = """
import os, signal
from kling_expand.fleet import job
job.load = lambda request: os.kill(os.getpid(), signal.SIGKILL) if "poison" in request.key else plain(request)
async def plain(request):
    return request
"""


async def test_a_poisoned_job_is_refused(fleet: Fleet, dsn: str, emulator: Emulator, photo: Path) -> None:
    """A job that kills each worker that runs it is refused with the reason, and other jobs succeed."""
    await fleet.submit(ExpandRequest(photo, Ratios(right=1.0), key="poison"))
    await fleet.submit_many(requests(photo, 3))
    with psycopg.connect(dsn) as database:  # after one more death the job runs alone
        database.execute("INSERT INTO kling_deaths VALUES ('default', 'poison', %s)", (MAX_DEATHS - 1,))
    options = ("--max-in-flight", 4, "--heartbeat-timeout", 1, "--shutdown-timeout", 0)
    worker = WorkerProcess(dsn, emulator, *options, setup=POISON)
    supervisor = asyncio.create_task(worker.supervise())
    try:
        async with asyncio.timeout(90):
            found = {outcome.key: outcome async for outcome in fleet.results()}
    finally:
        supervisor.cancel()
        await asyncio.gather(supervisor, return_exceptions=True)
        await worker.kill()
    assert found["poison"].status == "refused"
    assert "workers died running this job" in str(found["poison"].error)
    assert {found[f"k{number}"].status for number in range(3)} == {"succeeded"}
    assert worker.ends == 2


async def test_a_worker_stops_in_time_without_its_database(
    own_cluster: Cluster, emulator: Emulator, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopping worker does not wait for the database, and its jobs continue after the end of its lease."""
    monkeypatch.setattr("kling_expand.fleet.worker.HAND_OVER_TIMEOUT", 1.0)
    emulator.work_seconds = 1000.0
    async with own_cluster as cluster, Fleet(cluster.dsn, webhook_secrets=[]) as fleet:
        await fleet.init()
        await fleet.submit_many(requests(photo, 3))
        async with working(cluster.dsn, emulator, max_in_flight=2):
            await created(emulator, 2)
            cluster.kill()
            begin = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begin < 1.0 + 5  # on a busy machine
        await cluster.start()
        emulator.work_seconds = 0.05
        emulator.advance(2000)
        async with working(cluster.dsn, emulator, max_in_flight=2):
            await outcomes(fleet)
    assert len(emulator.account.tasks) == 3


async def test_a_worker_has_three_connections(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """A worker uses two or three connections, however many jobs it runs."""
    others = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    query = f"SELECT count(*) FROM pg_stat_activity WHERE {others}"
    await fleet.submit_many(requests(photo, 20))
    await fleet.database.aclose()
    async with working(dsn, emulator, max_in_flight=4, output=str(photo.parent / "out")):
        with psycopg.connect(dsn, autocommit=True) as database:
            most = 0
            while len(emulator.account.tasks) < 20:
                row = database.execute(query).fetchone()
                most = max(most, row[0] if row else 0)
                await asyncio.sleep(0.05)
    assert 2 <= most <= 3


async def test_workers_can_use_a_pooler_in_transaction_mode(
    fleet: Fleet, pooled_dsn: str, emulator: Emulator, photo: Path
) -> None:
    """Workers and submitters work through pgbouncer, because no state is kept in a session."""
    options: dict[str, Any] = {"max_in_flight": 3, "output": str(photo.parent / "out")}
    await fleet.submit_many(requests(photo, 6))
    async with (
        Fleet(pooled_dsn, webhook_secrets=[]) as reader,
        working(pooled_dsn, emulator, **options),
        working(pooled_dsn, emulator, **options),
    ):
        assert {"succeeded"} == {outcome.status for outcome in await outcomes(reader)}
        assert (await reader.stats()).states[JobState.DONE] == 6
    assert len(emulator.account.tasks) == 6
    assert emulator.account.peak_slots <= 3


async def test_an_unknown_task_is_kept_as_failed(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """A job of another program in the queue gets an outcome, and is kept in the table as failed."""
    await fleet.submit_many(requests(photo, 1))
    with psycopg.connect(dsn, autocommit=True) as database:
        known = "kling_expand.expand"
        rows = [("other.task", '{"key": "k0"}'), (known, '{"nothing": 1}'), (known, "[1]")]
        for task, arguments in rows:
            database.execute(
                "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES (%s, %s, %s)",
                (fleet.queue, task, arguments),
            )
        async with working(dsn, emulator):
            found = {outcome.key: outcome for outcome in await outcomes(fleet)}
        assert sorted(outcome.status for outcome in found.values()) == [*["refused"] * 3, "succeeded"]
        assert found["k0"].status == "succeeded"
        kept = database.execute(
            "SELECT task_name, status::text FROM procrastinate_jobs ORDER BY id"
        ).fetchall()
    assert kept == [("other.task", "failed"), (known, "failed"), (known, "failed")]


@pytest.mark.parametrize("run", ["x" * 300, "ü" * 40, "a:follow", "a b"])
async def test_a_run_may_have_any_name(fleet: Fleet, emulator: Emulator, photo: Path, run: str) -> None:
    """A run with a long or unusual name has its own queue and notifications."""
    async with Fleet(fleet.dsn, run=run, webhook_secrets=[]) as named:
        await named.submit_many(requests(photo, 1))
        worker = Worker(named, api_key=emulator.api_key, base_url=emulator.url, shutdown_timeout=0.0)
        running = asyncio.create_task(worker.run())
        assert [outcome.status for outcome in await outcomes(named)] == ["succeeded"]
        worker.stop()
        await running
    assert (await fleet.stats()).outcomes == {}


async def test_tasks_of_a_run_without_workers_free_their_slots(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """A worker of another run records the ends of these tasks, and leaves their jobs in the queue."""
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 2))
    async with working(dsn, emulator, max_in_flight=2):
        await created(emulator, 2)
    emulator.work_seconds = 0.05
    emulator.advance(2000)
    async with Fleet(dsn, run="other", webhook_secrets=[]) as other:
        await other.submit_many(requests(photo, 2))
        async with working(dsn, emulator, run="other", max_in_flight=2):
            assert {"succeeded"} == {outcome.status for outcome in await outcomes(other)}
    assert (await fleet.stats()).queued == 2
    async with working(dsn, emulator, max_in_flight=2):
        assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}
    assert len(emulator.account.tasks) == 4


async def test_a_worker_whose_permits_fail_ends_with_the_error(
    fleet: Fleet, emulator: Emulator, photo: Path
) -> None:
    """The worker requeues its jobs, and does not take the same jobs again and again."""
    await fleet.submit_many(requests(photo, 3))
    function = "kling_permits"
    with psycopg.connect(fleet.dsn) as database:
        database.execute(f"DROP FUNCTION {function}")
    worker = Worker(
        fleet, max_in_flight=2, api_key=emulator.api_key, base_url=emulator.url, shutdown_timeout=0
    )
    async with asyncio.timeout(20):
        with pytest.raises(JournalError, match="fleet init"):
            await worker.run()
    stats = await fleet.stats()
    assert (stats.queued, stats.running, stats.workers) == (3, 0, ())
