"""The execution of one job: which errors end it, which are retried, and who may send."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.fleet_workers import outcomes, requests, working

from kling_expand import ExpandRequest, Ratios, errors
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.fleet import job as execution
from kling_expand.fleet.job import (
    MAX_ATTEMPTS,
    RetryLater,
    SharedSlots,
    WorkerContext,
    execute,
    pack,
    retry_delay,
)
from kling_expand.fleet.queue import Fleet
from kling_expand.store.postgres import JobOutcome, PostgresStore, TakenOver
from kling_expand.testing import intend, virtual_time

pytest_plugins = ["support.postgres", "support.fleet"]

ERRORS = [
    (errors.ClientClosed(), 0, 0.0),
    (errors.NotSubmitted(), 99, 0.0),
    (errors.JournalError("known", task_id="t"), 99, 0.0),
    (errors.JournalError("away"), 0, 5.0),
    (errors.SubmissionUnknown(), 1, 10.0),
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
def test_the_error_decides_about_the_retry(error: Exception, attempt: int, delay: float | None) -> None:
    """A permanent refusal ends a job, a hand-over is retried at once, and the rest with growing delays."""
    assert retry_delay(error, attempt) == delay


async def test_a_permanent_refusal_is_an_outcome(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path, tmp_path: Path
) -> None:
    """It ends the job with its reason, and the other jobs go on."""
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
    """The job itself is valid, so it is retried until the account is paid."""
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


async def test_a_worker_that_lost_a_job_follows_it(
    fleet: Fleet, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither sends nor ends the job, and returns the outcome that the new owner records."""
    monkeypatch.setattr(execution, "FOLLOW_INTERVAL", 0.02)
    owner = PostgresStore(fleet.database, owner=2)
    await owner.record_outcome(JobOutcome("k0", "cancelled"))  # of an earlier submission
    job = await intend(owner, "k0")
    late = context(PostgresStore(fleet.database, owner=1), TakenOver("another"))
    following = asyncio.create_task(execute(pack(next(requests(photo, 1))), late))
    await asyncio.sleep(0.2)
    assert not following.done()
    await owner.mark_refused(job.external_task_id, "no")
    await owner.record_outcome(JobOutcome("k0", "refused"))
    async with asyncio.timeout(5):
        assert (await following).status in {"refused", "cancelled"}


async def test_a_transient_error_is_raised_for_the_queue_to_retry(fleet: Fleet, photo: Path) -> None:
    """`RetryLater` has the delay, and the job has no outcome yet."""
    cut = context(fleet.store, errors.TransportError("cut"))
    with pytest.raises(RetryLater) as caught:
        await execute(pack(next(requests(photo, 1))), cut, 1)
    assert caught.value.delay == 10.0
    assert await fleet.store.outcome("k0") is None


@virtual_time
async def test_closed_slots_admit_nothing() -> None:
    """Present and later waiters get `NotSubmitted`, and the holder can still release."""
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
    """A refusal while none of our tasks runs pauses all creates, longer each time, until one succeeds."""
    slots = SharedSlots(9)
    now = asyncio.get_running_loop().time

    async def refusal() -> float:
        """Return how long the slots stay closed after a refusal."""
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
