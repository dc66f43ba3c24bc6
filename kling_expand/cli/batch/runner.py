"""The batch engine: follow jobs to their ends, save their pictures and report every job."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing

import click
from attrs import evolve

from kling_expand.cli.terminal import FAILED, clean, money, optional_stdout, plural, show
from kling_expand.client import KlingClient
from kling_expand.errors import BudgetExceeded, InvalidRequest, KlingError, NotSubmitted
from kling_expand.jobs.future import ExpandResult, TaskFuture
from kling_expand.store.base import JobStore

from .plan import BulkPlan, OutputNames, Plan, Survey, Usage, read_usage
from .progress import Job, Progress, ProgressDisplay

MAX_SAVES = 8  # tasks whose pictures are saved at the same time
SAVE_GRACE = 1.5  # seconds to finish saves after an interruption

_AGAIN = "run the same command again"


Jobs = AsyncGenerator[Job, None]


async def submit_rows(plan: BulkPlan, survey: Survey, client: KlingClient) -> Jobs:
    """Submit the valid rows of a manifest one by one; the survey has reported the bad ones."""
    for row in plan.rows():
        future = client.submit(row.request) if row.request else None
        yield Job(row.label, survey.candidates(row), future, row.line, problem=row.error)


async def run_batch(
    plan: Plan,
    progress: Progress,
    jobs: Callable[[KlingClient], Jobs],
    journal: JobStore | None = None,
    *,
    retry_hint: str = "",
    only_ended: bool = False,
) -> int:
    """Run the *jobs* that are submitted or attached through a new client, and return the exit code.

    With a journal the batch ends with a summary; *retry_hint* says how failed jobs are tried again.
    Without one it ends with the ids of the tasks that continue. With *only_ended* no task is waited for.
    """
    budget = None if plan.limits.budget is None else max(plan.limits.budget - progress.units_before, 0)
    state = f"{plan.journal}.tasks" if journal else ""
    try:
        async with plan.connection.client(
            deadline=plan.deadline,
            journal=journal,
            budget=budget,
            max_in_flight=plan.limits.max_in_flight,
            emulator_state=state,
            listener=progress.receive,
        ) as client:
            runner = Runner(plan, client, progress, only_ended=only_ended, keep_open=journal is None)
            try:
                with optional_stdout():
                    await runner.run(jobs(client))
            finally:
                _report_open(runner.open_jobs, plan)
    finally:
        if journal is not None and progress.started:
            await _summarize(plan, progress, journal, retry_hint)
    return 0 if progress.complete else FAILED


class Runner:
    """Runs the jobs of one batch.

    With *only_ended* a task that has not ended yet counts as failed. With *keep_open* the runner keeps the
    jobs in `open_jobs` whose tasks continue without it, because no journal does.
    """

    def __init__(
        self,
        plan: Plan,
        client: KlingClient,
        progress: Progress,
        *,
        only_ended: bool = False,
        keep_open: bool = False,
    ) -> None:
        self._plan = plan
        self._client = client
        self._progress = progress
        self._only_ended = only_ended
        self._keep_open = keep_open
        self._names = OutputNames(plan.output.target)
        self._display = ProgressDisplay(
            plan.title,
            progress,
            lambda: client.stats,
            detailed=plan.detailed,
            budget=plan.limits.budget,
            output=plan.output,
            settings=client.settings,
            emulated=plan.connection.emulator,
        )
        self._places = asyncio.Semaphore(plan.max_open or _max_open(plan))
        self._save_places = asyncio.Semaphore(MAX_SAVES)
        self._saves: set[asyncio.Task[None]] = set()
        self._unsettled: dict[Job, None] = {}
        self._failures = 0
        self._stopped = False  # nothing more is sent

    @property
    def open_jobs(self) -> list[Job]:
        """The jobs that have, or may have, a task whose results are not saved."""
        return [job for job in self._unsettled if job.open_id]

    async def run(self, jobs: Jobs) -> None:
        """Follow every job to its end; a failure affects no other job.

        When cancelled, finish the saves that have started, and close the client, which cancels unsent jobs.
        """
        self._progress.started = True
        with self._display:
            try:
                async with asyncio.TaskGroup() as group, aclosing(jobs):
                    problem = await self._start_all(jobs, group)
            except BaseExceptionGroup as failures:  # such as one error of a closed stdout for each job
                raise failures.exceptions[0] from None
            except asyncio.CancelledError:
                self._progress.interrupted = True
                self._display.note("interrupted: closing (press Ctrl-C again to leave at once)")
                await self._finish_saves()
                await self._client.aclose()
                raise
        if problem is not None:
            raise problem
        self._progress.not_sent += self._progress.total - self._progress.ended

    async def _start_all(self, jobs: Jobs, group: asyncio.TaskGroup) -> Exception | None:
        """Start the jobs in order; return the exception of *jobs*, to be raised after the started jobs."""
        while True:
            await self._places.acquire()
            try:
                job = None if self._stopped else await anext(jobs, None)
            except Exception as error:  # noqa: BLE001 - raised by the caller
                return error
            if job is None:
                return None
            if job.future is None:
                self._places.release()
                self._end(job, "bad")
            else:
                if self._keep_open:
                    self._unsettled[job] = None
                group.create_task(self._follow(job, job.future))

    async def _follow(self, job: Job, future: TaskFuture) -> None:
        try:
            result = await self._result(job, future)
            await self._save_places.acquire()
        except KlingError as error:
            self._fail(job, error)
            return
        finally:
            self._places.release()
        # In a task of its own, so that an interruption does not stop the download of a paid result.
        save = asyncio.create_task(self._save(job, result))
        self._saves.add(save)
        save.add_done_callback(self._saves.discard)
        await asyncio.shield(save)

    async def _result(self, job: Job, future: TaskFuture) -> ExpandResult:
        async for task in future:
            self._display.snapshot(job, task)
            if self._only_ended and not task.status.final:
                raise KlingError(f"the task has not ended yet ({task.task_status})", task_id=task.task_id)
        return await future

    async def _save(self, job: Job, result: ExpandResult) -> None:
        try:
            if result.files:
                job.files = result.files
                self._end(job, "known")
                return
            if self._plan.connection.emulator:  # its URLs change with its address
                result = evolve(result, task=await self._client.get(result.task_id))
            async with self._names.name(result.task, job.names or (result.task_id,)) as name:
                job.files = await evolve(result, name=name).save(self._plan.output.target)
        except KlingError as error:
            error.task_id = error.task_id or result.task_id
            self._fail(job, error)
        else:
            self._end(job, "saved")
        finally:
            self._save_places.release()

    async def _finish_saves(self) -> None:
        if self._saves:
            _, late = await asyncio.wait(self._saves, timeout=SAVE_GRACE)
            for save in late:
                save.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _fail(self, job: Job, error: KlingError) -> None:
        job.error = error
        if isinstance(error, BudgetExceeded | NotSubmitted):
            if isinstance(error, BudgetExceeded) and not self._stopped:
                self._stopped = True
                self._display.failure(f"{job.label}: {error}; nothing more is sent")
            self._end(job, "not sent")
            return
        bad = isinstance(error, InvalidRequest) and error.task_id is None
        self._display.failure(f"{job.label}: {error.message if bad else error}")
        self._end(job, "bad" if bad else "failed")
        self._failures += 1
        if self._failures == self._plan.max_failures:
            self._stopped = True

    def _end(self, job: Job, outcome: str) -> None:
        job.outcome = outcome
        self._progress.add(outcome)
        if job.open_id is None:
            self._unsettled.pop(job, None)
        self._display.ended(job)


def _max_open(plan: Plan) -> int:
    """Return how many jobs may be open; with `max_failures` no more than can be sent at once."""
    return plan.limits.max_in_flight * (1 if plan.max_failures else 2)


def _report_open(jobs: Iterable[Job], plan: Plan) -> None:
    """Print which tasks continue, and how to wait for them: the service has no cancel."""
    open_jobs = {job.open_id: job for job in jobs if job.open_id}
    if not open_jobs:
        return
    count, resume = plural(len(open_jobs), "task"), plan.connection.resume_command(plan.output.target)
    if not resume:
        click.echo(f"{count} ended with the local emulator; nothing is owed", err=True)
        return
    verb = "continues" if len(open_jobs) == 1 else "continue"
    click.echo(f"{count} {verb} at the service, which has no cancel:", err=True)
    for any_id, job in open_jobs.items():
        external_id = (job.future and job.future.external_task_id) or "-"
        known = f"external id {external_id}" if job.future and job.future.task else "not confirmed"
        click.echo(clean(f"  {any_id}  {known}  {job.label}"), err=True)
    click.echo(clean(f"resume with: {resume}{' '.join(open_jobs)}"), err=True)


# ---------------------------------------------------------------------------- the summary


async def _summarize(plan: Plan, progress: Progress, journal: JobStore, retry_hint: str) -> None:
    """Print how the batch ended: on stderr, or as one JSON object on stdout."""
    usage = await read_usage(journal)
    if plan.output.as_json:
        show({"summary": _summary_facts(progress, usage, plan.journal)})
        return
    for line in _summary_lines(progress, usage, plan.journal, retry_hint):
        click.echo(clean(line), err=True)


def _summary_facts(progress: Progress, usage: Usage, path: str) -> dict[str, object]:
    return {
        "rows": progress.total,
        "saved": progress.saved,
        "known": progress.known,
        "failed": progress.failed,
        "bad": progress.bad,
        "not_sent": progress.not_sent,
        "interrupted": progress.interrupted,
        "units_billed": usage.billed,
        "open_tasks": usage.open,
        "journal": path,
    }


def _summary_lines(progress: Progress, usage: Usage, path: str, retry_hint: str) -> Iterator[str]:
    yield f"{plural(progress.total, 'row')}: {progress.counts()}"
    yield f"{money(usage.billed)} billed for all jobs in {path}"
    if usage.open:
        verb = "continues" if usage.open == 1 else "continue"
        yield f"{plural(usage.open, 'task')} {verb} at the service, which has no cancel"
    if progress.interrupted:
        yield f"interrupted: {_AGAIN} to continue; nothing is paid twice"
    elif progress.failed or progress.not_sent:
        yield retry_hint or f"{_AGAIN} to retry what failed or was not sent"
