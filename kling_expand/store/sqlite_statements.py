"""The tables of a journal file, and the statements that read and write a job.

Each statement is one short function of a connection, and none begins or ends a transaction.
"""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from kling_expand.errors import JournalError

from .base import (
    COLUMNS,
    PREVIOUS,
    JobRecord,
    JobState,
    task_exists,
    unknown_job,
    warn_of_other_parameters,
    warn_of_two_tasks,
)
from .sqlite_file import Connection, FileFormat

PAGE = 200  # jobs read at a time
SAME_REQUEST = "key = ? AND params_hash = ?"
FORMAT = FileFormat(
    application_id=0x4B6C4578,  # "KlEx"
    version=1,
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
            snapshot TEXT,
            error TEXT,
            files BLOB,
            source BLOB,
            params TEXT NOT NULL,
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL,
            UNIQUE (key, params_hash, attempt)
        );
        CREATE INDEX jobs_by_state ON jobs (state, id) WHERE latest = 1
    """,
)


def name_run(path: str, run: str, db: Connection) -> str:
    """Return the name of the file's run, and set it where the file has none."""
    db.execute("INSERT OR IGNORE INTO meta VALUES ('run', ?)", (run or uuid4().hex,))
    name: str = db.execute("SELECT value FROM meta WHERE name = 'run'").fetchone()[0]
    if run and run != name:
        raise JournalError(
            f"the run of the journal {path} must be {name!r}, got {run!r}; pass run={name!r}, or another file"
        )
    return name


def newest(where: str, values: tuple[Any, ...], db: Connection) -> JobRecord | None:
    """Return the last inserted of the jobs that *where* and its *values* select, or None."""
    query = f"SELECT {COLUMNS} FROM jobs WHERE {where} ORDER BY id DESC LIMIT 1"  # noqa: S608 - our words
    row = db.execute(query, values).fetchone()
    return JobRecord(*row) if row else None


def claim(draft: dict[str, Any], external_id: Callable[[int], str], after: int, db: Connection) -> JobRecord:
    """Return the job to go on with: the one known, or the first or next attempt of *draft*."""
    job = newest(SAME_REQUEST, (draft["key"], draft["params_hash"]), db)
    if job is None:
        if newest("key = ?", (draft["key"],), db):
            warn_of_other_parameters(draft["key"])
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
    db.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))  # noqa: S608 - our words
    return _known(external_task_id, db)


def mark_sending(external_task_id: str, now: float, db: Connection) -> None:
    """Store the time of a create. Raises `JournalError` where a task is known."""
    stored = db.execute(
        "UPDATE jobs SET last_post_at = ?, updated_at = ? WHERE external_task_id = ? AND task_id IS NULL",
        (now, now, external_task_id),
    )
    if not stored.rowcount:
        raise task_exists(external_task_id, _known(external_task_id, db).task_id)


def transition(external_task_id: str, state: JobState, values: dict[str, Any], db: Connection) -> None:
    """Set state and *values* in one UPDATE, which does nothing where the table of states forbids it."""
    new = {"state": state} | values
    task_id = values.get("task_id")
    moved = db.execute(
        f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in new)} WHERE external_task_id = ?"  # noqa: S608 - our words
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


def page(states: tuple[JobState, ...], after: int, db: Connection) -> list[tuple[int, JobRecord]]:
    """Return the next jobs after row *after*: one walk along the index for each state, merged."""
    walk = "SELECT * FROM (SELECT id FROM jobs WHERE latest = 1 AND state = ? AND id > ? ORDER BY id LIMIT ?)"
    ids = " UNION ALL ".join([walk] * len(states))
    query = f"SELECT id, {COLUMNS} FROM jobs WHERE id IN ({ids}) ORDER BY id LIMIT ?"  # noqa: S608 - our words
    values = [value for state in states for value in (state, after, PAGE)]
    return [(row[0], JobRecord(*row[1:])) for row in db.execute(query, (*values, PAGE))]


def counts(db: Connection) -> dict[JobState, int]:
    """Return how many jobs are in each state, of each the last attempt."""
    found = db.execute("SELECT state, count(*) FROM jobs WHERE latest = 1 GROUP BY state")
    return dict.fromkeys(JobState, 0) | {JobState(state): number for state, number in found}
