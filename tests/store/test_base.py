"""Job states, job records, job identities and the in-memory store."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kling_expand import ExpandRequest, Ratios
from kling_expand.api.photo import load_photo
from kling_expand.models import Task
from kling_expand.store import base
from kling_expand.store.base import (
    PREVIOUS,
    TRANSITIONS,
    UNFINISHED,
    JobIdentity,
    JobRecord,
    JobState,
    JobStore,
    MemoryStore,
    PreparedRequest,
    identify,
)
from kling_expand.store.sqlite import SQLiteStore
from kling_expand.testing import FAILED, SUCCEEDED, record_job

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "examples" / "photos" / "chelsea.jpg"
WIDER = Ratios(right=0.5)


# ------------------------------------------------------------------------ states


def test_the_table_in_the_docstring_is_correct() -> None:
    """The table in the module docstring shows every state with exactly its next states."""
    rows = (base.__doc__ or "").split("=\n")[2].strip("= \n").splitlines()
    drawn = {}
    for row in rows:
        state, _meaning, following = row[:11].strip(), row[11:55], row[55:].strip()
        drawn[JobState(state)] = {JobState(word) for word in following.split(", ") if word}
    assert drawn == TRANSITIONS
    assert set(TRANSITIONS) == set(JobState)


def test_previous_states_are_the_inverse_of_next_states() -> None:
    """The table of previous states is the inverse of the table of next states."""
    for earlier in JobState:
        for later in JobState:
            assert (later in TRANSITIONS[earlier]) == (earlier in PREVIOUS[later])


def reachable(state: JobState) -> set[JobState]:
    """Return all states that can follow in any number of steps."""
    found: set[JobState] = set()
    ahead = set(TRANSITIONS[state])
    while ahead:
        found |= ahead
        ahead = {later for earlier in ahead for later in TRANSITIONS[earlier]} - found
    return found


@pytest.mark.parametrize("state", [JobState.SUBMITTED, JobState.SUCCEEDED, JobState.DONE, JobState.FAILED])
def test_a_known_task_is_never_forgotten(state: JobState) -> None:
    """No state with a task leads to a state without one."""
    assert not reachable(state) & {JobState.INTENT, JobState.UNKNOWN, JobState.REJECTED}


@pytest.mark.parametrize("state", [*UNFINISHED, JobState.REJECTED])
def test_every_job_can_end(state: JobState) -> None:
    """Every open state can reach an end."""
    assert reachable(state) & {JobState.DONE, JobState.FAILED}


# ------------------------------------------------------------------------ records


def test_a_row_becomes_a_record() -> None:
    """A row's paths become text, whatever bytes they consist of."""
    files = "out/\udcff.png\0out/two\nlines.png".encode(errors="surrogateescape")
    row = ("x", "k", "h", 1, "done", "t", 1.5, None, None, None, files, b"in/\xff.png", "{}", 1.0, 2.0)
    job = JobRecord(*row)
    assert job.state is JobState.DONE
    assert job.files == ("out/\udcff.png", "out/two\nlines.png")
    assert job.source == "in/\udcff.png"


def test_a_save_is_complete_only_with_all_its_files(tmp_path: Path) -> None:
    """A save counts as complete only while all of its files exist."""
    files = tmp_path / "0.png", tmp_path / "1.png"
    for file in files:
        file.touch()
    job = JobRecord("x", files=tuple(map(str, files)))
    assert job.complete_saves() == (files,)
    files[1].unlink()
    assert job.complete_saves() == ()


def test_a_file_that_cannot_be_looked_up_counts_as_missing() -> None:
    """A path that the file system refuses never hides the paid result of its job."""
    assert JobRecord("x", files=("/" + "x" * 300,)).complete_saves() == ()


@pytest.mark.parametrize(
    ("fields", "may_exist"),
    [
        ({}, False),
        ({"last_post_at": 1.0}, True),
        ({"state": "unknown"}, True),
        ({"state": "intent", "last_post_at": 0.0}, True),
    ],
)
def test_a_job_that_was_sent_may_exist(fields: dict[str, Any], *, may_exist: bool) -> None:
    """A job's task may exist as soon as a create was about to be sent."""
    assert JobRecord("x", **fields).may_exist is may_exist


def test_a_record_gives_its_last_known_task() -> None:
    """The task of a record is the final snapshot, or else a submitted task with its id, or else None."""
    assert JobRecord("x").task is None
    assert JobRecord("x", task_id="7").task == Task("7", "submitted", external_task_id="x")
    snapshot = json.dumps({"task_id": "7", "task_status": "failed"})
    assert JobRecord("x", task_id="7", snapshot=snapshot).task == Task("7", "failed")


# ------------------------------------------------------------------------ identity


async def prepare(image: Any = PHOTO, **fields: Any) -> PreparedRequest:
    """Return a prepared request, with its photo loaded."""
    request = ExpandRequest(image, WIDER, **fields)
    return PreparedRequest(request, await load_photo(image), WIDER)


async def test_in_memory_only_a_key_identifies_a_job() -> None:
    """In memory, a job has an identity only if its request has a key and no given id."""
    store = MemoryStore()
    assert identify(store, await prepare()) is None
    assert identify(store, await prepare(external_task_id="mine", key="cat")) is None
    identity = identify(store, await prepare(key="cat"))
    assert identity is not None
    assert identity.key == "cat"


async def test_every_job_has_an_identity_with_a_journal(tmp_path: Path) -> None:
    """With a journal, the same photo with the same parameters is the same job, even without a key."""
    store = SQLiteStore(tmp_path / "run.db")
    first, again = identify(store, await prepare()), identify(store, await prepare())
    assert first is not None
    assert first == again == JobIdentity(first.digest, first.digest)
    assert identify(store, await prepare(prompt="x")) != first
    mine = identify(store, await prepare(external_task_id="mine"))
    assert mine is not None
    assert mine.key == mine.digest


async def test_an_id_follows_from_run_key_request_and_attempt() -> None:
    """The id is the same in every process, and differs if any of the four differs."""
    ids: set[str] = set()
    for run in ("monday", "tuesday"):
        for asked in (
            await prepare(key="cat"),
            await prepare(key="dog"),
            await prepare(PHOTO.with_name("coffee.jpg"), key="cat"),
        ):
            pairs = []
            for store in (MemoryStore(run=run), MemoryStore(run=run)):
                identity = identify(store, asked)
                assert identity is not None
                first = await store.record_intent(identity, asked)
                await store.observe(first.external_task_id, FAILED)
                second = await store.record_intent(identity, asked)
                pairs.append((first.external_task_id, second.external_task_id))
            assert pairs[0] == pairs[1]
            ids.update(pairs[0])
    assert len(ids) == 12


# ------------------------------------------------------------------------ the store in memory


@pytest.mark.parametrize(
    "end",
    [
        lambda store, name: store.observe(name, SUCCEEDED),
        lambda store, name: store.observe(name, FAILED),
        lambda store, name: store.mark_refused(name, "no"),
    ],
    ids=["succeeded", "failed", "refused"],
)
async def test_a_job_is_forgotten_when_it_ends(end: Any) -> None:
    """However a job ends, its record is dropped."""
    store = MemoryStore()
    for number in range(100):
        name = (await record_job(store, str(number))).external_task_id
        await store.mark_sending(name)
        await end(store, name)
    assert [job async for job in store.jobs()] == []
    assert not any((await store.counts()).values())


async def test_memory_is_bounded() -> None:
    """At the limit, the oldest jobs are dropped, and later reports about them are ignored."""
    store = MemoryStore(limit=10)
    names = []
    for number in range(1000):
        names.append((await record_job(store, str(number))).external_task_id)
        await store.observe((await record_job(store, f"failed {number}")).external_task_id, FAILED)
    held = [job.key async for job in store.jobs()]
    assert held == [str(number) for number in range(1000 - len(held), 1000)]
    assert len(held) in {9, 10}
    await asyncio.gather(*(store.mark_sending(name) for name in names))
    await asyncio.gather(*(store.observe(name, SUCCEEDED) for name in names))


def test_an_incomplete_store_class_cannot_be_instantiated() -> None:
    """A store class that lacks a method cannot be instantiated."""
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (JobStore,), {})()


def test_no_database_is_loaded() -> None:
    """The contract and the in-memory store import no database driver."""
    code = "import sys, kling_expand.store.base as _; assert not {'sqlite3', 'psycopg'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
