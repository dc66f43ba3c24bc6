"""The journal: what was awaited is on disk, and no order of news can undo it."""

import asyncio
import contextlib
import itertools
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from kling_expand.errors import JournalError
from kling_expand.models import BalanceDeduction, Image, Task
from kling_expand.store.ledger import Records
from kling_expand.store.sqlite import Job, Journal, State
from kling_expand.store.sqlite_statements import PAGE

SUCCEED = Task(
    "t1",
    "succeed",
    None,
    "x",
    (Image(0, "https://a/0.png"), Image(1, "https://a/1.png", "https://a/w.png")),
    "16",
    BalanceDeduction("0.056", "0.07"),
    True,
    1,
    2,
)
FAILED = Task("t1", "failed", "Failure to pass the risk control system")


class Clock:
    """A second later each time it is read."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    async with Journal(path, run="r", clock=Clock()) as journal:
        yield journal


async def intend(journal: Records, key: str = "k", digest: str = "h", **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "params_hash": digest,
        "params": '{"n":1}',
        "source": "in/dog.png",
        "external_id": lambda attempt: f"{key}-{digest}-{attempt}",
    }
    return await journal.intend(key, **fields | changes)


async def states(journal: Records, *wanted: State) -> list[tuple[str, State]]:
    return [(job.external_task_id, job.state) async for job in journal.jobs(*wanted)]


async def test_a_whole_job(journal: Journal, path: Path) -> None:
    """Each step is kept with its facts and its time, and is there after a restart."""
    job = await intend(journal)
    name = job.external_task_id
    assert (job.key, name, job.params_hash, job.attempt, job.state) == ("k", "k-h-1", "h", 1, State.INTENT)
    assert (job.task_id, job.last_post_at, job.task, job.files, job.error) == (None, None, None, (), None)
    assert ("in/dog.png", '{"n":1}', job.updated_at) == (job.source, job.params, job.created_at)
    await journal.posting(name)
    await journal.accepted(name, "t1")
    await journal.observed(name, SUCCEED)
    await journal.downloaded(name, ["out/dog-0.png", Path("out/dog-1.png")])
    await journal.aclose()
    async with Journal(path) as again:
        done = await again.find("k")
    assert done is not None
    assert (done.state, done.task_id, done.task) == (State.DONE, "t1", SUCCEED)
    assert done.files == ("out/dog-0.png", "out/dog-1.png")
    assert (job.created_at, job.created_at + 1, job.created_at + 4) == (
        done.created_at,
        done.last_post_at,
        done.updated_at,
    )


async def test_an_intent_is_made_once(journal: Journal) -> None:
    """However many ask for the same job at the same time, there is one."""
    jobs = await asyncio.gather(*(intend(journal) for _ in range(20)))
    assert {jobs[0]} == set(jobs)
    assert (await journal.counts())[State.INTENT] == 1


@pytest.mark.parametrize("state", [State.UNKNOWN, State.SUBMITTED, State.SUCCEEDED, State.DONE])
async def test_a_known_job_is_given_back(journal: Journal, state: State) -> None:
    """A job that is open or finished is never begun again."""
    name = (await intend(journal)).external_task_id
    if state is State.UNKNOWN:
        await journal.unknown(name, "reset")
    else:
        await journal.accepted(name, "t1")
    if state in {State.SUCCEEDED, State.DONE}:
        await journal.observed(name, SUCCEED)
    if state is State.DONE:
        await journal.downloaded(name, [])
    job = await intend(journal, params="other", source=None, external_id=lambda _: 1 / 0)
    assert (state, name, '{"n":1}') == (job.state, job.external_task_id, job.params)


async def test_a_failed_task_gets_a_new_attempt(journal: Journal) -> None:
    """Only after `failed` is on disk the number grows; earlier attempts stay on record, apart."""
    first = await intend(journal)
    await journal.posting(first.external_task_id)
    assert first.attempt == (await intend(journal)).attempt
    await journal.accepted(first.external_task_id, "t1")
    await journal.observed(first.external_task_id, FAILED)
    failed = await journal.get(first.external_task_id)
    assert failed is not None
    assert (State.FAILED, FAILED.task_status_msg, FAILED) == (failed.state, failed.error, failed.task)
    second = await intend(journal)
    assert (
        second.external_task_id,
        second.attempt,
        second.state,
        second.task_id,
    ) == ("k-h-2", 2, State.INTENT, None)
    assert second == await journal.find("k")
    assert failed == await journal.get("k-h-1")
    assert await states(journal) == [("k-h-2", State.INTENT)]
    assert (await journal.counts())[State.FAILED] == 0


async def test_a_rejected_job_keeps_its_id(journal: Journal) -> None:
    """No task exists, so trying again is not a new attempt: a late record would be found."""
    job = await intend(journal)
    await journal.posting(job.external_task_id)
    await journal.rejected(job.external_task_id, "1201: bad \udcff")
    rejected = await journal.find("k")
    assert rejected is not None
    assert (rejected.state, rejected.error) == (State.REJECTED, "1201: bad ?")
    again = await intend(journal)
    assert rejected.last_post_at == again.last_post_at
    assert lasting(rejected) == lasting(again)
    assert (again.state, again.error) == (State.INTENT, None)


def lasting(job: Job) -> tuple[Any, ...]:
    return job.external_task_id, job.attempt, job.task_id, job.params, job.created_at


async def test_edited_parameters_are_another_job(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """They warn, and leave the job of the old parameters as it was: it may be paid already."""
    old = await intend(journal, digest="old")
    await journal.accepted(old.external_task_id, "t1")
    new = await intend(journal, digest="new")
    assert [record.message for record in caplog.records] == [
        "job 'k' has other parameters than before: it is a new task"
    ]
    assert new == await journal.find("k")
    kept = await intend(journal, digest="old")
    assert (State.SUBMITTED, old.external_task_id) == (kept.state, kept.external_task_id)
    assert kept == await journal.find("k", "old")
    assert await journal.find("k", "other") is None
    assert len(caplog.records) == 1
    assert len(await states(journal, State.INTENT, State.SUBMITTED)) == 2


async def test_no_post_leaves_for_a_known_task(journal: Journal) -> None:
    """Once a task is known the journal refuses to note another POST, and names the task."""
    name = (await intend(journal)).external_task_id
    await journal.posting(name)
    await journal.accepted(name, "t1")
    before = await journal.get(name)
    with pytest.raises(JournalError, match="exists already") as caught:
        await journal.posting(name)
    assert ("t1", name) == (caught.value.task_id, caught.value.external_task_id)
    assert before == await journal.get(name)


async def test_two_tasks_under_one_id_are_reported(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """The first stays; the second was paid too, so it is not passed over in silence."""
    name = (await intend(journal)).external_task_id
    await journal.accepted(name, "t1")
    await journal.accepted(name, "t1")
    assert not caplog.records
    await journal.observed(name, evolve(SUCCEED, task_id="t2"))
    assert [f"two tasks under the id {name}: t1, and now t2"] == [record.message for record in caplog.records]
    job = await journal.get(name)
    assert job is not None
    assert (job.state, job.task_id, job.task) == (State.SUBMITTED, "t1", None)


@pytest.mark.parametrize("call", ["posting", "accepted", "observed", "downloaded", "rejected", "unknown"])
async def test_news_of_an_unknown_job_is_an_error(journal: Journal, call: str) -> None:
    """What was never intended cannot be recorded, and says so."""
    arguments: dict[str, list[Any]] = {"posting": [], "observed": [SUCCEED], "downloaded": [["a"]]}
    with pytest.raises(JournalError, match="no such job") as caught:
        await getattr(journal, call)("nobody", *arguments.get(call, ["words"]))
    assert caught.value.external_task_id == "nobody"
    assert not any((await journal.counts()).values())


async def test_a_succeeded_task_takes_fresh_urls(journal: Journal) -> None:
    """An expired URL can be replaced until the pictures are on disk, and not after."""
    name = (await intend(journal)).external_task_id
    await journal.observed(name, SUCCEED)
    fresh = evolve(SUCCEED, images=(Image(0, "https://b/0.png"),))
    await journal.observed(name, fresh)
    await journal.downloaded(name, ["a.png"])
    await journal.observed(name, SUCCEED)
    await journal.downloaded(name, ["b.png"])
    job = await journal.get(name)
    assert job is not None
    assert (State.DONE, fresh, ("b.png",)) == (job.state, job.task, job.files)


async def test_any_order_of_news_ends_the_same(journal: Journal) -> None:
    """Late and repeated news change nothing, whichever reporter is quicker."""
    for number, order in enumerate(itertools.permutations(range(5))):
        name = (await intend(journal, str(number))).external_task_id
        news = [
            journal.accepted(name, "t1"),
            journal.observed(name, Task("t1", "submitted")),
            journal.observed(name, Task("t1", "a word nobody knows")),
            journal.observed(name, SUCCEED),
            journal.unknown(name, "reset"),
        ]
        for one in order:
            await news[one]
        job = await journal.get(name)
        assert job is not None
        assert (job.state, job.task_id, job.task, job.error) == (State.SUCCEEDED, "t1", SUCCEED, None)


async def test_one_bad_write_leaves_the_others_alone(journal: Journal) -> None:
    """What only one caller is to blame for reaches only that caller, within one commit."""
    outcomes = await asyncio.gather(
        intend(journal, "a"),
        intend(journal, "b", external_id=lambda _: "a-h-1"),
        intend(journal, "c", external_id=lambda _: 1 / 0),
        intend(journal, "\ud800"),
        intend(journal, params=object()),
        intend(journal, params=None),
        intend(journal, "d"),
        return_exceptions=True,
    )
    assert [type(one) for one in outcomes] == [
        Job,
        JournalError,
        ZeroDivisionError,
        UnicodeEncodeError,
        JournalError,
        JournalError,
        Job,
    ]
    assert "cannot have one id" in str(outcomes[1])
    assert await states(journal) == [("a-h-1", State.INTENT), ("d-h-1", State.INTENT)]


def test_no_image_is_stored(path: Path) -> None:
    """A photo given as a data URI leaves nothing of itself in the file."""

    async def store() -> Job:
        async with Journal(path) as journal:
            return await intend(journal, source="data:image/png;base64,U0VDUkVU")

    assert asyncio.run(store()).source is None
    assert b"U0VDUkVU" not in path.read_bytes()


async def test_odd_names_come_back(journal: Journal) -> None:
    """File names are bytes: those that are not UTF-8 can be recorded too."""
    odd = os.fsdecode(b"in/\xff\xfe\n.png")
    job = await intend(journal, "kéy\n", source=odd)
    await journal.observed(job.external_task_id, SUCCEED)
    await journal.downloaded(job.external_task_id, [odd, "é"])
    found = await journal.find("kéy\n")
    assert found is not None
    assert (odd, (odd, "é")) == (found.source, found.files)


async def test_jobs_are_paged_in_order(journal: Journal) -> None:
    """More than one page of jobs comes in the order of insertion, whatever their states."""
    count = 2 * PAGE + 7
    keys = [f"{number:04}" for number in range(count)]
    made = await asyncio.gather(*(intend(journal, key) for key in keys))
    await asyncio.gather(*(journal.accepted(job.external_task_id, "t1") for job in made[::3]))
    await asyncio.gather(*(journal.unknown(job.external_task_id, "?") for job in made[1::3]))
    assert keys == [job.key async for job in journal.jobs()]
    assert keys[::3] == [job.key async for job in journal.jobs(State.SUBMITTED)]
    two = [key for number, key in enumerate(keys) if number % 3]
    assert two == [job.key async for job in journal.jobs(State.UNKNOWN, State.INTENT)]
    assert await states(journal, State.DONE) == []


async def test_jobs_may_move_while_they_are_read(journal: Journal) -> None:
    """Finishing each job as it comes neither skips one nor gives one twice."""
    keys = [f"{number:04}" for number in range(PAGE + 50)]
    await asyncio.gather(*(intend(journal, key) for key in keys))
    seen = []
    async for job in journal.jobs(State.INTENT):
        seen.append(job.key)
        await journal.rejected(job.external_task_id, "no")
    assert keys == seen
    assert len(keys) == (await journal.counts())[State.REJECTED]


async def test_a_cancelled_writer_leaves_its_record(journal: Journal) -> None:
    """Cancelling an await does not undo the write, nor disturb any other."""
    writer = asyncio.ensure_future(intend(journal, "a"))
    other = asyncio.ensure_future(intend(journal, "b"))
    await asyncio.sleep(0)
    writer.cancel()
    await other
    assert writer.cancelled()
    assert await journal.find("a") is not None


async def test_the_run_has_a_name(tmp_path: Path) -> None:
    """A given name is kept; without one a random one is made once; another is refused."""
    async with Journal(tmp_path / "a.db", run="mine") as journal:
        assert journal.run == "mine"
    async with Journal(tmp_path / "a.db") as journal:
        assert journal.run == "mine"
    with pytest.raises(JournalError, match="is of run 'mine', not 'other'"):
        await Journal(tmp_path / "a.db", run="other").__aenter__()
    names = []
    for name in ("b.db", "b.db", "c.db"):
        async with Journal(tmp_path / name) as journal:
            names.append(journal.run)
    assert names[0] == names[1] != names[2]


async def test_a_journal_knows_when_it_is_open(path: Path) -> None:
    """Used too early, too late or twice it says so; and it can be opened again."""
    journal = Journal(path)
    with pytest.raises(JournalError, match="not open"):
        await journal.counts()
    await journal.aclose()
    async with journal:
        await intend(journal)
        with pytest.raises(JournalError, match="open already"):
            await journal.__aenter__()
    await journal.aclose()
    with pytest.raises(JournalError, match="not open"):
        await journal.find("k")
    async with journal:
        assert await journal.find("k") is not None


async def test_one_event_loop(journal: Journal) -> None:
    """A journal belongs to the loop it was opened in; from another it is refused, not corrupted."""
    with pytest.raises(JournalError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(journal.find("k")))


async def test_closing_writes_what_waits(path: Path) -> None:
    """Writes that were begun before the close are on disk after it."""
    journal = await Journal(path).__aenter__()
    writes = [asyncio.ensure_future(intend(journal, str(number))) for number in range(600)]
    await asyncio.sleep(0)
    await journal.aclose()
    assert all(write.done() and write.result() for write in writes)
    async with Journal(path) as again:
        assert (await again.counts())[State.INTENT] == 600


@pytest.mark.parametrize("turns", range(6))
async def test_opening_and_closing_can_be_cancelled(path: Path, turns: int) -> None:
    """Wherever it strikes, the file is free afterwards and holds what was awaited."""
    async with Journal(path) as journal:
        await intend(journal)
    for call in (Journal.__aenter__, Journal.aclose):
        journal = Journal(path)
        if call is Journal.aclose:
            await journal.__aenter__()
        task = asyncio.ensure_future(call(journal))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await journal.aclose()
    async with Journal(path) as journal:
        assert await journal.find("k") is not None


# ------------------------------------------------------------------------ against a plain model

KEYS = st.sampled_from(["a", "b"])
DIGESTS = st.sampled_from(["x", "y"])
CALLS = st.sampled_from(
    ["posting", "accepted", "processing", "succeed", "failed", "downloaded", "rejected", "unknown"]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("intend"), KEYS, DIGESTS),
        st.tuples(CALLS, KEYS, DIGESTS),
        st.just(("restart", "", "")),
    ),
    max_size=30,
)


class Model:
    """The same book kept by hand: the last attempt of each job as [attempt, state, has a task]."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[Any]] = {}

    def intend(self, job: tuple[str, str]) -> None:
        row = self.rows.setdefault(job, [1, "intent", False])
        if row[1] == "failed":
            self.rows[job] = [row[0] + 1, "intent", False]
        elif row[1] == "rejected":
            row[1] = "intent"

    def news(self, call: str, job: tuple[str, str]) -> None:
        row = self.rows[job]
        ended = row[1] in {"succeeded", "done", "failed"}
        if call in {"accepted", "processing"} and not ended:
            row[1:] = "submitted", True
        elif call in {"succeed", "failed"} and not ended:
            row[1:] = "succeeded" if call == "succeed" else "failed", True
        elif call == "downloaded" and row[1] in {"succeeded", "done"}:
            row[1] = "done"
        elif (call == "rejected" and row[1] in {"intent", "unknown"}) or (
            call == "unknown" and row[1] == "intent"
        ):
            row[1] = call


async def tell(journal: Journal, call: str, name: str) -> None:
    """Make one call, as the model understands it."""
    if call in {"processing", "succeed", "failed"}:
        await journal.observed(name, Task(f"t-{name}", call))
    elif call == "downloaded":
        await journal.downloaded(name, [name])
    else:
        words = {"accepted": [f"t-{name}"], "posting": []}.get(call, ["words"])
        await getattr(journal, call)(name, *words)


async def follow(steps: list[tuple[str, str, str]], path: Path, model: Model) -> None:
    journal = await Journal(path).__aenter__()
    for call, key, digest in steps:
        row = model.rows.get((key, digest))
        if call == "restart":
            await journal.aclose()
            journal = await Journal(path).__aenter__()
        elif call == "intend":
            model.intend((key, digest))
            await intend(journal, key, digest)
        elif row is not None:
            refused = call == "posting" and row[2]
            with pytest.raises(JournalError) if refused else contextlib.nullcontext():
                await tell(journal, call, f"{key}-{digest}-{row[0]}")
            model.news(call, (key, digest))
    found = {
        (job.key, job.params_hash): [job.attempt, str(job.state), job.task_id is not None]
        async for job in journal.jobs()
    }
    counts = await journal.counts()
    await journal.aclose()
    assert model.rows == found
    assert {state: sum(row[1] == state for row in model.rows.values()) for state in State} == counts


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_any_sequence_of_calls_matches_the_model(steps: list[tuple[str, str, str]]) -> None:
    """No sequence of calls and restarts leads anywhere but where the plain rules lead."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(follow(steps, Path(folder, "run.db"), Model()))
