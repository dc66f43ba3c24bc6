"""How does a request become a watched task? Checked, given an id and slots, created once, then watched."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any
from weakref import WeakValueDictionary

from kling_expand.api.photo import load_photo
from kling_expand.errors import (
    DeadlineExceeded,
    ImageError,
    KlingError,
    NotSubmitted,
    SubmissionUnknown,
)
from kling_expand.events import Event, EventKind, Listener
from kling_expand.models import Dialect, ExpandRequest, Status, Task, resolve_geometry
from kling_expand.store.base import JobIdentity, JobRecord, JobStore, PreparedRequest, identify

from .admission import Admission, Job
from .future import TaskFuture, TaskRecord
from .poller import Poller
from .submission import Submitter

GRACE = 10.0  # seconds a create under way is given to end when the client closes

logger = logging.getLogger(__name__)


class Jobs:
    """Everything submitted through one client and not yet handed to the poll loop."""

    def __init__(
        self,
        admission: Admission,
        submitter: Submitter,
        poller: Poller,
        store: JobStore,
        *,
        dialect: Dialect,
        emit: Listener,
    ) -> None:
        self._admission = admission
        self._submitter = submitter
        self._poller = poller
        self._store = store
        self._dialect = dialect
        self._emit = emit
        self._registry = poller.registry
        self._registry.on_end.insert(0, self._ended)  # slots are free before the end is emitted
        self._jobs: dict[TaskRecord, Job] = {}  # without a task yet
        self._turns: WeakValueDictionary[JobIdentity, asyncio.Lock] = WeakValueDictionary()
        self._notes: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, job: Job) -> None:
        """Begin with *job*; its record receives everything that comes of it."""
        self._jobs[job.record] = job
        self._registry.add(job.record)
        self._event(EventKind.SUBMITTED, job.record)
        job.runner = asyncio.create_task(self._see_through(job))
        job.runner.add_done_callback(lambda _: self._ran(job))

    def cancel(self, future: TaskFuture) -> bool:
        """Take a job back if nothing was sent for it yet; say whether that was so."""
        job = self._jobs.get(future.record)
        return job is not None and job.runner is not None and not job.leaving and job.runner.cancel()

    async def idle(self) -> None:
        """Wait until everything started has been handed over or has failed."""
        while runners := [job.runner for job in self._jobs.values() if job.runner]:
            await asyncio.wait(runners)

    async def close(self) -> None:
        """Take back what was not sent, and give what is under way a moment to be answered."""
        for job in tuple(self._jobs.values()):
            if job.runner is not None and not job.leaving:
                job.runner.cancel()
        runners = [job.runner for job in self._jobs.values() if job.runner]
        if not runners:
            return
        try:
            await asyncio.wait(runners, timeout=GRACE)
        finally:
            for runner in runners:
                runner.cancel()
        await asyncio.wait(runners)

    async def noted(self) -> None:
        """Wait until everything that has ended is written down."""
        await asyncio.sleep(0)  # the callbacks of what ended just now are still to come
        while self._notes:
            await asyncio.wait(self._notes)

    # ------------------------------------------------------------------ one job

    async def _see_through(self, job: Job) -> None:
        record = job.record
        try:
            async with asyncio.timeout_at(job.deadline_at) as limit:
                if job.known is None and job.request is not None:
                    await self._submit(job, job.request, limit)
                else:
                    await self._resume(job, job.known or JobRecord(record.any_id), limit)
        except KlingError as error:
            record.fail(error)
        except TimeoutError:
            record.fail(_late(job))
        except asyncio.CancelledError:
            record.fail(_cancelled(job))
        except Exception as error:  # noqa: BLE001 - a bug here must not leave anybody waiting for ever
            broken = KlingError(f"submitting broke: {error!r}")
            broken.__cause__ = error
            record.fail(broken)
        finally:
            self._jobs.pop(record, None)

    def _ran(self, job: Job) -> None:
        """The runner has ended, perhaps without ever having begun."""
        job.runner = None  # it would be kept as long as the task is open, and weighs as much as all the rest
        if self._jobs.pop(job.record, None):
            job.record.fail(_cancelled(job))

    async def _resume(self, job: Job, known: JobRecord, limit: asyncio.Timeout) -> None:
        """Go on with a job of the journal. Its photo is needed only where there may be no task of it."""
        job.doubtful = known.may_exist
        if job.request is None or known.task is not None:
            await self._look_for(job, known)
            return
        try:
            await self._submit(job, job.request, limit)
        except ImageError as error:
            if not known.may_exist or job.leaving:
                raise
            await self._look_for(job, known, error)

    async def _submit(self, job: Job, request: ExpandRequest, limit: asyncio.Timeout) -> None:
        photo = await load_photo(request.image)
        order = PreparedRequest(request, photo, resolve_geometry(request, self._dialect, photo.dimensions))
        identity = identify(self._store, order)
        if identity is None:
            known = JobRecord(job.record.any_id)
            self._take_up(job, known, await self._admission.create(job, known, order, limit))
            return
        if job.known and job.known.params_hash != identity.digest:
            raise ImageError(
                "image", photo.name, "it is not the photo the journal knows: submit it as a new job"
            )
        # The same job may be submitted twice at once: the second then finds the first one's task.
        turn = self._turns.setdefault(identity, asyncio.Lock())
        async with turn:
            await self._attempt(job, identity, order, limit)

    async def _attempt(
        self, job: Job, identity: JobIdentity, order: PreparedRequest, limit: asyncio.Timeout
    ) -> None:
        """Take up the task of a job with an identity, or create it where there is none."""
        while True:
            known = await self._store.record_intent(identity, order)
            job.record.rename(known.external_task_id)
            if job.record.canonical is not job.record:
                self._event(EventKind.MERGED, job.record)
                return
            job.doubtful = known.may_exist
            task = known.task or await self._admission.create(job, known, order, limit)
            if known.task is not None or not job.earlier or task.status is not Status.FAILED:
                self._take_up(job, known, task)
                return
            self._admission.free(job)  # what was found is an earlier run's task that failed

    async def _look_for(self, job: Job, known: JobRecord, error: KlingError | None = None) -> None:
        """Go on with a job whose photo is not needed, or cannot be had again because of *error*."""
        task = known.task
        if task is None and known.may_exist:
            task = await self._submitter.find(known.external_task_id, job.deadline_at)
            job.doubtful = task is not None
        if task is None:
            raise error or NotSubmitted(
                "its photo was given as bytes, which no journal keeps: submit it again"
            )
        await self._store.observe(known.external_task_id, task)
        self._take_up(job, known, task)

    def _take_up(self, job: Job, known: JobRecord, task: Task) -> None:
        """There is a task: tell its future, and watch it until its end."""
        record = job.record
        job.files.extend(known.existing_files())
        job.external_task_id = known.external_task_id
        if not task.status.final:
            self._admission.run(job)
        self._event(EventKind.ACCEPTED, record, task)
        record.deliver(task)
        self._poller.add(record, soon=job.known is not None)

    # ------------------------------------------------------------------ its end

    def _event(self, kind: EventKind, record: TaskRecord, task: Task | None = None) -> None:
        error = record.error
        self._emit(Event(kind, record.external_task_id, task or record.task, error, number=record.number))

    def _ended(self, record: TaskRecord) -> None:
        """Release what the job of *record* held, and write its end down."""
        job, task = record.job, record.task
        if job is None:
            return
        if record.error is not None:
            self._event(EventKind.FAILED, record)
        self._admission.free(job)
        if task is None or not task.status.final:
            return
        if task.status is Status.FAILED:
            self._admission.refund(job)  # only pictures that were made are billed (live)
        self._note(self._store.observe(job.external_task_id, task))

    def _note(self, writing: Coroutine[Any, Any, None]) -> None:
        note = asyncio.create_task(writing)
        self._notes.add(note)
        note.add_done_callback(self._written)

    def _written(self, note: asyncio.Task[None]) -> None:
        self._notes.discard(note)
        if not note.cancelled() and (error := note.exception()):
            # The journal knows the task and will ask for its end again: nothing is lost.
            logger.warning("the end of a task could not be written down: %s", error)


def _late(job: Job) -> KlingError:
    if job.doubtful:
        return SubmissionUnknown(
            "time was up before it was known whether an earlier run had sent it; look its id up later"
        )
    return DeadlineExceeded("time was up before the job was sent; no task exists")


def _cancelled(job: Job) -> KlingError:
    if job.leaving or job.doubtful:
        return SubmissionUnknown(
            "it was given up while a create of it may have been under way; look it up by its external_task_id"
        )
    return NotSubmitted("taken back before it was sent; no task exists")
