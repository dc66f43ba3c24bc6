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
from kling_expand.fleet.dev_server import Cluster
from kling_expand.store.base import JobState
from kling_expand.store.postgres import JobOutcome, PostgresStore, TakenOver, check_tables, create_tables
from kling_expand.store.postgres_pool import ConnectionPool
from kling_expand.testing import FAILED, RUNNING, SUCCEEDED, Seconds, record_job

pytest_plugins = ["support.postgres"]

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[ConnectionPool]:
    """Yield a pool of one connection, so that writes keep the order of the calls."""
    async with ConnectionPool(dsn, size=1, retry_timeout=20) as pool:
        await create_tables(pool)
        yield pool


@pytest.fixture
async def store(pool: ConnectionPool) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(pool, run="r", clock=Seconds()) as store:
        yield store


async def another(pool: ConnectionPool) -> PostgresStore:
    """Return the store of another worker."""
    return await PostgresStore(pool, run="r").__aenter__()


def test_no_sqlite_is_loaded() -> None:
    """The store in PostgreSQL does not import sqlite3."""
    code = "import sys, kling_expand.store.postgres; assert 'sqlite3' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


async def test_the_cost_of_a_job_is_recorded(store: PostgresStore, pool: ConnectionPool) -> None:
    """The billed units are summed over the run for every worker, and each task counts once."""
    name = (await record_job(store)).external_task_id
    await store.observe(name, RUNNING)
    assert await store.units_billed() == 0
    await asyncio.gather(*(store.observe(name, SUCCEEDED) for _ in range(3)))
    await store.mark_saved(name, ["out/dog-0.png"])
    other = await another(pool)
    await other.observe(name, SUCCEEDED)
    assert await other.units_billed() == 16


async def test_a_worker_presumed_dead_does_not_send(store: PostgresStore, pool: ConnectionPool) -> None:
    """Once another worker owns a job, the old owner gets an error before it sends a create."""
    name = (await record_job(store)).external_task_id
    successor = await another(pool)
    assert (await record_job(successor)).external_task_id == name
    with pytest.raises(TakenOver, match="another worker"):
        await store.mark_sending(name)
    await successor.mark_sending(name)
    await store.observe(name, RUNNING)  # every worker's snapshots are valid
    job = await successor.get(name)
    assert job is not None
    assert (job.state, job.task_id) == (JobState.SUBMITTED, "t1")


async def test_many_workers_make_one_attempt(store: PostgresStore, dsn: str) -> None:
    """The first and the next attempt are recorded once, however many workers begin them at the same time."""
    async with ConnectionPool(dsn, size=8) as wide:
        workers = [await another(wide) for _ in range(8)]
        for attempt in (1, 2):
            (job,) = {
                (job.external_task_id, job.attempt)
                for job in await asyncio.gather(*(record_job(worker) for worker in workers))
            }
            assert job[1] == attempt
            await store.observe(job[0], FAILED)
    assert [(job.attempt, job.state) async for job in store.jobs()] == [(2, JobState.FAILED)]


async def test_runs_are_isolated(store: PostgresStore, pool: ConnectionPool) -> None:
    """Two runs in one database share no key, no job and no id."""
    mine = await record_job(store)
    other = PostgresStore(pool, run="other", owner=7)
    assert await other.find("k") is None
    assert not any((await other.counts()).values())
    job = await record_job(other)
    assert job.attempt == 1
    assert job.external_task_id != mine.external_task_id


@pytest.mark.parametrize("state", ["submitted", "done"])
async def test_a_call_survives_a_restart_of_the_database(store: PostgresStore, dsn: str, state: str) -> None:
    """A connection that is lost during a call is replaced, and the call still succeeds."""
    name = (await record_job(store)).external_task_id
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
    """A database without tables raises an error at once, which says what to run."""
    async with ConnectionPool(dsn) as pool:
        with pytest.raises(JournalError, match="fleet init"):
            await PostgresStore(pool, owner=1).counts()


async def test_saves_of_a_fleet_are_recorded_with_the_outcome(pool: ConnectionPool) -> None:
    """With the outcome, the record gets each different save once, the newest first."""
    store = PostgresStore(pool, run="r", leased=True)
    name = (await record_job(store)).external_task_id
    await store.observe(name, SUCCEEDED)
    for files in (["a.png"], ["a.png"], ["b.png"]):
        await store.mark_saved(name, files)
    await store.record_outcome(JobOutcome("k", "succeeded", name))
    job = await store.get(name)
    assert job is not None
    assert (job.state, job.files) == (JobState.DONE, ("b.png", "a.png"))


async def test_outcomes_are_read_once_each(store: PostgresStore, dsn: str) -> None:
    """A reader that continues from the last number misses no outcome, in whatever order writers commit."""
    with psycopg.connect(dsn) as slow:
        slow.execute(
            "INSERT INTO kling_outcomes (run, key, status, external_task_id, task_id, urls, files, units,"
            " ended_at) VALUES ('r', 'slow', 'succeeded', 'x', 't', '{}', '{}', 8, 1)"
        )
        await store.record_outcome(
            JobOutcome("quick", "failed", urls=("u",), files=("f",), units=None, error="bad \0 word")
        )
        first = await store.outcomes()  # the slow one began earlier and is not committed yet
        assert [outcome.key for _, outcome in first] == ["quick"]
        assert (first[0][1].urls, first[0][1].files, first[0][1].error) == (("u",), ("f",), "bad � word")
        slow.commit()
    second = await store.outcomes(first[-1][0])
    assert [(outcome.key, outcome.units) for _, outcome in second] == [("slow", 8)]
    assert await store.outcomes(second[-1][0]) == []
    await store.record_outcome(evolve(second[0][1], status="cancelled", saved=False))
    later = await store.outcomes(second[-1][0])
    assert [(outcome.key, outcome.status, outcome.saved) for _, outcome in later] == [
        ("slow", "cancelled", False)
    ]


async def test_two_readers_get_the_same_numbers(store: PostgresStore, dsn: str) -> None:
    """Outcomes are numbered once, however many readers find them at the same time."""
    async with ConnectionPool(dsn, size=4) as wide:
        readers = [PostgresStore(wide, run="r") for _ in range(4)]
        for number in range(30):
            await store.record_outcome(JobOutcome(f"k{number}", "failed"))
            if number % 10 == 9:
                pages = await asyncio.gather(*(reader.outcomes() for reader in readers))
                assert pages == [pages[0]] * 4
                assert len(pages[0]) == number + 1


async def test_outcomes_do_not_wait_for_transactions_elsewhere(
    store: PostgresStore, cluster: Cluster
) -> None:
    """An open transaction in another database of the server does not delay outcomes."""
    with psycopg.connect(cluster.dsn) as elsewhere:
        elsewhere.execute("CREATE TEMP TABLE anything AS SELECT pg_current_xact_id()")
        await store.record_outcome(JobOutcome("k", "failed"))
        assert [outcome.key for _, outcome in await store.outcomes()] == ["k"]


@pytest.fixture
def old_tables(dsn: str) -> str:
    """Return the DSN of a database with tables of version 1, as far as they differ, each with one row."""
    columns = (
        "run text, key text, external_task_id text UNIQUE, params_hash text, attempt int, latest boolean"
        " DEFAULT true, state text, task_id text, last_post_at float8, snapshot text, error text,"
        " files bytea, source bytea, params text, created_at float8, updated_at float8,"
        " owner bigint, holder bigint, units numeric, UNIQUE (run, key, params_hash, attempt)"
    )
    outcomes = (
        "run text, key text, seen xid8 NOT NULL DEFAULT pg_current_xact_id(), status text,"
        " external_task_id text, task_id text, urls text[], files text[], units numeric, error text,"
        " ended_at float8, PRIMARY KEY (run, key)"
    )
    with psycopg.connect(dsn) as database:
        database.execute(
            f"CREATE TABLE kling_jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {columns})"
        )
        database.execute(f"CREATE TABLE kling_outcomes ({outcomes})")
        database.execute(
            "INSERT INTO kling_jobs (run, key, external_task_id, params_hash, attempt, state, task_id,"
            " params, created_at, updated_at, owner)"
            " VALUES ('r', 'k', 'x', 'h', 1, 'submitted', 't', '{\"n\": 2}', 1, 1, 3)"
        )
        database.execute(
            "INSERT INTO kling_outcomes (run, key, status, urls, files, ended_at)"
            " VALUES ('r', 'old', 'failed', '{}', '{}', 1)"
        )
    return dsn


async def test_older_tables_are_refused_until_they_are_upgraded(old_tables: str) -> None:
    """Older tables raise an error that says what to run, and the upgrade keeps jobs and outcomes."""
    async with ConnectionPool(old_tables) as pool:
        with pytest.raises(JournalError, match="kling-expand fleet init"):
            await check_tables(pool)
        await create_tables(pool)
        await check_tables(pool)
        async with PostgresStore(pool, run="r") as store:
            assert [outcome.key for _, outcome in await store.outcomes()] == ["old"]
            assert [(job.key, job.task_id) async for job in store.jobs()] == [("k", "t")]
            job = await record_job(store, "new")
            await store.mark_sending(job.external_task_id)


async def test_newer_tables_are_refused(pool: ConnectionPool) -> None:
    """Neither a check nor an upgrade accepts tables of a newer version."""
    await pool.fetch("UPDATE kling_schema SET version = 99 RETURNING 1")
    for call in (check_tables, create_tables):
        with pytest.raises(JournalError, match=r"must be of version \d+, got 99; use the version"):
            await call(pool)
