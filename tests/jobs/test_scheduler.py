"""How many at once: weights, turns, what refusals teach, and bounded work over endless requests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand import ExpandRequest, KlingError, NotSubmitted, Ratios, Task, TaskFuture
from kling_expand.jobs.bulk import BoundedMap
from kling_expand.jobs.scheduler import CALM, START, Flow, Slots, WeightedSemaphore
from kling_expand.testing import run, virtual_time


def numbered(count: int) -> Iterator[ExpandRequest]:
    """Requests that can be told apart by their prompts."""
    return (ExpandRequest("photo.png", Ratios(up=0.5), str(i)) for i in range(count))


# Each job: how many it takes, its priority, how long it holds them, and when it is cancelled, if it is.
JOBS = st.lists(
    st.tuples(
        st.integers(1, 9), st.integers(0, 2), st.floats(0, 5), st.none() | st.floats(0, 10, exclude_min=True)
    ),
    max_size=40,
)


@given(JOBS)
def test_the_capacity_is_kept_and_nobody_is_forgotten(
    jobs: list[tuple[int, int, float, float | None]],
) -> None:
    """However many are asked for, held and cancelled: the sum stays in bounds, and all of it comes back."""

    async def main() -> None:
        places, most = WeightedSemaphore(9), 0

        async def hold(n: int, priority: int, seconds: float, patience: float | None) -> None:
            nonlocal most
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await places.acquire(n, priority=priority)
                    try:
                        most = max(most, places.held)
                        await asyncio.sleep(seconds)
                    finally:
                        places.release(n)

        await asyncio.gather(*(hold(*job) for job in jobs))
        assert places.held == 0
        assert most <= 9

    run(main())


@virtual_time
async def test_who_waits_for_many_is_not_overtaken() -> None:
    """A task of nine pictures gets its turn though tasks of one keep coming."""
    places, served = WeightedSemaphore(9), []

    async def hold(n: int) -> None:
        await places.acquire(n)
        served.append(n)
        await asyncio.sleep(1)
        places.release(n)

    tasks = [asyncio.create_task(hold(n)) for n in (1, 9, 1, 1, 1)]
    await asyncio.gather(*tasks)
    assert served == [1, 9, 1, 1, 1]


@virtual_time
async def test_a_higher_priority_goes_first_and_a_refused_one_before_its_like() -> None:
    """Order is priority, then whoever tries again, then the order of asking."""
    places, served = WeightedSemaphore(1), []

    async def hold(name: str, priority: int, *, first: bool = False) -> None:
        await places.acquire(1, priority=priority, first=first)
        served.append(name)
        await asyncio.sleep(1)
        places.release(1)

    await asyncio.gather(
        hold("holder", 0), hold("low", 0), hold("again", 0, first=True), hold("high", 1), hold("later", 0)
    )
    assert served == ["holder", "high", "again", "low", "later"]


@virtual_time
async def test_lanes_take_turns() -> None:
    """A stream that has queued a thousand jobs does not keep out one that comes after it."""
    places, served, long, short = WeightedSemaphore(1), [], Flow(), Flow()

    async def hold(name: str, flow: Flow) -> None:
        await places.acquire(1, flow)
        served.append(name)
        await asyncio.sleep(1)
        places.release(1)

    jobs = [hold("long", long) for _ in range(50)] + [hold("short", short) for _ in range(5)]
    await asyncio.gather(*jobs)
    assert served.count("short") == 5
    assert max(i for i, name in enumerate(served) if name == "short") <= 11


class Account:
    """A service that takes so many pictures at once and refuses the rest, at once and free of charge."""

    def __init__(self, slots: Slots, limit: int) -> None:
        self.slots = slots
        self.limit = limit
        self.running = self.creates = self.refusals = 0
        self.busy: list[int] = []

    async def job(self, seconds: float) -> None:
        again = False
        while True:
            await self.slots.acquire(1, first=again)
            epoch = self.slots.epoch
            self.creates += 1
            await asyncio.sleep(0.5)
            if self.running < self.limit:
                break
            self.refusals += 1
            self.slots.refused(1, epoch)
            again = True
        self.running += 1
        self.slots.accepted(1)
        await asyncio.sleep(seconds)
        self.running -= 1
        self.busy.append(self.running)
        self.slots.ended(1)


async def work(account: Account, jobs: int) -> None:
    await asyncio.gather(*(account.job(10 + i % 7) for i in range(jobs)))


@pytest.mark.parametrize("limit", [1, 3, 9, 12, 37, 100])
def test_an_unknown_limit_is_found_and_kept(limit: int) -> None:
    """Whatever the account takes is found out in few refusals, and nearly all of it is used."""

    async def main() -> None:
        account = Account(Slots(100), limit)
        began = asyncio.get_running_loop().time()
        jobs = 60 * limit
        await work(account, jobs)
        taken = asyncio.get_running_loop().time() - began
        assert jobs * 13.0 / limit / taken > 0.85
        assert account.refusals < max(0.05 * account.creates, 2 * START)

    run(main())


@virtual_time
async def test_a_limit_that_falls_is_followed_in_steps() -> None:
    """When far more runs than is allowed any longer, not every end is followed by a refused create."""
    account = Account(Slots(100), 60)
    others = asyncio.gather(*(account.job(100) for _ in range(300)))
    await asyncio.sleep(60)
    account.limit = 10
    before = account.refusals
    await asyncio.sleep(400)
    assert account.running <= 10
    assert account.refusals - before < 40  # of the fifty that end beyond it, all within seconds
    others.cancel()


@virtual_time
async def test_creates_in_doubt_do_not_end_the_search() -> None:
    """They hold slots for seconds, so the whole capacity never runs at once; it is searched all the same."""
    slots = Slots(64)
    for _ in range(START // 2):
        await slots.acquire(1)  # and nobody can say what becomes of it
    for _ in range(10):
        free = slots.capacity - slots.held
        for _ in range(free):
            await slots.acquire(1)
        for _ in range(free):
            slots.accepted(1)
        for _ in range(free):
            slots.ended(1)
    assert slots.capacity == slots.limit


def test_one_job_at_a_time_proves_nothing() -> None:
    """However many are accepted one after another: nothing is known of more than ever was asked for."""
    slots = Slots(64)

    async def main() -> None:
        for _ in range(100):
            await slots.acquire(1)
            slots.accepted(1)
            slots.ended(1)

    run(main())
    assert slots.capacity == START


def test_a_refusal_of_long_ago_lowers_nothing() -> None:
    """A create that was refused after the capacity had fallen for others does not count twice."""
    slots = Slots(9)
    before = slots.epoch
    slots.held = 9
    slots.accepted(7)
    slots.refused(1, before)
    assert slots.capacity == 7
    slots.refused(1, before)  # sent at the same time as the first
    assert slots.capacity == 7
    slots.ended(CALM)
    assert slots.capacity == 7  # nobody waits for more


# ---------------------------------------------------------------------------- map


class Service:
    """Accepts everything and ends it when told; it counts what is open."""

    def __init__(self, ends: Callable[[TaskFuture, int], float | None] = lambda _future, _index: 1.0) -> None:
        self.open = self.most = self.submitted = 0
        self.ends = ends
        self.withdrawn: list[TaskFuture] = []

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
        self.withdrawn.append(future)
        future.record.fail(NotSubmitted("taken back"))


def bulk(service: Service, **options: int | bool) -> BoundedMap:
    given = {"prefetch": 10} | options
    return BoundedMap(service.submit, service.cancel, **given)  # type: ignore[arg-type]  # options of several types


@virtual_time
async def test_ordered_outcomes_come_in_the_order_of_the_requests() -> None:
    """Though the tasks end backwards."""
    service = Service(lambda _future, index: 100 - index)
    indexes = [outcome.index async for outcome in bulk(service, ordered=True).run(numbered(30))]
    assert indexes == list(range(30))
    assert service.most <= 10


@virtual_time
async def test_unordered_outcomes_come_as_they_end() -> None:
    """A slow one holds up nobody, and every request has exactly one outcome."""
    service = Service(lambda _future, index: 1000 if index == 0 else 1)
    indexes = [outcome.index async for outcome in bulk(service).run(numbered(30))]
    assert indexes[-1] == 0
    assert sorted(indexes) == list(range(30))


@virtual_time
async def test_a_slow_reader_slows_the_source() -> None:
    """What is not read is not replaced: only the look-ahead is ever held."""
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
async def test_one_failure_discards_nobody() -> None:
    """A failure is an outcome like any other."""

    def ends(future: TaskFuture, index: int) -> float | None:
        if index == 3:
            asyncio.get_running_loop().call_soon(future.record.fail, KlingError("broken"))
            return None
        return 1.0

    outcomes = [outcome async for outcome in bulk(Service(ends), ordered=True).run(numbered(8))]
    assert [outcome.error is not None for outcome in outcomes] == [i == 3 for i in range(8)]
    assert all((outcome.result is None) != (outcome.error is None) for outcome in outcomes)


@virtual_time
async def test_it_stops_after_so_many_failures() -> None:
    """Nothing more is submitted, what was not sent is taken back, and all that was begun has an outcome."""

    def ends(future: TaskFuture, _index: int) -> None:
        asyncio.get_running_loop().call_later(1, future.record.fail, KlingError("broken"))

    service = Service(ends)
    outcomes = [outcome async for outcome in bulk(service, max_failures=3).run(numbered(1000))]
    assert service.submitted < 20
    assert len(outcomes) == service.submitted
    assert service.withdrawn


@virtual_time
async def test_a_broken_source_is_raised_after_the_outcomes() -> None:
    """What was submitted before the source broke is not lost."""

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
    """The reader's `break` ends the feeding too; the rest of the source is its owner's."""
    service, source = Service(), numbered(1000)
    outcomes = bulk(service).run(source)
    async for _ in outcomes:
        break
    await outcomes.aclose()
    assert service.withdrawn
    assert service.submitted < 30
    assert sum(1 for _ in source) == 1000 - service.submitted


@virtual_time
async def test_an_empty_source_has_no_outcomes() -> None:
    """And does not wait for any."""
    assert [outcome async for outcome in bulk(Service()).run([])] == []
