"""How many at once, exactly, over many machines? Permits that are session advisory locks of PostgreSQL.

A permit is a numbered lock that one session holds. The server frees it the moment the session ends,
however that ends, so no permit is ever lost with its worker, and none needs a lease. A job of n pictures
takes n at once or none, so nobody holds some and waits for others. What a dead worker has left running
at the service is read from the ledger and counted until somebody takes it up.
"""

import asyncio
import logging
import zlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from types import TracebackType
from typing import Any, Self

import psycopg
from attrs import define, field

from kling_expand.errors import InvalidRequest, JournalError, NotSubmitted
from kling_expand.store.postgres_pool import PAUSE, Connection, connect, passing

CHANNEL = "kling_permits"
POLL = 1.0  # seconds until permits are asked for again without having heard that any is free
HUNGRY = 5.0  # seconds the first in line is passed over before nobody else is served any more
# After its own restart the database gives none for a moment: those who held some take them back first.
GRACE = 3.0
STALE = 3600.0  # seconds after its create a task of a dead worker no longer counts: none runs that long

# One class of advisory locks for an account; within it these numbers.
_ALIVE = 1_000_000_000  # plus its owner's: this worker lives
_TURN, _FIRST = 2_000_000_000, 2_000_000_001
_HELD = """
SELECT objid::bigint FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND classid = $1::oid
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
SCHEMA = f"""
CREATE OR REPLACE FUNCTION kling_permits_held(class integer) RETURNS bigint[]
LANGUAGE sql AS $$
    SELECT ARRAY({_HELD.replace("$1", "class")})
$$;
CREATE OR REPLACE FUNCTION kling_permits_lock(class integer, n integer, held bigint[])
RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE got integer[] := '{{}}'; i integer := 0;
BEGIN
    WHILE cardinality(got) < n LOOP
        IF i <> ALL(held) AND pg_try_advisory_lock(class, i) THEN got := got || i; END IF;
        i := i + 1;
    END LOOP;
    RETURN got;
END $$;
-- All n or none. What is at the service counts even where its worker is dead, but for the job that asks.
CREATE OR REPLACE FUNCTION kling_permits_take(class integer, lim integer, n integer, me bigint, of_run text,
    of_key text, grace double precision) RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE held bigint[]; used integer; got integer[];
BEGIN
    IF clock_timestamp() - pg_postmaster_start_time() < make_interval(secs => grace) THEN
        RETURN '{{}}';
    END IF;
    -- Somebody starves, and is served first.
    IF NOT pg_try_advisory_xact_lock_shared(class, {_FIRST}) THEN RETURN '{{}}'; END IF;
    PERFORM pg_advisory_xact_lock(class, {_TURN});
    held := kling_permits_held(class);
    SELECT count(*) INTO used FROM unnest(held) AS number WHERE number < {_ALIVE};
    IF used + n <= lim THEN
        SELECT used + coalesce(sum((params::json ->> 'n')::integer), 0) INTO used FROM kling_jobs
        WHERE (state = 'submitted' OR (state IN ('intent', 'unknown') AND last_post_at IS NOT NULL))
            AND last_post_at > extract(epoch FROM now()) - {STALE}
            AND {_ALIVE} + coalesce(holder, 0) <> ALL(held)
            AND NOT (run = of_run AND key = of_key);
    END IF;
    IF used + n > lim THEN RETURN '{{}}'; END IF;
    got := kling_permits_lock(class, n, held);
    UPDATE kling_jobs SET holder = me
    WHERE run = of_run AND key = of_key AND latest AND holder IS DISTINCT FROM me
        AND (state = 'submitted' OR (state IN ('intent', 'unknown') AND last_post_at IS NOT NULL));
    RETURN got;
END $$;
CREATE OR REPLACE FUNCTION kling_permits_give(class integer, numbers integer[]) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_advisory_unlock(class, number) FROM unnest(numbers) AS number;
    SELECT pg_notify('{CHANNEL}', class::text);
$$;
CREATE OR REPLACE FUNCTION kling_permits_join(class integer, n integer, me integer)
RETURNS integer[] LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(class, {_TURN});
    PERFORM pg_advisory_lock(class, {_ALIVE} + me);
    RETURN kling_permits_lock(class, n, kling_permits_held(class));
END $$;
"""  # noqa: S608 - our words

logger = logging.getLogger(__name__)


@define(eq=False)
class _Waiting:
    n: int
    key: str
    since: float
    place: asyncio.Future[None] = field(factory=lambda: asyncio.get_running_loop().create_future())


class Permits:
    """At most *limit* permits of *account* over all workers, on a session of this worker's own.

    ``async with Permits(dsn, 20, owner=ledger.owner, run=ledger.run) as permits`` and then
    ``async with permits.hold(n, key)``. *owner* tells the living workers from the dead, and *run* and key
    tell which task at the service is taken up with the permits that are asked for.
    """

    def __init__(
        self,
        dsn: str,
        limit: int,
        *,
        owner: int,
        run: str,
        account: str = "default",
        grace: float = GRACE,
        rng: Random | None = None,
    ) -> None:
        self.limit = limit
        self._dsn, self._owner, self._run = dsn, owner, run
        self._class = zlib.crc32(account.encode()) & 0x7FFFFFFF
        self._grace = grace
        self._rng = rng or Random()
        self._held: list[int] = []
        self._back: list[int] = []  # to be given back
        self._waiting: deque[_Waiting] = deque()
        self._bell = asyncio.Event()
        self._first = False  # whether everybody else is kept away
        self._shut = False

    async def __aenter__(self) -> Self:
        try:
            self._session = await self._joined()
        except psycopg.Error as error:
            raise JournalError(f"no permits can be had: {error}") from error
        self._pump = asyncio.create_task(self._run_pump(), name="kling-expand permits")
        self._pump.add_done_callback(lambda _: self.shut())  # nobody waits for a pump that broke
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pump.cancel()
        with suppress(asyncio.CancelledError):
            await self._pump
        await self._session.close()

    @asynccontextmanager
    async def hold(self, n: int, key: str) -> AsyncIterator[None]:
        """Hold *n* for the job of *key*. Raises `NotSubmitted` once shut, `InvalidRequest` for too many."""
        if n > self.limit:
            raise InvalidRequest("n", n, f"the account's permits are {self.limit}")
        await self._take(_Waiting(n, key, asyncio.get_running_loop().time()))
        try:
            yield
        finally:
            self._return(n)

    def shut(self) -> None:
        """Give none any more; who waits is told that nothing was submitted. What is held stays held."""
        self._shut = True
        for waiting in self._waiting:
            if not waiting.place.done():
                waiting.place.set_exception(_closing())

    def wake(self) -> None:
        """Ask again: somebody may have given some back."""
        self._bell.set()

    # ------------------------------------------------------------------ within

    async def _take(self, waiting: _Waiting) -> None:
        if self._shut:
            raise _closing()
        self._waiting.append(waiting)
        self._bell.set()
        try:
            await waiting.place
        except asyncio.CancelledError:
            if waiting.place.done() and not waiting.place.cancelled() and not waiting.place.exception():
                self._return(waiting.n)
            raise

    def _return(self, n: int) -> None:
        self._back += [self._held.pop() for _ in range(n)]
        self._bell.set()

    async def _run_pump(self) -> None:
        """One statement after another on the one session: a lock can only be freed where it was taken."""
        while True:
            self._bell.clear()
            try:
                if self._back:
                    back, self._back = self._back, []
                    await self._ask("SELECT kling_permits_give(%s, %s)", self._class, back)
                    await asyncio.sleep(self._rng.uniform(0, 0.02))  # a fair chance for those who heard of it
                while await self._serve():
                    pass
            except psycopg.Error as error:
                if not passing(error):
                    raise
                logger.info("the permits' session is lost: %s", error)
                await self._rejoin()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL if self._waiting else None):
                    await self._bell.wait()

    async def _serve(self) -> bool:
        """Take permits for the first in line; whether there was one and it got them."""
        while self._waiting and self._waiting[0].place.done():
            self._waiting.popleft()
        if not self._waiting:
            await self._step_back()
            return False
        head = self._waiting[0]
        values = self._class, self.limit, head.n, self._owner, self._run, head.key, self._grace
        got = await self._ask("SELECT kling_permits_take(%s, %s, %s, %s, %s, %s, %s)", *values)
        if not got:
            if not self._first and asyncio.get_running_loop().time() - head.since > HUNGRY:
                self._first = await self._ask("SELECT pg_try_advisory_lock(%s, %s)", self._class, _FIRST)
            return False
        self._held += got
        self._waiting.popleft()
        if head.place.done():
            self._return(head.n)
        else:
            head.place.set_result(None)
        await self._step_back()
        return True

    async def _step_back(self) -> None:
        if self._first:
            self._first = False
            await self._ask("SELECT pg_advisory_unlock(%s, %s)", self._class, _FIRST)

    async def _ask(self, query: str, *values: Any) -> Any:
        row = await (await self._session.execute(query, values)).fetchone()
        return row[0] if row else None

    async def _joined(self) -> Connection:
        """A session that says we live, and holds what we hold."""
        session = await connect(self._dsn)
        try:
            query = "SELECT kling_permits_join(%s, %s, %s)"
            row = await (await session.execute(query, (self._class, len(self._held), self._owner))).fetchone()
            self._held = list(row[0]) if row else []
        except BaseException:
            await session.close()
            raise
        return session

    async def _rejoin(self) -> None:
        """The old session's locks are gone with it: take as many again, also above the limit."""
        await self._session.close()
        self._first = False
        while True:
            self._back.clear()  # free already
            with suppress(psycopg.OperationalError):
                self._session = await self._joined()
                return
            await asyncio.sleep(PAUSE)


def _closing() -> NotSubmitted:
    return NotSubmitted("the worker is closing, and no task exists: the job is for another")
