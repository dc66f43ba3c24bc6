"""Task futures: snapshots from any source, in any order, for any number of awaiters."""

import asyncio
import contextvars
import copy
import gc
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.downloads.files import SaveOptions
from kling_expand.errors import (
    ContentRejected,
    DeadlineExceeded,
    InvalidRequest,
    KlingError,
    NotSubmitted,
    SubmissionUnknown,
    TaskFailed,
    TaskModerated,
)
from kling_expand.geometry import Ratios
from kling_expand.jobs.future import ExpandResult, TaskFuture, TaskRecord, TaskRegistry, task_failure
from kling_expand.models import NEXT, Image, Status, Task
from kling_expand.testing import emulated, run, virtual_time

PHOTO = Path(__file__).parent.parent.parent / "examples" / "photos" / "coffee.jpg"
SUBMITTED = Task("1", "submitted", external_task_id="dog")
PROCESSING = evolve(SUBMITTED, task_status="processing")
UNDOCUMENTED = evolve(SUBMITTED, task_status="pondering")
SUCCEED = evolve(SUBMITTED, task_status="succeed", images=(Image(0, "https://x/0.png"),))
FAILED = evolve(SUBMITTED, task_status="failed", task_status_msg="no")

OPEN_SNAPSHOTS = [SUBMITTED, UNDOCUMENTED, PROCESSING]


def before(end: Task) -> list[Task]:
    """Return the snapshots that may be delivered before *end*."""
    return [each for each in OPEN_SNAPSHOTS if end.status in NEXT[each.status]]


SNAPSHOTS = st.sampled_from([SUCCEED, FAILED, *OPEN_SNAPSHOTS]).flatmap(
    lambda end: st.lists(st.sampled_from([*before(end), end])).map(lambda snapshots: [*snapshots, end])
)


async def start_waiting(awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
    """Return an asyncio task that has begun to wait for *awaitable*."""
    begun = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0)
    return begun


async def read(future: TaskFuture) -> list[Task]:
    """Return every snapshot of an iteration."""
    return [task async for task in future]


async def outcome(future: TaskFuture) -> ExpandResult:
    """Await the future in a coroutine."""
    return await future


# ------------------------------------------------------------------ snapshots


@given(SNAPSHOTS, st.randoms(use_true_random=False))
def test_any_order_of_snapshots_ends_in_the_same_state(snapshots: list[Task], rng: Any) -> None:
    """Whatever the order of the snapshots, the newest is kept and the status never goes back."""

    async def check() -> None:
        future = TaskFuture("dog")
        steps = []
        end = snapshots[-1]
        rng.shuffle(snapshots)
        for task in snapshots:
            known = future.task
            if future.record.deliver(task):
                steps.append(task.status)
            else:
                assert future.task is known
        assert future.task == end
        assert all(later in NEXT[earlier] for earlier, later in pairwise(steps))
        assert future.done() is end.status.final

    run(check())


@given(SNAPSHOTS)
def test_a_repeated_snapshot_counts_once(snapshots: list[Task]) -> None:
    """A snapshot that a poll and a callback both deliver counts once."""

    async def check() -> None:
        future = TaskFuture("dog")
        for task in snapshots:
            future.record.deliver(task)
            assert future.record.deliver(copy.copy(task)) is False

    run(check())


@virtual_time
async def test_a_snapshot_of_another_task_is_ignored() -> None:
    """A snapshot of another task changes nothing."""
    future = TaskFuture("dog")
    future.record.deliver(PROCESSING)
    assert future.record.deliver(evolve(SUCCEED, task_id="2")) is False
    assert future.task == PROCESSING


@virtual_time
async def test_a_known_outcome_never_changes() -> None:
    """Neither a snapshot nor a failure changes an outcome that is already known."""
    future = TaskFuture("dog")
    future.record.deliver(SUCCEED)
    assert future.record.deliver(FAILED) is False
    future.record.fail(KlingError("too late"))
    assert future.error is None
    assert (await future).task == SUCCEED

    lost = TaskFuture("dog")
    lost.record.fail(SubmissionUnknown("no answer came"))
    assert lost.record.deliver(SUCCEED) is False
    lost.record.fail(KlingError("again"))
    with pytest.raises(SubmissionUnknown):
        await lost


@virtual_time
async def test_an_undocumented_status_ends_no_wait() -> None:
    """An undocumented status does not end a wait."""
    future = TaskFuture("dog")
    waiting = await start_waiting(outcome(future))
    future.record.deliver(UNDOCUMENTED)
    await asyncio.sleep(1)
    assert not waiting.done()
    future.record.deliver(evolve(SUCCEED, task_status="succeeded"))
    assert (await waiting).task.status is Status.SUCCEED


# ------------------------------------------------------------------ many awaiters


@given(st.integers(0, 9), SNAPSHOTS)
def test_cancelling_one_wait_affects_no_other(victim: int, snapshots: list[Task]) -> None:
    """Awaiters, iterators and callbacks share one future, and cancelling any of them affects no other."""

    async def check() -> None:
        future = TaskFuture("dog")
        called: list[TaskFuture] = []
        future.add_done_callback(called.append)
        waiting = [await start_waiting(outcome(future)) for _ in range(5)]
        waiting += [await start_waiting(read(future)) for _ in range(5)]
        waiting[victim].cancel()
        for task in [*snapshots, SUCCEED]:
            future.record.deliver(task)
            await asyncio.sleep(1)
        end = FAILED if FAILED in snapshots else SUCCEED
        ended: list[Any] = await asyncio.gather(*waiting, return_exceptions=True)
        for number, each in enumerate(ended):
            if number == victim:
                assert isinstance(each, asyncio.CancelledError)
            elif number >= 5:
                assert each[-1] == end
            elif end is FAILED:
                assert isinstance(each, TaskFailed)
            else:
                assert each.task == end
        assert called == [future]

    run(check())


@virtual_time
async def test_a_future_can_be_awaited_again() -> None:
    """A future can be awaited any number of times, before and after its end."""
    future = TaskFuture("dog")
    early = await start_waiting(outcome(future))
    future.record.deliver(SUCCEED)
    assert await early == await future == await future
    assert await read(future) == await read(future) == [SUCCEED]


@virtual_time
async def test_a_slow_reader_sees_the_newest_snapshot() -> None:
    """A slow reader may miss intermediate snapshots, but it sees the last one, and none twice."""
    future = TaskFuture("dog")
    seen = []
    async for task in with_first_snapshot(future):
        seen.append(task)
        if len(seen) == 1:
            future.record.deliver(PROCESSING)
            future.record.deliver(SUCCEED)
    assert seen == [SUBMITTED, SUCCEED]


def with_first_snapshot(future: TaskFuture) -> TaskFuture:
    """Return the future after its first snapshot."""
    future.record.deliver(SUBMITTED)
    return future


@virtual_time
async def test_a_fast_reader_sees_every_snapshot() -> None:
    """A fast reader sees each snapshot once and in order, and the iteration ends with the task."""
    future = TaskFuture("dog")
    reading = await start_waiting(read(future))
    for task in (SUBMITTED, SUBMITTED, PROCESSING, FAILED):
        future.record.deliver(task)
        await asyncio.sleep(1)
    assert await reading == [SUBMITTED, PROCESSING, FAILED]


@virtual_time
async def test_an_iteration_raises_the_error_that_ends_it() -> None:
    """An iteration raises an error after the last snapshot, but a failed task is a snapshot, not an error."""
    future = TaskFuture("dog")
    future.record.deliver(PROCESSING)
    future.record.fail(KlingError("broken"))
    reading = future.__aiter__()
    assert await anext(reading) == PROCESSING
    with pytest.raises(KlingError, match="broken"):
        await anext(reading)


@virtual_time
async def test_a_callback_runs_exactly_once() -> None:
    """A callback runs once, not within `deliver`, even if it was added after the end or if another raises."""
    future = TaskFuture("dog")
    called: list[str] = []
    loop = asyncio.get_running_loop()
    reported: list[Any] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def broken(_: TaskFuture) -> None:
        raise ZeroDivisionError

    future.add_done_callback(broken)
    future.add_done_callback(lambda each: called.append(each.any_id))
    future.record.deliver(PROCESSING)
    await asyncio.sleep(1)
    assert called == []
    future.record.deliver(SUCCEED)
    assert called == []
    await asyncio.sleep(1)
    assert called == ["1"]
    future.add_done_callback(lambda _: called.append("late"))
    assert called == ["1"]
    await asyncio.sleep(1)
    assert called == ["1", "late"]
    assert [type(each) for each in reported] == [ZeroDivisionError]


# ------------------------------------------------------------------ the outcome


@virtual_time
async def test_a_success_gives_a_result() -> None:
    """The result holds the pictures, the id and the object that the client attaches."""
    registry = TaskRegistry()
    registry.make_result = lambda _, task: ExpandResult(task, name="dog")
    future = TaskFuture(registry.add(TaskRecord("dog")))
    future.record.deliver(SUCCEED)
    result = await future
    assert (result.images, result.task_id, result.name) == (SUCCEED.images, "1", "dog")


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Failure to pass the risk control system", TaskModerated),
        ("FAILURE TO PASS THE RISK CONTROL SYSTEM.", TaskModerated),
        ("Image pixel is invalid", TaskFailed),
        ("", TaskFailed),
        (None, TaskFailed),
    ],
)
@virtual_time
async def test_a_failed_task_raises_its_reason(message: str | None, kind: type[TaskFailed]) -> None:
    """The error has the service's message and both ids, and moderation is recognized by that message."""
    future = TaskFuture("dog")
    future.record.deliver(evolve(FAILED, task_status_msg=message, external_task_id=None))
    with pytest.raises(TaskFailed) as caught:
        await future
    assert type(caught.value) is kind
    assert isinstance(caught.value, ContentRejected) is (kind is TaskModerated)
    assert (caught.value.task_id, caught.value.external_task_id) == ("1", "dog")
    assert caught.value.message == (message or "the service gave no reason")
    assert task_failure(FAILED).external_task_id == "dog"


@virtual_time
async def test_every_error_gets_the_ids() -> None:
    """Every error after the create gets the ids, unless it already has some."""
    future = TaskFuture("dog")
    future.record.deliver(PROCESSING)
    future.record.fail(KlingError("broken"))
    assert future.error is not None
    assert (future.error.task_id, future.error.external_task_id) == ("1", "dog")
    other = TaskFuture("dog")
    other.record.fail(KlingError("broken", task_id="7", external_task_id="cat"))
    assert other.error is not None
    assert (other.error.task_id, other.error.external_task_id) == ("7", "cat")


@virtual_time
async def test_a_result_without_a_client_cannot_save() -> None:
    """The error says that the result has no client, and it has the task's id."""
    with pytest.raises(KlingError, match="1"):
        await ExpandResult(SUCCEED).save()


@virtual_time
async def test_save_is_passed_to_the_client(tmp_path: Path) -> None:
    """`save` passes the task, the target, the names and its own deadline to the client."""
    asked: list[Any] = []

    async def save(
        task: Task, target: Any, options: SaveOptions, *, deadline_at: float | None
    ) -> tuple[Path, ...]:
        asked.append((task, target, options.name, deadline_at))
        return (tmp_path,)

    result = ExpandResult(SUCCEED, name="dog", save=save)
    assert await result.save("out") == (tmp_path,)
    await asyncio.sleep(5)
    assert await result.save("out", deadline=9) == (tmp_path,)
    assert asked == [(SUCCEED, "out", "dog", None), (SUCCEED, "out", "dog", 14.0)]
    for deadline in (0, -1, float("nan")):
        with pytest.raises(InvalidRequest, match="deadline must be above 0"):
            await result.save("out", deadline=deadline)
    assert ExpandResult(SUCCEED, save=save) == ExpandResult(SUCCEED)
    assert "save" not in repr(ExpandResult(SUCCEED, save=save))


# ------------------------------------------------------------------ accepted, wait, deadlines


@virtual_time
async def test_accepted_returns_at_the_first_snapshot() -> None:
    """`accepted` returns at the first snapshot and does not wait for the end."""
    future = TaskFuture("dog")
    waiting = await start_waiting(future.accepted())
    assert not waiting.done()
    future.record.deliver(SUBMITTED)
    assert await waiting == await future.accepted() == SUBMITTED
    future.record.deliver(SUCCEED)
    assert await future.accepted() == SUCCEED


@virtual_time
async def test_accepted_raises_if_there_is_no_task() -> None:
    """`accepted` raises the failure if there is no task, and returns the task otherwise."""
    future = TaskFuture("dog")
    waiting = await start_waiting(future.accepted())
    future.record.fail(SubmissionUnknown("no answer came"))
    for each in (waiting, future.accepted()):
        with pytest.raises(SubmissionUnknown) as caught:
            await each
        assert caught.value.external_task_id == "dog"
    other = TaskFuture("dog")
    other.record.deliver(PROCESSING)
    other.record.fail(KlingError("broken"))
    assert await other.accepted() == PROCESSING


@virtual_time
@pytest.mark.parametrize("seconds", [float("nan"), "5", True])
async def test_wait_refuses_a_timeout_that_is_no_number(seconds: Any) -> None:
    """A timeout that is not a number is refused. NaN would leave the event loop's timers out of order."""
    with pytest.raises(InvalidRequest, match="timeout must"):
        await TaskFuture("dog").wait(seconds)


@virtual_time
async def test_wait_waits_at_most_its_timeout() -> None:
    """`wait` waits at most `timeout`, returns whether the future is done, and never raises."""
    loop = asyncio.get_running_loop()
    future = TaskFuture("dog", deadline_at=1.0)
    assert await future.wait(timeout=7) is False
    assert loop.time() == pytest.approx(7)
    assert await future.wait(timeout=0) is False
    waiting = await start_waiting(future.wait())
    future.record.deliver(PROCESSING)
    await asyncio.sleep(1)
    assert not waiting.done()
    future.record.deliver(FAILED)
    assert await waiting is True
    assert await future.wait(timeout=0) is True
    broken = TaskFuture("dog")
    broken.record.fail(KlingError("broken"))
    assert await broken.wait() is True


def consumers(future: TaskFuture) -> list[Awaitable[Any]]:
    """Return one waiter of each kind that the deadline bounds."""
    return [outcome(future), read(future), future.accepted()]


@pytest.mark.parametrize("way", [0, 1, 2])
@virtual_time
async def test_a_future_can_be_awaited_after_a_deadline(way: int) -> None:
    """At the deadline, a wait raises an error with the ids, and the future can be awaited again."""
    loop = asyncio.get_running_loop()
    future = TaskFuture("dog", deadline_at=10.0)
    waiting = consumers(future)
    for number, each in enumerate(waiting):
        if number == way:
            with pytest.raises(DeadlineExceeded) as caught:
                await each
        else:
            asyncio.ensure_future(each).cancel()
    assert loop.time() == pytest.approx(10)
    assert caught.value.external_task_id == "dog"
    assert not future.done()
    assert future.error is None
    again = await start_waiting(outcome(future))
    await asyncio.sleep(1000)
    assert not again.done()
    future.record.deliver(SUCCEED)
    assert (await again).task == SUCCEED


@virtual_time
async def test_a_snapshot_at_the_deadline_counts() -> None:
    """A result that arrives at the deadline is returned."""
    future = TaskFuture("dog", deadline_at=10.0)
    waiting = await start_waiting(outcome(future))
    asyncio.get_running_loop().call_at(10.0, future.record.deliver, SUCCEED)
    assert (await waiting).task == SUCCEED


@virtual_time
async def test_an_outcome_is_returned_after_the_deadline() -> None:
    """The outcome of an ended task is returned even after the deadline."""
    future = TaskFuture("dog", deadline_at=1.0)
    future.record.deliver(PROCESSING)
    future.record.deliver(SUCCEED)
    await asyncio.sleep(5)
    assert (await future).task == SUCCEED
    assert await read(future) == [SUCCEED]


# ------------------------------------------------------------------ ids and memory


@virtual_time
async def test_a_future_has_its_ids() -> None:
    """A future has the caller's id from the start, and the service's id from the first snapshot on."""
    future = TaskFuture("dog")
    assert (future.any_id, future.task_id, future.external_task_id, future.task) == ("dog", None, "dog", None)
    future.record.rename("cat")
    assert (future.any_id, future.external_task_id) == ("cat", "cat")
    future.record.deliver(evolve(SUBMITTED, external_task_id=None))
    assert (future.any_id, future.task_id, future.external_task_id) == ("1", "1", "cat")
    attached = TaskFuture("1")
    attached.record.deliver(evolve(SUBMITTED, external_task_id=None))
    assert (attached.task_id, attached.external_task_id) == ("1", None)


@virtual_time
async def test_repr_shows_the_state() -> None:
    """`repr` is one line with the state."""
    future = TaskFuture("dog")
    assert repr(future) == "<TaskFuture dog not yet accepted>"
    future.record.deliver(PROCESSING)
    assert repr(future) == "<TaskFuture 1 processing>"
    future.record.fail(KlingError("broken"))
    assert repr(future) == "<TaskFuture 1 KlingError>"


@virtual_time
async def test_an_open_future_is_one_small_object() -> None:
    """An open task costs one small object, without its own loop, asyncio task or event."""
    future = TaskFuture("dog")
    assert not hasattr(future, "__dict__")
    gone = weakref.ref(future)
    future.record.deliver(SUBMITTED)
    await future.accepted()
    del future
    gc.collect()
    assert gone() is None


# ------------------------------------------------------------------ ids of the job, not of a snapshot


@virtual_time
async def test_a_snapshot_without_an_external_id_keeps_the_known_one() -> None:
    """If a newer callback lacks the external id, the record and the result keep the known one."""
    bare = evolve(SUCCEED, external_task_id=None)
    for future, before in (
        (TaskFuture("dog"), None),
        (TaskFuture("dog"), SUBMITTED),
        (TaskFuture("1"), SUBMITTED),
    ):
        if before is not None:
            future.record.deliver(before)
        future.record.deliver(bare)
        result = await future
        assert (result.external_task_id, future.external_task_id) == ("dog", "dog")


@virtual_time
async def test_a_snapshot_does_not_change_the_external_id() -> None:
    """A job keeps the id that it was sent with, whatever the service returns."""
    future = TaskFuture("dog")
    future.record.deliver(evolve(SUCCEED, external_task_id="DOG"))
    assert (await future).external_task_id == "dog"


# ------------------------------------------------------------------ cancelling


class FakeJob:
    """A job that can be cancelled until it is sent."""

    def __init__(self) -> None:
        self.queued = False
        self.sent = False
        self.recorded_id = self.final_id = "dog"
        self.found = False
        self.cancelled = 0

    def cancel(self, *, for_good: bool = False) -> bool:
        assert for_good
        self.cancelled += 1
        return True


@virtual_time
async def test_only_an_unsent_job_can_be_cancelled() -> None:
    """A sent job, a running or ended task, and an attached task cannot be cancelled."""
    job = FakeJob()
    future = TaskFuture(TaskRecord("dog", job=job))
    assert future.cancel() is True
    job.sent = True
    assert future.cancel() is False
    future.record.deliver(SUCCEED)
    assert future.cancel() is False
    assert TaskFuture("1").cancel() is False
    assert job.cancelled == 1


@virtual_time
async def test_cancelling_one_of_two_submissions_keeps_the_job() -> None:
    """Cancelling one of two submissions ends that future at once, and cancelling both cancels the job."""
    job = FakeJob()
    registry = TaskRegistry()
    first = TaskFuture(registry.add(TaskRecord("dog", job=job)))
    second = TaskFuture(TaskRecord("dog"))
    registry.add(second.record)
    assert first.record is second.record
    called: list[TaskFuture] = []
    first.add_done_callback(called.append)
    second.add_done_callback(called.append)
    waiting = await start_waiting(outcome(first))
    assert first.cancel() is True
    assert job.cancelled == 0
    with pytest.raises(NotSubmitted):
        await waiting
    assert (first.cancelled(), second.done(), called) == (True, False, [first])
    assert first.cancel() is False
    assert second.cancel() is True
    assert job.cancelled == 1
    second.record.deliver(SUCCEED)
    assert (await second).task == SUCCEED


@pytest.mark.parametrize("way", [0, 1, 2, 3])
@virtual_time
async def test_a_cancelled_wait_logs_the_running_task(way: int, caplog: pytest.LogCaptureFixture) -> None:
    """Once a task exists, a cancelled wait logs its ids and adds them to the exception."""
    future = TaskFuture("dog")
    future.record.deliver(PROCESSING)
    waits = [outcome(future), read(future), future.wait(), future.wait(timeout=50)]
    waiting = await start_waiting(waits[way])
    for each in waits:
        if each is not waits[way]:
            each.close()
    await asyncio.sleep(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await waiting
    (note,) = caught.value.__notes__
    assert "task_id=1" in note
    assert "external_task_id=dog" in note
    assert note in caplog.text


@virtual_time
async def test_a_wait_that_times_out_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A deadline, a `timeout` and a cancellation before the create log no task that continues."""
    future = TaskFuture(TaskRecord("dog", job=FakeJob()), deadline_at=5.0)
    waiting = await start_waiting(future.wait())
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await waiting
    assert not hasattr(caught.value, "__notes__")
    future.record.deliver(PROCESSING)
    assert await future.wait(timeout=2) is False
    with pytest.raises(DeadlineExceeded):
        await future
    assert caplog.text == ""


# ------------------------------------------------------------------ standard protocols


@pytest.mark.parametrize("when", [asyncio.FIRST_COMPLETED, asyncio.ALL_COMPLETED, asyncio.FIRST_EXCEPTION])
@virtual_time
async def test_asyncio_wait_accepts_futures(when: str) -> None:
    """`asyncio.wait` returns the first or all futures that are done, and leaves the others unchanged."""
    ends: dict[str, Task | KlingError] = {
        "a": SUCCEED,
        "b": KlingError("broken"),
        "c": evolve(FAILED, task_id="3"),
    }
    futures: dict[str, Any] = {name: TaskFuture(name) for name in ends}
    loop = asyncio.get_running_loop()
    for number, (name, end) in enumerate(ends.items()):
        record = futures[name].record
        loop.call_later(number + 1, record.fail if isinstance(end, KlingError) else record.deliver, end)
    done, pending = await asyncio.wait(futures.values(), return_when=when)
    expected = {asyncio.FIRST_COMPLETED: "a", asyncio.FIRST_EXCEPTION: "ab", asyncio.ALL_COMPLETED: "abc"}[
        when
    ]
    assert done == {futures[name] for name in expected}
    assert pending == {futures[name] for name in set(ends) - set(expected)}
    assert (await asyncio.wait(futures.values()))[1] == set()
    kinds = [type(futures[name].exception()) for name in ends]
    assert kinds == [type(None), KlingError, TaskFailed]


@virtual_time
async def test_exception_raises_before_the_end() -> None:
    """`exception` raises before the end, as in asyncio, and a removed callback is not called."""
    future = TaskFuture("dog")
    called: list[TaskFuture] = []
    future.add_done_callback(called.append)
    assert future.remove_done_callback(called.append) == 1
    assert future.remove_done_callback(called.append) == 0
    with pytest.raises(asyncio.InvalidStateError):
        future.exception()
    future.record.deliver(SUCCEED)
    await asyncio.sleep(1)
    assert (future.exception(), called) == (None, [])


async def ended_by(way: str, futures: list[TaskFuture]) -> list[ExpandResult]:
    """Return the results of *futures*, awaited with one function of the standard library."""
    match way:
        case "gather":
            return await asyncio.gather(*futures)
        case "as_completed":
            return [await each for each in asyncio.as_completed(futures)]
        case "shield":
            return [await asyncio.shield(each) for each in futures]
        case "wait_for":
            return [await asyncio.wait_for(each, 100) for each in futures]
        case "timeout":
            async with asyncio.timeout(100):
                return [await each for each in futures]
        case _:
            async with asyncio.TaskGroup() as group:
                waits = [group.create_task(each.wait()) for each in futures]
            assert all(each.result() for each in waits)
            return [each.result() for each in futures]


@pytest.mark.parametrize("way", ["gather", "as_completed", "shield", "wait_for", "timeout", "TaskGroup"])
@virtual_time
async def test_asyncio_functions_accept_futures(way: str) -> None:
    """Each asyncio function that waits for futures accepts task futures and returns their results."""
    futures = [TaskFuture(name) for name in "abc"]
    for number, each in enumerate(futures):
        task = evolve(SUCCEED, task_id=str(number), external_task_id=None)
        asyncio.get_running_loop().call_later(number + 1, each.record.deliver, task)
    results = await ended_by(way, futures)
    assert [result.task_id for result in results] == ["0", "1", "2"]
    assert [each.result() for each in futures] == results
    assert asyncio.get_running_loop().time() == pytest.approx(3)


@virtual_time
async def test_a_shielded_future_outlives_its_caller() -> None:
    """Cancelling a shielded wait does not affect the inner wait, as with a future of asyncio."""
    future = TaskFuture("dog")
    inner = asyncio.ensure_future(outcome(future))
    outer = await start_waiting(asyncio.shield(inner))
    outer.cancel()
    future.record.deliver(SUCCEED)
    assert (await inner).task == SUCCEED
    assert outer.cancelled()


@virtual_time
async def test_result_returns_what_await_returns() -> None:
    """`result` returns or raises as `await` does, and raises before the end."""
    future = TaskFuture("dog")
    with pytest.raises(asyncio.InvalidStateError):
        future.result()
    future.record.deliver(SUCCEED)
    assert future.result() == await future
    failed = TaskFuture("dog")
    failed.record.deliver(FAILED)
    with pytest.raises(TaskFailed, match="no"):
        failed.result()


@virtual_time
async def test_a_callback_runs_in_the_context_of_its_caller() -> None:
    """A callback sees the context variables of the code that added it, or of the context it names."""
    request = contextvars.ContextVar("request", default="poll loop")
    future, late = TaskFuture("dog"), TaskFuture("dog")
    seen: list[str] = []
    token = request.set("request 1")
    future.add_done_callback(lambda _: seen.append(request.get()))
    other = contextvars.Context()
    other.run(request.set, "request 2")
    future.add_done_callback(lambda _: seen.append(request.get()), context=other)
    request.reset(token)
    future.record.deliver(SUCCEED)
    late.record.deliver(SUCCEED)
    late.add_done_callback(lambda _: seen.append(request.get()), context=other)
    with_token = request.set("request 3")
    late.add_done_callback(lambda _: seen.append(request.get()), context=contextvars.Context())
    request.reset(with_token)
    await asyncio.sleep(0)
    assert seen == ["request 1", "request 2", "request 2", "poll loop"]  # the last context is empty


# ------------------------------------------------------------------ a job that waits for slots


@virtual_time
async def test_an_iterator_yields_queued_once() -> None:
    """While a job waits for slots, `queued` is yielded once, without a task id, before the snapshots."""
    job = FakeJob()
    future = TaskFuture(TaskRecord("dog", job=job))
    reading = await start_waiting(read(future))
    job.queued = True
    future.record.wake()
    await asyncio.sleep(1)
    future.record.wake()
    await asyncio.sleep(1)
    assert future.task is None
    job.queued = False
    future.record.deliver(SUBMITTED)
    await asyncio.sleep(1)
    future.record.deliver(SUCCEED)
    seen = await reading
    assert [task.status for task in seen] == [Status.QUEUED, Status.SUBMITTED, Status.SUCCEED]
    assert (seen[0].task_id, seen[0].external_task_id) == ("", "dog")


@virtual_time
async def test_a_job_that_gets_slots_at_once_is_not_shown_as_queued() -> None:
    """An iterator yields `queued` only for a job that has to wait."""
    async with emulated({"max_in_flight": 1}, work_seconds=10) as (_, kling):
        first, second = kling.submit(PHOTO, Ratios(left=0.5)), kling.submit(PHOTO, Ratios(right=0.5))
        shown = await asyncio.gather(read(first), read(second))
    ran, waited = sorted(shown, key=len)
    assert [task.status for task in waited][:2] == [Status.QUEUED, Status.SUBMITTED]
    assert Status.QUEUED not in [task.status for task in ran]


# ------------------------------------------------------------------ ends that no caller retrieves


RETRIEVING: dict[str, Callable[[TaskFuture], Awaitable[object] | object]] = {
    "await": outcome,
    "result": TaskFuture.result,
    "exception": TaskFuture.exception,
    "error": lambda future: future.error,
    "task": lambda future: future.task,
    "iteration": read,
}
ENDS: dict[str, Task | KlingError] = {"failed": FAILED, "unknown": SubmissionUnknown("no answer came")}


def end(future: TaskFuture, end: Task | KlingError) -> None:
    """End the task of *future*."""
    if isinstance(end, KlingError):
        future.record.fail(copy.copy(end))
    else:
        future.record.deliver(end)


@pytest.mark.parametrize("ended", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("first", ["collected", "ended"])
@virtual_time
async def test_an_error_that_was_never_retrieved_is_logged_once(
    ended: Task | KlingError, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged with its ids, whether the last future is collected before or after the end."""
    future = TaskFuture("dog")
    other, record = TaskFuture(future.record), future.record
    if first == "ended":
        end(other, ended)
    assert await other.wait(timeout=0) is (first == "ended")
    del future
    assert caplog.text == ""
    del other
    if first == "collected":
        end(TaskFuture(record), ended)
        await asyncio.sleep(0)
        gc.collect()  # the exceptions of the wait hold a future
    (line,) = caplog.messages
    assert "external_task_id=dog" in line
    assert "never retrieved" in line
    record.retrieve()
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("way", RETRIEVING)
@pytest.mark.parametrize("ended", ENDS.values(), ids=ENDS)
@virtual_time
async def test_an_error_that_was_retrieved_is_not_logged(
    way: str, ended: Task | KlingError, caplog: pytest.LogCaptureFixture
) -> None:
    """Every way to retrieve an error counts, from any future of the task."""
    future = TaskFuture("dog")
    other = TaskFuture(future.record)
    end(future, ended)
    with suppress(KlingError):
        found = RETRIEVING[way](other)
        if isinstance(found, Awaitable):
            await found
    del future, other
    assert caplog.text == ""


@virtual_time
async def test_a_cancelled_job_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """`cancel` counts as retrieving the outcome, even if another submission continues."""
    registry = TaskRegistry()
    first = TaskFuture(registry.add(TaskRecord("dog", job=FakeJob())))
    second = TaskFuture(registry.add(TaskRecord("dog")))
    assert first.cancel()
    del first
    assert second.cancel()
    second.record.fail(NotSubmitted("taken back"))
    del second
    assert caplog.text == ""


@virtual_time
async def test_closing_logs_each_unretrieved_job_once(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """When the client closes, the log names each failed, unsent or running job exactly once."""
    async with emulated({"max_in_flight": 1}, work_seconds=100) as (_, kling):
        names = ("seen", "missing")
        missing = [kling.submit(tmp_path, Ratios(left=0.5), external_task_id=name) for name in names]
        running = kling.submit(PHOTO, Ratios(left=0.5), external_task_id="running")
        await running.accepted()
        kling.submit(PHOTO, Ratios(right=0.5), external_task_id="dropped")
        waiting = kling.submit(PHOTO, Ratios(up=0.5), external_task_id="waiting")
        assert missing[0].error is not None
        await asyncio.sleep(1)
        assert caplog.text == ""
    assert [message.count("never retrieved") for message in caplog.messages] == [1, 0]
    for number, name in ((0, "=missing"), (0, "dropped"), (0, "waiting"), (1, running.any_id)):
        assert caplog.messages[number].count(name) == 1
        assert caplog.messages[1 - number].count(name) == 0
    assert "=seen" not in caplog.text
    del missing, running, waiting
    gc.collect()
    assert len(caplog.messages) == 2


# ------------------------------------------------------------------ what an error keeps


def traceback_length(error: BaseException) -> int:
    """Return how many frames the traceback of an exception has."""
    count, trace = 0, error.__traceback__
    while trace is not None:
        count, trace = count + 1, trace.tb_next
    return count


@virtual_time
async def test_awaiting_a_failure_again_keeps_nothing() -> None:
    """Each await raises its own copy with the ids, so frames and notes do not accumulate."""
    future = TaskFuture("dog")
    cause = OSError("the cause")
    error = KlingError("broken", task_id="1")
    error.add_note("first seen by the runner")
    error.__cause__ = cause
    future.record.fail(error)

    async def error_raised(way: int) -> KlingError:
        try:
            await [outcome, read][way](future)
        except KlingError as caught:
            caught.add_note("by a handler")
            return caught
        raise AssertionError

    lengths = set()
    for number in range(100):
        caught = await error_raised(number % 2)
        lengths.add(traceback_length(caught))
        assert (caught.task_id, caught.external_task_id, caught.__cause__) == ("1", "dog", cause)
        assert caught.__notes__ == ["first seen by the runner", "by a handler"]
    assert max(lengths) < 10
    assert future.error is not None
    assert traceback_length(future.error) == 0


def test_no_id_of_a_merged_record_outlives_its_task() -> None:
    """After a task has ended, the registry has none of its ids, including those of merged records."""
    registry = TaskRegistry()
    by_task = registry.add(TaskRecord("1"))
    by_external = registry.add(TaskRecord("dog"))
    by_external.deliver(Task("1", "submitted"))  # a form of answers without the external id
    assert by_external.canonical is by_task
    assert registry.get("dog") is by_task
    by_task.deliver(Task("1", "succeed", images=SUCCEED.images))
    assert [registry.get(any_id) for any_id in ("1", "dog")] == [None, None]
    again = TaskRecord("dog")
    assert registry.add(again) is again
