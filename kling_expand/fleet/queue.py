"""The queue of a fleet: jobs in procrastinate's tables, in the PostgreSQL database of the job store.

::

    async with Fleet("postgresql:///kling") as fleet:
        await fleet.submit_many(ExpandRequest(url, ToAspect("16:9")) for url in urls)
        async for outcome in fleet.results():
            print(outcome.key, outcome.status, outcome.files or outcome.urls)

Any number of machines can execute the jobs with ``kling-expand fleet worker``, which runs
`kling_expand.fleet.worker.Worker`.
"""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Self

from attrs import frozen
from psycopg.types.json import Jsonb

from kling_expand.config import webhook_secret
from kling_expand.errors import JournalError
from kling_expand.jobs.bulk import each
from kling_expand.models import ExpandRequest, check
from kling_expand.store.base import JobState
from kling_expand.store.postgres import (
    OUTCOME_COLUMNS,
    PAGE,
    JobOutcome,
    PostgresStore,
    TakenOver,
    check_tables,
    create_tables,
    outcome_of,
)
from kling_expand.store.postgres_pool import Connection, ConnectionPool, listen
from kling_expand.webhooks import WebhookEvent, Webhooks

from .job import History, Payload, RetryLater, WorkerContext, execute, pack
from .lease import Lease, QueuedJob
from .schema import ALONE, FOLLOW, IMAGES, MAX_DEATHS, NEW, SAVE, SCHEMA, TASK

__all__ = ["Fleet", "FleetStats"]

CALLBACK_CHANNEL = "kling_callbacks"  # forwards callbacks to the workers
BATCH = 1000  # jobs queued by one statement
CANCEL_BATCH = 10_000  # jobs cancelled by one statement, so that its cost is bounded
MAX_QUEUED = 100_000  # jobs in the queue before `submit_many` waits
UNSIGNED_INTERVAL = 5.0  # seconds between two unsigned callbacks of a task that are forwarded
MAX_UNSIGNED = 1000  # tasks whose unsigned callbacks are forwarded during UNSIGNED_INTERVAL
MAX_NOTIFICATION = 7500  # bytes of a forwarded callback: PostgreSQL's limit is 8000 with the envelope
POLL_INTERVAL = 2.0  # seconds between two reads for results
TAKE_INTERVAL = 5.0  # seconds between two reads of an empty queue, for delayed jobs and lost notifications
TAKE_BATCH = 8  # new jobs taken by one statement, so that workers that start together share them
SAVE_INTERVAL = 5.0  # seconds between two reads of the jobs whose pictures are to be saved later
MAX_FOLLOWED = 1000  # tasks that one worker follows for workers that have ended
CRASH_RETRY_DELAY = 5.0  # seconds until a job is retried after an unexpected error
_PLAIN_RUN = re.compile(r"[A-Za-z0-9_.-]{1,27}")  # the name of a channel has at most 63 bytes

NotificationHandler = Callable[[str], object]  # called with the payload

logger: logging.Logger = logging.getLogger(__name__)


def queue_name(run: str) -> str:
    """Return the name of a run's queue, which has a hash in place of a long or unusual name of the run."""
    return f"kling_{run if _PLAIN_RUN.fullmatch(run) else hashlib.sha256(run.encode()).hexdigest()[:26]}"


class Consumer:
    """The jobs that one worker runs: at most *concurrency* new ones, and up to MAX_FOLLOWED others.

    Once the worker has *enough* new jobs, it takes more only in batches of TAKEN_AT_ONCE. With *alone*, it
    takes only jobs that must run alone, one after another.
    """

    def __init__(
        self,
        lease: Lease,
        context: WorkerContext,
        *,
        concurrency: int,
        enough: int | None = None,
        alone: bool = False,
    ) -> None:
        self._lease = lease
        self._context = context
        self._concurrency = concurrency
        self._enough = concurrency if enough is None else enough
        self._alone = alone
        self._woken = asyncio.Event()
        self._save_at = 0.0
        self._running: dict[asyncio.Task[None], QueuedJob] = {}

    @property
    def running(self) -> set[asyncio.Task[None]]:
        """The asyncio tasks of the current jobs."""
        return set(self._running)

    @property
    def job_ids(self) -> set[int]:
        """The numbers of the current jobs."""
        return {job.id for job in self._running.values()}

    @property
    def _room(self) -> int:
        """The number of new jobs to take now."""
        new = sum(job.stage == NEW for job in self._running.values())
        room = max(0, min(TAKE_BATCH, self._concurrency - new))
        return room if new < self._enough or room == TAKE_BATCH else 0

    def wake(self, _payload: str = "") -> None:
        """Take jobs now if there is room. This is the handler of the queue's notifications."""
        self._woken.set()

    async def take_jobs(self) -> None:
        """Take jobs whenever there is room, until cancelled."""
        while True:
            self._woken.clear()
            for job in (taken := await self._take()):
                task = asyncio.create_task(self._process(job), name=f"fleet job {job.id}")
                self._running[task] = job
                task.add_done_callback(self._done)
            if not taken:
                with suppress(TimeoutError):
                    async with asyncio.timeout(TAKE_INTERVAL if self._room else None):
                        await self._woken.wait()

    async def _take(self) -> list[QueuedJob]:
        if self._alone:
            return [] if self._running else await self._lease.take(0, 1, ALONE)
        stages, now = [FOLLOW], asyncio.get_running_loop().time()
        if now >= self._save_at:  # thousands of jobs may be waiting there for free disk space
            self._save_at = now + SAVE_INTERVAL
            stages.append(SAVE)
        followed = sum(job.stage != NEW for job in self._running.values())
        return await self._lease.take(self._room, MAX_FOLLOWED - followed, *stages)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if self._room or self._alone:
            self._woken.set()

    async def _process(self, job: QueuedJob) -> None:
        """Execute a job and update the queue. If this is cancelled, the job stays assigned to this worker."""
        try:
            problem = _problem(job)
            if problem is not None:
                key = f"{job.task_name} {job.id}"
                await self._context.store.record_outcome(JobOutcome(key, "refused", error=problem))
                await self._lease.set_failed(job)
                return
            await execute(job.payload, self._context, _history(job), job.priority)
        except RetryLater as retry:
            await self._lease.requeue(job, retry.delay, charge=retry.charge, saving=retry.saving)
        except TakenOver:
            logger.info("job %s was taken over by another worker", job.payload["key"])
            await self._lease.requeue(job, CRASH_RETRY_DELAY)
        except Exception:
            logger.exception("a job will be retried after an unexpected error")
            await self._lease.requeue(job, CRASH_RETRY_DELAY, charge=True)


def _problem(job: QueuedJob) -> str | None:
    """Return the reason why a job cannot be executed at all, or None."""
    if job.task_name != TASK:
        return (
            f"the task must be {TASK!r}, got {job.task_name!r}; the job stays in the queue's table as failed"
        )
    if not isinstance(job.payload, dict) or not isinstance(job.payload.get("key"), str):
        return "the payload must have a key; the job stays in the queue's table as failed"
    return None


def _history(job: QueuedJob) -> History:
    return History(
        queued=job.id,
        attempts=job.attempts,
        follow=job.stage != NEW,
        saving=job.stage == SAVE,
        deaths=job.deaths,
        forbidden=job.deaths > MAX_DEATHS,
    )


@frozen(kw_only=True)
class FleetStats:
    """The state of a fleet: its queue, its workers and its store.

    - Jobs: `queued` ones wait for a worker, and `running` ones have a worker. `outcomes` counts ended jobs by
      status, and `recent_outcomes` those of the last minute. `states` counts the jobs of the store by state,
      where each pass counts as a job.
    - Pictures: `in_flight` are at the service. `permits` is the number of permits that are held. Workers that
      estimate the account's limit hold none.
    - `workers` has a pair for each worker: seconds since its last heartbeat, and its running jobs.
    - `units_billed` is the cost so far, according to the service.
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

    Entering does not create the tables, so call `init` once for each database. All methods wait while the
    database is unreachable. They raise `JournalError` if it stays unreachable, or has no tables of this
    version.

    *webhook_secrets* verify callbacks; the default is ``KLING_WEBHOOK_SECRET``. *clock* returns Unix seconds.
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
        self.queue: str = queue_name(run)
        self.database: ConnectionPool = ConnectionPool(dsn)
        self.clock: Callable[[], float] = clock
        self.store: PostgresStore = PostgresStore(self.database, run=run, owner=None, clock=clock)
        self._open_queues = [self.queue + stage for stage in (NEW, FOLLOW, ALONE)]
        self._checked = False
        if webhook_secrets is None:
            secret = webhook_secret()
            webhook_secrets = [secret] if secret else []
        self._webhooks = Webhooks(*webhook_secrets, clock=clock)
        self._unsigned: dict[str, float] = {}  # task ids, and when a callback of each was last forwarded

    async def __aenter__(self) -> Self:
        await self.database.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.database.aclose()

    async def init(self) -> None:
        """Create missing tables, and upgrade older ones. Calling it again is harmless.

        Workers of the older version stop with an error at their next heartbeat.

        Raises:
            JournalError: if the database is unreachable or refuses a statement, or its tables are newer.
        """

        async def create_queue(connection: Connection) -> None:
            from procrastinate.schema import SchemaManager  # imported here, because nothing else needs it

            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(hashtext('kling_expand'))")
                known = await (
                    await connection.execute("SELECT to_regclass('procrastinate_jobs')::text")
                ).fetchone()
                if known is None or known[0] is None:
                    await connection.execute(SchemaManager.get_schema())

        await self.database.run(create_queue)
        await create_tables(self.database, SCHEMA)

    async def check(self) -> None:
        """Raise `JournalError` if the tables are missing or of another version."""
        if not self._checked:
            await check_tables(self.database)
            self._checked = True

    # ------------------------------------------------------------------ submitters and readers

    async def submit(self, request: ExpandRequest, *, passes: int = 1, priority: int = 0) -> str:
        """Queue one request and return its key. Jobs of higher *priority* run first.

        As in `KlingClient.expand`, a geometry that needs more than three times the area can take up to
        *passes* tasks, each of which is billed. A request whose photo is at an http(s) URL has one pass,
        because the size of the photo is not known.

        Raises:
            InvalidRequest: if the request cannot be queued, for example because its photo is bytes.
            JournalError: if the database is unreachable or has no tables.
        """
        check(passes=passes)
        payload = pack(request, passes)
        await self.check()
        await self._insert([payload], priority)
        key: str = payload["key"]
        return key

    async def submit_many(
        self,
        requests: Iterable[ExpandRequest] | AsyncIterable[ExpandRequest],
        *,
        passes: int = 1,
        priority: int = 0,
        max_queued: int = MAX_QUEUED,
    ) -> int:
        """Queue the requests of any iterable or async iterable, and return their number.

        While *max_queued* jobs are in the queue, no more requests are read. *passes* and *priority* are as in
        `submit`. Jobs are identified by their keys, and a job that is queued twice is executed once. So after
        a crash the same call can simply be repeated.

        Raises:
            InvalidRequest: if a request cannot be queued.
            JournalError: if the database is unreachable or has no tables.
        """
        check(passes=passes)
        await self.check()
        count, room = 0, 0
        batch: list[Payload] = []
        inserting = asyncio.create_task(self._insert([], priority))
        try:
            async with aclosing(each(requests)) as source:
                async for request in source:
                    while room <= 0:
                        await inserting
                        room = max_queued - (await self._counts())[0]
                        if room <= 0:
                            await asyncio.sleep(POLL_INTERVAL)
                    batch.append(pack(request, passes))
                    if len(batch) >= min(BATCH, room):
                        room -= len(batch)
                        count += await inserting  # the database inserts one batch while the next is packed
                        inserting = asyncio.create_task(self._insert(batch, priority))
                        batch = []
                        await asyncio.sleep(0)  # lets the new asyncio task send its statement
            return count + await inserting + await self._insert(batch, priority)
        finally:
            inserting.cancel()
            await asyncio.wait([inserting])

    async def _insert(self, batch: list[Payload], priority: int) -> int:
        if batch:
            await self.database.fetch(_INSERT, self.queue, TASK, priority, Jsonb(batch))
        return len(batch)

    async def results(self) -> AsyncGenerator[JobOutcome, None]:
        """Yield the outcomes, oldest first, and each new one when its job ends, until no job is open.

        A succeeded job is not open, even if its pictures are still to be saved. If an outcome changes, it is
        yielded again.

        Raises:
            JournalError: if the database is unreachable or has no tables.
        """
        await self.check()
        last_number = 0
        while True:
            rows = await self.database.fetch(_RESULTS, self._open_queues, self.run, last_number, PAGE)
            for _, number, *row in rows:
                if number is not None:
                    last_number = number
                    yield outcome_of(row)
            if len(rows) < PAGE:
                if not rows[0][0]:
                    return
                await asyncio.sleep(POLL_INTERVAL)

    async def cancel(self, *keys: str) -> int:
        """Cancel waiting jobs that were never sent, and return their number.

        Without *keys*, this applies to all jobs. A job that was sent may have a task, which is billed, so it
        is followed to its end. A job that is held by a worker also continues. The number of jobs that
        continue is logged. Each job is removed and its outcome recorded in one statement, so an interrupted
        call can be repeated.

        Raises:
            JournalError: if the database is unreachable or has no tables.
        """
        await self.check()
        chosen = _BY_KEYS if keys else _BY_QUEUES
        wanted = [list(keys)] if keys else []
        cancel, total, removed = _CANCEL.replace("{chosen}", chosen), 0, 1
        while removed:
            values = self.run, self.clock(), [self.queue], *wanted, CANCEL_BATCH
            ((removed,),) = await self.database.fetch(cancel, *values)
            total += removed
        count_kept = _COUNT_KEPT.replace("{chosen}", chosen)
        ((kept,),) = await self.database.fetch(count_kept, self._open_queues, *wanted)
        if kept:
            logger.warning("%d jobs were not cancelled, because a worker has them or has sent them", kept)
        return total

    # ------------------------------------------------------------------ workers

    async def listen(self, handlers: Mapping[str, NotificationHandler]) -> None:
        """Call each channel's handler with the payload of every notification, until cancelled.

        After each connection and reconnection, all handlers are called with "", because notifications may
        have been missed.

        Raises:
            JournalError: if the database refuses the connection for good.
        """

        def on_notify(channel: str, payload: str) -> None:
            for name in [channel] if channel else handlers:
                handlers[name](payload)

        await listen(self.dsn, on_notify, *handlers)

    # ------------------------------------------------------------------ callbacks and statistics

    async def receive(self, headers: Mapping[str, str], body: bytes) -> WebhookEvent:
        """Process a callback, and forward it to the worker that waits for its task.

        *headers* and the raw *body* may arrive in any process. The callback is forwarded unchanged, and each
        worker verifies its signature again. A signed final snapshot is also stored, which releases the task's
        slots even if its worker is dead. A callback that is too long for a notification is not forwarded, and
        the worker detects the change by polling. Unsigned callbacks are limited: in any 5 s, at most one is
        forwarded for each task, and for at most 1000 tasks in all.

        Raises:
            JournalError: if the database is unreachable.
            WebhookError: if the callback cannot be trusted or read.
        """
        event = self._webhooks.parse(headers, body)
        if event.task.status.final and not event.needs_poll and event.task.external_task_id:
            with suppress(JournalError):  # a task of this account that does not belong to the fleet
                await self.store.observe(event.task.external_task_id, event.task)
        if event.needs_poll and not self._forwards_unsigned(event.task.task_id):
            return event
        signed = {name: value for name, value in headers.items() if name.lower().startswith("webhook-")}
        text = body.decode()
        if len(body) + sum(map(len, signed.values())) < MAX_NOTIFICATION and "\0" not in text:
            await self.database.fetch(_FORWARD, CALLBACK_CHANNEL, Jsonb(signed), text)
        return event

    def _forwards_unsigned(self, task_id: str) -> bool:
        """Return whether to forward an unsigned callback of a task now, and if so record the time."""
        now = asyncio.get_running_loop().time()
        recent = {known: at for known, at in self._unsigned.items() if at > now - UNSIGNED_INTERVAL}
        forwards = task_id not in recent and len(recent) < MAX_UNSIGNED
        self._unsigned = recent | {task_id: now} if forwards else recent
        return forwards

    async def stats(self) -> FleetStats:
        """Return the state of the fleet.

        Raises:
            JournalError: if the database is unreachable or has no tables.
        """
        await self.check()
        queued, running = await self._counts()
        workers = await self.database.fetch(_WORKERS, self.run)
        outcomes = await self.database.fetch(_OUTCOMES, f"outcomes {self.run}")
        ((in_flight, held, recent),) = await self.database.fetch(
            _USAGE, self.run, self.run, self.run, self.clock() - 60
        )
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
        """Return how many jobs wait in the queue, and how many have a worker.

        Succeeded jobs whose pictures are still to be saved are not counted.
        """
        values = f"queue {self.queue}", self._open_queues, self._open_queues
        ((queued, running),) = await self.database.fetch(_COUNTS, *values)
        return queued, running


_COUNTS = """
SELECT (SELECT coalesce(sum(number), 0)::bigint FROM kling_counts WHERE scope = %s AND what = ANY(%s)),
    (SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing' AND queue_name = ANY(%s))
"""
# The second part sees later commits than the first, so a job that ends in between is not missed.
_RESULTS = f"""
SELECT is_open, number, {OUTCOME_COLUMNS} FROM (
    SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE status = 'todo' AND queue_name = ANY(queues))
        OR EXISTS (SELECT FROM procrastinate_jobs WHERE status = 'doing' AND queue_name = ANY(queues))
        AS is_open
    FROM (SELECT %s::text[] AS queues) AS input
) AS queue LEFT JOIN kling_read_outcomes(%s, %s, %s) ON true
"""  # noqa: S608 - built of constants
_INSERT = """
SELECT cardinality(procrastinate_defer_jobs_v1(array_agg(
    ROW(%s::varchar, %s::varchar, %s::integer, NULL, NULL, args, NULL)::procrastinate_job_to_defer_v1)))
FROM jsonb_array_elements(%s) AS args
"""
_BY_QUEUES = "queue_name = ANY(%s)"
# `|| ''` makes the planner use the index of keys, even for a long queue before the first ANALYZE.
_BY_KEYS = "queue_name || '' = ANY(%s) AND args ->> 'key' = ANY(%s)"
_CANCEL = """
WITH input AS (SELECT %s::text AS run, %s::double precision AS now),
removed AS (
    DELETE FROM procrastinate_jobs WHERE status = 'todo' AND id = ANY(ARRAY(
        SELECT job.id FROM procrastinate_jobs AS job, input
        WHERE {chosen} AND task_name = '{task}' AND status = 'todo' AND NOT EXISTS (
            SELECT FROM kling_jobs AS known WHERE known.run = input.run AND known.key = args ->> 'key'
                AND (task_id IS NOT NULL OR last_post_at IS NOT NULL))
        LIMIT %s))
    RETURNING args ->> 'key' AS key
), recorded AS (
    INSERT INTO kling_outcomes (run, key, status, urls, files, ended_at)
    SELECT DISTINCT run, key, 'cancelled', '{}'::text[], '{}'::text[], now FROM removed, input
    WHERE key IS NOT NULL
    ON CONFLICT (run, key) DO UPDATE SET status = excluded.status, external_task_id = NULL, task_id = NULL,
        urls = excluded.urls, files = excluded.files, units = NULL, error = NULL,
        ended_at = excluded.ended_at, saved = true, number = NULL
)
SELECT count(*) FROM removed
""".replace("{task}", TASK)
_COUNT_KEPT = f"""
SELECT count(*) FROM procrastinate_jobs
WHERE {{chosen}} AND task_name = '{TASK}' AND status IN ('todo', 'doing')
"""  # noqa: S608 - built of constants
_FORWARD = "SELECT pg_notify(%s, jsonb_build_object('headers', %s, 'body', %s::text)::text)"
_WORKERS = """
SELECT extract(epoch FROM clock_timestamp() - seen_at), count(job.id)
FROM kling_workers AS worker
LEFT JOIN procrastinate_jobs AS job ON job.worker_id = worker.id AND job.status = 'doing'
WHERE worker.run = %s GROUP BY worker.id ORDER BY worker.id
"""
_OUTCOMES = """
SELECT what, sum(number)::bigint FROM kling_counts WHERE scope = %s GROUP BY what HAVING sum(number) <> 0
"""
_USAGE = f"""
SELECT (SELECT coalesce(sum({IMAGES}), 0) FROM kling_jobs WHERE run = %s AND state = 'submitted'),
    (SELECT coalesce(sum(images), 0) FROM kling_permits WHERE run = %s),
    (SELECT count(*) FROM kling_outcomes WHERE run = %s AND ended_at > %s)
"""  # noqa: S608 - built of constants
