"""A durable job store in one SQLite file.

A method that writes returns only after its record is committed, and each COMMIT includes an fsync. The file
has a write-ahead log with ``synchronous=FULL``. If the file system does not support such a log, it has a
rollback journal with ``synchronous=EXTRA``. Records that wait at the same moment share one COMMIT. If a
method raises `JournalError`, its record may be missing, but all records confirmed before are intact. Neither
image bytes nor credentials are stored.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from attrs import evolve

from kling_expand.api import codec
from kling_expand.errors import ConfigurationError, JournalError, requirement
from kling_expand.models import Status, Task

from .base import (
    COLUMNS,
    PREVIOUS,
    UNFINISHED,
    JobIdentity,
    JobRecord,
    JobState,
    JobStore,
    PreparedRequest,
    task_exists,
    unknown_job,
    warn_of_other_parameters,
    warn_of_two_tasks,
)
from .sqlite_file import (
    WORKER,
    Connection,
    DatabaseFile,
    FileFormat,
    Statement,
    copy_file,
    count_if_unlocked,
    read_copy,
    worker_files,
)

Page = list[tuple[int, JobRecord]]  # records with the numbers of their rows
T = TypeVar("T")
W = TypeVar("W")

logger: logging.Logger = logging.getLogger(__name__)

BATCH = 256  # writes in one commit at most, so that waking their callers never blocks the loop for long
WORKERS_START_TIMEOUT = 10.0  # seconds within which all workers of a program open their files
PAGE = 200  # jobs read at a time
SAME_REQUEST = "key = ? AND params_hash = ?"
_FINDINGS = "check of "  # prefix of the names of check results
_BAD_ROW = "bad row "  # prefix of the names of rows that cannot be sent
FORMAT = FileFormat(
    application_id=0x4B6C4578,  # "KlEx"
    version=3,
    schema="""
        CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
        CREATE TABLE jobs (
            id INTEGER PRIMARY KEY,
            key TEXT NOT NULL,
            external_task_id TEXT NOT NULL UNIQUE,
            params_hash TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            latest INTEGER NOT NULL DEFAULT 1,
            state TEXT NOT NULL,
            task_id TEXT,
            last_post_at REAL,
            last_post_mark TEXT,
            snapshot TEXT,
            error TEXT,
            files BLOB,
            source BLOB,
            params TEXT NOT NULL,
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL,
            UNIQUE (key, params_hash, attempt)
        );
        CREATE INDEX jobs_by_state ON jobs (state, id) WHERE latest = 1;
        CREATE INDEX jobs_by_task ON jobs (task_id) WHERE task_id IS NOT NULL;
        CREATE TABLE earlier_tasks (external_task_id TEXT PRIMARY KEY, task TEXT NOT NULL)
    """,
    migrations=(
        """
        ALTER TABLE jobs ADD COLUMN last_post_mark TEXT;
        CREATE TABLE earlier_tasks (external_task_id TEXT PRIMARY KEY, task TEXT NOT NULL);
        INSERT INTO meta VALUES ('recovered', 'yes')
        """,
        "CREATE INDEX jobs_by_task ON jobs (task_id) WHERE task_id IS NOT NULL",
    ),
)


BootClock = Callable[[], tuple[str, float] | None]


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def boot_time() -> tuple[str, float] | None:
    """Return an id of the last system start and the seconds since then, or None if they are not known.

    This clock cannot be set, and it continues while the system is suspended. Only Linux has it.
    """
    try:
        return _boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return None


def _no_boot_time() -> None:
    return None


class SQLiteStore(JobStore):
    """A job store in one file, for one event loop: ``async with SQLiteStore("run.db") as store``.

    *path* is created if it does not exist. For several worker processes, ``"run-{worker}.db"`` means the
    first of ``run-0.db``, ``run-1.db``, … that no other process has open. So a restarted worker takes over
    the file of a worker that has ended.

    *run* names the run, and every derived id depends on it. The default is the run of the file. A new file
    gets the run ``default``, so that the same jobs have the same ids after a journal has been deleted.
    *account* names the service and the account of the jobs (see `kling_expand.config.account_name`). Opening
    a file with tasks of another account fails, unless *account* is empty. *clock* returns Unix seconds, and
    *boot_clock* is the clock of `post_age`. It is `boot_time` by default, but there is none if you pass your
    own *clock*. If a write failed because the disk was full, the next one tries again. Once the file has been
    deleted or replaced, every write fails until the store is reopened.

    Raises:
        JournalError: if, on entering or in any method, the file cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        run: str | None = None,
        account: str = "",
        clock: Callable[[], float] = time.time,
        boot_clock: BootClock | None = None,
    ) -> None:
        for name in re.findall(r"\{\w*\}", os.path.basename(os.fsdecode(path))):  # noqa: PTH119
            if name != WORKER:
                limit = f"must have no placeholder but {WORKER} in its name"
                raise ConfigurationError(requirement("journal", repr(os.fsdecode(path)), limit))
        self._pattern = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - links stay as they were given
        self.path: str = self._pattern
        self.folders: list[str] = []  # once open, every directory that the file has been in
        self._copied_from = ""
        self.run: str = run or ""
        self.account: str = account  # once open, the file's account, or empty if not known
        self._clock = clock
        self._boot_clock = boot_clock or (boot_time if clock is time.time else _no_boot_time)
        self._writes: WriteQueue[Statement] | None = None
        self._earlier: set[str] = set()  # ids of tasks that a lost journal may have recorded
        self._unlisted = False
        self._left_over_timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        if self._writes is not None:
            raise JournalError(f"the journal {self.path} is open already")
        self._loop = asyncio.get_running_loop()
        # Each opening has its own object, because the thread of an earlier one may still be closing its file.
        file = self._file = DatabaseFile(self._pattern, FORMAT, self._copied_from)
        writes: WriteQueue[Statement] = WriteQueue(file.commit)
        try:
            await writes.run(file.open)
            self.run = await writes.put(partial(name_run, file.path, self.run))
            self.account = await writes.put(partial(name_account, file.path, self.account))
            self.folders = await writes.put(partial(add_folder, os.path.dirname(file.path)))  # noqa: PTH120
            earlier = await writes.put(earlier_ids)
        except BaseException:
            writes.abort(file.close)
            raise
        self.path, self._writes, self._unlisted = file.path, writes, False
        if WORKER in self._pattern:
            self._left_over_timer = self._loop.call_later(WORKERS_START_TIMEOUT, self._check_left_over)
        self.recovered, self._earlier = earlier is not None, earlier or set()
        return self

    async def aclose(self) -> None:
        """Write all waiting records, then close and unlock the file. A second call does nothing."""
        writes, self._writes = self._writes, None
        if self._left_over_timer is not None:
            self._left_over_timer.cancel()
        if writes is not None:
            await writes.close(lambda _db: None, self._file.close)

    @classmethod
    @asynccontextmanager
    async def snapshot(cls, path: str | os.PathLike[str]) -> AsyncIterator[Self]:
        """Open a temporary copy of a journal for reading, even while another process writes to it."""
        import tempfile  # imported here, as only `status` and `report` need it

        with tempfile.TemporaryDirectory(prefix="kling-expand-") as folder:
            copy = await asyncio.to_thread(copy_file, os.fsdecode(path), folder)
            store = cls(copy)
            store._copied_from = os.fsdecode(path)
            async with store:
                yield store

    def _check_left_over(self) -> None:
        self._loop.run_in_executor(None, warn_of_left_over, self._pattern, self.path)

    async def set_rows(self, rows: int) -> None:
        """Record how many rows the current run has, and forget earlier bad rows."""
        await self._execute(partial(set_rows, rows))

    async def end_rows(self) -> None:
        """Record that all rows of the run have ended. There may be fewer jobs, as equal rows are one job."""
        await self._execute(end_rows)

    async def rows(self) -> int | None:
        """Return how many rows the last run had, or None if all of them have ended."""
        return await self._execute(rows)

    async def keep_bad_row(self, name: str, reason: str) -> None:
        """Record the *name* of a row that cannot be sent and so has no job, and the *reason*."""
        await self._execute(partial(keep_bad_row, name, reason))

    async def bad_rows(self) -> dict[str, str]:
        """Return the reason for each row of the last run that could not be sent, by the row's name."""
        return await self._execute(bad_rows)

    async def keep_findings(self, external_task_id: str, findings: Iterable[str]) -> None:
        """Store the *findings* of a check of the pictures of the job with this *external_task_id*."""
        await self._execute(partial(keep_findings, external_task_id, "\n".join(findings)))

    async def findings(self) -> dict[str, tuple[str, ...]]:
        """Return the findings of all checks, by the `external_task_id` of the job."""
        return await self._execute(findings)

    async def mark_sending(self, external_task_id: str) -> None:
        """Record that a create is about to be sent. Raise `JournalError` if a task of the job is known."""
        boot = self._boot_clock()
        mark = f"{boot[0]} {boot[1]}" if boot else None
        await self._execute(partial(mark_sending, external_task_id, self._clock(), mark))

    async def post_age(self, job: JobRecord) -> float:
        """Return the seconds since the last create.

        They are exact if there is a boot clock and the system has not been restarted since then.
        """
        age, boot = await super().post_age(job), self._boot_clock()
        if boot is None or job.last_post_mark is None:
            return age
        name, _, seconds = job.last_post_mark.rpartition(" ")
        if name == boot[0]:
            return max(0.0, boot[1] - float(seconds))
        return min(age, boot[1])  # it was sent before the last start, or by another machine

    async def record_intent(
        self, identity: JobIdentity, prepared: PreparedRequest, *, after: int = 0
    ) -> JobRecord:
        """Record that a job is to be sent, and return the record to continue with (see `JobStore`)."""
        job = await super().record_intent(identity, prepared, after=after)
        name = job.external_task_id
        if job.may_exist or job.task_id is not None or prepared.request.external_task_id is not None:
            return job
        if name in self._earlier:
            await self.observe(name, await self._execute(partial(earlier_task, name)))
            return await self.record_intent(identity, prepared, after=after)
        if self._unlisted:
            await self.mark_uncertain(name, "the journal is new, and the account's tasks cannot be listed")
            return await self.record_intent(identity, prepared, after=after)
        return job

    async def recover(self, tasks: Iterable[Task] | None) -> None:
        """Store the tasks that have derived ids. Without *tasks*, each new job is looked up."""
        if tasks is None:
            self._unlisted = True
        else:
            derived = [task for task in tasks if codec.is_derived_id(task.external_task_id)]
            await self._execute(partial(add_earlier_tasks, derived))
            self._earlier.update(task.external_task_id or "" for task in derived)
        self.recovered: bool = True

    async def get(self, external_task_id: str) -> JobRecord | None:
        """Return the record with this id, which may be of an earlier attempt, or None."""
        return await self._execute(partial(newest, "external_task_id = ?", (external_task_id,)))

    async def get_from_any(self, external_task_id: str) -> JobRecord | None:
        """Return the record with this id, even from the file of another worker, or None.

        That file is copied before it is read, because its worker has locked it. A file that cannot be read
        is an error only if no other file has the job.
        """
        if found := await self.get(external_task_id):
            return found
        statement = partial(newest, "external_task_id = ?", (external_task_id,))
        errors: list[JournalError] = []
        for path in await asyncio.to_thread(worker_files, self._pattern):
            if path == self.path:
                continue
            try:
                found = await asyncio.to_thread(read_copy, path, statement)
            except JournalError as error:
                errors.append(error)
                continue
            if found is not None:
                return found
        if errors:
            raise errors[0]
        return None

    async def find(self, key: str, digest: str | None = None) -> JobRecord | None:
        """Return the newest record of *key*, and of this *digest* if it is given, or None."""
        if digest is None:
            return await self._execute(partial(newest, "key = ?", (key,)))
        return await self._execute(partial(newest, SAME_REQUEST, (key, digest)))

    async def find_task(self, task_id: str) -> JobRecord | None:
        """Return the record of the task with this *task_id*, or None."""
        return await self._execute(partial(newest, "task_id = ?", (task_id,)))

    def jobs(self, *states: JobState) -> AsyncIterator[JobRecord]:
        """Yield the jobs in these *states* (all jobs if none is given), oldest first, page by page."""
        return self._pages(partial(page, states or tuple(JobState)))

    def attempts(self) -> AsyncIterator[JobRecord]:
        """Yield every attempt of every job, oldest first, page by page."""
        return self._pages(page_of_attempts)

    async def _pages(self, read: Callable[[int, Connection], Page]) -> AsyncIterator[JobRecord]:
        after = 0
        while rows := await self._execute(partial(read, after)):
            for after, job in rows:  # noqa: B007 - where the next page begins
                yield job

    async def counts(self) -> dict[JobState, int]:
        """Return the number of jobs by the state of their last attempt."""
        return await self._execute(counts)

    async def durations(self) -> str:
        """Return the text that `keep_durations` stored, or an empty string."""
        return await self._execute(durations)

    async def keep_durations(self, durations: str) -> None:
        """Store the *durations* of the newest tasks, as text, for the poll schedule of a later process."""
        await self._execute(partial(keep_durations, durations))

    async def _claim(
        self, draft: dict[str, Any], external_id: Callable[[int], str], after: int = 0
    ) -> JobRecord:
        return await self._execute(partial(claim, draft, external_id, after))

    async def _transition(self, external_task_id: str, state: JobState, **values: Any) -> None:
        values["updated_at"] = self._clock()
        await self._execute(partial(transition, external_task_id, state, values))

    async def _execute(self, statement: Callable[[Connection], T]) -> T:
        if self._writes is None:
            raise JournalError(f"the journal {self.path} is not open")
        if asyncio.get_running_loop() is not self._loop:
            raise JournalError(f"the journal {self.path} was opened in another event loop")
        result: T = await self._writes.put(statement)
        return result


# ---------------------------------------------------------------------------- statements


def warn_of_left_over(pattern: str, own_path: str) -> None:
    """Log each file of a *pattern* with ``{worker}`` that has open jobs and is used by no process."""
    states = ", ".join(f"'{state}'" for state in UNFINISHED)
    query = f"SELECT count(*) FROM jobs WHERE latest = 1 AND state IN ({states})"  # noqa: S608 - no user input
    for path in worker_files(pattern):
        if path != own_path and (jobs := count_if_unlocked(path, query)):
            logger.warning(
                "the journal %s has %d open jobs that no worker continues; start as many workers as before",
                path,
                jobs,
            )


def name_run(path: str, run: str, db: Connection) -> str:
    """Return the name of the file's run, and set it if the file has none."""
    db.execute("INSERT OR IGNORE INTO meta VALUES ('run', ?)", (run or "default",))
    name: str = db.execute("SELECT value FROM meta WHERE name = 'run'").fetchone()[0]
    if run and run != name:
        raise JournalError(
            f"the run of the journal {path} must be {name!r}, got {run!r}; pass run={name!r}, or another file"
        )
    return name


def name_account(path: str, account: str, db: Connection) -> str:
    """Return the account of the jobs in the file. Store *account* if none is known or no job was sent."""
    row = db.execute("SELECT value FROM meta WHERE name = 'account'").fetchone()
    known: str = row[0] if row else ""
    if account in {"", known}:
        return known
    query = "SELECT 1 FROM jobs WHERE task_id IS NOT NULL OR last_post_at IS NOT NULL LIMIT 1"
    if known and db.execute(query).fetchone():
        advice = "use the service, dialect and key of the journal, or another journal"
        raise JournalError(f"the journal {path} belongs to {known}, not to {account}; {advice}")
    db.execute("INSERT OR REPLACE INTO meta VALUES ('account', ?)", (account,))
    return account


def add_folder(folder: str, db: Connection) -> list[str]:
    """Return every directory that the file has been in, after adding the current one."""
    row = db.execute("SELECT value FROM meta WHERE name = 'folders'").fetchone()
    known = list(map(os.fsdecode, row[0].split(b"\0"))) if row else []
    if folder not in known:
        known.append(folder)
        db.execute("INSERT OR REPLACE INTO meta VALUES ('folders', ?)", (os.fsencode("\0".join(known)),))
    return known


def set_rows(number: int, db: Connection) -> None:
    """Store the number of rows of a run at its start."""
    db.execute("DELETE FROM meta WHERE name GLOB ?", (f"{_BAD_ROW}*",))
    db.execute("INSERT OR REPLACE INTO meta VALUES ('rows', ?)", (str(number),))


def end_rows(db: Connection) -> None:
    """Forget the number of rows."""
    db.execute("DELETE FROM meta WHERE name = 'rows'")


def rows(db: Connection) -> int | None:
    """Return the number of rows of the last run, or None."""
    row = db.execute("SELECT value FROM meta WHERE name = 'rows'").fetchone()
    return int(row[0]) if row else None


def keep_bad_row(name: str, reason: str, db: Connection) -> None:
    """Store the reason why a row cannot be sent."""
    db.execute(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"{_BAD_ROW}{_storable(name)}", _storable(reason))
    )


def bad_rows(db: Connection) -> dict[str, str]:
    """Return the reason for each row that could not be sent, by the row's name."""
    rows = db.execute("SELECT name, value FROM meta WHERE name GLOB ? ORDER BY rowid", (f"{_BAD_ROW}*",))
    return {name.removeprefix(_BAD_ROW): reason for name, reason in rows}


def _storable(text: str) -> str:
    """Return *text* with undecodable bytes of file names replaced, as SQLite cannot store them."""
    return text.encode(errors="replace").decode()


def keep_findings(external_task_id: str, text: str, db: Connection) -> None:
    """Store the result of a check."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"{_FINDINGS}{external_task_id}", text))


def findings(db: Connection) -> dict[str, tuple[str, ...]]:
    """Return the results of all checks."""
    rows = db.execute("SELECT name, value FROM meta WHERE name GLOB ?", (f"{_FINDINGS}*",))
    return {name.removeprefix(_FINDINGS): tuple(text.splitlines()) for name, text in rows}


def earlier_ids(db: Connection) -> set[str] | None:
    """Return the ids of tasks that a lost journal may have recorded, or None before they were stored."""
    if db.execute("SELECT 1 FROM meta WHERE name = 'recovered'").fetchone() is None:
        return None
    return {name for (name,) in db.execute("SELECT external_task_id FROM earlier_tasks")}


def add_earlier_tasks(tasks: list[Task], db: Connection) -> None:
    """Store the tasks that a lost journal may have recorded."""
    rows = [(task.external_task_id, codec.pack(task)) for task in tasks]
    db.executemany("INSERT OR IGNORE INTO earlier_tasks VALUES (?, ?)", rows)
    db.execute("INSERT OR IGNORE INTO meta VALUES ('recovered', 'yes')")


def earlier_task(external_task_id: str, db: Connection) -> Task:
    """Return one of the tasks that a lost journal may have recorded.

    A success without pictures counts as running, so that the task is read again.
    """
    query = "SELECT task FROM earlier_tasks WHERE external_task_id = ?"
    task = codec.unpack(db.execute(query, (external_task_id,)).fetchone()[0])
    pending = task.status is Status.SUCCEED and not task.images
    return evolve(task, task_status=Status.PROCESSING) if pending else task


def durations(db: Connection) -> str:
    """Return the stored durations of tasks, or an empty string."""
    found = db.execute("SELECT value FROM meta WHERE name = 'durations'").fetchone()
    return str(found[0]) if found else ""


def keep_durations(durations: str, db: Connection) -> None:
    """Store the durations of tasks."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('durations', ?)", (durations,))


def newest(where: str, values: tuple[Any, ...], db: Connection) -> JobRecord | None:
    """Return the last inserted job that *where* and its *values* select, or None."""
    query = f"SELECT {COLUMNS} FROM jobs WHERE {where} ORDER BY id DESC LIMIT 1"  # noqa: S608 - no user input
    row = db.execute(query, values).fetchone()
    return JobRecord(*row) if row else None


def claim(draft: dict[str, Any], external_id: Callable[[int], str], after: int, db: Connection) -> JobRecord:
    """Return the known attempt of *draft*'s job, or insert its first or next attempt and return that."""
    job = newest(SAME_REQUEST, (draft["key"], draft["params_hash"]), db)
    if job is None:
        if newest("key = ?", (draft["key"],), db):
            warn_of_other_parameters(draft["key"], draft["params"])
        return _insert(draft, external_id(after + 1), after + 1, db)
    if job.state is JobState.FAILED or job.attempt <= after:
        number = max(job.attempt, after) + 1
        attempt = _insert(draft, external_id(number), number, db)
        db.execute("UPDATE jobs SET latest = 0 WHERE external_task_id = ?", (job.external_task_id,))
        return attempt
    if job.state is JobState.REJECTED:
        changed = {"error": None, "updated_at": draft["updated_at"]}
        transition(job.external_task_id, JobState.INTENT, changed, db)
        return _known(job.external_task_id, db)
    return job


def _insert(draft: dict[str, Any], external_task_id: str, attempt: int, db: Connection) -> JobRecord:
    row = draft | {"external_task_id": external_task_id, "attempt": attempt, "state": JobState.INTENT}
    marks = ", ".join("?" * len(row))
    db.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))  # noqa: S608 - no user input
    return _known(external_task_id, db)


def mark_sending(external_task_id: str, now: float, mark: str | None, db: Connection) -> None:
    """Store the time of a create. Raise `JournalError` if a task of the job is known."""
    stored = db.execute(
        "UPDATE jobs SET last_post_at = ?, last_post_mark = ?, updated_at = ?"
        " WHERE external_task_id = ? AND task_id IS NULL",
        (now, mark, now, external_task_id),
    )
    if not stored.rowcount:
        raise task_exists(external_task_id, _known(external_task_id, db).task_id)


def transition(external_task_id: str, state: JobState, values: dict[str, Any], db: Connection) -> None:
    """Set the state and *values* in one UPDATE, which does nothing if the table of states forbids it."""
    new = {"state": state} | values
    task_id = values.get("task_id")
    moved = db.execute(
        f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in new)} WHERE external_task_id = ?"  # noqa: S608 - no user input
        f" AND state IN ({', '.join('?' * len(PREVIOUS[state]))})"
        " AND (task_id IS NULL OR task_id = coalesce(?, task_id))",
        (*new.values(), external_task_id, *PREVIOUS[state], task_id),
    )
    if not moved.rowcount:
        warn_of_two_tasks(external_task_id, _known(external_task_id, db).task_id, task_id)


def _known(external_task_id: str, db: Connection) -> JobRecord:
    job = newest("external_task_id = ?", (external_task_id,), db)
    if job is None:
        raise unknown_job(external_task_id)
    return job


def page(states: tuple[JobState, ...], after: int, db: Connection) -> Page:
    """Return the next page of jobs after row *after*, merged from one index scan for each state."""
    per_state = (
        "SELECT * FROM (SELECT id FROM jobs WHERE latest = 1 AND state = ? AND id > ? ORDER BY id LIMIT ?)"
    )
    ids = " UNION ALL ".join([per_state] * len(states))
    query = f"SELECT id, {COLUMNS} FROM jobs WHERE id IN ({ids}) ORDER BY id LIMIT ?"  # noqa: S608 - no user input
    values = [value for state in states for value in (state, after, PAGE)]
    return [(row[0], JobRecord(*row[1:])) for row in db.execute(query, (*values, PAGE))]


def page_of_attempts(after: int, db: Connection) -> Page:
    """Return the next page of attempts after row *after*."""
    query = f"SELECT id, {COLUMNS} FROM jobs WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 - no user input
    return [(row[0], JobRecord(*row[1:])) for row in db.execute(query, (after, PAGE))]


def counts(db: Connection) -> dict[JobState, int]:
    """Return the number of jobs by the state of their last attempt."""
    found = db.execute("SELECT state, count(*) FROM jobs WHERE latest = 1 GROUP BY state")
    return dict.fromkeys(JobState, 0) | {JobState(state): number for state, number in found}


# ---------------------------------------------------------------------------- the write queue


class WriteQueue(Generic[W]):
    """The writes of one event loop, committed in FIFO order on one worker thread.

    *commit* is called with a list of writes and returns one outcome for each. An outcome that is an exception
    is raised in the caller of that write. An exception raised by *commit* itself is raised in every caller.

    The thread runs only while there is work, and always through the loop's own `run_in_executor`. So a loop
    that tracks executor calls, such as `testing.VirtualLoop`, waits for the writes, and an idle thread does
    not keep the interpreter from exiting.
    """

    def __init__(self, commit: Callable[[list[W]], list[Any]]) -> None:
        self._commit = commit
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "kling-journal")
        self._waiting: list[tuple[W, asyncio.Future[Any]]] = []
        self._writing: asyncio.Future[list[Any]] | None = None

    def put(self, write: W) -> asyncio.Future[Any]:
        """Queue *write* and return a future of its outcome. Cancelling the future does not undo the write."""
        future = self._loop.create_future()
        self._waiting.append((write, future))
        if len(self._waiting) == 1 and self._writing is None:
            self._loop.call_soon(self._next)  # after every other write of this iteration of the loop
        return future

    async def run(self, function: Callable[[], None]) -> None:
        """Call *function* on the thread, after the batch that is being written."""
        await self._loop.run_in_executor(self._thread, function)

    async def close(self, last: W, release: Callable[[], None]) -> None:
        """Commit the waiting writes and then *last*. Always call *release* on the thread."""
        try:
            await asyncio.gather(self.put(last), return_exceptions=True)
            await self.run(release)
        finally:  # also after a cancellation: writes that still wait fail
            self.abort(release)

    def abort(self, release: Callable[[], None]) -> None:
        """Fail the waiting writes, call *release* on the thread, and let the thread end by itself."""
        for _write, future in self._waiting:
            _resolve(future, JournalError("the journal was closed before this was written"))
        self._waiting.clear()
        self._thread.submit(release)
        self._thread.shutdown(wait=False)

    def _next(self) -> None:
        """Pass a batch to the thread, unless it is busy. It gets the next batch when it is done."""
        if self._writing is not None or not self._waiting:
            return
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        writes = [write for write, _future in batch]
        self._writing = self._loop.run_in_executor(self._thread, self._commit, writes)
        self._writing.add_done_callback(partial(self._written, [future for _write, future in batch]))

    def _written(self, futures: list[asyncio.Future[Any]], written: asyncio.Future[list[Any]]) -> None:
        self._writing = None
        error = written.exception()  # a bug or a lack of memory: every caller must still get an outcome
        outcomes = [error] * len(futures) if error else written.result()
        for future, outcome in zip(futures, outcomes, strict=True):
            _resolve(future, outcome)
        if self._waiting:
            self._loop.call_soon(self._next)  # after the callers just woken, which may write again


def _resolve(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
