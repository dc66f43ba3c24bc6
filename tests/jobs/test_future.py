"""Task futures: snapshots from any source and in any order, for any number of awaiters."""

import asyncio
import copy
import gc
import weakref
from collections.abc import Awaitable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

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
from kling_expand.jobs.future import ExpandResult, TaskFuture, TaskRecord, TaskRegistry, failure
from kling_expand.models import NEXT, Image, Status, Task
from kling_expand.testing import run, virtual_time

SUBMITTED = Task("1", "submitted", external_task_id="dog")
PROCESSING = evolve(SUBMITTED, task_status="processing")
STRANGE = evolve(SUBMITTED, task_status="pondering")
SUCCEED = evolve(SUBMITTED, task_status="succeed", images=(Image(0, "https://x/0.png"),))
FAILED = evolve(SUBMITTED, task_status="failed", task_status_msg="no")

LADDER = [SUBMITTED, STRANGE, PROCESSING]


def before(end: Task) -> list[Task]:
    """Return the snapshots that may be delivered before *end*."""
    return [each for each in LADDER if end.status in NEXT[each.status]]


stories = st.sampled_from([SUCCEED, FAILED, *LADDER]).flatmap(
    lambda end: st.lists(st.sampled_from([*before(end), end])).map(lambda snapshots: [*snapshots, end])
)


async def soon(awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
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


@given(stories, st.randoms(use_true_random=False))
def test_any_order_of_snapshots_ends_in_the_same_state(snapshots: list[Task], chance: Any) -> None:
    """Whatever the order of the snapshots, the newest is kept and no step goes back."""

    async def check() -> None:
        future = TaskFuture("dog")
        steps = []
        end = snapshots[-1]
        chance.shuffle(snapshots)
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


@given(stories)
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
async def test_the_end_is_the_end() -> None:
    """Neither a snapshot nor a failure changes an outcome that has been set."""
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
async def test_an_undocumented_word_ends_nothing() -> None:
    """An undocumented status does not end a wait."""
    future = TaskFuture("dog")
    waiting = await soon(outcome(future))
    future.record.deliver(STRANGE)
    await asyncio.sleep(1)
    assert not waiting.done()
    future.record.deliver(evolve(SUCCEED, task_status="succeeded"))
    assert (await waiting).task.status is Status.SUCCEED


# ------------------------------------------------------------------ many awaiters


@given(st.integers(0, 9), stories)
def test_cancelling_one_disturbs_no_other(victim: int, snapshots: list[Task]) -> None:
    """Awaiters, iterators and callbacks share one future; cancelling one affects no other."""

    async def check() -> None:
        future = TaskFuture("dog")
        called: list[TaskFuture] = []
        future.add_done_callback(called.append)
        waiting = [await soon(outcome(future)) for _ in range(5)]
        waiting += [await soon(read(future)) for _ in range(5)]
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
async def test_it_can_be_awaited_again() -> None:
    """A future can be awaited any number of times, before and after its end."""
    future = TaskFuture("dog")
    early = await soon(outcome(future))
    future.record.deliver(SUCCEED)
    assert await early == await future == await future
    assert await read(future) == await read(future) == [SUCCEED]


@virtual_time
async def test_a_slow_reader_sees_the_newest() -> None:
    """A slow reader misses intermediate snapshots, sees the last, and sees none twice."""
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
async def test_a_quick_reader_sees_all() -> None:
    """A fast reader sees each snapshot once and in order, and the iteration ends with the task."""
    future = TaskFuture("dog")
    reading = await soon(read(future))
    for task in (SUBMITTED, SUBMITTED, PROCESSING, FAILED):
        future.record.deliver(task)
        await asyncio.sleep(1)
    assert await reading == [SUBMITTED, PROCESSING, FAILED]


@virtual_time
async def test_an_iteration_raises_what_ends_it() -> None:
    """An iteration raises an error after the last snapshot; a failed task is a snapshot and no error."""
    future = TaskFuture("dog")
    future.record.deliver(PROCESSING)
    future.record.fail(KlingError("broken"))
    reading = future.__aiter__()
    assert await anext(reading) == PROCESSING
    with pytest.raises(KlingError, match="broken"):
        await anext(reading)


@virtual_time
async def test_a_callback_is_called_once_and_soon() -> None:
    """A callback runs once, outside `observe`, even if added after the end or if another one raises."""
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
async def test_success_is_a_result() -> None:
    """The result holds the pictures, the id and the object that the client attaches."""
    future = TaskFuture(TaskRecord("dog", make_result=lambda _, task: ExpandResult(task, name="dog")))
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
async def test_a_failed_task_says_why(message: str | None, kind: type[TaskFailed]) -> None:
    """The error has the service's message and both ids; moderation is distinguished by the message."""
    future = TaskFuture("dog")
    future.record.deliver(evolve(FAILED, task_status_msg=message, external_task_id=None))
    with pytest.raises(TaskFailed) as caught:
        await future
    assert type(caught.value) is kind
    assert isinstance(caught.value, ContentRejected) is (kind is TaskModerated)
    assert (caught.value.task_id, caught.value.external_task_id) == ("1", "dog")
    assert caught.value.message == (message or "the service gave no reason")
    assert failure(FAILED).external_task_id == "dog"


@virtual_time
async def test_a_failure_learns_the_ids() -> None:
    """Every error after the create gets the ids; ids that it already has are kept."""
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
    """The error says so and has the id."""
    with pytest.raises(KlingError, match="1"):
        await ExpandResult(SUCCEED).save()


@virtual_time
async def test_save_is_passed_to_the_client(tmp_path: Path) -> None:
    """`save` passes the task, the target, the photo's name and its own deadline to the client."""
    asked: list[Any] = []

    async def save(
        task: Task, target: Any, *, name: str | None, deadline_at: float | None
    ) -> tuple[Path, ...]:
        asked.append((task, target, name, deadline_at))
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


# ------------------------------------------------------------------ accepted, finished, deadlines


@virtual_time
async def test_accepted_returns_at_the_first_snapshot() -> None:
    """`accepted` returns at the first snapshot, and does not wait for the end."""
    future = TaskFuture("dog")
    waiting = await soon(future.accepted())
    assert not waiting.done()
    future.record.deliver(SUBMITTED)
    assert await waiting == await future.accepted() == SUBMITTED
    future.record.deliver(SUCCEED)
    assert await future.accepted() == SUCCEED


@virtual_time
async def test_accepted_raises_why_it_never_will_be() -> None:
    """`accepted` raises the failure if there is no task, and returns the task otherwise."""
    future = TaskFuture("dog")
    waiting = await soon(future.accepted())
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
async def test_finished_waits_at_most_within() -> None:
    """`finished` waits at most `within`, returns whether the future is done, and never raises."""
    loop = asyncio.get_running_loop()
    future = TaskFuture("dog", deadline_at=1.0)
    assert await future.finished(within=7) is False
    assert loop.time() == pytest.approx(7)
    assert await future.finished(within=0) is False
    waiting = await soon(future.finished())
    future.record.deliver(PROCESSING)
    await asyncio.sleep(1)
    assert not waiting.done()
    future.record.deliver(FAILED)
    assert await waiting is True
    assert await future.finished(within=0) is True
    broken = TaskFuture("dog")
    broken.record.fail(KlingError("broken"))
    assert await broken.finished() is True


def consumers(future: TaskFuture) -> list[Awaitable[Any]]:
    """Every way to wait that the deadline bounds."""
    return [outcome(future), read(future), future.accepted()]


@pytest.mark.parametrize("way", [0, 1, 2])
@virtual_time
async def test_a_deadline_is_no_failure(way: int) -> None:
    """At the deadline a wait ends with the ids; the future continues and can be awaited again."""
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
    again = await soon(outcome(future))
    await asyncio.sleep(1000)
    assert not again.done()
    future.record.deliver(SUCCEED)
    assert (await again).task == SUCCEED


@virtual_time
async def test_a_snapshot_at_the_deadline_counts() -> None:
    """A result that arrives at the deadline is returned."""
    future = TaskFuture("dog", deadline_at=10.0)
    waiting = await soon(outcome(future))
    asyncio.get_running_loop().call_at(10.0, future.record.deliver, SUCCEED)
    assert (await waiting).task == SUCCEED


@virtual_time
async def test_a_deadline_passes_over_what_is_done() -> None:
    """A finished task's outcome is returned even after the deadline."""
    future = TaskFuture("dog", deadline_at=1.0)
    future.record.deliver(PROCESSING)
    future.record.deliver(SUCCEED)
    await asyncio.sleep(5)
    assert (await future).task == SUCCEED
    assert await read(future) == [SUCCEED]


# ------------------------------------------------------------------ ids and memory


@virtual_time
async def test_it_knows_its_ids() -> None:
    """A future has your id from the start and the service's id from the first snapshot on."""
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
async def test_it_shows_its_state() -> None:
    """`repr` is one line with the state."""
    future = TaskFuture("dog")
    assert repr(future) == "<TaskFuture dog not yet accepted>"
    future.record.deliver(PROCESSING)
    assert repr(future) == "<TaskFuture 1 processing>"
    future.record.fail(KlingError("broken"))
    assert repr(future) == "<TaskFuture 1 KlingError>"


@virtual_time
async def test_it_is_small_and_leaves_nothing() -> None:
    """An open task costs one small object, without a loop, a task or an event of its own."""
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
async def test_a_snapshot_without_an_external_id_takes_none_away() -> None:
    """Newer callbacks have no external id; the record and the result keep the known one."""
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
async def test_a_snapshot_with_another_external_id_changes_nothing_of_it() -> None:
    """The job keeps the id it was sent with, whatever the service returns."""
    future = TaskFuture("dog")
    future.record.deliver(evolve(SUCCEED, external_task_id="DOG"))
    assert (await future).external_task_id == "dog"


# ------------------------------------------------------------------ cancelling


class AJob:
    """A job that can be cancelled while it is not sent."""

    def __init__(self) -> None:
        self.sent = False
        self.cancelled = 0

    def cancel(self) -> bool:
        self.cancelled += 1
        return True


@virtual_time
async def test_only_what_was_not_sent_is_cancelled() -> None:
    """A sent job, a running or ended task, and an attached task cannot be cancelled."""
    job = AJob()
    future = TaskFuture(TaskRecord("dog", job=job))
    assert future.cancel() is True
    job.sent = True
    assert future.cancel() is False
    future.record.deliver(SUCCEED)
    assert future.cancel() is False
    assert TaskFuture("1").cancel() is False
    assert job.cancelled == 1


@virtual_time
async def test_a_shared_job_goes_on_for_the_others() -> None:
    """Of two submissions of one job the first is cancelled at once; the last cancels the job."""
    job = AJob()
    registry = TaskRegistry()
    first = TaskFuture(registry.add(TaskRecord("dog", job=job)))
    second = TaskFuture(TaskRecord("dog"))
    registry.add(second.record)
    assert first.record is second.record
    called: list[TaskFuture] = []
    first.add_done_callback(called.append)
    second.add_done_callback(called.append)
    waiting = await soon(outcome(first))
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
async def test_a_cancelled_wait_says_which_task_goes_on(way: int, caplog: pytest.LogCaptureFixture) -> None:
    """Once a task exists, a cancelled wait logs its ids and attaches them to the exception."""
    future = TaskFuture("dog")
    future.record.deliver(PROCESSING)
    waits = [outcome(future), read(future), future.finished(), future.finished(within=50)]
    waiting = await soon(waits[way])
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
async def test_a_wait_with_a_limit_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A deadline, `within`, and a cancellation before the create are not logged as cancelled tasks."""
    future = TaskFuture(TaskRecord("dog", job=AJob()), deadline_at=5.0)
    waiting = await soon(future.finished())
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await waiting
    assert not hasattr(caught.value, "__notes__")
    future.record.deliver(PROCESSING)
    assert await future.finished(within=2) is False
    with pytest.raises(DeadlineExceeded):
        await future
    assert caplog.text == ""


# ------------------------------------------------------------------ standard protocols


@pytest.mark.parametrize("when", [asyncio.FIRST_COMPLETED, asyncio.ALL_COMPLETED, asyncio.FIRST_EXCEPTION])
@virtual_time
async def test_asyncio_wait_takes_futures(when: str) -> None:
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
async def test_an_exception_that_is_not_known_yet_is_not_given() -> None:
    """`exception` raises before the end, as on asyncio futures; a removed callback is not called."""
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


# ------------------------------------------------------------------ what an error keeps


def traceback_length(error: BaseException) -> int:
    """Return how many frames an exception keeps."""
    count, trace = 0, error.__traceback__
    while trace is not None:
        count, trace = count + 1, trace.tb_next
    return count


@virtual_time
async def test_awaiting_a_failure_again_keeps_nothing() -> None:
    """Each await raises its own exception, so frames and notes do not accumulate; ids are kept."""
    future = TaskFuture("dog")
    cause = OSError("the cause")
    error = KlingError("broken", task_id="1")
    error.add_note("first seen by the runner")
    error.__cause__ = cause
    future.record.fail(error)

    async def caught_by(way: int) -> KlingError:
        try:
            await [outcome, read][way](future)
        except KlingError as caught:
            caught.add_note("by a handler")
            return caught
        raise AssertionError

    lengths = set()
    for number in range(100):
        caught = await caught_by(number % 2)
        lengths.add(traceback_length(caught))
        assert (caught.task_id, caught.external_task_id, caught.__cause__) == ("1", "dog", cause)
        assert caught.__notes__ == ["first seen by the runner", "by a handler"]
    assert max(lengths) < 10
    assert future.error is not None
    assert traceback_length(future.error) == 0
