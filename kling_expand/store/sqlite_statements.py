"""How is a job kept? Its states and which may follow which, its row, and the statements that write it.

Every statement is one short function of a connection; none begins or ends a transaction.
"""

import logging
import os
from collections.abc import Callable
from enum import StrEnum
from functools import cached_property
from typing import Any
from uuid import uuid4

from attrs import field, fields, frozen

from kling_expand.api.codec import unpack
from kling_expand.errors import JournalError
from kling_expand.models import Task

from .sqlite_file import Connection, Kind

PAGE = 200  # jobs read at a time

logger = logging.getLogger(__name__)


class State(StrEnum):
    """How far a job is known to be."""

    INTENT = "intent"  # to be sent; where `last_post_at` is set, a POST may have left
    UNKNOWN = "unknown"  # nobody could say in time whether a task exists: look it up first
    REJECTED = "rejected"  # refused; no task exists
    SUBMITTED = "submitted"  # a task exists
    SUCCEEDED = "succeeded"  # the task ended well; its pictures are not on disk yet
    DONE = "done"  # the pictures are on disk
    FAILED = "failed"  # the task ended badly


# Which state may follow which; anything else is late or repeated news and changes nothing. A task
# that turns up disproves any refusal. The states that follow themselves take newer facts: fresh
# URLs, other files.
NEXT: dict[State, frozenset[State]] = {
    State.INTENT: frozenset({State.UNKNOWN, State.REJECTED, State.SUBMITTED, State.SUCCEEDED, State.FAILED}),
    State.UNKNOWN: frozenset({State.REJECTED, State.SUBMITTED, State.SUCCEEDED, State.FAILED}),
    State.REJECTED: frozenset({State.INTENT, State.SUBMITTED, State.SUCCEEDED, State.FAILED}),
    State.SUBMITTED: frozenset({State.SUCCEEDED, State.FAILED}),
    State.SUCCEEDED: frozenset({State.SUCCEEDED, State.DONE}),
    State.DONE: frozenset({State.DONE}),
    State.FAILED: frozenset(),
}
_BEFORE = {state: [earlier for earlier in State if state in NEXT[earlier]] for state in State}


def _path(raw: bytes | None) -> str | None:
    return None if raw is None else os.fsdecode(raw)


def _paths(raw: bytes | None) -> tuple[str, ...]:
    return tuple(map(os.fsdecode, raw.split(b"\0"))) if raw else ()


@frozen
class Job:
    """One attempt at one request, as the journal last knew it. Times are Unix seconds.

    `source` is the photo's path or URL (None where it was bytes), `params` the JSON text of the
    request's other parameters, `files` where its pictures are, `error` why it failed, was refused
    or is unknown.
    """

    key: str
    external_task_id: str
    params_hash: str
    attempt: int  # 1, and one more after each failed task
    state: State = field(converter=State)
    task_id: str | None
    last_post_at: float | None  # when a POST was last about to leave
    snapshot: str | None = field(repr=False)
    error: str | None
    files: tuple[str, ...] = field(converter=_paths)
    source: str | None = field(converter=_path)
    params: str
    created_at: float
    updated_at: float

    @cached_property
    def task(self) -> Task | None:
        """The task's final snapshot; None while there is none."""
        return None if self.snapshot is None else unpack(self.snapshot)


_COLUMNS = ", ".join(attribute.name for attribute in fields(Job))
KIND = Kind(
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


SAME_REQUEST = "key = ? AND params_hash = ?"


def name_run(path: str, run: str, db: Connection) -> str:
    """The name of the file's run, given now if it has none."""
    db.execute("INSERT OR IGNORE INTO meta VALUES ('run', ?)", (run or uuid4().hex,))
    name: str = db.execute("SELECT value FROM meta WHERE name = 'run'").fetchone()[0]
    if run and run != name:
        raise JournalError(f"the journal {path} is of run {name!r}, not {run!r}; name that, or another file")
    return name


def newest(where: str, values: tuple[Any, ...], db: Connection) -> Job | None:
    """The last made of the jobs that *where* and its *values* select."""
    query = f"SELECT {_COLUMNS} FROM jobs WHERE {where} ORDER BY id DESC LIMIT 1"  # noqa: S608 - our words
    row = db.execute(query, values).fetchone()
    return Job(*row) if row else None


def intend(draft: dict[str, Any], external_id: Callable[[int], str], db: Connection) -> Job:
    """The job to go on with: the one known, or the first or next attempt of *draft*, a row in part."""
    job = newest(SAME_REQUEST, (draft["key"], draft["params_hash"]), db)
    if job is None:
        if newest("key = ?", (draft["key"],), db):
            logger.warning("job %r has other parameters than before: it is a new task", draft["key"])
        return _insert(draft, external_id(1), 1, db)
    if job.state is State.FAILED:
        attempt = _insert(draft, external_id(job.attempt + 1), job.attempt + 1, db)
        db.execute("UPDATE jobs SET latest = 0 WHERE external_task_id = ?", (job.external_task_id,))
        return attempt
    if job.state is State.REJECTED:
        now = {"error": None, "updated_at": draft["updated_at"]}
        move(job.external_task_id, State.INTENT, now, db)
        return _known(job.external_task_id, db)
    return job


def _insert(draft: dict[str, Any], external_task_id: str, attempt: int, db: Connection) -> Job:
    row = draft | {"external_task_id": external_task_id, "attempt": attempt, "state": State.INTENT}
    marks = ", ".join("?" * len(row))
    db.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))  # noqa: S608 - our words
    return _known(external_task_id, db)


def posting(external_task_id: str, now: float, db: Connection) -> None:
    """Note the time, unless a task is known: then sending again would pay again."""
    noted = db.execute(
        "UPDATE jobs SET last_post_at = ?, updated_at = ? WHERE external_task_id = ? AND task_id IS NULL",
        (now, now, external_task_id),
    )
    if not noted.rowcount:
        task_id = _known(external_task_id, db).task_id
        raise JournalError("its task exists already", task_id=task_id, external_task_id=external_task_id)


def move(external_task_id: str, state: State, values: dict[str, Any], db: Connection) -> None:
    """One UPDATE, which does nothing where the table of states does not allow it."""
    new = {"state": state} | values
    task_id = values.get("task_id")
    moved = db.execute(
        f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in new)} WHERE external_task_id = ?"  # noqa: S608 - our words
        f" AND state IN ({', '.join('?' * len(_BEFORE[state]))})"
        " AND (task_id IS NULL OR task_id = coalesce(?, task_id))",
        (*new.values(), external_task_id, *_BEFORE[state], task_id),
    )
    if moved.rowcount:
        return
    known = _known(external_task_id, db).task_id
    if None not in (task_id, known) and task_id != known:
        logger.warning("two tasks under the id %s: %s, and now %s", external_task_id, known, task_id)


def _known(external_task_id: str, db: Connection) -> Job:
    job = newest("external_task_id = ?", (external_task_id,), db)
    if job is None:
        raise JournalError("the journal knows no such job", external_task_id=external_task_id)
    return job


def page(states: tuple[State, ...], after: int, db: Connection) -> list[tuple[int, Job]]:
    """The next jobs after row *after*: one walk along the index for each state, merged."""
    walk = "SELECT * FROM (SELECT id FROM jobs WHERE latest = 1 AND state = ? AND id > ? ORDER BY id LIMIT ?)"
    ids = " UNION ALL ".join([walk] * len(states))
    query = f"SELECT id, {_COLUMNS} FROM jobs WHERE id IN ({ids}) ORDER BY id LIMIT ?"  # noqa: S608 - our words
    values = [value for state in states for value in (state, after, PAGE)]
    return [(row[0], Job(*row[1:])) for row in db.execute(query, (*values, PAGE))]


def counts(db: Connection) -> dict[State, int]:
    """How many jobs are in each state, of each the last attempt."""
    found = db.execute("SELECT state, count(*) FROM jobs WHERE latest = 1 GROUP BY state")
    return dict.fromkeys(State, 0) | {State(state): number for state, number in found}
