"""The batch engine follows, saves and reports every job, however the batch ends."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from support.shell import CHELSEA, COFFEE

from kling_expand import ExpandRequest, KlingClient, Ratios
from kling_expand.api import codec
from kling_expand.cli.batch.plan import Plan
from kling_expand.cli.batch.progress import Job, Progress
from kling_expand.cli.batch.runner import Jobs, Results, follow, known_job, run_batch
from kling_expand.cli.options import Connection, LimitOptions, OutputOptions
from kling_expand.cli.terminal import FAILED, FATAL, NothingDone
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.jobs.future import ExpandResult
from kling_expand.models import Status
from kling_expand.store.base import JobRecord
from kling_expand.store.sqlite import SQLiteStore
from kling_expand.testing import SUCCEEDED, emulated


@pytest.fixture
async def emulator(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Emulator]:
    """An emulator, which the environment names as the service."""
    async with Emulator(engine="flat", queue_seconds=0.0, work_seconds=0.02, slots=50) as emulator:
        monkeypatch.setenv("KLING_API_KEY", emulator.api_key)
        monkeypatch.setenv("KLING_BASE_URL", emulator.url)
        yield emulator


def plan(folder: Path, **options: Any) -> Plan:
    """Return a plan that prints JSON."""
    output = OutputOptions(str(folder), as_json=True)
    return Plan(title="x", connection=Connection(None, None), output=output, **options)


def files(folder: Path) -> list[str]:
    """Return the names of the files in *folder*."""
    return sorted(path.name for path in folder.iterdir())


def requests(*prompts: str | None, names: bool = True) -> Any:
    """Return a source of jobs that submits a photo with each of these prompts."""

    async def submit(client: KlingClient, request: ExpandRequest, job: Job) -> None:
        job.future = client.submit(request)

    async def jobs(client: KlingClient) -> Jobs:
        for number, prompt in enumerate(prompts):
            request = ExpandRequest(CHELSEA, Ratios(up=0.1 + number / 100), prompt)
            start = partial(submit, client, request)
            yield Job(f"job {number}", (f"job-{number}",) if names else (), start=start)

    return jobs


def rows(text: str) -> list[dict[str, Any]]:
    """Return the printed JSON objects, ordered by label."""
    return sorted((json.loads(line) for line in text.splitlines()), key=lambda row: str(row.get("source")))


async def test_a_failed_job_does_not_affect_the_others(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every job has one row, with the same fields. The exit code says that a job failed."""
    progress = Progress(4)
    code = await run_batch(
        plan(tmp_path), progress, requests(None, "emulate-1301", "emulate-risk-control", None)
    )
    found = rows(capsys.readouterr().out)
    assert code == FAILED
    assert [row["outcome"] for row in found] == ["saved", "failed", "failed", "saved"]
    assert len({tuple(row) for row in found}) == 1
    assert [row["units"] for row in found] == [8, None, 0, 8]
    assert (progress.saved, progress.failed, progress.ended) == (2, 2, 4)
    assert files(tmp_path) == ["job-0-0.png", "job-3-0.png"]
    assert emulator.account.units_billed == 16


async def test_at_most_max_open_jobs_are_open(emulator: Emulator, tmp_path: Path) -> None:
    """At most `max_open` jobs wait for their results."""
    progress, open_jobs = Progress(12), []

    async def jobs(client: KlingClient) -> Jobs:
        async for job in requests(*[None] * 12)(client):
            open_jobs.append(int(job.label.split()[1]) + 1 - progress.ended)
            yield job

    assert await run_batch(plan(tmp_path, max_open=3), progress, jobs) == 0
    # A job whose pictures are being saved no longer counts as open, and at most 8 are saved at once.
    assert max(open_jobs) <= 3 + 8
    assert len(emulator.account.tasks) == 12


async def test_nothing_is_sent_after_too_many_failures(emulator: Emulator, tmp_path: Path) -> None:
    """After `max_failures` the rest of the source is counted as not sent."""
    progress = Progress(30)
    source = requests(*["emulate-1301"] * 30)
    limited = plan(tmp_path, max_failures=2, limits=LimitOptions(max_in_flight=1))
    assert await run_batch(limited, progress, source) == FAILED
    assert emulator.account.requests["create"] <= 3
    assert (progress.failed + progress.not_sent, progress.ended) == (30, 30)


async def test_started_jobs_finish_after_an_error_of_the_source(emulator: Emulator, tmp_path: Path) -> None:
    """The source's error is raised unchanged, not in a group, once the pictures of started jobs are saved."""

    async def jobs(client: KlingClient) -> Jobs:
        async for job in requests(None, None)(client):
            yield job
        raise NothingDone("the manifest is gone")

    progress = Progress(3)
    with pytest.raises(NothingDone, match="gone"):
        await run_batch(plan(tmp_path), progress, jobs)
    assert progress.saved == len(files(tmp_path)) == len(emulator.account.tasks) == 2


async def test_results_without_a_name_are_named_after_the_task(emulator: Emulator, tmp_path: Path) -> None:
    """A job without a name saves its results under its task id."""
    assert await run_batch(plan(tmp_path), Progress(1), requests(None, names=False)) == 0
    (task_id,) = emulator.account.tasks
    assert files(tmp_path) == [f"{task_id}-0.png"]


async def test_paid_tasks_without_a_file_are_listed_at_the_end(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paid tasks whose pictures are not saved are listed, with the command that saves them."""
    emulator.faults.script("file", Fault("expired", times=2))
    code = await run_batch(plan(tmp_path), Progress(2), requests(None, "emulate-risk-control"))
    out, err = capsys.readouterr()
    paid = next(row for row in rows(out) if row["units"])
    assert (code, paid["files"]) == (FAILED, [])
    assert "1 finished task is not saved:" in err.splitlines()
    assert "continues at the service" not in err
    assert "use --fresh" in paid["error"]["message"]
    assert err.splitlines()[-1] == f"resume with: kling-expand wait -o {tmp_path} {paid['task_id']}"


async def test_with_only_ended_a_running_task_is_an_error(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task that is still being processed is reported as an error, and remains open."""
    emulator.work_seconds = 600
    async with KlingClient() as client:
        task = await client.create(COFFEE, Ratios(up=0.1))

    async def jobs(client: KlingClient) -> Jobs:
        yield Job("photo", (), client.attach(task.task_id))

    assert await run_batch(plan(tmp_path), Progress(1), jobs, only_ended=True) == FAILED
    out, err = capsys.readouterr()
    (row,) = rows(out)
    assert "has not ended yet" in row["error"]["message"]
    assert task.task_id in err.splitlines()[-1]


async def test_with_a_journal_the_summary_replaces_the_list_of_open_tasks(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal keeps the open tasks, so running the same command again is enough."""
    emulator.work_seconds = 600
    async with SQLiteStore(tmp_path / "j") as journal:
        limited = plan(tmp_path / "out", deadline=0.5, journal=str(tmp_path / "j"))
        assert await run_batch(limited, Progress(1), requests(None), journal) == FAILED
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])["summary"]
    assert (summary["failed"], summary["open_tasks"]) == (1, 1)
    assert "resume with" not in err


async def test_a_cancelled_batch_finishes_started_downloads(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A download that has started finishes, a running task is listed, and neither counts as failed."""
    emulator.faults.script("file", Fault("slow_body", seconds=0.5))
    progress = Progress(2)

    async def jobs(client: KlingClient) -> Jobs:
        async for job in requests(None)(client):
            yield job
        while not emulator.account.requests["file"]:  # noqa: ASYNC110 - a counter of the emulator
            await asyncio.sleep(0.01)
        emulator.work_seconds = 600
        future = client.submit(ExpandRequest(COFFEE, Ratios(up=0.1)))
        await future.accepted()
        yield Job("running", (), future)
        batch.cancel()

    batch = asyncio.create_task(run_batch(plan(tmp_path), progress, jobs))
    with pytest.raises(asyncio.CancelledError):
        await batch
    err = capsys.readouterr().err
    assert files(tmp_path) == ["job-0-0.png"]
    assert (progress.saved, progress.ended, progress.interrupted) == (1, 1, True)
    running = next(task.task_id for task in emulator.account.tasks.values() if task.task_id in err)
    assert err.splitlines()[-1].endswith(f"-o {tmp_path} {running}")


async def test_a_closed_stdout_is_one_error(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised unchanged, not in a group, so that the command line can end quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as closed:  # noqa: ASYNC230, PTH123 - a pipe
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(BrokenPipeError):
            await run_batch(plan(tmp_path), Progress(3), requests(None, None, None))
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            closed.close()
    assert emulator.account.units_billed >= 8


async def test_an_unreachable_service_stops_the_batch(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After three connection failures at the start, no further job is sent."""
    unreachable: dict[str, Any] = {"base_url": "http://127.0.0.1:1", "connect_timeout": 0.05}

    async def jobs(_client: KlingClient) -> Jobs:
        async with KlingClient(**unreachable, max_in_flight=1) as other:
            async for job in requests(*[None] * 20)(other):
                yield job

    progress = Progress(20)
    assert await run_batch(plan(tmp_path, max_open=4), progress, jobs) == FATAL
    assert 3 <= progress.failed <= 6
    assert progress.failed + progress.not_sent == 20
    assert emulator.account.requests.total() == 0
    assert capsys.readouterr().err == ""  # with --json the reasons are in the objects


async def test_an_unwritable_output_stops_the_batch(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once a result cannot be written, nothing more is sent."""
    out = tmp_path / "out"
    out.mkdir()

    async def jobs(client: KlingClient) -> Jobs:
        number = 0
        async for job in requests(*[None] * 30)(client):
            yield job
            number += 1
            if number == 2:
                out.rmdir()
                out.touch()

    progress = Progress(30)
    limited = evolve(plan(out, max_open=2), output=OutputOptions(str(out)))
    assert await run_batch(limited, progress, jobs) == FAILED
    assert len(emulator.account.tasks) <= 8
    assert (progress.failed + progress.not_sent, progress.saved) == (30, 0)
    err = capsys.readouterr().err
    assert "cannot be written to (it is a file); nothing more is sent" in err
    assert err.splitlines()[-1].startswith("resume with: kling-expand wait ")


async def test_results_are_named_after_the_request_of_their_row(tmp_path: Path) -> None:
    """`{folder}` and `{key}` are those of the row, even for a converted photo or an attached job."""
    own = ExpandRequest("/photos/dog.jpg", Ratios(up=0.5), key="K3")
    note = {"names": ["dog"], "shape": "16x9", "key": "K3"}
    params = codec.pack_request(own, Ratios(up=0.5), note)
    record = JobRecord("x", key="K3:fit-a0", source="/photos/dog.jpg", params=params)
    saved: list[tuple[str | None, str | None, str | None]] = []

    async def save(_task: Any, _target: Any, options: Any, **_: Any) -> tuple[Path, ...]:
        saved.append((options.folder, options.key, options.shape))
        return ()

    results = Results(plan(tmp_path / "{folder}-{key}-{index}{ext}"), None)
    sent = evolve(own, image="/tmp/0/dog.jpg", key="K3:fit-a0")
    for job in Job("dog", ("dog",), shape="16x9", request=own), known_job(record):
        for request in sent, None:  # no request is known for a task that was attached by its id
            await results.save(job, ExpandResult(SUCCEEDED, request, save=save))
    assert saved == [("photos", "K3", "16x9")] * 4


async def test_a_job_whose_note_has_a_value_named_pass_is_followed(tmp_path: Path) -> None:
    """A program may name a value of its note `pass`. Its job is resumed as a job of one task."""
    async with (
        SQLiteStore(tmp_path / "run.db") as journal,
        emulated({"journal": journal}, queue_seconds=0.02, work_seconds=0.05) as (_, kling),
    ):
        await kling.submit(COFFEE, Ratios(up=0.5), note={"pass": "gold"}).accepted()
        (record,) = [record async for record in journal.jobs()]
        job = known_job(record)
        await follow(kling, record, job)
        assert job.passes is None
        assert job.future is not None
        assert (await job.future).task.status is Status.SUCCEED
