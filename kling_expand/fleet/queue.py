"""The queue of a fleet: jobs on procrastinate, in the PostgreSQL database that holds the job store.

::

    async with Fleet("postgresql:///kling") as fleet:
        await fleet.submit_many(ExpandRequest(url, ToAspect("16:9")) for url in urls)
        async for outcome in fleet.results():
            print(outcome.key, outcome.status, outcome.files or outcome.urls)

Any number of machines execute them with ``kling-expand fleet worker``, which runs
`kling_expand.fleet.worker.Worker`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self

import procrastinate
import psycopg
from attrs import frozen
from procrastinate.connector import BaseAsyncConnector, BaseConnector, Notify
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from kling_expand.config import webhook_secret
from kling_expand.errors import JournalError
from kling_expand.jobs.bulk import each
from kling_expand.models import ExpandRequest
from kling_expand.store.base import JobState
from kling_expand.store.postgres import JobOutcome, PostgresStore, create_tables
from kling_expand.store.postgres_pool import Connection, ConnectionPool, listen
from kling_expand.webhooks import WebhookEvent, Webhooks

from . import permits
from .job import Payload, RetryLater, execute, pack

__all__ = ["Fleet", "FleetStats"]

TASK = "kling_expand.expand"
CALLBACK_CHANNEL = "kling_callbacks"  # on which callbacks are forwarded to the workers
BATCH = 500  # jobs queued by one statement
MAX_QUEUED = 100_000  # jobs in the queue before `submit_many` waits
MAX_NOTIFICATION = 7500  # bytes of a forwarded callback: PostgreSQL's limit is 8000 with the envelope
POLL_INTERVAL = 1.0  # seconds between two reads for results
CRASH_RETRY_DELAY = 5.0  # seconds until a job is retried whose execution raised an unexpected error

NotificationHandler = Callable[[str], object]  # called with the payload

logger: logging.Logger = logging.getLogger(__name__)


class Connector(BaseAsyncConnector):
    """Procrastinate's statements over the package's connections, which wait for a database that is away.

    A statement may run twice (see `kling_expand.store.postgres_pool`). A job that the first run finished
    or requeued is missing in the second run, which is no error.
    """

    def __init__(self, database: ConnectionPool) -> None:
        self._database = database

    def get_sync_connector(self) -> BaseConnector:
        """Return this connector: there is no blocking one."""
        return self

    async def open_async(self, pool: object = None) -> None:
        """Do nothing: the fleet opens the connections."""

    async def close_async(self) -> None:
        """Do nothing: the fleet closes the connections."""

    async def execute_query_async(self, query: str, **arguments: Any) -> None:
        """Run a statement that returns no rows."""
        try:
            await self._rows(query, arguments, returning=False)
        except JournalError as error:
            if not isinstance(error.__cause__, psycopg.errors.RaiseException):
                raise
            logger.info("a repeated statement of the queue changed nothing: %s", error)

    async def execute_query_one_async(self, query: str, **arguments: Any) -> dict[str, Any]:
        """Run a statement and return its first row."""
        rows = await self._rows(query, arguments)
        if not rows:
            raise procrastinate.exceptions.NoResult
        return rows[0]

    async def execute_query_all_async(self, query: str, **arguments: Any) -> list[dict[str, Any]]:
        """Run a statement and return all rows."""
        return await self._rows(query, arguments)

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """Deliver notifications to *on_notification*; insertions that arrive together are delivered once."""
        pending: dict[str, str] = {}
        arrived = asyncio.Event()

        def on_notify(channel: str, payload: str) -> None:
            if channel:
                # Notifications of insertions are interchangeable, others are not.
                pending[channel if "job_inserted" in payload else payload] = payload
                arrived.set()

        async def deliver() -> None:
            while True:
                await arrived.wait()
                arrived.clear()
                for payload in [pending.pop(name) for name in tuple(pending)]:
                    await on_notification(channel="", payload=payload)

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver())
            group.create_task(listen(self._database.dsn, on_notify, *channels))

    async def _rows(
        self, query: str, arguments: Mapping[str, Any], *, returning: bool = True
    ) -> list[dict[str, Any]]:
        values = {name: _adapt(value) for name, value in arguments.items()}

        async def run(database: Connection) -> list[dict[str, Any]]:
            async with database.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(query, values)
                return await cursor.fetchall() if returning else []

        return await self._database.run(run)


def _adapt(value: Any) -> Any:
    if isinstance(value, dict):
        return Jsonb(value)
    if isinstance(value, list):
        return [_adapt(item) for item in value]
    if isinstance(value, tuple):  # a named tuple too: PostgreSQL takes it as a row
        return tuple(_adapt(item) for item in value)
    return value


class _Retry(procrastinate.BaseRetryStrategy):
    """The retry rule of the queue: a job that did not end is always retried, after a delay."""

    def get_retry_decision(
        self, *, exception: BaseException, job: procrastinate.jobs.Job
    ) -> procrastinate.RetryDecision:
        del job
        delay = exception.delay if isinstance(exception, RetryLater) else CRASH_RETRY_DELAY
        if isinstance(exception, asyncio.CancelledError):
            delay = 0.0  # this worker stops, and another runs the job
        return procrastinate.RetryDecision(retry_in={"seconds": int(delay)})


async def _run_job(job: procrastinate.JobContext, /, **payload: Any) -> None:
    """Execute one job in the context of the worker that fetched it; procrastinate's task."""
    await execute(payload, job.additional_context["context"], job.job.attempts, job.job.priority)


@frozen(kw_only=True)
class FleetStats:
    """The state of a fleet: its queue, its workers and its store.

    Jobs: those `queued` wait for a worker, those `running` are with one. `outcomes` counts those that
    ended, by status, and `recent_outcomes` those of the last minute. `states` counts the jobs of the
    store by state.
    Images: `in_flight` at the service, `permits` held where permits are exact.
    `workers` has a pair for each worker: seconds since its last heartbeat, and its running jobs.
    `units_billed` is the cost so far, as far as the service has reported it.
    """

    queued: int
    running: int
    workers: tuple[tuple[float, int], ...]
    in_flight: int
    permits: int
    units_billed: int | float
    outcomes: dict[str, int]
    recent_outcomes: int
    states: dict[JobState, int]


class Fleet:
    """The jobs of one *run* in the database at *dsn*, for submitters and readers: ``async with Fleet(dsn)``.

    Entering creates no tables: `init` does, once for each database. All methods wait for a database that
    is away for a while, and raise `JournalError` when it stays away or has no tables.
    """

    def __init__(
        self,
        dsn: str,
        *,
        run: str = "default",
        webhook_secrets: Sequence[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.dsn = dsn
        self.run = run
        self.queue: str = f"kling_{run}"
        self.database: ConnectionPool = ConnectionPool(dsn)
        self._clock = clock
        self.store: PostgresStore = PostgresStore(self.database, run=run, owner=None, clock=clock)
        self.app: procrastinate.App = procrastinate.App(connector=Connector(self.database))
        self._task = self.app.task(name=TASK, queue=self.queue, retry=_Retry(), pass_context=True)(_run_job)
        if webhook_secrets is None:
            secret = webhook_secret()
            webhook_secrets = [secret] if secret else []
        self._webhooks = Webhooks(*webhook_secrets, clock=clock)

    async def __aenter__(self) -> Self:
        await self.database.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.database.aclose()

    async def init(self) -> None:
        """Create the tables that are missing. Calling it again is harmless.

        Raises:
            JournalError: when the database is unreachable or refuses.
        """
        await create_tables(self.database, permits.SCHEMA)
        if not await self.app.check_connection_async():
            await self.app.schema_manager.apply_schema_async()

    # ------------------------------------------------------------------ submitters and readers

    async def submit(self, request: ExpandRequest, *, priority: int = 0) -> str:
        """Queue one request and return its key. Jobs of higher *priority* run first.

        Raises:
            InvalidRequest: when the request cannot be queued: its photo is bytes, for example.
            JournalError: when the database is unreachable or has no tables.
        """
        payload = pack(request)
        await self._task.configure(priority=priority).defer_async(**payload)
        key: str = payload["key"]
        return key

    async def submit_many(
        self,
        requests: Iterable[ExpandRequest] | AsyncIterable[ExpandRequest],
        *,
        priority: int = 0,
        max_queued: int = MAX_QUEUED,
    ) -> int:
        """Queue the requests of any iterable or async iterable, and return their number.

        While *max_queued* jobs are in the queue nothing more is read. Jobs are identified by their keys, and
        a job queued twice is executed once. After a crash the same call can simply be repeated.

        Raises:
            InvalidRequest: when a request cannot be queued.
            JournalError: when the database is unreachable or has no tables.
        """
        count, room = 0, 0
        batch: list[Payload] = []
        async with aclosing(each(requests)) as source:
            async for request in source:
                while room <= 0:
                    room = max_queued - (await self._counts())[0]
                    if room <= 0:
                        await asyncio.sleep(POLL_INTERVAL)
                batch.append(pack(request))
                if len(batch) >= min(BATCH, room):
                    room -= len(batch)
                    count += await self._insert(batch, priority)
                    batch = []
        return count + await self._insert(batch, priority)

    async def _insert(self, batch: list[Payload], priority: int) -> int:
        """Insert the rows of procrastinate's own batches, without an object and a log line for each."""
        if batch:
            await self.database.fetch(_INSERT, self.queue, TASK, priority, list(map(Jsonb, batch)))
        return len(batch)

    async def results(self) -> AsyncGenerator[JobOutcome, None]:
        """Yield the outcome of each job, oldest first, and further ones as they come, until no job is open.

        Raises:
            JournalError: when the database is unreachable or has no tables.
        """
        place = (0, "")
        while True:
            queued, running = await self._counts()  # before the read, else the last could be missed
            page = await self.store.outcomes(place)
            for place, outcome in page:  # noqa: B007 - where the next page begins
                yield outcome
            if not page:
                if not queued and not running and not await self.store.has_outcomes(place):
                    return
                await asyncio.sleep(POLL_INTERVAL)

    async def cancel(self, *keys: str) -> int:
        """Remove the jobs of *keys* (all, without keys) that no worker runs, and return their number.

        Raises:
            JournalError: when the database is unreachable or has no tables.
        """
        removed = await self.database.fetch(_CANCEL, self.queue, list(keys) or None)
        for (key,) in removed:
            await self.store.record_outcome(JobOutcome(key, "cancelled"))
        return len(removed)

    # ------------------------------------------------------------------ workers

    async def fetched_jobs(self, worker_id: int) -> set[int]:
        """Return the jobs that the queue has assigned to this worker.

        Raises:
            JournalError: when the database is unreachable.
        """
        return {number for (number,) in await self.database.fetch(_FETCHED, worker_id)}

    async def listen(self, handlers: Mapping[str, NotificationHandler]) -> None:
        """Call each channel's handler with the payload of every notification, until cancelled.

        After each (re)connection all handlers are called with "": notifications may have been missed.

        Raises:
            JournalError: when the database refuses the connection for good.
        """

        def on_notify(channel: str, payload: str) -> None:
            for name in [channel] if channel else handlers:
                handlers[name](payload)

        await listen(self.dsn, on_notify, *handlers)

    async def requeue_stalled(self, heartbeat_timeout: float, lost: Sequence[int] = ()) -> int:
        """Requeue the jobs of workers without a recent heartbeat, and the *lost* ones; return their number.

        After a start of the database, nothing is requeued for *heartbeat_timeout* seconds: no worker could
        send a heartbeat before.

        Raises:
            JournalError: when the database is unreachable.
        """
        return len(await self.database.fetch(_REQUEUE_STALLED, self.queue, heartbeat_timeout, list(lost)))

    # ------------------------------------------------------------------ callbacks and statistics

    async def receive(self, headers: Mapping[str, str], body: bytes) -> WebhookEvent:
        """Process a callback in any process, and forward it to the worker that waits for its task.

        It is forwarded as it came, and each worker verifies its signature again. A signed final snapshot
        is stored too, which frees the task's slots even where its worker is dead. A callback that is too
        long for a notification is left to the worker's polls.

        Raises:
            JournalError: when the database is unreachable.
            WebhookError: when the callback cannot be trusted or read.
        """
        event = self._webhooks.parse(headers, body)
        if event.task.status.final and not event.needs_poll and event.task.external_task_id:
            with suppress(JournalError):  # a task of this account that is not the fleet's
                await self.store.observe(event.task.external_task_id, event.task)
        signed = {name: value for name, value in headers.items() if name.lower().startswith("webhook-")}
        text = body.decode()
        if len(body) + sum(map(len, signed.values())) < MAX_NOTIFICATION and "\0" not in text:
            await self.database.fetch(_FORWARD, CALLBACK_CHANNEL, Jsonb(signed), text)
        return event

    async def stats(self) -> FleetStats:
        """Return the state of the fleet.

        Raises:
            JournalError: when the database is unreachable or has no tables.
        """
        queued, running = await self._counts()
        workers = await self.database.fetch(_WORKERS)
        outcomes = await self.database.fetch(_OUTCOMES, self.run)
        ((in_flight, held, recent),) = await self.database.fetch(_USAGE, self.run, self._clock() - 60)
        return FleetStats(
            queued=queued,
            running=running,
            workers=tuple((float(age), jobs) for age, jobs in workers),
            in_flight=in_flight,
            permits=held,
            units_billed=await self.store.units_billed(),
            outcomes=dict(outcomes),
            recent_outcomes=recent,
            states=await self.store.counts(),
        )

    async def _counts(self) -> tuple[int, int]:
        """Return how many jobs wait in the queue, and how many are with workers."""
        ((queued, running),) = await self.database.fetch(_COUNTS, self.queue)
        return queued, running


_COUNTS = """
SELECT count(*) FILTER (WHERE status = 'todo'), count(*) FILTER (WHERE status = 'doing')
FROM procrastinate_jobs WHERE queue_name = %s AND status IN ('todo', 'doing')
"""
_INSERT = """
WITH inserted AS (
    INSERT INTO procrastinate_jobs (queue_name, task_name, priority, args)
    SELECT %s, %s, %s, unnest(%s::jsonb[]) RETURNING 1
) SELECT count(*) FROM inserted
"""
_CANCEL = """
WITH input AS (SELECT %s::text AS queue, %s::text[] AS keys), removed AS (
    DELETE FROM procrastinate_jobs USING input WHERE status = 'todo' AND queue_name = queue
        AND (keys IS NULL OR args ->> 'key' = ANY(keys)) RETURNING args ->> 'key'
) SELECT * FROM removed
"""
_FETCHED = "SELECT id FROM procrastinate_jobs WHERE worker_id = %s AND status = 'doing'"
_REQUEUE_STALLED = """
WITH input AS (
    SELECT %s::text AS queue, make_interval(secs => %s) AS timeout, %s::bigint[] AS lost
), stalled AS (
    SELECT job.id FROM input, procrastinate_jobs AS job
    LEFT JOIN procrastinate_workers AS worker ON worker.id = job.worker_id
    WHERE status = 'doing' AND queue_name = queue AND clock_timestamp() - pg_postmaster_start_time() > timeout
        AND (worker.id IS NULL OR last_heartbeat < now() - timeout OR job.id = ANY(lost))
    FOR UPDATE OF job SKIP LOCKED
)
UPDATE procrastinate_jobs SET status = 'todo', attempts = attempts + 1, scheduled_at = NULL, worker_id = NULL
FROM stalled WHERE procrastinate_jobs.id = stalled.id RETURNING 1
"""
_FORWARD = "SELECT pg_notify(%s, jsonb_build_object('headers', %s, 'body', %s::text)::text)"
_WORKERS = """
SELECT extract(epoch FROM now() - last_heartbeat), count(job.id) FROM procrastinate_workers AS worker
LEFT JOIN procrastinate_jobs AS job ON job.worker_id = worker.id AND job.status = 'doing'
GROUP BY worker.id ORDER BY worker.id
"""
_OUTCOMES = "SELECT status, count(*) FROM kling_outcomes WHERE run = %s GROUP BY status"
_USAGE = f"""
SELECT (SELECT coalesce(sum({permits.IMAGES}), 0) FROM kling_jobs WHERE state = 'submitted'),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted
        AND objid::bigint < {permits.ALIVE}),
    (SELECT count(*) FROM kling_outcomes WHERE run = %s AND ended_at > %s)
"""  # noqa: S608 - built of constants
