"""The connection pool, which survives restarts of the database and raises permanent errors at once."""

import asyncio
import contextlib
import traceback
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from kling_expand.errors import JournalError
from kling_expand.fleet.dev_server import Cluster
from kling_expand.store.postgres_pool import Connection, ConnectionPool, connect, listen
from kling_expand.testing import virtual_time

pytest_plugins = ["support.postgres"]


async def one(connection: Connection) -> int:
    """Return the database's response to the simplest statement."""
    row = await (await connection.execute("SELECT 1")).fetchone()
    assert row is not None
    return int(row[0])


async def test_permanent_errors_are_raised_at_once(cluster: Cluster, dsn: str) -> None:
    """A missing database, an invalid value and a pool that is not open raise errors without a wait."""
    nowhere = cluster.dsn.rpartition("/")[0] + "/nowhere"
    with pytest.raises(JournalError, match="does not exist"):
        await ConnectionPool(nowhere).__aenter__()
    async with ConnectionPool(dsn) as pool:
        for value in ("\0", "\ud800"):
            with pytest.raises(JournalError, match="cannot be stored"):
                await pool.run(lambda connection, value=value: connection.execute("SELECT %s", (value,)))  # type: ignore[misc]  # one value each
        assert await pool.run(one) == 1
    with pytest.raises(JournalError, match="not open"):
        await pool.run(one)


SECRET = "s3cret-w0rd"
MALFORMED = [
    f"postgresql://user:{SECRET}@more@127.0.0.1:1/x",
    f"postgresql://user:{SECRET}/more@127.0.0.1:1/x",
    f"postgresql://user:{SECRET}%zz@127.0.0.1:1/x",
    f"postgresql://user:{SECRET}#more@127.0.0.1:1/x",
    f"postgresql://127.0.0.1:1/x?nothing={SECRET}&password={SECRET}",
    f"host=127.0.0.1 port=1 password={SECRET} {SECRET}",
    f"host=127.0.0.1 password='{SECRET}",
    f"user:{SECRET}@127.0.0.1",
]


@pytest.mark.parametrize("dsn", [*MALFORMED, f"postgresql://user:{SECRET}@127.0.0.1:1/x"])
async def test_no_error_contains_a_password(dsn: str) -> None:
    """An error about a DSN or a missing server contains no part of the password."""
    with pytest.raises(JournalError, match=r"DSN must be|cannot be reached") as caught:
        await ConnectionPool(dsn, retry_timeout=0).__aenter__()
    text = "".join(traceback.format_exception(caught.value))
    assert ("DSN must be" in text) == (dsn in MALFORMED)
    assert SECRET not in text.replace(repr(dsn), "")


async def test_a_server_that_is_switched_off_is_noticed(cluster: Cluster) -> None:
    """Every connection has keepalives and a timeout, by which a dead server is noticed."""
    async with await connect(cluster.dsn) as connection:
        given = {option.keyword.decode(): (option.val or b"").decode() for option in connection.pgconn.info}
    assert (given["keepalives_idle"], given["keepalives_interval"]) == ("10", "5")
    assert given["tcp_user_timeout"] == "20000"
    async with await connect(cluster.dsn + "?tcp_user_timeout=7") as connection:
        given = {option.keyword.decode(): (option.val or b"").decode() for option in connection.pgconn.info}
    assert given["tcp_user_timeout"] == "7"


async def test_a_database_that_stays_unavailable_is_reported(own_cluster: Cluster) -> None:
    """A caller does not wait forever, and the pool works again once the database is back."""
    async with own_cluster as cluster, ConnectionPool(cluster.dsn, retry_timeout=0.5) as pool:
        cluster.kill()
        with pytest.raises(JournalError, match="cannot be reached"):
            await pool.run(one)
        await cluster.start()
        assert await pool.run(one) == 1


async def test_the_number_of_connections_is_bounded(dsn: str) -> None:
    """If there are more callers than connections, callers wait, and all are served."""
    open_now = most = 0

    async def work(connection: Connection) -> int:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await connection.execute("SELECT pg_sleep(0.01)")
        open_now -= 1
        return await one(connection)

    async with ConnectionPool(dsn, size=2) as pool:
        assert await asyncio.gather(*(pool.run(work) for _ in range(8))) == [1] * 8
    assert most == 2


async def test_a_cancelled_call_leaves_no_transaction(dsn: str) -> None:
    """A connection that was left inside a transaction is not used again."""
    inside = asyncio.Event()

    async def stuck(connection: Connection) -> None:
        await connection.execute("BEGIN")
        inside.set()
        await asyncio.sleep(60)

    async def status(connection: Connection) -> str:
        return connection.info.transaction_status.name

    async with ConnectionPool(dsn, size=1) as pool:
        task = asyncio.create_task(pool.run(stuck))
        await inside.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await pool.run(status) == "IDLE"


async def test_missed_notifications_are_announced(dsn: str) -> None:
    """Notifications arrive, and after a lost connection the listener reports that it may have missed some."""
    received: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    listener = asyncio.create_task(listen(dsn, lambda *pair: received.put_nowait(pair), "Odd channel"))
    assert await received.get() == ("", "")
    with psycopg.connect(dsn, autocommit=True) as database:
        database.execute("SELECT pg_notify('Odd channel', 'words')")
        assert await received.get() == ("Odd channel", "words")
        database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
        assert await received.get() == ("", "")
    listener.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listener


@virtual_time
async def test_a_call_waits_through_an_outage_of_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, a call waits through an outage of an hour and then succeeds."""
    now = asyncio.get_running_loop().time
    idle = SimpleNamespace(transaction_status=psycopg.pq.TransactionStatus.IDLE)

    class Connected:
        info = idle
        closed = False

        async def close(self) -> None:
            """Do nothing."""

    async def reach(_dsn: str) -> Connected:
        if 0 < now() < 3600:
            raise psycopg.OperationalError("away")
        return Connected()

    async def work(connection: Any) -> float:
        if now() < 3600:
            connection.closed = True
            raise psycopg.OperationalError("cut")
        return now()

    monkeypatch.setattr("kling_expand.store.postgres_pool.connect", reach)
    monkeypatch.setattr("kling_expand.store.postgres_pool.RETRY_DELAY", 60.0)
    async with ConnectionPool("postgresql:///x") as pool:
        await asyncio.sleep(1)
        assert await pool.run(work) >= 3600
