"""The poll loop: few requests, low latency and no lost task, whatever the list or the network does."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from math import inf, nan
from random import Random
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stepping_loop import SteppingLoop, arm

from kling_expand import (
    BadRequest,
    Event,
    EventKind,
    Image,
    KlingError,
    ProtocolError,
    RateLimited,
    ServerError,
    Settings,
    Task,
    TaskFailed,
    TaskFuture,
    TaskNotFound,
    TransportError,
)
from kling_expand.jobs.poll_schedule import AdaptiveSchedule, ExponentialSchedule, PollSchedule
from kling_expand.jobs.poller import MAX_PAGE, NOT_FOUND_TIMEOUT, Poller
from kling_expand.testing import VirtualLoop, run, virtual_time

WORDS = ("submitted", "processing", "succeed")


class Service:
    """Tasks that end at a given time, a list of them, and a count of every request."""

    def __init__(self) -> None:
        self.begins: dict[str, float] = {}
        self.ends: dict[str, float] = {}
        self.singles = self.pages = 0
        self.under_way = self.most_under_way = 0
        self.order: Callable[[list[str]], list[str]] = lambda ids: ids[::-1]
        self.problem: Callable[[], KlingError | None] = lambda: None
        self.no_list: KlingError | None = None

    def task(self, task_id: str) -> Task:
        now, end = asyncio.get_running_loop().time(), self.ends[task_id]
        word, updated = ("succeed", end) if now >= end else ("processing", now)
        created = round(1000 * self.begins.get(task_id, 0.0))
        return Task(
            task_id,
            word,
            external_task_id=f"mine-{task_id}",
            created_at=created,
            updated_at=round(1000 * updated),
        )

    async def one(self, any_id: str) -> Task:
        self.singles += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0.1)
        self.under_way -= 1
        if (error := self.problem()) is not None:
            raise error
        task_id = any_id.removeprefix("mine-")
        if task_id not in self.ends:
            raise TaskNotFound("Task not found by id/external id", code=1201)
        return self.task(task_id)

    async def page(
        self, number: int, size: int, known_status: Callable[[str], str | None]
    ) -> tuple[dict[str, Task | None], bool]:
        assert size <= MAX_PAGE
        self.pages += 1
        await asyncio.sleep(0.1)
        if self.no_list is not None:
            raise self.no_list
        shown = self.order(list(self.ends))[(number - 1) * size : number * size]
        ours = {each: self.task(each) for each in shown if known_status(each) is not None}
        changes = {
            each: task if task.task_status != known_status(each) else None for each, task in ours.items()
        }
        return changes, len(shown) < size


class PolledTask:
    """A poller over a service, with jobs that begin on request."""

    def __init__(self, poller: Poller, service: Service) -> None:
        self.poller = poller
        self.service = service
        self.latency: list[float] = []

    def begin(
        self, task_id: str, seconds: float, any_id: str | None = None, *, callback: float | None = None
    ) -> TaskFuture:
        """Begin a task. With *callback*, a callback arrives that many seconds after the end."""
        loop = asyncio.get_running_loop()
        self.service.begins[task_id] = loop.time()
        end = self.service.ends[task_id] = loop.time() + seconds
        future = TaskFuture(any_id or task_id)
        if any_id is None:
            future.record.deliver(Task(task_id, "submitted"))
        future.add_done_callback(lambda _: self.latency.append(loop.time() - end))
        self.poller.add(future.record, calls_back=callback is not None)
        if callback is not None and callback < inf:
            loop.call_later(seconds + callback, self.call, task_id)
        return future

    def call(self, task_id: str) -> None:
        """Deliver a signed callback about a task, as `KlingClient.receive` does."""
        if not self.poller.deliver(self.service.task(task_id)):
            self.poller.poll_now(task_id)

    async def work(
        self, number: int, concurrent: int, callback: Callable[[int], float | None], seed: int = 6
    ) -> None:
        """Run *number* tasks of log-normal duration, whose callbacks are delayed as *callback* says."""
        remaining, rng, first = iter(range(number)), Random(seed), len(self.service.ends)

        async def worker() -> None:
            for index in remaining:
                seconds = 12 * rng.lognormvariate(0, 0.35)
                await self.begin(f"{first + index}", seconds, callback=callback(index))

        await asyncio.gather(*(worker() for _ in range(concurrent)))


def poll_in_virtual_time(
    test: Callable[[PolledTask], Awaitable[None]],
    schedule: PollSchedule | None = None,
    budget: float = 900.0,
    loop: type[VirtualLoop] = VirtualLoop,
) -> PolledTask:
    """Run *test* with a poller in virtual time, and return what it watched."""
    polled: list[PolledTask] = []

    async def main() -> None:
        service = Service()
        async with Poller(
            service, schedule or ExponentialSchedule(Random(1)), Settings(poll_timeout=budget)
        ) as poller:
            polled.append(PolledTask(poller, service))
            await test(polled[0])

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    return polled[0]


def test_one_task_is_read_singly_until_its_end() -> None:
    """A single open task is read without list pages."""

    async def test(polled: PolledTask) -> None:
        await polled.begin("1", 30)

    polled = poll_in_virtual_time(test)
    assert polled.service.pages == 0
    assert 5 <= polled.service.singles <= 9
    assert len(polled.poller) == 0


def test_a_hundred_tasks_share_their_reads() -> None:
    """Tasks that share list pages need far less than one request each, and have a low latency."""

    async def test(polled: PolledTask) -> None:
        rng = Random(2)
        for _ in range(4):
            futures = [polled.begin(str(rng.random()), 12 * rng.lognormvariate(0, 0.35)) for _ in range(100)]
            await asyncio.gather(*futures)

    polled = poll_in_virtual_time(test, AdaptiveSchedule())
    assert (polled.service.pages + polled.service.singles) / 400 < 0.45
    assert sum(polled.latency[100:]) / 300 < 0.35


ORDERS: dict[str, Callable[[list[str]], list[str]]] = {
    "newest first": lambda ids: ids[::-1],
    "oldest first": lambda ids: ids,
    "shuffled": lambda ids: Random(len(ids)).sample(ids, len(ids)),
    "nothing shown": lambda _ids: [],
    "every other": lambda ids: ids[::2],
    "others first": lambda ids: [*(f"other-{i}" for i in range(10_000)), *ids],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_list_pages_may_show_anything_in_any_order(order: Callable[[list[str]], list[str]]) -> None:
    """Whatever the list shows, and in whatever order, the end of every task is noticed soon."""

    async def test(polled: PolledTask) -> None:
        polled.service.order = order
        rng = Random(3)
        await asyncio.gather(*(polled.begin(str(i), 5 + 20 * rng.random()) for i in range(40)))

    polled = poll_in_virtual_time(test)
    assert len(polled.latency) == 40
    assert max(polled.latency) < 12


@pytest.mark.parametrize(
    "error", [ServerError("500"), BadRequest("no list", code=1200), TransportError("reset")]
)
def test_single_reads_replace_a_refused_list(error: KlingError) -> None:
    """Single reads replace a refused list, which is not requested again for a while."""

    async def test(polled: PolledTask) -> None:
        polled.service.no_list = error
        await asyncio.gather(*(polled.begin(str(i), 30 + i) for i in range(20)))

    polled = poll_in_virtual_time(test)
    assert polled.service.pages <= 3
    assert polled.service.most_under_way <= 16


def test_a_1302_on_lists_alone_stops_no_single_read() -> None:
    """While only lists are refused, tasks are read singly and every end is noticed."""

    async def test(polled: PolledTask) -> None:
        loop = asyncio.get_running_loop()
        futures = [polled.begin(str(i), 60 + i) for i in range(40)]
        await asyncio.sleep(20)
        pages = polled.service.pages
        polled.service.no_list = RateLimited("too many requests", code=1302)
        await asyncio.gather(*futures)
        assert loop.time() < 112
        assert polled.service.pages - pages <= 5

    poll_in_virtual_time(test)


def test_a_persistent_1302_ends_the_wait() -> None:
    """A 1302 that persists ends the wait after `poll_timeout` and is raised."""

    async def test(polled: PolledTask) -> None:
        error = RateLimited("too many requests", code=1302)
        polled.service.no_list, polled.service.problem = error, lambda: error
        futures = [polled.begin(str(i), 600) for i in range(3)]
        for future in futures:
            with pytest.raises(RateLimited):
                await future
        assert 60 <= asyncio.get_running_loop().time() < 120

    poll_in_virtual_time(test, budget=60)


def test_a_list_that_failed_is_used_again_later() -> None:
    """A list that failed is read again after a while, and then used."""

    async def test(polled: PolledTask) -> None:
        polled.service.no_list = ServerError("500")
        futures = [polled.begin(str(i), 400) for i in range(20)]
        await asyncio.sleep(100)
        polled.service.no_list, before = None, polled.service.singles
        await asyncio.gather(*futures)
        assert polled.service.singles - before < 20 * 15

    poll_in_virtual_time(test)


def test_a_thousand_open_tasks_still_share_their_reads() -> None:
    """A thousand open tasks still share their reads, with few requests and a low latency."""

    async def test(polled: PolledTask) -> None:
        rng, futures = Random(5), []
        for i in range(3000):
            futures.append(polled.begin(str(i), 12 * rng.lognormvariate(0, 0.35)))
            await asyncio.sleep(0.012)
        await asyncio.gather(*futures)

    polled = poll_in_virtual_time(test, AdaptiveSchedule())
    assert (polled.service.pages + polled.service.singles) / 3000 < 0.3
    assert sum(polled.latency[1000:]) / 2000 < 0.7


TRANSIENT: list[KlingError] = [
    ServerError("503"),
    TransportError("reset"),
    TransportError("no response in time"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=str)
def test_transient_failures_end_no_wait(error: KlingError) -> None:
    """Minutes of transient failures do not end a wait, and the result arrives after them."""

    async def test(polled: PolledTask) -> None:
        loop = asyncio.get_running_loop()
        polled.service.problem = lambda: error if loop.time() < 300 else None
        future = polled.begin("1", 10)
        assert (await future).task_id == "1"
        assert loop.time() < 320

    poll_in_virtual_time(test)


def test_failures_beyond_poll_timeout_end_the_wait_with_ids() -> None:
    """After `poll_timeout` the last failure is raised with the ids of the task."""

    async def test(polled: PolledTask) -> None:
        polled.service.problem = lambda: ServerError("down")
        future = polled.begin("1", 10)
        with pytest.raises(ServerError) as caught:
            await future
        assert caught.value.task_id == "1"
        assert 60 <= asyncio.get_running_loop().time() < 80

    poll_in_virtual_time(test, budget=60)


SCHEDULES: list[Callable[[Random], PollSchedule]] = [ExponentialSchedule, lambda _rng: AdaptiveSchedule()]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(SCHEDULES))
def test_every_end_is_noticed_and_no_task_is_read_twice_at_once(
    seed: int, make: Callable[[Random], PollSchedule]
) -> None:
    """Every end is noticed although lists, reads and callbacks may be wrong or fail at any moment."""
    rng = Random(seed)

    def anything(ids: list[str]) -> list[str]:
        shown = rng.choice(list(ORDERS.values()))(ids)
        return [each for each in shown if rng.random() < 0.9]

    async def test(polled: PolledTask) -> None:
        service, reading = polled.service, set[str]()
        one, page = service.one, service.page

        async def once(any_id: str) -> Task:
            assert any_id not in reading
            reading.add(any_id)
            try:
                return await one(any_id)
            finally:
                reading.remove(any_id)

        async def sometimes(*asked: Any) -> Any:
            service.no_list = rng.choice([None] * 8 + [ServerError("500"), RateLimited("1302")])
            for each in rng.sample(list(service.ends), min(3, len(service.ends))):
                polled.poller.poll_now(each)
            return await page(*asked)

        service.order = anything
        service.one, service.page = once, sometimes  # type: ignore[method-assign, assignment]
        service.problem = lambda: ServerError("503") if rng.random() < 0.2 else None
        futures = []
        for index in range(40):
            futures.append(polled.begin(str(index), 12 * rng.lognormvariate(0, 0.35)))
            await asyncio.sleep(rng.random())
        await asyncio.gather(*futures)

    polled = poll_in_virtual_time(test, make(rng))
    assert len(polled.latency) == 40
    assert max(polled.latency) < 120  # one poll in five fails, and polls are up to 11 s apart


def test_a_read_that_ends_after_its_task_does_not_keep_the_loop_busy() -> None:
    """The loop still pauses if a read returns after a callback has ended its task and one task is left."""

    async def test(polled: PolledTask) -> None:
        first, last = polled.begin("1", 10), polled.begin("2", 60)
        await asyncio.sleep(10.1)
        assert polled.service.pages
        polled.poller.poll_now("1")
        await asyncio.sleep(0.05)  # the read is in progress
        polled.poller.deliver(polled.service.task("1"))
        assert first.done()
        arm(10_000, lambda: pytest.fail("the poll loop runs without a pause"))
        await last

    poll_in_virtual_time(test, loop=SteppingLoop)


def test_a_good_response_restarts_poll_timeout() -> None:
    """`poll_timeout` limits the time without a good response, not the duration of a task."""

    async def test(polled: PolledTask) -> None:
        loop = asyncio.get_running_loop()
        polled.service.problem = lambda: ServerError("down") if loop.time() % 50 < 30 else None
        await polled.begin("1", 1000)

    poll_in_virtual_time(test, budget=60)


def test_refusals_end_a_known_task_only_when_they_last() -> None:
    """A wait survives refusals for 60 s and four responses, and a good response resets the count."""

    async def test(polled: PolledTask) -> None:
        loop = asyncio.get_running_loop()
        refused: list[KlingError | None] = [BadRequest("no", code=1200)]
        polled.service.problem = lambda: refused[0]
        passing = polled.begin("1", 70)
        await asyncio.sleep(50)
        refused[0] = None
        await passing
        refused[0], began = BadRequest("no", code=1200), loop.time()
        with pytest.raises(BadRequest) as caught:
            await polled.begin("2", 1000)
        assert caught.value.task_id == "2"
        assert 60 <= loop.time() - began <= 85

    poll_in_virtual_time(test)


def test_a_refusal_ends_the_wait_for_an_unknown_id_at_once() -> None:
    """A refusal is final if no response has shown that the task exists."""

    async def test(polled: PolledTask) -> None:
        polled.service.problem = lambda: BadRequest("no", code=1200)
        future = TaskFuture("no such task")
        polled.poller.add(future.record, resumed=True)
        with pytest.raises(BadRequest):
            await future

    assert poll_in_virtual_time(test).service.singles == 1


def test_rare_polls_do_not_make_the_first_bad_response_final() -> None:
    """The time limit counts from the first bad response, not from the last good one."""

    class RareSchedule(ExponentialSchedule):
        def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
            del ages, price
            return 1000.0

    async def test(polled: PolledTask) -> None:
        bad = [ServerError("503")]
        polled.service.problem = lambda: bad.pop() if bad else None
        await polled.begin("1", 900)

    polled = poll_in_virtual_time(test, RareSchedule(Random(1)))
    assert polled.latency[0] < 200


def test_a_status_that_stays_unknown_ends_the_wait_with_ids() -> None:
    """An undocumented status is polled for the whole time limit, and then named in the error."""

    async def test(polled: PolledTask) -> None:
        polled.service.task = lambda task_id: Task(task_id, "sleeping")  # type: ignore[method-assign]  # odd word
        with pytest.raises(ProtocolError, match="'sleeping'") as caught:
            await polled.begin("1", 5)
        assert caught.value.task_id == "1"
        assert 300 <= asyncio.get_running_loop().time() <= 330

    poll_in_virtual_time(test, budget=300)


def test_data_of_another_task_counts_as_a_failure() -> None:
    """A response with another task's data counts as a failure."""

    async def test(polled: PolledTask) -> None:
        polled.service.task = lambda task_id: Task("9", "succeed", task_id)  # type: ignore[method-assign]  # foreign
        with pytest.raises(ProtocolError, match="another task"):
            await polled.begin("1", 5)

    poll_in_virtual_time(test, budget=100)


@pytest.mark.parametrize("late", [3.0, None])
def test_a_success_without_pictures_is_polled_for_another_minute(late: float | None) -> None:
    """A task that succeeded without pictures is polled for one more minute, and then accepted as it is."""

    async def test(polled: PolledTask) -> None:
        loop, real = asyncio.get_running_loop(), polled.service.task

        def task(task_id: str) -> Task:
            complete = late is not None and loop.time() >= polled.service.ends[task_id] + late
            return evolve(real(task_id), images=(Image(0, "http://x/0.png"),) if complete else ())

        polled.service.task = task  # type: ignore[method-assign]  # its pictures come late
        future = polled.begin("1", 10)
        future.record.pictures = 1
        result = await future
        assert len(result.images) == (late is not None)
        assert polled.latency[0] <= (8 if late else 75)

    poll_in_virtual_time(test)


def test_ends_are_noticed_if_the_list_never_changes() -> None:
    """If a list never changes, single reads notice the ends soon."""

    async def test(polled: PolledTask) -> None:
        service, page = polled.service, polled.service.page

        async def frozen(number: int, size: int, known_status: Callable[[str], str | None]) -> Any:
            shown, last = await page(number, size, known_status)
            return {each: Task(each, "submitted") for each in shown}, last

        service.page = frozen  # type: ignore[method-assign]  # a list that never changes
        for _ in range(3):
            await asyncio.gather(*(polled.begin(f"{service.singles}-{i}", 20 + i) for i in range(8)))

    assert max(poll_in_virtual_time(test).latency) < 14


def test_ends_are_noticed_if_the_list_lags() -> None:
    """A list that is 40 s behind does not delay a result by 40 s."""

    async def test(polled: PolledTask) -> None:
        service, page = polled.service, polled.service.page

        async def lagging(number: int, size: int, known_status: Callable[[str], str | None]) -> Any:
            now, true = asyncio.get_running_loop().time(), service.task
            service.task = lambda task_id: (  # type: ignore[method-assign]  # the state 40 s ago
                true(task_id) if now - 40 >= service.ends[task_id] else Task(task_id, "processing")
            )
            try:
                return await page(number, size, known_status)
            finally:
                service.task = true  # type: ignore[method-assign]  # single reads are up to date

        service.page = lagging  # type: ignore[method-assign]  # a list that lags
        for _ in range(4):
            await asyncio.gather(*(polled.begin(f"{service.singles}-{i}", 25 + i) for i in range(8)))

    assert max(poll_in_virtual_time(test).latency) < 14


def test_a_callback_during_a_read_causes_one_more_read() -> None:
    """The response to a read in progress may predate the callback, so one more read follows."""

    async def test(polled: PolledTask) -> None:
        loop, service = asyncio.get_running_loop(), polled.service

        async def one(any_id: str) -> Task:
            service.singles += 1
            snapshot = service.task(any_id)  # the state when the service responds
            await asyncio.sleep(0.1)
            return snapshot

        service.one = one  # type: ignore[method-assign]  # a response that takes time to arrive
        future = polled.begin("1", 1.0)
        polled.poller.poll_now("1")
        await asyncio.sleep(0.05)
        polled.service.ends["1"] = loop.time()
        polled.poller.poll_now("1")
        await future
        assert loop.time() < 0.5

    class RareSchedule(ExponentialSchedule):
        def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
            del ages, price
            return 60.0

    assert poll_in_virtual_time(test, RareSchedule(Random(1))).service.singles == 2


def test_a_new_task_may_be_invisible_for_a_while() -> None:
    """A task counts as missing only after some time, because a new one may not be visible yet."""

    async def test(polled: PolledTask) -> None:
        future = polled.begin("1", 5)
        end = polled.service.ends.pop("1")
        asyncio.get_running_loop().call_later(
            NOT_FOUND_TIMEOUT / 2, polled.service.ends.__setitem__, "1", end
        )
        assert await future
        gone = polled.begin("2", 5)
        del polled.service.ends["2"]
        with pytest.raises(TaskNotFound):
            await gone

    poll_in_virtual_time(test)


@pytest.mark.parametrize(("asked", "obeyed"), [(40.0, 40), (86_400.0, 300)])
def test_retry_after_is_obeyed(asked: float, obeyed: float) -> None:
    """The `Retry-After` of a failed read is obeyed up to `max_retry_after`, and polling continues."""

    async def test(polled: PolledTask) -> None:
        loop = asyncio.get_running_loop()
        times: list[float] = []

        def problem() -> KlingError | None:
            times.append(loop.time())
            return ServerError("later", retry_after=asked) if len(times) == 1 else None

        polled.service.problem = problem
        await polled.begin("1", 5)
        assert obeyed <= times[1] - times[0] < obeyed + 1

    poll_in_virtual_time(test)


def test_a_task_added_by_external_id_is_found_by_its_task_id() -> None:
    """After its first snapshot, a task added by the caller's id is also found by the service's id."""

    async def test(polled: PolledTask) -> None:
        future = polled.begin("1", 500, any_id="mine-1")
        other = polled.begin("2", 500)
        await asyncio.sleep(30)
        assert future.task_id == "1"
        assert polled.poller.deliver(Task("1", "succeed"))
        assert (await future).task_id == "1"
        await asyncio.sleep(0)
        assert not polled.poller.deliver(Task("1", "succeed"))
        assert not polled.poller.poll_now("1")
        await other

    poll_in_virtual_time(test)


def test_all_futures_of_one_task_end_with_it() -> None:
    """All futures of a task end together, by a poll or a callback, whichever id they were attached by."""

    async def test(polled: PolledTask) -> None:
        futures = [polled.begin("1", 60), polled.begin("1", 60), polled.begin("1", 60, any_id="mine-1")]
        await asyncio.gather(*futures)
        futures = [polled.begin("2", 600) for _ in range(3)]
        polled.poller.deliver(Task("2", "succeed"))
        await asyncio.gather(*futures)
        assert asyncio.get_running_loop().time() < 100

    assert len(poll_in_virtual_time(test).poller) == 0


def test_repeated_callbacks_cost_one_read_at_a_time() -> None:
    """A thousand forged callbacks during a read cause no second read and no list page."""

    async def test(polled: PolledTask) -> None:
        future, other = polled.begin("1", 30), polled.begin("2", 30)
        await asyncio.sleep(0)
        pages = polled.service.pages
        for _ in range(1000):
            polled.poller.poll_now("1")
        await asyncio.sleep(0.05)
        assert polled.service.singles == 1
        assert polled.service.pages == pages
        await asyncio.gather(future, other)

    poll_in_virtual_time(test)


def test_callbacks_during_a_list_read_cost_nothing_more() -> None:
    """Callbacks during a list read cost no more than the single read of each task that is due anyway."""

    async def test(polled: PolledTask) -> None:
        def shows_nothing(_ids: list[str]) -> list[str]:
            for _ in range(100):
                polled.poller.poll_now("1")
            return []

        polled.service.order = shows_nothing
        futures = [polled.begin("1", 30), polled.begin("2", 30)]
        await asyncio.sleep(1.5)
        assert (polled.service.pages, polled.service.singles) == (1, 2)
        await asyncio.gather(*futures)

    poll_in_virtual_time(test)


def test_a_callback_triggers_a_read() -> None:
    """A callback triggers one read at once, and the schedule stays the same."""

    async def test(polled: PolledTask) -> None:
        loop = asyncio.get_running_loop()
        future = polled.begin("1", 7.0)
        await asyncio.sleep(7.05)
        assert polled.poller.poll_now("1")
        await future
        assert loop.time() < 7.3
        assert not polled.poller.poll_now("unknown")

    poll_in_virtual_time(test)


@pytest.mark.parametrize("concurrent", [1, 10, 100])
def test_reliable_callbacks_replace_reads(concurrent: int) -> None:
    """Once callbacks arrive reliably, a job costs at most 0.05 reads, however many are open at once."""

    async def test(polled: PolledTask) -> None:
        service = polled.service
        await polled.work(100, 50, lambda _: 0.02)
        polled.latency.clear()
        before = service.pages + service.singles
        await polled.work(400, concurrent, lambda _: 0.02)
        assert service.pages + service.singles - before <= 0.05 * 400
        assert sum(polled.latency) / 400 < 0.05

    poll_in_virtual_time(test, AdaptiveSchedule())


@pytest.mark.parametrize("no_list", [None, ServerError("500")], ids=["lists", "no lists"])
@pytest.mark.parametrize(("concurrent", "worst"), [(1, 30), (10, 10), (100, 10)])
def test_polling_replaces_missing_callbacks(
    concurrent: int, worst: float, no_list: KlingError | None
) -> None:
    """Only the first missed ends are noticed late, and the switch to polling causes no burst of reads."""

    async def test(polled: PolledTask) -> None:
        service, reads = polled.service, Counter[int]()
        service.no_list = no_list
        one, page = service.one, service.page

        async def counted_one(any_id: str) -> Task:
            reads[int(asyncio.get_running_loop().time())] += 1
            return await one(any_id)

        async def counted_page(*asked: Any) -> Any:
            reads[int(asyncio.get_running_loop().time())] += 1
            return await page(*asked)

        service.one, service.page = counted_one, counted_page  # type: ignore[method-assign, assignment]
        await polled.work(100, 50, lambda _: 0.02)
        peaks = []
        for number, latest in ((max(20, 2 * concurrent), worst if no_list is None else 30), (50, 5)):
            polled.latency.clear()
            reads.clear()
            await polled.work(max(number, concurrent), concurrent, lambda _: inf)
            assert max(polled.latency) < latest
            peaks.append(max(reads.values()))
        assert sum(polled.latency) / len(polled.latency) < 1.0
        assert peaks[0] <= 1.2 * peaks[1] + 2

    poll_in_virtual_time(test, AdaptiveSchedule())


@pytest.mark.parametrize("delay", [30.0, inf])
def test_late_callbacks_change_nothing(delay: float) -> None:
    """If callbacks arrive too late or never, reads and latency are the same as without callbacks."""
    found = []
    for given_delay in (None, delay):

        async def test(polled: PolledTask, given_delay: float | None = given_delay) -> None:
            await polled.work(60, 2, lambda _: given_delay)

        polled = poll_in_virtual_time(test, AdaptiveSchedule())
        found.append((polled.service.pages + polled.service.singles, polled.latency))
    assert found[0] == found[1]


def test_callbacks_of_other_tasks_do_not_delay_reads() -> None:
    """Callbacks of some tasks do not delay the reads of a task that did not ask for callbacks."""

    async def test(polled: PolledTask) -> None:
        await polled.work(100, 50, lambda _: 0.02)
        polled.latency.clear()
        others = asyncio.create_task(polled.work(200, 10, lambda _: 0.02))
        plain = PolledTask(polled.poller, polled.service)
        for index in range(10):
            await plain.begin(f"plain-{index}", 12 + index / 10)
        await others
        assert max(plain.latency) < 2.5

    poll_in_virtual_time(test, AdaptiveSchedule())


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32))
def test_any_callback_may_be_lost_or_late(seed: int) -> None:
    """Every end is noticed within 40 s, whichever callbacks are lost or late."""
    rng = Random(seed)

    async def test(polled: PolledTask) -> None:
        lost = rng.random()
        await polled.work(
            60, rng.choice([1, 3, 30]), lambda _: inf if rng.random() < lost else rng.expovariate(1)
        )

    assert max(poll_in_virtual_time(test, AdaptiveSchedule()).latency) < 40


@pytest.mark.parametrize("part", ["wait", "learn", "read", "page"])
@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
def test_an_unexpected_exception_ends_no_job(
    part: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of a schedule or a read is logged, and the loop continues.

    The result of a cancelled task raises `CancelledError`, which is an exception like any other.
    """

    async def test(polled: PolledTask) -> None:
        service, loop = polled.service, asyncio.get_running_loop()

        class Broken(ExponentialSchedule):
            def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
                if part == "wait":
                    raise error
                return super().wait(ages, price)

            def learn(self, duration: float) -> None:
                if part == "learn":
                    raise error
                super().learn(duration)

        one, page = service.one, service.page

        async def broken_one(any_id: str) -> Task:
            if part == "read" and loop.time() < 20:
                raise error
            return await one(any_id)

        async def broken_page(number: int, size: int, known_status: Callable[[str], str | None]) -> Any:
            if part == "page" and loop.time() < 20:
                raise error
            return await page(number, size, known_status)

        service.one, service.page = broken_one, broken_page  # type: ignore[method-assign]  # a broken hook
        polled.poller._schedule = Broken(Random(1))
        await asyncio.gather(*(polled.begin(str(i), 30) for i in range(3)))
        await polled.begin("later", 5)

    poll_in_virtual_time(test)
    assert error.__name__ in caplog.text


@pytest.mark.parametrize("wait", [nan, inf, -1.0])
def test_an_invalid_wait_from_a_schedule_ends_no_job(wait: float) -> None:
    """A wait that is negative or not finite is replaced, so tasks are read neither constantly nor never."""

    class InvalidSchedule(ExponentialSchedule):
        def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
            del ages, price
            return wait

    async def test(polled: PolledTask) -> None:
        await asyncio.gather(*(polled.begin(str(i), 30) for i in range(3)))
        await polled.begin("later", 5)

    polled = poll_in_virtual_time(test, InvalidSchedule(Random(1)))
    assert max(polled.latency) < 6
    assert polled.service.singles + polled.service.pages < 30


def test_ends_are_emitted_with_their_duration_by_the_services_clock() -> None:
    """The latency is counted from the end by the service's clock to its arrival here."""
    events: list[Event] = []

    async def main() -> None:
        service = Service()

        def task(task_id: str) -> Task:
            now = asyncio.get_running_loop().time()
            word = WORDS[1 + (now >= 20)]
            return Task(task_id, word, created_at=5_000_000, updated_at=5_020_000)

        service.task = task  # type: ignore[method-assign]  # a service that sends its clock
        async with Poller(service, ExponentialSchedule(Random(1)), Settings(), emit=events.append) as poller:
            polled = PolledTask(poller, service)
            await polled.begin("1", 20)
            await asyncio.sleep(0)

    run(main())
    assert [event.kind for event in events] == [EventKind.ENDED]
    assert events[0].seconds == 20.0
    assert events[0].latency is not None
    assert 0 < events[0].latency < 12


@virtual_time
async def test_ten_thousand_open_tasks_need_no_asyncio_tasks() -> None:
    """Ten thousand open tasks need no asyncio tasks of their own."""
    service = Service()
    async with Poller(service, ExponentialSchedule(Random(1)), Settings()) as poller:
        polled, rng = PolledTask(poller, service), Random(4)
        futures = [polled.begin(str(i), 20 + 20 * rng.random()) for i in range(10_000)]
        await asyncio.sleep(5)
        assert len(asyncio.all_tasks()) < 25
        await asyncio.gather(*(islice(futures, 100)))
        assert len(poller.records()) == len(poller)


@virtual_time
async def test_a_failed_task_is_no_longer_polled() -> None:
    """The future of a failed task raises, and the task is no longer polled."""
    service = Service()
    service.task = lambda task_id: Task(task_id, "failed", "no")  # type: ignore[method-assign]
    async with Poller(service, ExponentialSchedule(Random(1)), Settings()) as poller:
        future = PolledTask(poller, service).begin("1", 5)
        with pytest.raises(TaskFailed, match="no"):
            await future
        assert len(poller) == 0
        poller.add(future.record)
        assert len(poller) == 0
