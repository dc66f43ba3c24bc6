"""The lease of a worker: its registration, the jobs that it takes from the queue, and its permits.

Everything that a worker holds in the database depends on one row, which it renews with each heartbeat. If the
row is not renewed in time, another worker deletes it. The jobs then return to the queue, and the permits are
released. A worker that resumes after a pause finds its row deleted before it can send anything.

A run has four queues in procrastinate's table, one for each stage of a job:

===========  ==============================================================================================
queue        its jobs
===========  ==============================================================================================
``NAME``     new jobs, and jobs to be retried
``:follow``  jobs that have or may have a task, which are followed at once and without a permit
``:alone``   jobs that were running when several workers died; each runs alone on a worker
``:save``    succeeded jobs whose pictures could not be saved yet
===========  ==============================================================================================

An account's limit applies to the pictures of its permits, and of tasks at the service whose jobs hold no
permits, such as those that a dead worker left behind. A job gets its permits before its task exists. A job of
n pictures takes n permits at once or none. So two jobs can never each hold a part of their permits and block
each other.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice
from math import inf
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

from attrs import define, field, frozen

from kling_expand.errors import InvalidRequest, JournalError, NotSubmitted
from kling_expand.jobs.scheduler import Flow, Slots
from kling_expand.store.postgres_pool import ConnectionPool
from kling_expand.store.postgres_schema import VERSION

from .schema import NEW

POLL_INTERVAL = 5.0  # seconds between two requests for permits, in case a notification is lost
PERMIT_BATCH = 20  # waiters of a worker for which one statement requests permits

logger: logging.Logger = logging.getLogger(__name__)


class LeaseLost(JournalError):
    """The error of a worker that sent no heartbeat for too long, and lost its jobs and permits to others."""


@frozen
class QueuedJob:
    """A job that a worker has taken.

    `attempts` counts its failed attempts, and `deaths` the workers that died while executing it.
    """

    id: int
    stage: str
    task_name: str
    payload: dict[str, Any]
    attempts: int
    priority: int
    deaths: int


class Heartbeat(NamedTuple):
    """The result of a heartbeat.

    `idle` are the ids of jobs that this worker holds in the database but is not running. `due` says
    whether jobs are waiting to be followed or saved. `runs_alone` says whether jobs that must run alone are
    waiting for this worker. `orphans` are tasks that count against the account's limit although their run has
    no worker. Each is a pair of external id and task id.
    """

    idle: set[int]
    due: bool
    runs_alone: bool
    orphans: list[list[str]]


class Waiter(NamedTuple):
    """A job that has been waiting for `n` permits for `waited` seconds."""

    key: str
    n: int
    waited: float


class Lease:
    """The lease of one worker on the jobs of *run* in *queue*.

    It ends *timeout* seconds after the last `beat`. With *exact*, the worker's jobs need permits of
    *account*. With *alone*, the worker takes only jobs that must run alone. Every method waits while the
    database is unavailable, and raises `JournalError` if it stays unavailable.
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
        """Register the worker, and set `worker` to its number."""
        values = self.run, self.account, self._exact, self._alone, self.timeout
        self.worker = (await self.database.fetch(_REGISTER, *values))[0][0]

    async def beat(self, running: Collection[int] = (), lost: Collection[int] = ()) -> Heartbeat:
        """Send a heartbeat, and requeue the jobs of workers whose leases have ended.

        If the response to a committed `take` was lost with its connection, this worker holds jobs in the
        database that are not in *running*. Such jobs are idle. Jobs that were already idle at the last
        heartbeat (*lost*) are requeued too.

        Raises:
            LeaseLost: if the lease has ended and other workers have the jobs.
            JournalError: if the tables were upgraded in the meantime.
        """
        values = self.worker, self.run, self.queue, self.timeout, list(running), list(lost)
        found = await self.database.fetch(_BEAT, *values)
        if not found:
            raise LeaseLost(f"worker {self.worker} sent no heartbeat in time, so other workers took its jobs")
        version, requeued, idle, due, runs_alone, orphans = found[0]
        if version != VERSION:
            raise JournalError(
                f"the tables of the fleet must be of version {VERSION}, got {version}; restart this "
                "worker with the version of kling_expand that upgraded them"
            )
        if requeued:
            logger.warning("requeued %d jobs that no live worker was running", requeued)
        return Heartbeat(set(idle), due, runs_alone, orphans)

    async def end(self) -> None:
        """Requeue every job that is still held, release the permits, and delete the registration."""
        await self.database.fetch(_END, self.worker, self.run, self.worker, self.worker)

    # ------------------------------------------------------------------ jobs

    async def take(self, new: int, others: int, *stages: str) -> list[QueuedJob]:
        """Take up to *others* jobs of the given *stages*, then up to *new* new jobs, and return them."""
        queues = [self.queue + stage for stage in stages]
        rows = await self.database.fetch(_TAKE, self.run, self.worker, self.queue, new, queues, others)
        jobs = [QueuedJob(*row) for row in rows]
        return sorted(jobs, key=lambda job: (job.stage == NEW, -job.priority, job.id))

    async def requeue(
        self, job: QueuedJob, delay: float = 0.0, *, charge: bool = False, saving: bool = False
    ) -> None:
        """Requeue a job to run again in *delay* seconds, by the database's clock.

        With *charge*, this counts as a failed attempt. With *saving*, only its pictures remain to be saved.
        """
        await self.database.fetch(_REQUEUE, self.run, delay, int(charge), saving, job.id, self.worker)

    async def set_failed(self, job: QueuedJob) -> None:
        """Mark a job that cannot be executed as failed, and keep it in the queue's table."""
        await self.database.fetch(_SET_FAILED, job.id, self.worker)

    # ------------------------------------------------------------------ permits

    async def exchange_permits(self, released: Sequence[str], waiters: Sequence[Waiter], limit: int) -> int:
        """Release the permits of the jobs with the keys *released*, and take permits for *waiters*.

        Return how many waiters got their permits, counted from the first. At most *limit* permits are held.

        Raises:
            LeaseLost: if the lease has ended.
        """
        keys, numbers, waited = zip(*waiters, strict=True) if waiters else ((), (), ())
        wanted = list(keys), list(numbers), list(waited)
        values = self.worker, self.run, self.account, limit, list(released), *wanted
        ((granted,),) = await self.database.fetch(_PERMITS, *values)
        if granted is None:
            raise LeaseLost(f"the lease of worker {self.worker} has ended")
        return int(granted)


_REGISTER = """
INSERT INTO kling_workers (id, run, account, exact, alone, lease_until)
SELECT worker_id, %s, %s, %s, %s, clock_timestamp() + make_interval(secs => %s)
FROM procrastinate_register_worker_v1() RETURNING id
"""
_BEAT = """
SELECT version, requeued, idle, due, runs_alone, orphans
FROM kling_beat(%s, %s, %s, %s, %s::bigint[], %s::bigint[])
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
SELECT id, substr(queue_name, strpos(queue_name || ':', ':')), task_name, args, attempts, priority,
    coalesce((SELECT deaths FROM kling_deaths WHERE run = %s AND key = args ->> 'key'), 0)
FROM kling_take(%s, %s, %s, %s, %s)
"""
_REQUEUE = """
SELECT kling_requeue(array_agg(id), %s, %s, %s, %s) FROM procrastinate_jobs WHERE id = %s AND worker_id = %s
"""
_SET_FAILED = """
UPDATE procrastinate_jobs SET status = 'failed', worker_id = NULL WHERE id = %s AND worker_id = %s RETURNING 1
"""
_PERMITS = "SELECT kling_permits(%s, %s, %s, %s, %s::text[], %s::text[], %s::integer[], %s::float8[])"


@define(eq=False)
class _Waiting:
    n: int
    key: str
    since: float
    granted: asyncio.Future[None] = field(factory=lambda: asyncio.get_running_loop().create_future())


class Permits:
    """The permits of the lease's account, at most *limit* for all workers: ``async with Permits(lease, 20)``.

    ``async with permits.hold(n, key)`` holds *n* permits for a job. All workers of the account must use the
    same limit. `server` is the asyncio task that queries the database. If it fails, the permits are closed.
    """

    server: asyncio.Task[None]

    def __init__(self, lease: Lease, limit: int) -> None:
        self.limit = limit
        self._lease = lease
        self._released: list[str] = []  # keys of jobs whose permits are still to be released in the database
        self._waiters: deque[_Waiting] = deque()
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
        """Wait for *n* permits for the job with *key*, and hold them during the block.

        Raises:
            InvalidRequest: if *n* exceeds the limit.
            NotSubmitted: if the permits are closed.
        """
        if n > self.limit:
            raise InvalidRequest("n", n, f"must be at most {self.limit}, the number of permits")
        await self._acquire(_Waiting(n, key, asyncio.get_running_loop().time()))
        try:
            yield
        finally:
            self._release(key)

    def close(self) -> None:
        """Stop granting permits. Waiters get `NotSubmitted`, and held permits stay held."""
        self._closed = True
        self._changed.set()  # the database must learn that no job is waiting any more
        for waiter in self._waiters:
            if not waiter.granted.done():
                waiter.granted.set_exception(_stopping_error())

    def wake(self, payload: str = "") -> None:
        """Request permits now if it is this worker's turn. This is the handler of `PERMIT_CHANNEL`."""
        if payload in {"", str(self._lease.worker)}:
            self._changed.set()

    # ------------------------------------------------------------------ internals

    async def _acquire(self, waiter: _Waiting) -> None:
        if self._closed:
            raise _stopping_error()
        if not self._waiters:  # otherwise permits for the first waiter are already requested
            self._changed.set()
        self._waiters.append(waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            self._changed.set()  # the next waiter may be admitted now
            granted = waiter.granted
            if granted.done() and not granted.cancelled() and not granted.exception():
                self._release(waiter.key)
            raise

    def _release(self, key: str) -> None:
        self._released.append(key)
        self._changed.set()

    async def _serve(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL if self._waiters else None):
                    await self._changed.wait()
            self._changed.clear()
            await self._exchange()

    async def _exchange(self) -> None:
        """Release and take permits in one statement, and grant those taken to the first waiters."""
        self._waiters = deque(waiter for waiter in self._waiters if not waiter.granted.done())
        now = asyncio.get_running_loop().time()
        first = list(islice(self._waiters, PERMIT_BATCH))
        released, self._released = self._released, []
        requests = [Waiter(waiter.key, waiter.n, now - waiter.since) for waiter in first]
        count = await self._lease.exchange_permits(released, requests, self.limit)
        for waiter in first[:count]:
            self._waiters.popleft()
            if waiter.granted.done():
                self._release(waiter.key)
            else:
                waiter.granted.set_result(None)
        if count == PERMIT_BATCH:
            self._changed.set()


class SharedSlots(Slots):
    """Slots of an account that other workers also use. They can be closed.

    Other workers take and release slots all the time, so probes for free slots are more frequent. Once the
    slots are closed, current and later waiters get `NotSubmitted`.
    """

    tasks_per_probe: ClassVar[int] = 20
    longest_probe_pause: ClassVar[float] = 20.0
    level_tolerance: ClassVar[float] = inf  # the level changes all the time, so it never resets the pause

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Stop admitting jobs."""
        self._closed.set()

    async def acquire(
        self, n: int, flow: Flow | None = None, *, priority: int = 0, first: bool = False
    ) -> int:
        """Wait for *n* slots, and return the epoch in which they were granted.

        Raises:
            NotSubmitted: if the slots are closed.
        """
        acquiring = asyncio.ensure_future(super().acquire(n, flow, priority=priority, first=first))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({acquiring, closed}, return_when=asyncio.FIRST_COMPLETED)
            if self._closed.is_set():
                if acquiring.done():
                    self.release(n)
                raise _stopping_error()
            return acquiring.result()
        except asyncio.CancelledError:
            if acquiring.done() and not acquiring.cancelled():
                self.release(n)
            raise
        finally:
            acquiring.cancel()
            closed.cancel()


def _stopping_error() -> NotSubmitted:
    return NotSubmitted("the worker is stopping and created no task; another worker will run the job")
