"""The fleet's ledger: the journal's contract in PostgreSQL, and what many workers at once add to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from attrs import evolve
from hypothesis import given, settings

# The journal's own tests, by its own words: they are collected here too and meet the fixture below.
from store.test_sqlite import (
    FAILED,
    STEPS,
    SUCCEED,
    Clock,
    Model,
    intend,
    states,
    tell,
    test_a_failed_task_gets_a_new_attempt,
    test_a_known_job_is_given_back,
    test_a_rejected_job_keeps_its_id,
    test_a_succeeded_task_takes_fresh_urls,
    test_an_intent_is_made_once,
    test_any_order_of_news_ends_the_same,
    test_edited_parameters_are_another_job,
    test_jobs_are_paged_in_order,
    test_jobs_may_move_while_they_are_read,
    test_news_of_an_unknown_job_is_an_error,
    test_no_post_leaves_for_a_known_task,
    test_odd_names_come_back,
    test_one_bad_write_leaves_the_others_alone,
    test_two_tasks_under_one_id_are_reported,
)

from kling_expand.errors import JournalError
from kling_expand.fleet.dev_server import Cluster
from kling_expand.store.postgres import JobOutcome, PostgresStore, create_tables
from kling_expand.store.postgres_pool import Connections, listen
from kling_expand.store.sqlite import State

__all__ = [
    "test_a_failed_task_gets_a_new_attempt",
    "test_a_known_job_is_given_back",
    "test_a_rejected_job_keeps_its_id",
    "test_a_succeeded_task_takes_fresh_urls",
    "test_an_intent_is_made_once",
    "test_any_order_of_news_ends_the_same",
    "test_edited_parameters_are_another_job",
    "test_jobs_are_paged_in_order",
    "test_jobs_may_move_while_they_are_read",
    "test_news_of_an_unknown_job_is_an_error",
    "test_no_post_leaves_for_a_known_task",
    "test_odd_names_come_back",
    "test_one_bad_write_leaves_the_others_alone",
    "test_two_tasks_under_one_id_are_reported",
]
pytest_plugins = ["support.postgres"]


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Connections]:
    async with Connections(
        dsn, size=1, patience=20
    ) as database:  # one: so the order of writes is that of calls
        await create_tables(database)
        yield database


@pytest.fixture
async def journal(database: Connections) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(database, run="r", clock=Clock()) as ledger:
        yield ledger


async def another(database: Connections) -> PostgresStore:
    """A second worker."""
    return await PostgresStore(database, run="r").__aenter__()


async def test_a_whole_job(journal: PostgresStore, database: Connections) -> None:
    """Each step is kept with its facts, and what it cost; another process finds it done."""
    job = await intend(journal)
    name = job.external_task_id
    await journal.posting(name)
    await journal.accepted(name, "t1")
    await journal.observed(name, SUCCEED)
    await journal.downloaded(name, ["out/dog-0.png"])
    done = await (await another(database)).find("k")
    assert done is not None
    assert (done.state, done.task_id, done.task, done.files) == (
        State.DONE,
        "t1",
        SUCCEED,
        ("out/dog-0.png",),
    )
    assert (job.created_at, job.created_at + 1) == (done.created_at, done.last_post_at)
    assert await journal.spent() == 16


async def test_a_worker_taken_for_dead_does_not_send(journal: PostgresStore, database: Connections) -> None:
    """Once another has intended the job its old owner's POST is refused before it leaves."""
    name = (await intend(journal)).external_task_id
    heir = await another(database)
    assert (await intend(heir)).external_task_id == name
    with pytest.raises(JournalError, match="another worker"):
        await journal.posting(name)
    await heir.posting(name)
    await journal.accepted(name, "t1")  # what it knows is worth knowing, whoever says it
    job = await heir.get(name)
    assert job is not None
    assert (job.state, job.task_id) == (State.SUBMITTED, "t1")


async def test_many_workers_make_one_attempt(journal: PostgresStore, dsn: str) -> None:
    """First and next attempts are made once, however many want them at the same moment."""
    async with Connections(dsn, size=8) as wide:
        crowd = [await another(wide) for _ in range(8)]
        for attempt in (1, 2):
            jobs = await asyncio.gather(*(intend(ledger) for ledger in crowd))
            assert {(f"k-h-{attempt}", attempt)} == {(job.external_task_id, job.attempt) for job in jobs}
            await journal.observed(f"k-h-{attempt}", FAILED)
    assert await states(journal) == [("k-h-2", State.FAILED)]


async def test_runs_are_apart(journal: PostgresStore, database: Connections) -> None:
    """Two runs in one database know nothing of each other's keys."""
    await intend(journal)
    other = PostgresStore(database, run="other", owner=7)
    assert await other.find("k") is None
    assert not any((await other.counts()).values())
    job = await intend(other, external_id=lambda _: "another id")
    assert (job.external_task_id, job.attempt) == ("another id", 1)


@pytest.mark.parametrize("state", ["submitted", "done"])
async def test_a_restart_of_the_database_is_outlived(journal: PostgresStore, dsn: str, state: str) -> None:
    """A connection that is cut in the middle is replaced, and the call is answered all the same."""
    name = (await intend(journal)).external_task_id
    with psycopg.connect(dsn, autocommit=True) as killer:
        others = "pid <> pg_backend_pid() AND datname = %s"
        query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
        killer.execute(query, (killer.info.dbname,))
        await journal.accepted(name, "t1")
        if state == "done":
            await journal.observed(name, SUCCEED)
            killer.execute(query, (killer.info.dbname,))
            await journal.downloaded(name, [])
    job = await journal.get(name)
    assert job is not None
    assert job.state == state


async def test_what_cannot_pass_is_said_at_once(cluster: Cluster, dsn: str) -> None:
    """A database that has no tables, or does not exist, is told in a sentence and not waited for."""
    nowhere = cluster.dsn.rpartition("/")[0] + "/nowhere"
    with pytest.raises(JournalError, match="does not exist"):
        await Connections(nowhere).__aenter__()
    async with Connections(dsn) as database:
        with pytest.raises(JournalError, match="fleet init"):
            await PostgresStore(database, owner=1).counts()
    with pytest.raises(JournalError, match="not open"):
        await PostgresStore(database, owner=1).counts()


async def test_a_database_that_stays_away_is_told(own_cluster: Cluster) -> None:
    """Patience ends: a caller is not left waiting for ever."""
    async with own_cluster as cluster, Connections(cluster.dsn, patience=0.5) as database:
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
        await journal.ended(
            JobOutcome("quick", "failed", urls=("u",), files=("f",), units=None, error="bad \0 word")
        )
        assert await journal.outcomes() == []  # the slow one may still be placed before it
        slow.commit()
    first = await journal.outcomes()
    assert [(ended.key, ended.units) for _, ended in first] == [("slow", 8), ("quick", None)]
    assert (first[1][1].urls, first[1][1].files, first[1][1].error) == (("u",), ("f",), "bad � word")
    assert await journal.outcomes(first[-1][0]) == []
    await journal.ended(evolve(first[0][1], status="cancelled"))
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


async def follow(steps: list[tuple[str, str, str]], database: Connections, run: str) -> None:
    """The steps of the journal's model, with another worker after each restart."""
    ledger: Any = await PostgresStore(database, run=run).__aenter__()
    model = Model()
    for call, key, digest in steps:
        row = model.rows.get((key, digest))
        if call == "restart":
            ledger = await PostgresStore(database, run=run).__aenter__()
        elif call == "intend":
            model.intend((key, digest))
            await intend(ledger, key, digest, external_id=lambda n: f"{run}-{key}-{digest}-{n}")  # noqa: B023 - called at once
        elif row is not None:
            # Whoever goes on with a job intends it first, which is how it comes to own it.
            await intend(ledger, key, digest, external_id=lambda n: f"{run}-{key}-{digest}-{n}")  # noqa: B023 - the same
            model.intend((key, digest))
            row = model.rows[key, digest]
            with pytest.raises(JournalError) if call == "posting" and row[2] else contextlib.nullcontext():
                await tell(ledger, call, f"{run}-{key}-{digest}-{row[0]}")
            model.news(call, (key, digest))
    found = {
        (job.key, job.params_hash): [job.attempt, str(job.state), job.task_id is not None]
        async for job in ledger.jobs()
    }
    assert model.rows == found
    assert {
        state: sum(row[1] == state for row in model.rows.values()) for state in State
    } == await ledger.counts()


_runs = iter(range(10_000))


@settings(max_examples=25)
@given(STEPS)
def test_any_sequence_of_calls_matches_the_model(cluster: Cluster, steps: list[tuple[str, str, str]]) -> None:
    """No sequence of calls by one worker after another leads anywhere but where the plain rules lead."""

    async def run() -> None:
        async with Connections(cluster.dsn) as database:
            await create_tables(database)
            await follow(steps, database, f"run {next(_runs)}")

    asyncio.run(run())
