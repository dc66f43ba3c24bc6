"""Permits over many machines: the limit holds, a crash leaks none, and no job starves."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import psycopg
import pytest

from kling_expand.errors import InvalidRequest, JournalError, NotSubmitted
from kling_expand.fleet import permits
from kling_expand.fleet.dev_server import Cluster
from kling_expand.fleet.permits import Permits
from kling_expand.models import Task
from kling_expand.store.postgres import PostgresStore, create_tables
from kling_expand.store.postgres_pool import ConnectionPool
from kling_expand.testing import intend

pytest_plugins = ["support.postgres"]


@pytest.fixture(autouse=True)
async def database(dsn: str) -> AsyncIterator[ConnectionPool]:
    async with ConnectionPool(dsn) as database:
        await create_tables(database, permits.SCHEMA)
        yield database


def worker(dsn: str, owner: int, limit: int = 4, **more: Any) -> Permits:
    """Return the permits of one worker."""
    return Permits(dsn, limit, owner=owner, run="r", rng=Random(owner), **{"restart_grace": 0.0} | more)


def end_session(dsn: str, owner: int) -> None:
    """End the database session that holds a worker's permits."""
    query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s"
    with psycopg.connect(dsn, autocommit=True) as database:
        assert database.execute(query, (permits.ALIVE + owner,)).fetchall() == [(True,)]


async def left_running(database: ConnectionPool, owner: int, key: str, n: int) -> None:
    """Record a task that a worker created before it died."""
    store = PostgresStore(database, run="r", owner=owner)
    job = await intend(store, key, n=n)
    await store.mark_sending(job.external_task_id)
    await store.observe(job.external_task_id, Task(f"task of {key}", "submitted"))


async def test_the_limit_is_reached_and_kept(dsn: str) -> None:
    """Three workers with jobs of every weight: all get permits, and never more than the limit are held."""
    now = most = 0

    async def job(permits: Permits, n: int, key: str) -> None:
        nonlocal now, most
        async with permits.hold(n, key):
            now += n
            most = max(most, now)
            await asyncio.sleep(0)
            now -= n

    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker(dsn, owner)) for owner in (1, 2, 3)]
        jobs = [job(workers[number % 3], 1 + number % 4, str(number)) for number in range(60)]
        await asyncio.gather(*jobs)
    assert now == 0
    assert most <= 4


HOLDER = """
import asyncio, sys
from kling_expand.fleet.permits import Permits

async def main():
    async with Permits(sys.argv[1], 4, owner=2, run="r", restart_grace=0.0) as permits, permits.hold(4, "a"):
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_permits_of_a_killed_worker_are_free_at_once(dsn: str) -> None:
    """The permits of a killed worker end with its session, without a timeout."""
    async with worker(dsn, 1) as living:
        dying = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLDER, dsn, stdout=asyncio.subprocess.PIPE
        )
        assert dying.stdout is not None
        assert await dying.stdout.readline() == b"held\n"
        waiting = asyncio.ensure_future(living.hold(4, "b").__aenter__())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        dying.kill()
        await dying.wait()
        async with asyncio.timeout(10):
            await waiting


async def test_a_task_of_a_dead_worker_counts(database: ConnectionPool, dsn: str) -> None:
    """The task of a dead worker still counts, except for the job that takes it over."""
    await left_running(database, 2, "a", 3)
    async with worker(dsn, 1) as living:
        async with living.hold(1, "b"):
            pass
        other_job = asyncio.ensure_future(living.hold(2, "c").__aenter__())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(other_job), 0.2)
        assert not other_job.done()
        other_job.cancel()
        async with living.hold(3, "a"), living.hold(1, "d"):  # taken over, so it counts once, not twice
            with psycopg.connect(dsn) as reader:
                assert reader.execute("SELECT holder FROM kling_jobs").fetchall() == [(1,)]


async def test_a_heavy_job_does_not_starve(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the starvation timeout no other job is served before it, however light the others are."""
    monkeypatch.setattr(permits, "STARVATION_TIMEOUT", 0.0)
    monkeypatch.setattr(permits, "POLL_INTERVAL", 0.01)
    async with worker(dsn, 1) as heavy, worker(dsn, 2) as light:
        stop = asyncio.Event()

        async def keep_busy(name: str) -> None:
            while not stop.is_set():
                async with light.hold(1, name):
                    await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            for name in "abcdef":
                group.create_task(keep_busy(name))
            await asyncio.sleep(0.05)
            async with asyncio.timeout(20), heavy.hold(4, "all"):
                stop.set()


async def test_permits_survive_a_lost_session(dsn: str) -> None:
    """A new session takes as many permits as the lost one held, so that other workers find them taken."""
    async with worker(dsn, 1) as cut, worker(dsn, 2) as other:
        async with cut.hold(3, "a"):
            end_session(dsn, owner=1)
            async with cut.hold(1, "b"):  # the statement shows that the session is lost
                pass
            waiting = asyncio.ensure_future(other.hold(2, "c").__aenter__())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 0.2)
            assert not waiting.done()
        await waiting


async def test_nothing_is_granted_right_after_a_restart_of_the_database(dsn: str) -> None:
    """Workers that held permits take them back first."""
    with psycopg.connect(dsn) as database:
        query = "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())"
        ((uptime,),) = database.execute(query).fetchall()
    async with worker(dsn, 1, restart_grace=float(uptime) + 2.0) as early:
        waiting = asyncio.ensure_future(early.hold(1, "a").__aenter__())
        await asyncio.sleep(0.5)
        assert not waiting.done()
        async with asyncio.timeout(10):
            await waiting


async def test_closed_permits_grant_nothing(dsn: str) -> None:
    """Present and later waiters get `NotSubmitted`, and a cancelled waiter leaks no permit."""
    async with worker(dsn, 1) as permits:
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
        with pytest.raises(InvalidRequest, match="n must be at most 4, the limit of the permits, got 5"):
            await permits.hold(5, "e").__aenter__()
    async with worker(dsn, 2) as later, later.hold(4, "f"):
        pass


async def test_each_account_has_its_own_permits(dsn: str) -> None:
    """Two accounts in one database do not share a limit."""
    async with (
        worker(dsn, 1) as one,
        worker(dsn, 2, account="other") as other,
        one.hold(4, "a"),
        other.hold(4, "b"),
    ):
        pass


async def test_an_unreachable_database_is_one_sentence(cluster: Cluster) -> None:
    """Entering raises at once, with the reason."""
    with pytest.raises(JournalError, match="permits need"):
        await worker(cluster.dsn + "missing", 1).__aenter__()
