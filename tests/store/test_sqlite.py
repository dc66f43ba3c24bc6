"""The store in an SQLite file, where every awaited record is on disk, whatever is cancelled or closed."""

import asyncio
import math
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attrs import evolve

from kling_expand.api.photo import Photo
from kling_expand.errors import ConfigurationError, JournalError
from kling_expand.models import Task
from kling_expand.store.base import JobIdentity, JobRecord, JobState
from kling_expand.store.sqlite import SQLiteStore, boot_time
from kling_expand.testing import FAILED, RUNNING, SUCCEEDED, Seconds, prepared, record_job, virtual_time

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    async with SQLiteStore(path, run="r", clock=Seconds()) as store:
        yield store


def test_no_postgresql_is_loaded() -> None:
    """The store in an SQLite file does not import a PostgreSQL driver."""
    code = "import sys, kling_expand.store.sqlite; assert 'psycopg' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


async def test_any_worker_reads_the_jobs_of_all(tmp_path: Path) -> None:
    """A record that is only in another worker's file is found, whether or not that file is open."""
    name = tmp_path / "jobs-{worker}.db"
    async with SQLiteStore(name) as left, SQLiteStore(name) as first, SQLiteStore(name) as second:
        ids = [
            (await record_job(each, str(number))).external_task_id
            for number, each in enumerate((left, first))
        ]
        await left.aclose()
        await first.mark_sending(ids[1])
        found = [await second.get_from_any(each) for each in ids]
        assert found[1] == await first.get(ids[1])
        assert [each and each.key for each in found] == ["0", "1"]
        assert await second.get_from_any("unknown") is None
        assert [await second.get(each) for each in ids] == [None, None]
        await first.mark_unsent(ids[1])  # the first worker still has its file


async def test_a_file_of_another_worker_hides_no_job(tmp_path: Path) -> None:
    """A file without tables holds no job, and an unreadable file is an error only if no other has the job."""
    name = tmp_path / "jobs-{worker}.db"
    async with SQLiteStore(name) as store:
        (tmp_path / "jobs-1.db").touch()  # its worker was killed before it had created the tables
        assert await store.get_from_any("unknown") is None
        (tmp_path / "jobs-2.db").write_bytes(b"no journal")
        async with SQLiteStore(tmp_path / "jobs-3.db") as other:
            job = await record_job(other, "k")
        assert await store.get_from_any(job.external_task_id) == job
        with pytest.raises(JournalError, match=r"jobs-2\.db cannot be read"):
            await store.get_from_any("unknown")


@pytest.mark.parametrize(
    ("wall", "boot", "age"),
    [
        (50.0, ("same", 110.0), 10.0),  # the boot clock is exact until a restart
        (50.0, ("same", 90.0), 0.0),
        (50.0, ("other", 20.0), 20.0),  # it was sent before this start of the system, at least 20 s ago
        (50.0, ("other", 900.0), 50.0),
        (-50.0, ("other", 900.0), 0.0),
        (50.0, None, 50.0),
        (-50.0, None, 0.0),
    ],
)
async def test_the_age_of_a_create_is_never_too_high(
    path: Path, wall: float, boot: tuple[str, float] | None, age: float
) -> None:
    """The age is exact since the system's last start, and otherwise the lower of two estimates."""
    clock = [(1000.0, ("same", 100.0)), (1000.0 + wall, boot)]
    async with SQLiteStore(path, clock=lambda: clock[0][0], boot_clock=lambda: clock[0][1]) as store:
        name = (await record_job(store)).external_task_id
        await store.mark_sending(name)
        clock.pop(0)
        assert await store.post_age(await record_job(store)) == age


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports when it was started")
async def test_the_age_is_counted_by_the_system_uptime(path: Path) -> None:
    """By default, the age of a create is counted by the time since the system's last start."""
    assert boot_time() is not None
    async with SQLiteStore(path) as store:
        name = (await record_job(store)).external_task_id
        await store.mark_sending(name)
        job = await record_job(store)
        assert job.last_post_mark is not None
        assert 0 <= await store.post_age(evolve(job, last_post_at=0.0)) < 60


async def test_earlier_tasks_are_kept(path: Path) -> None:
    """Listed tasks with derived ids are found by their jobs, even after the file is reopened."""
    lost = path.with_name("lost.db")
    async with SQLiteStore(lost) as store:
        assert not store.recovered
        names = [(await record_job(store, key)).external_task_id for key in "abc"]
        given = (await record_job(store, "d", external_task_id="kx-given")).external_task_id
    tasks = [
        evolve(RUNNING, external_task_id=names[0]),
        evolve(FAILED, external_task_id=names[1]),
        evolve(SUCCEEDED, external_task_id=names[2], images=()),
        evolve(RUNNING, external_task_id=given),
        evolve(RUNNING, external_task_id="other"),
        RUNNING,
    ]
    async with SQLiteStore(path) as store:
        await store.recover(tasks)
        assert store.recovered
    async with SQLiteStore(path) as store:
        assert store.recovered
        jobs = [await record_job(store, key) for key in "abc"]
        assert [(job.state, job.attempt) for job in jobs] == [
            ("submitted", 1),
            ("intent", 2),
            ("submitted", 1),
        ]
        job = await record_job(store, "d", external_task_id="kx-given")
        assert (job.state, job.task_id) == ("intent", None)
        assert (await record_job(store, "e")).state == "intent"


async def test_tasks_that_cannot_be_listed_may_exist(path: Path) -> None:
    """If tasks cannot be listed, each new job counts as possibly sent, until the file is reopened."""
    async with SQLiteStore(path) as store:
        await store.recover(None)
        job = await record_job(store)
        assert (job.state, job.last_post_at, await store.post_age(job)) == ("unknown", None, math.inf)
    async with SQLiteStore(path) as store:
        assert not store.recovered


async def test_a_failed_write_does_not_affect_the_others(store: SQLiteStore) -> None:
    """Within one commit, an error that a call causes reaches only its own caller."""

    async def wrong(value: object) -> JobRecord:
        draft = {"key": "c", "params_hash": "h", "params": value, "source": None}
        return await store._claim(draft | {"created_at": 0.0, "updated_at": 0.0}, "c-{}".format)

    def broken(_attempt: int) -> str:
        raise ZeroDivisionError

    outcomes = await asyncio.gather(
        record_job(store, "a", external_task_id="one"),
        record_job(store, "b", external_task_id="one"),
        store._claim({"key": "c", "params_hash": "h"}, broken),
        store.record_intent(JobIdentity("\ud800", "h"), prepared()),
        wrong(object()),
        wrong(None),
        record_job(store, "d"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [
        JobRecord,
        JournalError,
        ZeroDivisionError,
        JournalError,
        JournalError,
        JournalError,
        JobRecord,
    ]
    assert "cannot share one external_task_id" in str(outcomes[1])
    assert [job.key async for job in store.jobs()] == ["a", "d"]


def test_no_image_is_stored(path: Path) -> None:
    """No part of a photo that was given as a data URI is stored in the file."""

    async def record() -> JobRecord:
        photo = Photo("photo", "digest", 1, url="data:image/png;base64,U0VDUkVU")
        async with SQLiteStore(path) as store:
            return await store.record_intent(JobIdentity("k", "h"), prepared()._replace(photo=photo))

    assert asyncio.run(record()).source is None
    assert b"U0VDUkVU" not in path.read_bytes()


async def test_a_cancelled_call_does_not_undo_its_write(store: SQLiteStore) -> None:
    """Cancelling an await neither undoes the write nor affects another write."""
    cancelled = asyncio.ensure_future(record_job(store, "a"))
    other = asyncio.ensure_future(record_job(store, "b"))
    await asyncio.sleep(0)
    cancelled.cancel()
    await other
    assert cancelled.cancelled()
    assert await store.find("a") is not None


async def test_every_new_file_has_the_same_default_run(tmp_path: Path) -> None:
    """A given run is kept and another one refused. Without one, every new file has the same run."""
    async with SQLiteStore(tmp_path / "a.db", run="mine") as store:
        assert store.run == "mine"
    async with SQLiteStore(tmp_path / "a.db") as store:
        assert store.run == "mine"
    with pytest.raises(JournalError, match="must be 'mine', got 'other'"):
        await SQLiteStore(tmp_path / "a.db", run="other").__aenter__()
    for name in ("b.db", "b.db", "c.db"):
        async with SQLiteStore(tmp_path / name) as store:
            assert store.run == "default"


async def test_a_journal_belongs_to_one_account(tmp_path: Path) -> None:
    """A file with a sent job refuses another account, and a file without one adopts the given account."""
    path = tmp_path / "a.db"
    for account in ("", "one", "two"):
        async with SQLiteStore(path, account=account) as store:
            assert store.account == account
            job = await record_job(store, "k")
    async with SQLiteStore(path) as store:
        assert store.account == "two"
        await store.mark_sending(job.external_task_id)
    with pytest.raises(JournalError, match=r"belongs to two, not to one; use the service"):
        await SQLiteStore(path, account="one").__aenter__()
    async with SQLiteStore(path, account="two") as store:
        assert store.account == "two"


async def test_a_closed_store_raises_and_can_be_reopened(path: Path) -> None:
    """A store that is used while closed or opened twice raises an error, and it can be reopened."""
    store = SQLiteStore(path)
    with pytest.raises(JournalError, match="not open"):
        await store.counts()
    await store.aclose()
    async with store:
        await record_job(store)
        with pytest.raises(JournalError, match="open already"):
            await store.__aenter__()
    await store.aclose()
    with pytest.raises(JournalError, match="not open"):
        await store.find("k")
    async with store:
        assert await store.find("k") is not None


async def test_a_store_belongs_to_its_event_loop(store: SQLiteStore) -> None:
    """A store belongs to the loop that opened it, and a call from another loop raises an error."""
    with pytest.raises(JournalError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(store.find("k")))


async def test_closing_commits_pending_writes(path: Path) -> None:
    """Writes that began before `aclose` are on disk after it."""
    store = await SQLiteStore(path).__aenter__()
    writes = [asyncio.ensure_future(record_job(store, str(number))) for number in range(600)]
    await asyncio.sleep(0)
    await store.aclose()
    assert all(write.done() and write.result() for write in writes)
    async with SQLiteStore(path) as again:
        assert (await again.counts())[JobState.INTENT] == 600


@pytest.mark.parametrize("turns", range(6))
async def test_opening_and_closing_can_be_cancelled(path: Path, turns: int) -> None:
    """Whenever opening or closing is cancelled, the file ends up unlocked, with every awaited record."""
    async with SQLiteStore(path) as store:
        await record_job(store)
    for call in (SQLiteStore.__aenter__, SQLiteStore.aclose):
        store = SQLiteStore(path)
        if call is SQLiteStore.aclose:
            await store.__aenter__()
        task = asyncio.ensure_future(call(store))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.aclose()
    async with SQLiteStore(path) as store:
        assert await store.find("k") is not None


@virtual_time
async def test_open_jobs_of_missing_workers_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If fewer workers are started than before, the log names each unopened file with its open jobs."""
    pattern = tmp_path / "jobs-{worker}.db"
    async with SQLiteStore(pattern), SQLiteStore(pattern) as second, SQLiteStore(pattern) as third:
        for store in (second, third):
            await store.record_intent(JobIdentity("k", "h"), prepared())
    async with SQLiteStore(pattern), SQLiteStore(pattern):
        await asyncio.sleep(60)
    (line,) = {record.message for record in caplog.records if record.levelname == "WARNING"}
    assert line.startswith(f"the journal {tmp_path / 'jobs-2.db'} has 1 open jobs")


def test_an_unknown_placeholder_is_refused(tmp_path: Path) -> None:
    """An unknown placeholder in a file's name raises an error, but braces in a folder's name are allowed."""
    with pytest.raises(ConfigurationError, match=r"no placeholder but \{worker\} in its name, got .*process"):
        SQLiteStore(tmp_path / "jobs-{process}.db")
    SQLiteStore(tmp_path / "{x}" / "jobs.db")


async def test_a_job_is_found_by_its_task(tmp_path: Path) -> None:
    """The record of a task is found by the task's id, with an index."""
    async with SQLiteStore(tmp_path / "run.db") as store:
        for key in "abc":
            job = await store.record_intent(JobIdentity(key, "h"), prepared(key))
            await store.observe(job.external_task_id, Task(f"task {key}", "submitted"))
        found = await store.find_task("task b")
        assert (found and found.key, await store.find_task("b")) == ("b", None)
        plan = "EXPLAIN QUERY PLAN SELECT * FROM jobs WHERE task_id = 'x' ORDER BY id DESC LIMIT 1"
        steps = await store._execute(lambda db: [row[3] for row in db.execute(plan)])
        assert any("jobs_by_task" in step for step in steps)
