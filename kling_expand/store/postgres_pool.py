"""How does one reach PostgreSQL, and outlive its restarts? A few connections, asked again when they break.

What is asked may be done twice, as the answer to a COMMIT can be lost with the connection: every
statement handed in here must be one that changes nothing the second time.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg

from kling_expand.errors import JournalError

T = TypeVar("T")

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Heard = Callable[[str, str], object]

PATIENCE = 300.0  # seconds a database may be away before its callers are told
PAUSE = 0.25  # seconds between two tries to reach it
QUIET = 5.0  # seconds without a notification after which an ear asks whether it still hears

logger = logging.getLogger(__name__)


async def connect(dsn: str) -> Connection:
    """A connection that commits every statement. Raises psycopg's errors."""
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=10)


class ConnectionPool:
    """At most *size* connections to *dsn*, used by one event loop: ``async with ConnectionPool(dsn)``.

    Entering raises `JournalError` at once where there is no such database; one that goes away later is
    waited for, *patience* seconds.
    """

    def __init__(self, dsn: str, *, size: int = 4, patience: float = PATIENCE) -> None:
        self.dsn = dsn
        self._places = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._patience = patience
        self._open = False

    async def __aenter__(self) -> Self:
        try:
            self._idle.append(await connect(self.dsn))
        except psycopg.Error as error:
            raise _trouble(error) from error
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what is idle, and what is in use as soon as that is given back. Twice is harmless."""
        self._open = False
        while self._idle:
            await self._idle.pop().close()

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Connection]:
        """A connection of one's own for a moment. Raises psycopg's errors."""
        async with self._places:
            database = self._idle.pop() if self._idle else await connect(self.dsn)
            try:
                yield database
            finally:
                # One that was left in the middle of something is not given to anybody else.
                calm = database.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
                if self._open and calm and not database.closed:
                    self._idle.append(database)
                else:
                    await database.close()

    async def do(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What *work* gives, tried again while the database is away. Raises `JournalError`."""
        if not self._open:
            raise JournalError("the ledger is not open")
        loop = asyncio.get_running_loop()
        deadline_at = loop.time() + self._patience
        while True:
            try:
                async with self.one() as database:
                    return await work(database)
            except psycopg.Error as error:
                if not passing(error) or loop.time() > deadline_at:
                    raise _trouble(error) from error
                if not self._idle:
                    logger.info("the database is away: %s", error)
            await asyncio.sleep(PAUSE)


async def listen(dsn: str, heard: Heard, *channels: str) -> None:
    """Call *heard* with channel and payload of every notification, until cancelled; outlives restarts.

    After each (new) beginning it is called with two empty texts: anything may have been missed.
    """
    while True:
        try:
            async with await connect(dsn) as database:
                for channel in channels:
                    await database.execute(
                        psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel))
                    )
                heard("", "")
                while True:
                    async for news in database.notifies(timeout=QUIET):
                        heard(news.channel, news.payload)
                    await database.execute("SELECT 1")
        except psycopg.Error as error:
            if not passing(error):
                raise _trouble(error) from error
            logger.info("nothing can be heard from the database: %s", error)
        await asyncio.sleep(PAUSE)


def passing(error: psycopg.Error) -> bool:
    """Whether the same may do better later: the database is away, or two got in each other's way."""
    lost = isinstance(error, psycopg.InterfaceError) and "closed" in str(error)
    return lost or isinstance(error, psycopg.OperationalError)


def _trouble(error: psycopg.Error) -> JournalError:
    if isinstance(error, psycopg.errors.UniqueViolation):
        return JournalError(f"two jobs cannot have one external_task_id ({_words(error)})")
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction):
        return JournalError(
            f"the database has no tables of a fleet: run `kling-expand fleet init` ({_words(error)})"
        )
    if isinstance(error, psycopg.OperationalError):
        return JournalError(f"the database cannot be reached ({_words(error)})")
    return JournalError(f"this cannot be stored ({_words(error)})")


def _words(error: psycopg.Error) -> str:
    return str(error).strip().partition("\n")[0]
