"""Exact permits for an account's slots over many machines, as session advisory locks of PostgreSQL.

A permit is a numbered lock that one session holds. The server releases it the moment the session ends,
for whatever reason, so a crash leaks no permit and no permit needs a lease. A job of n images takes n
permits at once or none, so jobs that hold a part of what they need cannot block each other. Tasks that a
dead worker left running are read from the store, and count until another worker takes them over.
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
from kling_expand.store.postgres_pool import RETRY_DELAY, Connection, connect, is_transient

PERMIT_CHANNEL = "kling_permits"
POLL_INTERVAL = 1.0  # seconds between two tries for permits, in case a notification is lost
STARVATION_TIMEOUT = 5.0  # seconds that a worker's first waiter waits before it blocks the other workers
# After its restart the database grants nothing for a while: workers first take their old permits back.
RESTART_GRACE = 3.0
MAX_TASK_AGE = 3600.0  # seconds after its create that a dead worker's task counts: no task runs longer

# The lock's first number is the account's. Its second is a permit, or one of these.
ALIVE = 1_000_000_000  # plus the owner's number: held while this worker is alive
_TAKE, _STARVING = 2_000_000_000, 2_000_000_001
# Of a row of the store: whether its task is or may be at the service, and its number of images.
_AT_SERVICE = "(state = 'submitted' OR (state IN ('intent', 'unknown') AND last_post_at IS NOT NULL))"
IMAGES = "(params::json ->> 'n')::integer"
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
DECLARE taken integer[] := '{{}}'; i integer := 0;
BEGIN
    WHILE cardinality(taken) < n LOOP
        IF i <> ALL(held) AND pg_try_advisory_lock(class, i) THEN taken := taken || i; END IF;
        i := i + 1;
    END LOOP;
    RETURN taken;
END $$;
-- All n or none. A task at the service counts even where its worker is dead, except for the job that asks.
CREATE OR REPLACE FUNCTION kling_permits_take(class integer, lim integer, n integer, me bigint, of_run text,
    of_key text, grace double precision) RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE held bigint[]; used integer; taken integer[];
BEGIN
    IF clock_timestamp() - pg_postmaster_start_time() < make_interval(secs => grace) THEN
        RETURN '{{}}';
    END IF;
    -- A starving job of another worker is served first.
    IF NOT pg_try_advisory_xact_lock_shared(class, {_STARVING}) THEN RETURN '{{}}'; END IF;
    PERFORM pg_advisory_xact_lock(class, {_TAKE});
    held := kling_permits_held(class);
    SELECT count(*) INTO used FROM unnest(held) AS number WHERE number < {ALIVE};
    IF used + n <= lim THEN
        SELECT used + coalesce(sum({IMAGES}), 0) INTO used FROM kling_jobs
        WHERE {_AT_SERVICE}
            AND last_post_at > extract(epoch FROM now()) - {MAX_TASK_AGE}
            AND {ALIVE} + coalesce(holder, 0) <> ALL(held)
            AND NOT (run = of_run AND key = of_key);
    END IF;
    IF used + n > lim THEN RETURN '{{}}'; END IF;
    taken := kling_permits_lock(class, n, held);
    UPDATE kling_jobs SET holder = me
    WHERE run = of_run AND key = of_key AND latest AND holder IS DISTINCT FROM me
        AND {_AT_SERVICE};
    RETURN taken;
END $$;
CREATE OR REPLACE FUNCTION kling_permits_release(class integer, numbers integer[]) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_advisory_unlock(class, number) FROM unnest(numbers) AS number;
    SELECT pg_notify('{PERMIT_CHANNEL}', class::text);
$$;
CREATE OR REPLACE FUNCTION kling_permits_join(class integer, n integer, me integer)
RETURNS integer[] LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(class, {_TAKE});
    PERFORM pg_advisory_lock(class, {ALIVE} + me);
    RETURN kling_permits_lock(class, n, kling_permits_held(class));
END $$;
"""  # noqa: S608 - built of constants

logger: logging.Logger = logging.getLogger(__name__)


@define(eq=False)
class _Waiter:
    n: int
    key: str
    since: float
    granted: asyncio.Future[None] = field(factory=lambda: asyncio.get_running_loop().create_future())


class Permits:
    """At most *limit* permits of *account* over all workers, on a database session of this worker.

    Use ``async with Permits(dsn, 20, owner=store.owner, run=store.run) as permits`` and then
    ``async with permits.hold(n, key)``. *owner* is this worker's number. *run* and the key name the job
    that asks, because its own running task does not count against it.
    """

    def __init__(
        self,
        dsn: str,
        limit: int,
        *,
        owner: int,
        run: str,
        account: str = "default",
        restart_grace: float = RESTART_GRACE,
        rng: Random | None = None,
    ) -> None:
        self.limit = limit
        self._dsn, self._owner, self._run = dsn, owner, run
        self._class = zlib.crc32(account.encode()) & 0x7FFFFFFF
        self._restart_grace = restart_grace
        self._rng = rng or Random()
        self._held: list[int] = []
        self._released: list[int] = []  # but not yet unlocked in the database
        self._waiters: deque[_Waiter] = deque()
        self._changed = asyncio.Event()
        self._starving = False  # this worker's first waiter blocks all other workers
        self._closed = False

    async def __aenter__(self) -> Self:
        try:
            self._session = await self._join()
        except psycopg.Error as error:
            raise JournalError(f"the permits need a reachable database: {error}") from error
        self._server = asyncio.create_task(self._serve(), name="kling-expand permits")
        self._server.add_done_callback(lambda _: self.close())  # when it fails, so do all waiters
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.cancel()
        with suppress(asyncio.CancelledError):
            await self._server
        await self._session.close()

    @asynccontextmanager
    async def hold(self, n: int, key: str) -> AsyncIterator[None]:
        """Wait for *n* permits for the job of *key*, and hold them inside the block.

        Raises:
            InvalidRequest: when *n* exceeds the limit.
            NotSubmitted: when the permits are closed.
        """
        if n > self.limit:
            raise InvalidRequest("n", n, f"must be at most {self.limit}, the limit of the permits")
        await self._acquire(_Waiter(n, key, asyncio.get_running_loop().time()))
        try:
            yield
        finally:
            self._release(n)

    def close(self) -> None:
        """Grant nothing more: waiters get `NotSubmitted`. Permits that are held stay held."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.granted.done():
                waiter.granted.set_exception(_stopping())

    def wake(self, _payload: str = "") -> None:
        """Try again now, because permits may have been released elsewhere; it handles `PERMIT_CHANNEL`."""
        self._changed.set()

    # ------------------------------------------------------------------ internals

    async def _acquire(self, waiter: _Waiter) -> None:
        if self._closed:
            raise _stopping()
        self._waiters.append(waiter)
        self._changed.set()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            granted = waiter.granted
            if granted.done() and not granted.cancelled() and not granted.exception():
                self._release(waiter.n)
            raise

    def _release(self, n: int) -> None:
        self._released += [self._held.pop() for _ in range(n)]
        self._changed.set()

    async def _serve(self) -> None:
        """Run all statements in turn on one session: a lock can only be released where it was taken."""
        while True:
            self._changed.clear()
            try:
                await self._unlock()
                while await self._grant():
                    pass
            except psycopg.Error as error:
                if not is_transient(error):
                    raise
                logger.info("the session of the permits is lost: %s", error)
                await self._rejoin()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL if self._waiters else None):
                    await self._changed.wait()

    async def _unlock(self) -> None:
        if self._released:
            released, self._released = self._released, []
            await self._query("SELECT kling_permits_release(%s, %s)", self._class, released)
            await asyncio.sleep(self._rng.uniform(0, 0.02))  # lets the notified workers try first

    async def _grant(self) -> bool:
        """Take permits for the first waiter; return False if there is none or too few permits are free."""
        while self._waiters and self._waiters[0].granted.done():
            self._waiters.popleft()
        if not self._waiters:
            await self._stop_starving()
            return False
        first = self._waiters[0]
        values = self._class, self.limit, first.n, self._owner, self._run, first.key, self._restart_grace
        taken = await self._query("SELECT kling_permits_take(%s, %s, %s, %s, %s, %s, %s)", *values)
        if not taken:
            waited = asyncio.get_running_loop().time() - first.since
            if not self._starving and waited > STARVATION_TIMEOUT:
                self._starving = await self._query(
                    "SELECT pg_try_advisory_lock(%s, %s)", self._class, _STARVING
                )
            return False
        self._held += taken
        self._waiters.popleft()
        if first.granted.done():
            self._release(first.n)
        else:
            first.granted.set_result(None)
        await self._stop_starving()
        return True

    async def _stop_starving(self) -> None:
        if self._starving:
            self._starving = False
            await self._query("SELECT pg_advisory_unlock(%s, %s)", self._class, _STARVING)

    async def _query(self, query: str, *values: Any) -> Any:
        row = await (await self._session.execute(query, values)).fetchone()
        return row[0] if row else None

    async def _join(self) -> Connection:
        """Open a session that marks this worker as alive and holds the permits it held before."""
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
        """Replace a lost session, whose locks are gone, and take as many again even above the limit."""
        await self._session.close()
        self._starving = False
        while True:
            self._released.clear()  # unlocked with the old session
            with suppress(psycopg.OperationalError):
                self._session = await self._join()
                return
            await asyncio.sleep(RETRY_DELAY)


def _stopping() -> NotSubmitted:
    return NotSubmitted("the worker is stopping and created no task: another worker runs the job")
