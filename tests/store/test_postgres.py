"""The fleet's ledger: the journal's contract in PostgreSQL, and what many workers at once add to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import psycopg
import pytest
from attrs import evolve

from kling_expand.errors import JournalError
from kling_expand.fleet.dev_server import Cluster
from kling_expand.store.base import JobState
from kling_expand.store.postgres import JobOutcome, PostgresStore, create_tables
from kling_expand.store.postgres_pool import ConnectionPool, listen
from kling_expand.testing import FAILED, RUNNING, SUCCEEDED, Seconds, intend

pytest_plugins = ["support.postgres"]


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[ConnectionPool]:
    async with ConnectionPool(
        dsn, size=1, patience=20
    ) as database:  # one: so the order of writes is that of calls
        await create_tables(database)
        yield database


@pytest.fixture
async def journal(database: ConnectionPool) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(database, run="r", clock=Seconds()) as ledger:
        yield ledger


async def another(database: ConnectionPool) -> PostgresStore:
    """A second worker."""
    return await PostgresStore(database, run="r").__aenter__()


async def test_a_whole_job(journal: PostgresStore, database: ConnectionPool) -> None:
    """Each step is kept with its facts, and what it cost; another process finds it done."""
    job = await intend(journal)
    name = job.external_task_id
    await journal.mark_sending(name)
    await journal.observe(name, RUNNING)
    await journal.observe(name, SUCCEEDED)
    await journal.mark_saved(name, ["out/dog-0.png"])
    done = await (await another(database)).find("k")
    assert done is not None
    assert (done.state, done.task_id, done.task, done.files) == (
        JobState.DONE,
        "t1",
        SUCCEEDED,
        ("out/dog-0.png",),
    )
    assert (job.created_at, job.created_at + 1) == (done.created_at, done.last_post_at)
    assert await journal.units_billed() == 16


async def test_a_worker_taken_for_dead_does_not_send(
    journal: PostgresStore, database: ConnectionPool
) -> None:
    """Once another has intended the job its old owner's POST is refused before it leaves."""
    name = (await intend(journal)).external_task_id
    heir = await another(database)
    assert (await intend(heir)).external_task_id == name
    with pytest.raises(JournalError, match="another worker"):
        await journal.mark_sending(name)
    await heir.mark_sending(name)
    await journal.observe(name, RUNNING)  # what it knows is worth knowing, whoever says it
    job = await heir.get(name)
    assert job is not None
    assert (job.state, job.task_id) == (JobState.SUBMITTED, "t1")


async def test_many_workers_make_one_attempt(journal: PostgresStore, dsn: str) -> None:
    """First and next attempts are made once, however many want them at the same moment."""
    async with ConnectionPool(dsn, size=8) as wide:
        crowd = [await another(wide) for _ in range(8)]
        for attempt in (1, 2):
            jobs = await asyncio.gather(*(intend(ledger) for ledger in crowd))
            (job,) = set(jobs)
            assert job.attempt == attempt
            await journal.observe(job.external_task_id, FAILED)
    assert [(job.attempt, job.state) async for job in journal.jobs()] == [(2, JobState.FAILED)]


async def test_runs_are_apart(journal: PostgresStore, database: ConnectionPool) -> None:
    """Two runs in one database know nothing of each other's keys."""
    await intend(journal)
    other = PostgresStore(database, run="other", owner=7)
    assert await other.find("k") is None
    assert not any((await other.counts()).values())
    job = await intend(other)
    assert (job.attempt, job.external_task_id == (await intend(journal)).external_task_id) == (1, False)


@pytest.mark.parametrize("state", ["submitted", "done"])
async def test_a_restart_of_the_database_is_outlived(journal: PostgresStore, dsn: str, state: str) -> None:
    """A connection that is cut in the middle is replaced, and the call is answered all the same."""
    name = (await intend(journal)).external_task_id
    with psycopg.connect(dsn, autocommit=True) as killer:
        others = "pid <> pg_backend_pid() AND datname = %s"
        query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
        killer.execute(query, (killer.info.dbname,))
        await journal.observe(name, RUNNING)
        if state == "done":
            await journal.observe(name, SUCCEEDED)
            killer.execute(query, (killer.info.dbname,))
            await journal.mark_saved(name, [])
    job = await journal.get(name)
    assert job is not None
    assert job.state == state


async def test_what_cannot_pass_is_said_at_once(cluster: Cluster, dsn: str) -> None:
    """A database that has no tables, or does not exist, is told in a sentence and not waited for."""
    nowhere = cluster.dsn.rpartition("/")[0] + "/nowhere"
    with pytest.raises(JournalError, match="does not exist"):
        await ConnectionPool(nowhere).__aenter__()
    async with ConnectionPool(dsn) as database:
        with pytest.raises(JournalError, match="fleet init"):
            await PostgresStore(database, owner=1).counts()
    with pytest.raises(JournalError, match="not open"):
        await PostgresStore(database, owner=1).counts()


async def test_a_database_that_stays_away_is_told(own_cluster: Cluster) -> None:
    """Patience ends: a caller is not left waiting for ever."""
    async with own_cluster as cluster, ConnectionPool(cluster.dsn, patience=0.5) as database:
        await create_tables(database)
        cluster.kill()
        with pytest.raises(JournalError, match="cannot be reached"):
            await PostgresStore(database, owner=1).counts()
        await cluster.start()
        assert not any((await PostgresStore(database, owner=1).counts()).values())


async def test_outcomes_are_read_once_each(journal: PostgresStore, dsn: str) -> None:
    """A reader who goes on from the last place misses none, whatever order the writers commit in."""
    with psycopg.connect(dsn) as slow:
        slow.execute(
            "INSERT INTO kling_outcomes"
            " VALUES ('r', 'slow', DEFAULT, 'succeeded', 'x', 't', '{}', '{}', 8, NULL, 1)"
        )
        await journal.record_outcome(
            JobOutcome("quick", "failed", urls=("u",), files=("f",), units=None, error="bad \0 word")
        )
        assert await journal.outcomes() == []  # the slow one may still be placed before it
        slow.commit()
    first = await journal.outcomes()
    assert [(ended.key, ended.units) for _, ended in first] == [("slow", 8), ("quick", None)]
    assert (first[1][1].urls, first[1][1].files, first[1][1].error) == (("u",), ("f",), "bad � word")
    assert await journal.outcomes(first[-1][0]) == []
    await journal.record_outcome(evolve(first[0][1], status="cancelled"))
    assert [(e.key, e.status) for _, e in await journal.outcomes(first[-1][0])] == [("slow", "cancelled")]


async def test_outcomes_are_in_the_order_of_numbers(journal: PostgresStore, dsn: str) -> None:
    """Transaction 1002 comes after 998, though "1002" comes before "998"."""
    with psycopg.connect(dsn, autocommit=True) as database:
        for seen in (7, 64, 99, 100, 101):
            database.execute(
                "INSERT INTO kling_outcomes (run, key, seen, status, urls, files, ended_at)"
                " VALUES ('r', %s, %s::text::xid8, 'failed', '{}', '{}', 1)",
                (f"k{seen}", seen),
            )
    found = await journal.outcomes()
    assert [ended.key for _, ended in found] == ["k7", "k64", "k99", "k100", "k101"]
    assert await journal.outcomes(found[-1][0]) == []


async def test_news_is_heard_and_missed_news_announced(dsn: str) -> None:
    """Notifications arrive; a listener that was cut off says that it may have missed some."""
    heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    ear = asyncio.create_task(listen(dsn, lambda *news: heard.put_nowait(news), "Odd channel"))
    assert await heard.get() == ("", "")
    with psycopg.connect(dsn, autocommit=True) as database:
        database.execute("SELECT pg_notify('Odd channel', 'words')")
        assert await heard.get() == ("Odd channel", "words")
        database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
        assert await heard.get() == ("", "")
    ear.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ear
