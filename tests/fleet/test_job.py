"""The execution of one job: which errors end it, which are retried, and which worker may send it."""

import asyncio
import io
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image
from support.fleet_workers import created, outcomes, requests, working

from benchmarks.large_photos import stored, texture
from kling_expand import ExpandRequest, Ratios, ToAspect, errors
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.fleet import job as execution
from kling_expand.fleet.job import (
    MAX_ATTEMPTS,
    History,
    RetryLater,
    WorkerContext,
    execute,
    pack,
    retry_delay,
)
from kling_expand.fleet.lease import SharedSlots
from kling_expand.fleet.queue import Fleet
from kling_expand.store.postgres import PostgresStore, TakenOver
from kling_expand.testing import virtual_time

pytest_plugins = ["support.postgres", "support.fleet"]

ERRORS = [
    (errors.ClientClosed(), 0, 0.0),
    (errors.NotSubmitted(), 99, 0.0),
    (errors.JournalError("known", task_id="t"), 99, 0.0),
    (errors.JournalError("away"), 0, 5.0),
    (errors.SubmissionUnknown(), 1, 10.0),
    (errors.SubmissionUnknown(), 5000, 10.0),
    (errors.TransportError(), 2, 20.0),
    (errors.TransportError("never reached", sent=False, retryable=False), 0, 5.0),
    (errors.RateLimited(), 20, 600.0),
    (errors.DownloadError(), 0, 5.0),
    (errors.DeadlineExceeded(), 0, 5.0),
    (errors.AccountError(), 5, 300.0),
    (errors.AuthenticationError(), 5, 300.0),
    (KeyError("a bug"), 0, 5.0),
    (KeyError("a bug"), MAX_ATTEMPTS - 1, None),
    (errors.ResultExpired(), 0, None),
    (errors.PolicyRefusal(), 0, None),
    (errors.BadRequest(), 0, None),
    (errors.TaskFailed(), 0, None),
    (errors.ImageError("image", "x", "y"), 0, None),
    (errors.TransportError(), MAX_ATTEMPTS - 1, None),
]


@pytest.mark.parametrize(("error", "attempt", "delay"), ERRORS)
def test_the_error_determines_the_retry(error: Exception, attempt: int, delay: float | None) -> None:
    """A permanent refusal ends a job, a hand-over is retried at once, and other errors with a backoff."""
    assert retry_delay(error, attempt) == delay


async def test_a_permanent_refusal_is_an_outcome(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path, tmp_path: Path
) -> None:
    """A permanent refusal ends its job with the reason, and the other jobs continue."""
    prompts = ["emulate-1301", "emulate-risk-control", "good"]
    await fleet.submit_many(
        ExpandRequest(photo, Ratios(right=1.0), prompt=prompt, key=prompt) for prompt in prompts
    )
    await fleet.submit(ExpandRequest(tmp_path / "missing.png", Ratios(right=1.0), key="missing"))
    async with working(dsn, emulator):
        found = {outcome.key: outcome for outcome in await outcomes(fleet)}
    assert {key: outcome.status for key, outcome in found.items()} == {
        "emulate-1301": "refused",
        "emulate-risk-control": "failed",
        "missing": "refused",
        "good": "succeeded",
    }
    assert "PolicyRefusal" in (found["emulate-1301"].error or "")
    assert found["emulate-risk-control"].task_id is not None


async def test_a_job_waits_for_an_account_in_arrears(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job itself is valid, so it is retried until the account has been topped up."""
    monkeypatch.setattr(execution, "OPERATOR_RETRY_DELAY", 0.0)
    emulator.faults.script("create", Fault("error", code=1101))
    await fleet.submit_many(requests(photo, 1))
    async with working(dsn, emulator):
        (outcome,) = await outcomes(fleet)
    assert outcome.status == "succeeded"
    assert len(emulator.account.tasks) == 1


class Failing:
    """A client whose submissions all raise one error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def submit(self, *_: Any, **__: Any) -> None:
        raise self.error


def context(store: PostgresStore, error: Exception) -> WorkerContext:
    client: Any = Failing(error)
    return WorkerContext(client, store)


async def test_a_worker_that_lost_a_job_neither_sends_nor_ends_it(fleet: Fleet, photo: Path) -> None:
    """A worker that has lost a job leaves the outcome to the new owner."""
    late = context(PostgresStore(fleet.database, owner=1), TakenOver("another"))
    with pytest.raises(TakenOver):
        await execute(pack(next(requests(photo, 1))), late)
    assert await fleet.store.outcome("k0") is None


async def test_a_transient_error_is_raised_for_the_queue_to_retry(fleet: Fleet, photo: Path) -> None:
    """`RetryLater` has the delay, and the job has no outcome yet."""
    cut = context(fleet.store, errors.TransportError("cut"))
    with pytest.raises(RetryLater) as caught:
        await execute(pack(next(requests(photo, 1))), cut, History(1))
    assert (caught.value.delay, caught.value.charge, caught.value.saving) == (10.0, True, False)
    assert await fleet.store.outcome("k0") is None


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"geometry": {}},
        {"geometry": 7},
        {"geometry": {"kind": "Ratios", "up": "a"}},
        {"geometry": {"kind": "Ratios", "up": 1.0}, "passes": "two"},
        {"geometry": {"kind": "Ratios", "up": 1.0}, "passes": 5},
        {"geometry": {"kind": "Ratios", "up": 1.0}, "passes": None},
    ],
)
async def test_a_payload_that_cannot_be_read_is_refused(fleet: Fleet, broken: dict[str, Any]) -> None:
    """The job ends with the reason at once, not after many retries."""
    idle = context(fleet.store, KeyError("never called"))
    outcome = await execute({"key": "k", "image": "dog.png", **broken}, idle)
    assert outcome.status == "refused"
    assert await fleet.store.outcome("k") is not None


async def test_a_paid_job_is_never_refused(fleet: Fleet, photo: Path) -> None:
    """An error that names a task ends its job as failed, and only once the task cannot be followed."""
    payload = pack(next(requests(photo, 1)))
    lost = errors.TransportError("cut")
    lost.task_id = "t"
    with pytest.raises(RetryLater) as caught:
        await execute(payload, context(fleet.store, lost), History(MAX_ATTEMPTS))
    assert caught.value.delay <= 10.0  # until then the task takes slots
    gone = errors.ResultExpired("gone")
    gone.task_id = "t"
    outcome = await execute(payload, context(fleet.store, gone))
    assert (outcome.status, outcome.task_id) == ("failed", "t")


async def test_a_job_that_killed_its_workers_is_refused(fleet: Fleet, photo: Path) -> None:
    """Once a worker has died running a job alone, the job is refused and the reason says so."""
    idle = context(fleet.store, KeyError("never called"))
    outcome = await execute(pack(next(requests(photo, 1))), idle, History(deaths=4, forbidden=True))
    assert outcome.status == "refused"
    assert "WorkersDied: 4 workers died running this job" in str(outcome.error)


async def test_reading_from_an_object_store_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However large a photo is, at most one byte more than the service allows is read."""
    read: list[int] = []

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            read.append(size or 0)
            return b"x" * 100

    monkeypatch.setattr("kling_expand.downloads.objects.open_object", lambda _: Endless())
    request = await execution.load(ExpandRequest("s3://bucket/huge.png", Ratios(up=1.0)))
    assert (request.image, read) == (b"x" * 100, [10 * 1024 * 1024 + 1])


async def leave_without_photo(fleet: Fleet, dsn: str, emulator: Emulator, photo: Path) -> None:
    """Leave behind a job whose worker has stopped, whose task has ended, and whose photo is gone."""
    emulator.work_seconds = 1000.0
    await fleet.submit_many(requests(photo, 1))
    async with working(dsn, emulator):
        await created(emulator, 1)
    photo.unlink()  # noqa: ASYNC240 - one call
    emulator.advance(2000)


async def test_the_task_of_a_job_whose_photo_is_gone_is_followed(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """The job ends with its result, after a hand-over or when queued again, and is paid for once."""
    await leave_without_photo(fleet, dsn, emulator, photo)
    async with working(dsn, emulator):
        (outcome,) = await outcomes(fleet)
        assert outcome.status == "succeeded"
        await fleet.submit_many(requests(photo, 1))
        assert {each.status for each in await outcomes(fleet)} == {"succeeded"}
    assert len(emulator.account.tasks) == 1


async def test_pictures_are_saved_once_saving_works_again(  # noqa: PLR0917 - fixtures
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Jobs succeed although saving fails. Saving is retried until it works, with one warning for all."""
    monkeypatch.setattr(execution, "MAX_SAVE_DELAY", 0.05)
    monkeypatch.setattr("kling_expand.fleet.worker.MAX_HEARTBEAT_INTERVAL", 0.05)
    target = photo.parent / "out"
    target.write_text("a file where the folder must be")
    await fleet.submit_many(requests(photo, 3))
    async with working(dsn, emulator, output=str(target), max_in_flight=3):
        found = await outcomes(fleet)
        assert {("succeeded", False, ())} == {(each.status, each.saved, each.files) for each in found}
        assert all(each.urls and "DownloadError" in str(each.error) for each in found)
        target.unlink()
        async with asyncio.timeout(20):
            while len(await fleet.store.outcomes()) < 3 or not all(  # noqa: ASYNC110 - state of the database
                outcome.saved for _, outcome in await fleet.store.outcomes()
            ):
                await asyncio.sleep(0.05)
    assert len(list(target.iterdir())) == 3
    assert len(emulator.account.tasks) == 3
    warnings = [each for each in caplog.records if "pictures cannot be saved" in each.message]
    assert len(warnings) == 1


async def test_pictures_are_saved_at_full_size(fleet: Fleet, dsn: str, emulator: Emulator) -> None:
    """An object store gets both sizes of a picture. A job whose photo is at a URL creates no task."""
    content = stored(texture(600, 400, seed=1), "PNG")
    with fsspec.open("memory://in/hills.png", "wb") as file:
        file.write(content)
    for image, key in [("memory://in/hills.png", "stored"), ("https://host/hills.png", "url")]:
        await fleet.submit(ExpandRequest(image, ToAspect("2:1"), key=key))
    async with working(dsn, emulator, output="memory://full", full_size=True):
        found = {outcome.key: outcome for outcome in await outcomes(fleet)}
    assert (found["url"].status, "must be a path" in str(found["url"].error)) == ("refused", True)
    plain, full = found["stored"].files
    assert (plain.replace(".png", "-full.png"), found["stored"].error) == (full, None)
    with fsspec.open(full, "rb") as file, Image.open(file) as picture:
        assert picture.size == (800, 400)
        inside = picture.convert("RGB").crop((100, 0, 700, 400))
        assert inside.tobytes() == texture(600, 400, seed=1).convert("RGB").tobytes()
    assert len(emulator.account.tasks) == 1


async def test_a_full_size_picture_without_its_photo_is_reported(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """The job succeeds with its other pictures and the reason, and is not retried."""
    await leave_without_photo(fleet, dsn, emulator, photo)
    async with working(dsn, emulator, output=str(photo.parent / "out"), full_size=True):
        (outcome,) = await outcomes(fleet)
    assert (outcome.status, outcome.saved, len(outcome.files)) == ("succeeded", True, 1)
    assert "ImageError" in str(outcome.error)


@virtual_time
async def test_closed_slots_admit_nothing() -> None:
    """Current and later waiters get `NotSubmitted`, and a holder can still release its slots."""
    slots = SharedSlots(1)
    await slots.acquire(1)
    waiting = [asyncio.ensure_future(slots.acquire(1)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    slots.close()
    with pytest.raises(errors.NotSubmitted):
        await waiting[1]
    slots.release(1)
    with pytest.raises(errors.NotSubmitted):
        await slots.acquire(1)
    assert slots.held == 0


@virtual_time
async def test_creates_pause_while_others_hold_every_slot() -> None:
    """While none of our tasks runs, each refusal pauses all creates for longer, until one succeeds."""
    slots = SharedSlots(9)
    now = asyncio.get_running_loop().time

    async def refusal() -> float:
        """Return the seconds for which no slot is granted after a refusal."""
        slots.refused(1, slots.epoch)
        begin = now()
        await slots.acquire(1)
        return now() - begin

    await slots.acquire(1)
    pauses = [await refusal() for _ in range(8)]
    assert pauses == [min(2.0**number, slots.longest_probe_pause) for number in range(1, 9)]
    slots.accepted(1)
    slots.ended(1)
    begin = now()
    await slots.acquire(1)
    assert now() == begin
