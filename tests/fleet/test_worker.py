"""A fleet: what is queued once is made once, by whichever worker lives, and its end is told once."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from attrs import evolve
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import fleet as benchmark
from benchmarks.reporting import picture
from kling_expand import ExpandRequest, Padding, Ratios, ToAspect, ToSize, Towards, errors
from kling_expand.cli import root
from kling_expand.cli.batch import fleet_progress as fleetscreen
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.fleet import execute as work
from kling_expand.fleet import payload as payloads
from kling_expand.fleet.dev_server import Cluster, programs
from kling_expand.fleet.execute import RetryLater, SharedSlots, WorkerContext
from kling_expand.fleet.queue import Fleet
from kling_expand.fleet.worker import Worker
from kling_expand.jobs.poll_schedule import ExponentialSchedule
from kling_expand.store.postgres import JobOutcome, PostgresStore, TakenOver
from kling_expand.store.sqlite_statements import State

pytest_plugins = ["support.postgres"]
SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "dog.png"
    path.write_bytes(picture(300))
    return path


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(
        engine="flat", queue_seconds=0, work_seconds=0.05, slots=100, allow_private=True
    ) as emulator:
        yield emulator


@pytest.fixture
async def fleet(dsn: str) -> AsyncIterator[Fleet]:
    async with Fleet(dsn, webhook_secrets=[]) as fleet:
        await fleet.init()
        yield fleet


class Quick(ExponentialSchedule):
    """Looks often: nobody is in the way of anybody here."""

    def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
        del ages, price
        return 0.02


@asynccontextmanager
async def working(dsn: str, emulator: Emulator, **options: Any) -> AsyncIterator[Worker]:
    """A worker with a database session of its own, told to stop in the end."""
    given: dict[str, Any] = {
        "heartbeat_timeout": 1.5,
        "shutdown_timeout": 0.0,
        "base_url": emulator.url,
        "api_key": emulator.api_key,
    }
    async with Fleet(dsn, webhook_secrets=[]) as own:
        worker = Worker(own, **given | {"schedule": Quick(Random(0))} | options)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await running


def requests(photo: Path, count: int, **fields: Any) -> Iterator[ExpandRequest]:
    for number in range(count):
        yield ExpandRequest(photo, Ratios(right=1.0), prompt=f"job {number}", key=f"k{number}", **fields)


def head(path: str) -> bytes:
    """How a file begins."""
    return Path(path).read_bytes()[:4]


async def made(emulator: Emulator, tasks: int) -> None:
    """Wait until the service has so many tasks."""
    async with asyncio.timeout(30):
        while len(emulator.account.tasks) < tasks:  # noqa: ASYNC110 - a foreign service
            await asyncio.sleep(0.02)


async def outcomes(fleet: Fleet) -> list[JobOutcome]:
    async with asyncio.timeout(40):
        return [ended async for ended in fleet.results()]


# ------------------------------------------------------------------------ the whole


@pytest.mark.parametrize("limit", [None, 4])
async def test_what_is_queued_is_made_once(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path, limit: int | None
) -> None:
    """Two workers, every job queued twice: one task each, its picture on disk, its cost in the ledger."""
    assert await fleet.submit_many(requests(photo, 12)) == 12
    assert await fleet.submit_many(requests(photo, 12)) == 12
    options = {"max_in_flight": limit, "output": str(photo.parent / "out")}
    async with working(dsn, emulator, **options), working(dsn, emulator, **options):
        found = {ended.key: ended for ended in await outcomes(fleet)}
        numbers = await fleet.stats()
    assert {f"k{number}" for number in range(12)} == set(found)
    assert {("succeeded", 8)} == {(ended.status, ended.units) for ended in found.values()}
    assert {b"\x89PNG"} == {head(ended.files[0]) for ended in found.values()}
    assert set(emulator.account.accepted.values()) == {1}
    assert len(emulator.account.tasks) == 12
    assert limit is None or emulator.account.most_slots <= limit
    assert (numbers.queued, numbers.running, numbers.units_billed, numbers.in_flight) == (0, 0, 96, 0)
    assert (numbers.outcomes, numbers.recent_outcomes) == ({"succeeded": 12}, 12)
    assert len(numbers.workers) == 2


async def test_a_dead_workers_jobs_go_on_elsewhere(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """A SIGKILL with tasks at the service: another takes them up after the lease, and pays for none again."""
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 3))
    words = ["--dsn", dsn, "--base-url", emulator.url, "--heartbeat-timeout", "1.5", "--max-in-flight", "3"]
    victim = await asyncio.create_subprocess_exec(
        "/usr/bin/env", f"KLING_API_KEY={emulator.api_key}",
        sys.executable, "-m", "kling_expand", "fleet", "worker", *words,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await made(emulator, 3)
    victim.send_signal(signal.SIGKILL)
    await victim.wait()
    async with working(dsn, emulator, max_in_flight=3):
        async with asyncio.timeout(1.5 + 15):
            while (await fleet.stats()).workers[-1][1] < 3:  # noqa: ASYNC110 - a foreign database
                await asyncio.sleep(0.05)
        emulator.advance(2000)
        assert {"succeeded"} == {ended.status for ended in await outcomes(fleet)}
    assert emulator.account.requests["create"] == len(emulator.account.tasks) == 3


async def test_a_job_longer_than_the_lease_is_begun_once(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """As long as its worker is heard of, nobody else touches it."""
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 2))
    async with working(dsn, emulator, heartbeat_timeout=0.6), working(dsn, emulator, heartbeat_timeout=0.6):
        await made(emulator, 2)
        await asyncio.sleep(2.0)  # three leases, by the clock of a real database
        with psycopg.connect(dsn) as look:
            assert (
                look.execute("SELECT status::text, attempts FROM procrastinate_jobs").fetchall()
                == [("doing", 0)] * 2
            )
        emulator.advance(2000)
        assert len(await outcomes(fleet)) == 2
    assert emulator.account.requests["create"] == 2


async def test_a_drained_worker_hands_over(fleet: Fleet, dsn: str, emulator: Emulator, photo: Path) -> None:
    """What runs is taken up by the next and not paid again; what waited was never sent."""
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 4))
    async with working(dsn, emulator, max_in_flight=2):
        await made(emulator, 2)
    numbers = await fleet.stats()
    assert (numbers.queued, numbers.running, numbers.permits, numbers.workers) == (4, 0, 0, ())
    emulator.work_seconds = 0.05
    emulator.advance(2000)
    async with working(dsn, emulator):
        assert len(await outcomes(fleet)) == 4
    assert len(emulator.account.tasks) == 4


async def test_a_killed_database_is_outlived(own_cluster: Cluster, emulator: Emulator, photo: Path) -> None:
    """It is SIGKILLed with jobs under way, and nothing is lost or paid twice."""
    cluster = own_cluster
    emulator.work_seconds = 0.5
    async with cluster, Fleet(cluster.dsn, webhook_secrets=[]) as fleet:
        await fleet.init()
        await fleet.submit_many(requests(photo, 12))
        async with working(cluster.dsn, emulator, max_in_flight=4):
            await made(emulator, 5)
            await asyncio.to_thread(cluster.kill)
            await cluster.start()
            assert {"succeeded"} == {ended.status for ended in await outcomes(fleet)}
            assert (await fleet.store.counts())[State.SUCCEEDED] == 12
    assert len(emulator.account.tasks) == 12
    assert emulator.account.most_slots <= 4


async def test_a_callback_reaches_the_worker_that_waits(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """Any process may be called: the news travels through the database, and nobody has to ask."""
    emulator.webhook_secret, emulator.work_seconds = SECRET, 0.3
    async with Fleet(dsn, webhook_secrets=[SECRET]) as web, benchmark.callbacks(web) as url:
        await fleet.submit_many(requests(photo, 2))
        slow = ExponentialSchedule(Random(0), first=1000.0, longest=1000.0)
        async with working(dsn, emulator, callback_url=url, webhook_secret=SECRET, schedule=slow):
            assert {"succeeded"} == {ended.status for ended in await outcomes(fleet)}
        with pytest.raises(errors.WebhookError):
            await web.receive({}, b"{}")
    assert emulator.account.requests["query"] == 0


# ------------------------------------------------------------------------ submitting, waiting, cancelling


async def test_the_queue_pushes_back(fleet: Fleet, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the queue full nothing more is read of the source, until there is room."""
    read = 0

    async def source() -> AsyncIterator[ExpandRequest]:
        nonlocal read
        for request in requests(photo, 10):
            read += 1
            yield request

    monkeypatch.setattr("kling_expand.fleet.queue.POLL_INTERVAL", 0.02)
    adding = asyncio.create_task(fleet.submit_many(source(), max_queued=4))
    async with asyncio.timeout(20):
        while (await fleet.stats()).queued < 4:  # noqa: ASYNC110 - a foreign database
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        assert (read, adding.done()) == (5, False)
        while not adding.done():
            await fleet.cancel()
            await asyncio.sleep(0.02)
    assert await adding == 10


async def test_the_urgent_is_begun_first(fleet: Fleet, dsn: str, emulator: Emulator, photo: Path) -> None:
    """A higher priority overtakes whatever waits."""
    await fleet.submit_many(requests(photo, 3))
    urgent = await fleet.submit(ExpandRequest(photo, Ratios(left=1.0), prompt="urgent"), priority=5)
    async with working(dsn, emulator, concurrency=1):
        found = await outcomes(fleet)
    assert urgent == found[0].key
    assert next(iter(emulator.account.tasks.values())).prompt == "urgent"


async def test_what_nobody_has_begun_can_be_cancelled(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """It is taken out of the queue, and has an outcome like any other; what has begun is not touched."""
    await fleet.submit_many(requests(photo, 5))
    assert await fleet.cancel("k1", "k3", "nobody") == 2
    async with working(dsn, emulator):
        found = {ended.key: ended.status for ended in await outcomes(fleet)}
    assert found == {
        "k0": "succeeded",
        "k2": "succeeded",
        "k4": "succeeded",
        "k1": "cancelled",
        "k3": "cancelled",
    }
    assert await fleet.cancel("k0") == 0
    assert len(emulator.account.tasks) == 3


async def test_a_refusal_is_an_outcome(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path, tmp_path: Path
) -> None:
    """Permanent ones end the job with their reason, and cost nobody else anything."""
    words = ["emulate-1301", "emulate-risk-control", "good"]
    await fleet.submit_many(ExpandRequest(photo, Ratios(right=1.0), prompt=word, key=word) for word in words)
    await fleet.submit(ExpandRequest(tmp_path / "nowhere.png", Ratios(right=1.0), key="nowhere"))
    async with working(dsn, emulator):
        found = {ended.key: ended for ended in await outcomes(fleet)}
    assert {key: ended.status for key, ended in found.items()} == {
        "emulate-1301": "refused", "emulate-risk-control": "failed", "nowhere": "refused", "good": "succeeded"
    }  # fmt: skip
    assert "PolicyRefusal" in (found["emulate-1301"].error or "")
    assert found["emulate-risk-control"].task_id is not None


async def test_an_arrears_passes(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is wrong with the job: it waits until the account is good again."""
    monkeypatch.setattr(work, "OPERATOR_RETRY_DELAY", 0.0)
    emulator.faults.script("create", Fault("error", code=1101))
    await fleet.submit_many(requests(photo, 1))
    async with working(dsn, emulator):
        (ended,) = await outcomes(fleet)
    assert ended.status == "succeeded"
    assert len(emulator.account.tasks) == 1


# ------------------------------------------------------------------------ one job, without a queue

ERRORS = [
    (errors.ClientClosed(), 0, 0.0),
    (errors.NotSubmitted(), 99, 0.0),
    (errors.JournalError("known", task_id="t"), 99, 0.0),
    (errors.JournalError("away"), 0, 5.0),
    (errors.SubmissionUnknown(), 1, 10.0),
    (errors.TransportError(), 2, 20.0),
    (errors.RateLimited(), 20, 600.0),
    (errors.DownloadError(), 0, 5.0),
    (errors.DeadlineExceeded(), 0, 5.0),
    (errors.AccountError(), 5, 300.0),
    (errors.AuthenticationError(), 5, 300.0),
    (KeyError("a bug"), 0, 5.0),
    (KeyError("a bug"), work.MAX_ATTEMPTS - 1, None),
    (errors.ResultExpired(), 0, None),
    (errors.PolicyRefusal(), 0, None),
    (errors.BadRequest(), 0, None),
    (errors.TaskFailed(), 0, None),
    (errors.ImageError("image", "x", "y"), 0, None),
    (errors.TransportError(), work.MAX_ATTEMPTS - 1, None),
]


@pytest.mark.parametrize(("error", "attempt", "pause"), ERRORS)
def test_what_may_pass_is_told_from_what_may_not(error: Exception, attempt: int, pause: float | None) -> None:
    """A refusal for good ends a job, a hand-over costs no time, and all else is tried again, ever later."""
    assert work.retry_delay(error, attempt) == pause


async def test_whoever_was_taken_for_dead_follows(
    fleet: Fleet, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither sends nor ends the job: the outcome is the one that the new owner comes to."""

    class Late:
        """A client that finds out too late."""

        async def submit(self, *_: Any, **__: Any) -> None:
            raise TakenOver("another")

    monkeypatch.setattr(work, "FOLLOW_INTERVAL", 0.02)
    heir = PostgresStore(fleet.database, owner=2)
    payload = payloads.pack(next(requests(photo, 1)))
    await heir.ended(JobOutcome("k0", "cancelled"))  # of an earlier time
    job = await heir.intend("k0", params_hash="h", params="{}", source=None, external_id=lambda _: "x")
    late: Any = Late()
    context = WorkerContext(late, PostgresStore(fleet.database, owner=1))
    following = asyncio.create_task(work.execute(payload, context))
    await asyncio.sleep(0.2)
    assert not following.done()
    await heir.rejected(job.external_task_id, "no")
    await heir.ended(JobOutcome("k0", "refused"))
    async with asyncio.timeout(5):
        assert (await following).status in {"refused", "cancelled"}


async def test_again_says_when(fleet: Fleet, photo: Path) -> None:
    """What may pass is raised for the queue to put off."""

    class Cut:
        """A client whose network is gone."""

        async def submit(self, *_: Any, **__: Any) -> None:
            raise errors.TransportError("cut")

    with pytest.raises(RetryLater) as caught:
        await work.execute(payloads.pack(next(requests(photo, 1))), WorkerContext(Cut(), fleet.store), 1)  # type: ignore[arg-type]  # it submits, and that is all that is asked
    assert caught.value.delay == 10.0
    assert await fleet.store.outcome("k0") is None


async def test_shut_doors() -> None:
    """Nobody who waits for a slot, or comes later, gets one; who is inside may leave."""
    doors = SharedSlots(1)
    await doors.acquire(1)
    waiting = [asyncio.ensure_future(doors.acquire(1)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    doors.close()
    with pytest.raises(errors.NotSubmitted):
        await waiting[1]
    doors.release(1)
    with pytest.raises(errors.NotSubmitted):
        await doors.acquire(1)
    assert doors.held == 0


# ------------------------------------------------------------------------ payloads

GEOMETRIES = [
    Ratios(left=0.5),
    ToAspect("16:9"),
    ToAspect("1:1", area=2.0, anchor="top"),
    ToSize(900, 900),
    Padding(up=20),
    Towards("left,right", ratio=1.4),
]


@given(
    st.sampled_from(GEOMETRIES),
    st.none() | st.text(max_size=20),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(["/a/dog.png", "https://host/dog.png", "s3://bucket/dog.png"]),
)
def test_a_payload_is_its_request(
    geometry: Any,
    prompt: str | None,
    n: int,
    watermark: bool,  # noqa: FBT001 - drawn
    image: str,
) -> None:
    """JSON and back, and the same key for the same words only."""
    request = ExpandRequest(image, geometry, prompt, n=n, watermark=watermark)
    payload = payloads.pack(request)
    again = payloads.unpack(json.loads(json.dumps(payload)))
    assert evolve(request, key=payload["key"]) == again
    assert payloads.pack(again) == payload == payloads.pack(request)
    assert payloads.pack(evolve(request, n=n % 9 + 1))["key"] != payload["key"]
    assert payloads.stem(image) == "dog"


def test_no_queue_carries_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is made whole; bytes, data URIs and home-made geometries are refused in a sentence."""
    monkeypatch.chdir(tmp_path)
    assert payloads.pack(ExpandRequest(Path("a.png"), Ratios(up=1.0)))["image"] == str(tmp_path / "a.png")
    for image in (b"bytes", "data:image/png;base64,AAAA"):
        with pytest.raises(errors.InvalidRequest, match="must be a path"):
            payloads.pack(ExpandRequest(image, Ratios(up=1.0)))

    class Mine(Ratios):
        """Not ours."""

    with pytest.raises(errors.InvalidRequest, match="can be queued"):
        payloads.pack(ExpandRequest("a.png", Mine(up=1.0)))


async def test_object_stores(fleet: Fleet, dsn: str, emulator: Emulator) -> None:
    """Photos are read from a store and pictures written to one; what it does not have is refused."""
    import fsspec

    with fsspec.open("memory://in/cat.png", "wb") as file:
        file.write(picture(300))
    for name in ("cat", "none"):
        await fleet.submit(ExpandRequest(f"memory://in/{name}.png", Ratios(right=1.0), key=name))
    async with working(dsn, emulator, output="memory://out"):
        found = {ended.key: ended for ended in await outcomes(fleet)}
    assert (found["none"].status, found["cat"].status) == ("refused", "succeeded")
    (place,) = found["cat"].files
    assert place.startswith("memory://out/cat-kx-")
    with fsspec.open(place, "rb") as file:
        assert file.read(4) == b"\x89PNG"


# ------------------------------------------------------------------------ from a shell


def shell(*words: str) -> Any:
    return CliRunner().invoke(root, ["fleet", *words])


async def test_a_fleet_from_a_shell(dsn: str, emulator: Emulator, photo: Path, tmp_path: Path) -> None:
    """init, submit, worker and status, each in words; a worker that is told to stop ends well."""
    at = ["--dsn", dsn]
    assert "fleet init" in (await asyncio.to_thread(shell, "status", *at)).output
    assert (await asyncio.to_thread(shell, "init", *at)).exit_code == 0
    (tmp_path / "list").write_text(f"{photo}\n\nmissing.png\n")
    worker = await asyncio.create_subprocess_exec(
        "/usr/bin/env", f"KLING_API_KEY={emulator.api_key}",
        sys.executable, "-m", "kling_expand", "fleet", "worker", *at, "--base-url", emulator.url,
        "-o", str(tmp_path / "out"), "--shutdown-timeout", "1",
    )  # fmt: skip
    words = ["submit", *at, "--right", "0.5", "--from", str(tmp_path / "list"), "--wait"]
    done = await asyncio.to_thread(shell, *words)
    assert done.exit_code == 1
    assert "2 queued" in done.output
    assert "refused: ImageError" in done.output
    assert [str(path) for path in (tmp_path / "out").iterdir()] == [
        line for line in done.output.split("\n") if "/out/" in line
    ]
    as_json = (await asyncio.to_thread(shell, *words, "--json")).output
    assert {"succeeded", "refused"} == {
        json.loads(line)["status"] for line in as_json.splitlines() if "{" in line
    }
    assert "1 refused, 1 succeeded" in (await asyncio.to_thread(shell, "status", *at)).output
    assert json.loads((await asyncio.to_thread(shell, "status", *at, "--json")).output)["units_billed"] == 8
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(worker.wait(), 20) == 0


async def test_top_is_drawn_again_and_again(fleet: Fleet) -> None:
    """Workers, slots, queue and spend, as often as asked."""
    console = Console(record=True, width=80, force_terminal=True)
    watching = asyncio.create_task(fleetscreen.watch(fleet.stats, 0.01, console))
    await asyncio.sleep(0.3)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    numbers = evolve(await fleet.stats(), workers=((3.0, 2), (400.0, 1)), units_billed=16)
    console.print(fleetscreen.screen(numbers))
    text = console.export_text()
    for words in (
        "queue",
        "permits taken",
        "1 heard of lately, 1 silent",
        "heard 400 s ago (silent)",
        "$0.06",
    ):
        assert words in text


def test_one_sentence_where_there_is_no_database() -> None:
    """Nothing was begun: exit code 2 and no traceback."""
    done = shell("status", "--dsn", "postgresql://postgres@127.0.0.1:1/x")
    assert (done.exit_code, "cannot be reached" in done.output) == (1, True)


# ------------------------------------------------------------------------ the proof, in small


def test_the_benchmarks_arithmetic() -> None:
    """Peak and utilisation are what a hand comes to, outages left out."""
    times = [(0.0, 10.0), (0.0, 10.0), (10.0, 15.0), (20.0, 30.0), (20.0, 30.0), (30.0, 40.0), (30.0, 40.0)]
    found = benchmark.usage(times, 2, [])
    assert (found["peak"], found["utilisation"]) == (2, round(25 / 40, 4))
    assert benchmark.usage(times, 2, [(10.0, 20.0)])["utilisation"] == 1.0
    assert benchmark.usage([*times, (5.0, 6.0)], 2, [])["peak"] == 3


async def test_an_account_that_is_too_small_for_all(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """Without permits two workers find out what the account takes; refusals cost time and nothing else."""
    emulator.slots = 1
    await fleet.submit_many(requests(photo, 8))
    async with working(dsn, emulator), working(dsn, emulator):
        assert {"succeeded"} == {ended.status for ended in await outcomes(fleet)}
    assert len(emulator.account.tasks) == 8
    assert emulator.account.most_slots == 1
    assert emulator.account.refusals[1303] < 40


async def test_where_all_slots_are_others_nobody_hammers() -> None:
    """With none of ours running a refused create shuts the doors for a while, longer each time."""
    doors = SharedSlots(9, Random(0))
    loop = asyncio.get_running_loop()
    await doors.acquire(1)
    doors.refused(1, doors.epoch)
    first, waiting = doors._resume_at - loop.time(), asyncio.ensure_future(doors.acquire(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    doors._resume()
    await waiting
    doors.refused(1, doors.epoch)
    assert doors._resume_at - loop.time() > first > 0
    doors._resume()
    await doors.acquire(1)
    doors.accepted(1)
    doors.ended(1)
    await doors.acquire(1)


async def test_a_store_that_fails_may_do_better_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a store cannot do now is no fault of the job's; without the extra it is said which one."""

    class Broken:
        """A store that is away."""

        def open(self, *_: Any) -> None:
            raise OSError("away")

    request = ExpandRequest("s3://bucket/a.png", Ratios(up=1.0))
    monkeypatch.setattr(payloads, "_fsspec", Broken)
    with pytest.raises(errors.TransportError, match="cannot be read"):
        await payloads.load(request)
    with pytest.raises(errors.TransportError, match="cannot be written"):
        payloads._upload([Path("a.png")], "s3://bucket")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(errors.MissingExtra, match=r"kling-expand\[objects\]"):
        await payloads.load(request)
    with pytest.raises(errors.MissingExtra):
        payloads._upload([Path("a.png")], "s3://bucket")


def test_no_postgresql_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, own_cluster: Cluster) -> None:
    """It names the package to install; a server that cannot be made or started says why."""
    own_cluster.create()
    with pytest.raises(errors.ConfigurationError, match="initdb failed"):
        own_cluster.create()
    (own_cluster._data / "PG_VERSION").unlink()
    with pytest.raises(errors.ConfigurationError, match="did not start"):
        own_cluster.launch()
    own_cluster.stop()
    own_cluster.kill()
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(errors.ConfigurationError, match="apt-get install postgresql"):
        programs()


async def test_everything_on_one_machine(tmp_path: Path, photo: Path) -> None:
    """`fleet up` prints a database to submit to, expands, and takes all of it away at Ctrl-C."""
    up = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kling_expand", "fleet", "up", "--workers", "1", "-o", str(tmp_path / "out")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert up.stdout is not None
    async with asyncio.timeout(60):
        dsn = (await up.stdout.readline()).decode().strip()
        done = await asyncio.to_thread(shell, "submit", "--dsn", dsn, "--right", "0.3", "--wait", str(photo))
        up.send_signal(signal.SIGINT)
        assert (done.exit_code, await up.wait()) == (0, 0)
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert "cannot be reached" in (await asyncio.to_thread(shell, "status", "--dsn", dsn)).output


async def test_top_ends_with_ctrl_c(fleet: Fleet) -> None:
    """It looks until then, and leaves without a word of complaint."""
    dsn = fleet.dsn
    top = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kling_expand", "fleet", "top", "--dsn", dsn, "--every", "0.1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    looked = "SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%%kling_jobs%%'"
    async with asyncio.timeout(30):
        with psycopg.connect(dsn, autocommit=True) as watch:
            while not watch.execute(looked).fetchall():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        top.send_signal(signal.SIGINT)
        _, err = await top.communicate()
    assert b"Traceback" not in err
