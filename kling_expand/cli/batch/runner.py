"""The batch engine, which follows jobs to their ends, saves their pictures and reports every job."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, cast
from weakref import WeakValueDictionary

import click
from attrs import evolve

from kling_expand.cli.terminal import (
    FAILED,
    FATAL,
    NothingDone,
    clean,
    money,
    optional_stdout,
    plural,
    shell_words,
    show,
)
from kling_expand.client import KlingClient, is_pass
from kling_expand.downloads.files import FORMATS, OutputPaths
from kling_expand.errors import (
    AccountError,
    AuthenticationError,
    BudgetExceeded,
    ClientClosed,
    ConfigurationError,
    DownloadError,
    GeometryError,
    InvalidRequest,
    IPNotAllowed,
    JournalError,
    KlingError,
    MissingExtra,
    NotFound,
    NotSubmitted,
    PermissionDenied,
    SubmissionUnknown,
    TransportError,
)
from kling_expand.jobs.future import ExpandResult, TaskFuture, interrupt, paths_of
from kling_expand.models import Dialect, ExpandRequest
from kling_expand.store.base import JobRecord, JobStore
from kling_expand.store.sqlite import SQLiteStore

from .manifest import Manifest, Problem, Row, path_key, stem
from .plan import (
    HAS_SHAPE,
    BulkPlan,
    Plan,
    Survey,
    Usage,
    check_output,
    check_rows,
    find_rows,
    open_journal,
    output_folder,
    read_usage,
    try_output,
)
from .progress import Job, Progress, ProgressDisplay

if TYPE_CHECKING:
    from .failures import FailuresFile
    from .fitting import Fitter

MAX_SAVES = 8  # tasks whose pictures are saved at the same time
SAVE_GRACE = 1.5  # seconds to finish saves after an interruption
OUTPUT_INTERVAL = 5.0  # seconds between two checks of the output
MAX_UNREACHED = 3  # jobs without a response, after which the batch stops if the service has never responded

_RUN_AGAIN = "run the same command again"
_INTERRUPTED = f"the run was interrupted; {_RUN_AGAIN} to continue"
_DOCTOR = "`kling-expand doctor` tests the connection"

# Errors with which every other job would also fail, and what the user can check.
_FATAL_ERRORS: dict[type[KlingError], str] = {
    AuthenticationError: "check KLING_API_KEY, or KLING_ACCESS_KEY and KLING_SECRET_KEY, and whether they "
    "belong to the region of KLING_BASE_URL",
    AccountError: "check the account's resource packs and payments in the console",
    PermissionDenied: "check the account's permissions in the console",
    IPNotAllowed: "add this machine's address to the account's IP whitelist",
    NotFound: "check KLING_BASE_URL and --dialect",
    MissingExtra: "install what is missing",
    ConfigurationError: "check KLING_BASE_URL",
}
_UNREACHED = "check the network, the proxy and KLING_BASE_URL"

Jobs = AsyncGenerator[Job, None]


# ---------------------------------------------------------------------------- expand and bulk


async def run_rows(plan: BulkPlan) -> int:
    """Check the photos of a batch, expand them, and return the exit code.

    Raises:
        NothingDone: if nothing can be sent.
    """
    with _failures_file(plan) as failures:
        listed = await find_rows(plan)
        survey = await check_rows(plan, listed)
        progress = Progress(survey.rows, noun=survey.noun, failures_file=failures)
        try:
            return await _run_checked(plan, listed, survey, progress)
        except (NothingDone, KlingError) as error:
            if not progress.started:
                _report_not_started(plan, listed, survey, progress, error.message)
            raise


async def _run_checked(plan: BulkPlan, listed: Manifest, survey: Survey, progress: Progress) -> int:
    if plan.strict and survey.bad:
        rows = plural(survey.rows, survey.noun)
        raise NothingDone(f"{survey.bad} of {rows} cannot be sent, so nothing was sent")
    survey.require_rows()
    check_output(plan, survey)
    plan.connection.require_credentials()
    await asyncio.to_thread(try_output, output_folder(plan.output.target))
    async with open_journal(plan) as journal:
        if journal is not None:
            plan = evolve(plan, journal=journal.path)
        plan = evolve(plan, protected=frozenset(survey.sources))
        usage = await read_usage(journal)
        progress.expected, progress.units_before = min(usage.saved, survey.rows), usage.due
        pictures = max(survey.pictures - usage.saved, 0)
        await asyncio.to_thread(try_output, output_folder(plan.output.target), pictures=pictures)
        with _fitter(plan, journal) as fitter:
            jobs = partial(submit_rows, plan, survey, listed, fitter)
            return await run_batch(plan, progress, jobs, journal, left_out=survey.left_out)


async def submit_rows(
    plan: BulkPlan, survey: Survey, listed: Manifest, fitter: "Fitter | None", client: KlingClient
) -> Jobs:
    """Yield a job for each row of a manifest. Rows that cannot be sent are already reported."""
    for row in listed.rows(plan.defaults):
        job = _job_of(row, survey)
        if row.request is not None and job.problem is None:
            job.start = partial(_submit_row, plan, row, client, fitter)
        yield job


def _job_of(row: Row, survey: Survey) -> Job:
    left_out = row.id in survey.already_shaped
    return Job(
        row.label,
        survey.names_for(row) if row.names else (),
        line=row.line,
        notes=survey.notes.get(row.id, ()),
        problem=Problem(GeometryError.__name__, HAS_SHAPE) if left_out else survey.problems.get(row.id),
        outcome="left out" if left_out else "open",
        shape=row.shape,
        cells=row.cells,
        request=row.request,
    )


def _report_not_started(
    plan: BulkPlan, listed: Manifest, survey: Survey, progress: Progress, reason: str
) -> None:
    """Report each row of a batch that sends nothing."""
    if not plan.output.as_json and progress.failures_file is None:
        return
    for row in listed.rows(plan.defaults):
        job = _job_of(row, survey)
        if job.outcome == "open":
            job.outcome = "bad" if job.problem else "not sent"
            job.problem = job.problem or Problem(NotSubmitted.__name__, reason)
        progress.report(job, as_json=plan.output.as_json)


def _failures_file(plan: BulkPlan) -> "AbstractContextManager[FailuresFile | None]":
    if not plan.failures:
        return nullcontext()
    from .failures import FailuresFile  # imported here, because it is an option

    return FailuresFile(plan.failures)


def _fitter(plan: BulkPlan, journal: JobStore | None) -> "AbstractContextManager[Fitter | None]":
    """Return the converter of photos. Keep it open until the last job has ended, which needs its files."""
    if not plan.fit:
        return nullcontext()
    from .fitting import Fitter  # imported here, because it is an option

    return Fitter(journal, plan.dialect, fresh=plan.fresh)


async def _submit_row(
    plan: BulkPlan, row: Row, client: KlingClient, fitter: "Fitter | None", job: Job
) -> None:
    request = cast(ExpandRequest, row.request)
    note = {"names": job.names, "shape": row.shape, "key": request.key}
    if fitter is not None:
        try:
            fitted = await fitter.prepare(request, row.passes)
        except KlingError as error:
            job.error = error
            return
        job.changes = fitted.changes
        request, job.discard = fitted.request, fitted.discard
        if fitted.known is not None:
            await follow(client, fitted.known, job)
            return
    if row.passes > 1 and "://" not in str(request.image) and plan.dialect is Dialect.EDITING:
        job.passes = client.expand_passes(request, row.passes, fresh=plan.fresh, note=note)
    else:
        job.future = client.submit(request, fresh=plan.fresh, note=note)


def known_job(record: JobRecord) -> Job:
    """Return a job for a record of the journal. Its results get the names that the original command chose."""
    step, note = None, record.note
    if "pass" in note:
        from kling_expand.passes import pass_of  # imported here, because few jobs have passes

        step = pass_of(record)
    request = step.pass_request() if step else record.request
    if request is not None and "names" in note:
        request = evolve(request, key=note.get("key"))  # the record may have a generated key
    source = request and str(request.image)
    tag = hashlib.sha256(record.external_task_id.encode()).hexdigest()[:8]
    name = stem(source) if source else record.external_task_id
    names = tuple(map(str, note.get("names", ()))) or (name, f"{name}-{tag}")
    return Job(source or record.external_task_id, names, shape=str(note.get("shape", "")), request=request)


async def follow(client: KlingClient, known: JobRecord, job: Job) -> None:
    """Attach *job* to the job of a record of the journal, and to the passes after it."""
    if is_pass(known):
        job.passes = client.resume_passes(known)
    else:
        job.future = client.resume_job(known)


# ---------------------------------------------------------------------------- any batch


async def run_batch(
    plan: Plan,
    progress: Progress,
    jobs: Callable[[KlingClient], Jobs],
    journal: JobStore | None = None,
    *,
    retry_hint: str = "",
    only_ended: bool = False,
    left_out: dict[str, int] | None = None,
) -> int:
    """Run *jobs*, which are submitted or attached through a new client, and return the exit code.

    With a journal, a batch that is not detailed ends with a summary. In it, *retry_hint* says how to retry
    failed jobs. Any other batch ends with the ids of the tasks that continue. With *only_ended*, no task is
    waited for.
    """
    state = f"{plan.journal}.tasks" if journal else ""
    summarized, runner = journal is not None and not plan.detailed, None
    if isinstance(journal, SQLiteStore):
        await journal.set_rows(progress.total)  # for `kling-expand status`
    try:
        async with plan.connection.client(
            deadline=plan.deadline,
            journal=journal,
            budget=plan.limits.budget,
            max_in_flight=plan.limits.max_in_flight,
            emulator_state=state,
            listener=progress.receive,
        ) as client:
            runner = Runner(plan, client, progress, journal, only_ended=only_ended, keep_open=not summarized)
            with optional_stdout():
                await runner.run(jobs(client))
            if progress.complete and isinstance(journal, SQLiteStore):
                await journal.end_rows()
    finally:  # after the client is closed, so that these are the last lines
        if runner is not None:
            _report_open(runner.open_jobs, plan)
        if journal is not None and summarized and progress.started:
            advice = runner.advice if runner else ""
            hint = f"stopped: {advice}, then {_RUN_AGAIN}" if advice else retry_hint
            await _summarize(plan, progress, journal, hint, left_out or {})
    return runner.exit_code


class Runner:
    """A runner of the jobs of one batch.

    With *only_ended* a task that has not ended yet counts as failed. With *keep_open* the runner keeps in
    `open_jobs` the jobs whose tasks continue without it, because no summary counts them.
    """

    def __init__(
        self,
        plan: Plan,
        client: KlingClient,
        progress: Progress,
        journal: JobStore | None = None,
        *,
        only_ended: bool = False,
        keep_open: bool = False,
    ) -> None:
        self._plan = plan
        self._client = client
        self._progress = progress
        self._only_ended = only_ended
        self._keep_open = keep_open
        self._results = Results(plan, journal)
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
        self._open_limit = asyncio.Semaphore(plan.max_open or 2 * plan.limits.max_in_flight)
        self._save_limit = asyncio.Semaphore(MAX_SAVES)
        self._saves: set[asyncio.Task[None]] = set()
        self._started: dict[Job, None] = {}  # jobs that have not ended
        self._unsettled: dict[Job, None] = {}
        self._failures = 0
        self._stopped = ""  # why nothing more is sent
        self.advice: str = ""  # the advice for an error with which every other job would also fail
        self._job_accepted = False  # whether the service has accepted a job, or had one already
        self._unreached = 0
        self._output_tried_at = asyncio.get_running_loop().time()

    @property
    def open_jobs(self) -> list[Job]:
        """The jobs that have, or may have, a task whose results are not saved."""
        return [job for job in self._unsettled if job.open_id]

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return 0 if self._progress.complete else FATAL if self.advice else FAILED

    async def run(self, jobs: Jobs) -> None:
        """Follow every job to its end. A failure affects no other job.

        When cancelled, finish the saves that have started, and close the client, which cancels unsent jobs.
        """
        self._progress.started = True
        with self._display:
            async with aclosing(jobs):
                try:
                    async with asyncio.TaskGroup() as group:
                        problem = await self._start_all(jobs, group)
                except BaseExceptionGroup as failures:  # a closed stdout, for example, fails each job
                    raise failures.exceptions[0] from None
                except asyncio.CancelledError:
                    self._progress.interrupted = True
                    self._display.note("interrupted: closing (press Ctrl-C again to exit at once)")
                    await self._finish_saves()
                    await self._client.aclose()
                    await self._report_unfinished(jobs)
                    raise
            if 0 < self._unreached == self._progress.total and not self.advice:
                self.advice = _UNREACHED
                self._display.failure(f"no job got a response: {_UNREACHED}; {_DOCTOR}")
        if problem is not None:
            raise problem
        self._progress.not_sent += self._progress.total - self._progress.ended

    async def _start_all(self, jobs: Jobs, group: asyncio.TaskGroup) -> Exception | None:
        """Start the jobs in order. Return an exception of *jobs*, to be raised after the started jobs end."""
        while True:
            await self._open_limit.acquire()
            await self._try_output(OUTPUT_INTERVAL)
            if self._stopped and not self._all_reported:
                return None
            try:
                job = await anext(jobs, None)
                if job is None:
                    return None
                self._started[job] = None
                if job.start is not None and not self._stopped:
                    await job.start(job)
            except Exception as error:  # noqa: BLE001 - the caller raises it
                return error
            if job.outcome == "open" and (job.future is not None or job.passes is not None):
                if self._keep_open:
                    self._unsettled[job] = None
                group.create_task(self._follow(job))
            else:
                self._open_limit.release()
                await self._end_unsubmitted(job)

    async def _end_unsubmitted(self, job: Job) -> None:
        """Report a job that is left out, cannot be sent, or is not sent because the batch was stopped."""
        if job.outcome != "open":
            self._started.pop(job)
            self._display.ended(job)
        elif self._stopped and job.reason is None:
            job.error = NotSubmitted(f"not sent, because {self._stopped}")
            self._end(job, "not sent")
        else:
            if job.error is not None:  # otherwise the check of the rows has already printed the problem
                self._display.failure(f"{job.label}: {job.error.message}; not sent")
            self._end(job, "bad")
            await self._results.keep_bad(job, job.reason.message if job.reason else "")

    @property
    def _all_reported(self) -> bool:
        """Whether every job is reported, even if it is never started."""
        return self._plan.output.as_json or self._progress.failures_file is not None

    async def _report_unfinished(self, jobs: Jobs) -> None:
        """Report the jobs that an interruption left open or unsent. They do not count as ended."""
        if not self._all_reported:
            return
        for job in self._started:
            job.outcome = "open" if job.open_id else "not sent"
            job.error = (ClientClosed if job.open_id else NotSubmitted)(_INTERRUPTED)
            self._display.ended(job)
        async for job in jobs:
            if job.outcome == "open":
                job.outcome = "bad" if job.problem else "not sent"
                job.error = None if job.problem else NotSubmitted(f"not sent, because {_INTERRUPTED}")
            self._display.ended(job)

    async def _follow(self, job: Job) -> None:
        try:
            result = await self._result(job)
            await self._save_limit.acquire()
        except KlingError as error:
            self._fail(job, error)
            if job.outcome == "bad":
                await self._results.keep_bad(job, error.message)
            return
        finally:
            job.discard()
            self._open_limit.release()
        # The save is a separate task, so that an interruption does not stop the download of a paid result.
        save = asyncio.create_task(self._save(job, result))
        self._saves.add(save)
        save.add_done_callback(self._saves.discard)
        await asyncio.shield(save)

    async def _result(self, job: Job) -> ExpandResult:
        if job.passes is None:
            return await self._ended(job, cast(TaskFuture, job.future))
        async with aclosing(job.passes.futures()) as futures:
            async for future in futures:
                job.future = future
                await self._ended(job, future)
        return cast(ExpandResult, job.passes.result)

    async def _ended(self, job: Job, future: TaskFuture) -> ExpandResult:
        """Show the snapshots of a task, and return its result."""
        async for task in future:
            self._job_accepted |= future.task is not None  # a queued job has no task
            self._display.snapshot(job, task)
            if self._only_ended and not task.status.final:
                raise KlingError(f"the task has not ended yet ({task.task_status})", task_id=task.task_id)
        return await future

    async def _save(self, job: Job, result: ExpandResult) -> None:
        try:
            if self._plan.connection.emulator:  # its URLs change with its address
                result = evolve(result, task=await self._client.get(result.task_id))
            job.files, known = await self._results.save(job, result)
            if self._plan.output.full_size or self._plan.output.check:
                self._progress.finishing += 1
                try:
                    await self._finish(job, result)
                finally:
                    self._progress.finishing -= 1
        except Exception as error:  # noqa: BLE001 - a library may raise anything, and the other rows continue
            text = f"{type(error).__name__}: {error}"
            problem = error if isinstance(error, KlingError) else KlingError(text)
            problem.task_id = problem.task_id or result.task_id
            self._fail(job, problem)
            if isinstance(problem, DownloadError):
                await self._try_output()
        else:
            self._end(job, "known" if known else "saved")
        finally:
            self._save_limit.release()

    async def _finish(self, job: Job, result: ExpandResult) -> None:
        """Make the full-size pictures of a saved job, and check its pictures."""
        from .pictures import own_result, save_full_size, suspicions  # only needed for these options

        output = self._plan.output
        record = await self._results.record(job, result)
        result = own_result(evolve(result, name=job.saved_as, shape=job.shape), job.request, record)
        if output.full_size:
            job.full_size_files = await save_full_size(result, output)
        if output.check:
            job.suspicions = await suspicions(result, job.files, output_folder(output.target))
            await self._results.keep_findings(job, result)
            self._progress.suspicious += bool(job.suspicions)
            for text in job.suspicions:
                self._display.failure(f"{job.label}: suspicious: {text}")

    async def _finish_saves(self) -> None:
        if self._saves:
            _, late = await asyncio.wait(self._saves, timeout=SAVE_GRACE)
            for save in late:
                save.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # ------------------------------------------------------------------ failures

    def _fail(self, job: Job, error: KlingError) -> None:
        job.error = error
        if isinstance(error, BudgetExceeded | NotSubmitted):
            if isinstance(error, BudgetExceeded) and not self._stopped:
                self._stopped = "the budget is used up"
                self._progress.over_budget = True
                self._display.failure(f"{job.label}: {error}; nothing more is sent")
            self._end(job, "not sent")
            return
        bad = isinstance(error, InvalidRequest) and error.task_id is None
        if not self._stop_if_fatal(error):
            text = shell_words(error.message if bad else str(error))
            self._display.failure(f"{job.label}: {text}")
        self._end(job, "bad" if bad else "failed")
        self._failures += 1
        if self._failures == self._plan.max_failures:
            self._stop(f"{plural(self._failures, 'job')} failed (--max-failures)")

    def _stop_if_fatal(self, error: KlingError) -> bool:
        """Stop if every other job would fail with *error*. Return whether the error has been reported."""
        advice = next((text for kind, text in _FATAL_ERRORS.items() if isinstance(error, kind)), None)
        if isinstance(error, TransportError | SubmissionUnknown) and not self._job_accepted:
            self._unreached += 1
            advice = _UNREACHED if self._unreached >= MAX_UNREACHED else None
        elif isinstance(error, JournalError) and error.task_id is None:
            advice = "check the disk that holds the journal"
        if advice is None:
            return False
        if not self.advice:
            self.advice = advice
            self._display.failure(f"{error}; nothing more is sent: {advice}; {_DOCTOR}")
            self._stop("no further job could succeed")
        return True

    def _stop(self, reason: str) -> None:
        """Send nothing more, and cancel jobs that were not sent."""
        self._stopped = reason
        for job in list(self._started):
            if job.passes is not None:
                job.passes.stop()
            if job.future is not None:
                interrupt(job.future)

    async def _try_output(self, interval: float = 0.0) -> None:
        """Stop if the output can no longer be written. Check this at most once every *interval* seconds."""
        now = asyncio.get_running_loop().time()
        if self._stopped or now - self._output_tried_at < interval:
            return
        self._output_tried_at = now
        try:
            pictures = len(self._started)
            await asyncio.to_thread(try_output, output_folder(self._plan.output.target), pictures=pictures)
        except NothingDone as error:
            self._display.failure(f"{error.message}; nothing more is sent")
            self._stop("the output cannot be written")

    def _end(self, job: Job, outcome: str) -> None:
        job.outcome = outcome
        self._started.pop(job, None)
        self._progress.add(outcome)
        if job.open_id is None:
            self._unsettled.pop(job, None)
        if outcome == "known" and self._plan.detailed and not self._plan.output.as_json:
            advice = "; --fresh makes another picture" if isinstance(self._plan, BulkPlan) else ""
            self._display.note(f"{job.label}: saved by an earlier run{advice}")
        self._display.ended(job)


# ---------------------------------------------------------------------------- results


class Results:
    """The results of a batch, which are saved under unique names or found from an earlier run."""

    def __init__(self, plan: Plan, journal: JobStore | None) -> None:
        self._output = plan.output
        self._target = plan.output.target
        self._overwrite = plan.overwrite
        self._protected = plan.protected
        self._journal = journal
        self._owners: dict[str, str] | None = None  # for each file in the journal, the job that owns it
        self._names_by_file: dict[
            str, tuple[str, ...]
        ] = {}  # for each file of this run, the names of its job
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def save(self, job: Job, result: ExpandResult) -> tuple[tuple[Path, ...], bool]:
        """Return the files of a job, and whether they already existed.

        Photos with the same content share one task, but each has its own files.

        Raises:
            KlingError: if a picture cannot be saved.
        """
        # The journal keeps the files of a task in one record, so its saves must not overlap.
        async with self._locks.setdefault(result.task_id, asyncio.Lock()):
            record = await self.record(job, result)
            result = evolve(result, request=job.request or result.request, shape=job.shape)
            names = job.names or (result.task_id,)
            recorded = set(map(path_key, record.files)) if record else set()
            name, known = await asyncio.to_thread(self._known, result, names, recorded)
            # A file that only its mark identifies is not in the journal. Another save records it, without a
            # download.
            files = known if {*map(_key, known)} <= recorded else ()
            photo = _photo(result) if self._output.metadata else False
            files = files or await self._download(evolve(result, name=name), photo)
            self._names_by_file |= dict.fromkeys(map(_key, files), names)
            job.saved_as = name
            return files, bool(known)

    async def record(self, job: Job, result: ExpandResult) -> JobRecord | None:
        """Return the journal's record of a job."""
        external_id = result.external_task_id or (job.future and job.future.external_task_id)
        return await self._journal.get(external_id) if self._journal and external_id else None

    async def keep_findings(self, job: Job, result: ExpandResult) -> None:
        """Record what `--check` found in the pictures of a job, for the report."""
        record = await self.record(job, result)
        if record is not None and isinstance(self._journal, SQLiteStore):
            await self._journal.keep_findings(record.external_task_id, job.suspicions)

    async def keep_bad(self, job: Job, reason: str) -> None:
        """Record why a row cannot be sent, unless the journal already has its job with the reason."""
        external_id = job.future and job.future.external_task_id
        known = self._journal and external_id and await self._journal.get(external_id)
        if isinstance(self._journal, SQLiteStore) and not known:
            await self._journal.keep_bad_row(job.label, reason)

    def _paths(self, result: ExpandResult) -> OutputPaths:
        return paths_of(result, self._target, metadata=self._output.metadata, **self._output.form)

    async def _download(self, result: ExpandResult, photo: str | bool) -> tuple[Path, ...]:
        overwrite = self._overwrite
        if overwrite:
            existing = await asyncio.to_thread(_existing, self._paths(result))
            overwrite = not existing & self._protected
            await self._forget_files(existing if overwrite else set())
        return await result.save(self._target, overwrite=overwrite, metadata=photo, **self._output.form)

    async def _forget_files(self, keys: set[str]) -> None:
        """Record that these files are no longer results of their jobs."""
        if self._journal is None:
            return
        if self._owners is None:
            jobs = self._journal.attempts()
            self._owners = {path_key(file): job.external_task_id async for job in jobs for file in job.files}
        for owner in {self._owners.pop(key) for key in keys if key in self._owners}:
            if record := await self._journal.get(owner):
                left = [saved for saved in record.saves() if not {*map(_key, saved)} & keys]
                await self._journal.mark_saved(owner, chain(*left))

    def _known(
        self, result: ExpandResult, names: tuple[str, ...], recorded: set[str]
    ) -> tuple[str, tuple[Path, ...]]:
        """Return the name and files of a job that is already saved, or else its first name and no files."""
        for name in names:
            paths = self._paths(evolve(result, name=name))
            found = [
                self._known_file(paths, position, names, recorded) for position in range(len(paths.numbers))
            ]
            if None not in found:
                return name, tuple(path for path in found if path is not None)
        return names[0], ()

    def _known_file(
        self, paths: OutputPaths, position: int, names: tuple[str, ...], recorded: set[str]
    ) -> Path | None:
        """Return a saved picture of this task that no other photo of this run uses, or None.

        The journal or the mark of a file shows that it is a picture of this task.
        """
        marked, wanted = paths.find_saved(position, watermark=False), self._output.format
        for path in paths.candidates(position):
            if wanted is not None and path.suffix != FORMATS[wanted]:
                continue
            belongs = path == marked or (_key(path) in recorded and os.path.lexists(path))
            if belongs and self._names_by_file.get(_key(path), names) == names:
                return path
        return None


def _photo(result: ExpandResult) -> str:
    """Return the path of the user's own photo."""
    image = str(result.request.image) if result.request else ""
    if not image or "://" in image:
        raise InvalidRequest("metadata", image, "must be a photo that can be read on this machine")
    return image


def _key(path: Path) -> str:
    return path_key(str(path))


def _existing(paths: OutputPaths) -> set[str]:
    """Return the keys of the files that the results of a task may replace."""
    positions = range(len(paths.numbers))
    return {
        _key(path) for position in positions for path in paths.candidates(position) if os.path.lexists(path)
    }


# ---------------------------------------------------------------------------- the summary


def _report_open(jobs: Iterable[Job], plan: Plan) -> None:
    """Print which tasks continue, and how to wait for them. The service cannot cancel tasks."""
    open_jobs = {job.open_id: job for job in jobs if job.open_id}
    if not open_jobs:
        return
    connection = plan.connection
    resumes_journal = plan.journal and any(
        job.passes for job in open_jobs.values()
    )  # `wait` omits later passes
    words = f"resume {quote(plan.journal)}" if resumes_journal else "wait"
    resume = connection.resume_command(words, plan.output.target)
    finished = sum(job.finished for job in open_jobs.values())
    words = _open_tasks(len(open_jobs) - finished, finished, emulated=not resume)
    click.echo(f"{words}:" if resume else words, err=True)
    if not resume:
        return
    for any_id, job in open_jobs.items():
        external_id = (job.future and job.future.external_task_id) or "-"
        known = f"external id {external_id}" if job.future and job.future.task else "not confirmed"
        click.echo(clean(f"  {any_id}  {known}  {job.label}"), err=True)
    click.echo(
        clean(f"resume with: {resume}{'' if resumes_journal else ' '.join(open_jobs)}".rstrip()), err=True
    )


def _open_tasks(running: int, finished: int = 0, *, emulated: bool) -> str:
    """Return how many tasks are running, and how many are *finished* but not saved."""
    if emulated:
        return f"{plural(running + finished, 'task')} stopped with the local emulator; nothing is billed"
    unsaved = f"{plural(finished, 'finished task')} {'is' if finished == 1 else 'are'} not saved"
    verb = "continues" if running == 1 else "continue"
    rest = f"{plural(running, 'task')} {verb} at the service, which cannot cancel tasks"
    return ", and ".join([*([unsaved] if finished else []), *([rest] if running else [])])


async def _summarize(
    plan: Plan, progress: Progress, journal: JobStore, retry_hint: str, left_out: dict[str, int]
) -> None:
    """Print the summary of the batch, as text on stderr or as a JSON object on stdout."""
    usage = await read_usage(journal)
    if plan.output.as_json:
        show({"summary": _summary_facts(progress, usage, plan.journal) | {"left_out": left_out}})
        return
    if plan.output.notes:
        for line in _summary_lines(plan, progress, usage, retry_hint):
            click.echo(clean(line), err=True)


def _summary_facts(progress: Progress, usage: Usage, path: str) -> dict[str, object]:
    return {
        "rows": progress.total,
        "saved": progress.saved,
        "known": progress.known,
        "failed": progress.failed,
        "bad": progress.bad,
        "suspicious": progress.suspicious,
        "not_sent": progress.not_sent,
        "interrupted": progress.interrupted,
        "units_billed": usage.billed,
        "open_tasks": usage.open,
        "journal": path,
    }


def _summary_lines(plan: Plan, progress: Progress, usage: Usage, retry_hint: str) -> Iterator[str]:
    left = progress.total - progress.ended
    rest = f", {left} not finished" if left else ""
    yield f"{plural(progress.total, progress.noun)}: {progress.counts()}{rest}"
    if progress.suspicious:
        yield f"{plural(progress.suspicious, progress.noun)} with a suspicious result, to be checked by eye"
    if plan.connection.emulator:
        yield f"{money(usage.billed, emulated=True)} for all jobs in {plan.journal}"
    else:
        yield f"{money(usage.billed)} billed for all jobs in {plan.journal}"
    if usage.open:
        yield _open_tasks(usage.open, emulated=plan.connection.emulator)
    if progress.interrupted:
        yield f"interrupted: {_RUN_AGAIN} to continue; nothing is paid for twice"
    elif progress.failed or progress.not_sent:
        larger = "with a larger --budget, " if progress.over_budget else ""
        yield retry_hint or f"{larger}{_RUN_AGAIN} to retry the jobs that failed or were not sent"
