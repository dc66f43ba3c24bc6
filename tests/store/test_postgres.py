"""The store in PostgreSQL: what it adds to the contract for many workers at once."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from attrs import evolve

from kling_expand.errors import JournalError
from kling_expand.store.base import JobState
from kling_expand.store.postgres import JobOutcome, PostgresStore, TakenOver, create_tables
from kling_expand.store.postgres_pool import ConnectionPool
from kling_expand.testing import FAILED, RUNNING, SUCCEEDED, Seconds, intend

pytest_plugins = ["support.postgres"]

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[ConnectionPool]:
    """One connection, so that the order of writes is that of the calls."""
    async with ConnectionPool(dsn, size=1, retry_timeout=20) as pool:
        await create_tables(pool)
        yield pool


@pytest.fixture
async def store(pool: ConnectionPool) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(pool, run="r", clock=Seconds()) as store:
        yield store


async def another(pool: ConnectionPool) -> PostgresStore:
    """The store of a second worker."""
    return await PostgresStore(pool, run="r").__aenter__()


def test_no_sqlite_is_loaded() -> None:
    """A fleet needs no journal file, so its store loads nothing for one."""
    code = "import sys, kling_expand.store.postgres; assert 'sqlite3' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


async def test_the_cost_of_a_job_is_recorded(store: PostgresStore, pool: ConnectionPool) -> None:
    """What the service billed is summed over the run, for every worker to see, and counted once."""
    name = (await intend(store)).external_task_id
    await store.observe(name, RUNNING)
    assert await store.units_billed() == 0
    await asyncio.gather(*(store.observe(name, SUCCEEDED) for _ in range(3)))
    await store.mark_saved(name, ["out/dog-0.png"])
    other = await another(pool)
    await other.observe(name, SUCCEEDED)
    assert await other.units_billed() == 16


async def test_a_worker_taken_for_dead_does_not_send(store: PostgresStore, pool: ConnectionPool) -> None:
    """Once another worker has the job, a create of its old owner is refused before it is sent."""
    name = (await intend(store)).external_task_id
    heir = await another(pool)
    assert (await intend(heir)).external_task_id == name
    with pytest.raises(TakenOver, match="another worker"):
        await store.mark_sending(name)
    await heir.mark_sending(name)
    await store.observe(name, RUNNING)  # a snapshot of any worker is right
    job = await heir.get(name)
    assert job is not None
    assert (job.state, job.task_id) == (JobState.SUBMITTED, "t1")


async def test_many_workers_make_one_attempt(store: PostgresStore, dsn: str) -> None:
    """First and next attempts are recorded once, however many workers begin them at the same moment."""
    async with ConnectionPool(dsn, size=8) as wide:
        workers = [await another(wide) for _ in range(8)]
        for attempt in (1, 2):
            (job,) = {
                (job.external_task_id, job.attempt)
                for job in await asyncio.gather(*(intend(worker) for worker in workers))
            }
            assert job[1] == attempt
            await store.observe(job[0], FAILED)
    assert [(job.attempt, job.state) async for job in store.jobs()] == [(2, JobState.FAILED)]


async def test_runs_are_apart(store: PostgresStore, pool: ConnectionPool) -> None:
    """Two runs in one database share no key, no job and no id."""
    mine = await intend(store)
    other = PostgresStore(pool, run="other", owner=7)
    assert await other.find("k") is None
    assert not any((await other.counts()).values())
    job = await intend(other)
    assert job.attempt == 1
    assert job.external_task_id != mine.external_task_id


@pytest.mark.parametrize("state", ["submitted", "done"])
async def test_a_restart_of_the_database_is_outlived(store: PostgresStore, dsn: str, state: str) -> None:
    """A connection that is cut in the middle is replaced, and the call succeeds all the same."""
    name = (await intend(store)).external_task_id
    with psycopg.connect(dsn, autocommit=True) as killer:
        others = "pid <> pg_backend_pid() AND datname = %s"
        query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
        killer.execute(query, (killer.info.dbname,))
        await store.observe(name, RUNNING)
        if state == "done":
            await store.observe(name, SUCCEEDED)
            killer.execute(query, (killer.info.dbname,))
            await store.mark_saved(name, [])
    job = await store.get(name)
    assert job is not None
    assert job.state == state


async def test_missing_tables_are_reported_at_once(dsn: str) -> None:
    """A database without tables is an error that says what to run, not one to wait for."""
    async with ConnectionPool(dsn) as pool:
        with pytest.raises(JournalError, match="fleet init"):
            await PostgresStore(pool, owner=1).counts()


async def test_outcomes_are_read_once_each(store: PostgresStore, dsn: str) -> None:
    """A reader who goes on from the last position misses none, whatever order the writers commit in."""
    with psycopg.connect(dsn) as slow:
        slow.execute(
            "INSERT INTO kling_outcomes"
            " VALUES ('r', 'slow', DEFAULT, 'succeeded', 'x', 't', '{}', '{}', 8, NULL, 1)"
        )
        await store.record_outcome(
            JobOutcome("quick", "failed", urls=("u",), files=("f",), units=None, error="bad \0 word")
        )
        assert await store.outcomes() == []  # the slow one may still be committed before it
        slow.commit()
    first = await store.outcomes()
    assert [(outcome.key, outcome.units) for _, outcome in first] == [("slow", 8), ("quick", None)]
    assert (first[1][1].urls, first[1][1].files, first[1][1].error) == (("u",), ("f",), "bad � word")
    assert await store.outcomes(first[-1][0]) == []
    await store.record_outcome(evolve(first[0][1], status="cancelled"))
    later = await store.outcomes(first[-1][0])
    assert [(outcome.key, outcome.status) for _, outcome in later] == [("slow", "cancelled")]


async def test_outcomes_are_in_the_order_of_numbers(store: PostgresStore, dsn: str) -> None:
    """Transaction 1002 comes after 998, though "1002" comes before "998"."""
    with psycopg.connect(dsn, autocommit=True) as database:
        for seen in (7, 64, 99, 100, 101):
            database.execute(
                "INSERT INTO kling_outcomes (run, key, seen, status, urls, files, ended_at)"
                " VALUES ('r', %s, %s::text::xid8, 'failed', '{}', '{}', 1)",
                (f"k{seen}", seen),
            )
    found = await store.outcomes()
    assert [outcome.key for _, outcome in found] == ["k7", "k64", "k99", "k100", "k101"]
    assert await store.outcomes(found[-1][0]) == []
