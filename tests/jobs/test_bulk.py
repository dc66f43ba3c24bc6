"""The bounded map: order, back-pressure, deadlines, and readers and sources that stop early."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import pytest

from kling_expand import DeadlineExceeded, ExpandRequest, KlingError, NotSubmitted, Ratios, Task, TaskFuture
from kling_expand.jobs.bulk import SOURCE_CLOSE_TIMEOUT, BoundedMap
from kling_expand.testing import virtual_time


def numbered(count: int) -> Iterator[ExpandRequest]:
    """Requests that are distinguished by their prompts."""
    return (ExpandRequest("photo.png", Ratios(up=0.5), str(i)) for i in range(count))


class Service:
    """A service that accepts every job and ends it after a given time; it counts the open jobs."""

    def __init__(self, ends: Callable[[TaskFuture, int], float | None] = lambda _future, _index: 1.0) -> None:
        self.open = self.most = self.submitted = 0
        self.ends = ends
        self.cancelled: list[TaskFuture] = []

    def submit(self, request: ExpandRequest) -> TaskFuture:
        future, index = TaskFuture(f"job-{request.prompt}"), self.submitted
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
            future.record.deliver(Task(str(index), "succeed"))

    def cancel(self, future: TaskFuture) -> None:
        self.cancelled.append(future)
        future.record.fail(NotSubmitted("taken back"))


def bulk(service: Service, **options: int | bool) -> BoundedMap:
    given = {"prefetch": 10} | options
    return BoundedMap(service.submit, service.cancel, **given)  # type: ignore[arg-type]  # options of several types


@virtual_time
async def test_ordered_outcomes_come_in_the_order_of_the_requests() -> None:
    """The order holds although the tasks end in reverse order."""
    service = Service(lambda _future, index: 100 - index)
    indexes = [outcome.index async for outcome in bulk(service, ordered=True).run(numbered(30))]
    assert indexes == list(range(30))
    assert service.most <= 10


@virtual_time
async def test_unordered_outcomes_come_as_they_end() -> None:
    """A slow job delays no other outcome, and every request has exactly one."""
    service = Service(lambda _future, index: 1000 if index == 0 else 1)
    indexes = [outcome.index async for outcome in bulk(service).run(numbered(30))]
    assert indexes[-1] == 0
    assert sorted(indexes) == list(range(30))


@virtual_time
async def test_a_slow_reader_slows_the_source() -> None:
    """An outcome that is not read is not replaced, so at most *prefetch* requests are held."""
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
async def test_a_slow_source_does_not_hold_back_what_has_ended() -> None:
    """Outcomes are handed out while the next request is still being waited for."""
    loop = asyncio.get_running_loop()

    async def source() -> AsyncIterator[ExpandRequest]:
        for request in numbered(3):
            yield request
            await asyncio.sleep(100)

    times = [loop.time() async for _ in bulk(Service()).run(source())]
    assert times == pytest.approx([1, 101, 201])


@virtual_time
async def test_one_failure_discards_no_other_outcome() -> None:
    """A failure is an outcome, and all other requests have theirs."""

    def ends(future: TaskFuture, index: int) -> float | None:
        if index == 3:
            asyncio.get_running_loop().call_soon(future.record.fail, KlingError("broken"))
            return None
        return 1.0

    outcomes = [outcome async for outcome in bulk(Service(ends), ordered=True).run(numbered(8))]
    assert [outcome.error is not None for outcome in outcomes] == [i == 3 for i in range(8)]
    assert all((outcome.result is None) != (outcome.error is None) for outcome in outcomes)


@virtual_time
async def test_nothing_is_submitted_after_max_failures() -> None:
    """What was not sent is cancelled, and every submitted request has an outcome."""

    def ends(future: TaskFuture, _index: int) -> None:
        asyncio.get_running_loop().call_later(1, future.record.fail, KlingError("broken"))

    service = Service(ends)
    outcomes = [outcome async for outcome in bulk(service, max_failures=3).run(numbered(1000))]
    assert service.submitted < 20
    assert len(outcomes) == service.submitted
    assert service.cancelled


@virtual_time
async def test_a_broken_source_is_raised_after_the_outcomes() -> None:
    """Requests submitted before the source failed still have their outcomes."""

    def source() -> Iterator[ExpandRequest]:
        yield from numbered(4)
        raise ZeroDivisionError

    seen: list[int] = []

    with suppress(ZeroDivisionError):
        async for outcome in bulk(Service()).run(source()):
            seen.append(outcome.index)  # noqa: PERF401 - the loop ends in an error
        pytest.fail("the source's error was not raised")
    assert sorted(seen) == [0, 1, 2, 3]


@virtual_time
async def test_leaving_early_takes_back_what_was_not_sent() -> None:
    """A `break` of the reader stops the feeding, and the rest of the source stays unread."""
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
    """The map ends at once."""
    assert [outcome async for outcome in bulk(Service()).run([])] == []


@pytest.mark.parametrize("ordered", [False, True])
@virtual_time
async def test_a_deadline_holds_for_each_job_to_its_end(*, ordered: bool) -> None:
    """An outcome comes at its job's own deadline though its task never ends, and others are unharmed."""
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
async def test_a_source_that_ignores_cancellation_does_not_keep_the_reader() -> None:
    """`aclose` returns in bounded time, and nothing the source gives afterwards is submitted."""
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
async def test_a_source_that_waits_is_closed_at_once() -> None:
    """A source that waits for more work for ever is interrupted when its reader leaves."""
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
async def test_a_cancelled_reader_takes_back_what_was_not_sent() -> None:
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
