"""Workers: every job is executed once, whatever is killed, and its outcome is reported once."""

import asyncio
import signal
import sys
from pathlib import Path
from random import Random

import psycopg
import pytest
from support.fleet_workers import created, outcomes, requests, working

from benchmarks.fleet import callbacks
from kling_expand.emulator import Emulator
from kling_expand.fleet.dev_server import Cluster
from kling_expand.fleet.queue import Fleet
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
    """Two workers create one task for each job, save its image, and record its cost."""
    assert await fleet.submit_many(requests(photo, 12)) == 12
    assert await fleet.submit_many(requests(photo, 12)) == 12
    options = {"max_in_flight": limit, "output": str(photo.parent / "out")}
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
    """After the heartbeat timeout another worker follows the running tasks, and creates none again."""
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
    """The next worker follows the running tasks without creating them again; waiting jobs were not sent."""
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


async def test_a_killed_database_loses_nothing(own_cluster: Cluster, emulator: Emulator, photo: Path) -> None:
    """After a SIGKILL and a restart of the database every job ends, and none is paid twice."""
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


async def test_a_callback_reaches_the_worker_that_waits(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """A callback to any process ends the job on its worker, without a single poll."""
    emulator.webhook_secret, emulator.work_seconds = SECRET, 0.3
    async with Fleet(dsn, webhook_secrets=[SECRET]) as web, callbacks(web) as url:
        await fleet.submit_many(requests(photo, 2))
        rare = ExponentialSchedule(Random(0), first=1000.0, longest=1000.0)
        async with working(dsn, emulator, callback_url=url, webhook_secret=SECRET, schedule=rare):
            assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}
    assert emulator.account.requests["query"] == 0


async def test_workers_without_permits_share_a_small_account(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """Two workers find the account's limit by refusals, which cost time only and stay few."""
    emulator.slots = 1
    await fleet.submit_many(requests(photo, 8))
    async with working(dsn, emulator), working(dsn, emulator):
        assert {"succeeded"} == {outcome.status for outcome in await outcomes(fleet)}
    assert len(emulator.account.tasks) == 8
    assert emulator.account.peak_slots == 1
    assert emulator.account.refusals[1303] < 40
