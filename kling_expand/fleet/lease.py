"""The lease of a worker: its registration, the jobs it takes from the queue, and its exact permits.

Everything that a worker holds in the database hangs on one row, which it renews with each heartbeat. Once
the row has not been renewed in time, another worker deletes it: the jobs go back to the queue, and the
permits are free. A worker that comes back finds its row gone before it can send anything.

A run has four queues in procrastinate's table, one for each state of a job:

===========  ==============================================================================================
queue        its jobs
===========  ==============================================================================================
``NAME``     new ones, and those to be tried again
``:follow``  those with a task at the service: taken at once, beside any number of others, without a permit
``:alone``   those that were in work when several workers died: a worker runs one of them and nothing else
``:save``    those that succeeded, whose pictures could not be saved yet
===========  ==============================================================================================

The images that count against an account's limit are those of its permits, and those of its tasks at the
service whose worker is gone. A permit belongs to a job before its task exists. A job of n images takes n at
once or none, so jobs that hold a part of what they need cannot block each other.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from types import TracebackType
from typing import Any, Self

from attrs import define, field, frozen

from kling_expand.errors import InvalidRequest, JournalError, NotSubmitted
from kling_expand.store.postgres import AT_SERVICE, VERSION
from kling_expand.store.postgres_pool import ConnectionPool

FOLLOW, ALONE, SAVE = ":follow", ":alone", ":save"
MAX_DEATHS = 3  # of workers that had a job in work, after which it runs alone

PERMIT_CHANNEL = "kling_permits"
POLL_INTERVAL = 1.0  # seconds between two tries for permits, in case a notification is lost
STARVATION_TIMEOUT = 5.0  # seconds that a worker's first waiter waits before it blocks the other workers
MAX_TASK_AGE = 3600.0  # seconds after its create that a task counts which no worker follows

_COUNTS = f"""{AT_SERVICE} AND account = of_account
    AND coalesce(last_post_mark::double precision, last_post_at) > extract(epoch FROM now())
    - {MAX_TASK_AGE}"""
IMAGES = "(params::json ->> 'n')::integer"
SCHEMA = f"""
DROP FUNCTION IF EXISTS kling_permits_take, kling_permits_release, kling_permits_join, kling_permits_lock,
    kling_permits_held;
CREATE INDEX IF NOT EXISTS kling_queue ON procrastinate_jobs (queue_name, priority DESC, id)
    WHERE status = 'todo';
CREATE TABLE IF NOT EXISTS kling_permits (
    worker bigint NOT NULL REFERENCES kling_workers ON DELETE CASCADE,
    run text NOT NULL,
    key text NOT NULL,
    account text NOT NULL,
    images integer NOT NULL,
    PRIMARY KEY (run, key, worker)
);
-- True where the permit is given, NULL where the worker's lease has ended.
CREATE OR REPLACE FUNCTION kling_permit(of_worker bigint, of_run text, of_key text, of_account text,
    lim integer, n integer, waited double precision) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE since timestamptz := clock_timestamp() - make_interval(secs => waited); used integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('kling_permits ' || of_account, 0));
    UPDATE kling_workers SET waiting_since = since, asked_at = clock_timestamp() WHERE id = of_worker;
    IF NOT FOUND THEN RETURN NULL; END IF;
    IF EXISTS (SELECT FROM kling_permits WHERE worker = of_worker AND run = of_run AND key = of_key) THEN
        RETURN true;  -- this statement was repeated
    END IF;
    -- A job of another worker that has waited long is served first, for as long as that worker asks.
    IF EXISTS (SELECT FROM kling_workers WHERE account = of_account AND id <> of_worker
        AND waiting_since < least(since, clock_timestamp() - make_interval(secs => {STARVATION_TIMEOUT}))
        AND asked_at > clock_timestamp() - make_interval(secs => {3 * POLL_INTERVAL})) THEN
        RETURN false;
    END IF;
    SELECT coalesce(sum(images), 0) INTO used FROM kling_permits WHERE account = of_account;
    SELECT used + coalesce(sum({IMAGES}), 0) INTO used FROM kling_jobs AS job WHERE {_COUNTS}
        AND NOT (run = of_run AND key = of_key)
        AND NOT EXISTS (SELECT FROM kling_permits AS own WHERE own.run = job.run AND own.key = job.key);
    IF used + n > lim THEN RETURN false; END IF;
    INSERT INTO kling_permits VALUES (of_worker, of_run, of_key, of_account, n);
    UPDATE kling_workers SET waiting_since = NULL WHERE id = of_worker;
    RETURN true;
END $$;
-- Put jobs back into the queue that their state asks for.
CREATE OR REPLACE FUNCTION kling_requeue(ids bigint[], of_run text, delay double precision, charge integer,
    saving boolean) RETURNS void LANGUAGE sql AS $$
UPDATE procrastinate_jobs AS job SET status = 'todo', worker_id = NULL, attempts = attempts + charge,
    scheduled_at = CASE WHEN delay > 0 THEN clock_timestamp() + make_interval(secs => delay) END,
    queue_name = split_part(queue_name, ':', 1) || CASE
        WHEN saving OR queue_name LIKE '%{SAVE}' THEN '{SAVE}'
        WHEN EXISTS (SELECT FROM kling_deaths WHERE run = of_run AND key = args ->> 'key'
            AND deaths = {MAX_DEATHS}) THEN '{ALONE}'
        WHEN EXISTS (SELECT FROM kling_deaths WHERE run = of_run AND key = args ->> 'key'
            AND deaths > {MAX_DEATHS}) THEN '{FOLLOW}'
        WHEN EXISTS (SELECT FROM kling_jobs WHERE run = of_run AND key = args ->> 'key' AND latest
            AND {AT_SERVICE}) THEN '{FOLLOW}'
        ELSE '' END
WHERE id = ANY(ids) AND status = 'doing'
$$;
-- Take up to n jobs of the queue, and up to m of the others. Right after many insertions the planner has no
-- statistics, and would sort the whole queue.
CREATE OR REPLACE FUNCTION kling_take(of_worker bigint, of_queue text, n integer, others text[], m integer)
RETURNS SETOF procrastinate_jobs LANGUAGE sql SET enable_sort TO off SET enable_bitmapscan TO off AS $$
WITH alive AS (SELECT id FROM kling_workers WHERE id = of_worker), other AS (
    SELECT id FROM procrastinate_jobs WHERE status = 'todo' AND queue_name = ANY(others)
        AND (scheduled_at IS NULL OR scheduled_at <= now())
    ORDER BY queue_name, priority DESC, id LIMIT m FOR UPDATE SKIP LOCKED
), new AS (
    SELECT id FROM procrastinate_jobs WHERE status = 'todo' AND queue_name = of_queue
        AND (scheduled_at IS NULL OR scheduled_at <= now())
    ORDER BY priority DESC, id LIMIT n FOR UPDATE SKIP LOCKED
)
UPDATE procrastinate_jobs AS job SET status = 'doing', worker_id = of_worker FROM alive
WHERE job.id IN (SELECT id FROM other UNION ALL SELECT id FROM new) RETURNING job.*
$$;
-- Delete workers whose leases have ended, put their jobs back, and count a death for those in work: neither
-- waiting for a permit nor with a task that only had to be followed.
CREATE OR REPLACE FUNCTION kling_requeue_stalled(me bigint, of_run text, of_queue text, lost bigint[],
    bury boolean) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE dead bigint[] := '{{}}'; stalled record; jobs bigint := 0;
BEGIN
    IF bury THEN
        dead := ARRAY(SELECT id FROM kling_workers WHERE id <> me AND lease_until < clock_timestamp()
            ORDER BY id FOR UPDATE SKIP LOCKED);
    END IF;
    FOR stalled IN
        SELECT job.id, coalesce(worker.run, of_run) AS run, args ->> 'key' AS key, worker.id IS NOT NULL
            AND (NOT exact OR queue_name LIKE '%:%' OR EXISTS (SELECT FROM kling_permits AS permit
                WHERE permit.worker = worker.id AND permit.run = worker.run AND permit.key = args ->> 'key'))
            AND NOT EXISTS (SELECT FROM kling_jobs AS row WHERE row.run = worker.run
                AND row.key = args ->> 'key' AND latest AND state = 'submitted') AS suspect
        FROM procrastinate_jobs AS job
        LEFT JOIN kling_workers AS worker ON worker.id = job.worker_id AND worker.id = ANY(dead)
        WHERE status = 'doing' AND (worker.id IS NOT NULL OR (split_part(queue_name, ':', 1) = of_queue
            AND (job.id = ANY(lost) OR worker_id IS NULL
                OR NOT EXISTS (SELECT FROM kling_workers AS other WHERE other.id = worker_id))))
        FOR UPDATE OF job SKIP LOCKED
    LOOP
        IF stalled.suspect AND stalled.key IS NOT NULL THEN
            INSERT INTO kling_deaths VALUES (stalled.run, stalled.key, 1)
            ON CONFLICT (run, key) DO UPDATE SET deaths = kling_deaths.deaths + 1;
        END IF;
        PERFORM kling_requeue(ARRAY[stalled.id], stalled.run, 0, 0, false);
        jobs := jobs + 1;
    END LOOP;
    DELETE FROM kling_workers WHERE id = ANY(dead);
    DELETE FROM procrastinate_workers WHERE id = ANY(dead);
    RETURN jobs;
END $$;
"""  # noqa: S608 - built of constants

logger: logging.Logger = logging.getLogger(__name__)


class LeaseLost(JournalError):
    """The worker sent no heartbeat for too long, so others have its jobs and its permits."""


@frozen
class QueuedJob:
    """A job that this worker has taken. `attempts` failed before, and `deaths` of workers had it in work."""

    id: int
    queue: str
    task_name: str
    payload: dict[str, Any]
    attempts: int
    priority: int
    deaths: int


class Lease:
    """The lease of one worker on the jobs of *run* in *queue*, which ends *timeout* seconds after a `renew`.

    With *exact* its jobs need permits of *account*, and with *alone* it takes those that run alone. Every
    method waits while the database is away, and raises `JournalError` when it stays away.
    """

    def __init__(
        self,
        database: ConnectionPool,
        queue: str,
        run: str,
        *,
        timeout: float,
        account: str = "default",
        exact: bool = False,
        alone: bool = False,
    ) -> None:
        self.database = database
        self.queue = queue
        self.run = run
        self.account = account
        self.timeout = timeout
        self.worker: int = 0
        self._exact = exact
        self._alone = alone

    async def begin(self) -> None:
        """Register the worker; `worker` is its number from then on."""
        values = self.run, self.account, self._exact, self._alone, self.timeout
        self.worker = (await self.database.fetch(_REGISTER, *values))[0][0]

    async def renew(self) -> None:
        """Send a heartbeat.

        Raises:
            LeaseLost: when the lease had ended and another worker has the jobs.
            JournalError: when the tables were upgraded meanwhile.
        """
        found = await self.database.fetch(_RENEW, self.timeout, self.worker)
        if not found:
            raise LeaseLost(f"worker {self.worker} sent no heartbeat in time, so others have its jobs")
        if found[0][0] != VERSION:
            raise JournalError(
                f"the tables of the fleet must be of version {VERSION}, got {found[0][0]}; restart this "
                "worker with the version of kling_expand that upgraded them"
            )

    async def end(self) -> None:
        """Put back every job that is still held, release the permits, and delete the registration."""
        await self.database.fetch(_END, self.worker, self.run, self.worker, self.worker)

    # ------------------------------------------------------------------ jobs

    async def take(self, new: int, followed: int, *queues: str) -> list[QueuedJob]:
        """Take up to *new* jobs of the queue itself, and up to *followed* of its other *queues*."""
        others = [self.queue + name for name in queues]
        rows = await self.database.fetch(_TAKE, self.run, self.worker, self.queue, new, others, followed)
        jobs = [QueuedJob(*row) for row in rows]
        return sorted(jobs, key=lambda job: (job.queue == self.queue, -job.priority, job.id))

    async def finish(self, job: QueuedJob) -> None:
        """Delete a job whose outcome is in the store."""
        await self.database.fetch(_FINISH, job.id, self.worker)

    async def requeue(
        self, job: QueuedJob, delay: float = 0.0, *, charge: bool = False, saving: bool = False
    ) -> None:
        """Put a job back, to run again in *delay* seconds by the database's clock.

        With *charge* it has failed once more. With *saving* only its pictures are left to be saved.
        """
        await self.database.fetch(_REQUEUE, self.run, delay, int(charge), saving, job.id, self.worker)

    async def put_aside(self, job: QueuedJob) -> None:
        """Keep a job that cannot be read in the table of the queue, as failed."""
        await self.database.fetch(_PUT_ASIDE, job.id, self.worker)

    async def requeue_stalled(self, running: Collection[int], lost: set[int], *, bury: bool) -> set[int]:
        """Put back the jobs of dead workers, and return those of this worker that it does not run.

        If the answer to a committed `take` was lost with its connection, only the database assigns the jobs
        to this worker. Those found twice, as *lost* and now, are put back too. With *bury*, workers whose
        leases have ended are deleted.
        """
        assigned = {number for (number,) in await self.database.fetch(_ASSIGNED, self.worker)}
        idle = assigned.difference(running)
        values = self.worker, self.run, self.queue, sorted(idle & lost), bury
        ((requeued,),) = await self.database.fetch(
            "SELECT kling_requeue_stalled(%s, %s, %s, %s, %s)", *values
        )
        if requeued:
            logger.warning("requeued %d jobs of workers without a heartbeat", requeued)
        return idle

    async def runs_alone(self) -> bool:
        """Return whether jobs wait that must run alone, and it is for this worker to run them."""
        values = self.queue + ALONE, self._alone, self.run, self.worker
        return bool(await self.database.fetch(_ALONE, *values))

    # ------------------------------------------------------------------ permits

    async def orphans(self) -> list[tuple[str, str]]:
        """Return tasks of the account that count, but whose run has no worker to follow them.

        Each is a pair of its external id and its own. One worker gets them: the account's oldest.
        """
        values = self.account, self.run, self.account, self.worker
        rows = await self.database.fetch(_ORPHANS, *values)
        return [(external_task_id, task_id) for external_task_id, task_id in rows]

    async def take_permit(self, key: str, n: int, limit: int, waited: float) -> bool:
        """Try to take *n* permits for the job of *key*, whose worker has *waited* so many seconds for them.

        Raises:
            LeaseLost: when the lease has ended.
        """
        values = self.worker, self.run, key, self.account, limit, n, waited
        ((taken,),) = await self.database.fetch("SELECT kling_permit(%s, %s, %s, %s, %s, %s, %s)", *values)
        if taken is None:
            raise LeaseLost(f"the lease of worker {self.worker} has ended")
        return bool(taken)

    async def release_permits(self, keys: Sequence[str]) -> None:
        """Release the permits of jobs, and notify all workers."""
        values = self.worker, self.run, list(keys), PERMIT_CHANNEL, self.account
        await self.database.fetch(_RELEASE, *values)


_REGISTER = """
WITH queue_worker AS (INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id)
INSERT INTO kling_workers (id, run, account, exact, alone, lease_until)
SELECT id, %s, %s, %s, %s, clock_timestamp() + make_interval(secs => %s) FROM queue_worker RETURNING id
"""
_RENEW = """
WITH renewed AS (
    UPDATE kling_workers SET lease_until = clock_timestamp() + make_interval(secs => %s) WHERE id = %s
    RETURNING id
), seen AS (
    UPDATE procrastinate_workers AS worker SET last_heartbeat = clock_timestamp() FROM renewed
    WHERE worker.id = renewed.id
)
SELECT (SELECT max(version) FROM kling_schema) FROM renewed
"""
_END = """
WITH requeued AS (
    SELECT kling_requeue(ARRAY(SELECT id FROM procrastinate_jobs WHERE worker_id = %s AND status = 'doing'),
        %s, 0, 0, false)
), gone AS (
    DELETE FROM kling_workers WHERE id = %s RETURNING 1
), forgotten AS (
    DELETE FROM procrastinate_workers WHERE id = %s RETURNING 1
)
SELECT 1 FROM requeued
"""
_TAKE = """
SELECT id, queue_name, task_name, args, attempts, priority,
    coalesce((SELECT deaths FROM kling_deaths WHERE run = %s AND key = args ->> 'key'), 0)
FROM kling_take(%s, %s, %s, %s, %s)
"""
_FINISH = """
WITH finished AS (DELETE FROM procrastinate_jobs WHERE id = %s AND worker_id = %s RETURNING 1)
SELECT count(*) FROM finished
"""
_REQUEUE = """
SELECT kling_requeue(array_agg(id), %s, %s, %s, %s) FROM procrastinate_jobs WHERE id = %s AND worker_id = %s
"""
_PUT_ASIDE = """
UPDATE procrastinate_jobs SET status = 'failed', worker_id = NULL WHERE id = %s AND worker_id = %s RETURNING 1
"""
_ASSIGNED = "SELECT id FROM procrastinate_jobs WHERE worker_id = %s AND status = 'doing'"
# One worker of the run, the oldest, so that the others go on with everything else.
_ALONE = """
SELECT 1 WHERE EXISTS (SELECT FROM procrastinate_jobs WHERE queue_name = %s AND status = 'todo'
    AND (scheduled_at IS NULL OR scheduled_at <= now()))
AND (%s OR (SELECT min(id) FROM kling_workers AS worker WHERE run = %s AND lease_until > clock_timestamp()
    AND NOT EXISTS (SELECT FROM kling_workers AS other WHERE other.run = worker.run AND other.alone
        AND other.lease_until > clock_timestamp())) = %s)
"""
_ORPHANS = f"""
SELECT external_task_id, task_id FROM kling_jobs AS job
WHERE {_COUNTS.replace("of_account", "%s")} AND state = 'submitted' AND run <> %s
    AND NOT EXISTS (SELECT FROM kling_workers AS worker WHERE worker.run = job.run)
    AND (SELECT min(id) FROM kling_workers WHERE account = %s) = %s
LIMIT 500
"""  # noqa: S608 - built of constants
_RELEASE = """
WITH released AS (DELETE FROM kling_permits WHERE worker = %s AND run = %s AND key = ANY(%s) RETURNING 1)
SELECT pg_notify(%s, %s) FROM (SELECT count(*) FROM released) AS number
"""


@define(eq=False)
class _Waiter:
    n: int
    key: str
    since: float
    granted: asyncio.Future[None] = field(factory=lambda: asyncio.get_running_loop().create_future())


class Permits:
    """At most *limit* permits of the lease's account over all workers: ``async with Permits(lease, 20)``.

    ``async with permits.hold(n, key)`` holds *n* of them for a job. All workers of the account must give
    the same limit. `server` is the task that asks the database; when it fails, the permits are closed.
    """

    server: asyncio.Task[None]

    def __init__(self, lease: Lease, limit: int, *, rng: Random | None = None) -> None:
        self.limit = limit
        self._lease = lease
        self._rng = rng or Random()
        self._released: list[str] = []  # but not yet in the database
        self._waiters: deque[_Waiter] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    async def __aenter__(self) -> Self:
        self.server = asyncio.create_task(self._serve(), name="kling-expand permits")
        self.server.add_done_callback(lambda _: self.close())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.cancel()
        with suppress(asyncio.CancelledError, JournalError):
            await self.server

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
            self._release(key)

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
                self._release(waiter.key)
            raise

    def _release(self, key: str) -> None:
        self._released.append(key)
        self._changed.set()

    async def _serve(self) -> None:
        """Run the statements in turn, for the first waiter only."""
        while True:
            self._changed.clear()
            if self._released:
                released, self._released = self._released, []
                await self._lease.release_permits(released)
                await asyncio.sleep(self._rng.uniform(0, 0.02))  # lets the notified workers try first
            while await self._grant():
                pass
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL if self._waiters else None):
                    await self._changed.wait()

    async def _grant(self) -> bool:
        """Take permits for the first waiter; return False if there is none or too few permits are free."""
        while self._waiters and self._waiters[0].granted.done():
            self._waiters.popleft()
        if not self._waiters:
            return False
        first = self._waiters[0]
        waited = asyncio.get_running_loop().time() - first.since
        if not await self._lease.take_permit(first.key, first.n, self.limit, waited):
            return False
        self._waiters.popleft()
        if first.granted.done():
            self._release(first.key)
        else:
            first.granted.set_result(None)
        return True


def _stopping() -> NotSubmitted:
    return NotSubmitted("the worker is stopping and created no task: another worker runs the job")
