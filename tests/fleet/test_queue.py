"""The queue: backpressure, priorities, cancellation and refused callbacks."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from support.fleet_workers import created, outcomes, requests, working

from kling_expand import ExpandRequest, Ratios, errors
from kling_expand.emulator import Emulator
from kling_expand.fleet.lease import Lease
from kling_expand.fleet.queue import CALLBACK_CHANNEL, Fleet
from kling_expand.fleet.schema import FOLLOW, NEW
from kling_expand.store.postgres import JobOutcome, PostgresStore

pytest_plugins = ["support.postgres", "support.fleet"]


async def test_a_full_queue_pauses_the_source(
    fleet: Fleet, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While `max_queued` jobs are in the queue, no more requests are read from the source."""
    read = 0

    async def source() -> AsyncIterator[ExpandRequest]:
        nonlocal read
        for request in requests(photo, 10):
            read += 1
            yield request

    monkeypatch.setattr("kling_expand.fleet.queue.POLL_INTERVAL", 0.02)
    submitting = asyncio.create_task(fleet.submit_many(source(), max_queued=4))
    async with asyncio.timeout(20):
        while (await fleet.stats()).queued < 4:  # noqa: ASYNC110 - state of the database
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        assert (read, submitting.done()) == (5, False)
        while not submitting.done():
            await fleet.cancel()
            await asyncio.sleep(0.02)
    assert await submitting == 10


async def test_a_job_of_higher_priority_runs_first(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """A job of higher priority overtakes every waiting job."""
    await fleet.submit_many(requests(photo, 3))
    urgent = await fleet.submit(ExpandRequest(photo, Ratios(left=1.0), prompt="urgent"), priority=5)
    async with working(dsn, emulator, concurrency=1):
        found = await outcomes(fleet)
    assert urgent == found[0].key
    assert next(iter(emulator.account.tasks.values())).prompt == "urgent"


async def test_a_waiting_job_can_be_cancelled(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """A cancelled job leaves the queue and has an outcome. A job that has ended is not affected."""
    await fleet.submit_many(requests(photo, 5))
    assert await fleet.cancel("k1", "k3", "unknown") == 2
    async with working(dsn, emulator):
        found = {outcome.key: outcome.status for outcome in await outcomes(fleet)}
    cancelled = dict.fromkeys(("k1", "k3"), "cancelled")
    assert found == dict.fromkeys(("k0", "k2", "k4"), "succeeded") | cancelled
    assert await fleet.cancel("k0") == 0
    assert len(emulator.account.tasks) == 3


async def test_the_size_of_the_queue_follows_its_jobs(
    fleet: Fleet, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is counted as queued or running until it has ended, or only its pictures remain to be saved."""
    monkeypatch.setattr("kling_expand.fleet.queue.CANCEL_BATCH", 2)

    async def sizes() -> tuple[int, int]:
        """Return the numbers of queued and running jobs."""
        stats = await fleet.stats()
        return stats.queued, stats.running

    await fleet.submit_many(requests(photo, 9))
    lease = Lease(fleet.database, fleet.queue, fleet.run, timeout=30.0)
    await lease.begin()
    ended, saving, again, held = await lease.take(4, 0)
    assert await sizes() == (5, 4)
    store = PostgresStore(fleet.database, run=fleet.run, owner=lease.worker)
    await store.record_outcome(JobOutcome("k0", "failed"), queued=ended.id)
    await lease.requeue(saving, 60.0, saving=True)
    await lease.requeue(again, 60.0, charge=True)
    assert await sizes() == (6, 1)
    assert await fleet.cancel() == 6
    assert await sizes() == (0, 1)
    await lease.end()
    assert (await sizes(), held.stage) == ((1, 0), NEW)


async def test_the_queue_of_version_3_is_migrated(fleet: Fleet) -> None:
    """`init` moves its jobs to procrastinate's tables, and can be repeated."""
    run = "ü" * 40
    payload = '{"key": "k", "image": "a.png"}'
    with psycopg.connect(fleet.dsn) as database:
        database.execute("DROP INDEX kling_queue")
        database.execute(
            "CREATE TABLE kling_queue (id bigint GENERATED ALWAYS AS IDENTITY, run text, key text,"
            " stage text, priority integer, payload jsonb, attempts integer, due_at timestamptz)"
        )
        database.execute("CREATE TABLE kling_queue_size (run text)")
        for of_run, stage in [(fleet.run, "new"), (run, "new"), (run, "follow")]:
            database.execute(
                "INSERT INTO kling_queue (run, stage, priority, payload, attempts) VALUES (%s, %s, 7, %s, 2)",
                (of_run, stage, payload),
            )
    await fleet.init()
    await fleet.init()
    async with Fleet(fleet.dsn, run=run) as other:
        assert [(await each.stats()).queued for each in (fleet, other)] == [1, 2]
        lease = Lease(fleet.database, other.queue, run, timeout=30.0)
        await lease.begin()
        jobs = await lease.take(8, 8, FOLLOW)
        assert [(job.stage, job.priority, job.attempts) for job in jobs] == [(FOLLOW, 7, 2), (NEW, 7, 2)]
        await lease.end()


async def test_a_job_with_a_task_is_not_cancelled(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs with a task are not cancelled, which is logged, and they end as usual."""
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 3))
    async with working(dsn, emulator, max_in_flight=2):
        await created(emulator, 2)
    assert await fleet.cancel() == 1
    assert "2 jobs were not cancelled" in caplog.text
    assert await fleet.cancel() == 0  # a repeated call changes nothing
    emulator.advance(2000)
    async with working(dsn, emulator, max_in_flight=2):
        found = {outcome.key: outcome.status for outcome in await outcomes(fleet)}
    assert found == {"k0": "succeeded", "k1": "succeeded", "k2": "cancelled"}
    assert len(emulator.account.tasks) == 2


async def test_only_some_unsigned_callbacks_are_forwarded(fleet: Fleet) -> None:
    """However many unsigned callbacks arrive, one for each task is forwarded at first."""
    arrived: list[str] = []
    listening = asyncio.create_task(fleet.listen({CALLBACK_CHANNEL: arrived.append}))
    async with asyncio.timeout(20):
        while not arrived:  # noqa: ASYNC110 - the handler is called with "" once connected
            await asyncio.sleep(0.01)
        for number in [*range(3)] * 20:
            body = f'{{"task_id": "t{number}", "task_status": "processing"}}'.encode()
            assert not (await fleet.receive({}, body)).verified
        await fleet.database.fetch(f"SELECT pg_notify('{CALLBACK_CHANNEL}', 'last')")
        while arrived[-1] != "last":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    listening.cancel()
    assert [f"t{number}" in text for number, text in enumerate(arrived[1:-1])] == [True] * 3


async def test_a_callback_without_a_task_is_refused(fleet: Fleet) -> None:
    """A body without a task raises an error, with or without a secret."""
    with pytest.raises(errors.WebhookError):
        await fleet.receive({}, b"{}")
    async with Fleet(fleet.dsn, webhook_secrets=["whsec_" + "c2VjcmV0" * 4]) as signed:
        with pytest.raises(errors.WebhookError):
            await signed.receive({}, b"{}")
