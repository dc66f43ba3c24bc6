"""Exactly one create per job, with an emulator that would bill twice and a network that fails."""

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
from support.raw_server import Exchange, Loopback, loopback, refuses, responds, task

from kling_expand.api import codec
from kling_expand.api.photo import load_photo
from kling_expand.api.session import Body, Session
from kling_expand.config import Settings, StaticKey
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.errors import (
    APIError,
    DeadlineExceeded,
    DuplicateTask,
    KlingError,
    ParallelLimit,
    ServerError,
    SubmissionUnknown,
    TransportError,
)
from kling_expand.events import EventKind
from kling_expand.geometry import Ratios, Towards
from kling_expand.jobs.submission import (
    APPEAR_TIMEOUT,
    TRANSITIONS,
    Attempt,
    AttemptState,
    Create,
    Submitter,
)
from kling_expand.models import Dialect, ExpandRequest, Task
from kling_expand.testing import loop_clock, run, virtual_time

PHOTO = (Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg").read_bytes()
REQUEST = ExpandRequest(PHOTO, Ratios(right=0.5))
ALWAYS = 10_000  # times
CREATE_TIMEOUT = 30.0
LONGEST = CREATE_TIMEOUT + APPEAR_TIMEOUT  # seconds that a create can take here, without its upload


class Creating:
    """A submitter, its session, and the emulator that it calls."""

    def __init__(self, emulator: Emulator, session: Session, config: Settings) -> None:
        self.emulator = emulator
        self.session = session
        self.submitter = Submitter(session, config, rng=Random(1))

    async def create(self, attempt: Attempt | str = "dog", **options: Any) -> Task:
        """Create the task of an attempt, or of a new one with this id."""
        attempt = Attempt(attempt) if isinstance(attempt, str) else attempt
        photo = await load_photo(PHOTO)
        head, tail = codec.encode(REQUEST, Ratios(right=0.5), attempt.external_task_id)
        return await self.submitter.create(Create(attempt, partial(Body, head, photo, tail), **options))

    def script(self, *faults: Fault | str) -> None:
        """Script the next creates."""
        self.emulator.faults.script("create", *faults)

    def lookups(self, *faults: Fault | str) -> None:
        """Script the next lookups."""
        self.emulator.faults.script("query", *faults)

    @property
    def posts(self) -> int:
        """Return how many creates the emulator has seen."""
        return self.emulator.account.requests["create"]

    @property
    def accepted(self) -> dict[str, int]:
        """Return how many tasks were created, by external id."""
        return dict(self.emulator.account.accepted)


@asynccontextmanager
async def creating(
    retry_timeout: float = 120.0, dialect: str = "editing", **options: Any
) -> AsyncIterator[Creating]:
    """Run an emulator that accepts an id any number of times, unless set otherwise."""
    given_: dict[str, Any] = {"engine": "flat", "clock": loop_clock, "slots": 100, "allow_duplicates": True}
    async with Emulator(**given_ | options) as emulator:
        config = Settings(
            base_url=emulator.url,
            retry_timeout=retry_timeout,
            create_timeout=CREATE_TIMEOUT,
            dialect=Dialect(dialect),
        )
        async with Session(config, StaticKey(emulator.api_key), rng=Random(1)) as session:
            yield Creating(emulator, session, config)


def now() -> float:
    """The loop's time."""
    return asyncio.get_running_loop().time()


# ------------------------------------------------------------------ the table of states

S = AttemptState


@pytest.mark.parametrize(
    ("state", "may_cost", "following"),
    [
        (S.NEW, False, {S.SENDING, S.FOUND, S.REFUSED}),
        (S.INHERITED, True, {S.FOUND, S.ABSENT}),
        (S.SENDING, True, {S.CREATED, S.FOUND, S.REFUSED, S.UNCERTAIN}),
        (S.REFUSED, False, {S.SENDING}),
        (S.UNCERTAIN, True, {S.CREATED, S.ABSENT}),
        (S.ABSENT, False, {S.SENDING}),
        (S.CREATED, True, set()),
        (S.FOUND, False, set()),
    ],
)
def test_the_table_of_states(state: S, *, may_cost: bool, following: set[S]) -> None:
    """Each state says whether money may have been spent, and changes only as the table allows."""
    assert (state.may_cost, set(TRANSITIONS[state])) == (may_cost, following)
    for other in S:
        attempt = Attempt("dog")
        attempt.state = state
        if other in following:
            attempt.move(other)
            assert attempt.state is other
        else:
            with pytest.raises(ValueError, match=f"{state} cannot become {other}"):
                attempt.move(other)
            assert attempt.state is state


def test_the_table_is_complete() -> None:
    """Every state has a row, is reachable, and leads to a known task or to a refusal."""
    assert set(TRANSITIONS) == set(S)
    assert set().union(*TRANSITIONS.values()) == set(S) - {S.NEW, S.INHERITED}
    for start in (S.NEW, S.INHERITED):
        reached, ahead = {start}, {start}
        while ahead:
            ahead = {later for each in ahead for later in TRANSITIONS[each]} - reached
            reached |= ahead
        assert {S.CREATED, S.FOUND, S.REFUSED} <= reached


def test_money_is_spent_only_after_sending() -> None:
    """Every path from a state without cost to a state with cost sends a create."""
    for state in S:
        costly = {each for each in TRANSITIONS[state] if each.may_cost}
        assert state.may_cost or costly <= {S.SENDING}


# ------------------------------------------------------------------ one thing goes wrong


@virtual_time
async def test_a_create_is_one_request() -> None:
    """A create that succeeds needs no lookup."""
    async with creating() as c:
        made = await c.create()
        assert made.external_task_id == "dog"
        assert dict(c.emulator.account.requests) == {"create": 1}


ACCEPTED: list[Fault | str] = ["reset_after", "html_after", "truncated_json", "wrong_length"]
ACCEPTED += [Fault("error_after", code=code) for code in (5000, 5001, 5002)]
ACCEPTED += [Fault("slow_headers", seconds=300), Fault("slow_body", seconds=300)]
ACCEPTED += [Fault("late", seconds=seconds) for seconds in (0, 1, 4.9, 29.0, 34.9)]


@pytest.mark.parametrize("fault", ACCEPTED, ids=str)
@virtual_time
async def test_an_accepted_create_is_found(fault: Fault | str) -> None:
    """A create whose response is lost or invalid does not lead to a second task."""
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
async def test_a_create_that_was_not_accepted_is_sent_again(fault: Fault | str) -> None:
    """A create that was not accepted is repeated under the same id, once its task could have appeared."""
    async with creating() as c:
        c.script(fault)
        made = await c.create()
        assert c.accepted == {"dog": 1}
        assert c.posts == 2
        assert c.emulator.account.tasks[made.task_id].external_task_id == "dog"
        assert LONGEST <= now() < LONGEST + 5


@pytest.mark.parametrize("seconds", [35.1, 36.0, 40.0, 100.0])
@virtual_time
async def test_unique_ids_prevent_a_second_payment(seconds: float) -> None:
    """If the service refuses duplicates, even a create that appears very late is not paid twice."""
    async with creating(allow_duplicates=False) as c:
        c.script(Fault("late", seconds=seconds))
        made = await c.create()
        await asyncio.sleep(200)
        assert c.accepted == {"dog": 1}
        assert made.task_id in c.emulator.account.tasks


@pytest.mark.parametrize("seconds", [30.0, 33.0, 34.0, 34.5, 34.9])
@virtual_time
async def test_the_response_to_a_slow_lookup_may_be_outdated(seconds: float) -> None:
    """A task that was absent when a slow lookup was sent may exist when the response arrives."""
    async with creating() as c:
        c.script(Fault("late", seconds=seconds))
        c.lookups(Fault("slow_headers", seconds=2, times=ALWAYS))
        await c.create()
        await asyncio.sleep(60)
        assert c.accepted == {"dog": 1}


@virtual_time
async def test_one_stalled_create_delays_no_later_one() -> None:
    """A create without a response does not prolong the lookups of later creates."""
    async with creating() as c:
        c.script("reset")
        began = now()
        await c.create("before")
        usual = now() - began
        c.script(Fault("slow_headers", seconds=400))
        await c.create("stalled")
        await asyncio.sleep(86400)
        for name in ("after", "later"):
            c.script("reset")
            began = now()
            await c.create(name)
            assert now() - began == pytest.approx(usual, abs=5)
        assert c.accepted == {"before": 1, "stalled": 1, "after": 1, "later": 1}


@virtual_time
async def test_the_wait_counts_from_the_last_create_sent() -> None:
    """A create that was sent long ago is looked up once, but a recent one until it can no longer appear."""
    async with creating() as c:
        for name, age in (("old", 3600.0), ("new", 20.0)):
            began = now()
            await c.create(Attempt(name, unanswered_at=now() - age))
            assert now() - began == pytest.approx(max(0.0, LONGEST - age), abs=5)
        assert c.accepted == {"old": 1, "new": 1}


@virtual_time
async def test_a_requested_pause_does_not_prolong_lookups() -> None:
    """A requested pause of an hour does not prolong later lookups to an hour."""
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
    """A refusal is raised at once, because it costs nothing and a retry would be refused again."""
    async with creating() as c:
        c.script(Fault("error", code=code))
        with pytest.raises(APIError, match=str(code)):
            await c.create()
        assert dict(c.emulator.account.requests) == {"create": 1}


@virtual_time
async def test_a_parallel_limit_is_raised() -> None:
    """A 1303 is raised, because the scheduler decides when to retry."""
    async with creating(slots=1) as c:
        await c.create("first")
        with pytest.raises(ParallelLimit):
            await c.create("second")
        assert c.posts == 2
        assert now() < 1


@virtual_time
async def test_too_many_requests_are_waited_for() -> None:
    """A create is retried as long as the service responds with a 1302, regardless of `retry_timeout`."""
    async with creating(retry_timeout=60) as c:
        c.script(Fault("error", code=1302, retry_after="30", times=5))
        await c.create()
        assert 150 <= now() < 180
        assert c.posts == 6


@virtual_time
async def test_too_many_requests_are_waited_for_until_the_deadline() -> None:
    """A wait beyond the deadline is not started, and it is certain that no task exists."""
    async with creating() as c:
        c.script(Fault("error", code=1302, retry_after="30", times=ALWAYS))
        with pytest.raises(DeadlineExceeded):
            await c.create(deadline_at=now() + 100)
        assert 60 <= now() <= 100
        assert c.accepted == {}


@virtual_time
async def test_a_retry_after_of_zero_still_leads_to_a_pause() -> None:
    """`Retry-After: 0` still leads to a pause."""
    async with creating() as c:
        c.script(Fault("error", code=1302, retry_after="0", times=ALWAYS))
        with pytest.raises(DeadlineExceeded):
            await c.create(deadline_at=now() + 10)
        assert c.posts <= 41


# ------------------------------------------------------------------ duplicates


@virtual_time
async def test_a_task_of_another_job_is_not_adopted() -> None:
    """A given id that already has a task raises an error before the create, and the error names the task."""
    async with creating(allow_duplicates=False) as c:
        other = await c.create()
        with pytest.raises(DuplicateTask) as caught:
            await c.create(Attempt("dog", given=True))
        assert (caught.value.task_id, caught.value.external_task_id) == (other.task_id, "dog")
        assert c.posts == 1


@virtual_time
async def test_a_given_id_is_refused_though_its_lookup_lags() -> None:
    """If the service says that a given id exists, no task is adopted, and the error names the other task."""
    async with creating(allow_duplicates=False) as c:
        other = await c.create()
        c.lookups(Fault("error", code=1201, message="Task not found by id/external id: dog"))
        attempt = Attempt("dog", given=True)
        with pytest.raises(DuplicateTask) as caught:
            await c.create(attempt)
        assert (caught.value.task_id, attempt.state) == (other.task_id, AttemptState.REFUSED)
        assert c.accepted == {"dog": 1}


@pytest.mark.parametrize("fault", ["reset_after", "reset"])
@virtual_time
async def test_a_task_under_a_given_id_that_was_free_is_adopted(fault: str) -> None:
    """A task that appears under a given id after a create without a response belongs to that create."""
    async with creating(allow_duplicates=False) as c:
        c.script(fault)
        made = await c.create(Attempt("dog", given=True))
        assert list(c.emulator.account.tasks) == [made.task_id]


@virtual_time
async def test_a_task_under_a_derived_id_is_adopted() -> None:
    """A task under a derived id can only belong to this job, so it is adopted and not paid for again."""
    async with creating(allow_duplicates=False) as c:
        first = await c.create()
        attempt = Attempt("dog")
        assert (await c.create(attempt)).task_id == first.task_id
        assert (attempt.state, attempt.state.may_cost) == (AttemptState.FOUND, False)
        assert c.accepted == {"dog": 1}


@pytest.mark.parametrize("lag", [10.0, 60.0, 100.0])
@virtual_time
async def test_a_duplicate_is_followed_while_its_lookup_lags(lag: float) -> None:
    """The service may refuse an id before lookups show its task, so lookups continue for `retry_timeout`."""
    async with creating(allow_duplicates=False) as c:
        first = await c.create()
        missing = Fault("error", code=1201, message="Task not found by id/external id: dog", times=ALWAYS)
        c.lookups(missing)
        asyncio.get_running_loop().call_later(lag, c.emulator.faults.clear)
        assert (await c.create()).task_id == first.task_id
        assert lag <= now() <= lag + 21


@virtual_time
async def test_a_duplicate_that_cannot_be_found_is_unknown() -> None:
    """If an id is both taken and unknown until `retry_timeout`, the outcome is unknown."""
    async with creating(retry_timeout=60) as c:
        c.script(Fault("error", code=1201, message="external_task_id dog already exists"))
        attempt = Attempt("dog")
        with pytest.raises(SubmissionUnknown) as caught:
            await c.create(attempt)
        assert caught.value.external_task_id == "dog"
        assert attempt.state.may_cost
        assert 35 < now() <= 60
        assert c.posts == 1


@virtual_time
async def test_a_lost_create_is_found_after_a_parallel_limit() -> None:
    """A 1303 after a lost create may be caused by its own task, which is then found and not created again."""
    async with creating(allow_duplicates=False) as c:
        c.script(Fault("late", seconds=50), Fault("error", code=1303))
        attempt = Attempt("dog", given=True)
        with pytest.raises(ParallelLimit):
            await c.create(attempt)
        await asyncio.sleep(60)
        made = await c.create(attempt)
        assert c.accepted == {"dog": 1}
        assert made.task_id in c.emulator.account.tasks


@virtual_time
async def test_a_create_of_an_earlier_run_is_looked_up_first() -> None:
    """A task of an earlier run is found without a create, and a missing one is created after the wait."""
    async with creating() as c:
        made = await c.create()
        attempt = Attempt("dog", unanswered_at=now())
        states = [attempt.state]
        assert (await c.create(attempt)).task_id == made.task_id
        assert [*states, attempt.state] == [AttemptState.INHERITED, AttemptState.FOUND]
        await c.create(Attempt("cat", unanswered_at=now()))
        assert now() >= LONGEST
        assert c.accepted == {"dog": 1, "cat": 1}


# ------------------------------------------------------------------ the direction dialect


DIRECTED = ExpandRequest(PHOTO, Towards("right"))


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("fault", ["reset_after", "reset", Fault("late", seconds=20)], ids=str)
@virtual_time
async def test_the_list_is_read_where_no_lookup_is_documented(fault: Fault | str, others: int) -> None:
    """In the direction dialect, a lost create is searched for in the list before it is repeated."""
    async with creating(dialect="direction") as c:
        photo = await load_photo(PHOTO)
        head, tail = codec.encode(DIRECTED, Towards("right"), "dog")
        for number in range(others):
            more = codec.encode(DIRECTED, Towards("right"), f"other-{number}")
            await c.submitter.create(
                Create(Attempt(f"other-{number}"), partial(Body, more[0], photo, more[1]))
            )
        c.script(fault)
        made = await c.submitter.create(Create(Attempt("dog"), partial(Body, head, photo, tail)))
        await asyncio.sleep(60)
        assert c.accepted["dog"] == 1
        assert made.task_id in c.emulator.account.tasks


# ------------------------------------------------------------------ what cannot be settled


@virtual_time
async def test_lasting_failures_are_raised_after_retry_timeout() -> None:
    """After `retry_timeout` and one last lookup it is certain that no task exists."""
    async with creating(retry_timeout=60) as c:
        c.script(Fault("error", code=5000, times=ALWAYS))
        attempt = Attempt("dog")
        with pytest.raises(ServerError, match="5000"):
            await c.create(attempt)
        assert (attempt.state, attempt.state.may_cost) == (AttemptState.ABSENT, False)
        assert 60 - 20 < now() <= 60 + 2 * (LONGEST + 5)
        assert c.posts > 1
        await asyncio.sleep(500)
        assert c.accepted == {}


@pytest.mark.parametrize(
    "fault", ["reset", "html", Fault("error", code=5000), Fault("error", code=1103)], ids=str
)
@virtual_time
async def test_without_a_lookup_the_create_is_not_repeated(fault: Fault | str) -> None:
    """Without a working lookup, the create is not repeated, because a task may exist."""
    async with creating() as c:
        c.script("reset_after")
        c.lookups(*[fault] * 1000)
        with pytest.raises(SubmissionUnknown) as caught:
            await c.create()
        assert caught.value.external_task_id == "dog"
        assert c.posts == 1
        assert now() < 300


@virtual_time
async def test_a_deadline_after_an_uncertain_create_is_unknown() -> None:
    """At the deadline, a create that may have been accepted raises an error with the id."""
    async with creating() as c:
        c.script(Fault("slow_headers", seconds=300))
        with pytest.raises(SubmissionUnknown) as caught:
            await c.create(deadline_at=now() + 10)
        assert caught.value.external_task_id == "dog"
        assert now() <= 11
        assert c.accepted == {"dog": 1}


@virtual_time
async def test_a_deadline_during_a_lookup_is_unknown() -> None:
    """A deadline during the lookups raises `SubmissionUnknown` by that time."""
    async with creating() as c:
        c.script("reset")
        with pytest.raises(SubmissionUnknown):
            await c.create(deadline_at=now() + 20)
        assert now() <= 20
        assert c.posts == 1


@virtual_time
async def test_a_deadline_before_the_first_attempt_raises_deadline_exceeded() -> None:
    """If the deadline passes before anything was sent, the error says so."""
    async with creating() as c:
        await asyncio.sleep(2)
        with pytest.raises(DeadlineExceeded):
            await c.create(deadline_at=1.0)
        assert c.posts == 0


@virtual_time
async def test_an_unsent_create_is_retried_without_a_lookup() -> None:
    """After a refused connection, the create is sent as soon as possible and without a lookup."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = Settings(base_url=f"http://127.0.0.1:{port}")
    server = Loopback(deque([task()]))
    async with Session(config, StaticKey("k"), rng=Random(1)) as session:
        submitter = Submitter(session, config, rng=Random(1))
        body = partial(Body, b'{"image":"', None, b'"}')
        creating_ = asyncio.ensure_future(submitter.create(Create(Attempt("dog"), body)))
        await asyncio.sleep(5)  # of the 10 s that a first contact may take
        listening = await asyncio.start_server(server.serve, "127.0.0.1", port)
        assert (await creating_).task_id == "1"
        assert [json.loads(each.body) for each in server.requests] == [{"image": ""}]
        listening.close()
        for each in server.requests:
            each.writer.close()


@virtual_time
async def test_a_create_that_can_never_be_sent_is_certain() -> None:
    """If a create can never be sent, the error says that nothing was sent."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        config = Settings(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}", retry_timeout=60)
        async with Session(config, StaticKey("k"), rng=Random(1)) as session:
            submitter = Submitter(session, config, rng=Random(1))
            with pytest.raises(TransportError) as caught:
                await submitter.create(Create(Attempt("dog"), partial(Body, b"{}")))
            assert caught.value.sent is False
            assert 9 < now() <= 25  # it was never reached: `connect_timeout`


# ------------------------------------------------------------------ intents, lookups and waits


@virtual_time
async def test_each_attempt_is_announced_before_it_is_sent() -> None:
    """The store is informed of every attempt before it is sent."""
    async with creating() as c:
        announced: list[int] = []

        async def announce() -> None:
            announced.append(c.posts)

        c.script("reset", Fault("error", code=5000), Fault("error", code=1302))
        await c.create(mark_sending=announce)
        assert announced == [0, 1, 2, 3]


@virtual_time
async def test_a_task_is_looked_up_by_either_id() -> None:
    """Either id finds the task, and an unknown id gives None and no error."""
    async with creating() as c:
        made = await c.create()
        for any_id in (made.task_id, "dog"):
            found = await c.submitter.get_or_none(any_id)
            assert found is not None
            assert found.task_id == made.task_id
        assert await c.submitter.get_or_none("cat") is None


@virtual_time
async def test_waits_between_retries_grow() -> None:
    """The waits between retries grow while the service fails."""
    times: list[float] = []

    async def step(exchange: Exchange) -> None:
        if exchange.line.startswith("POST"):
            times.append(now())
            exchange.reset()
        else:
            await refuses(1201, 400, "Task not found by id/external id: dog")(exchange)

    async with loopback(step) as server:
        config = Settings(base_url=server.url, create_timeout=0.1)
        async with Session(config, StaticKey("k"), rng=Random(1)) as session:
            submitter = Submitter(session, config, rng=Random(1))
            with pytest.raises(TransportError):
                await submitter.create(Create(Attempt("dog"), partial(Body, b"{}")))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 5 <= len(times) < 15
    assert gaps[0] < gaps[-1] / 2


@pytest.mark.parametrize("status", [408, 425, 499])
@virtual_time
async def test_a_timeout_reported_by_a_proxy_is_followed_by_a_lookup(status: int) -> None:
    """A create that a proxy ends with a timeout may have been accepted, so its id is looked up."""
    async with loopback(responds(b"stream timeout", status), task("1")) as server:
        config = Settings(base_url=server.url)
        async with Session(config, StaticKey("k"), rng=Random(1)) as session:
            made = await Submitter(session, config, rng=Random(1)).create(
                Create(Attempt("dog"), partial(Body, b"{}"))
            )
    assert made.task_id == "1"
    assert [each.line.split()[0] for each in server.requests] == ["POST", "GET"]


# ------------------------------------------------------------------ anything goes wrong

SECONDS = st.floats(0, LONGEST - 0.1, allow_nan=False)
FAILING = st.sampled_from([5000, 5001, 5002])
FAULTS = (
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
    *FAULTS,
    st.sampled_from(["reset_after", "html_after"]).map(Fault),
    st.builds(Fault, st.just("error_after"), code=FAILING),
    st.builds(Fault, st.just("late"), seconds=SECONDS),
)
LOOKUPS = st.one_of(*FAULTS, st.builds(Fault, st.just("error"), code=st.sampled_from([1004, 1103])))


@settings(max_examples=150)
@given(
    st.lists(CREATES, max_size=6), st.lists(LOOKUPS, max_size=12), st.sampled_from([None, 3.0, 20.0, 400.0])
)
def test_no_job_is_ever_paid_twice(creates: list[Fault], lookups: list[Fault], within: float | None) -> None:
    """Whatever fails, an id has at most one task, and the outcome says whether money may have been spent."""

    async def check() -> None:
        async with creating() as c:
            c.script(*creates)
            c.lookups(*lookups)
            attempt = Attempt("dog")
            made: Task | KlingError | TimeoutError
            try:
                made = await c.create(attempt, deadline_at=None if within is None else now() + within)
            except (KlingError, TimeoutError) as error:
                made = error
            await asyncio.sleep(500)  # until every late create has arrived
            if isinstance(made, Task):
                assert c.accepted == {"dog": 1}
                assert list(c.emulator.account.tasks) == [made.task_id]
            elif isinstance(made, SubmissionUnknown):
                assert made.external_task_id == "dog"
                assert c.accepted in ({}, {"dog": 1})
                assert attempt.state.may_cost
            else:
                assert c.accepted == {}
                assert not attempt.state.may_cost

    run(check())


@settings(max_examples=20)
@given(st.lists(CREATES, max_size=12), st.lists(LOOKUPS, max_size=12))
def test_no_concurrent_job_is_ever_paid_twice(creates: list[Fault], lookups: list[Fault]) -> None:
    """Concurrent jobs that share faults and the rate limit are not paid for twice either."""

    async def check() -> None:
        async with creating() as c:
            c.script(*creates)
            c.lookups(*lookups)
            names = [f"dog-{number}" for number in range(8)]
            made = await asyncio.gather(*map(c.create, names), return_exceptions=True)
            await asyncio.sleep(500)
            assert all(isinstance(each, Task | KlingError) for each in made)
            assert set(c.accepted.values()) <= {1}
            unknown = {each.external_task_id for each in made if isinstance(each, SubmissionUnknown)}
            known = {each.external_task_id for each in made if isinstance(each, Task)}
            assert known <= set(c.accepted) <= known | unknown

    run(check())
