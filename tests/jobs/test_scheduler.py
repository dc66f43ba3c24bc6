"""How many at once: weights, turns, what refusals teach, and bounded work over endless requests."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.jobs.scheduler import CALM, START, Flow, Slots, WeightedSemaphore
from kling_expand.testing import run, virtual_time

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
async def test_flows_take_turns() -> None:
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


@virtual_time
async def test_waiters_that_gave_up_cost_their_flow_nothing() -> None:
    """A flow of which 300 gave up still gets every second turn, also for jobs that waited behind those."""
    places, served, tired, other = WeightedSemaphore(1), [], Flow(), Flow()

    async def hold(name: str, flow: Flow, patience: float | None = None) -> None:
        async with asyncio.timeout(patience):
            await places.acquire(1, flow)
        served.append(name)
        await asyncio.sleep(1)
        places.release(1)

    await places.acquire(1)
    late = [hold("late", tired, 5) for _ in range(300)]
    waiting = asyncio.gather(*late, *(hold("tired", tired) for _ in range(10)), return_exceptions=True)
    await asyncio.sleep(6)
    others = asyncio.gather(*(hold("other", other) for _ in range(50)))
    await asyncio.sleep(1)
    places.release(1)
    await asyncio.gather(waiting, others)
    assert served[:20].count("tired") == 10


@virtual_time
async def test_idle_time_gives_a_flow_no_claim() -> None:
    """A flow that was idle while another was served a hundred times takes turns with it, no more."""
    places, served, busy, idle = WeightedSemaphore(1), [], Flow(), Flow()

    async def hold(name: str, flow: Flow) -> None:
        await places.acquire(1, flow)
        served.append(name)
        await asyncio.sleep(1)
        places.release(1)

    jobs = [asyncio.create_task(hold("busy", busy)) for _ in range(130)]
    await asyncio.sleep(100.5)
    await asyncio.gather(*jobs, *(hold("idle", idle) for _ in range(20)))
    assert 9 <= served[101:121].count("idle") <= 11


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
