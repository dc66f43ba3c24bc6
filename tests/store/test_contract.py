"""The shipped contract tests, run against every store of the package, and random sequences of calls."""

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kling_expand.errors import JournalError
from kling_expand.fleet.dev_server import Cluster
from kling_expand.models import Task
from kling_expand.store.base import JobState, JobStore, MemoryStore
from kling_expand.store.postgres import PostgresStore, create_tables
from kling_expand.store.postgres_pool import ConnectionPool
from kling_expand.store.sqlite import SQLiteStore
from kling_expand.testing import JobStoreContract, MakeStore, Seconds, record_job

pytest_plugins = ["support.postgres"]


class TestMemoryStore(JobStoreContract):
    """The default store, which forgets a job when it ends."""

    @pytest.fixture
    def make_store(self) -> MakeStore:
        """Return an empty store."""
        return lambda clock: MemoryStore(clock=clock)


class TestSQLiteStore(JobStoreContract):
    """The store in an SQLite file."""

    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        """Return a store on the same file each time."""

        def boot_clock() -> tuple[str, float]:
            return "this start", time.monotonic()

        return lambda clock: SQLiteStore(tmp_path / "run.db", run="r", clock=clock, boot_clock=boot_clock)


class TestPostgresStore(JobStoreContract):
    """The store in PostgreSQL, where each opening is another worker."""

    @pytest.fixture
    async def make_store(self, dsn: str) -> AsyncIterator[MakeStore]:
        """Return a store on the same tables each time."""
        async with ConnectionPool(dsn, size=1) as pool:  # one connection keeps the order of the calls
            await create_tables(pool)
            yield lambda clock: PostgresStore(pool, run="r", clock=clock)


# ------------------------------------------------------------------------ any sequence of calls

KEYS = st.sampled_from(["a", "b"])
DIGESTS = st.sampled_from(["x", "y"])
REPORTS = st.sampled_from(
    ["sending", "submitted", "processing", "succeed", "failed", "saved", "refused", "uncertain"]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("intend"), KEYS, DIGESTS),
        st.tuples(REPORTS, KEYS, DIGESTS),
        st.just(("restart", "", "")),
    ),
    max_size=30,
)


class Model:
    """A plain model of the contract, with each job's last attempt as [attempt, state, has a task]."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[Any]] = {}

    def record_job(self, job: tuple[str, str]) -> None:
        """Apply `record_intent`."""
        row = self.rows.setdefault(job, [1, "intent", False])
        if row[1] == "failed":
            self.rows[job] = [row[0] + 1, "intent", False]
        elif row[1] == "rejected":
            row[1] = "intent"

    def report(self, call: str, job: tuple[str, str]) -> None:
        """Apply any other report."""
        row = self.rows[job]
        ended = row[1] in {"succeeded", "done", "failed"}
        if call in {"submitted", "processing"} and not ended:
            row[1:] = "submitted", True
        elif call in {"succeed", "failed"} and not ended:
            row[1:] = "succeeded" if call == "succeed" else "failed", True
        elif call == "saved" and row[1] in {"succeeded", "done"}:
            row[1] = "done"
        elif call == "refused" and row[1] in {"intent", "unknown"}:
            row[1] = "rejected"
        elif call == "uncertain" and row[1] == "intent":
            row[1] = "unknown"


async def report(store: JobStore, call: str, name: str) -> None:
    """Report to a store what the model calls *call*."""
    if call == "sending":
        await store.mark_sending(name)
    elif call == "saved":
        await store.mark_saved(name, [name])
    elif call == "refused":
        await store.mark_refused(name, "words")
    elif call == "uncertain":
        await store.mark_uncertain(name, "words")
    else:
        await store.observe(name, Task(f"t-{name}", call))


async def follow(
    steps: list[tuple[str, str, str]], make_store: Callable[[], JobStore], *, owned: bool = False
) -> None:
    """Apply *steps* to a store and to the model, and compare. If *owned*, a restart claims all jobs again."""
    model, names = Model(), {}
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(make_store())
        for call, key, digest in steps:
            job = key, digest
            if call == "restart":
                await stack.aclose()
                store = await stack.enter_async_context(make_store())
                for known in model.rows if owned else ():
                    model.record_job(known)
                    names[known] = (await record_job(store, *known)).external_task_id
            elif call == "intend":
                model.record_job(job)
                names[job] = (await record_job(store, key, digest)).external_task_id
            elif job in model.rows:
                refused = call == "sending" and model.rows[job][2]
                with pytest.raises(JournalError) if refused else contextlib.nullcontext():
                    await report(store, call, names[job])
                model.report(call, job)
        found = {
            (job.key, job.params_hash): [job.attempt, str(job.state), job.task_id is not None]
            async for job in store.jobs()
        }
        assert model.rows == found
        assert await store.counts() == {
            state: sum(row[1] == state for row in model.rows.values()) for state in JobState
        }


@settings(max_examples=40)
@given(STEPS)
def test_any_sequence_of_calls_on_a_file_matches_the_model(steps: list[tuple[str, str, str]]) -> None:
    """After any sequence of calls and restarts, a file has the same jobs as the model."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(follow(steps, lambda: SQLiteStore(Path(folder, "run.db"), run="r", clock=Seconds())))


_runs = itertools.count()


@settings(max_examples=25)
@given(STEPS)
def test_any_sequence_of_calls_by_many_workers_matches_the_model(
    cluster: Cluster, steps: list[tuple[str, str, str]]
) -> None:
    """After any sequence of calls by successive workers, the database has the same jobs as the model."""

    async def run() -> None:
        async with ConnectionPool(cluster.dsn) as pool:
            await create_tables(pool)
            name = f"run {next(_runs)}"
            await follow(steps, lambda: PostgresStore(pool, run=name, clock=Seconds()), owned=True)

    asyncio.run(run())
