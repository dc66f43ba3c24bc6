"""The statements of a journal file, which read each page with one index scan per state."""

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from kling_expand.store.base import JobState
from kling_expand.store.sqlite import FORMAT, PAGE, claim, counts, newest, page, transition


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    """Yield a connection to an empty in-memory journal."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in FORMAT.schema.split(";"):
            connection.execute(statement)
        yield connection


def draft(key: str) -> dict[str, Any]:
    """Return the columns of a new row."""
    times = {"created_at": 1.0, "updated_at": 1.0}
    return {"key": key, "params_hash": "h", "params": "{}", "source": b"in/\xff.png"} | times


def test_pages_follow_each_other(db: sqlite3.Connection) -> None:
    """Each page begins after the last row of the previous page, with all requested states in order."""
    for number in range(PAGE + 5):
        claim(draft(str(number)), f"{number}-{{}}".format, 0, db)
        if number % 2:
            transition(f"{number}-1", JobState.UNKNOWN, {"error": "?"}, db)
    first = page((JobState.UNKNOWN, JobState.INTENT), 0, db)
    rest = page((JobState.UNKNOWN, JobState.INTENT), first[-1][0], db)
    assert [int(job.key) for _row, job in [*first, *rest]] == list(range(PAGE + 5))
    assert page((JobState.DONE,), 0, db) == []


def test_a_page_reads_only_the_index(db: sqlite3.Connection) -> None:
    """Reading the next page does not scan the whole table."""
    asked: list[str] = []
    db.set_trace_callback(asked.append)
    page((JobState.INTENT, JobState.UNKNOWN), 7, db)
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {asked[0]}")]
    assert sum("jobs_by_state (state=? AND id>?)" in step for step in plan) == 2
    assert not [step for step in plan if step == "SCAN jobs"]


def test_only_the_last_attempt_is_counted(db: sqlite3.Connection) -> None:
    """An earlier attempt can still be read by its id, but appears nowhere else."""
    claim(draft("k"), "k-{}".format, 0, db)
    transition("k-1", JobState.FAILED, {"task_id": "t1", "error": "no"}, db)
    claim(draft("k"), "k-{}".format, 0, db)
    assert counts(db) == dict.fromkeys(JobState, 0) | {JobState.INTENT: 1}
    first = newest("external_task_id = ?", ("k-1",), db)
    assert first is not None
    assert (first.attempt, first.state, first.source) == (1, JobState.FAILED, "in/\udcff.png")
