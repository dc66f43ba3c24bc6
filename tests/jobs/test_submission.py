"""How is a task created exactly once? Against an emulator that would bill twice, and a network that fails."""

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.raw_server import Exchange, Loopback, loopback, refuses, task

from kling_expand.api import codec
from kling_expand.api.photo import load_photo
from kling_expand.api.session import Body, Session
from kling_expand.auth import StaticKey
from kling_expand.config import Settings
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.errors import (
    APIError,
    DeadlineExceeded,
    DuplicateTask,
    KlingError,
    ParallelLimit,
    SubmissionUnknown,
    TransportError,
)
from kling_expand.events import EventKind
from kling_expand.geometry import Ratios
from kling_expand.jobs.submission import SETTLE, Submitter
from kling_expand.models import Dialect, ExpandRequest, Task
from kling_expand.testing import loop_clock, run, virtual_time

PHOTO = (Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg").read_bytes()
REQUEST = ExpandRequest(PHOTO, Ratios(right=0.5))
EVER = 10_000  # times


class Creating:
    """A submitter, its session, and the emulator it speaks to."""

    def __init__(self, emulator: Emulator, session: Session, budget: float) -> None:
        self.emulator = emulator
        self.session = session
        self.submitter = Submitter(session, Dialect.EDITING, rng=Random(1), budget=budget)

    async def create(self, external_task_id: str = "dog", **options: Any) -> Task:
        """Create a task with this id."""
        photo = await load_photo(PHOTO)
        head, tail = codec.encode(REQUEST, Ratios(right=0.5), external_task_id)
        return await self.submitter.create(partial(Body, head, photo, tail), external_task_id, **options)

    def script(self, *faults: Fault | str) -> None:
        """What happens to the next creates."""
        self.emulator.faults.script("create", *faults)

    def lookups(self, *faults: Fault | str) -> None:
        """What happens to the next lookups."""
        self.emulator.faults.script("query", *faults)

    @property
    def posts(self) -> int:
        """How many creates the emulator has seen."""
        return self.emulator.account.requests["create"]

    @property
    def accepted(self) -> dict[str, int]:
        """How many tasks were made, by external id."""
        return dict(self.emulator.account.accepted)


@asynccontextmanager
async def creating(budget: float = 120.0, **options: Any) -> AsyncIterator[Creating]:
    """An emulator that accepts every id as often as it is sent, unless told otherwise."""
    given_: dict[str, Any] = {"engine": "flat", "clock": loop_clock, "slots": 100, "allow_duplicates": True}
    async with Emulator(**given_ | options) as emulator:
        config = Settings(base_url=emulator.url)
        async with Session(config, StaticKey(emulator.api_key), rng=Random(1)) as session:
            yield Creating(emulator, session, budget)


def now() -> float:
    """The loop's time."""
    return asyncio.get_running_loop().time()


# ------------------------------------------------------------------ one thing goes wrong


@virtual_time
async def test_a_create_is_one_request() -> None:
    """Where nothing goes wrong nothing is looked up."""
    async with creating() as c:
        made = await c.create()
        assert made.external_task_id == "dog"
        assert dict(c.emulator.account.requests) == {"create": 1}


ACCEPTED: list[Fault | str] = ["reset_after", "html_after", "truncated_json", "wrong_length"]
ACCEPTED += [Fault("error_after", code=code) for code in (5000, 5001, 5002)]
ACCEPTED += [Fault("slow_headers", seconds=300), Fault("slow_body", seconds=300)]
ACCEPTED += [Fault("late", seconds=seconds) for seconds in (0, 1, 4.9)]


@pytest.mark.parametrize("fault", ACCEPTED, ids=str)
@virtual_time
async def test_what_was_accepted_is_found(fault: Fault | str) -> None:
    """An answer that never came, or is no answer, does not make a second task."""
    async with creating() as c:
        c.script(fault)
        made = await c.create()
        assert c.accepted == {"dog": 1}
        assert c.posts == 1
        assert list(c.emulator.account.tasks) == [made.task_id]


LOST: list[Fault | str] = ["refused", "reset", "html", "empty"]
LOST += [Fault(kind, code=code) for kind in ("error", "envelope_200") for code in (5000, 5001, 5002)]


@pytest.mark.parametrize("fault", LOST, ids=str)
@virtual_time
async def test_what_was_not_accepted_is_sent_again(fault: Fault | str) -> None:
    """Under the same id, and not before it would have appeared."""
    async with creating() as c:
        c.script(fault)
        made = await c.create()
        assert c.accepted == {"dog": 1}
        assert c.posts == 2
        assert c.emulator.account.tasks[made.task_id].external_task_id == "dog"
        assert now() >= SETTLE


@pytest.mark.parametrize("seconds", [5.1, 5.5, 6.0, 8.0, 40.0])
@virtual_time
async def test_the_services_own_uniqueness_is_used(seconds: float) -> None:
    """Even a create that shows up after all patience is not paid twice where the service refuses doubles."""
    async with creating(allow_duplicates=False) as c:
        c.script(Fault("late", seconds=seconds))
        made = await c.create()
        await asyncio.sleep(60)
        assert c.accepted == {"dog": 1}
        assert made.task_id in c.emulator.account.tasks


@pytest.mark.parametrize("seconds", [3.0, 3.5, 4.0, 4.5, 4.9])
@virtual_time
async def test_a_slow_lookup_tells_of_the_past(seconds: float) -> None:
    """What was absent when it was asked may be there when the answer comes."""
    async with creating() as c:
        c.script(Fault("late", seconds=seconds))
        c.lookups(Fault("slow_headers", seconds=2, times=EVER))
        await c.create()
        await asyncio.sleep(60)
        assert c.accepted == {"dog": 1}


@virtual_time
async def test_the_slowest_create_is_the_measure() -> None:
    """A service that once took 20 s for a create is given 20 s to show the next."""
    async with creating() as c:
        c.script(Fault("slow_headers", seconds=20), Fault("late", seconds=19))
        await c.create("slow")
        await c.create("lost")
        await asyncio.sleep(60)
        assert c.accepted == {"slow": 1, "lost": 1}


@virtual_time
async def test_a_pause_asked_for_is_no_slow_create() -> None:
    """An hour at the gate does not make every later lookup last an hour."""
    async with creating() as c:
        c.session.gates[EventKind.CREATE].close(3600)
        await c.create("first")
        began = now()
        c.script("reset")
        await c.create("second")
        assert now() - began < 60


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize("code", [1000, 1100, 1101, 1102, 1103, 1200, 1201, 1300, 1301, 1304])
@virtual_time
async def test_a_refusal_is_raised_at_once(code: int) -> None:
    """It is free, and would be repeated."""
    async with creating() as c:
        c.script(Fault("error", code=code))
        with pytest.raises(APIError, match=str(code)):
            await c.create()
        assert dict(c.emulator.account.requests) == {"create": 1}


@virtual_time
async def test_a_parallel_limit_passes_through() -> None:
    """When a slot will be free is the scheduler's business."""
    async with creating(slots=1) as c:
        await c.create("first")
        with pytest.raises(ParallelLimit):
            await c.create("second")
        assert c.posts == 2
        assert now() < 1


@virtual_time
async def test_too_many_requests_are_waited_for() -> None:
    """As often and as long as the service asks, whatever the budget: it lives."""
    async with creating(budget=60) as c:
        c.script(Fault("error", code=1302, retry_after="30", times=5))
        await c.create()
        assert 150 <= now() < 180
        assert c.posts == 6


@virtual_time
async def test_too_many_requests_are_waited_for_until_the_deadline() -> None:
    """A wait that would end after it is not begun, and it is certain that nothing was made."""
    async with creating() as c:
        c.script(Fault("error", code=1302, retry_after="30", times=EVER))
        with pytest.raises(DeadlineExceeded):
            await c.create(deadline_at=now() + 100)
        assert 60 <= now() <= 100
        assert c.accepted == {}


@virtual_time
async def test_a_service_that_asks_for_no_pause_is_not_hammered() -> None:
    """`Retry-After: 0` is no leave to call in a loop."""
    async with creating() as c:
        c.script(Fault("error", code=1302, retry_after="0", times=EVER))
        with pytest.raises(DeadlineExceeded):
            await c.create(deadline_at=now() + 10)
        assert c.posts <= 41


# ------------------------------------------------------------------ duplicates


@virtual_time
async def test_somebody_elses_task_is_not_taken() -> None:
    """On the first try an id that exists is a mistake, and told."""
    async with creating(allow_duplicates=False) as c:
        await c.create()
        with pytest.raises(DuplicateTask):
            await c.create()
        assert c.accepted == {"dog": 1}


@virtual_time
async def test_a_task_that_was_in_doubt_is_not_for_ever() -> None:
    """Once it was found, the same id again is a mistake like any other."""
    async with creating(allow_duplicates=False) as c:
        c.script("reset_after")
        await c.create()
        with pytest.raises(DuplicateTask):
            await c.create()


@virtual_time
async def test_a_task_of_ours_is_adopted() -> None:
    """An id derived from the job can only be the job's."""
    async with creating(allow_duplicates=False) as c:
        first = await c.create()
        second = await c.create(adopt=True)
        assert first.task_id == second.task_id
        assert c.accepted == {"dog": 1}


@virtual_time
async def test_a_duplicate_that_cannot_be_found_is_unknown() -> None:
    """The service says both that it is there and that it is not."""
    async with creating() as c:
        c.script(Fault("error", code=1201, message="external_task_id dog already exists"))
        with pytest.raises(SubmissionUnknown) as caught:
            await c.create(adopt=True)
        assert caught.value.external_task_id == "dog"
        assert c.posts == 1


@virtual_time
async def test_a_doubt_outlives_a_parallel_limit() -> None:
    """The slot may be held by the very task that nobody answered for."""
    async with creating() as c:
        c.script(Fault("late", seconds=9), Fault("error", code=1303))
        with pytest.raises(ParallelLimit):
            await c.create()
        await asyncio.sleep(10)
        made = await c.create()
        assert c.accepted == {"dog": 1}
        assert made.task_id in c.emulator.account.tasks


@virtual_time
async def test_a_doubt_can_be_told() -> None:
    """After a crash: what may have left before is looked up before anything leaves again."""
    async with creating() as c:
        made = await c.create()
        c.submitter.doubt("dog")
        assert (await c.create()).task_id == made.task_id
        c.submitter.doubt("cat")
        await c.create("cat")
        assert now() >= SETTLE
        assert c.accepted == {"dog": 1, "cat": 1}


# ------------------------------------------------------------------ what cannot be settled


@virtual_time
async def test_a_service_that_only_fails_is_given_up() -> None:
    """Within the budget, with the id to look up later."""
    async with creating(budget=60) as c:
        c.script(Fault("error", code=5000, times=EVER))
        with pytest.raises(SubmissionUnknown) as caught:
            await c.create()
        assert caught.value.external_task_id == "dog"
        assert "5000" in str(caught.value) or "internal" in str(caught.value)
        assert 30 < now() <= 60 + 2 * SETTLE
        assert c.posts > 2


@pytest.mark.parametrize(
    "fault", ["reset", "html", Fault("error", code=5000), Fault("error", code=1103)], ids=str
)
@virtual_time
async def test_without_a_lookup_nothing_is_sent_again(fault: Fault | str) -> None:
    """Where nobody can say whether the task exists, a second create would be a bet."""
    async with creating() as c:
        c.script("reset_after")
        c.lookups(*[fault] * 1000)
        with pytest.raises(SubmissionUnknown) as caught:
            await c.create()
        assert caught.value.external_task_id == "dog"
        assert c.posts == 1
        assert now() < 300


@virtual_time
async def test_a_deadline_in_the_middle_is_unknown() -> None:
    """The create may have been accepted: the error says so, and has the id."""
    async with creating() as c:
        c.script(Fault("slow_headers", seconds=300))
        with pytest.raises(SubmissionUnknown) as caught:
            await c.create(deadline_at=now() + 10)
        assert caught.value.external_task_id == "dog"
        assert now() <= 11
        assert c.accepted == {"dog": 1}


@virtual_time
async def test_a_deadline_while_looking_is_unknown() -> None:
    """No look is begun that would end too late, and none ends it too early."""
    async with creating() as c:
        c.script("reset")
        with pytest.raises(SubmissionUnknown):
            await c.create(deadline_at=now() + 3)
        assert now() <= 3
        assert c.posts == 1


@virtual_time
async def test_a_deadline_before_the_first_try_is_only_a_deadline() -> None:
    """Nothing was sent, and the error does not pretend otherwise."""
    async with creating() as c:
        await asyncio.sleep(2)
        with pytest.raises(DeadlineExceeded):
            await c.create(deadline_at=1.0)
        assert c.posts == 0


@virtual_time
async def test_what_was_never_sent_is_sent_as_soon_as_it_can_be() -> None:
    """A refused connection costs no lookup."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = Settings(base_url=f"http://127.0.0.1:{port}")
    server = Loopback(deque([task()]))
    async with Session(config, StaticKey("k"), rng=Random(1)) as session:
        submitter = Submitter(session, Dialect.EDITING, rng=Random(1), budget=60)
        body = partial(Body, b'{"image":"', None, b'"}')
        creating_ = asyncio.ensure_future(submitter.create(body, "dog"))
        await asyncio.sleep(10)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", port)
        assert (await creating_).task_id == "1"
        assert [json.loads(each.body) for each in server.requests] == [{"image": ""}]
        listening.close()
        for each in server.requests:
            each.writer.close()


@virtual_time
async def test_what_could_never_be_sent_is_no_doubt() -> None:
    """The error says that nothing was sent, so the job may be submitted anew."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        config = Settings(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        async with Session(config, StaticKey("k"), rng=Random(1)) as session:
            submitter = Submitter(session, Dialect.EDITING, rng=Random(1), budget=60)
            with pytest.raises(TransportError) as caught:
                await submitter.create(partial(Body, b"{}"), "dog")
            assert caught.value.sent is False
            assert 9 < now() <= 25  # it was never reached: `connect_timeout`


# ------------------------------------------------------------------ around it


@virtual_time
async def test_each_post_is_announced_first() -> None:
    """Whoever keeps a journal knows of every attempt before it leaves."""
    async with creating() as c:
        announced: list[int] = []

        async def announce() -> None:
            announced.append(c.posts)

        c.script("reset", Fault("error", code=5000), Fault("error", code=1302))
        await c.create(announce=announce)
        assert announced == [0, 1, 2, 3]


@virtual_time
async def test_a_task_is_looked_up_by_either_id() -> None:
    """And one that nobody knows is None, which is no error."""
    async with creating() as c:
        made = await c.create()
        for any_id in (made.task_id, "dog"):
            found = await c.submitter.get_or_none(any_id)
            assert found is not None
            assert found.task_id == made.task_id
        assert await c.submitter.get_or_none("cat") is None


@virtual_time
async def test_waits_between_tries_grow() -> None:
    """A service in trouble is not called more often because of it."""
    times: list[float] = []

    async def step(exchange: Exchange) -> None:
        if exchange.line.startswith("POST"):
            times.append(now())
            exchange.reset()
        else:
            await refuses(1201, 400, "Task not found by id/external id: dog")(exchange)

    async with loopback(step) as server:
        config = Settings(base_url=server.url)
        async with Session(config, StaticKey("k"), rng=Random(1)) as session:
            submitter = Submitter(session, Dialect.EDITING, rng=Random(1), budget=120)
            with pytest.raises(SubmissionUnknown):
                await submitter.create(partial(Body, b"{}"), "dog")
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 5 <= len(times) < 15
    assert gaps[0] < gaps[-1] / 2
    assert min(gaps) >= SETTLE


# ------------------------------------------------------------------ anything goes wrong

SECONDS = st.floats(0, SETTLE - 0.1, allow_nan=False)
FAILING = st.sampled_from([5000, 5001, 5002])
ANYWHERE = (
    st.sampled_from(["ok", "refused", "reset", "html", "empty", "truncated_json", "wrong_length"]).map(Fault),
    st.builds(
        Fault, st.sampled_from(["error", "envelope_200"]), code=st.sampled_from([5000, 5001, 5002, 1302])
    ),
    st.builds(Fault, st.just("error"), code=st.just(1302), retry_after=st.sampled_from(["0", "3", "40"])),
    st.builds(
        Fault, st.sampled_from(["slow_headers", "slow_body"]), seconds=st.sampled_from([1.0, 6.0, 90.0])
    ),
)
CREATES = st.one_of(
    *ANYWHERE,
    st.sampled_from(["reset_after", "html_after"]).map(Fault),
    st.builds(Fault, st.just("error_after"), code=FAILING),
    st.builds(Fault, st.just("late"), seconds=SECONDS),
)
LOOKUPS = st.one_of(*ANYWHERE, st.builds(Fault, st.just("error"), code=st.sampled_from([1004, 1103])))


@settings(max_examples=150)
@given(
    st.lists(CREATES, max_size=6), st.lists(LOOKUPS, max_size=12), st.sampled_from([None, 3.0, 20.0, 400.0])
)
def test_no_job_is_ever_paid_twice(creates: list[Fault], lookups: list[Fault], within: float | None) -> None:
    """Whatever fails in whatever order: at most one task for an id, and it is known where it is said."""

    async def check() -> None:
        async with creating() as c:
            c.script(*creates)
            c.lookups(*lookups)
            made: Task | KlingError
            try:
                made = await c.create(deadline_at=None if within is None else now() + within)
            except (SubmissionUnknown, DeadlineExceeded) as error:
                made = error
            await asyncio.sleep(500)  # until every late create has arrived
            if isinstance(made, Task):
                assert c.accepted == {"dog": 1}
                assert list(c.emulator.account.tasks) == [made.task_id]
            elif isinstance(made, SubmissionUnknown):
                assert made.external_task_id == "dog"
                assert c.accepted in ({}, {"dog": 1})
            else:
                assert c.accepted == {}

    run(check())


@settings(max_examples=20)
@given(st.lists(CREATES, max_size=12), st.lists(LOOKUPS, max_size=12))
def test_nor_are_many_at_once(creates: list[Fault], lookups: list[Fault]) -> None:
    """The same for jobs that share the faults, the gate and what was learned."""

    async def check() -> None:
        async with creating() as c:
            c.script(*creates)
            c.lookups(*lookups)
            names = [f"dog-{number}" for number in range(8)]
            made = await asyncio.gather(*map(c.create, names), return_exceptions=True)
            await asyncio.sleep(500)
            assert all(isinstance(each, Task | SubmissionUnknown) for each in made)
            assert set(c.accepted.values()) <= {1}
            known = {each.external_task_id for each in made if isinstance(each, Task)}
            assert known <= set(c.accepted)

    run(check())
