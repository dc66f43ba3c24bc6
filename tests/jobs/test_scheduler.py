"""Slots: weights, fairness, a limit learned from refusals, and recovery in bounded time."""

import asyncio
import heapq
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kling_expand.jobs.scheduler import (
    INITIAL_CAPACITY,
    LONGEST_PROBE_PAUSE,
    TASKS_PER_PROBE,
    Flow,
    Slots,
    WeightedSemaphore,
)
from kling_expand.testing import run, virtual_time

# Each job: the places it takes, its priority, how long it holds them, and when it is cancelled, if at all.
JOBS = st.lists(
    st.tuples(
        st.integers(1, 9), st.integers(0, 2), st.floats(0, 5), st.none() | st.floats(0, 10, exclude_min=True)
    ),
    max_size=40,
)


@given(JOBS)
def test_the_capacity_is_kept_and_every_waiter_is_served(
    jobs: list[tuple[int, int, float, float | None]],
) -> None:
    """Whatever is acquired, held or cancelled, the sum stays within the capacity and returns to zero."""

    async def main() -> None:
        semaphore, most = WeightedSemaphore(9), 0

        async def hold(n: int, priority: int, seconds: float, give_up_after: float | None) -> None:
            nonlocal most
            with suppress(TimeoutError):
                async with asyncio.timeout(give_up_after):
                    await semaphore.acquire(n, priority=priority)
                    try:
                        most = max(most, semaphore.held)
                        await asyncio.sleep(seconds)
                    finally:
                        semaphore.release(n)

        await asyncio.gather(*(hold(*job) for job in jobs))
        assert semaphore.held == 0
        assert most <= 9

    run(main())


@virtual_time
async def test_a_waiter_for_many_slots_is_not_starved() -> None:
    """A task of nine pictures gets its turn although tasks of one picture keep arriving."""
    semaphore, served = WeightedSemaphore(9), []

    async def hold(n: int) -> None:
        await semaphore.acquire(n)
        served.append(n)
        await asyncio.sleep(1)
        semaphore.release(n)

    tasks = [asyncio.create_task(hold(n)) for n in (1, 9, 1, 1, 1)]
    await asyncio.gather(*tasks)
    assert served == [1, 9, 1, 1, 1]


@virtual_time
async def test_the_last_end_lets_a_larger_task_try_at_once() -> None:
    """A refused task of two pictures is sent when the only running task ends, without a pause of its own."""
    slots, loop = Slots(9), asyncio.get_running_loop()
    await slots.acquire(1)
    slots.accepted(1)
    for _ in range(5):
        slots.refused(2, await slots.acquire(2, first=True))
    began_at = loop.time()
    waiting = asyncio.create_task(slots.acquire(2, first=True))
    await asyncio.sleep(5)
    assert not waiting.done()
    slots.ended(1)
    await waiting
    assert loop.time() == began_at + 5
    slots.release(2)
    assert slots.held == 0


@virtual_time
async def test_waiters_are_served_by_priority_then_retries_then_arrival() -> None:
    """Waiters are served by priority, then retries first, then in order of arrival."""
    semaphore, served = WeightedSemaphore(1), []

    async def hold(name: str, priority: int, *, first: bool = False) -> None:
        await semaphore.acquire(1, priority=priority, first=first)
        served.append(name)
        await asyncio.sleep(1)
        semaphore.release(1)

    await asyncio.gather(
        hold("holder", 0), hold("low", 0), hold("again", 0, first=True), hold("high", 1), hold("later", 0)
    )
    assert served == ["holder", "high", "again", "low", "later"]


@virtual_time
async def test_flows_take_turns() -> None:
    """A flow with many queued jobs does not block a flow that starts later."""
    semaphore, served, long, short = WeightedSemaphore(1), [], Flow(), Flow()

    async def hold(name: str, flow: Flow) -> None:
        await semaphore.acquire(1, flow)
        served.append(name)
        await asyncio.sleep(1)
        semaphore.release(1)

    jobs = [hold("long", long) for _ in range(50)] + [hold("short", short) for _ in range(5)]
    await asyncio.gather(*jobs)
    assert served.count("short") == 5
    assert max(i for i, name in enumerate(served) if name == "short") <= 11


@virtual_time
async def test_cancelled_waiters_cost_their_flow_no_turn() -> None:
    """A flow with 300 cancelled waiters still gets every second turn for its other jobs."""
    semaphore, served, tired, other = WeightedSemaphore(1), [], Flow(), Flow()

    async def hold(name: str, flow: Flow, give_up_after: float | None = None) -> None:
        async with asyncio.timeout(give_up_after):
            await semaphore.acquire(1, flow)
        served.append(name)
        await asyncio.sleep(1)
        semaphore.release(1)

    await semaphore.acquire(1)
    late = [hold("late", tired, 5) for _ in range(300)]
    waiting = asyncio.gather(*late, *(hold("tired", tired) for _ in range(10)), return_exceptions=True)
    await asyncio.sleep(6)
    others = asyncio.gather(*(hold("other", other) for _ in range(50)))
    await asyncio.sleep(1)
    semaphore.release(1)
    await asyncio.gather(waiting, others)
    assert served[:20].count("tired") == 10


@virtual_time
async def test_an_idle_flow_earns_no_extra_turns() -> None:
    """A flow that was idle while another was served gets alternate turns, and no more."""
    semaphore, served, busy, idle = WeightedSemaphore(1), [], Flow(), Flow()

    async def hold(name: str, flow: Flow) -> None:
        await semaphore.acquire(1, flow)
        served.append(name)
        await asyncio.sleep(1)
        semaphore.release(1)

    jobs = [asyncio.create_task(hold("busy", busy)) for _ in range(130)]
    await asyncio.sleep(100.5)
    await asyncio.gather(*jobs, *(hold("idle", idle) for _ in range(20)))
    assert 9 <= served[101:121].count("idle") <= 11


class Account:
    """A service that runs `limit` pictures at once, including `others`, and refuses the rest for free."""

    def __init__(self, slots: Slots, limit: int) -> None:
        self.slots = slots
        self.limit = limit
        self.others = self.running = self.most = self.creates = self.refusals = 0
        self.refused_at: list[float] = []
        self.created_at: list[float] = []

    async def job(self, seconds: float, n: int = 1) -> None:
        """Create a task of *n* pictures as soon as the slots and the service allow, and wait for its end."""
        loop, again = asyncio.get_running_loop(), False
        while True:
            epoch = await self.slots.acquire(n, first=again)
            self.creates += 1
            self.created_at.append(loop.time())
            await asyncio.sleep(0.5)
            if self.running + self.others + n <= self.limit:
                break
            self.refusals += 1
            self.refused_at.append(loop.time())
            self.slots.refused(n, epoch)
            again = True
        self.running += n
        self.most = max(self.most, self.running)
        self.slots.accepted(n)
        await self.end(seconds, n)

    async def attached(self, seconds: float) -> None:
        """Follow a task that already runs."""
        self.running += 1
        self.slots.force_acquire(1)
        await self.end(seconds, 1)

    async def end(self, seconds: float, n: int) -> None:
        await asyncio.sleep(seconds)
        self.running -= n
        self.slots.ended(n)

    async def burst(self, n: int, seconds: float) -> None:
        """Let another program take the next *n* free slots and hold them for a time."""
        self.others = n
        await asyncio.sleep(seconds)
        self.others = 0


async def work(account: Account, jobs: int) -> None:
    await asyncio.gather(*(account.job(10 + i % 7) for i in range(jobs)))


def oracle(free_at: list[float], jobs: int, seconds: float) -> float:
    """Return the time at which the last of *jobs* ends, if each starts as soon as a slot is free."""
    heap = sorted(free_at)
    for _ in range(jobs):
        heapq.heapreplace(heap, heap[0] + seconds)
    return max(heap)


@pytest.mark.parametrize("limit", [1, 3, 9, 12, 37, 100])
def test_an_unknown_limit_is_found_and_kept(limit: int) -> None:
    """The limit of an account is found with few refusals, and nearly all of it is used."""

    async def main() -> None:
        account = Account(Slots(100), limit)
        began = asyncio.get_running_loop().time()
        jobs = 60 * limit
        await work(account, jobs)
        taken = asyncio.get_running_loop().time() - began
        assert jobs * 13.0 / limit / taken > 0.85
        assert account.refusals < max(0.05 * account.creates, 2 * INITIAL_CAPACITY)

    run(main())


@virtual_time
async def test_a_limit_that_falls_is_followed_in_steps() -> None:
    """When the limit falls far, only some of the ended tasks are followed by a refused create."""
    account = Account(Slots(100), 60)
    others = asyncio.gather(*(account.job(100) for _ in range(300)))
    await asyncio.sleep(60)
    account.limit = 10
    before = account.refusals
    await asyncio.sleep(400)
    assert account.running <= 10
    assert account.refusals - before < 40  # of fifty tasks that end within seconds
    others.cancel()


@pytest.mark.parametrize("length", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("taken", [4, 8])
@pytest.mark.parametrize("limit", [9, 100])
@virtual_time
async def test_slots_recover_from_a_burst_of_another_program(limit: int, taken: int, length: float) -> None:
    """Jobs take at most 1.3 times as long as with an oracle, although the burst began before they ran."""
    account = Account(Slots(limit), 9)
    burst = asyncio.create_task(account.burst(taken, length))
    await asyncio.gather(*(account.job(30) for _ in range(60)))
    await burst
    free_at = [0.0] * (9 - taken) + [length] * taken
    assert asyncio.get_running_loop().time() <= 1.3 * oracle(free_at, 60, 30)


@virtual_time
async def test_slots_recover_from_a_burst_after_hours_of_refused_probes() -> None:
    """A pause that grew to minutes while the limit was steady does not delay the recovery from a burst."""
    account = Account(Slots(100), 9)
    jobs = asyncio.gather(*(account.job(30) for _ in range(800)))
    await asyncio.sleep(2000)
    await account.burst(8, 60)
    await asyncio.sleep(60)
    assert account.running == 9
    jobs.cancel()


@pytest.mark.parametrize("limit", [9, 100])
@virtual_time
async def test_attached_tasks_do_not_keep_the_capacity_down(limit: int) -> None:
    """After a restart with nine running tasks, new jobs start as the old tasks end, with few refusals."""
    account = Account(Slots(limit), 9)
    attached = [account.attached(3.0 * i) for i in range(9)]
    await asyncio.gather(*attached, *(account.job(30) for _ in range(60)))
    free_at = [3.0 * i for i in range(9)]
    assert asyncio.get_running_loop().time() <= 1.3 * oracle(free_at, 60, 30)
    assert account.refusals <= (0 if limit == 9 else 20)


@virtual_time
async def test_one_long_task_does_not_keep_other_slots_idle() -> None:
    """Free slots are found within seconds, although our only running task takes hours."""
    account, loop = Account(Slots(9), 9), asyncio.get_running_loop()
    long = asyncio.create_task(account.job(6 * 3600))
    await asyncio.sleep(1)
    burst = asyncio.create_task(account.burst(8, 5))
    began = loop.time()
    await asyncio.gather(*(account.job(30) for _ in range(60)))
    assert loop.time() - began <= 1.3 * oracle([5.0] * 8, 60, 30)
    await asyncio.gather(long, burst)


@given(
    length=st.floats(1, 400),
    taken=st.integers(1, 9),
    seconds=st.sampled_from([30, 100_000]),
    limit=st.sampled_from([9, 100]),
    most=st.integers(1, 4),
)
@settings(max_examples=30)
def test_free_slots_are_found_in_bounded_time(
    length: float, taken: int, seconds: int, limit: int, most: int
) -> None:
    """After any burst, all slots are used again within about the length of the burst."""

    async def main() -> None:
        account = Account(Slots(limit), 9)
        jobs = [asyncio.create_task(account.job(seconds, 1 + i % most)) for i in range(200)]
        await account.burst(taken, length)
        account.most = account.running
        await asyncio.sleep(min(1.1 * length, LONGEST_PROBE_PAUSE) + 10)
        assert account.most > 9 - most
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    run(main())


@pytest.mark.parametrize("own", [0, 1, 5])
@virtual_time
async def test_probes_are_few_and_pause_at_least_a_second(own: int) -> None:
    """While others hold the rest for an hour, each probe is one create, and the pauses grow to 5 minutes."""
    account = Account(Slots(9), 9)
    account.others = 9 - own
    jobs = [asyncio.create_task(account.job(1e5)) for _ in range(20)]
    await asyncio.sleep(3600)
    assert account.running == own
    assert account.refusals <= 9 - own + 20
    for refused_at in account.refused_at:
        assert not [at for at in account.created_at if refused_at < at < refused_at + 1]
    late = [at for at in account.created_at if at > 10]
    pauses = [after - before for before, after in pairwise(late)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PROBE_PAUSE + 0.5
    for job in jobs:
        job.cancel()


@virtual_time
async def test_a_task_larger_than_the_estimate_is_tried() -> None:
    """A task of nine pictures is sent although refusals have lowered the estimate to zero."""
    account = Account(Slots(9), 9)
    burst = asyncio.create_task(account.burst(1, 20))
    await asyncio.gather(account.job(30, 9), account.job(30, 9), burst)
    assert asyncio.get_running_loop().time() <= 20 + 2 * 30 + 20


@virtual_time
async def test_a_job_larger_than_the_account_does_not_stop_smaller_ones() -> None:
    """Smaller jobs use nearly all slots while a job finds no room. It runs soon after there is room."""
    account, loop = Account(Slots(9), 4), asyncio.get_running_loop()
    large = asyncio.create_task(account.job(20, 6))
    await asyncio.gather(*(account.job(20) for _ in range(100)))
    assert loop.time() <= 1.15 * oracle([0.0] * 4, 100, 20)
    assert account.refusals <= 25
    account.limit, began = 9, loop.time()
    await large
    assert loop.time() - began <= LONGEST_PROBE_PAUSE + 20


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    limit=st.integers(1, 8),
    gone=st.sets(st.integers(0, 29), max_size=5),
)
@settings(max_examples=30)
def test_every_job_that_the_account_has_room_for_ends(sizes: list[int], limit: int, gone: set[int]) -> None:
    """Jobs that fit end in bounded time, whatever larger ones wait or are cancelled."""

    async def main() -> None:
        account, loop = Account(Slots(9), limit), asyncio.get_running_loop()
        jobs = [asyncio.create_task(account.job(20, n)) for n in sizes]
        fits = [job for job, n in zip(jobs, sizes, strict=True) if n <= limit]
        await asyncio.sleep(100)
        for index in gone:
            if index < len(jobs) and sizes[index] > limit:
                jobs[index].cancel()
        await asyncio.gather(*fits)
        assert loop.time() <= 120 + 60 * len(sizes)
        account.limit, began = 9, loop.time()
        await asyncio.gather(*jobs, return_exceptions=True)
        assert loop.time() - began <= LONGEST_PROBE_PAUSE + 30 * len(sizes)
        assert account.slots.held == 0

    run(main())


@virtual_time
async def test_uncertain_creates_do_not_end_the_search() -> None:
    """The capacity grows to the limit although some creates hold slots and never get a response."""
    account = Account(Slots(64), 64)
    for _ in range(INITIAL_CAPACITY // 2):
        await account.slots.acquire(1)  # no response comes
    jobs = asyncio.gather(*(account.job(10) for _ in range(1000)))
    await asyncio.sleep(120)
    assert account.slots.capacity == 64
    assert account.running >= 0.9 * (64 - INITIAL_CAPACITY // 2)
    jobs.cancel()


@virtual_time
async def test_jobs_one_after_another_do_not_raise_the_estimate() -> None:
    """Jobs that are accepted one after another do not raise the estimate beyond their size."""
    slots = Slots(64)
    for _ in range(100):
        await slots.acquire(1)
        slots.accepted(1)
        slots.ended(1)
    assert slots.capacity == INITIAL_CAPACITY


@virtual_time
async def test_refusals_of_earlier_creates_do_not_lower_the_capacity() -> None:
    """Refusals of creates that were sent before the capacity fell do not lower it again."""
    slots = Slots(9)
    epochs = [await slots.acquire(1) for _ in range(9)]
    for _ in range(7):
        slots.accepted(1)
    slots.refused(1, epochs[7])
    assert slots.capacity == 7
    slots.ended(1)
    slots.refused(1, epochs[8])
    assert slots.capacity == 7
    for _ in range(TASKS_PER_PROBE):
        slots.force_acquire(1)
        slots.ended(1)
    assert slots.capacity == 7  # no job waits for more slots


class CheckedSlots:
    """The slots, and the numbers that they must have after each step."""

    def __init__(self, limit: int) -> None:
        self.slots = Slots(limit)
        self.waiting: dict[asyncio.Task[int], int] = {}
        self.granted: list[tuple[int, int]] = []  # pictures and epoch of each create in progress
        self.running: list[int] = []

    async def step(self, name: str, n: int) -> None:
        """Do one random action that is possible, and compare."""
        possible = {"ended": self.running, "cancel": self.waiting}
        if possible.get(name, self.granted if name in OUTCOMES else True):
            await getattr(self, name)(n)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ended = [task for task in self.waiting if task.done()]
        self.granted.extend((self.waiting.pop(task), task.result()) for task in ended)
        assert self.slots.running == sum(self.running)
        assert self.slots.held == self.slots.running + sum(n for n, _ in self.granted)
        assert 0 <= self.slots.capacity <= self.slots.limit

    async def acquire(self, n: int) -> None:
        task = asyncio.ensure_future(self.slots.acquire(n, first=n % 2 == 0, priority=n % 3))
        self.waiting[task] = n

    async def force_acquire(self, n: int) -> None:
        self.running.append(n)
        self.slots.force_acquire(n)

    async def wait(self, n: int) -> None:
        await asyncio.sleep(n * n)

    async def cancel(self, n: int) -> None:
        task = list(self.waiting)[n % len(self.waiting)]
        task.cancel()  # perhaps at the moment at which it is granted
        await asyncio.gather(task, return_exceptions=True)
        if task.cancelled():
            del self.waiting[task]

    async def ended(self, n: int) -> None:
        self.slots.ended(self.running.pop(n % len(self.running)))

    async def accepted(self, n: int) -> None:
        n, _ = self.granted.pop(n % len(self.granted))
        self.running.append(n)
        self.slots.accepted(n)

    async def refused(self, n: int) -> None:
        self.slots.refused(*self.granted.pop(n % len(self.granted)))

    async def release(self, n: int) -> None:
        self.slots.release(self.granted.pop(n % len(self.granted))[0])

    async def finish(self) -> None:
        """Accept and end every task, and check that each waiter is served in bounded time."""
        while self.waiting or self.granted or self.running:
            await self.step("accepted", 0)
            await self.step("ended", 0)
            if self.waiting and not self.granted and not self.running:
                await asyncio.wait(self.waiting, timeout=LONGEST_PROBE_PAUSE)
                await self.step("wait", 0)
                assert self.granted
        assert (self.slots.held, self.slots.running) == (0, 0)


OUTCOMES = ("accepted", "refused", "release")
STEPS = st.sampled_from([*OUTCOMES, "acquire", "acquire", "ended", "cancel", "force_acquire", "wait"])


@given(limit=st.integers(1, 12), steps=st.lists(st.tuples(STEPS, st.integers(1, 12)), max_size=60))
def test_the_counts_are_right_after_any_sequence(limit: int, steps: list[tuple[str, int]]) -> None:
    """The held and running counts are right, the capacity is within bounds, and every waiter is served."""

    async def main() -> None:
        checked = CheckedSlots(limit)
        for name, n in steps:
            await checked.step(name, min(n, limit))
        await checked.finish()

    run(main())
