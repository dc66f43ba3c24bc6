"""The counts that triggers keep, which match the rows whatever happened to them."""

import asyncio
import subprocess
from contextlib import suppress
from random import Random

import psycopg
import pytest

from kling_expand import ExpandRequest, Ratios
from kling_expand.errors import JournalError
from kling_expand.fleet.dev_server import Cluster, find_programs
from kling_expand.fleet.lease import Lease
from kling_expand.fleet.queue import Fleet
from kling_expand.fleet.schema import FOLLOW, SAVE
from kling_expand.store.base import JobState
from kling_expand.store.postgres import JobOutcome, PostgresStore, create_tables
from kling_expand.store.postgres_schema import SUM_UP_INTERVAL
from kling_expand.testing import FAILED, RUNNING, SUCCEEDED, record_job

pytest_plugins = ["support.postgres", "support.fleet"]

ROWS = """
SELECT (SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'
        AND queue_name IN ('kling_default', 'kling_default:follow', 'kling_default:alone')),
    (SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing' AND queue_name <> 'kling_default:save'),
    (SELECT json_object_agg(status, n) FROM (
        SELECT status, count(*) AS n FROM kling_outcomes WHERE run = 'default' GROUP BY status) AS a),
    (SELECT json_object_agg(state, n) FROM (
        SELECT state, count(*) AS n FROM kling_jobs WHERE run = 'default' AND latest GROUP BY state) AS b),
    (SELECT coalesce(sum(units), 0)::integer FROM kling_jobs WHERE state IN ('succeeded', 'done'))
"""


async def check_counts(fleet: Fleet) -> None:
    """Compare the fleet's counts with the rows of the tables."""
    stats = await fleet.stats()
    ((queued, running, outcomes, states, units),) = await fleet.database.fetch(ROWS)
    found = stats.queued, stats.running, stats.outcomes, stats.units_billed
    assert found == (queued, running, outcomes or {}, units)
    assert stats.states == dict.fromkeys(JobState, 0) | (states or {})


class Jobs:
    """Random changes to the jobs of a fleet."""

    def __init__(self, fleet: Fleet, lease: Lease, rng: Random) -> None:
        self.fleet, self.lease, self.rng = fleet, lease, rng
        self.store = PostgresStore(fleet.database, owner=lease.worker)
        self.names: list[str] = []

    async def change(self) -> None:
        """Make one random change."""
        work = (
            self.submit,
            self.take,
            self.take,
            self.begin,
            self.observe,
            self.observe,
            self.cancel,
            self.delete,
        )
        await self.rng.choice(work)()

    async def submit(self) -> None:
        """Queue jobs."""
        keys = [f"k{self.rng.randrange(60)}" for _ in range(5)]
        await self.fleet.submit_many(ExpandRequest("a.png", Ratios(up=1.0), key=key) for key in keys)

    async def take(self) -> None:
        """Take jobs from the queue, and requeue, end or keep each."""
        for job in await self.lease.take(3, 3, FOLLOW, SAVE):
            choice = self.rng.randrange(5)
            if choice == 0:
                await self.lease.requeue(job, self.rng.choice([0.0, 60.0]), saving=self.rng.random() < 0.3)
            elif choice == 1:
                await self.lease.set_failed(job)
            elif choice < 4:
                status = self.rng.choice(["succeeded", "failed", "refused"])
                await self.store.record_outcome(JobOutcome(job.payload["key"], status), queued=job.id)

    async def begin(self) -> None:
        """Record an intent."""
        self.names.append((await record_job(self.store, f"k{self.rng.randrange(20)}")).external_task_id)

    async def observe(self) -> None:
        """Record a snapshot of a task."""
        for name in self.names[-1:] + self.rng.sample(self.names, min(2, len(self.names))):
            choice = self.rng.randrange(5)
            with suppress(JournalError):  # its row was deleted
                if choice == 0:
                    await self.store.mark_refused(name, "no")
                elif choice == 1:
                    await self.store.mark_saved(name, ["a.png"])
                else:
                    await self.store.observe(name, self.rng.choice([RUNNING, SUCCEEDED, FAILED]))

    async def cancel(self) -> None:
        """Cancel some jobs."""
        await self.fleet.cancel(*(f"k{self.rng.randrange(60)}" for _ in range(3)))

    async def delete(self) -> None:
        """Delete rows of one table, as an operator might."""
        which = {"kling_jobs": "id", "kling_outcomes": "ended_at", "procrastinate_jobs": "id"}
        table = self.rng.choice(list(which))
        delete = f"DELETE FROM {table} WHERE mod({which[table]}::bigint, 7) = %s RETURNING 1"
        await self.fleet.database.fetch(delete, self.rng.randrange(7))


def copy_database(source: str, target: str) -> None:
    """Dump a database and restore it into an empty one."""
    programs = find_programs()
    dump = subprocess.run([programs / "pg_dump", source], check=True, capture_output=True).stdout
    restore = [str(programs / "psql"), "-q", "-v", "ON_ERROR_STOP=1", target]
    subprocess.run(restore, check=True, input=dump, capture_output=True)


@pytest.mark.parametrize("seed", range(3))
async def test_counts_match_the_rows(fleet: Fleet, seed: int) -> None:
    """After any concurrent submissions, ends, requeues, cancellations and deletions, the counts are right."""
    rng = Random(seed)
    lease = Lease(fleet.database, fleet.queue, fleet.run, timeout=60.0)
    await lease.begin()
    jobs = Jobs(fleet, lease, rng)
    for _ in range(6):
        await asyncio.gather(*(jobs.change() for _ in range(10)))
        await check_counts(fleet)


async def test_the_changes_are_summed_up(fleet: Fleet) -> None:
    """However many jobs are queued singly and at the same time, a reader has fewer rows to add."""
    insert = "SELECT procrastinate_defer_jobs_v1(ARRAY[ROW('kling_default', 'x', 0, NULL, NULL, '{}', NULL)"
    insert = f"PERFORM ({insert}::procrastinate_job_to_defer_v1]))"
    many = f"DO $$ BEGIN FOR n IN 1 .. 1000 LOOP {insert}; COMMIT; END LOOP; END $$"

    def work() -> None:
        with psycopg.connect(fleet.dsn, autocommit=True) as database:
            database.execute(many.encode())

    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(2)))
    ((rows,),) = await fleet.database.fetch("SELECT count(*) FROM kling_counts")
    assert rows < 1500, f"one in {SUM_UP_INTERVAL} changes sums them up"
    assert (await fleet.stats()).queued == 2000


async def test_a_rollback_leaves_the_counts_right(fleet: Fleet) -> None:
    """A transaction that is rolled back or has an older snapshot leaves the counts right."""
    await fleet.submit(ExpandRequest("a.png", Ratios(up=1.0)))
    with psycopg.connect(fleet.dsn) as database:
        database.execute("DELETE FROM procrastinate_jobs")
        database.rollback()
        database.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        database.execute("SELECT 1 FROM procrastinate_jobs")
        await fleet.submit_many(ExpandRequest("b.png", Ratios(up=n / 100)) for n in range(1, 60))
        for _ in range(3 * SUM_UP_INTERVAL):
            for stage in (":save", ""):
                database.execute("UPDATE procrastinate_jobs SET queue_name = 'kling_default' || %s", (stage,))
    await check_counts(fleet)
    assert (await fleet.stats()).queued == 60


async def test_older_tables_are_counted_once_by_init(fleet: Fleet) -> None:
    """`init` counts the rows of version 4, which had no counts, even if it is repeated or failed before."""
    await fleet.submit_many(ExpandRequest("a.png", Ratios(up=1.0), key=f"k{n}") for n in range(7))
    store = PostgresStore(fleet.database, owner=1)
    await store.record_outcome(JobOutcome("k", "failed"))
    name = (await record_job(store)).external_task_id
    await store.observe(name, SUCCEEDED)
    with psycopg.connect(fleet.dsn) as database:
        database.execute("DROP TABLE kling_counts")
        for table in ("kling_jobs", "kling_outcomes", "procrastinate_jobs"):
            database.execute(f"DROP FUNCTION kling_count_{table} CASCADE")
        database.execute("UPDATE kling_schema SET version = 4")
        database.execute("DELETE FROM procrastinate_jobs WHERE id = 1")
    with pytest.raises(JournalError, match="fleet init"):
        async with Fleet(fleet.dsn) as other:
            await other.stats()
    with pytest.raises(JournalError):
        await create_tables(fleet.database, "SELECT no_such_function()")
    for _ in range(2):
        await fleet.init()
        await check_counts(fleet)
    assert (await fleet.stats()).queued == 6


async def test_a_restored_dump_has_its_counts(fleet: Fleet, cluster: Cluster, dsn: str) -> None:
    """A dump that is restored elsewhere has its counts, and keeps counting."""
    await fleet.submit_many(ExpandRequest("a.png", Ratios(up=1.0), key=f"k{n}") for n in range(7))
    await PostgresStore(fleet.database, owner=1).record_outcome(JobOutcome("k", "failed"))
    other = cluster.dsn.rpartition("/")[0] + "/restored"
    with psycopg.connect(cluster.dsn, autocommit=True) as database:
        database.execute("CREATE DATABASE restored")
    await asyncio.to_thread(copy_database, dsn, other)
    async with Fleet(other) as restored:
        await restored.submit(ExpandRequest("b.png", Ratios(up=1.0)))
        await check_counts(restored)
        assert (await restored.stats()).queued == 8
