"""The bounded map: order, back-pressure, deadlines, and readers and sources that stop early."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kling_expand import (
    DeadlineExceeded,
    DownloadError,
    ExpandRequest,
    ExpandResult,
    Image,
    InvalidRequest,
    KlingError,
    NotSubmitted,
    Ratios,
    ResultExpired,
    Task,
    TaskFuture,
)
from kling_expand.jobs.bulk import (
    SOURCE_CLOSE_TIMEOUT,
    BoundedMap,
    Row,
    SaveArguments,
    check_saves,
    make_request,
)
from kling_expand.jobs.future import TaskRecord, TaskRegistry
from kling_expand.testing import virtual_time


def numbered(count: int) -> Iterator[ExpandRequest]:
    """Yield requests that differ only in their prompts."""
    return (ExpandRequest("photo.png", Ratios(up=0.5), str(i)) for i in range(count))


class Service:
    """A service that accepts every job, ends it after a given time, and counts the open jobs."""

    def __init__(self, ends: Callable[[TaskFuture, int], float | None] = lambda _future, _index: 1.0) -> None:
        self.open = self.most = self.submitted = self.saving = self.most_saving = 0
        self.ends = ends
        self.cancelled: list[TaskFuture] = []
        self.saved: list[str] = []
        self.save_error: KlingError | None = None

    async def save(
        self, task: Task, target: Any, _options: object, *, deadline_at: float | None
    ) -> tuple[Path, ...]:
        assert deadline_at is None
        self.saving += 1
        self.most_saving = max(self.most_saving, self.saving)
        await asyncio.sleep(5)
        self.saving -= 1
        if self.save_error is not None:
            raise self.save_error
        self.saved.append(task.task_id)
        return (Path(target, f"{task.task_id}.png"),)

    def submit(self, request: ExpandRequest) -> TaskFuture:
        files = (Path("out/photo-0.jpg").absolute(),) if request.key == "known" else ()
        registry = TaskRegistry()
        registry.make_result = lambda _, task: ExpandResult(task, request, "photo", files, save=self.save)
        future, index = TaskFuture(registry.add(TaskRecord(f"job-{request.prompt}"))), self.submitted
        self.submitted += 1
        self.open += 1
        self.most = max(self.most, self.open)
        seconds = self.ends(future, index)
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self.end, future, index)
        return future

    def end(self, future: TaskFuture, index: int) -> None:
        if not future.done():
            self.open -= 1
            future.record.deliver(Task(str(index), "succeed", images=(Image(0, "https://cdn/0.png"),)))

    def cancel(self, future: TaskFuture) -> None:
        self.cancelled.append(future)
        future.record.fail(NotSubmitted("taken back"))


def bulk(service: Service, **options: Any) -> BoundedMap:
    given: dict[str, Any] = {"prefetch": 10} | options
    return BoundedMap(service.submit, service.cancel, **given)


@virtual_time
async def test_ordered_outcomes_come_in_the_order_of_the_requests() -> None:
    """The order holds although the tasks end in reverse order."""
    service = Service(lambda _future, index: 100 - index)
    indexes = [outcome.index async for outcome in bulk(service, ordered=True).run(numbered(30))]
    assert indexes == list(range(30))
    assert service.most <= 10


@virtual_time
async def test_unordered_outcomes_come_as_they_end() -> None:
    """A slow job delays no other outcome, and every request has exactly one outcome."""
    service = Service(lambda _future, index: 1000 if index == 0 else 1)
    indexes = [outcome.index async for outcome in bulk(service).run(numbered(30))]
    assert indexes[-1] == 0
    assert sorted(indexes) == list(range(30))


@virtual_time
async def test_a_slow_reader_slows_the_source() -> None:
    """The map reads at most `prefetch` requests more than the reader has read outcomes."""
    service, made = Service(lambda _future, _index: 0.0), 0

    def source() -> Iterator[ExpandRequest]:
        nonlocal made
        for request in numbered(100_000):
            made += 1
            yield request

    outcomes = bulk(service).run(source())
    for _ in range(5):
        await anext(outcomes)
        await asyncio.sleep(10)
    assert made <= 5 + 10
    await outcomes.aclose()


@virtual_time
async def test_a_slow_source_delays_no_finished_outcome() -> None:
    """Outcomes are yielded while the map still waits for the next request."""
    loop = asyncio.get_running_loop()

    async def source() -> AsyncIterator[ExpandRequest]:
        for request in numbered(3):
            yield request
            await asyncio.sleep(100)

    times = [loop.time() async for _ in bulk(Service()).run(source())]
    assert times == pytest.approx([1, 101, 201])


@virtual_time
async def test_one_failure_discards_no_other_outcome() -> None:
    """A failure is an outcome, and all other requests have their own outcomes."""

    def ends(future: TaskFuture, index: int) -> float | None:
        if index == 3:
            asyncio.get_running_loop().call_soon(future.record.fail, KlingError("broken"))
            return None
        return 1.0

    outcomes = [outcome async for outcome in bulk(Service(ends), ordered=True).run(numbered(8))]
    assert [outcome.error is not None for outcome in outcomes] == [i == 3 for i in range(8)]
    assert all((outcome.result is None) != (outcome.error is None) for outcome in outcomes)


def cancelled() -> ExpandRequest:
    """Raise what the result of a cancelled task raises."""
    raise asyncio.CancelledError("no photo")


def row(number: int) -> Row:
    """Return row *number* in one of the three forms. Rows 3, 5 and 7 are invalid in different ways."""
    fields: dict[str, Any] = {"image": "photo.png", "geometry": Ratios(up=0.5), "prompt": str(number)}
    if number == 3:
        return {**fields, "n": 0}
    if number == 5:
        return lambda: ExpandRequest("photo.png", Ratios(up=float("a number")))
    if number == 7:
        return cancelled
    forms: list[Row] = [ExpandRequest(**fields), fields, partial(ExpandRequest, **fields)]
    return forms[number % 3]


@pytest.mark.parametrize("ordered", [False, True])
@virtual_time
async def test_a_bad_row_does_not_affect_the_others(*, ordered: bool) -> None:
    """Each invalid row is an outcome with its own error and no request, and all other rows are submitted."""
    service = Service()
    outcomes = [outcome async for outcome in bulk(service, ordered=ordered).run(map(row, range(24)))]
    bad = {outcome.index: outcome for outcome in outcomes if outcome.error is not None}
    assert sorted(outcome.index for outcome in outcomes) == list(range(24))
    assert set(bad) == {3, 5, 7}
    assert all(isinstance(outcome.error, InvalidRequest) for outcome in bad.values())
    assert [outcome.request for outcome in bad.values()] == [None, None, None]
    assert "n must be between 1 and 9" in str(bad[3].error)
    assert "could not convert string to float" in str(bad[5].error)
    assert "CancelledError: no photo" in str(bad[7].error)
    assert service.submitted == 21
    prompts = {outcome.index: outcome.request.prompt for outcome in outcomes if outcome.request}
    assert all(prompt == str(index) for index, prompt in prompts.items())


@virtual_time
async def test_bad_rows_count_as_failures() -> None:
    """After `max_failures` invalid rows, nothing more is submitted."""
    outcomes = [outcome async for outcome in bulk(Service(), max_failures=4).run({} for _ in range(1000))]
    assert 4 <= len(outcomes) <= 20


@pytest.mark.parametrize("wrong", [None, "photo.png", 7, ExpandRequest, ("photo.png", Ratios(up=0.5))])
@virtual_time
async def test_an_item_that_is_not_a_row_raises_after_the_outcomes(wrong: Any) -> None:
    """An item that is not a row raises an error, after the outcomes of the jobs before it."""
    seen: list[int] = []

    async def read() -> None:
        async for outcome in bulk(Service()).run([*numbered(2), wrong, *numbered(2)]):
            seen.append(outcome.index)  # noqa: PERF401 - the loop ends in an error

    with pytest.raises(InvalidRequest, match="requests must contain"):
        await read()
    assert sorted(seen) == [0, 1]


@pytest.mark.parametrize("bad", [{"imge": "a.png"}, {}, {1: 2}, lambda: None, lambda: "photo.png"])
def test_an_invalid_row_says_what_it_must_contain(bad: Any) -> None:
    """The error says what a row must contain or return."""
    with pytest.raises(InvalidRequest, match=r"^row must"):
        make_request(bad)


def test_a_package_error_from_a_row_is_passed_on() -> None:
    """An error of the package that the row's function raises is passed on unchanged."""

    def refuse() -> ExpandRequest:
        raise KlingError("no such photo in the shop")

    with pytest.raises(KlingError, match="in the shop"):
        make_request(refuse)


@virtual_time
async def test_pictures_are_saved_while_other_jobs_run() -> None:
    """Saves that take longer than the tasks do not delay other jobs, and each outcome has its files."""
    service = Service()
    loop = asyncio.get_running_loop()
    outcomes = [outcome async for outcome in bulk(service, prefetch=40, save_to="out").run(numbered(80))]
    assert loop.time() == pytest.approx(12)
    assert {outcome.files for outcome in outcomes} == {(Path(f"out/{number}.png"),) for number in range(80)}
    assert service.most_saving == 40


@virtual_time
async def test_a_save_function_is_called_before_the_job_is_sent() -> None:
    """The function is called before the job is sent, so no job with an invalid target is paid for."""
    service = Service()

    def target(request: ExpandRequest) -> Any:
        if request.prompt == "1":
            raise ValueError("no place")
        targets: dict[str, Any] = {"3": "out/{size}.png", "4": None, "5": "out/\ud800.png", "6": b"out/6"}
        return targets.get(str(request.prompt), f"out/{request.prompt}")

    outcomes = [outcome async for outcome in bulk(service, save_to=target).run(numbered(7))]
    by_index = {outcome.index: outcome for outcome in outcomes}
    expected = [(Path(f"out/{index}/{number}.png"),) for number, index in enumerate((0, 2, 6))]
    assert [by_index[index].files for index in (0, 2, 6)] == expected
    assert "save_to must return a path, got ValueError: no place" in str(by_index[1].error)
    assert "save_to must use only the fields" in str(by_index[3].error)
    assert "save_to must return a path, got TypeError" in str(by_index[4].error)
    assert "save_to must be a valid template" in str(by_index[5].error)
    assert [by_index[index].request.prompt for index in (1, 3)] == ["1", "3"]
    assert service.submitted == 3


@virtual_time
async def test_a_target_that_contradicts_the_format_is_refused_before_any_payment() -> None:
    """The suffix of a target must be that of the format, also if a function returns the target."""
    service, options = Service(), SaveArguments(format="jpeg")
    with pytest.raises(InvalidRequest, match=r"save_to must end in \.jpg, .*, got 'out/\{name\}\.png'"):
        check_saves("out/{name}.png", options)
    check_saves("out/{name}.jpeg", options)
    rows = bulk(service, save_to=lambda _: "out.webp", save_options=options).run(numbered(1))
    assert ["must end in .jpg" in str(outcome.error) async for outcome in rows] == [True]
    assert service.submitted == 0


def test_a_mapping_with_an_unknown_field_names_the_nearest() -> None:
    """The error names the unknown or missing field instead of Python's own `TypeError`."""
    with pytest.raises(InvalidRequest, match=r"must contain only fields of a request, got 'promt'.*prompt"):
        make_request({"image": "dog.png", "geometry": "16:9", "promt": "grass"})
    with pytest.raises(InvalidRequest, match=r"row must contain the field 'geometry', got .*dog.png"):
        make_request({"image": "dog.png"})


@virtual_time
async def test_a_result_that_is_on_disk_is_not_saved_again() -> None:
    """The outcome has the files that an earlier run saved at the target, but not files saved elsewhere."""
    service = Service()
    known = ExpandRequest("photo.png", Ratios(up=0.5), key="known")
    (outcome,) = [outcome async for outcome in bulk(service, save_to="out").run([known])]
    assert (outcome.files, service.saved) == ((Path("out/photo-0.jpg"),), [])
    (outcome,) = [outcome async for outcome in bulk(service, save_to="new").run([known])]
    assert (outcome.files, service.saved) == ((Path("new/1.png"),), ["1"])


@virtual_time
async def test_an_expired_picture_is_found_on_disk() -> None:
    """If the service no longer has a picture, the outcome has the files of the earlier run."""
    service = Service()
    service.save_error = ResultExpired("it has expired")
    known = ExpandRequest("photo.png", Ratios(up=0.5), key="known")
    rows = [known, ExpandRequest("photo.png", Ratios(up=0.5))]
    found, lost = [each async for each in bulk(service, save_to="new", ordered=True).run(rows)]
    assert (found.error, found.files) == (None, found.result and found.result.files)
    assert lost.error is service.save_error


@virtual_time
async def test_a_result_that_cannot_be_saved_is_kept() -> None:
    """The outcome has both the error and the paid result, and counts as a failure."""
    service = Service()
    service.save_error = DownloadError("the disk is full")
    outcomes = [outcome async for outcome in bulk(service, save_to="out", max_failures=1).run(numbered(3))]
    assert [outcome.error is service.save_error for outcome in outcomes] == [True] * 3
    assert all(outcome.result is not None and outcome.files == () for outcome in outcomes)


@virtual_time
async def test_leaving_early_ends_the_saves() -> None:
    """After a `break`, no save continues in the background."""
    service = Service(lambda _future, index: 1.0 if index == 0 else 5.5)
    async for _ in (outcomes := bulk(service, save_to="out").run(numbered(5))):
        break
    await outcomes.aclose()
    await asyncio.sleep(100)
    assert service.saved == ["0"]


@virtual_time
async def test_nothing_is_submitted_after_max_failures() -> None:
    """Unsent jobs are cancelled, and every submitted request has an outcome."""

    def ends(future: TaskFuture, _index: int) -> None:
        asyncio.get_running_loop().call_later(1, future.record.fail, KlingError("broken"))

    service = Service(ends)
    outcomes = [outcome async for outcome in bulk(service, max_failures=3).run(numbered(1000))]
    assert service.submitted < 20
    assert len(outcomes) == service.submitted
    assert service.cancelled


@pytest.mark.parametrize("error", [ZeroDivisionError("no photos"), asyncio.CancelledError("no photos")])
@virtual_time
async def test_a_broken_source_is_raised_after_the_outcomes(error: BaseException) -> None:
    """Requests that were submitted before the source failed still have their outcomes.

    A source that awaits a cancelled task raises `CancelledError`. That must not look like a complete map.
    """

    def source() -> Iterator[ExpandRequest]:
        yield from numbered(4)
        raise error

    seen: list[int] = []

    async def read() -> None:
        async for outcome in bulk(Service()).run(source()):
            seen.append(outcome.index)  # noqa: PERF401 - the loop ends in an error

    with pytest.raises((ZeroDivisionError, RuntimeError), match="no photos"):
        await read()
    assert sorted(seen) == [0, 1, 2, 3]


@virtual_time
async def test_leaving_early_cancels_unsent_jobs() -> None:
    """After a `break`, the map cancels unsent jobs and leaves the rest of the source unread."""
    service, source = Service(), numbered(1000)
    outcomes = bulk(service).run(source)
    async for _ in outcomes:
        break
    await outcomes.aclose()
    assert service.cancelled
    assert service.submitted < 30
    assert sum(1 for _ in source) == 1000 - service.submitted


@virtual_time
async def test_an_empty_source_has_no_outcomes() -> None:
    """A map over an empty source ends without an outcome."""
    assert [outcome async for outcome in bulk(Service()).run([])] == []


@pytest.mark.parametrize("ordered", [False, True])
@virtual_time
async def test_a_deadline_holds_for_each_job(*, ordered: bool) -> None:
    """A job whose task never ends has its outcome at its deadline, and other jobs are not affected."""
    loop = asyncio.get_running_loop()

    def ends(future: TaskFuture, index: int) -> float | None:
        future.deadline_at = loop.time() + 5
        return None if index % 2 else 1.0

    outcomes = [outcome async for outcome in bulk(Service(ends), ordered=ordered).run(numbered(6))]
    assert loop.time() == pytest.approx(5)
    late = {outcome.index for outcome in outcomes if isinstance(outcome.error, DeadlineExceeded)}
    assert late == {1, 3, 5}
    assert sum(outcome.result is not None for outcome in outcomes) == 3


@virtual_time
async def test_a_source_that_ignores_cancellation_does_not_block_aclose() -> None:
    """`aclose` returns in bounded time, and requests that the source yields later are not submitted."""
    loop, service = asyncio.get_running_loop(), Service()

    async def source() -> AsyncIterator[ExpandRequest]:
        first, second = numbered(2)
        yield first
        until = loop.time() + 100
        while loop.time() < until:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(until - loop.time())
        yield second

    outcomes = bulk(service).run(source())
    assert (await anext(outcomes)).result
    began = loop.time()
    await outcomes.aclose()
    assert loop.time() - began <= SOURCE_CLOSE_TIMEOUT
    await asyncio.sleep(200)
    assert service.submitted == 1


@virtual_time
async def test_a_waiting_source_is_closed_at_once() -> None:
    """A source that waits forever for more work is interrupted when the reader stops."""
    closed = asyncio.Event()

    async def source() -> AsyncIterator[ExpandRequest]:
        try:
            yield next(numbered(1))
            await asyncio.Event().wait()
        finally:
            closed.set()

    outcomes = bulk(Service()).run(source())
    assert (await anext(outcomes)).result
    began = asyncio.get_running_loop().time()
    await outcomes.aclose()
    assert closed.is_set()
    assert asyncio.get_running_loop().time() == began


@virtual_time
async def test_a_cancelled_reader_cancels_unsent_jobs() -> None:
    """A cancelled task or a failing TaskGroup around the loop acts like a `break`."""
    service = Service(lambda _future, _index: None)

    async def read() -> None:
        async for _ in bulk(service).run(numbered(100)):
            pass

    reader = asyncio.create_task(read())
    await asyncio.sleep(1)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert len(service.cancelled) == service.submitted == 10
