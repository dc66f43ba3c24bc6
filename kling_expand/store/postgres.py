"""A durable job store in PostgreSQL for many workers at once, which also holds a fleet's outcomes.

A worker that records an intent owns the job from then on, and only the owner may send it. A fleet's worker
also needs a lease, which ends if it sends no heartbeats. So a worker that was presumed dead and comes back
learns before its create is sent, not after, that it no longer owns the job.
"""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from attrs import fields, frozen

from kling_expand.errors import JournalError
from kling_expand.models import Task

from .base import (
    COLUMNS,
    PREVIOUS,
    JobRecord,
    JobState,
    JobStore,
    task_exists,
    unknown_job,
    warn_of_other_parameters,
    warn_of_two_tasks,
)
from .postgres_pool import Connection, ConnectionPool
from .postgres_schema import OPEN, SCHEMA, VERSION

PAGE = 200  # jobs read at a time
CLAIM_TRIES = 10  # tries to find or insert a job that other workers insert at the same moment
MAX_REMEMBERED = 1000  # recorded ends that a worker remembers, so that none is written twice, and new jobs
SEND_TIMEOUT = 5.0  # seconds; if marking a create took longer, it is marked again before it is sent


class TakenOver(JournalError):
    """The error of a worker that must not send a job: another worker owns it, or its lease has ended."""


@frozen
class JobOutcome:
    """The outcome of one job of a fleet.

    `status` is ``succeeded``, ``failed``, ``refused`` (no task exists) or ``cancelled``. A job also counts as
    failed if its task can no longer be followed, or if a pass after the first was refused. Ids and `urls` are
    those of the last task. `urls` are valid for 30 days (documented). `files` are the paths or URLs of the
    saved pictures. `units` is the number of units billed for all passes, or None if the service did not
    report it. `ended_at` is in Unix seconds. `saved` is False if the pictures of a succeeded task have not
    been saved, and `error` says why. Unless the pictures have expired or the job killed too many workers,
    saving is retried, and a later outcome of the same key replaces this one. If `saved` is True, the `error`
    of a succeeded task says why its full-size pictures could not be made.
    """

    key: str
    status: str
    external_task_id: str | None = None
    task_id: str | None = None
    urls: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    units: int | float | None = None
    error: str | None = None
    ended_at: float = 0.0
    saved: bool = True


class PostgresStore(JobStore):
    """The jobs of one *run* in a *database* that many workers share. Pass it to a client as its ``journal``.

    *owner* is this worker's number. By default, opening the store assigns the next free number, which is
    negative. A worker owns a job from its `record_intent` until another worker records the same intent. With
    *leased*, it must also be registered as a fleet's worker to send a job. *account* names the account whose
    slots the jobs take, and *clock* returns Unix seconds. Every method waits while the database is
    unavailable.

    Raises:
        JournalError: if, in any method, the database stays unavailable or refuses a statement.
    """

    def __init__(
        self,
        database: ConnectionPool,
        *,
        run: str = "default",
        owner: int | None = None,
        account: str = "default",
        leased: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run = run
        self.owner: int = owner or 0
        self._account = account
        self._leased = leased
        self.queued: bool = leased
        self._database = database
        self._clock = clock
        self._saved: dict[str, list[bytes]] = {}  # saves by external_task_id, until the outcome is recorded
        self._new: OrderedDict[str, None] = (
            OrderedDict()
        )  # ids of jobs that this worker was the first to record
        self._ends: OrderedDict[str, tuple[Task, asyncio.Future[None]]] = OrderedDict()

    async def __aenter__(self) -> Self:
        if not self.owner:
            self.owner = (await self._database.fetch("SELECT -nextval('kling_owners')"))[0][0]
        return self

    # ------------------------------------------------------------------------ reports

    async def mark_sending(self, external_task_id: str) -> None:
        """Record that a create is about to be sent. The caller sends it as soon as this returns.

        Raises:
            JournalError: if a task of the job is known. The error then has its `task_id`, and the create must
                not be sent.
            TakenOver: if another worker owns the job. Then the create must not be sent either.
        """
        loop = asyncio.get_running_loop()
        while True:
            started_at = loop.time()
            values = self._clock(), self._account, external_task_id, self.owner, self._leased
            if not await self._database.fetch(_SENDING, *values):
                break
            if loop.time() - started_at < SEND_TIMEOUT:
                return
            # The process may have been suspended in the meantime, and its lease may have ended since.
        task_id = (await self._known(external_task_id)).task_id
        if task_id is None:
            raise TakenOver("another worker owns this job now", external_task_id=external_task_id)
        raise task_exists(external_task_id, task_id)

    async def observe(self, external_task_id: str, task: Task) -> None:
        """Record a snapshot of the task. Its end is written once, however often it is reported."""
        if not task.status.final:
            await super().observe(external_task_id, task)
            return
        end = self._ends.get(external_task_id)
        if end is None or end[0] != task or _has_failed(end[1]):
            end = task, asyncio.ensure_future(super().observe(external_task_id, task))
            self._ends[external_task_id] = end
            self._ends.move_to_end(external_task_id)
            _forget_oldest(self._ends)
        await asyncio.shield(end[1])

    async def mark_saved(self, external_task_id: str, files: Iterable[str | os.PathLike[str]]) -> None:
        """Record that the pictures of a succeeded task are on disk, as *files*.

        A fleet's worker records this together with the outcome. If it dies before that, the next worker
        recognizes the saved pictures by the marks in their modification times.
        """
        if self._leased:
            saved, earlier = b"\0".join(map(os.fsencode, files)), self._saved.get(external_task_id, [])
            self._saved[external_task_id] = [saved, *(each for each in earlier if each != saved)]
        else:
            await super().mark_saved(external_task_id, files)

    async def saves(self, external_task_id: str) -> list[tuple[Path, ...]] | None:
        """Return the paths of each save of a job's pictures, newest first, or None for an unknown job.

        For a new job, a fleet's worker needs no query, because saves are recorded only with the outcome.
        """
        if self._leased and external_task_id in self._new:
            return []
        return await super().saves(external_task_id)

    async def record_outcome(self, outcome: JobOutcome, *, queued: int | None = None) -> None:
        """Record how a job ended, replacing an earlier outcome of the same key.

        *queued* is the job's number in the queue. If it is given, this worker's job also leaves the queue.
        """
        ids = outcome.key, outcome.status, outcome.external_task_id, outcome.task_id
        error = outcome.error and self._text(outcome.error)
        found = list(outcome.urls), list(outcome.files), outcome.units, error
        now = self._clock()
        files = b"\0".join(self._saved.get(outcome.external_task_id or "", []))
        saved = outcome.external_task_id, files or None, now
        names = self.run, outcome.key
        leave_queue, values = ("", ()) if queued is None else (_LEAVE_QUEUE, (queued, self.owner))
        values = *values, *names, *saved, self.run, *ids, *found, now, outcome.saved
        await self._database.fetch(f"WITH {leave_queue}{_RECORD_OUTCOME}", *values)
        self._saved.pop(outcome.external_task_id or "", None)
        self._new.pop(outcome.external_task_id or "", None)

    # ------------------------------------------------------------------------ queries

    async def find(self, key: str, digest: str | None = None) -> JobRecord | None:
        """Return the newest record of *key*, and of this *digest* if it is given, or None."""
        if digest is None:
            return await self._newest("run = %s AND key = %s", self.run, key)
        return await self._newest("run = %s AND key = %s AND params_hash = %s", self.run, key, digest)

    async def get(self, external_task_id: str) -> JobRecord | None:
        """Return the record with this id, which may be of an earlier attempt, or None."""
        return await self._newest("external_task_id = %s", external_task_id)

    def jobs(self, *states: JobState) -> AsyncIterator[JobRecord]:
        """Yield the jobs in these *states* (all jobs if none is given), oldest first, page by page."""
        wanted = [str(state) for state in states or tuple(JobState)]
        return self._pages(f"{_SELECT} AND latest AND state = ANY(%s) {_PAGE}", self.run, wanted)

    def attempts(self) -> AsyncIterator[JobRecord]:
        """Yield every attempt of every job, oldest first, page by page."""
        return self._pages(f"{_SELECT} {_PAGE}", self.run)

    async def _pages(self, query: str, *values: Any) -> AsyncIterator[JobRecord]:
        after = 0
        while page := await self._database.fetch(query, *values, after, PAGE):
            for after, *columns in page:  # noqa: B007 - where the next page begins
                yield JobRecord(*columns)

    async def counts(self) -> dict[JobState, int]:
        """Return the number of jobs by the state of their last attempt."""
        found = await self._database.fetch(_COUNTS, f"jobs {self.run}", self.run)
        return dict.fromkeys(JobState, 0) | {JobState(state): number for state, number in found}

    async def outcomes(self, after: int = 0) -> list[tuple[int, JobOutcome]]:
        """Return the next page of outcomes after the number *after*, each with its own number.

        Numbers are assigned in the order of commits. So a reader that continues from the last number gets
        each outcome once, even if other transactions are open.
        """
        found = await self._database.fetch(_OUTCOMES, self.run, after, PAGE)
        return [(number, outcome_of(row)) for number, *row in found]

    async def outcome(self, key: str) -> JobOutcome | None:
        """Return the outcome of the job of *key*, or None."""
        found = await self._database.fetch(_OUTCOME, self.run, key)
        return outcome_of(found[0]) if found else None

    async def post_age(self, job: JobRecord) -> float:
        """Return the seconds since the last create by the database's clock, as workers' clocks may differ."""
        if job.last_post_mark is None:
            return await super().post_age(job)
        now = (await self._database.fetch("SELECT extract(epoch FROM clock_timestamp())"))[0][0]
        return max(0.0, float(now) - float(job.last_post_mark))

    async def units_billed(self) -> int | float:
        """Return the units billed for the run so far, according to the service."""
        return _number((await self._database.fetch(_UNITS_BILLED, f"jobs {self.run}"))[0][0]) or 0

    # ------------------------------------------------------------------------ within

    async def _claim(
        self, draft: dict[str, Any], external_id: Callable[[int], str], after: int = 0
    ) -> JobRecord:
        key, digest = draft["key"], draft["params_hash"]
        attempt = after + 1
        for _ in range(CLAIM_TRIES):
            name = external_id(attempt)
            row = (self.run, key, name, digest, attempt, draft["source"], draft["params"])
            rows = await self._database.fetch(_CLAIM, *row, self._clock(), self.owner)
            *columns, inserted, key_known = rows[0]
            if inserted:
                self._new[name] = None
                _forget_oldest(self._new)
            if inserted and key_known and attempt == 1:
                warn_of_other_parameters(key, draft["params"])
            job = JobRecord(*columns) if columns[0] is not None else None
            if job is not None and (inserted or (job.state is not JobState.FAILED and job.attempt > after)):
                return job
            attempt = max(job.attempt if job else 0, after) + 1
        raise JournalError("two jobs cannot share one external_task_id", external_task_id=name)

    async def _transition(self, external_task_id: str, state: JobState, **values: Any) -> None:
        new = {"state": str(state)} | values | {"updated_at": self._clock()}
        query = (
            f"UPDATE kling_jobs SET {', '.join(f'{name} = %s' for name in new)} WHERE external_task_id = %s"  # noqa: S608 - no user input
            " AND state = ANY(%s) AND (task_id IS NULL OR task_id = coalesce(%s, task_id)) RETURNING 1"
        )
        task_id = values.get("task_id")
        if not await self._database.fetch(query, *new.values(), external_task_id, PREVIOUS[state], task_id):
            warn_of_two_tasks(external_task_id, (await self._known(external_task_id)).task_id, task_id)

    def _final_columns(self, task: Task) -> dict[str, Any]:
        return super()._final_columns(task) | {"units": task.units}

    def _text(self, text: str) -> str:
        return super()._text(text).replace("\0", "�")  # PostgreSQL stores no NUL

    async def _known(self, external_task_id: str) -> JobRecord:
        job = await self.get(external_task_id)
        if job is None:
            raise unknown_job(external_task_id)
        return job

    async def _newest(self, where: str, *values: Any) -> JobRecord | None:
        query = f"SELECT {COLUMNS} FROM kling_jobs WHERE {where} ORDER BY id DESC LIMIT 1"  # noqa: S608 - no user input
        rows = await self._database.fetch(query, *values)
        return JobRecord(*rows[0]) if rows else None


_CLAIM = f"""
SELECT {", ".join(f"(job).{name}" for name in COLUMNS.split(", "))}, inserted, key_known
FROM kling_claim(%s, %s, %s, %s, %s, %s, %s, %s, %s)
"""  # noqa: S608 - no user input
_SENDING = """
WITH row AS (SELECT %s::double precision AS now, %s::text AS account)
UPDATE kling_jobs SET last_post_at = now, updated_at = now, account = row.account,
    last_post_mark = extract(epoch FROM clock_timestamp()) FROM row
WHERE external_task_id = %s AND task_id IS NULL AND owner = %s
    AND (NOT %s OR EXISTS (SELECT FROM kling_workers WHERE id = owner)) RETURNING 1
"""
_LEAVE_QUEUE = "left_queue AS (DELETE FROM procrastinate_jobs WHERE id = %s AND worker_id = %s), "
_RECORD_OUTCOME = """
ended AS (DELETE FROM kling_deaths WHERE run = %s AND key = %s),
named AS (SELECT %s::text AS name, %s::bytea AS files, %s::double precision AS now),
saved AS (
    UPDATE kling_jobs SET state = 'done', files = named.files, updated_at = now FROM named
    WHERE external_task_id = name AND named.files IS NOT NULL AND state IN ('succeeded', 'done')
)
INSERT INTO kling_outcomes
    (run, key, status, external_task_id, task_id, urls, files, units, error, ended_at, saved)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (run, key) DO UPDATE SET
    status = excluded.status, external_task_id = excluded.external_task_id, task_id = excluded.task_id,
    urls = excluded.urls, files = excluded.files, units = excluded.units, error = excluded.error,
    ended_at = excluded.ended_at, saved = excluded.saved, number = NULL
RETURNING 1
"""
_SELECT = f"SELECT id, {COLUMNS} FROM kling_jobs WHERE run = %s"  # noqa: S608 - no user input
_PAGE = "AND id > %s ORDER BY id LIMIT %s"
_COUNTS = f"""
SELECT what, sum(number)::bigint FROM kling_counts WHERE scope = %s GROUP BY what
UNION ALL
SELECT state, count(*) FROM kling_jobs WHERE latest AND run = %s AND state IN {OPEN} GROUP BY state
"""  # noqa: S608 - no user input
_UNITS_BILLED = "SELECT sum(units) FROM kling_counts WHERE scope = %s AND what IN ('succeeded', 'done')"
OUTCOME_COLUMNS = ", ".join(attribute.name for attribute in fields(JobOutcome))
_OUTCOME = f"SELECT {OUTCOME_COLUMNS} FROM kling_outcomes WHERE run = %s AND key = %s"  # noqa: S608 - no user input
_OUTCOMES = f"SELECT number, {OUTCOME_COLUMNS} FROM kling_read_outcomes(%s, %s, %s)"  # noqa: S608 - no user input


async def create_tables(database: ConnectionPool, *more: str) -> None:
    """Create missing tables, upgrade older ones, and run the scripts *more*. Repeating this is safe.

    Raises:
        JournalError: if the database stays unavailable, has tables of a newer version or refuses a script.
    """

    async def work(connection: Connection) -> None:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('kling_expand'))")
            known = await (await connection.execute("SELECT to_regclass('kling_schema')::text")).fetchone()
            if known and known[0]:
                found = await (await connection.execute("SELECT max(version) FROM kling_schema")).fetchone()
                if found and (found[0] or 0) > VERSION:
                    raise _other_version(found[0])
            for script in (SCHEMA, *more):
                await connection.execute(script)
            await connection.execute("DELETE FROM kling_schema")
            await connection.execute("INSERT INTO kling_schema VALUES (%s)", (VERSION,))

    await database.run(work)


async def check_tables(database: ConnectionPool) -> None:
    """Raise `JournalError` if the tables are missing or not of this program's version."""
    found = await database.fetch("SELECT max(version) FROM kling_schema")
    if found[0][0] != VERSION:
        raise _other_version(found[0][0] or 0)


def _other_version(found: int) -> JournalError:
    advice = (
        "run `kling-expand fleet init` to upgrade them"
        if found < VERSION
        else "use the version of kling_expand that created them"
    )
    return JournalError(f"the tables of the fleet must be of version {VERSION}, got {found}; {advice}")


def _forget_oldest(known: OrderedDict[str, Any]) -> None:
    if len(known) > MAX_REMEMBERED:
        known.popitem(last=False)


def _has_failed(written: asyncio.Future[None]) -> bool:
    return written.done() and (written.cancelled() or written.exception() is not None)


def outcome_of(row: Sequence[Any]) -> JobOutcome:
    """Return the outcome in a row of `OUTCOME_COLUMNS`."""
    key, status, name, task_id, urls, files, units, *rest = row
    return JobOutcome(key, status, name, task_id, tuple(urls), tuple(files), _number(units), *rest)


def _number(units: Any) -> int | float | None:
    if units is None:
        return None
    return int(units) if units == int(units) else float(units)
