"""Jobs from submission to task, which are interrupted and resumed at every step and never paid twice."""

import asyncio
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random
from types import CoroutineType
from typing import Any, ClassVar

import pytest
from attrs import evolve, frozen
from support.raw_server import loopback, refuses, task
from support.schedules import NeverPolls, now
from support.stepping_loop import arm, stepped

from kling_expand import ExpandRequest, KlingClient, Ratios, Status, TaskFuture, ToAspect, Towards
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults import prompt_triggers
from kling_expand.emulator.faults.plan import Fault
from kling_expand.errors import (
    BudgetExceeded,
    ClientClosed,
    DeadlineExceeded,
    DuplicateTask,
    ImageError,
    InvalidRequest,
    JournalError,
    KlingError,
    NotSubmitted,
    PolicyRefusal,
    ResultExpired,
    SubmissionUnknown,
    TaskFailed,
    TaskModerated,
    TaskNotFound,
    TransportError,
)
from kling_expand.events import Event
from kling_expand.jobs.poll_schedule import AdaptiveSchedule
from kling_expand.jobs.scheduler import Slots
from kling_expand.store.base import JobState
from kling_expand.store.sqlite import SQLiteStore
from kling_expand.testing import emulated, loop_clock, virtual_time

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"
WIDER = Ratios(right=0.5)
MODERATED = "emulate-risk-control"
OURS = str(Path("kling_expand"))


def another(emulator: Emulator, **options: Any) -> KlingClient:
    """Open one more client of an emulator, in virtual time."""
    given: dict[str, Any] = {"api_key": emulator.api_key, "base_url": emulator.url, "clock": loop_clock}
    return KlingClient(**given | {"rng": Random(2)} | options)


async def error_of(future: TaskFuture) -> KlingError | None:
    """Return the error of a future, or None, or fail after a while."""
    async with asyncio.timeout(86400):
        try:
            await future
        except KlingError as error:
            return error
        return None


async def wait_for(condition: Callable[[], object]) -> None:
    """Wait until the condition is true."""
    async with asyncio.timeout(3600):
        while not condition():  # noqa: ASYNC110 - the emulator has no event for everything
            await asyncio.sleep(0.01)


def left_over() -> list[str]:
    """Return the asyncio tasks of the SDK that still run."""
    running = [each.get_coro() for each in asyncio.all_tasks() if each is not asyncio.current_task()]
    frames = [coroutine.cr_code for coroutine in running if isinstance(coroutine, CoroutineType)]
    return [
        code.co_qualname if hasattr(code, "co_qualname") else code.co_name
        for code in frames
        if OURS in code.co_filename and "emulator" not in code.co_filename
    ]


def check_closed(kling: KlingClient) -> None:
    """Check that a closed client holds nothing and that its numbers are right."""
    stats = kling.stats
    assert left_over() == []
    assert (stats.waiting, stats.running) == (0, 0)
    assert stats.submitted == stats.succeeded + stats.failed + stats.refused + stats.unknown


# ------------------------------------------------------------------ interrupted at any step

FAULTS: list[Fault | str] = ["ok", "reset_after", "html_after", Fault("error", code=1303), "refused"]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_closing_at_any_step_loses_and_repeats_no_task(tmp_path: Path, fault: Fault | str) -> None:
    """Every awaiter ends, and a new client with the same journal finds the one task and its pictures."""

    async def job(steps: int) -> bool:
        journal = {"journal": tmp_path / f"{steps}.db"}
        slots = Slots(9)
        async with emulated(journal | {"slots": slots}) as (emulator, kling):
            emulator.faults.script("create", fault)
            request = ExpandRequest(PHOTO, WIDER, n=2, key="cat")
            closing: list[asyncio.Task[Any]] = []
            future = kling.submit(request)
            reached = arm(steps, lambda: closing.append(asyncio.create_task(kling.aclose())))
            error = await error_of(future)
            interrupted = reached()
            await asyncio.gather(*closing)
            if isinstance(error, NotSubmitted):
                assert emulator.account.accepted == {}
            elif error is not None:
                assert isinstance(error, SubmissionUnknown | ClientClosed)
                assert error.external_task_id
            await kling.aclose()
            check_closed(kling)
            assert (slots.held, slots.running) == (0, 0)
            async with another(emulator, **journal) as again:
                resumed = [future async for future in again.resume()]
                result = await again.expand(request)
                assert {(await future).task_id for future in resumed} <= {result.task_id}
                assert len(await result.save(tmp_path / "pictures")) == 2
                assert [future async for future in again.resume()] == []
            assert list(emulator.account.accepted.values()) == [1]
            assert emulator.account.units_billed == 16
            return interrupted

    for steps in count(0, 1 if fault == "ok" else 4):
        if not stepped(job(steps)):
            assert steps > 25
            return


@pytest.mark.parametrize("wait", [False, True])
def test_a_cancelled_close_leaves_nothing_open(wait: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """`aclose` cancelled at any step leaves nothing open, and every awaiter ends."""

    async def job(steps: int) -> bool:
        async with emulated({"max_in_flight": 1}) as (emulator, kling):
            emulator.faults.script("create", Fault("slow_headers", seconds=5))
            futures = [kling.submit(PHOTO, WIDER) for _ in range(3)]
            await asyncio.sleep(1)
            closing = asyncio.create_task(kling.aclose(wait=wait))
            reached = arm(steps + 1, closing.cancel)  # not before it has begun
            await asyncio.gather(closing, return_exceptions=True)
            interrupted = reached()
            for future in futures:
                await error_of(future)
            await asyncio.sleep(0.1)
            check_closed(kling)
            with pytest.raises(ClientClosed):
                await kling.list()
            return interrupted

    for steps in count():
        if not stepped(job(steps)):
            assert steps > 5
            return


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_cancelling_an_awaiter_at_any_step_affects_no_other(fault: Fault | str) -> None:
    """If one of three awaiters is cancelled, the others get the result, and the slot is released."""

    async def job(steps: int) -> bool:
        slots = Slots(9)
        async with emulated({"slots": slots}) as (emulator, kling):
            emulator.faults.script("create", fault)
            future = kling.submit(PHOTO, WIDER, key="cat")

            async def awaits() -> str:
                return (await future).task_id

            async def iterates() -> str:
                return [snapshot async for snapshot in future][-1].task_id

            async def accepts() -> str:
                return (await future.accepted()).task_id

            victims = [asyncio.create_task(each()) for each in (awaits, iterates, accepts)]
            others = [asyncio.create_task(each()) for each in (awaits, iterates, accepts)]
            reached = arm(steps, lambda: [victim.cancel() for victim in victims])
            ids = await asyncio.gather(*others)
            interrupted = reached()
            ended = await asyncio.gather(*victims, return_exceptions=True)
            await asyncio.sleep(0)
            assert set(ids) == set(emulator.account.tasks)
            assert list(emulator.account.accepted.values()) == [1]
            assert (slots.held, slots.running, kling.stats.succeeded) == (0, 0, 1)
            assert all(each in ids or isinstance(each, asyncio.CancelledError) for each in ended)
            return interrupted

    for steps in count(0, 1 if fault == "ok" else 3):
        if not stepped(job(steps)):
            assert steps > 25
            return


def test_cancelling_expand_at_any_step_keeps_the_job(tmp_path: Path) -> None:
    """When `expand` is cancelled at any step, a second call with the same key gets the result."""

    async def job(steps: int) -> bool:
        async with emulated({"journal": tmp_path / f"{steps}.db"}) as (emulator, kling):
            request = ExpandRequest(PHOTO, WIDER, key="cat")
            caller = asyncio.create_task(kling.expand(request))
            second = asyncio.create_task(kling.expand(request))
            reached = arm(steps, caller.cancel)
            assert (await second).task_id in emulator.account.tasks
            interrupted = reached()
            await asyncio.gather(caller, return_exceptions=True)
            await kling.aclose(wait=True)
            check_closed(kling)
            assert list(emulator.account.accepted.values()) == [1]
            return interrupted

    for steps in count():
        if not stepped(job(steps)):
            assert steps > 25
            return


def test_cancelling_a_job_at_any_step_is_all_or_nothing() -> None:
    """A job that was cancelled was never sent, and a job that cannot be cancelled continues to its end."""

    async def job(steps: int) -> bool:
        async with emulated() as (emulator, kling):
            future = kling.submit(PHOTO, WIDER)
            back: list[bool] = []
            reached = arm(steps, lambda: back.append(future.cancel()))
            error = await error_of(future)
            interrupted = reached()
            await asyncio.sleep(0)
            if back and back[0]:
                assert isinstance(error, NotSubmitted)
                assert emulator.account.requests["create"] == 0
                assert kling.stats.units_due == 0
            else:
                assert error is None
            return interrupted

    for steps in count():
        if not stepped(job(steps)):
            assert steps > 25
            return


# ------------------------------------------------------------------ one job, one task


@virtual_time
async def test_concurrent_submissions_with_one_key_share_a_task() -> None:
    """Two submissions with the same key share the task, its reserved units and its bill."""
    async with emulated({"budget": 16}) as (emulator, kling):
        first, second = (kling.submit(PHOTO, WIDER, key="cat") for _ in range(2))
        assert (await first).task_id == (await second).task_id
        assert list(emulator.account.accepted.values()) == [1]
        assert kling.stats.units_due == 8
        await asyncio.sleep(0)  # lets the done callbacks run
        assert kling._slots.held == 0


@virtual_time
async def test_the_id_of_a_queued_job_is_known_at_once(tmp_path: Path) -> None:
    """A second submission of a queued job has the same id before a slot is free, and shares the task."""
    options = {"journal": tmp_path / "run.db", "max_in_flight": 1}
    async with emulated(options, work_seconds=100) as (emulator, kling):
        await kling.submit(PHOTO, Ratios(left=0.5)).accepted()
        first, second = (kling.submit(PHOTO, WIDER) for _ in range(2))
        began = now()
        assert await first.recorded() == await second.recorded() == second.external_task_id
        assert now() - began < 1
        own = kling.submit(PHOTO, WIDER, external_task_id="mine")  # the same job, with another id
        assert isinstance(await error_of(own), DuplicateTask)
        assert (await second).external_task_id == (await first).external_task_id
        assert len(emulator.account.tasks) == 2


@virtual_time
async def test_a_create_with_a_given_id_is_preceded_by_a_lookup() -> None:
    """Each create with a given id is preceded by a lookup, which is counted as a read."""
    async with emulated() as (_, kling):
        await kling.expand(PHOTO, WIDER, external_task_id="mine")
        assert kling.stats.errors == {}
        assert kling.stats.reads > 1
        with pytest.raises(TaskNotFound):
            await kling.get("other")
        assert kling.stats.errors == {"TaskNotFound": 1}


@virtual_time
async def test_run_key_photo_and_geometry_identify_a_job() -> None:
    """Another run, key, photo or geometry makes another task, and another client in the run finds it."""
    async with emulated({"run": "monday"}) as (emulator, kling):
        first = await kling.expand(PHOTO, WIDER, key="cat")
        for options, request in (
            ({"run": "tuesday"}, ExpandRequest(PHOTO, WIDER, key="cat")),
            ({"run": "monday"}, ExpandRequest(PHOTO, WIDER, key="dog")),
            ({"run": "monday"}, ExpandRequest(PHOTO, Ratios(left=0.5), key="cat")),
            ({"run": "monday"}, ExpandRequest(PHOTO.with_name("coffee.jpg"), WIDER, key="cat")),
        ):
            async with another(emulator, **options) as other:
                assert (await other.expand(request)).task_id != first.task_id
        async with another(emulator, run="monday", budget=1000) as other:
            assert (await other.expand(PHOTO, WIDER, key="cat")).task_id == first.task_id
            assert other.stats.units_due == 0
        assert len(emulator.account.tasks) == 5


@virtual_time
async def test_without_a_key_each_submission_is_a_job() -> None:
    """Without a key, two submissions of the same photo are two tasks."""
    async with emulated() as (emulator, kling):
        await asyncio.gather(kling.expand(PHOTO, WIDER), kling.expand(PHOTO, WIDER))
        assert len(emulator.account.tasks) == 2


@pytest.mark.parametrize("journal", [False, True])
@virtual_time
async def test_after_a_failed_task_the_same_job_is_a_new_attempt(tmp_path: Path, journal: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """After a failed task, the same job gets a new attempt with its own id, even without a journal."""
    path: dict[str, Any] = {"journal": tmp_path / "run.db"} if journal else {}
    async with emulated(path) as (emulator, kling):
        ids = []
        for attempt in range(1, 4):
            with pytest.raises(TaskModerated) as caught:
                await kling.expand(PHOTO, WIDER, key="cat", prompt=MODERATED)
            ids.append(caught.value.external_task_id)
            assert len(emulator.account.tasks) == attempt
        async with another(emulator) as later:
            with pytest.raises(TaskModerated) as caught:
                await later.expand(PHOTO, WIDER, key="cat", prompt=MODERATED)
            assert (later.stats.units_due, later.stats.failed) == (0, 1)
            assert later._slots.held == 0
        assert len({*ids, caught.value.external_task_id}) == 4
        assert set(emulator.account.accepted.values()) == {1}


@virtual_time
async def test_a_create_that_returns_a_failed_task_is_not_repeated() -> None:
    """A create whose response is a failed task is not repeated, although its id is derived."""
    async with (
        loopback(task("7", "failed")) as server,
        KlingClient(api_key="k", base_url=server.url, budget=8) as kling,
    ):
        with pytest.raises(TaskFailed) as caught:
            await kling.expand(PHOTO, WIDER, key="cat")
        assert caught.value.task_id == "7"
        await asyncio.sleep(0)
        assert (len(server.requests), kling.stats.units_due) == (1, 0)


@virtual_time
async def test_a_failed_task_found_after_a_reset_is_not_repeated() -> None:
    """A failed task found after a reset belongs to this attempt, not to an earlier one."""
    async with emulated(queue_seconds=0, work_seconds=0) as (emulator, kling):
        emulator.faults.script("create", "reset_after")
        with pytest.raises(TaskModerated):
            await kling.expand(PHOTO, WIDER, key="cat", prompt=MODERATED)
        assert len(emulator.account.tasks) == 1


@virtual_time
async def test_a_given_id_is_used_once() -> None:
    """A given id is sent unchanged, and a second task with it is refused with both ids in the error."""
    async with emulated() as (emulator, kling):
        first = await kling.expand(PHOTO, WIDER, external_task_id="my-7", key="cat")
        with pytest.raises(KlingError, match="already has the id") as caught:
            await kling.expand(PHOTO, WIDER, external_task_id="my-7", key="cat")
        assert caught.value.external_task_id == "my-7"
        assert first.task.external_task_id == "my-7"
        assert kling.stats.units_due == 8
        assert len(emulator.account.tasks) == 1


@pytest.mark.parametrize("given", [None, "mine"])
@virtual_time
async def test_a_recorded_job_survives_and_its_id_is_final(tmp_path: Path, given: str | None) -> None:
    """`recorded` returns while the job still waits for a slot, with the id that it keeps to its end."""
    path = tmp_path / "run.db"
    async with emulated() as (emulator, _), another(emulator, journal=path, max_in_flight=1) as kling:
        first = kling.submit(PHOTO, WIDER)
        second = kling.submit(PHOTO, ToAspect("1:1"), external_task_id=given)
        assert (first.external_task_id, second.external_task_id) == (None, given)
        ids = [await first.recorded(), await second.recorded()]
        assert second.task is None
        async with SQLiteStore.snapshot(path) as kept:
            assert {job.external_task_id async for job in kept.jobs()} == set(ids)
        assert [first.external_task_id, second.external_task_id] == ids
        assert [(await each).external_task_id for each in (first, second)] == ids
        assert await second.recorded() == ids[1]
        attached = kling.attach(ids[0])
        assert await attached.recorded() == ids[0]
        with pytest.raises(ImageError):
            await kling.submit(tmp_path / "missing.png", WIDER).recorded()


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
@virtual_time
async def test_two_requests_cannot_share_one_given_id(tmp_path: Path, *, durable: bool, mapped: bool) -> None:
    """Under one given id, the same request shares the task, and another request is refused without harm."""
    options: dict[str, Any] = {"journal": tmp_path / "run.db"} if durable else {}
    requests = [ExpandRequest(PHOTO, WIDER, prompt, external_task_id="mine") for prompt in (None, "b", None)]
    ends: list[Any]
    async with emulated() as (emulator, _), another(emulator, **options) as kling:
        if mapped:
            ends = [each.error or each.result async for each in kling.map(requests, ordered=True)]
        else:
            ends = await asyncio.gather(*map(kling.submit, requests), return_exceptions=True)
        first, refused, same = ends
        assert first == same
        assert isinstance(refused, DuplicateTask)
        assert (refused.task_id, refused.external_task_id) == (first.task_id, "mine")
        assert emulator.account.units_billed == 8
        assert (kling.stats.refused, kling.stats.waiting, kling.stats.running) == (1, 0, 0)


@pytest.mark.parametrize("durable", [True, False])
@virtual_time
async def test_a_submission_that_fails_leaves_the_others_of_its_id(tmp_path: Path, *, durable: bool) -> None:
    """A deadline or `cancel` ends one submission of a given id. The others share the task of the next one."""
    options: dict[str, Any] = {"journal": tmp_path / "run.db"} if durable else {}
    request = ExpandRequest(PHOTO, WIDER, external_task_id="mine")
    async with emulated(options | {"max_in_flight": 1}, work_seconds=30) as (emulator, kling):
        await kling.submit(PHOTO, ToAspect("1:1")).accepted()
        late, cancelled = kling.submit(request, deadline=5), kling.submit(request)
        later, brief = kling.submit(request), kling.submit(request, deadline=4)
        ids = [await each.recorded() for each in (late, cancelled, later, brief)]
        assert ids == [each.external_task_id for each in (late, cancelled, later, brief)] == ["mine"] * 4
        for future, outcome in ((brief, "another submission of the same job continues"), (late, "no task")):
            assert await future.wait(6)
            assert isinstance(future.error, DeadlineExceeded)
            assert (future.error.external_task_id, outcome in future.error.message) == ("mine", True)
        await asyncio.sleep(1)
        assert cancelled.cancel()
        assert isinstance(await error_of(cancelled), NotSubmitted)
        assert (await later).external_task_id == "mine"
        assert len(emulator.account.tasks) == 2


@pytest.mark.parametrize("photo", [PHOTO, Path("/nowhere.jpg")])
@virtual_time
async def test_a_submission_that_fails_leaves_the_task_that_is_followed(photo: Path) -> None:
    """A refused submission does not end the futures of a running task that has the same given id."""
    async with emulated() as (emulator, kling):
        async with another(emulator) as other:
            task = await other.create(PHOTO, WIDER, external_task_id="mine")
        attached = kling.attach("mine")
        await attached.accepted()
        error = await error_of(kling.submit(photo, WIDER, external_task_id="mine"))
        assert isinstance(error, DuplicateTask if photo is PHOTO else ImageError)
        assert (await attached).task_id == task.task_id
        assert (kling._slots.held, kling._slots.running) == (0, 0)


@virtual_time
async def test_a_journal_neither_replaces_nor_adopts_a_given_id(tmp_path: Path) -> None:
    """If the job or the id already has another task, `DuplicateTask` names it, and nothing more is paid."""
    async with emulated() as (emulator, _), another(emulator, journal=tmp_path / "run.db") as kling:
        first = await kling.expand(PHOTO, WIDER, external_task_id="mine")
        assert await kling.expand(PHOTO, WIDER, external_task_id="mine") == first
        assert (await kling.expand(PHOTO, WIDER)).task == first.task
        same_id = kling.submit(PHOTO, ToAspect("1:1"), external_task_id="mine")
        other_id = kling.submit(PHOTO, WIDER, external_task_id="another")
        same_again = kling.submit(PHOTO, WIDER, external_task_id="mine", fresh=True)
        for future in (same_id, other_id, same_again):
            error = await error_of(future)
            assert isinstance(error, DuplicateTask)
            assert error.task_id == first.task_id
        assert len(emulator.account.tasks) == 1
        fresh = await kling.expand(PHOTO, WIDER, external_task_id="another", fresh=True)
        assert (fresh.external_task_id, len(emulator.account.tasks)) == ("another", 2)


@virtual_time
async def test_a_job_that_was_never_sent_takes_a_new_id(tmp_path: Path) -> None:
    """A job that was never sent is sent under the newly given id, as no task has the old one."""
    async with emulated() as (emulator, _), another(emulator, journal=tmp_path / "run.db") as kling:
        emulator.faults.script("create", Fault("error", code=1301))
        assert isinstance(await error_of(kling.submit(PHOTO, WIDER)), PolicyRefusal)
        result = await kling.expand(PHOTO, WIDER, external_task_id="mine")
        assert (result.external_task_id, len(emulator.account.tasks)) == ("mine", 1)


@virtual_time
async def test_a_failing_store_raises_its_own_error(tmp_path: Path) -> None:
    """A store that fails while it records a job with a given id raises its own error."""

    class Failing(SQLiteStore):
        async def _claim(self, *args: Any) -> Any:
            await super()._claim(*args)
            raise JournalError("the disk is full")

    async with (
        emulated() as (emulator, _),
        Failing(tmp_path / "run.db", clock=loop_clock) as store,
        another(emulator, journal=store) as kling,
    ):
        error = await error_of(kling.submit(PHOTO, WIDER, external_task_id="mine"))
    assert type(error) is JournalError


@virtual_time
async def test_the_units_of_a_task_count_once() -> None:
    """The units of a task count once, even if it is attached or its job submitted again after the end."""
    async with emulated() as (emulator, kling):
        result = await kling.expand(PHOTO, WIDER, key="cat")
        await kling.attach(result.task_id)
        await kling.expand(PHOTO, WIDER, key="cat")
        assert kling.stats.units_billed == emulator.account.units_billed == 8


@virtual_time
async def test_cancelling_a_job_takes_effect_at_once() -> None:
    """As with `asyncio.Future`, the end is known when `cancel` returns, and slots and units are free soon."""
    async with emulated(client={"max_in_flight": 1, "budget": 16}) as (emulator, kling):
        await kling.submit(PHOTO, WIDER).accepted()
        waiting = kling.submit(PHOTO, WIDER)
        called: list[TaskFuture] = []
        waiting.add_done_callback(called.append)
        assert (waiting.cancel(), waiting.cancelled(), waiting.done()) == (True, True, True)
        assert isinstance(waiting.exception(), NotSubmitted)
        await asyncio.sleep(0)
        assert called == [waiting]
        await kling.expand(PHOTO, WIDER)
        assert (kling.stats.refused, kling.stats.units_due, len(emulator.account.tasks)) == (1, 16, 2)


# ------------------------------------------------------------------ resumed


async def leave_every_state(
    kling: KlingClient, emulator: Emulator, photos: Path
) -> dict[JobState, str | None]:
    """Leave one job in each state of a journal, and return the external ids by state."""
    photos.mkdir()  # noqa: ASYNC240 - a test may
    found: dict[JobState, str | None] = {}

    def job(state: JobState, **more: Any) -> ExpandRequest:
        photo = photos / f"{state}.jpg"
        shutil.copy(PHOTO, photo)
        return ExpandRequest(photo, WIDER, key=state, **more)

    await (await kling.expand(job(JobState.DONE))).save(photos)
    result = await kling.expand(job(JobState.SUCCEEDED))
    found[JobState.SUCCEEDED] = result.task.external_task_id
    for state, prompt, kind in (
        (JobState.FAILED, MODERATED, TaskFailed),
        (JobState.REJECTED, "emulate-1301", PolicyRefusal),
    ):
        with pytest.raises(kind):
            await kling.expand(job(state, prompt=prompt))
    emulator.faults.script("create", "reset_after")
    emulator.faults.chance("query", "reset", 1)
    with pytest.raises(SubmissionUnknown) as unknown:
        await kling.expand(job(JobState.UNKNOWN))
    found[JobState.UNKNOWN] = unknown.value.external_task_id
    emulator.faults.clear()
    emulator.work_seconds = 3600
    running = kling.submit(job(JobState.SUBMITTED, n=8))
    await running.accepted()
    found[JobState.SUBMITTED] = running.external_task_id
    waiting = kling.submit(job(JobState.INTENT, n=2))
    await asyncio.sleep(1)
    found[JobState.INTENT] = waiting.external_task_id
    assert [each.record for each in await kling.aclose()] == [running.record]
    assert isinstance(waiting.error, NotSubmitted)
    return found


@virtual_time
async def test_every_state_of_a_journal_is_resumed(tmp_path: Path) -> None:
    """Every unsaved job that has not failed gets its one task, oldest first, and is paid once."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path, "retry_timeout": 5.0}) as (emulator, kling):
        found = await leave_every_state(kling, emulator, tmp_path / "photos")
        async with SQLiteStore(path) as journal:
            counts = await journal.counts()
        assert set(counts.values()) == {1}
        await kling.aclose()
        async with another(emulator, journal=path, budget=8 + 8 + 8 + 64 + 16) as again:
            futures = [future async for future in again.resume()]
            for future in futures:
                await (await future).save(tmp_path)
            assert {future.external_task_id for future in futures} == set(found.values())
            assert [future async for future in again.resume()] == []
            assert again.stats.units_due == 16  # only the intent still needed a task
            with pytest.raises(BudgetExceeded, match="0 of 104 units left"):  # all runs of a journal count
                await again.expand(PHOTO, Ratios(left=0.5))
            assert again._slots.held == 0
        assert set(emulator.account.accepted.values()) == {1}
        async with SQLiteStore(path) as journal:
            counts = await journal.counts()
            assert counts == dict.fromkeys(JobState, 0) | {
                JobState.DONE: 5,
                JobState.FAILED: 1,
                JobState.REJECTED: 1,
                JobState.INTENT: 1,  # the one beyond the budget
            }


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: shutil.copy(PHOTO.with_name("coffee.jpg"), p)]
)
@virtual_time
async def test_a_lost_or_edited_photo_loses_no_task(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """Only a job that was never sent needs its photo, and its error says what is wrong."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path, "retry_timeout": 5.0}) as (emulator, kling):
        found = await leave_every_state(kling, emulator, tmp_path / "photos")
        for photo in (tmp_path / "photos").glob("*.jpg"):
            damage(photo)
        await kling.aclose()
        async with another(emulator, journal=path) as again:
            futures = {future.external_task_id: future async for future in again.resume()}
            for state, any_id in found.items():
                error = await error_of(futures[any_id])
                assert isinstance(error, ImageError) if state is JobState.INTENT else error is None
        assert len(emulator.account.tasks) == 5


@virtual_time
async def test_mapping_a_job_again_without_its_photo_names_its_task(tmp_path: Path) -> None:
    """With a journal, the error names the task that was already paid, so that it can be attached."""
    photo = Path(shutil.copy(PHOTO, tmp_path))
    request = ExpandRequest(photo, WIDER, key="k")
    async with emulated({"journal": tmp_path / "run.db"}) as (_, kling):
        paid = await kling.expand(request)
        photo.unlink()  # noqa: ASYNC240 - one call
        (again,) = [outcome async for outcome in kling.map([request])]
        (other,) = [outcome async for outcome in kling.map([evolve(request, key="other")])]
    assert isinstance(again.error, ImageError)
    assert again.error.task_id == paid.task_id
    assert isinstance(other.error, ImageError)
    assert other.error.task_id is None


@virtual_time
async def test_a_job_without_task_or_photo_raises_not_submitted(tmp_path: Path) -> None:
    """If a photo was bytes, the existing task is followed, and a job without a task raises `NotSubmitted`."""
    path, photo = tmp_path / "run.db", PHOTO.read_bytes()
    options: dict[str, Any] = {"journal": path, "retry_timeout": 5.0, "max_in_flight": 1}
    async with emulated(options, work_seconds=3600) as (emulator, kling):
        emulator.faults.chance("query", "reset", 1)
        unknown = []
        for key, fault in (("lost", "reset"), ("there", "reset_after")):
            emulator.faults.script("create", fault)
            with pytest.raises(SubmissionUnknown) as caught:
                await kling.expand(photo, WIDER, key=key)
            unknown.append(caught.value.external_task_id)
        emulator.faults.clear()
        running = kling.submit(photo, WIDER, key="running")
        await running.accepted()
        waiting = kling.submit(photo, WIDER, key="waiting")
        await asyncio.sleep(1)
        await kling.aclose()
        async with another(emulator, journal=path) as again:
            futures = {future.external_task_id: future async for future in again.resume()}
            assert isinstance(await error_of(futures[unknown[0]]), NotSubmitted)
            assert isinstance(await error_of(futures[waiting.external_task_id]), NotSubmitted)
            assert (await futures[unknown[1]]).task_id
            assert (await futures[running.external_task_id]).task_id == running.task_id
        assert len(emulator.account.tasks) == 2


@virtual_time
async def test_an_uncertain_create_whose_photo_is_gone_raises_image_error(tmp_path: Path) -> None:
    """An uncertain create that made no task raises `ImageError` if its photo is gone."""
    path, photo = tmp_path / "run.db", tmp_path / "cat.jpg"
    shutil.copy(PHOTO, photo)
    async with emulated({"journal": path, "retry_timeout": 5.0}) as (emulator, kling):
        emulator.faults.script("create", Fault("reset", times=9))
        emulator.faults.chance("query", "reset", 1)
        with pytest.raises(SubmissionUnknown):
            await kling.expand(photo, WIDER)
        emulator.faults.clear()
        photo.unlink()
        await kling.aclose()
        async with another(emulator, journal=path) as again:
            (future,) = [future async for future in again.resume()]
            assert isinstance(await error_of(future), ImageError)
        assert emulator.account.tasks == {}


@pytest.mark.parametrize("photo", [PHOTO, PHOTO.read_bytes()], ids=["path", "bytes"])
@virtual_time
async def test_a_deadline_during_an_uncertain_create_raises_unknown(tmp_path: Path, photo: Any) -> None:
    """At the deadline, a job that an earlier run may have sent raises `SubmissionUnknown`."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path, "retry_timeout": 5.0, "max_in_flight": 1}) as (emulator, kling):
        emulator.faults.script("create", "reset_after")
        emulator.faults.chance("query", "reset", 1)
        with pytest.raises(SubmissionUnknown):
            await kling.expand(photo, WIDER, key="cat")
        slots = Slots(1)
        slots.force_acquire(1)
        await kling.aclose()
        async with another(emulator, journal=path, slots=slots) as again:
            (future,) = [future async for future in again.resume(deadline=3)]
            await future.wait()
            assert isinstance(future.error, SubmissionUnknown)
            assert now() < 60
            assert len(emulator.account.tasks) == 1


@virtual_time
async def test_closing_during_an_uncertain_create_raises_unknown(tmp_path: Path) -> None:
    """A client that closes before an uncertain create is settled raises `SubmissionUnknown`."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path, "retry_timeout": 5.0}) as (emulator, kling):
        emulator.faults.script("create", "reset_after")
        emulator.faults.chance("query", "reset", 1)
        with pytest.raises(SubmissionUnknown):
            await kling.expand(PHOTO, WIDER)
        await kling.aclose()
        async with another(emulator, journal=path) as again:
            (future,) = [future async for future in again.resume()]
            await asyncio.sleep(1)
        assert isinstance(future.error, SubmissionUnknown)
        assert again.stats.unknown == 1


@virtual_time
async def test_without_a_journal_there_is_nothing_to_resume() -> None:
    """Without a journal, `resume` yields nothing."""
    async with emulated() as (_, kling):
        assert [future async for future in kling.resume()] == []


@virtual_time
async def test_a_budget_counts_every_attempt_of_earlier_runs(tmp_path: Path) -> None:
    """With a journal, the budget covers all runs together, including jobs that ran again under given ids."""
    journal = {"journal": tmp_path / "run.db"}
    async with emulated() as (emulator, _):
        async with another(emulator, **journal) as kling:
            await kling.expand(PHOTO, WIDER, external_task_id="first")
            await kling.expand(PHOTO, WIDER, external_task_id="second", fresh=True)
        async with another(emulator, **journal, budget=16) as later:
            assert isinstance(await error_of(later.submit(PHOTO, Ratios(up=0.5))), BudgetExceeded)
        assert emulator.account.units_billed == 16


@pytest.mark.parametrize("read", [Path, Path.read_bytes])
@pytest.mark.parametrize("fault", ["ok", "reset_after", "reset"])
@virtual_time
async def test_a_resumed_job_that_costs_nothing_releases_its_units(
    tmp_path: Path, fault: str, read: Callable[[Path], Any]
) -> None:
    """The units of an earlier run's task are free again if it fails, has failed meanwhile or is absent."""
    journal = {"journal": tmp_path / "run.db"}
    async with emulated(work_seconds=50) as (emulator, _):
        async with another(emulator, **journal, retry_timeout=5.0) as kling:
            emulator.faults.script("create", fault)
            emulator.faults.chance("query", "reset", 1)
            job = kling.submit(read(PHOTO), WIDER, prompt=MODERATED)
            await asyncio.sleep(200 if fault == "reset_after" else 20)
        assert isinstance(job.error, SubmissionUnknown | ClientClosed)
        emulator.faults.clear()
        async with another(emulator, **journal, budget=8) as later:
            for future in [future async for future in later.resume()]:
                assert await error_of(future)
            await asyncio.sleep(0)
            await later.expand(PHOTO, Ratios(up=0.5))
            assert later.stats.units_due == emulator.account.units_billed == 8


@pytest.mark.parametrize("fault", ["reset", "reset_after"])
@pytest.mark.parametrize("durable", [True, False])
@virtual_time
async def test_a_job_submitted_again_after_an_unknown_end_is_counted_once(
    tmp_path: Path, fault: str, *, durable: bool
) -> None:
    """If a job ends with `SubmissionUnknown`, its next submission takes over the units and the task."""
    options: dict[str, Any] = {"journal": tmp_path / "run.db"} if durable else {}
    async with emulated(options | {"budget": 16, "retry_timeout": 5.0}) as (emulator, kling):
        emulator.faults.script("create", fault)
        emulator.faults.chance("query", "reset", 1)
        assert isinstance(await error_of(kling.submit(PHOTO, WIDER, key="cat")), SubmissionUnknown)
        emulator.faults.clear()
        await kling.expand(PHOTO, WIDER, key="cat")
        assert kling.stats.units_due == kling.stats.units_billed == 8
        await kling.expand(PHOTO, Ratios(up=0.5))
        assert isinstance(await error_of(kling.submit(PHOTO, Ratios(up=0.6))), BudgetExceeded)
        assert emulator.account.units_billed == 16


@virtual_time
async def test_a_job_that_cannot_be_encoded_takes_no_units() -> None:
    """A request that cannot be written as JSON leaves the budget as it was."""
    async with emulated({"budget": 8}) as (_, kling):
        assert "int" in str(await error_of(kling.submit(PHOTO, WIDER, extra={"seed": 10**5000})))
        await kling.expand(PHOTO, WIDER)


# ------------------------------------------------------------------ a journal that breaks


@virtual_time
async def test_a_journal_lost_during_the_create_costs_no_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The result of a paid task is delivered, and the log names the records that are missing."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path}) as (emulator, kling):
        emulator.faults.script("create", Fault("slow_headers", seconds=5))
        future = kling.submit(PHOTO, WIDER)
        await wait_for(lambda: emulator.account.tasks)
        path.unlink()
        assert (await future).task_id in emulator.account.tasks
        assert kling.stats.units_due == 8
    assert caplog.text.count("the state of a job could not be recorded") == 2  # its task, and its end


@virtual_time
async def test_a_create_is_sent_only_after_its_intent_is_recorded(tmp_path: Path) -> None:
    """A create is sent only after its intent is in the journal."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path}) as (emulator, kling):
        path.unlink()
        assert "journal" in str(await error_of(kling.submit(PHOTO, WIDER))).lower()
        assert "create" not in emulator.account.requests
        assert kling.stats.units_due == 0


# ------------------------------------------------------------------ money


@virtual_time
async def test_a_budget_is_never_exceeded() -> None:
    """Of many concurrent jobs, those beyond the budget are refused before anything is sent."""
    async with emulated({"budget": 50}) as (emulator, kling):
        requests = [ExpandRequest(PHOTO, WIDER, n=1 + i % 3) for i in range(12)]
        outcomes = [outcome async for outcome in kling.map(requests)]
        refused = [outcome for outcome in outcomes if outcome.error]
        assert refused
        assert all(isinstance(outcome.error, BudgetExceeded) for outcome in refused)
        assert emulator.account.units_billed == kling.stats.units_due == kling.stats.units_billed <= 50
        assert kling.stats.units_due + 8 > 50 - 16
        assert emulator.account.requests["create"] == len(requests) - len(refused)


@virtual_time
async def test_failed_and_refused_tasks_release_their_units() -> None:
    """Failed and refused tasks cost nothing, so their units can be used by other jobs."""
    async with emulated({"budget": 16}) as (emulator, kling):
        for prompt in (MODERATED, "emulate-1301", "emulate-invalid-pixel"):
            with pytest.raises(KlingError):
                await kling.expand(PHOTO, WIDER, n=2, prompt=prompt)
            await asyncio.sleep(0)
            assert kling.stats.units_due == 0
        await kling.expand(PHOTO, WIDER, n=2)
        with pytest.raises(BudgetExceeded, match=r"cover the next job \(8 units\), got 0 of \d+ units left"):
            await kling.expand(PHOTO, WIDER)
        assert emulator.account.units_billed == kling.stats.units_billed == 16


@virtual_time
async def test_units_of_an_uncertain_create_stay_reserved() -> None:
    """Units stay reserved for a create that may have been accepted."""
    async with emulated({"budget": 8}) as (emulator, kling):
        emulator.faults.script("create", Fault("slow_headers", seconds=20))
        future = kling.submit(PHOTO, WIDER)
        await wait_for(lambda: emulator.account.tasks)
        await kling.aclose()
        assert isinstance(future.error, SubmissionUnknown)
        assert kling.stats.units_due == 8
        assert (kling.stats.unknown, kling._slots.held) == (1, 0)


@virtual_time
async def test_more_pictures_than_slots_are_refused_at_once() -> None:
    """A job with more pictures than slots is refused, because it would wait forever."""
    async with emulated({"max_in_flight": 2}) as (emulator, kling):
        with pytest.raises(InvalidRequest, match="max_in_flight"):
            await kling.expand(PHOTO, WIDER, n=3)
        assert emulator.account.requests == {}


# ------------------------------------------------------------------ slots


@virtual_time
async def test_slots_are_held_until_the_end_is_noticed() -> None:
    """The next create is sent when the end of the first task is noticed, not when it happens."""
    client: dict[str, Any] = {"max_in_flight": 2, "schedule": NeverPolls()}
    async with emulated(client, slots=2, work_seconds=10) as (emulator, kling):
        first = kling.submit(PHOTO, WIDER, n=2)
        await first.accepted()  # photos load in threads: of two at once either may come first
        second = kling.submit(PHOTO, WIDER)
        await asyncio.sleep(60)
        assert (len(emulator.account.tasks), kling.stats.waiting) == (1, 1)
        kling._poller.deliver(await kling.get(first.any_id))
        await second.accepted()
        assert now() < 61
        assert emulator.account.refusals == {}


@virtual_time
async def test_two_clients_share_slots() -> None:
    """Two clients with shared slots stay within one limit, and neither is refused."""
    slots = Slots(9)
    async with (
        emulated({"slots": slots}, slots=9, work_seconds=10) as (emulator, kling),
        another(emulator, slots=slots) as other,
    ):
        jobs = [each.expand(PHOTO, WIDER, n=n) for each in (kling, other) for n in (1, 2, 3, 4, 5)]
        await asyncio.gather(*jobs)
        assert emulator.account.refusals == {}
        assert 5 < emulator.account.peak_slots <= 9
        assert (slots.held, slots.running) == (0, 0)


@virtual_time
async def test_many_waiting_jobs_send_few_creates() -> None:
    """While other programs hold all slots, many waiting jobs send only a few creates."""
    async with emulated(slots=3, work_seconds=100) as (emulator, kling):
        await kling.create(PHOTO, WIDER, n=3)
        async with another(emulator) as other:
            await asyncio.gather(*(other.expand(PHOTO, WIDER, n=2) for _ in range(6)))
            assert len(emulator.account.tasks) == 7
            assert emulator.account.refusals[1303] < 150


@virtual_time
async def test_a_job_without_room_is_passed_by_smaller_ones_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job of more pictures than the account allows stops no smaller job, and a warning names it."""
    async with emulated(slots=4, work_seconds=20) as (_, kling):
        large = kling.submit(PHOTO, WIDER, n=6)
        await asyncio.gather(*(kling.expand(PHOTO, Ratios(right=each / 10)) for each in range(1, 5)))
        await asyncio.sleep(2)  # it is tried alone once more
        assert large.cancel()
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert f"job {large.record.number} (" in warnings[0]
    assert "6 pictures found no room although this client ran no other task" in warnings[0]


@virtual_time
async def test_a_create_is_retried_while_others_hold_the_slots() -> None:
    """While other programs hold all slots, a create is retried later and succeeds once."""
    async with emulated(slots=3, work_seconds=100) as (emulator, kling):
        await kling.create(PHOTO, WIDER, n=3)
        async with another(emulator) as other:
            result = await other.expand(PHOTO, WIDER, n=2)
            assert result.task_id in emulator.account.tasks
            assert 2 <= emulator.account.refusals[1303] < 60
            assert len(emulator.account.tasks) == 2
            assert other._slots.held == 0


@virtual_time
async def test_a_higher_priority_goes_first() -> None:
    """The job with the highest priority gets the next slot, and equal priorities are served in order."""
    async with emulated({"max_in_flight": 1}, slots=1) as (emulator, kling):
        first = kling.submit(PHOTO, WIDER, prompt="first")
        await first.accepted()
        waiting = [kling.submit(PHOTO, WIDER, prompt="low", priority=-1)]
        await asyncio.sleep(0.1)
        waiting += [kling.submit(PHOTO, WIDER, prompt="usual")]
        await asyncio.sleep(0.1)
        waiting += [kling.submit(PHOTO, WIDER, prompt="high", priority=5)]
        await asyncio.gather(*waiting)
        prompts = [made.prompt for made in emulator.account.tasks.values()]
        assert prompts == ["first", "high", "usual", "low"]


@virtual_time
async def test_maps_take_turns() -> None:
    """A long map does not block a short one that starts later."""
    async with emulated({"max_in_flight": 1}, slots=1, work_seconds=1) as (emulator, kling):

        async def mapped(prompt: str, number: int, pause: float) -> None:
            await asyncio.sleep(pause)
            requests = [ExpandRequest(PHOTO, WIDER, prompt) for _ in range(number)]
            async for outcome in kling.map(requests, prefetch=20):
                assert outcome.error is None

        await asyncio.gather(mapped("many", 20, 0), mapped("few", 3, 5))
        prompts = [made.prompt for made in emulator.account.tasks.values()]
        assert prompts.count("few") == 3
        assert max(index for index, prompt in enumerate(prompts) if prompt == "few") < 12


@virtual_time
async def test_a_map_that_stops_cancels_unsent_jobs() -> None:
    """After `max_failures` nothing more is created, and each cancelled job has an outcome."""
    async with emulated({"max_in_flight": 1}, slots=1) as (emulator, kling):
        requests = [ExpandRequest(PHOTO, WIDER, MODERATED) for _ in range(10)]
        outcomes = [outcome async for outcome in kling.map(requests, max_failures=2, prefetch=5)]
        assert sum(isinstance(outcome.error, TaskFailed) for outcome in outcomes) in (2, 3)
        assert sum(isinstance(outcome.error, NotSubmitted) for outcome in outcomes) >= 2
        assert len(outcomes) < 10
        assert len(emulator.account.tasks) <= 3


# ------------------------------------------------------------------ deadlines


@virtual_time
async def test_a_deadline_while_waiting_for_a_slot_sends_nothing() -> None:
    """At a deadline before the create, no task exists, nothing is due, and the job leaves the queue."""
    async with emulated({"max_in_flight": 1, "budget": 100}, slots=1, work_seconds=100) as (emulator, kling):
        first = kling.submit(PHOTO, WIDER)
        await first.accepted()
        late = kling.submit(PHOTO, WIDER, deadline=10)
        with pytest.raises(DeadlineExceeded) as caught:
            await late
        assert now() == pytest.approx(10, abs=1.0)
        await late.wait()
        assert "no task exists" in str(late.error)
        assert (caught.value.task_id, kling.stats.units_due) == (None, 8)
        await first
        await asyncio.sleep(1000)
        assert len(emulator.account.tasks) == 1


@virtual_time
async def test_a_deadline_after_acceptance_leaves_the_task() -> None:
    """After the deadline, the error has the ids, and awaiting the future again has no time limit."""
    async with emulated(work_seconds=1000) as (emulator, kling):
        future = kling.submit(PHOTO, WIDER, deadline=10)
        with pytest.raises(DeadlineExceeded) as caught:
            await future
        assert (caught.value.task_id,) == tuple(emulator.account.tasks)
        assert caught.value.external_task_id == future.external_task_id
        assert now() == pytest.approx(10, abs=0.5)
        assert (await future).task_id == caught.value.task_id


@virtual_time
async def test_a_deadline_bounds_a_second_attempt_too() -> None:
    """After an earlier run's failed task is found, the wait for a slot still ends at the deadline."""
    async with emulated() as (emulator, kling):
        with pytest.raises(TaskModerated):
            await kling.expand(PHOTO, WIDER, key="cat", prompt=MODERATED)
        slots = Slots(1)
        async with another(emulator, slots=slots) as other:
            emulator.faults.script("query", Fault("slow_headers", seconds=5))
            began = now()
            future = other.submit(PHOTO, WIDER, key="cat", prompt=MODERATED, deadline=10)
            await wait_for(lambda: emulator.account.requests["create"] == 2)
            slots.force_acquire(1)
            await future.wait(timeout=100)
            assert isinstance(future.error, DeadlineExceeded)
            assert now() - began == pytest.approx(10)
            await asyncio.sleep(0)
            assert emulator.account.requests["create"] == 2
            assert slots.held == 1


@virtual_time
async def test_a_deadline_during_the_create_keeps_the_units_reserved() -> None:
    """A create that may have been accepted keeps its units reserved."""
    async with emulated({"budget": 8}) as (emulator, kling):
        emulator.faults.script("create", Fault("slow_headers", seconds=60))
        future = kling.submit(PHOTO, WIDER, deadline=5)
        await future.wait()
        assert isinstance(future.error, SubmissionUnknown)
        assert kling.stats.units_due == 8
        assert now() <= 6


# ------------------------------------------------------------------ the end of a client


@virtual_time
async def test_closing_before_the_first_step_ends_every_future() -> None:
    """A job that never began is cancelled, and awaiting it ends."""
    async with emulated() as (emulator, kling):
        future = kling.submit(PHOTO, WIDER)
        assert await kling.aclose() == ()
        assert isinstance(await error_of(future), NotSubmitted)
        assert emulator.account.requests == {}
        check_closed(kling)


@virtual_time
async def test_closing_with_wait_lets_all_jobs_end() -> None:
    """Closing with `wait` sends waiting jobs, lets running jobs end, and refuses new ones."""
    async with emulated({"max_in_flight": 2}, slots=2, work_seconds=10) as (emulator, kling):
        futures = [kling.submit(PHOTO, WIDER) for _ in range(6)]
        closing = asyncio.create_task(kling.aclose(wait=True))
        await asyncio.sleep(1)
        with pytest.raises(ClientClosed):
            kling.submit(PHOTO, WIDER)
        assert await closing == ()
        assert all(future.task and future.task.status is Status.SUCCEED for future in futures)
        assert emulator.account.units_billed == 48
        check_closed(kling)


@virtual_time
async def test_a_snapshot_in_the_step_of_the_close_is_recorded(tmp_path: Path) -> None:
    """A snapshot that arrives in the same step as the close is still recorded."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path, "schedule": NeverPolls()}) as (emulator, kling):
        future = kling.submit(PHOTO, WIDER)
        await future.accepted()
        await asyncio.sleep(10)
        snapshot = await kling.get(future.any_id)
        kling._poller.deliver(snapshot)
        await kling.aclose()
        async with SQLiteStore(path) as journal:
            (job,) = [job async for job in journal.jobs()]
        assert (job.state, job.task) == (JobState.SUCCEEDED, snapshot)
        assert len(emulator.account.tasks) == 1


@virtual_time
async def test_closing_waits_briefly_for_a_create_in_progress() -> None:
    """Closing waits briefly for the response to a create, so that the task can be attached again."""
    async with emulated() as (emulator, kling):
        emulator.faults.script("create", Fault("slow_headers", seconds=5))
        future = kling.submit(PHOTO, WIDER)
        await wait_for(lambda: emulator.account.tasks)
        assert [each.record for each in await kling.aclose()] == [future.record]
        assert isinstance(future.error, ClientClosed)
        assert (future.task_id,) == tuple(emulator.account.tasks)
        async with another(emulator) as again:
            assert (await again.attach(future.any_id)).task_id == future.task_id


@virtual_time
async def test_only_a_waiting_job_can_be_cancelled() -> None:
    """A job can be cancelled only while it waits, not once it runs or has ended, or if it was attached."""
    async with emulated({"max_in_flight": 1}, slots=1) as (emulator, kling):
        running = kling.submit(PHOTO, WIDER)
        await running.accepted()
        waiting = kling.submit(PHOTO, WIDER)
        await asyncio.sleep(0.1)
        assert running.cancel() is False
        assert TaskFuture("foreign").cancel() is False
        assert waiting.cancel() is True
        assert isinstance(await error_of(waiting), NotSubmitted)
        assert waiting.cancel() is False
        await running
        assert len(emulator.account.tasks) == 1


# ------------------------------------------------------------------ what is refused before it is sent


@frozen
class Broken:
    """A user-defined geometry that fails."""

    needs_size: ClassVar[bool] = False

    def ratios(self, _width: int, _height: int) -> Ratios:
        raise ZeroDivisionError("its own fault")


@virtual_time
async def test_a_bug_ends_the_job() -> None:
    """Any exception within a job ends it, and is the cause of the error."""
    async with emulated() as (emulator, kling):
        error = await error_of(kling.submit(PHOTO, Broken()))
        assert isinstance(error, KlingError)
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert emulator.account.requests == {}


@virtual_time
async def test_a_photo_at_a_url_has_no_known_size() -> None:
    """For a photo at a URL, a geometry that needs its size is refused, but ratios and directions are sent."""
    url = "https://example.com/a.jpg"
    async with emulated(fetch_timeout=0) as (emulator, kling):
        with pytest.raises(InvalidRequest, match="use Ratios"):
            await kling.expand(url, ToAspect("16:9"))
        assert emulator.account.requests == {}
        assert (await kling.create(url, WIDER)).task_id in emulator.account.tasks
        assert (await kling.create(url, Towards("left,right"))).task_id in emulator.account.tasks
        sides = [made.ratios for made in emulator.account.tasks.values()]
        assert sides == [(0, 0, 0, 0.5), (0, 0, 0.25, 0.25)]


@virtual_time
async def test_a_create_that_was_not_sent_releases_its_units() -> None:
    """A create that was certainly not sent releases its units, and a later run of the journal may send it."""
    async with emulated({"budget": 8, "retry_timeout": 5.0}) as (emulator, kling):
        async with emulator.unreachable():
            assert isinstance(await error_of(kling.submit(PHOTO, WIDER)), TransportError)
        assert kling.stats.units_due == 0
        assert (await kling.expand(PHOTO, WIDER)).task_id


@virtual_time
async def test_a_refused_job_can_be_submitted_again(tmp_path: Path) -> None:
    """The journal knows that no task exists, so the same job is sent again under the same id."""
    async with emulated({"journal": tmp_path / "run.db"}) as (emulator, kling):
        emulator.faults.script("create", Fault("error", code=1102))
        first = kling.submit(PHOTO, WIDER)
        assert "1102" in str(await error_of(first))
        second = kling.submit(PHOTO, WIDER)
        await second
        assert first.external_task_id == second.external_task_id
        assert list(emulator.account.accepted.values()) == [1]


@virtual_time
async def test_a_request_with_another_prompt_is_another_job() -> None:
    """A copy of a request with another prompt is another job."""
    async with (
        loopback(refuses(1200, 400), task("1", "succeed")) as server,
        KlingClient(api_key="k", base_url=server.url) as kling,
    ):
        request = ExpandRequest(PHOTO, WIDER, "a cat")
        with pytest.raises(KlingError):
            await kling.expand(request)
        assert (await kling.expand(evolve(request, prompt="a dog"))).task_id == "1"


def test_logging_is_quiet_by_default() -> None:
    """The library adds no handler to its loggers. A new interpreter has none from the commands."""
    code = "import logging, kling_expand.client; print(logging.getLogger('kling_expand').handlers)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


# ------------------------------------------------------------------ cancelled


@pytest.mark.parametrize("leave", ["reader", "aclose", "cancel", "expand", "group"])
@virtual_time
async def test_a_job_that_waits_after_a_1302_can_be_cancelled(leave: str) -> None:
    """A job that waits after a 1302 can be cancelled in any way. Nothing is sent, and no units stay due."""
    async with emulated() as (emulator, kling):
        emulator.faults.script("create", *[Fault("error", code=1302, retry_after="120")] * 9)

        async def read() -> None:
            async for _ in kling.map(ExpandRequest(PHOTO, Ratios(right=0.01 * i + 0.1)) for i in range(20)):
                pass

        async def group() -> None:
            async with asyncio.TaskGroup() as tasks:
                for number in range(5):
                    tasks.create_task(kling.expand(PHOTO, Ratios(right=0.1 + number / 10)))

        future = None if leave in {"reader", "expand", "group"} else kling.submit(PHOTO, WIDER)
        work = {"reader": read, "group": group}.get(leave, lambda: kling.expand(PHOTO, WIDER))
        task = asyncio.create_task(work()) if future is None else None
        await asyncio.sleep(5)
        assert emulator.account.requests["create"] > 0
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif leave == "cancel":
            assert future is not None
            assert future.cancel() is True
        else:
            began = now()
            await kling.aclose()
            assert now() - began < 1
        await asyncio.sleep(0.1)
        assert future is None or isinstance(future.error, NotSubmitted)
        await asyncio.sleep(600)
        assert (len(emulator.account.tasks), kling.stats.waiting, kling.stats.units_due) == (0, 0, 0)
        assert (kling._slots.held, kling._slots.running) == (0, 0)


@virtual_time
async def test_a_cancelled_call_names_the_running_task(caplog: pytest.LogCaptureFixture) -> None:
    """A call that is cancelled after the create logs both ids and adds them to the exception."""
    async with emulated(work_seconds=100) as (emulator, kling):
        caller = asyncio.create_task(kling.expand(PHOTO, WIDER))
        await wait_for(lambda: kling.stats.running)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await caller
        (task,) = emulator.account.tasks.values()
        (note,) = caught.value.__notes__
        for any_id in (task.task_id, task.external_task_id):
            assert any_id in note
            assert any_id in caplog.text
    assert f"1 task continues at the service: {task.task_id}" in caplog.text


@virtual_time
async def test_cancelling_one_of_two_callers_keeps_the_job(tmp_path: Path) -> None:
    """If one of two callers of the same job is cancelled, the other gets the one task."""
    async with emulated({"journal": tmp_path / "run.db", "max_in_flight": 1}, work_seconds=10) as (
        emulator,
        kling,
    ):
        first = kling.submit(PHOTO, Ratios(left=0.5))
        await first.accepted()
        callers = [asyncio.create_task(kling.expand(PHOTO, WIDER)) for _ in range(2)]
        await asyncio.sleep(1)
        callers[0].cancel()
        assert (await callers[1]).task_id in emulator.account.tasks
        assert callers[0].cancelled()
        await first
        assert len(emulator.account.tasks) == 2


# ------------------------------------------------------------------ money, over attempts and runs


@virtual_time
async def test_a_second_attempt_is_paid_from_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new attempt after a failed task counts against the budget."""
    async with emulated() as (emulator, kling):
        with pytest.raises(TaskModerated):
            await kling.expand(PHOTO, WIDER, key="cat", prompt=MODERATED)
        monkeypatch.setattr(prompt_triggers, "FAILURES", {})
        async with another(emulator, budget=8) as other:
            await other.expand(PHOTO, WIDER, key="cat", prompt=MODERATED)
            assert other.stats.units_due == 8
            with pytest.raises(BudgetExceeded):
                await other.expand(PHOTO, WIDER, key="dog")
            assert other.stats.units_billed == emulator.account.units_billed == 8


@virtual_time
async def test_a_budget_counts_all_runs_of_its_journal(tmp_path: Path) -> None:
    """The budget includes the spend of earlier runs, but not failed or refused jobs."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path, "budget": 32}) as (emulator, kling):
        await kling.expand(PHOTO, WIDER)
        await kling.expand(PHOTO, WIDER, fresh=True)
        for prompt in (MODERATED, "emulate-1301"):
            with pytest.raises(KlingError):
                await kling.expand(PHOTO, WIDER, prompt=prompt)
        await kling.aclose()
        async with another(emulator, journal=path, budget=32) as again:
            await again.expand(PHOTO, WIDER)  # its task is known, so it costs nothing
            await again.expand(PHOTO, Ratios(left=0.5), n=2)
            with pytest.raises(BudgetExceeded, match=r"0 of \d+ units left"):
                await again.expand(PHOTO, Ratios(up=0.5))
            assert again.stats.units_due == 16
        async with again:  # the reopened client has not spent twice
            with pytest.raises(BudgetExceeded, match=r"0 of \d+ units left"):
                await again.expand(PHOTO, Ratios(up=0.5))
        assert emulator.account.units_billed == 32


# ------------------------------------------------------------------ made again


@pytest.mark.parametrize("journal", [False, True])
@virtual_time
async def test_fresh_makes_an_ended_job_again(tmp_path: Path, *, journal: bool) -> None:
    """With `fresh`, an ended job becomes a new task. Without it, the earlier result is returned."""
    options: dict[str, Any] = {"journal": tmp_path / "run.db"} if journal else {}
    async with emulated(options) as (emulator, kling):
        request = ExpandRequest(PHOTO, WIDER, key="cat")
        first = await kling.expand(request)
        assert (await kling.expand(request)).task_id == first.task_id
        second = await kling.expand(request, fresh=True)
        assert len({first.task_id, second.task_id}) == 2
        if journal:
            assert (await kling.expand(request)).task_id == second.task_id
        third = await kling.expand(request, fresh=True)
        assert len(emulator.account.tasks) == 3
        assert emulator.account.units_billed == kling.stats.units_due == 24
        assert third.external_task_id not in {first.external_task_id, second.external_task_id}


@virtual_time
async def test_expired_pictures_can_be_made_again(tmp_path: Path) -> None:
    """After 30 days the result has expired, and `fresh` makes new pictures."""
    async with emulated({"journal": tmp_path / "run.db"}) as (emulator, kling):
        result = await kling.expand(PHOTO, WIDER)
        emulator.advance(31 * 86400)
        with pytest.raises(ResultExpired):
            await (await kling.expand(PHOTO, WIDER)).save(tmp_path)
        again = await kling.expand(PHOTO, WIDER, fresh=True)
        assert again.task_id != result.task_id
        assert len(await again.save(tmp_path)) == 1


@virtual_time
async def test_pictures_that_are_listed_late_are_not_lost(tmp_path: Path) -> None:
    """A success with fewer pictures than ordered is read again by each save and by the next submission."""
    async with emulated({"journal": tmp_path / "run.db"}, work_seconds=5, images_lag=90) as (emulator, kling):
        result = await kling.expand(PHOTO, WIDER, n=2)
        assert result.images == ()
        await asyncio.sleep(100)
        again = await kling.expand(PHOTO, WIDER, n=2)
        assert len(again.images) == 2
        assert await result.save(tmp_path) == await again.save(tmp_path)
        assert len((await kling.expand(PHOTO, WIDER, n=2)).files) == 2
        assert emulator.account.units_billed == 16


@virtual_time
async def test_fresh_does_not_repeat_an_open_job(tmp_path: Path) -> None:
    """`fresh` replaces only ended jobs, while an open job is followed and paid once."""
    async with emulated({"journal": tmp_path / "run.db"}, work_seconds=50) as (emulator, kling):
        first = kling.submit(PHOTO, WIDER)
        await first.accepted()
        second = kling.submit(PHOTO, WIDER, fresh=True)
        assert (await second).task_id == (await first).task_id
        assert len(emulator.account.tasks) == 1


@virtual_time
async def test_a_task_that_the_service_has_forgotten_can_be_made_again(tmp_path: Path) -> None:
    """If the service no longer has a task of the journal, `fresh` pays for another, and nothing else does."""
    journal = {"journal": tmp_path / "run.db"}
    async with emulated(journal, work_seconds=50) as (emulator, kling):
        task = await kling.create(PHOTO, WIDER)
        await kling.aclose()
        async with another(emulator, **journal) as later:
            assert (await later.submit(PHOTO, WIDER, fresh=True).accepted()).task_id == task.task_id
        emulator.advance(31 * 86400)
        async with another(emulator, **journal) as later:
            assert isinstance(await error_of(later.submit(PHOTO, WIDER)), TaskNotFound)
            again = await later.expand(PHOTO, WIDER, fresh=True)
            assert (await later.expand(PHOTO, WIDER)).task_id == again.task_id != task.task_id


# ------------------------------------------------------------------ resumed beside running jobs


@pytest.mark.parametrize("wait", [0.0, 0.02, 0.1, 1.0])
@virtual_time
async def test_resume_skips_jobs_that_this_client_follows(tmp_path: Path, wait: float) -> None:
    """`resume` skips the jobs that this client already sends, follows or queues."""
    raw = PHOTO.read_bytes()
    async with emulated({"journal": tmp_path / "run.db"}, work_seconds=5) as (emulator, kling):
        emulator.faults.script("create", Fault("slow_body", seconds=20))
        futures = [kling.submit(raw if i % 2 else PHOTO, Ratios(up=0.1 + i / 100)) for i in range(12)]
        await asyncio.sleep(wait)
        resumed = [future async for future in kling.resume()]
        for future in (*futures, *resumed):
            assert await error_of(future) is None
        assert resumed == []
        assert (len(emulator.account.tasks), emulator.account.units_billed) == (12, 96)
        assert (kling.stats.submitted, kling.stats.succeeded, int(kling.stats.units_billed)) == (12, 12, 96)
        assert (kling._slots.held, kling._slots.running) == (0, 0)


@virtual_time
async def test_a_job_that_ends_while_others_are_resumed_is_not_resumed(tmp_path: Path) -> None:
    """`resume` judges each job when its turn comes, so it sends none that was cancelled or failed since."""
    options = {"journal": tmp_path / "run.db", "max_in_flight": 1}
    first, second = ExpandRequest(PHOTO, WIDER), ExpandRequest(PHOTO, Ratios(up=0.5))
    fails = ExpandRequest(PHOTO, WIDER, prompt="emulate-risk-control")
    async with emulated(options, work_seconds=5) as (emulator, kling):
        await kling.submit(first).accepted()
        await asyncio.gather(*(kling.submit(each).recorded() for each in (second, fails)))
        await kling.aclose()
        async with another(emulator, **options) as later:
            resumed = []
            async for future in later.resume():
                resumed.append(await future.accepted())
                cancelled = later.submit(second)
                await cancelled.recorded()
                assert cancelled.cancel()
                assert isinstance(await error_of(later.submit(fails)), TaskFailed)
            assert len(resumed) == 1
            assert len(emulator.account.tasks) == 2


@pytest.mark.parametrize("code", [1000, 1002, 1100, 1101, 1102, 1103, 1304, 1201, 1301])
@virtual_time
async def test_a_job_refused_because_of_the_account_is_resumed(tmp_path: Path, code: int) -> None:
    """A job refused because of the account, key or permission is resumed, but an invalid request is not."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path}) as (emulator, kling):
        emulator.faults.script("create", *[Fault("error", code=code)] * 2)
        assert await error_of(kling.submit(PHOTO, WIDER)) is not None
        emulator.faults.clear()
        await kling.aclose()
        async with another(emulator, journal=path) as again:
            began = now()
            resumed = [future async for future in again.resume()]
            assert len(resumed) == (code not in {1201, 1301})
            for future in resumed:
                assert await error_of(future) is None
            assert now() - began < 30  # the refusal was certain, so there was no wait
        assert len(emulator.account.tasks) == len(resumed)


@virtual_time
async def test_a_job_that_cannot_be_resumed_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose photo was bytes cannot be resumed, as one warning and the job's own error say."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path, "max_in_flight": 1}, work_seconds=100) as (emulator, kling):
        await kling.submit(PHOTO, WIDER).accepted()
        waiting = kling.submit(PHOTO.read_bytes(), Ratios(up=0.5))
        file = io.BytesIO(PHOTO.read_bytes())
        unsent = [waiting, kling.submit(file, Ratios(up=0.6)), kling.submit(PHOTO, Ratios(up=0.7))]
        await asyncio.sleep(1)
        warned = [each.getMessage() for each in caplog.records if "a journal keeps no photos" in each.message]
        assert [str(waiting.external_task_id) in text for text in warned] == [True]
        await kling.aclose()
        closed = [await error_of(future) for future in unsent]
        resumable = [isinstance(error, NotSubmitted) and error.resumable for error in closed]
        assert resumable == [False, False, True]
        async with another(emulator, journal=path) as again:
            futures = [future async for future in again.resume()]
            errors = [await error_of(future) for future in futures]
            assert [type(error) for error in errors] == [type(None), NotSubmitted, NotSubmitted, type(None)]
        assert (
            f"job {waiting.external_task_id} cannot be resumed: its photo was given as bytes" in caplog.text
        )


@virtual_time
async def test_a_job_that_cannot_be_resumed_leaves_a_new_submission(tmp_path: Path) -> None:
    """A submission with its photo is sent after a resumed job without its photo has found no task."""
    options, raw = {"journal": tmp_path / "run.db"}, PHOTO.read_bytes()
    async with emulated(options) as (emulator, kling):
        emulator.faults.script("create", Fault("reset"))
        assert isinstance(await error_of(kling.submit(raw, WIDER, deadline=2)), SubmissionUnknown)
        await kling.aclose()
        async with another(emulator, **options) as again:
            (resumed,) = [future async for future in again.resume()]
            await asyncio.sleep(1)
            submitted = again.submit(raw, WIDER)
            assert isinstance(await error_of(resumed), NotSubmitted)
            assert await error_of(submitted) is None
        assert len(emulator.account.tasks) == 1


@virtual_time
async def test_a_refused_create_is_not_looked_up_after_a_restart(tmp_path: Path) -> None:
    """A job that waited for a slot when its client closed is sent as soon as it is resumed."""
    options = {"journal": tmp_path / "run.db", "max_in_flight": 9}
    async with emulated(options, slots=1, work_seconds=5) as (emulator, kling):
        await kling.submit(PHOTO, WIDER).accepted()
        refused = kling.submit(PHOTO, Ratios(up=0.5))
        await wait_for(lambda: emulator.account.refusals[1303])
        await asyncio.sleep(0.1)
        await kling.aclose()
        assert isinstance(await error_of(refused), NotSubmitted)
        await asyncio.sleep(10)
        began = now()
        async with another(emulator, **options) as later:
            assert [await error_of(future) async for future in later.resume()] == [None, None]
            assert now() - began < 10
        assert len(emulator.account.tasks) == 2


@virtual_time
@pytest.mark.parametrize("fault", [None, Fault("error", code=1302, retry_after="20")])
async def test_a_refused_create_is_not_looked_up_after_a_kill(tmp_path: Path, fault: Fault | None) -> None:
    """While a refused job waits, its journal says that no task exists, so a killed process loses no time."""
    events: list[Event] = []
    options = {"journal": tmp_path / "run.db", "max_in_flight": 9, "listener": events.append}
    async with emulated(options, slots=1, work_seconds=50) as (emulator, kling):
        await kling.submit(PHOTO, WIDER).accepted()
        if fault is not None:
            emulator.faults.script("create", *[fault] * 20)
        refused = kling.submit(PHOTO, Ratios(up=0.5))
        await wait_for(lambda: any(event.error for event in events))
        record = await kling.job(refused.external_task_id or "")
        assert record is not None
        assert (record.state, record.last_post_at) == (JobState.INTENT, None)


@virtual_time
async def test_a_job_cancelled_by_its_caller_is_not_resumed(tmp_path: Path) -> None:
    """A later run sends a job that a closing client has cancelled, but none that a caller has cancelled."""
    path = tmp_path / "run.db"
    async with emulated({"journal": path, "max_in_flight": 1}, work_seconds=5) as (emulator, kling):
        await kling.submit(PHOTO, WIDER).accepted()
        cancelled, kept = (kling.submit(PHOTO, Ratios(up=share)) for share in (0.5, 0.6))
        again = kling.submit(PHOTO, Ratios(up=0.7))
        await asyncio.gather(*(future.recorded() for future in (cancelled, kept, again)))
        for future in (cancelled, again):
            assert future.cancel()
        error = cancelled.exception()
        assert isinstance(error, NotSubmitted)
        assert not error.resumable
        again = kling.submit(PHOTO, Ratios(up=0.7))
        await again.recorded()
        await kling.aclose()
        async with another(emulator, journal=path) as later:
            resumed = {future.external_task_id: await error_of(future) async for future in later.resume()}
            assert [each.external_task_id in resumed for each in (cancelled, kept, again)] == [
                False,
                True,
                True,
            ]
            assert set(resumed.values()) == {None}
            assert len(emulator.account.tasks) == 3
            await later.expand(PHOTO, Ratios(up=0.5))
        assert len(emulator.account.tasks) == 4


@virtual_time
async def test_a_job_cancelled_while_it_is_recorded_is_as_promised(tmp_path: Path) -> None:
    """A later run does not send a job that was cancelled during its first write.

    If the client closes during that write, the error is resumable, as a later run sends the job.
    """

    class Slow(SQLiteStore):
        async def record_intent(self, *args: Any, **options: Any) -> Any:
            job = await super().record_intent(*args, **options)
            await asyncio.sleep(5)
            return job

    async with emulated() as (emulator, _), Slow(tmp_path / "run.db", clock=loop_clock) as store:
        async with another(emulator, journal=store) as kling:
            cancelled, closed = (kling.submit(PHOTO, Ratios(up=share)) for share in (0.5, 0.6))
            await asyncio.sleep(2)
            assert cancelled.cancel()
        errors = cancelled.error, closed.error
        assert [isinstance(error, NotSubmitted) and error.resumable for error in errors] == [False, True]
        async with another(emulator, journal=store) as later:
            (resumed,) = [future async for future in later.resume()]
            assert resumed.external_task_id == closed.external_task_id
            await resumed
        assert len(emulator.account.tasks) == 1


# ------------------------------------------------------------------ a restart in the middle of a create


@pytest.mark.parametrize("clock_moves", [0.0, -3600.0, 3600.0])
@pytest.mark.parametrize("appears", [3.0, 20.0, 34.0])
@virtual_time
async def test_the_wait_before_a_repeated_create_outlives_a_restart(
    tmp_path: Path, clock_moves: float, appears: float
) -> None:
    """After a restart, each job is one task, even if the service accepts ids twice and the clock was set."""

    def journal(clock: Callable[[], float]) -> SQLiteStore:
        def boot_clock() -> tuple[str, float]:
            return "this start", loop_clock()

        return SQLiteStore(tmp_path / "run.db", clock=clock, boot_clock=boot_clock)

    def set_clock() -> float:
        return loop_clock() + clock_moves

    async with (
        journal(loop_clock) as first,
        emulated({"journal": first}, allow_duplicates=True) as (emulator, kling),
    ):
        emulator.faults.script("create", Fault("late", seconds=appears))
        future = kling.submit(PHOTO, WIDER)
        await wait_for(lambda: emulator.account.requests["create"])
        job: Any = future.record.job
        job.task.cancel()  # as a crash would, it leaves the create in flight
        assert isinstance(await error_of(future), SubmissionUnknown)
        await kling.aclose()
        await first.aclose()
        async with (
            journal(set_clock) as second,
            another(emulator, journal=second, clock=set_clock) as again,
        ):
            (resumed,) = [future async for future in again.resume()]
            assert await error_of(resumed) is None
            await asyncio.sleep(100)
        assert list(emulator.account.accepted.values()) == [1]


# ------------------------------------------------------------------ a journal that was deleted


async def submit_six(kling: KlingClient) -> list[TaskFuture]:
    """Submit six jobs with and without a key, of which the last one fails."""
    futures = [kling.submit(PHOTO, Ratios(right=0.1 * i), key=f"job {i}") for i in range(1, 4)]
    futures += [kling.submit(PHOTO, Ratios(up=0.1 * i)) for i in range(1, 3)]
    return [*futures, kling.submit(PHOTO, WIDER, prompt="emulate-risk-control", key="fails")]


@pytest.mark.parametrize("waited", [2.0, 200.0], ids=["running", "ended"])
@pytest.mark.parametrize("list_code", [0, 1103], ids=["listed", "unlisted"])
@virtual_time
async def test_no_job_is_paid_again_after_its_journal_was_deleted(
    tmp_path: Path, waited: float, list_code: int
) -> None:
    """After the journal was deleted, every task is found again, although the service accepts ids twice."""
    path = tmp_path / "run.db"
    options: dict[str, Any] = {"allow_duplicates": True, "work_seconds": 60, "list_code": list_code}
    async with emulated({"journal": path}, **options) as (emulator, kling):
        before = await submit_six(kling)
        await asyncio.sleep(waited)
        await kling.aclose()
        path.unlink()
        async with another(emulator, journal=path) as again:
            after = await submit_six(again)
            await asyncio.gather(*(future.wait() for future in after))
        same = [one.task_id == other.task_id for one, other in zip(before, after, strict=True)]
        assert same[:5] == [True] * 5
        assert same[5] is (waited < 60)  # a task that has failed is followed by another attempt
        assert set(emulator.account.accepted.values()) == {1}
        assert len(emulator.account.tasks) == 6 + (waited > 60)


@virtual_time
async def test_a_new_journal_costs_one_list_request(tmp_path: Path) -> None:
    """A new journal lists the account's tasks once, and no job is looked up before its create."""
    journal = {"journal": tmp_path / "run.db", "max_in_flight": 1}
    before: list[dict[str, int]] = []
    async with emulated(journal) as (emulator, kling):
        emulator.service.on_task.append(lambda _: before.append(dict(emulator.account.requests)))
        futures = [kling.submit(PHOTO, Ratios(right=0.1 * i)) for i in range(1, 4)]
        await futures[0].accepted()
        assert before[0] == {"list": 1, "create": 1}
        await kling.aclose()
        async with another(emulator, **journal) as again:
            await again.submit(PHOTO, Ratios(right=0.4)).accepted()
        assert emulator.account.requests["list"] == 1


@virtual_time
async def test_cancelling_a_job_does_not_stop_the_listing(tmp_path: Path) -> None:
    """While a new journal lists the tasks, any job can be cancelled without stopping the others."""
    async with emulated({"journal": tmp_path / "run.db"}) as (emulator, kling):
        emulator.faults.script("list", Fault("slow_headers", seconds=5), Fault("slow_headers", seconds=5))
        futures = [kling.submit(PHOTO, Ratios(right=0.1 * i)) for i in range(1, 4)]
        await asyncio.sleep(2)
        assert futures[0].cancel()
        assert (await futures[1]).task_id in emulator.account.tasks
        assert (await futures[2]).task_id in emulator.account.tasks
        assert emulator.account.requests["create"] == 2


# ------------------------------------------------------------------ what earlier processes have learned


@pytest.mark.parametrize("kept_in", ["journal", "folder", "both", "nothing"])
@virtual_time
async def test_a_later_process_uses_the_learned_durations(tmp_path: Path, kept_in: str) -> None:
    """The first job of a process is polled like the last job of the previous process."""
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache" if kept_in in {"folder", "both"} else False}
    journal = tmp_path / "run.db" if kept_in in {"journal", "both"} else None
    latency: list[float] = []

    def listener(event: Event) -> None:
        latency.extend([event.latency] if event.latency is not None else [])

    async with emulated(options | {"journal": journal, "max_in_flight": 1}, work_seconds=40, jitter=0.05) as (
        emulator,
        kling,
    ):
        for number in range(8):
            await kling.expand(PHOTO, Ratios(right=0.1 * (number + 1)))
        await kling.aclose()
        if kept_in == "both":
            journal = tmp_path / "another.db"  # begins with the durations of the folder
        before = emulator.account.requests["query"]
        async with another(emulator, **options, journal=journal, listener=listener) as again:
            await again.expand(PHOTO, Ratios(up=0.7))
        reads = emulator.account.requests["query"] - before
        if kept_in == "nothing":
            assert reads > 8
        else:
            assert reads <= 6
            assert latency[0] < 2


@virtual_time
async def test_accounts_do_not_share_learned_durations(tmp_path: Path) -> None:
    """Another account's key starts without the durations of the first, and the file contains no key."""
    options: dict[str, Any] = {"cache_dir": tmp_path}
    async with emulated(options, work_seconds=40) as (emulator, kling):
        for number in range(6):
            await kling.expand(PHOTO, Ratios(right=0.1 * (number + 1)))
        await kling.aclose()
        text = (tmp_path / "durations.txt").read_text()
        assert len(text.splitlines()) == 1
        assert emulator.api_key not in text
        async with another(emulator, cache_dir=tmp_path) as same:
            assert isinstance(same._schedule, AdaptiveSchedule)
            assert len(same._schedule.durations) == 6
        async with another(emulator, api_key="api-key-other", cache_dir=tmp_path) as other:
            assert isinstance(other._schedule, AdaptiveSchedule)
            assert other._schedule.durations == ()


# ------------------------------------------------------------------ a store that fails


class Flaky:
    """A store that raises unexpected errors after a create or at the end of a task."""

    def __init__(self, inner: SQLiteStore, error: Exception, failing: tuple[str, ...]) -> None:
        self._inner = inner
        self._error = error
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        if name in self._failing:
            return self._fails
        return getattr(self._inner, name)

    async def _fails(self, *_arguments: Any, **_options: Any) -> None:
        raise self._error


@pytest.mark.parametrize("error", [ConnectionError("away"), JournalError("full"), KeyError("id")], ids=repr)
@virtual_time
async def test_a_store_that_fails_costs_no_slot_and_no_result(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a task exists, a store's error is logged and the result is still delivered."""
    slots = Slots(9)
    async with SQLiteStore(tmp_path / "run.db", run="default", clock=loop_clock) as store:
        flaky: Any = Flaky(store, error, ("observe",))
        async with emulated({"journal": flaky, "slots": slots}) as (emulator, kling):
            for number in range(3):
                result = await kling.expand(PHOTO, Ratios(right=0.1 * (number + 1)))
                assert result.task_id in emulator.account.tasks
            assert (slots.held, slots.running) == (0, 0)
    assert "could not be recorded" in caplog.text


@pytest.mark.parametrize("method", ["record_intent", "mark_sending"])
@virtual_time
async def test_a_store_that_fails_before_a_create_sends_nothing(tmp_path: Path, method: str) -> None:
    """If the store fails before a create, slots and units are released, and the error says what happened."""
    slots = Slots(9)
    async with SQLiteStore(tmp_path / "run.db", run="default", clock=loop_clock) as store:
        flaky: Any = Flaky(store, ConnectionError("away"), (method,))
        async with emulated({"journal": flaky, "slots": slots}) as (emulator, kling):
            error = await error_of(kling.submit(PHOTO, WIDER))
            assert "away" in str(error)
            assert (slots.held, kling.stats.units_due) == (0, 0)
            assert emulator.account.requests == {"list": 1}


@virtual_time
async def test_a_slow_store_holds_no_slot_after_the_client_has_closed(tmp_path: Path) -> None:
    """After a client closes during a write, the futures name their tasks and the slots are free."""
    slots = Slots(9)

    class Slow(Flaky):
        async def _fails(self, *_arguments: Any, **_options: Any) -> None:
            await asyncio.sleep(60)

    async with (
        SQLiteStore(tmp_path / "run.db", run="default", clock=loop_clock) as store,
        emulated({"slots": slots}) as (emulator, other),
    ):
        slow: Any = Slow(store, OSError(), ("observe",))
        async with another(emulator, journal=slow, slots=slots) as kling:
            futures = [kling.submit(PHOTO, Ratios(right=0.1 * (i + 1))) for i in range(9)]
            await asyncio.sleep(1)
        assert {future.task_id for future in futures} == set(emulator.account.tasks)
        await asyncio.sleep(100)
        assert (slots.held, slots.running) == (0, 0)
        assert (await other.expand(PHOTO, Ratios(up=0.5))).task_id
