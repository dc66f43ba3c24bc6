"""Leases and permits of many machines: the limit holds, a crash leaks nothing, and no job starves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from attrs import evolve

from kling_expand import ExpandRequest, Ratios
from kling_expand.errors import InvalidRequest, JournalError, NotSubmitted
from kling_expand.fleet import lease as module
from kling_expand.fleet.lease import Lease, LeaseLost, Permits, QueuedJob, Waiter
from kling_expand.fleet.queue import Fleet, queue_name
from kling_expand.fleet.schema import ALONE, FOLLOW, MAX_DEATHS, NEW, STARVATION_TIMEOUT
from kling_expand.models import Task
from kling_expand.store.postgres import JobOutcome, PostgresStore, TakenOver
from kling_expand.store.postgres_pool import ConnectionPool
from kling_expand.testing import FAILED, SUCCEEDED, record_job

pytest_plugins = ["support.postgres", "support.fleet"]


@pytest.fixture
def database(fleet: Fleet) -> ConnectionPool:
    """The database of an empty fleet."""
    return fleet.database


async def start_lease(database: ConnectionPool, timeout: float = 30.0, **options: Any) -> Lease:  # noqa: ASYNC109 - the lease's own
    """Return the lease of a new worker whose jobs need permits."""
    lease = Lease(database, queue_name("default"), "default", timeout=timeout, **{"exact": True} | options)
    await lease.begin()
    return lease


@asynccontextmanager
async def permits_of(database: ConnectionPool, limit: int = 4, **options: Any) -> AsyncIterator[Permits]:
    """Yield the permits of a new worker."""
    lease = await start_lease(database, **options)
    async with Permits(lease, limit) as permits:
        yield permits
    await lease.end()


async def expire(database: ConnectionPool, lease: Lease) -> None:
    """End the lease of a worker."""
    query = "UPDATE kling_workers SET lease_until = clock_timestamp() WHERE id = %s RETURNING 1"
    await database.fetch(query, lease.worker)


async def requeue_dead(database: ConnectionPool) -> None:
    """Have another worker requeue the jobs of dead workers."""
    other = await start_lease(database)
    await mark_steady(database, other)
    await other.beat()
    await other.end()


async def mark_steady(database: ConnectionPool, lease: Lease) -> None:
    """Record that a worker has sent timely heartbeats for long enough to delete others."""
    query = "UPDATE kling_workers SET steady_since = steady_since - interval '1 h' WHERE id = %s RETURNING 1"
    await database.fetch(query, lease.worker)


async def acquire(lease: Lease, key: str, n: int, limit: int, waited: float) -> bool:
    """Return whether a worker gets *n* permits for the job with *key*."""
    return await lease.exchange_permits([], [Waiter(key, n, waited)], limit) == 1


async def release(lease: Lease, *keys: str) -> None:
    """Release the permits of a worker's jobs with these keys."""
    await lease.exchange_permits(keys, [], 1)


async def record_running(
    database: ConnectionPool, owner: int, key: str, n: int, account: str = "default"
) -> str:
    """Record a task that a worker created, and return its external id."""
    store = PostgresStore(database, owner=owner, account=account)
    job = await record_job(store, key, n=n)
    await store.mark_sending(job.external_task_id)
    await store.observe(job.external_task_id, Task(f"task of {key}", "submitted"))
    return job.external_task_id


def is_waiting(holding: "asyncio.Future[None]") -> bool:
    return not holding.done()


async def test_the_limit_is_reached_and_never_exceeded(database: ConnectionPool) -> None:
    """Three workers with jobs of all sizes: every job gets its permits, and the limit is never exceeded."""
    now = most = 0

    async def job(permits: Permits, n: int, key: str) -> None:
        nonlocal now, most
        async with permits.hold(n, key):
            now += n
            most = max(most, now)
            await asyncio.sleep(0)
            now -= n

    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(permits_of(database)) for _ in range(3)]
        jobs = [job(workers[number % 3], 1 + number % 4, str(number)) for number in range(40)]
        await asyncio.gather(*jobs)
    assert now == 0
    assert most <= 4


async def test_permits_end_with_the_lease(database: ConnectionPool) -> None:
    """The permits of a dead worker become free when another worker's heartbeat requeues its jobs."""
    dead = await start_lease(database)
    assert await acquire(dead, "a", 4, 4, 0.0)
    async with permits_of(database) as living:
        waiting = asyncio.ensure_future(living.hold(4, "b").__aenter__())
        await asyncio.sleep(0.2)
        assert is_waiting(waiting)
        await requeue_dead(database)  # the lease of the dead worker has not ended yet
        await asyncio.sleep(0.1)
        assert is_waiting(waiting)
        await expire(database, dead)
        await requeue_dead(database)
        async with asyncio.timeout(10):
            await waiting
    with pytest.raises(LeaseLost):
        await dead.beat()
    with pytest.raises(LeaseLost):
        await acquire(dead, "c", 1, 4, 0.0)


async def test_a_worker_without_a_lease_sends_nothing(database: ConnectionPool) -> None:
    """A worker that resumes after the end of its lease can neither send a create nor take a job."""
    lease = await start_lease(database)
    store = PostgresStore(database, owner=lease.worker, leased=True)
    name = (await record_job(store)).external_task_id
    await store.mark_sending(name)
    await expire(database, lease)
    await requeue_dead(database)
    with pytest.raises(TakenOver):
        await store.mark_sending(name)
    assert await lease.take(5, 5, FOLLOW) == []


async def test_a_response_from_before_a_stop_is_not_trusted(
    database: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response from before the process was stopped is not trusted afterwards."""
    lease = await start_lease(database)
    store = PostgresStore(database, owner=lease.worker, leased=True)
    name = (await record_job(store)).external_task_id
    fetch = database.fetch

    async def stopped(query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Fetch the rows, but return them only when the lease has ended and others have the jobs."""
        rows = await fetch(query, *values)
        monkeypatch.setattr(database, "fetch", fetch)
        await expire(database, lease)
        await requeue_dead(database)
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 40.0)
        return rows

    monkeypatch.setattr(database, "fetch", stopped)
    with pytest.raises(TakenOver):
        await store.mark_sending(name)


async def test_a_task_of_a_dead_worker_counts(database: ConnectionPool) -> None:
    """A dead worker's task counts until it ends or is too old, but not in addition to its job's permits."""
    name = await record_running(database, -9, "a", 3)
    one = await start_lease(database)
    assert await acquire(one, "b", 1, 4, 0.0)
    assert not await acquire(one, "c", 1, 4, 0.0)
    assert await acquire(one, "a", 3, 4, 0.0)  # counts once, not twice
    assert not await acquire(one, "c", 1, 4, 0.0)
    await release(one, "a")
    await PostgresStore(database).observe(name, evolve(SUCCEEDED, task_id="task of a"))
    assert await acquire(one, "c", 3, 4, 0.0)
    await release(one, "b", "c")
    await record_running(database, -9, "d", 3)
    assert not await acquire(one, "e", 3, 4, 0.0)
    old = "UPDATE kling_jobs SET last_post_mark = last_post_mark::float8 - 4000 RETURNING 1"
    await database.fetch(old)
    assert await acquire(one, "e", 3, 4, 0.0)


async def test_each_account_has_its_own_limit(database: ConnectionPool) -> None:
    """The permits and tasks of one account do not count against the limit of another."""
    one, other = await start_lease(database), await start_lease(database, account="other")
    await record_running(database, -9, "a", 4)
    assert await acquire(other, "b", 4, 4, 0.0)
    assert not await acquire(one, "c", 1, 4, 0.0)
    await record_running(database, -9, "d", 4, account="third")
    third = await start_lease(database, account="third")
    assert not await acquire(third, "e", 1, 4, 0.0)


async def test_a_heavy_job_does_not_starve(database: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the starvation timeout, a job that needs many permits is served before smaller ones."""
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)
    heavy, light = await start_lease(database), await start_lease(database)
    assert await acquire(light, "first", 1, 4, 0.0)
    assert not await acquire(heavy, "all", 4, 4, 1.0)
    assert await acquire(light, "second", 1, 4, 0.0)  # the heavy job has not waited long yet
    await release(light, "first", "second")
    await acquire(light, "first", 1, 4, 0.0)
    assert not await acquire(heavy, "all", 4, 4, STARVATION_TIMEOUT + 1)
    assert not await acquire(light, "second", 1, 4, 0.0)
    await release(light, "first")
    assert await acquire(heavy, "all", 4, 4, STARVATION_TIMEOUT + 1)
    await release(heavy, "all")
    assert await acquire(light, "second", 4, 4, 0.0)  # no heavy job is waiting any more


async def test_a_dead_waiter_blocks_others_for_at_most_ten_seconds(database: ConnectionPool) -> None:
    """A worker that last asked ten seconds ago blocks no other worker, although its lease lasts."""
    dead, living = await start_lease(database), await start_lease(database)
    assert await acquire(living, "a", 1, 4, 0.0)
    assert not await acquire(dead, "all", 4, 4, 100.0)
    assert not await acquire(living, "b", 1, 4, 0.0)
    await database.fetch("UPDATE kling_workers SET asked_at = asked_at - interval '10 s' RETURNING 1")
    assert await acquire(living, "b", 1, 4, 0.0)


async def test_closed_permits_grant_nothing(database: ConnectionPool) -> None:
    """Current and later waiters get `NotSubmitted`, and a cancelled waiter leaks no permit."""
    async with permits_of(database) as permits:
        async with permits.hold(4, "a"):
            waiting = [asyncio.ensure_future(permits.hold(1, name).__aenter__()) for name in "bc"]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0.05)
            permits.close()
            with pytest.raises(NotSubmitted):
                await waiting[1]
            with pytest.raises(NotSubmitted):
                await permits.hold(1, "d").__aenter__()
        with pytest.raises(InvalidRequest, match="n must be at most 4, the number of permits, got 5"):
            await permits.hold(5, "e").__aenter__()
    async with permits_of(database) as later, later.hold(4, "f"):
        pass


async def submit(fleet: Fleet, *keys: str) -> None:
    await fleet.submit_many(ExpandRequest("dog.png", Ratios(up=1.0), key=key) for key in keys)


def keys_and_stages(jobs: list[QueuedJob]) -> list[tuple[str, str]]:
    """Return the key and the stage of each job."""
    return [(job.payload["key"], job.stage) for job in jobs]


async def test_a_job_with_a_task_goes_to_its_own_queue(fleet: Fleet, database: ConnectionPool) -> None:
    """Jobs with a task that a dead or stopped worker has left are taken before any new jobs."""
    await submit(fleet, "a", "b", "c", "d")
    first = await start_lease(database)
    assert keys_and_stages(await first.take(3, 0)) == [("a", NEW), ("b", NEW), ("c", NEW)]
    await record_running(database, first.worker, "b", 1)
    await expire(database, first)
    await requeue_dead(database)
    second = await start_lease(database)
    (followed,) = await second.take(0, 10, FOLLOW)
    assert keys_and_stages([followed]) == [("b", FOLLOW)]
    await second.end()
    third = await start_lease(database)
    assert keys_and_stages(await third.take(1, 10, FOLLOW)) == [("b", FOLLOW), ("a", NEW)]
    assert (await third.beat()).idle == {followed.id, followed.id - 1}


async def test_a_lost_job_is_neither_removed_nor_requeued(fleet: Fleet, database: ConnectionPool) -> None:
    """A worker that has lost a job can neither remove it from the queue nor requeue it."""
    await submit(fleet, "a")
    first, second = await start_lease(database), await start_lease(database)
    (job,) = await first.take(1, 0)
    await expire(database, first)
    await requeue_dead(database)
    (taken,) = await second.take(1, 0)
    await PostgresStore(database, owner=first.worker).record_outcome(JobOutcome("a", "failed"), queued=job.id)
    await first.requeue(job)
    assert await database.fetch("SELECT status::text, worker_id FROM procrastinate_jobs") == [
        ("doing", second.worker)
    ]
    await PostgresStore(database, owner=second.worker).record_outcome(
        JobOutcome("a", "failed"), queued=taken.id
    )
    assert await database.fetch("SELECT 1 FROM procrastinate_jobs") == []


async def test_a_death_counts_only_for_running_jobs(fleet: Fleet, database: ConnectionPool) -> None:
    """A death does not count for jobs that wait for a permit, or whose task only has to be followed."""
    await submit(fleet, "waits", "works", "runs")
    for death in range(1, MAX_DEATHS + 2):
        worker = await start_lease(database)
        jobs = await worker.take(3, 3, FOLLOW, ALONE)
        assert len(jobs) == 3
        assert {job.deaths for job in jobs if job.payload["key"] != "works"} == {0}
        assert {job.attempts for job in jobs} == {0}
        places = {job.payload["key"]: job.stage for job in jobs}
        assert places["works"] == (ALONE if death == MAX_DEATHS + 1 else NEW)
        await acquire(worker, "works", 1, 9, 0.0)
        await acquire(worker, "runs", 1, 9, 0.0)
        if death == 1:
            await record_running(database, worker.worker, "runs", 1)
        await expire(database, worker)
        await requeue_dead(database)
    (poisoned,) = [job for job in await (await start_lease(database)).take(0, 3, FOLLOW) if job.deaths]
    assert (poisoned.payload["key"], poisoned.deaths) == ("works", MAX_DEATHS + 1)


async def test_only_one_worker_runs_the_jobs_that_must_run_alone(
    fleet: Fleet, database: ConnectionPool
) -> None:
    """Only the oldest worker runs the jobs that must run alone, and only one worker at a time does."""
    await submit(fleet, "a", "b")
    await database.fetch("UPDATE procrastinate_jobs SET queue_name = queue_name || ':alone' RETURNING 1")
    old, young = await start_lease(database), await start_lease(database)
    assert [(await worker.beat()).runs_alone for worker in (old, young)] == [True, False]
    await old.end()
    changed = await start_lease(database, alone=True)
    assert [(await worker.beat()).runs_alone for worker in (changed, young)] == [True, False]
    assert keys_and_stages(await changed.take(0, 1, ALONE)) == [("a", ALONE)]
    await changed.end()
    assert (await young.beat()).runs_alone


async def test_retries_are_timed_by_the_database(fleet: Fleet, database: ConnectionPool) -> None:
    """A retry is due by the clock of the database, whatever the clocks of the workers show."""
    await submit(fleet, "a")
    worker = await start_lease(database)
    (job,) = await worker.take(1, 0)
    await worker.requeue(job, 60.0, charge=True)
    ((seconds, attempts),) = await database.fetch(
        "SELECT extract(epoch FROM scheduled_at - clock_timestamp()), attempts FROM procrastinate_jobs"
    )
    assert 50.0 < seconds <= 60.0
    assert attempts == 1
    assert await worker.take(1, 0) == []


async def test_a_lost_response_loses_no_job(fleet: Fleet, database: ConnectionPool) -> None:
    """A job that the worker does not know of is requeued when two heartbeats in a row find it."""
    await submit(fleet, "a")
    worker = await start_lease(database)
    (job,) = await worker.take(1, 0)
    assert (await worker.beat()).idle == {job.id}
    assert await worker.take(1, 0) == []
    await worker.beat(lost={job.id})
    assert keys_and_stages(await worker.take(1, 0)) == [("a", NEW)]


async def test_an_upgrade_of_the_tables_stops_a_worker(database: ConnectionPool) -> None:
    """A worker of the older version ends with an error at its next heartbeat."""
    worker = await start_lease(database)
    await database.fetch("UPDATE kling_schema SET version = 99 RETURNING 1")
    with pytest.raises(JournalError, match="got 99; restart this worker"):
        await worker.beat()


async def test_init_can_be_repeated_while_workers_run(fleet: Fleet, database: ConnectionPool) -> None:
    """`init` recreates functions and triggers, and the prepared statements of workers still work."""
    await fleet.submit_many(ExpandRequest("a.png", Ratios(up=1.0), key=f"k{n}") for n in range(20))
    worker = await start_lease(database)
    store = PostgresStore(database, owner=worker.worker, leased=True)
    for number in range(12):
        if number % 6 == 5:
            await fleet.init()
        (job,) = await worker.take(1, 0)
        key = job.payload["key"]
        assert await acquire(worker, key, 1, 9, 0.0)
        await worker.beat([job.id])
        name = (await record_job(store, key)).external_task_id
        await store.mark_sending(name)
        await store.observe(name, FAILED)
        await store.record_outcome(JobOutcome(key, "failed"), queued=job.id)
        await release(worker, key)
        stats = await fleet.stats()
        assert (stats.queued, stats.running, stats.outcomes) == (19 - number, 0, {"failed": number + 1})


async def test_waiters_survive_a_lost_connection(database: ConnectionPool, fleet: Fleet) -> None:
    """When all connections are cut, held permits stay held and waiters keep waiting."""
    async with permits_of(database) as one, permits_of(database) as other:
        async with one.hold(3, "a"):
            waiting = asyncio.ensure_future(other.hold(2, "b").__aenter__())
            await asyncio.sleep(0.05)
            async with ConnectionPool(fleet.dsn) as admin:
                await admin.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            await asyncio.sleep(0.2)
            assert is_waiting(waiting)
        async with asyncio.timeout(10):
            await waiting
