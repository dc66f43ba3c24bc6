"""Jobs with several passes: wherever a worker ends, no pass is lost or paid for twice."""

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest
from attrs import evolve
from PIL import Image
from support.fleet_workers import WorkerProcess, created, outcomes, working

from benchmarks.large_photos import stored, texture
from kling_expand import ExpandRequest, InvalidRequest, Ratios, ToAspect
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.fleet.queue import Fleet
from kling_expand.fleet.schema import MAX_DEATHS
from kling_expand.store.base import JobState
from kling_expand.store.postgres import JobOutcome

pytest_plugins = ["support.postgres", "support.fleet"]
PORTRAIT = texture(300, 700, seed=1)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits of readers, and of workers that have lost a job to another."""
    for name in ("POLL_INTERVAL", "CRASH_RETRY_DELAY"):
        monkeypatch.setattr(f"kling_expand.fleet.queue.{name}", 0.05)


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    """A photo that becomes 16:9 in two passes."""
    path = tmp_path / "tower.png"
    path.write_bytes(stored(PORTRAIT, "PNG"))
    return path


def wide_request(photo: Path, number: int = 0, **fields: Any) -> ExpandRequest:
    return ExpandRequest(photo, ToAspect("16:9"), prompt=f"job {number}", key=f"k{number}", **fields)


def assert_paid_once(emulator: Emulator, outcome: JobOutcome) -> None:
    """Assert that one job succeeded with two tasks, and that its outcome names the second."""
    _, last = sorted(emulator.account.tasks.values(), key=lambda task: task.created_at)
    assert (outcome.status, outcome.task_id, outcome.units) == ("succeeded", last.task_id, 16)
    assert set(emulator.account.accepted.values()) == {1}


async def test_workers_share_jobs_of_two_passes(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each job has two tasks and one outcome, even if it is queued twice, and the limit holds."""
    for _ in range(2):
        assert (
            await fleet.submit_many([wide_request(portrait, number, n=2) for number in range(3)], passes=2)
            == 3
        )
    async with working(dsn, emulator, max_in_flight=3), working(dsn, emulator, max_in_flight=3):
        found = {outcome.key: outcome for outcome in await outcomes(fleet)}
        stats = await fleet.stats()
    assert set(found) == {"k0", "k1", "k2"}
    for outcome in found.values():
        assert (outcome.status, outcome.units, len(outcome.urls), outcome.error) == ("succeeded", 24, 2, None)
    assert len(emulator.account.tasks) == 6
    assert set(emulator.account.accepted.values()) == {1}
    assert emulator.account.peak_slots <= 3
    assert (stats.outcomes, stats.units_billed, stats.in_flight) == ({"succeeded": 3}, 72, 0)
    assert stats.states[JobState.SUCCEEDED] == 6
    warned = {each.name for each in caplog.records if each.levelname == "WARNING"}
    assert warned.isdisjoint({"kling_expand.store.base", "kling_expand.jobs.runner"})


async def test_the_photo_is_put_back_after_the_last_pass(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path
) -> None:
    """The full-size picture contains the photo's own pixels, and no picture of the first pass is saved."""
    target = portrait.parent / "out"
    await fleet.submit(wide_request(portrait), passes=2)
    async with working(dsn, emulator, output=str(target / "{shape}{ext}"), full_size=True):
        (outcome,) = await outcomes(fleet)
    assert outcome.files == (str(target / "16x9.png"), str(target / "16x9-full.png"))
    assert len(list(target.iterdir())) == 2
    with Image.open(outcome.files[1]) as picture:
        assert picture.size == (1244, 700)
        assert picture.crop((472, 0, 772, 700)).tobytes() == PORTRAIT.tobytes()


async def test_a_job_of_one_pass_is_the_same_with_any_limit(
    fleet: Fleet, dsn: str, emulator: Emulator, photo: Path
) -> None:
    """A job that needs one pass runs only one, and costs nothing if it is queued again with more."""
    request = ExpandRequest(photo, Ratios(right=1.0))
    missing = ExpandRequest(photo.parent / "missing.png", ToAspect("16:9"), key="missing")
    url = ExpandRequest("https://host/a.png", ToAspect("16:9"), key="url")
    keys = [await fleet.submit(request), await fleet.submit(request, passes=3)]
    for each in (missing, url):
        await fleet.submit(each, passes=2)
    async with working(dsn, emulator):
        found = {outcome.key: outcome for outcome in await outcomes(fleet)}
    assert keys[0] == keys[1]
    assert (found[keys[0]].status, found[keys[0]].units, len(emulator.account.tasks)) == ("succeeded", 8, 1)
    assert [found[key].status for key in ("missing", "url")] == ["refused"] * 2
    assert "ImageError" in str(found["missing"].error)


async def test_too_few_passes_are_refused(fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path) -> None:
    """The reason names a sufficient number, and a number outside the allowed range is not queued."""
    await fleet.submit(wide_request(portrait))
    with pytest.raises(InvalidRequest, match="passes must be between 1 and 4"):
        await fleet.submit(wide_request(portrait), passes=5)
    with pytest.raises(InvalidRequest, match="passes must be between 1 and 4"):
        await fleet.submit_many([wide_request(portrait)], passes=0)
    async with working(dsn, emulator):
        (outcome,) = await outcomes(fleet)
    assert (outcome.status, emulator.account.counts()["tasks"]) == ("refused", 0)
    assert "use passes=2" in str(outcome.error)


@pytest.mark.parametrize("tasks", [1, 2])
async def test_a_pass_is_followed_without_the_photo(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path, tasks: int
) -> None:
    """A stopped worker hands over the running pass, which needs neither its photo nor a permit."""
    emulator.work_seconds = 1000.0
    await fleet.submit(wide_request(portrait), passes=2)
    async with working(dsn, emulator, max_in_flight=1):
        await created(emulator, 1)
        if tasks == 2:
            emulator.advance(2000)
            await created(emulator, 2)
    assert await fleet.cancel("k0") == 0
    portrait.unlink()  # noqa: ASYNC240 - one call
    emulator.work_seconds = 0.05
    emulator.advance(2000)
    async with working(dsn, emulator, max_in_flight=1):
        (outcome,) = await outcomes(fleet)
    assert_paid_once(emulator, outcome)


async def leave_between_passes(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path
) -> psycopg.Connection:
    """Leave behind a job with a paid first pass, when its photo is gone and the account is in arrears."""
    emulator.faults.script("create", "ok", Fault("error", code=1101))
    async with working(dsn, emulator, max_in_flight=1):
        await fleet.submit(wide_request(portrait), passes=2)
        await created(emulator, 1)
        async with asyncio.timeout(20):
            while not (await fleet.stats()).queued:  # noqa: ASYNC110 - it is taken at once, and then requeued
                await asyncio.sleep(0.02)
    portrait.unlink()  # noqa: ASYNC240 - one call
    return psycopg.connect(dsn, autocommit=True)


MAKE_DUE = "UPDATE procrastinate_jobs SET scheduled_at = NULL"


async def test_a_job_between_two_passes_continues(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path
) -> None:
    """A job whose first pass is paid for cannot be cancelled, and its second pass needs no photo."""
    with await leave_between_passes(fleet, dsn, emulator, portrait) as database:
        assert (await fleet.cancel("k0"), await fleet.cancel()) == (0, 0)
        database.execute(MAKE_DUE)
    async with working(dsn, emulator, max_in_flight=1):
        (outcome,) = await outcomes(fleet)
    assert_paid_once(emulator, outcome)


async def test_a_poisoned_second_pass_names_the_paid_task(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path
) -> None:
    """A job that killed its workers in the second pass ends as failed, and names the task that was paid."""
    with await leave_between_passes(fleet, dsn, emulator, portrait) as database:
        database.execute("INSERT INTO kling_deaths VALUES ('default', 'k0', %s)", (MAX_DEATHS + 1,))
        database.execute(MAKE_DUE)
    async with working(dsn, emulator, max_in_flight=1):
        (outcome,) = await outcomes(fleet)
    (task_id,) = emulator.account.tasks
    assert (outcome.status, outcome.task_id, outcome.units) == ("failed", task_id, 8)
    assert "workers died running this job" in str(outcome.error)


async def test_a_refused_second_pass_names_the_paid_task(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path
) -> None:
    """The outcome names the paid task and the refusal. Submitting the job again pays only for the rest."""
    emulator.faults.script("create", "ok", Fault("error", code=1301))
    await fleet.submit(wide_request(portrait), passes=2)
    async with working(dsn, emulator):
        (refused,) = await outcomes(fleet)
        (task_id,) = emulator.account.tasks
        assert (refused.status, refused.task_id, refused.units) == ("failed", task_id, 8)
        assert "PolicyRefusal" in str(refused.error)
        assert f"paid for (task {task_id})" in str(refused.error)
        portrait.unlink()  # noqa: ASYNC240 - one call
        await fleet.submit(wide_request(portrait), passes=2)
        *_, outcome = await outcomes(fleet)
    assert_paid_once(emulator, outcome)


async def test_an_expired_first_pass_is_not_paid_for_again(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path
) -> None:
    """A job that waits until the first result has expired ends as failed, with advice."""
    with await leave_between_passes(fleet, dsn, emulator, portrait) as database:
        emulator.advance(31 * 86400)
        database.execute(MAKE_DUE)
    async with working(dsn, emulator):
        (outcome,) = await outcomes(fleet)
    assert (outcome.status, outcome.units, emulator.account.requests["create"]) == ("failed", 8, 2)
    assert "use another key to start the job again" in str(outcome.error)


async def test_a_failed_second_pass_is_created_again(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path
) -> None:
    """The outcome names the failed and the paid task. Submitting the job again creates only one task."""
    emulator.work_seconds = 1000.0
    await fleet.submit(wide_request(portrait), passes=2)
    async with working(dsn, emulator, max_in_flight=1):
        await created(emulator, 1)
        emulator.advance(2000)
        await created(emulator, 2)
        first, second = emulator.account.tasks.values()
        emulator.account.update(evolve(second, failure="Internal generation error"))
        emulator.advance(2000)
        (failed,) = await outcomes(fleet)
        emulator.work_seconds = 0.05
        await fleet.submit(wide_request(portrait), passes=2)
        *_, outcome = await outcomes(fleet)
    assert (failed.status, failed.task_id, failed.units) == ("failed", second.task_id, 8)
    assert f"paid for (task {first.task_id})" in str(failed.error)
    assert (outcome.status, outcome.units, len(emulator.account.tasks)) == ("succeeded", 16, 3)


async def test_a_replaced_photo_is_a_new_job(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path
) -> None:
    """Submitting a job again costs nothing with the same photo, and all passes with another photo."""
    found = []
    async with working(dsn, emulator):
        for photo in (PORTRAIT, PORTRAIT, texture(300, 700, seed=2)):
            portrait.write_bytes(stored(photo, "PNG"))  # noqa: ASYNC240 - one call
            await fleet.submit(wide_request(portrait), passes=2)
            found.append((await outcomes(fleet))[-1])
    assert found[0].task_id == found[1].task_id != found[2].task_id
    assert [each.units for each in found] == [16] * 3
    assert len(emulator.account.tasks) == 4


async def test_pictures_of_the_last_pass_are_saved_later(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that cannot be saved at first is saved later, without its photo and at no cost."""
    monkeypatch.setattr("kling_expand.fleet.job.MAX_SAVE_DELAY", 0.05)
    monkeypatch.setattr("kling_expand.fleet.worker.MAX_HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr("kling_expand.fleet.queue.SAVE_INTERVAL", 0.05)
    target = portrait.parent / "out"
    target.write_text("a file where the folder must be")
    await fleet.submit(wide_request(portrait), passes=2)
    async with working(dsn, emulator, output=str(target)):
        (unsaved,) = await outcomes(fleet)
        target.unlink()
        portrait.unlink()  # noqa: ASYNC240 - one call
        async with asyncio.timeout(20):
            while not (saved := await fleet.store.outcome("k0")) or not saved.saved:  # noqa: ASYNC110 - a row
                await asyncio.sleep(0.05)
    assert (unsaved.status, unsaved.saved, unsaved.units) == ("succeeded", False, 16)
    assert (saved.units, len(saved.files), saved.task_id) == (16, 1, unsaved.task_id)
    assert len(emulator.account.tasks) == 2


DIE_BETWEEN_PASSES = """
from kling_expand.jobs.future import ResultImage
async def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
ResultImage.read = die
"""
DIE_AFTER_CREATE = """
from kling_expand.jobs.submission import Submitter
create, made = Submitter.create, []
async def die(self, *given):
    made.append(await create(self, *given))
    if len(made) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return made[-1]
Submitter.create = die
"""


@pytest.mark.parametrize("fault", [DIE_BETWEEN_PASSES, DIE_AFTER_CREATE])
async def test_a_killed_worker_loses_no_pass(
    fleet: Fleet, dsn: str, emulator: Emulator, portrait: Path, fault: str
) -> None:
    """A worker killed between two passes, or right after the second create, pays for no pass twice."""
    await fleet.submit(wide_request(portrait), passes=2)
    options = ("--max-in-flight", 1, "--heartbeat-timeout", 1)
    worker = WorkerProcess(dsn, emulator, *options, setup=f"import os, signal{fault}")
    await worker.start()
    await worker.ended()
    portrait.unlink()  # noqa: ASYNC240 - one call
    async with working(dsn, emulator, max_in_flight=1, heartbeat_timeout=1.0):
        (outcome,) = await outcomes(fleet)
    assert_paid_once(emulator, outcome)
