"""Test tools: an event loop with virtual time, fixtures for a client and an emulator, and contract tests.

They need the extra ``kling-expand[testing]``. With this line, your `conftest.py` provides the fixtures
`kling_emulator` and `kling_client`::

    pytest_plugins = ["kling_expand.testing"]

In a test decorated with `virtual_time`, waiting takes no real time::

    @virtual_time
    async def test_a_wide_dog():
        async with emulated(work_seconds=3600) as (emulator, kling):
            await kling.expand("dog.png", Ratios(right=0.5))
"""

import asyncio
import functools
import inspect
import math
import os
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, TypeVar, TypeVarTuple, Unpack

from attrs import evolve

from ._portal import LoopThread
from .api.photo import Photo
from .client import KlingClient
from .errors import JournalError, require
from .geometry import Ratios
from .jobs.poll_schedule import ExponentialSchedule
from .models import ExpandRequest, Image, Task
from .store.base import JobIdentity, JobRecord, JobState, JobStore, PreparedRequest

require("testing", "pytest", "pytest_asyncio", "numpy", "PIL", "patchmatch")
import pytest
import pytest_asyncio

from .emulator import Emulator

__all__ = [
    "JobStoreContract",
    "emulated",
    "kling_client",
    "kling_emulator",
    "loop_clock",
    "run",
    "virtual_time",
]

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH = 1_750_000_000.0  # Unix seconds at which virtual time begins


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that advances the clock to the next timer instead of waiting, unless a thread is busy."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.working = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or self.working:
            return super().select(None if timeout != 0 else 0)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.now += timeout
            if (
                self.now + 1e-9 == self.now
            ):  # after months of virtual time, rounding swallows asyncio's clock resolution
                self.now = math.nextafter(self.now, math.inf)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which sleeping takes no time.

    If nothing can run, its clock jumps to the next timer. It waits in real time for loopback sockets within
    the loop and for work in executors. It does not wait for other threads or processes.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the seconds of virtual time since the loop was created."""
        return self._jumping.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        """Run *func* in a thread or process. Virtual time stands still in the meantime."""
        future = super().run_in_executor(executor, func, *args)
        self._jumping.working += 1
        future.add_done_callback(self._worked)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncio's
        """Wait for the executor's threads in real time."""
        del timeout  # a virtual timeout would expire at once
        self._jumping.working += 1
        await super().shutdown_default_executor()

    def _worked(self, _future: "asyncio.Future[Any]") -> None:
        self._jumping.working -= 1


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make an async *test* run in virtual time. It can use only fixtures that are not async."""

    @functools.wraps(test)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(test(*args, **kwargs))

    return wrapper


def loop_clock() -> float:
    """Return the time of the running loop in Unix seconds, as a clock for an emulator and its clients."""
    return EPOCH + asyncio.get_running_loop().time()


@asynccontextmanager
async def emulated(
    client: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Emulator, KlingClient]]:
    """Yield an emulator with the settings *options*, and a client of it with the options *client*.

    Both use the running loop's clock and a fixed seed. The default `engine` is ``flat``.
    """
    settings: dict[str, Any] = {"engine": "flat", "clock": loop_clock} | options
    async with Emulator(**settings) as emulator:
        given: dict[str, Any] = {"api_key": emulator.api_key, "base_url": emulator.url}
        given |= {"clock": loop_clock, "rng": Random(1), "trust_env": False}
        async with KlingClient(**given | (client or {})) as kling:
            yield emulator, kling


@pytest.fixture
def kling_emulator() -> Iterator[Emulator]:
    """Yield a local emulator of the service that responds quickly.

    It runs in a thread with its own event loop. So both async tests and blocking tests can use it, for
    example with Starlette's ``TestClient``.
    """

    async def start() -> Emulator:
        emulator = Emulator(engine="flat", queue_seconds=0.02, work_seconds=0.05, allow_private=True)
        return await emulator.__aenter__()

    thread = LoopThread()
    thread.start()
    try:
        emulator = thread.run(start())
        yield emulator
        thread.run(emulator.__aexit__(None, None, None))
    finally:
        thread.stop()


@pytest_asyncio.fixture
async def kling_client(
    request: pytest.FixtureRequest, kling_emulator: Emulator
) -> AsyncIterator[KlingClient]:
    """Yield a client of `kling_emulator` that polls often. Only an async test can use it."""
    test = request.function
    if not inspect.iscoroutinefunction(getattr(getattr(test, "hypothesis", None), "inner_test", test)):
        pytest.fail(
            "kling_client needs an async test, as its event loop runs only there; in a plain test use "
            "kling_expand.blocking.KlingClient(api_key=kling_emulator.api_key, base_url=kling_emulator.url)"
        )
    schedule = ExponentialSchedule(Random(1), first=0.03, longest=0.3)
    async with KlingClient(
        api_key=kling_emulator.api_key, base_url=kling_emulator.url, schedule=schedule, trust_env=False
    ) as kling:
        yield kling


class Seconds:
    """A clock that advances by one second each time it is read."""

    def __init__(self, start: float = EPOCH) -> None:
        self.now: float = start

    def __call__(self) -> float:
        """Return the next second."""
        self.now += 1.0
        return self.now


MakeStore = Callable[[Callable[[], float]], JobStore]


def prepared(key: str = "k", **fields: Any) -> PreparedRequest:
    """Return a prepared request for a photo at a URL that contains *key*."""
    url, expansion = f"https://photos.example/{key}.png", Ratios(right=0.5)
    request = ExpandRequest(url, expansion, key=key, **fields)
    return PreparedRequest(request, Photo(url, f"sha256 of {url}", len(url), url=url), expansion)


async def record_job(store: JobStore, key: str = "k", digest: str = "h", **fields: Any) -> JobRecord:
    """Record the intent of a job in *store* and return its record."""
    return await store.record_intent(JobIdentity(key, digest), prepared(key, **fields))


RUNNING = Task("t1", "submitted")
SUCCEEDED = Task(
    "t1",
    "succeed",
    external_task_id="x",
    images=(Image(0, "https://a/0.png"), Image(1, "https://a/1.png", "https://a/w.png")),
    final_unit_deduction="16",
    updated_at=2,
)
FAILED = Task("t1", "failed", "Failure to pass the risk control system")


@pytest.mark.asyncio
class JobStoreContract:
    """The tests that every `JobStore` must pass.

    Subclass it and add one fixture::

        class TestMyStore(JobStoreContract):
            @pytest.fixture
            def make_store(self, tmp_path):
                return lambda clock: MyStore(tmp_path / "jobs", clock=clock)

    `make_store` returns a function that takes a clock and returns a store that is not open yet. All stores of
    one test must use the same run in the same storage, so that the test can reopen the store.
    """

    @pytest_asyncio.fixture
    async def store(self, make_store: MakeStore) -> AsyncIterator[JobStore]:
        """Open an empty store."""
        async with make_store(Seconds()) as store:
            yield store

    async def test_steps_of_a_job_are_recorded(self, make_store: MakeStore) -> None:
        """Each step is stored with its data and time. A durable store still has them when reopened."""
        async with make_store(Seconds()) as store:
            job = await record_job(store)
            name = job.external_task_id
            assert (job.key, job.params_hash, job.attempt, job.state) == ("k", "h", 1, JobState.INTENT)
            assert (job.task_id, job.last_post_at, job.task, job.files, job.error) == (None,) * 3 + ((), None)
            assert not job.may_exist
            assert job.created_at == job.updated_at > EPOCH
            await store.mark_sending(name)
            sent = await store.get(name)
            assert sent is not None
            assert (sent.state, sent.last_post_at) == (JobState.INTENT, job.created_at + 1)
            assert sent.may_exist
            await store.observe(name, RUNNING)
            running = await store.get(name)
            assert running is not None
            assert (running.state, running.task_id) == (JobState.SUBMITTED, "t1")
            assert running.task == evolve(RUNNING, external_task_id=name)
            await store.observe(name, SUCCEEDED)
            await store.mark_saved(name, ["out/dog-0.png", Path("out/dog-1.png")])
        async with make_store(Seconds()) as again:
            done = await again.find("k")
            if not again.durable:
                assert done is None
                return
            assert done is not None
            assert done == await again.get(name) == await again.find("k", "h")
            assert (done.state, done.task_id, done.task) == (JobState.DONE, "t1", SUCCEEDED)
            assert done.files == ("out/dog-0.png", "out/dog-1.png")
            assert (done.created_at, done.last_post_at) == (job.created_at, job.created_at + 1)
            assert done.updated_at == job.created_at + 4

    async def test_time_of_the_last_post_survives(self, make_store: MakeStore) -> None:
        """The wait before repeating a create starts at the last create, even after a restart."""
        clock = Seconds()
        async with make_store(clock) as store:
            name = (await record_job(store)).external_task_id
            await store.mark_sending(name)
            await store.mark_sending(name)
            sent_at = clock.now
            await store.mark_uncertain(name, "connection reset")
        async with make_store(clock) as again:
            job = await record_job(again)
            assert job.external_task_id == name
            assert job.last_post_at == (sent_at if again.durable else None)
            assert job.may_exist is again.durable

    async def test_setting_the_clock_does_not_age_a_create(self, make_store: MakeStore) -> None:
        """The wait before repeating a create does not end early if the wall clock is set forward."""
        clock = Seconds()
        async with make_store(clock) as store:
            job = await record_job(store)
            await store.mark_sending(job.external_task_id)
            clock.now += 3600
            job = await record_job(store)
            assert 0 <= await store.post_age(job) < 60
        clock.now += 3600
        async with make_store(clock) as again:
            job = await record_job(again)
            if again.durable:
                assert 0 <= await again.post_age(job) < 60
            await again.mark_sending(job.external_task_id)
            clock.now -= 7200
            assert 0 <= await again.post_age(await record_job(again)) < 60

    async def test_an_id_is_the_same_in_every_process(self, make_store: MakeStore) -> None:
        """An id is derived from key, request and attempt, so a lookup works even if the store is lost."""
        ids = []
        for _ in range(2):
            async with make_store(Seconds()) as store:
                for key, digest in (("a", "x"), ("a", "y"), ("b", "x")):
                    ids.append((await record_job(store, key, digest)).external_task_id)
        assert ids[:3] == ids[3:]
        assert len(set(ids)) == 3

    async def test_a_given_id_is_kept(self, store: JobStore) -> None:
        """An `external_task_id` of the request is the id of the job, and no second job can have it."""
        assert (await record_job(store, "a", external_task_id="mine")).external_task_id == "mine"
        with pytest.raises(JournalError, match="two jobs cannot share one external_task_id"):
            await record_job(store, "b", external_task_id="mine")
        assert await _states(store) == [("a", JobState.INTENT)]

    async def test_an_intent_is_recorded_once(self, store: JobStore) -> None:
        """Concurrent intents of the same job lead to one record."""
        jobs = await asyncio.gather(*(record_job(store) for _ in range(20)))
        assert {jobs[0]} == set(jobs)
        assert (await store.counts())[JobState.INTENT] == 1

    @pytest.mark.parametrize(
        "state", [JobState.UNKNOWN, JobState.SUBMITTED, JobState.SUCCEEDED, JobState.DONE]
    )
    async def test_a_known_job_is_returned(self, store: JobStore, state: JobState) -> None:
        """An open or finished job is never started again. A store in memory forgets finished jobs."""
        name = (await record_job(store)).external_task_id
        if state is JobState.UNKNOWN:
            await store.mark_uncertain(name, "reset")
        else:
            await store.observe(name, RUNNING)
        if state in {JobState.SUCCEEDED, JobState.DONE}:
            await store.observe(name, SUCCEEDED)
        if state is JobState.DONE:
            await store.mark_saved(name, [])
        forgotten = not store.durable and state in {JobState.SUCCEEDED, JobState.DONE}
        job = await record_job(store, n=3)
        assert (job.external_task_id, job.attempt) == (name, 1)
        assert job.state is (JobState.INTENT if forgotten else state)
        assert job.request is not None
        assert job.request.n == (3 if forgotten else 1)

    async def test_a_failed_task_gets_a_new_attempt(self, store: JobStore) -> None:
        """Only a recorded failure leads to the next attempt, and earlier attempts remain separate."""
        first = await record_job(store)
        await store.mark_sending(first.external_task_id)
        assert (await record_job(store)).attempt == 1
        for attempt in (2, 3):
            before = await record_job(store)
            await store.observe(before.external_task_id, RUNNING)
            await store.observe(before.external_task_id, FAILED)
            failed = await store.get(before.external_task_id)
            after = await record_job(store)
            assert (after.attempt, after.state, after.task_id) == (attempt, JobState.INTENT, None)
            assert after.external_task_id != before.external_task_id
            assert after == await store.find("k")
            assert failed == await store.get(before.external_task_id)
            assert await _states(store) == [("k", JobState.INTENT)]
            assert (await store.counts())[JobState.FAILED] == 0
            if store.durable:
                assert failed is not None
                assert (failed.state, failed.error) == (JobState.FAILED, FAILED.task_status_msg)
                assert failed.task == FAILED

    async def test_excluded_attempts_are_skipped(self, store: JobStore) -> None:
        """`record_intent` skips the attempts that its caller excludes, whatever their states."""

        async def attempt(after: int) -> JobRecord:
            return await store.record_intent(JobIdentity("k", "h"), prepared(), after=after)

        third = await attempt(2)  # the caller found two attempts at the service that the store does not know
        assert (third.attempt, third.state) == (3, JobState.INTENT)
        assert [await attempt(after) for after in (0, 2)] == [third, third]
        await store.observe(third.external_task_id, RUNNING)
        running = await store.get(third.external_task_id)
        fourth = await attempt(3)
        assert (fourth.attempt, fourth.state, fourth.task_id) == (4, JobState.INTENT, None)
        assert fourth.external_task_id != third.external_task_id
        assert fourth == await attempt(0) == await store.find("k")
        assert await _states(store) == [("k", JobState.INTENT)]
        if store.durable:
            assert running == await store.get(third.external_task_id)
        await store.observe(fourth.external_task_id, FAILED)
        assert (await attempt(2)).attempt == 5

    async def test_every_attempt_is_yielded(self, store: JobStore) -> None:
        """A durable store yields the attempts that later ones replaced, whatever their ids are."""
        names = ["derived", "mine", "mine too"]
        for after, given in enumerate((None, *names[1:])):
            asked = prepared(external_task_id=given)
            job = await store.record_intent(JobIdentity("k", "h"), asked, after=after)
            names[after] = job.external_task_id
        found = [job.external_task_id async for job in store.attempts()]
        assert found == (names if store.durable else names[-1:])

    async def test_concurrent_calls_make_one_new_attempt(self, store: JobStore) -> None:
        """If several callers skip the same attempt at the same time, only one new attempt is made."""
        await store.observe((await record_job(store)).external_task_id, SUCCEEDED)
        made = await asyncio.gather(
            *(store.record_intent(JobIdentity("k", "h"), prepared(), after=1) for _ in range(20))
        )
        assert {job.external_task_id for job in made} == {made[0].external_task_id}
        assert made[0].attempt == 2
        assert (await store.counts())[JobState.INTENT] == 1

    async def test_an_unsent_job_can_be_sent_again_at_once(self, store: JobStore) -> None:
        """`mark_unsent` lets the job be sent again at once. It has no effect once a task is known."""
        name = (await record_job(store)).external_task_id
        await store.mark_sending(name)
        await store.mark_unsent(name)
        job = await store.get(name)
        assert job is None or (job.state, job.may_exist) == (JobState.INTENT, False)
        assert (await record_job(store)).external_task_id == name
        await store.mark_sending(name)
        await store.mark_uncertain(name, "no response")
        await store.mark_unsent(name)
        assert not (await record_job(store)).may_exist
        await store.observe(name, RUNNING)
        await store.mark_unsent(name)
        job = await store.get(name)
        assert job is not None
        assert job.state is JobState.SUBMITTED

    async def test_a_rejected_job_keeps_its_id(self, store: JobStore) -> None:
        """A rejected job has no task, so a retry keeps the id and is not a new attempt."""
        job = await record_job(store)
        await store.mark_sending(job.external_task_id)
        await store.mark_refused(job.external_task_id, "1201: bad \udcff")
        rejected = await store.find("k")
        again = await record_job(store)
        assert (again.external_task_id, again.attempt) == (job.external_task_id, 1)
        assert (again.state, again.error, again.task_id) == (JobState.INTENT, None, None)
        if store.durable:
            assert rejected is not None
            assert (rejected.state, rejected.error) == (JobState.REJECTED, "1201: bad ?")
            assert (again.last_post_at, again.created_at) == (rejected.last_post_at, job.created_at)

    async def test_other_parameters_are_another_job(
        self, store: JobStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Different parameters cause a warning. The old job remains, because it may have been paid for."""
        old = await record_job(store, digest="old")
        await store.observe(old.external_task_id, RUNNING)
        new = await record_job(store, digest="new")
        assert [record.message for record in caplog.records] == [
            "job 'k' has different parameters than before, so a new task is made"
        ]
        assert new == await store.find("k")
        kept = await record_job(store, digest="old")
        assert (kept.state, kept.external_task_id) == (JobState.SUBMITTED, old.external_task_id)
        assert kept == await store.find("k", "old")
        assert await store.find("k", "other") is None
        assert len(caplog.records) == 1
        assert len(await _states(store, JobState.INTENT, JobState.SUBMITTED)) == 2

    async def test_no_create_is_sent_for_a_known_task(self, store: JobStore) -> None:
        """Once a task is known, `mark_sending` raises an error that names the task."""
        name = (await record_job(store)).external_task_id
        await store.mark_sending(name)
        await store.observe(name, RUNNING)
        before = await store.get(name)
        with pytest.raises(JournalError, match="already has a task") as caught:
            await store.mark_sending(name)
        assert (caught.value.task_id, caught.value.external_task_id) == ("t1", name)
        assert before == await store.get(name)

    async def test_two_tasks_under_one_id_are_reported(
        self, store: JobStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The first task remains on record, and a warning names both, because both were paid for."""
        name = (await record_job(store)).external_task_id
        await store.observe(name, RUNNING)
        await store.observe(name, RUNNING)
        assert not caplog.records
        await store.observe(name, evolve(SUCCEEDED, task_id="t2"))
        assert [record.message for record in caplog.records] == [
            f"two tasks under the id {name}: t1, and now t2"
        ]
        job = await store.get(name)
        assert job is not None
        assert (job.state, job.task_id, job.snapshot) == (JobState.SUBMITTED, "t1", None)

    async def test_a_report_about_an_unknown_job_is_an_error_or_ignored(self, store: JobStore) -> None:
        """A durable store raises an error for a report about an unknown job. Any other store ignores it."""
        for report in (
            store.mark_sending("other"),
            store.observe("other", RUNNING),
            store.observe("other", SUCCEEDED),
            store.mark_saved("other", ["a"]),
            store.mark_refused("other", "words"),
            store.mark_uncertain("other", "words"),
        ):
            if not store.durable:
                await report
                continue
            with pytest.raises(JournalError, match="no such job") as caught:
                await report
            assert caught.value.external_task_id == "other"
        assert not any((await store.counts()).values())

    async def test_a_succeeded_task_accepts_fresh_urls(self, store: JobStore) -> None:
        """An expired URL can be replaced until the pictures are on disk, but not later."""
        name = (await record_job(store)).external_task_id
        await store.observe(name, SUCCEEDED)
        fresh = evolve(SUCCEEDED, images=(Image(0, "https://b/0.png"),))
        await store.observe(name, fresh)
        await store.mark_saved(name, ["a.png"])
        await store.observe(name, SUCCEEDED)
        await store.mark_saved(name, ["b.png"])
        job = await store.get(name)
        assert (job is not None) is store.durable
        if job is not None:
            assert (job.state, job.task, job.files) == (JobState.DONE, fresh, ("b.png",))

    async def test_reports_in_any_order_end_the_same(self, store: JobStore) -> None:
        """Late and repeated reports change nothing, whatever their order."""
        for number, order in enumerate(permutations(range(5))):
            name = (await record_job(store, str(number))).external_task_id
            reports = [
                store.observe(name, RUNNING),
                store.observe(name, RUNNING),
                store.observe(name, Task("t1", "a word without a meaning")),
                store.observe(name, SUCCEEDED),
                store.mark_uncertain(name, "reset"),
            ]
            for index in order:
                await reports[index]
            job = await store.get(name)
            assert (job is not None) is store.durable
            if job is not None:
                assert (job.state, job.task_id, job.task, job.error) == (
                    JobState.SUCCEEDED,
                    "t1",
                    SUCCEEDED,
                    None,
                )

    async def test_a_request_can_be_restored(self, store: JobStore) -> None:
        """A record has the request and its source, or None for both if the photo was given as bytes."""
        asked = prepared("a", prompt="a \U0001f33b", n=4, watermark=True, callback_url="https://c.example")
        await store.record_intent(JobIdentity("a", "h"), asked)
        job = await store.find("a")
        assert job is not None
        assert job.request == asked.request
        for number, photo in enumerate((b"png", "data:image/png;base64,U0VDUkVU")):
            key = f"bytes {number}"
            given = Photo(key, "digest", 1, content=photo) if isinstance(photo, bytes) else None
            given = given or Photo(key, "digest", 1, url=str(photo))
            await store.record_intent(JobIdentity(key, "h"), prepared(key)._replace(photo=given))
            found = await store.find(key)
            assert found is not None
            assert (found.source, found.request) == (None, None)

    async def test_file_names_that_are_not_utf_8_are_kept(self, store: JobStore) -> None:
        """File names that are not valid UTF-8 are restored unchanged."""
        odd = os.fsdecode(b"/in/\xff\xfe\n.png")
        asked = prepared("k")._replace(photo=Photo("odd", "digest", 1, content=odd))
        job = await store.record_intent(JobIdentity("kéy\n", "h"), asked)
        assert (job.key, job.source) == ("kéy\n", odd)
        await store.observe(job.external_task_id, SUCCEEDED)
        await store.mark_saved(job.external_task_id, [odd, "é"])
        found = await store.get(job.external_task_id)
        assert (found is not None) is store.durable
        if found is not None:
            assert (found.source, found.files) == (odd, (odd, "é"))

    async def test_any_error_message_can_be_stored(self, store: JobStore) -> None:
        """NUL and lone surrogates in an error message do not prevent it from being recorded."""
        name = (await record_job(store)).external_task_id
        await store.mark_uncertain(name, "bad \0 word \ud800")
        job = await store.get(name)
        assert job is not None
        assert (job.state, (job.error or "")[:4]) == (JobState.UNKNOWN, "bad ")
        await store.observe(name, Task("t1", "failed", "bad \0 word \ud800", name))
        assert (await record_job(store)).attempt == 2

    async def test_jobs_come_in_order(self, store: JobStore) -> None:
        """Hundreds of jobs are returned in the order of their intents, whatever their states."""
        keys = [f"{number:04}" for number in range(407)]
        recorded = [await record_job(store, key) for key in keys]
        for number, job in enumerate(recorded):
            if number % 3 == 0:
                await store.observe(job.external_task_id, RUNNING)
            elif number % 3 == 1:
                await store.mark_uncertain(job.external_task_id, "?")
        assert keys == [job.key async for job in store.jobs()]
        assert keys[::3] == [job.key async for job in store.jobs(JobState.SUBMITTED)]
        two = [key for number, key in enumerate(keys) if number % 3]
        assert two == [job.key async for job in store.jobs(JobState.UNKNOWN, JobState.INTENT)]
        assert await _states(store, JobState.DONE) == []
        assert (await store.counts())[JobState.UNKNOWN] == len(keys[1::3])

    async def test_jobs_may_end_while_they_are_read(self, store: JobStore) -> None:
        """If jobs end while they are being read, none is skipped and none is returned twice."""
        keys = [f"{number:04}" for number in range(250)]
        for key in keys:
            await record_job(store, key)
        seen = []
        async for job in store.jobs(JobState.INTENT):
            seen.append(job.key)
            await store.mark_refused(job.external_task_id, "no")
        assert keys == seen
        assert (await store.counts())[JobState.REJECTED] == (len(keys) if store.durable else 0)

    async def test_a_cancelled_call_does_not_affect_others(self, store: JobStore) -> None:
        """If a call is cancelled, the record of another caller is stored and the store keeps working."""
        cancelled, other = (asyncio.ensure_future(record_job(store, key)) for key in "ab")
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert (await other) == await store.find("b")
        assert (await record_job(store, "a")).state is JobState.INTENT


async def _states(store: JobStore, *wanted: JobState) -> list[tuple[str, JobState]]:
    return [(job.key, job.state) async for job in store.jobs(*wanted)]
