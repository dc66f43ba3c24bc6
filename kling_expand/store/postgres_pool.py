"""A pool of PostgreSQL connections that survives restarts of the database.

A statement may run twice, because the response to a COMMIT can be lost with its connection. So every
statement that a caller passes must be idempotent.

The pool also works through a connection pooler in transaction mode. It then prepares no statements, and it
keeps no state in a session. Such a pooler drops notifications, so every caller also polls.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from kling_expand.errors import JournalError, require

require("fleet", "psycopg")
import psycopg
from psycopg.conninfo import conninfo_to_dict

T = TypeVar("T")

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
OnNotification = Callable[[str, str], object]

PREPARE_THRESHOLD = 3  # executions of a statement before it is prepared, to avoid planning it again
POOL_SIZE = 2  # connections of a pool; a worker has one more, for notifications
RETRY_TIMEOUT = 7200.0  # seconds a database may be unavailable before a call raises
RETRY_DELAY = 0.25  # seconds between two tries to connect
IDLE_TIMEOUT = 20.0  # seconds without a notification after which the connection is checked
# A server without power, or a network that drops packets, is noticed within about 25 seconds.
_NETWORK = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_URL = re.compile(r"postgres(?:ql)?://(?:[^/?#@]*@)?[^@]*")

logger: logging.Logger = logging.getLogger(__name__)


async def connect(dsn: str) -> Connection:
    """Return a connection that commits every statement.

    Raises:
        psycopg.Error: if the database cannot be reached.
    """
    settings: dict[str, Any] = {**_NETWORK, **conninfo_to_dict(dsn)}
    connection = await psycopg.AsyncConnection.connect(autocommit=True, prepare_threshold=None, **settings)
    try:
        row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    except BaseException:
        await connection.close()
        raise
    if row == (connection.info.backend_pid,):  # otherwise the connection leads to a pooler
        connection.prepare_threshold = PREPARE_THRESHOLD
    return connection


class ConnectionPool:
    """At most *size* connections to *dsn*, used by one event loop: ``async with ConnectionPool(dsn)``.

    If the database becomes unavailable later, calls wait for it for up to *retry_timeout* seconds. No error
    message contains the password of the DSN.

    Raises:
        JournalError: if, on entering, the DSN is malformed or the database cannot be reached.
    """

    def __init__(self, dsn: str, *, size: int = POOL_SIZE, retry_timeout: float = RETRY_TIMEOUT) -> None:
        self.dsn = dsn
        self._permits = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._retry_timeout = retry_timeout
        self._open = False

    async def __aenter__(self) -> Self:
        check_dsn(self.dsn)
        try:
            self._idle.append(await connect(self.dsn))
        except psycopg.Error as error:
            raise _explain(error) from error
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close idle connections now, and those in use when they are released. A second call does nothing."""
        self._open = False
        while self._idle:
            await self._idle.pop().close()

    @contextlib.asynccontextmanager
    async def _acquire(self) -> AsyncIterator[Connection]:
        async with self._permits:
            connection = self._idle.pop() if self._idle else await connect(self.dsn)
            try:
                yield connection
            finally:
                # A cancellation may leave a transaction open. Such a connection is not used again.
                clean = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
                if self._open and clean and not connection.closed:
                    self._idle.append(connection)
                else:
                    await connection.close()

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Call *work* with a connection and return its result. Retry while the database is unavailable.

        Raises:
            JournalError: if the database stays unavailable or refuses a statement, or the pool is not open.
        """
        if not self._open:
            raise JournalError("the connection pool is not open")
        loop = asyncio.get_running_loop()
        deadline_at = loop.time() + self._retry_timeout
        while True:
            try:
                async with self._acquire() as connection:
                    return await work(connection)
            except UnicodeError as error:
                raise JournalError(f"the record cannot be stored ({error})") from error
            except psycopg.Error as error:
                if not is_transient(error) or loop.time() > deadline_at:
                    raise _explain(error) from error
                if not self._idle:
                    logger.info("the database is unavailable: %s", _first_line(error))
            await asyncio.sleep(RETRY_DELAY)

    async def fetch(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of one statement.

        Raises:
            JournalError: if `run` would raise it.
        """

        async def work(connection: Connection) -> list[tuple[Any, ...]]:
            return await (await connection.execute(query, values)).fetchall()

        return await self.run(work)


async def listen(dsn: str, on_notification: OnNotification, *channels: str) -> None:
    """Call *on_notification* with the channel and payload of each notification, until cancelled.

    After each new connection, *on_notification* is called with two empty strings, as notifications may have
    been missed.

    Raises:
        JournalError: if the database refuses the connection for good.
    """
    while True:
        try:
            async with await connect(dsn) as connection:
                for channel in channels:
                    name = psycopg.sql.Identifier(channel)
                    await connection.execute(psycopg.sql.SQL("LISTEN {}").format(name))
                on_notification("", "")
                while True:
                    async for notification in connection.notifies(timeout=IDLE_TIMEOUT):
                        on_notification(notification.channel, notification.payload)
                    await connection.execute("SELECT 1")
        except psycopg.Error as error:
            if not is_transient(error):
                raise _explain(error) from error
            logger.info("notifications are interrupted: %s", _first_line(error))
        await asyncio.sleep(RETRY_DELAY)


def is_transient(error: psycopg.Error) -> bool:
    """Return whether a retry may succeed, because the database is unavailable or two calls conflict."""
    lost = isinstance(error, psycopg.InterfaceError) and "closed" in str(error)
    # A pooler that loses its server ends the session with an error of its own.
    return lost or isinstance(error, psycopg.OperationalError)


def check_dsn(dsn: str) -> None:
    """Raise `JournalError` unless *dsn* is valid and unambiguous. The message contains no part of it.

    libpq treats an ``@`` or ``/`` inside a password as the end of the password, and then reports the rest as
    the host.
    """
    try:
        conninfo_to_dict(dsn)
        valid = "://" not in dsn or _URL.fullmatch(dsn) is not None
    except psycopg.Error:
        valid = False
    if not valid:
        raise JournalError(
            "the DSN must be postgresql://user:password@host/name, with @ / ? # and % in the password "
            "percent-encoded, or key=value pairs"
        )


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().partition("\n")[0]


def _explain(error: psycopg.Error) -> JournalError:
    text = _first_line(error)
    if isinstance(error, psycopg.errors.UniqueViolation):
        return JournalError(f"two jobs cannot share one external_task_id ({text})")
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction):
        return JournalError(
            f"the tables of the fleet are missing or too old; run `kling-expand fleet init` ({text})"
        )
    if isinstance(error, psycopg.OperationalError):
        return JournalError(f"the database cannot be reached ({text})")
    return JournalError(f"the record cannot be stored ({text})")
