"""Permits over many machines: never one too many, none lost, nobody left waiting."""

import asyncio
import contextlib
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
from kling_expand.store.postgres import PostgresStore, create_tables
from kling_expand.store.postgres_pool import Connections

pytest_plugins = ["support.postgres"]


@pytest.fixture(autouse=True)
async def database(dsn: str) -> AsyncIterator[Connections]:
    async with Connections(dsn) as database:
        await create_tables(database, permits.SCHEMA)
        yield database


def worker(dsn: str, owner: int, limit: int = 4, **more: Any) -> Permits:
    return Permits(dsn, limit, owner=owner, run="r", rng=Random(owner), **{"restart_grace": 0.0} | more)


async def die(dsn: str, worker: Permits) -> None:
    """End its session as a SIGKILL would; it does not come back."""
    worker._server.cancel()
    with psycopg.connect(dsn, autocommit=True) as killer:
        killer.execute("SELECT pg_terminate_backend(%s, 5000)", (worker._session.info.backend_pid,))
    await worker._session.close()


async def left_running(database: Connections, owner: int, key: str, n: int) -> None:
    """What a worker has sent, and what then never was heard of again."""
    ledger = PostgresStore(database, run="r", owner=owner)
    await ledger.intend(
        key, params_hash="h", params=f'{{"n":{n}}}', source=None, external_id=lambda _: f"id of {key}"
    )
    await ledger.posting(f"id of {key}")
    await ledger.accepted(f"id of {key}", f"task of {key}")


async def test_never_one_too_many(dsn: str) -> None:
    """Three workers and jobs of every weight: all get through, and the limit is reached and kept."""
    now = most = 0

    async def job(permits: Permits, n: int, key: str) -> None:
        nonlocal now, most
        async with permits.hold(n, key):
            now += n
            most = max(most, now)
            await asyncio.sleep(0)
            now -= n

    async with AsyncExitStack() as stack:
        crew = [await stack.enter_async_context(worker(dsn, owner)) for owner in (1, 2, 3)]
        jobs = [job(crew[number % 3], 1 + number % 4, str(number)) for number in range(60)]
        await asyncio.gather(*jobs)
    assert now == 0
    assert most <= 4


async def test_a_dead_workers_permits_are_free_at_once(dsn: str) -> None:
    """They are its session's, and gone with it; nothing has to run out."""
    async with worker(dsn, 1) as living:
        dying = await worker(dsn, 2).__aenter__()
        holding = dying.hold(4, "a")
        await holding.__aenter__()
        waiting = asyncio.ensure_future(living.hold(4, "b").__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
        await die(dsn, dying)
        living.wake()
        await waiting


async def test_what_a_dead_worker_left_running_counts(database: Connections, dsn: str) -> None:
    """Its task still has the account's slots, for all but the one who takes it up."""
    await left_running(database, 2, "a", 3)
    async with worker(dsn, 1) as living:
        async with living.hold(1, "b"):
            pass
        stranger = asyncio.ensure_future(living.hold(2, "c").__aenter__())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stranger), 0.2)
        assert not stranger.done()
        stranger.cancel()
        async with living.hold(3, "a"), living.hold(1, "d"):  # taken up: it counts once, not twice
            with psycopg.connect(dsn) as look:
                assert look.execute("SELECT holder FROM kling_jobs").fetchall() == [(1,)]


async def test_a_heavy_job_is_not_passed_over_for_ever(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is hungry nobody else is served before it, however light the others are."""
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


async def test_a_restart_of_the_database_keeps_what_is_held(dsn: str) -> None:
    """A cut session comes back with as many permits as before, so the others still find them taken."""
    async with worker(dsn, 1) as cut, worker(dsn, 2) as other:
        async with cut.hold(3, "a"):
            with psycopg.connect(dsn, autocommit=True) as killer:
                killer.execute("SELECT pg_terminate_backend(%s, 5000)", (cut._session.info.backend_pid,))
            async with cut.hold(1, "b"):  # asking shows that it was cut
                pass
            waiting = asyncio.ensure_future(other.hold(2, "c").__aenter__())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 0.2)
            assert not waiting.done()
        await waiting


async def test_after_a_restart_none_are_given_for_a_moment(dsn: str) -> None:
    """Those who held some take them back first."""
    async with worker(dsn, 1, restart_grace=1e9) as early:
        waiting = asyncio.ensure_future(early.hold(1, "a").__aenter__())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.2)
        assert not waiting.done()
        early._restart_grace = 0.0
        early.wake()
        await waiting


async def test_shut_is_shut(dsn: str) -> None:
    """Who waits and who comes later is told that nothing was submitted; a cancelled one leaves no trace."""
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
        with pytest.raises(InvalidRequest, match="at most 4"):
            await permits.hold(5, "e").__aenter__()
    async with worker(dsn, 2) as later, later.hold(4, "f"):
        pass


async def test_accounts_are_apart(dsn: str) -> None:
    """Two accounts in one database have each their own permits."""
    async with (
        worker(dsn, 1) as one,
        worker(dsn, 2, account="other") as other,
        one.hold(4, "a"),
        other.hold(4, "b"),
    ):
        pass


async def test_no_database_no_permits(cluster: Cluster) -> None:
    """It is said at once, in a sentence."""
    with pytest.raises(JournalError, match="permits need"):
        await worker(cluster.dsn + "missing", 1).__aenter__()
