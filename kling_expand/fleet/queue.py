"""How do many machines share one account? Jobs queued with procrastinate, in the ledger's own PostgreSQL.

::

    async with Fleet("postgresql:///kling") as fleet:
        await fleet.submit_many(ExpandRequest(url, ToAspect("16:9")) for url in urls)
        async for ended in fleet.results():
            print(ended.key, ended.status, ended.files or ended.urls)

and on any number of machines ``kling-expand fleet worker``, which is `kling_expand.fleet.worker.Worker`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
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
from kling_expand.jobs.bulk import Requests, each
from kling_expand.models import ExpandRequest
from kling_expand.store.postgres import JobOutcome, PostgresStore, create_tables
from kling_expand.store.postgres_pool import Connection, Connections, listen
from kling_expand.store.sqlite_statements import State
from kling_expand.webhooks import WebhookEvent, Webhooks

from . import payload as payloads
from . import permits
from .execute import RetryLater, work

__all__ = ["Fleet", "FleetStats"]

TASK = "kling_expand.expand"
NEWS = "kling_news"  # the channel that callbacks are passed on by
BATCH = 500  # jobs queued by one statement
MOST_WAITING = 100_000  # jobs in the queue before whoever adds more has to wait
LONGEST_NEWS = 7500  # bytes PostgreSQL passes on at once, less its envelope
POLL = 1.0  # seconds between two looks for results
BROKEN = 5.0  # seconds until a job is begun again that neither ended nor said when

logger = logging.getLogger(__name__)


class Connector(BaseAsyncConnector):
    """Procrastinate's questions over our connections, so that a database that is away is waited for.

    What is asked may be done twice (see `connections`): a job that was finished or put back the first
    time is not there the second, and that is no error.
    """

    def __init__(self, database: Connections) -> None:
        self._database = database

    def get_sync_connector(self) -> BaseConnector:
        """There is only this one."""
        return self

    async def open_async(self, pool: object = None) -> None:
        """Nothing to do: the connections are opened with the fleet."""

    async def close_async(self) -> None:
        """The same."""

    async def execute_query_async(self, query: str, **arguments: Any) -> None:
        """Ask and expect no answer."""
        try:
            await self._rows(query, arguments, answered=False)
        except JournalError as error:
            if not isinstance(error.__cause__, psycopg.errors.RaiseException):
                raise
            logger.info("nothing was left to do: %s", error)

    async def execute_query_one_async(self, query: str, **arguments: Any) -> dict[str, Any]:
        """Ask for one row."""
        rows = await self._rows(query, arguments)
        if not rows:
            raise procrastinate.exceptions.NoResult
        return rows[0]

    async def execute_query_all_async(self, query: str, **arguments: Any) -> list[dict[str, Any]]:
        """Ask for all rows."""
        return await self._rows(query, arguments)

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """Pass notifications on; of many that come at once, the last of each channel is enough."""
        news: dict[str, str] = {}
        bell = asyncio.Event()

        def heard(channel: str, payload: str) -> None:
            if channel:
                # An insertion only says that there is something; anything else counts by itself.
                news[channel if "job_inserted" in payload else payload] = payload
                bell.set()

        async def tell() -> None:
            while True:
                await bell.wait()
                bell.clear()
                for payload in [news.pop(name) for name in tuple(news)]:
                    await on_notification(channel="", payload=payload)

        async with asyncio.TaskGroup() as group:
            group.create_task(tell())
            group.create_task(listen(self._database.dsn, heard, *channels))

    async def _rows(
        self, query: str, arguments: Mapping[str, Any], *, answered: bool = True
    ) -> list[dict[str, Any]]:
        values = {name: _adapted(value) for name, value in arguments.items()}

        async def ask(database: Connection) -> list[dict[str, Any]]:
            async with database.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(query, values)
                return await cursor.fetchall() if answered else []

        return await self._database.do(ask)


def _adapted(value: Any) -> Any:
    if isinstance(value, dict):
        return Jsonb(value)
    if isinstance(value, list):
        return [_adapted(item) for item in value]
    if isinstance(value, tuple):  # a named one as well: PostgreSQL knows it as a row
        return tuple(_adapted(item) for item in value)
    return value


class _Retry(procrastinate.BaseRetryStrategy):
    """When a job that did not come to an end is begun again: never not."""

    def get_retry_decision(
        self, *, exception: BaseException, job: procrastinate.jobs.Job
    ) -> procrastinate.RetryDecision:
        del job
        pause = exception.pause if isinstance(exception, RetryLater) else BROKEN
        if isinstance(exception, asyncio.CancelledError):
            pause = 0.0  # handed over
        return procrastinate.RetryDecision(retry_in={"seconds": int(pause)})


async def _expand(context: procrastinate.JobContext, /, **payload: Any) -> None:
    """Procrastinate's task: one job, on the bench of the worker that fetched it."""
    await work(payload, context.additional_context["bench"], context.job.attempts, context.job.priority)


@frozen(kw_only=True)
class FleetStats:
    """How it goes: jobs `waiting` in the queue and `running` in workers, and the ledger's view of them.

    `workers` are pairs of seconds since a worker was last heard of and how many jobs it has, `out` is the
    number of pictures at the service, `permits` how many exact permits are taken, `spent` units, and
    `ended` how many jobs ended by status; `lately` those of the last minute.
    """

    waiting: int
    running: int
    workers: tuple[tuple[float, int], ...]
    out: int
    permits: int
    spent: int | float
    ended: dict[str, int]
    lately: int
    states: dict[State, int]


class Fleet:
    """The jobs of one *run* in the database at *dsn*, for who submits them and for who waits: ``async with``.

    Entering makes no tables: `init` does, once. Methods raise `JournalError` where the database has none
    or stays away, and wait where it is only away for a while.
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
        self.queue = f"kling_{run}"
        self.database = Connections(dsn)
        self._clock = clock
        self.ledger = PostgresStore(self.database, run=run, owner=None, clock=clock)
        self.app = procrastinate.App(connector=Connector(self.database))
        self._task = self.app.task(name=TASK, queue=self.queue, retry=_Retry(), pass_context=True)(_expand)
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
        """Make all tables where they are missing. Safe to repeat."""
        await create_tables(self.database, permits.SCHEMA)
        if not await self.app.check_connection_async():
            await self.app.schema_manager.apply_schema_async()

    # ------------------------------------------------------------------ submitting and waiting

    async def submit(self, request: ExpandRequest, *, priority: int = 0) -> str:
        """Queue one request; its key. A higher *priority* is begun first. Raises `InvalidRequest`."""
        payload = payloads.pack(request)
        await self._task.configure(priority=priority).defer_async(**payload)
        key: str = payload["key"]
        return key

    async def submit_many(
        self, requests: Requests, *, priority: int = 0, most_waiting: int = MOST_WAITING
    ) -> int:
        """Queue any number of requests from any iterable; how many there were.

        While *most_waiting* are in the queue nothing more is read. Jobs are told by their keys: what is
        queued again is done once, so after a crash the same call can simply be made again.
        """
        count, room = 0, 0
        batch: list[payloads.Payload] = []
        async with aclosing(each(requests)) as source:
            async for request in source:
                while room <= 0:
                    room = most_waiting - (await self._counts())[0]
                    if room <= 0:
                        await asyncio.sleep(POLL)
                batch.append(payloads.pack(request))
                if len(batch) >= min(BATCH, room):
                    room -= len(batch)
                    count += await self._queue(batch, priority)
                    batch = []
        return count + await self._queue(batch, priority)

    async def _queue(self, batch: list[payloads.Payload], priority: int) -> int:
        """The rows that procrastinate's own batches make, without an object and a log line for each."""
        if batch:
            await self._ask(_DEFER, self.queue, TASK, priority, list(map(Jsonb, batch)))
        return len(batch)

    async def results(self) -> AsyncIterator[JobOutcome]:
        """How each job of the run ended, oldest first, and from then on as they end, until none is open."""
        place = (0, "")
        while True:
            waiting, running = await self._counts()  # before the look, or the last might be missed
            page = await self.ledger.outcomes(place)
            for place, ended in page:  # noqa: B007 - where the next page begins
                yield ended
            if not page:
                if not waiting and not running and not await self.ledger.more(place):
                    return
                await asyncio.sleep(POLL)

    async def cancel(self, *keys: str) -> int:
        """Take jobs back that nobody has begun, those of *keys* or all; how many there were."""
        taken = await self._ask(_CANCEL, self.queue, list(keys) or None)
        for (key,) in taken:
            await self.ledger.ended(JobOutcome(key, "cancelled"))
        return len(taken)

    # ------------------------------------------------------------------ for workers

    async def begun(self, worker_id: int) -> set[int]:
        """The jobs that the queue thinks this worker has."""
        return {number for (number,) in await self._ask(_BEGUN, worker_id)}

    async def requeue_stalled(self, lease: float, lost: Sequence[int] = ()) -> int:
        """Queue again what workers had who were silent for *lease* seconds, and what is *lost*; how many.

        Not within a lease of the database's own start: until then nobody could be heard.
        """
        return len(await self._ask(_PUT_BACK, self.queue, lease, list(lost)))

    # ------------------------------------------------------------------ news

    async def receive(self, headers: Mapping[str, str], body: bytes) -> WebhookEvent:
        """Take a callback in any process: the worker that waits for its task hears of it at once.

        It is passed on as it came, and believed by nobody who has not checked its signature. A signed end
        is kept in the ledger too: should that worker be dead, the task's slots are free all the same.
        Raises `WebhookError`. A call too long to be passed on is left to the worker's own reads.
        """
        call = self._webhooks.parse(headers, body)
        if call.task.status.final and not call.doorbell and call.task.external_task_id:
            with suppress(JournalError):  # a task of somebody else on this account
                await self.ledger.observed(call.task.external_task_id, call.task)
        signed = {name: value for name, value in headers.items() if name.lower().startswith("webhook-")}
        text = body.decode()
        if len(body) + sum(map(len, signed.values())) < LONGEST_NEWS and "\0" not in text:
            await self._ask(_TELL, NEWS, Jsonb(signed), text)
        return call

    async def numbers(self) -> FleetStats:
        """How it goes."""
        waiting, running = await self._counts()
        workers = await self._ask(_WORKERS)
        ended = await self._ask(_ENDS, self.run)
        ((out, taken, lately),) = await self._ask(_OUT, self.run, self._clock() - 60)
        return FleetStats(
            waiting=waiting,
            running=running,
            workers=tuple((float(age), jobs) for age, jobs in workers),
            out=out,
            permits=taken,
            spent=await self.ledger.spent(),
            ended=dict(ended),
            lately=lately,
            states=await self.ledger.counts(),
        )

    async def _counts(self) -> tuple[int, int]:
        """How many jobs wait in the queue, and how many are in workers."""
        ((waiting, running),) = await self._ask(_QUEUE, self.queue)
        return waiting, running

    async def _ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        async def ask(database: Connection) -> list[tuple[Any, ...]]:
            return await (await database.execute(query, values)).fetchall()

        return await self.database.do(ask)


_QUEUE = """
SELECT count(*) FILTER (WHERE status = 'todo'), count(*) FILTER (WHERE status = 'doing')
FROM procrastinate_jobs WHERE queue_name = %s AND status IN ('todo', 'doing')
"""
_DEFER = """
WITH made AS (
    INSERT INTO procrastinate_jobs (queue_name, task_name, priority, args)
    SELECT %s, %s, %s, unnest(%s::jsonb[]) RETURNING 1
) SELECT count(*) FROM made
"""
_CANCEL = """
WITH mine AS (SELECT %s::text AS queue, %s::text[] AS keys), taken AS (
    DELETE FROM procrastinate_jobs USING mine WHERE status = 'todo' AND queue_name = queue
        AND (keys IS NULL OR args ->> 'key' = ANY(keys)) RETURNING args ->> 'key'
) SELECT * FROM taken
"""
_BEGUN = "SELECT id FROM procrastinate_jobs WHERE worker_id = %s AND status = 'doing'"
_PUT_BACK = """
WITH asked AS (SELECT %s::text AS queue, make_interval(secs => %s) AS lease, %s::bigint[] AS lost), gone AS (
    SELECT job.id FROM asked, procrastinate_jobs AS job
    LEFT JOIN procrastinate_workers AS worker ON worker.id = job.worker_id
    WHERE status = 'doing' AND queue_name = queue AND clock_timestamp() - pg_postmaster_start_time() > lease
        AND (worker.id IS NULL OR last_heartbeat < now() - lease OR job.id = ANY(lost))
    FOR UPDATE OF job SKIP LOCKED
)
UPDATE procrastinate_jobs SET status = 'todo', attempts = attempts + 1, scheduled_at = NULL, worker_id = NULL
FROM gone WHERE procrastinate_jobs.id = gone.id RETURNING 1
"""
_TELL = "SELECT pg_notify(%s, jsonb_build_object('headers', %s, 'body', %s::text)::text)"
_WORKERS = """
SELECT extract(epoch FROM now() - last_heartbeat), count(job.id) FROM procrastinate_workers AS worker
LEFT JOIN procrastinate_jobs AS job ON job.worker_id = worker.id AND job.status = 'doing'
GROUP BY worker.id ORDER BY worker.id
"""
_ENDS = "SELECT status, count(*) FROM kling_outcomes WHERE run = %s GROUP BY status"
_OUT = """
SELECT (SELECT coalesce(sum((params::json ->> 'n')::integer), 0) FROM kling_jobs WHERE state = 'submitted'),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted
        AND objid::bigint < 1000000000),
    (SELECT count(*) FROM kling_outcomes WHERE run = %s AND ended_at > %s)
"""
