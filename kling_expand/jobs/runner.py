"""The job runner, which records each job, acquires slots, creates the task once and starts polling.

::

    submit ──> photo checked ──> store.record_intent ──> slots ──> create ──> poller ──> end
                                     │                                ^
    resume ──> store's record ───────┴── looked up if it may exist ───┘

A job releases its units once it is certain to cost nothing, and its slots once its task has ended or cannot
exist. It releases each exactly once. The states in `kling_expand.jobs.submission` decide when.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar
from weakref import WeakValueDictionary

from attrs import define, evolve

from kling_expand.api import codec
from kling_expand.api.photo import MAX_BYTES, load_photo
from kling_expand.api.session import Body
from kling_expand.errors import (
    AccountError,
    APIError,
    AuthenticationError,
    BudgetExceeded,
    DeadlineExceeded,
    ImageError,
    InvalidRequest,
    IPNotAllowed,
    JournalError,
    KlingError,
    NotFound,
    NotSubmitted,
    ParallelLimit,
    PermissionDenied,
    RateLimited,
    SubmissionUnknown,
    TokenExpired,
)
from kling_expand.events import CALLER, Caller, Event, EventKind, Listener
from kling_expand.models import UNITS_PER_IMAGE, ExpandRequest, Status, Task, resolve_geometry
from kling_expand.store.base import (
    UNFINISHED,
    JobIdentity,
    JobRecord,
    JobState,
    JobStore,
    PreparedRequest,
    identify,
)

from .future import TaskFuture, TaskRecord
from .poller import Poller
from .scheduler import Flow, Slots
from .submission import Attempt, AttemptState, Create, Submitter, duplicate, other_task

CLOSE_TIMEOUT = 10.0  # seconds that a create in progress has to end when the client closes
_RECOVERY = JobIdentity("", "")  # the turn of `_recover`, as no job has an empty digest
_SUCCEEDED = frozenset({JobState.SUCCEEDED, JobState.DONE})
_OPEN = frozenset({JobState.INTENT, JobState.UNKNOWN, JobState.SUBMITTED})

T = TypeVar("T")

logger: logging.Logger = logging.getLogger(__name__)


@define(eq=False)
class PassReservation:
    """Units of a budget that are set aside for later passes of one picture.

    `held` is the number set aside now, and `wanted` the number to set aside at the next reservation.
    """

    wanted: int = 0
    held: int = 0


class Counted(NamedTuple):
    """The units of one attempt that a `Budget` counts, as *due* or as spent *before*."""

    due: int = 0
    before: int = 0


NOT_COUNTED = Counted()


class Budget:
    """The units that a client may spend.

    `units_due` is the certain or possible cost of the client's own tasks. `spent_before` is the cost of
    earlier runs with the same journal.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.units_due: int = 0
        self.spent_before: int = 0
        self._held = 0  # units set aside for later passes
        self._unsettled: dict[str, Counted] = {}  # of open attempts that no job follows, by external_task_id

    def reserve(
        self, request: ExpandRequest, counted: Counted, reservation: PassReservation | None = None
    ) -> Counted:
        """Count the units of *request*, unless its attempt is *counted* already, and return them.

        The units of later passes are set aside in *reservation* at the same time.

        Raises:
            BudgetExceeded: if too few units are left.
        """
        reservation = reservation or PassReservation()
        self.release(reservation)
        if any(counted):
            return counted
        needed = request.units + reservation.wanted
        left = None if self.limit is None else self.limit - self.units_due - self.spent_before - self._held
        if left is not None and needed > left:
            later = f" and {reservation.wanted} for later passes" if reservation.wanted else ""
            limit = f"must cover the next job ({request.units} units{later})"
            raise BudgetExceeded("budget", f"{max(left, 0)} of {self.limit} units left", limit)
        reservation.held = reservation.wanted
        self._held += reservation.held
        self.units_due += request.units
        return Counted(due=request.units)

    def leave(self, external_task_id: str, counted: Counted) -> None:
        """Keep counting the units of an attempt whose job ended before its outcome was known."""
        if any(counted):
            earlier = self.take_over(external_task_id)  # of another job with the same given id
            self._unsettled[external_task_id] = Counted(*map(sum, zip(earlier, counted, strict=True)))

    def take_over(self, external_task_id: str) -> Counted:
        """Return the units that an earlier job or run has left for this attempt."""
        return self._unsettled.pop(external_task_id, NOT_COUNTED)

    def attribute(self, counted: Counted, *, own: bool) -> Counted:
        """Count units as due if the task is this client's *own*, and as spent before if not."""
        units = sum(counted)
        self.refund(counted)
        counted = Counted(due=units) if own else Counted(before=units)
        self.units_due += counted.due
        self.spent_before += counted.before
        return counted

    def refund(self, counted: Counted) -> None:
        """Stop counting the units of an attempt that costs nothing."""
        self.units_due -= counted.due
        self.spent_before -= counted.before

    def release(self, reservation: PassReservation) -> None:
        """Release the units that are set aside."""
        self._held -= reservation.held
        reservation.held = 0

    async def count_earlier_runs(self, store: JobStore) -> None:
        """Count the units that the jobs of a durable *store* have spent in earlier runs."""
        if self.limit is None or not store.durable:
            return
        total = 0
        self._unsettled = {name: counted for name, counted in self._unsettled.items() if counted.due}
        async for each in store.attempts():
            if _costs(each):
                total += each.units
                if each.state not in _SUCCEEDED:
                    self._unsettled.setdefault(each.external_task_id, Counted(before=each.units))
        self.spent_before = max(0, total - self.units_due)


@define(eq=False, repr=False, weakref_slot=False)
class Job:
    """One request, with the record of its task. `known` is the store's earlier record of the job."""

    request: ExpandRequest | None
    record: TaskRecord
    attempt: Attempt
    deadline_at: float | None = None
    flow: Flow | None = None
    priority: int = 0
    fresh: bool = False
    known: JobRecord | None = None
    note: Mapping[str, Any] | None = None  # the caller's values, for the store
    reservation: PassReservation | None = None  # units for later passes
    saves: tuple[tuple[Path, ...], ...] = ()  # the files of each earlier save of its task
    files: tuple[Path, ...] = ()  # the files of its own photo, not those of an identical one
    recorded_id: str | None = None  # its id in the store
    resumable: bool = False  # whether a later client of the store can send it
    withdrawn: bool | None = None  # once it is cancelled, whether no later client may send it
    counted: Counted = NOT_COUNTED  # the units of its attempt
    held: int = 0  # acquired slots
    waits: bool = False  # whether another submission of the same job is being sent under its id
    queued: bool = False  # whether it waits for slots
    running: bool = False  # whether the service runs it, so that its slots are released only at its end
    task: asyncio.Task[None] | None = None

    @property
    def n(self) -> int:
        """The number of slots that the job takes."""
        if self.request is None:
            return self.known.units // UNITS_PER_IMAGE if self.known else 1
        return self.request.n

    @property
    def sent(self) -> bool:
        """Whether a task exists or may exist."""
        return self.attempt.state.may_cost or self.record.task is not None

    @property
    def found(self) -> bool:
        """Whether the task existed before this client sent anything for the job."""
        return self.attempt.state is AttemptState.FOUND and not self.counted.due

    @property
    def final_id(self) -> str | None:
        """The id that the caller or the store gave the job, or None if neither has done so yet."""
        given = self.attempt.given or self.known is not None
        return self.recorded_id or (self.attempt.external_task_id if given else None)

    def cancel(self, *, for_good: bool = False) -> bool:
        """Cancel the job if it has not been sent yet, and return whether it is cancelled.

        With *for_good*, it ends at once, and no later run resumes it from the store. Otherwise it ends once
        it is known whether the store has it.
        """
        if self.task is None or self.sent or self.record.done():
            return False
        if self.withdrawn is None and not self.task.cancel():
            return False
        self.withdrawn = for_good
        if for_good:
            self.resumable = False
            self.record.fail(_cancellation_error(self))
        return True


class JobRunner:
    """The jobs of one client, from their submission to their end."""

    def __init__(
        self,
        submitter: Submitter,
        poller: Poller,
        store: JobStore,
        slots: Slots,
        *,
        budget: Budget,
        emit: Listener,
    ) -> None:
        self._submitter = submitter
        self._poller = poller
        self._store = store
        self._slots = slots
        self._budget = budget
        self._emit = emit
        self._registry = poller.registry
        self._registry.on_end.insert(0, self._ended)  # slots are free before the end is emitted
        self._jobs: dict[TaskRecord, Job] = {}  # jobs that have no task yet
        self._identity_locks: WeakValueDictionary[JobIdentity, asyncio.Lock] = WeakValueDictionary()
        self._writes: set[asyncio.Task[Any]] = set()
        self._followed: set[TaskRecord] = set()  # tasks that other clients or earlier runs created
        self._registry.on_merge.append(self._unfollow)
        self._warned = False  # whether the log has the warning about photos that cannot be read again

    def __len__(self) -> int:
        return len(self._jobs)

    def follow(self, record: TaskRecord) -> None:
        """Poll a task that no job of this client created. It counts as one picture in progress."""
        if record not in self._followed:
            self._followed.add(record)
            self._slots.force_acquire(1)
        self._poller.add(record, resumed=True)

    def _unfollow(self, record: TaskRecord) -> None:
        """Stop counting a followed task."""
        if record in self._followed:
            self._followed.discard(record)
            self._slots.ended(1)

    def start(
        self,
        record: TaskRecord,
        request: ExpandRequest | None,
        *,
        deadline_at: float | None = None,
        flow: Flow | None = None,
        priority: int = 0,
        fresh: bool = False,
        known: JobRecord | None = None,
        note: Mapping[str, Any] | None = None,
        reservation: PassReservation | None = None,
    ) -> None:
        """Start a job whose *record* receives its snapshots or its error.

        A durable store keeps the *note* with the job. *reservation* holds units for later passes.
        """
        given = request is not None and request.external_task_id is not None
        sent = known is not None and known.may_exist and known.task is None
        unanswered_at = asyncio.get_running_loop().time() if sent else None  # made exact later
        attempt = Attempt(record.any_id, given=given, unanswered_at=unanswered_at)
        job = Job(request, record, attempt, deadline_at, flow, priority, fresh, known, note, reservation)
        record.job = job
        if known is not None:
            self._mark_recorded(job, known)
        job.waits = given and self._other_job(job) is not None
        if job.waits:
            record.rename(codec.random_id())  # until no other job with its id is being sent
        self._jobs[record] = job
        self._registry.add(record)
        self._event(EventKind.SUBMITTED, record)
        job.task = asyncio.create_task(self._run(job))
        job.task.add_done_callback(lambda _: self._task_done(job))

    def follows(self, known: JobRecord) -> bool:
        """Return whether a job of the store is open in this client."""
        identity = JobIdentity(known.key, known.params_hash)
        return identity in self._identity_locks or self._registry.get(known.external_task_id) is not None

    async def idle(self) -> None:
        """Wait until every started job has a task or has failed."""
        while tasks := [job.task for job in self._jobs.values() if job.task]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Cancel jobs that were not sent, and wait briefly for the responses to creates in progress."""
        for job in tuple(self._jobs.values()):
            job.cancel()
        tasks = [job.task for job in self._jobs.values() if job.task]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)
        finally:
            for task in tasks:
                task.cancel()
        await asyncio.wait(tasks)

    async def written(self) -> None:
        """Wait until the end of every job is in the store."""
        await asyncio.sleep(0)  # lets the callbacks of jobs that have just ended run
        while self._writes:
            await asyncio.wait(self._writes)

    # ------------------------------------------------------------------ one job

    def _other_job(self, job: Job) -> Job | None:
        """Return another open job with the given id of *job*, unless *job* can share its task now."""
        record = self._registry.get(job.attempt.external_task_id)
        if record is None or not isinstance(record.job, Job):
            return None
        shares = record.task is not None and record.job.request == job.request
        return None if shares else record.job

    async def _take_id(self, job: Job) -> None:
        """Give *job* its own id as soon as no other job with that id is being sent.

        If the other job got a task, *job* then shares it. If the other job failed, *job* continues.

        Raises:
            DuplicateTask: if the other job has a different request.
        """
        while (other := self._other_job(job)) is not None:
            if other.request != job.request:
                await _refuse(job, other.record)
            job.recorded_id, job.resumable = other.recorded_id, other.resumable
            job.record.wake()
            async with asyncio.timeout_at(job.deadline_at):
                await other.record.wait_changed()
        job.record.rename(job.attempt.external_task_id)
        job.waits = False

    async def _run(self, job: Job) -> None:
        try:
            if job.waits:
                await self._take_id(job)
            CALLER.set(Caller(job.record.number, job.record.external_task_id))
            if job.record.canonical is not job.record:
                self._event(EventKind.MERGED, job.record)  # the same request under the same given id
                return
            if job.known is not None:
                await self._resume(job, job.known)
            elif job.request is not None:
                await self._submit(job, job.request)
        except (DeadlineExceeded, TimeoutError) as error:
            self._fail(job, _deadline_error(job, error))
        except KlingError as error:
            if job.known is not None:
                logger.warning("job %s cannot be resumed: %s", job.record.external_task_id, error)
            self._fail(job, error)
        except asyncio.CancelledError:
            self._fail(job, _cancellation_error(job))
            # Begun in this iteration of the loop, before another submission can record that it sends the job.
            await self._record_withdrawal(job)
        except Exception as error:
            logger.exception("a job failed with an unexpected error")
            self._fail(job, _unexpected_error(job, error))
        finally:
            self._jobs.pop(job.record, None)

    async def _record_withdrawal(self, job: Job) -> None:
        """Record that a caller has cancelled *job*, unless another submission of the job continues."""
        own_id = None if job.sent or job.waits else job.attempt.external_task_id
        if job.withdrawn and job.recorded_id is not None and job.recorded_id == own_id:
            await self._write(self._store.mark_refused(own_id, "NotSubmitted: it was cancelled"))

    def _task_done(self, job: Job) -> None:
        """Forget the asyncio task of *job*, which may never have begun."""
        job.task = None  # keeping it while the job is open would double the job's memory
        if self._jobs.pop(job.record, None):
            self._fail(job, _cancellation_error(job))

    def _fail(self, job: Job, error: KlingError) -> None:
        """End a job that has no task. The poller follows a job that has one."""
        if job.record.task is None:
            error.external_task_id = error.external_task_id or job.final_id
            job.record.fail(error)

    async def _resume(self, job: Job, known: JobRecord) -> None:
        """Continue a job of the store. The photo is needed only if the job has no task."""
        if known.task is not None:
            await self._adopt(job, known, known.task)
            return
        async with self._lock(job, JobIdentity(known.key, known.params_hash)):
            if job.request is None:
                reason = "its photo was given as bytes, which the journal does not keep: submit the job again"
                await self._look_up(job, NotSubmitted(reason))
                return
            try:
                await self._submit(job, job.request)
            except ImageError as error:
                if job.attempt.state is not AttemptState.INHERITED:
                    raise
                await self._look_up(job, error)

    async def _look_up(self, job: Job, error: KlingError) -> None:
        """Continue with the task of a job whose photo is missing, or raise *error* if it has none."""
        task = None
        if job.known and job.attempt.state is AttemptState.INHERITED:
            job.attempt = await self._attempt_of(job.known, given=job.attempt.given)
            job.counted = self._budget.take_over(job.attempt.external_task_id)
            task = await self._submitter.settle(job.attempt, 4 * MAX_BYTES // 3, job.deadline_at)
        if task is None:
            if job.attempt.state is AttemptState.ABSENT:
                self._refund(job)
                await self._write(self._store.mark_unsent(job.attempt.external_task_id))
            raise error
        await self._follow_and_record(job, task)

    async def _submit(self, job: Job, request: ExpandRequest) -> None:
        async with asyncio.timeout_at(job.deadline_at):
            try:
                photo = await load_photo(request.image)
            except ImageError as error:
                await self._add_ids(request, error)
                raise
        expansion = resolve_geometry(request, self._submitter.dialect, photo.dimensions)
        prepared = PreparedRequest(request, photo, expansion, job.note)
        identity = identify(self._store, prepared)
        if identity is None:
            known = JobRecord(job.record.any_id)
            self._mark_recorded(job, known)
            await self._attempt(job, known, prepared)
            return
        if job.known and job.known.params_hash != identity.digest:
            advice = "submit it as a new job"
            raise ImageError("image", photo.name, "must be the photo that the journal has recorded", advice)
        if not self._store.recovered:
            await self._recover(job.deadline_at)
        if job.known is not None:
            await self._attempts(job, identity, prepared)  # `_resume` holds the lock
            return
        async with self._lock(job, identity):
            await self._attempts(job, identity, prepared)

    @asynccontextmanager
    async def _lock(self, job: Job, identity: JobIdentity) -> AsyncIterator[None]:
        """Wait until no other submission of the same job is being sent. The next one then finds its task."""
        lock = self._identity_locks.setdefault(identity, asyncio.Lock())
        async with asyncio.timeout_at(job.deadline_at):
            if lock.locked():
                job.waits = True
                await self._mark_if_recorded(job, identity)
            await lock.acquire()
        job.waits = False
        try:
            yield
        finally:
            lock.release()

    async def _recover(self, deadline_at: float | None) -> None:
        """List the account's tasks for a new journal, as a deleted journal may have recorded them."""
        lock = self._identity_locks.setdefault(_RECOVERY, asyncio.Lock())
        async with asyncio.timeout_at(deadline_at), lock:
            if not self._store.recovered:
                await self._store.recover(await self._submitter.list_tasks())

    async def _add_ids(self, request: ExpandRequest, error: ImageError) -> None:
        """Add to *error* the ids of the task, if any, that an earlier run created for the request's key."""
        if request.key and self._store.durable:
            known = await self._store.find(request.key)
            if known is not None and known.task_id is not None:
                error.task_id, error.external_task_id = known.task_id, known.external_task_id

    async def _attempts(self, job: Job, identity: JobIdentity, prepared: PreparedRequest) -> None:
        """Try the attempts of a job that has an identity until one has a task to follow."""
        after = 0
        while True:
            recording = self._keep_writing(self._record_intent(identity, prepared, after))
            try:
                async with asyncio.timeout_at(job.deadline_at):
                    known = await asyncio.shield(recording)
            except asyncio.CancelledError:  # the store gets the job all the same
                known = await recording
                job.attempt = await self._attempt_of(known, given=job.attempt.given)
                self._mark_recorded(job, known)
                raise
            after = known.attempt
            if await self._is_made_again(job, known, prepared) or _is_replaced(known, prepared.request):
                continue
            job.record.rename(known.external_task_id)
            CALLER.set(Caller(job.record.number, known.external_task_id))
            self._mark_recorded(job, known)
            if job.record.canonical is not job.record:
                self._event(EventKind.MERGED, job.record)  # the same job is already open in this client
                return
            if await self._attempt(job, known, prepared):
                return

    async def _is_made_again(self, job: Job, known: JobRecord, prepared: PreparedRequest) -> bool:
        """Return whether a `fresh` job needs another task: the known one has ended, or no longer exists."""
        if not job.fresh or known.state is not JobState.SUBMITTED:
            return job.fresh and known.state in _SUCCEEDED
        sent_at = asyncio.get_running_loop().time() - await self._store.post_age(known)
        attempt = Attempt(known.task_id or known.external_task_id, unanswered_at=sent_at)  # either id will do
        try:
            task = await self._submitter.settle(attempt, prepared.photo.encoded_length, job.deadline_at)
        except SubmissionUnknown:
            return False  # the task is followed, as it may still run
        return task is None

    async def _mark_if_recorded(self, job: Job, identity: JobIdentity) -> None:
        """Give *job* the id of another submission of the same job that is in progress."""
        await asyncio.sleep(0)  # that submission may only now begin its write
        known, given = await self._store.find(*identity), job.request and job.request.external_task_id
        if known and known.state in _OPEN and given in {None, known.external_task_id}:
            self._mark_recorded(job, known)

    def _mark_recorded(self, job: Job, known: JobRecord) -> None:
        """Note that the store has the job as *known*, and wake the callers that wait for this."""
        job.recorded_id = known.external_task_id
        unrecoverable = self._store.durable and known.source is None and known.task is None
        job.resumable = self._store.durable and not unrecoverable
        job.record.wake()
        if (
            unrecoverable
            and not self._store.queued
            and job.known is None
            and job.reservation is None
            and not self._warned
        ):
            self._warned = True
            logger.warning(
                "the photo of job %s was not given as a path or URL, and a journal keeps no photos: if the"
                " program ends before the job is sent, the job is lost; save each photo and pass its path",
                known.external_task_id,
            )

    async def _record_intent(self, identity: JobIdentity, prepared: PreparedRequest, after: int) -> JobRecord:
        """Record an attempt. Raise `DuplicateTask` if the request gives the id of another task."""
        try:
            return await self._store.record_intent(identity, prepared, after=after)
        except JournalError as error:
            given = prepared.request.external_task_id
            other = await self._store.get(given) if given else None
            same_job = other and JobIdentity(other.key, other.params_hash) == identity
            if other is None or (same_job and other.attempt > after and other.state is not JobState.FAILED):
                raise  # the store has failed
            raise duplicate(other.external_task_id, other.task_id) from error

    async def _attempt(self, job: Job, known: JobRecord, prepared: PreparedRequest) -> bool:
        """Follow the task of an attempt, creating it if necessary. Return False if the attempt has failed."""
        given = prepared.request.external_task_id is not None
        attempt = job.attempt = await self._attempt_of(known, given=given)
        if known.task is not None:
            await self._adopt(job, known, known.task)
            return True
        task = await self._create(job, prepared)
        again = task.status is Status.FAILED or (job.fresh and task.status.final)
        if attempt.state is AttemptState.FOUND and again and known.key:
            self._release(job, task)  # an earlier run's task, which has ended
            await self._write(self._store.observe(known.external_task_id, task))
            return False
        await self._follow_and_record(job, task)
        return True

    async def _attempt_of(self, known: JobRecord, *, given: bool) -> Attempt:
        """Return the last attempt of a stored job."""
        unanswered_at = None
        if known.may_exist and known.task is None:
            unanswered_at = asyncio.get_running_loop().time() - await self._store.post_age(known)
        return Attempt(known.external_task_id, given=given, unanswered_at=unanswered_at)

    # ------------------------------------------------------------------ its create

    async def _create(self, job: Job, prepared: PreparedRequest) -> Task:
        """Create or find the task of a job's attempt. The job holds its slots when this returns."""
        attempt, request = job.attempt, prepared.request
        if request.n > self._slots.limit:
            limit = f"must be at most {self._slots.limit}, the number of slots (max_in_flight)"
            raise InvalidRequest("n", request.n, limit)
        head, tail = codec.encode(request, prepared.expansion, attempt.external_task_id)
        inherited = attempt.state is AttemptState.INHERITED
        counted = self._budget.take_over(attempt.external_task_id) if inherited else NOT_COUNTED
        job.counted = self._budget.reserve(request, counted, job.reservation)
        create = Create(
            attempt,
            partial(Body, head, prepared.photo, tail),
            partial(self._store.mark_sending, attempt.external_task_id),
            partial(self._mark_unsent, attempt),
            job.deadline_at,
        )
        try:
            task = await self._create_in_slots(job, create)
        except BaseException as error:
            self._release(job)
            if not attempt.state.may_cost:
                self._refund(job)
            await self._write_failure(attempt, error)
            raise
        own = attempt.state is AttemptState.CREATED or counted.due > 0
        if own or self._store.durable:
            job.counted = self._budget.attribute(job.counted, own=own)
        else:
            self._refund(job)  # the client that created the task has paid for it
        return task

    async def _create_in_slots(self, job: Job, create: Create) -> Task:
        """Create the task once slots are free, both by our count and by the service's."""
        attempt = job.attempt
        if attempt.state is AttemptState.INHERITED:
            size = create.body().size or 0
            found = await self._submitter.settle(attempt, size, job.deadline_at)
            if found is not None:
                return found
        tries = 0
        while True:
            tries += 1
            first = attempt.state is AttemptState.REFUSED
            job.queued = True
            job.record.wake()  # an iterator yields `queued` if the job still waits by then
            try:
                async with asyncio.timeout_at(job.deadline_at):
                    epoch = await self._slots.acquire(job.n, job.flow, priority=job.priority, first=first)
            finally:
                job.queued = False
            job.held = job.n
            try:
                task = await self._submitter.create(create)
            except ParallelLimit as error:
                job.held = 0
                if self._slots.refused(job.n, epoch):
                    error.alone = job.n
                refused = Event(EventKind.RETRY, job.record.external_task_id, error=error)
                self._emit(refused._replace(number=job.record.number, route=EventKind.CREATE, attempt=tries))
            else:
                self._slots.accepted(job.n)
                job.running = True
                return task

    async def _adopt(self, job: Job, known: JobRecord, task: Task) -> None:
        """Continue with the task that the store has recorded."""
        job.attempt.move(AttemptState.FOUND)
        job.counted = self._budget.take_over(known.external_task_id)
        newer = await self.with_all_pictures(task, job.n, job.deadline_at)
        if newer is not task:
            await self._follow_and_record(job, newer)
            return
        job.saves = known.complete_saves()
        if job.known is not None or _has_same_source(known, job.request):
            job.files = next(iter(job.saves), ())
        self._follow(job, task)

    async def with_all_pictures(self, task: Task, pictures: int, deadline_at: float | None) -> Task:
        """Return *task*. If it succeeded with fewer *pictures*, read it again, as they may be listed by now.

        If the read fails or shows no more pictures, return *task* itself.
        """
        if task.status is Status.SUCCEED and len(task.images) < pictures:
            with suppress(KlingError):
                newer = await self._submitter.get_or_none(task.task_id, deadline_at)
                if newer is not None and len(newer.images) > len(task.images):
                    return evolve(newer, external_task_id=task.external_task_id)
        return task

    async def _follow_and_record(self, job: Job, task: Task) -> None:
        """Continue with a created or found task: deliver it first, then record it."""
        external_task_id = job.attempt.external_task_id
        self._follow(job, task)
        await self._write(self._store.observe(external_task_id, task))

    def _follow(self, job: Job, task: Task) -> None:
        """Deliver the first snapshot to the record, and add the task to the poller."""
        if not task.status.final and not job.held:
            job.held = job.n
            self._slots.force_acquire(job.n)  # the task already runs, whether or not slots are free
            job.running = True
        self._event(EventKind.ACCEPTED, job.record, task)
        job.record.deliver(task)
        calls_back = job.request is not None and job.request.callback_url is not None
        self._poller.add(job.record, resumed=job.known is not None, calls_back=calls_back)

    # ------------------------------------------------------------------ its end

    def _event(self, kind: EventKind, record: TaskRecord, task: Task | None = None) -> None:
        error = record.error
        self._emit(Event(kind, record.external_task_id, task or record.task, error, number=record.number))

    def _ended(self, record: TaskRecord) -> None:
        """Release the units and slots of the job of *record*, and record its end."""
        self._unfollow(record)
        job, task = record.job, record.task
        if not isinstance(job, Job):
            return
        if record.error is not None:
            self._event(EventKind.FAILED, record)
        self._release(job, task)
        if task is None or not task.status.final:
            if job.sent:
                self._budget.leave(job.attempt.external_task_id, job.counted)
                job.counted = NOT_COUNTED
            return
        self._keep_writing(self._write(self._store.observe(job.attempt.external_task_id, task)))

    def _release(self, job: Job, task: Task | None = None) -> None:
        """Release a job's slots, and its units if its *task* has failed."""
        if task is not None and task.status is Status.FAILED:
            self._refund(job)  # only pictures that were made are billed (observed)
        held, job.held = job.held, 0
        running, job.running = job.running, False
        if held:
            (self._slots.ended if running else self._slots.release)(held)

    def _refund(self, job: Job) -> None:
        """Release a job's units."""
        self._budget.refund(job.counted)
        job.counted = NOT_COUNTED

    async def _write_failure(self, attempt: Attempt, error: BaseException) -> None:
        """Record in the store how an attempt without a task ended."""
        if not isinstance(error, KlingError):
            if attempt.state is AttemptState.REFUSED:  # the refusal may not be recorded yet
                await self._mark_unsent(attempt)
        elif attempt.state.may_cost:
            await self._write(self._store.mark_uncertain(attempt.external_task_id, str(error)))
        elif isinstance(error, APIError) and not error.retryable:
            reason = f"{type(error).__name__}: {error}"
            await self._write(self._store.mark_refused(attempt.external_task_id, reason))
        elif attempt.state in {AttemptState.REFUSED, AttemptState.ABSENT}:
            await self._write(self._store.mark_unsent(attempt.external_task_id))

    async def _mark_unsent(self, attempt: Attempt) -> None:
        """Record that a refused attempt has no task, so that a later run need not look it up.

        For a queue's job nothing is recorded, because another worker may have taken it over and may be
        sending it.
        """
        if not self._store.queued:
            await self._write(self._store.mark_unsent(attempt.external_task_id))

    def _keep_writing(self, writing: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a write that goes on if its caller is cancelled. `written` waits for it."""
        task = asyncio.create_task(writing)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return task

    async def _write(self, writing: Awaitable[None]) -> None:
        """Wait for the store. A failure is only logged, because a later run looks up whatever is missing."""
        try:
            await writing
        except Exception as error:  # noqa: BLE001 - a store may be a user's own
            logger.warning("the state of a job could not be recorded: %s", error)


async def _refuse(job: Job, other: TaskRecord) -> NoReturn:
    """Wait for the task of the *other* record until the deadline, and raise `DuplicateTask` with it."""
    try:
        async with asyncio.timeout_at(job.deadline_at):
            task_id: str | None = (await TaskFuture(other).accepted()).task_id
    except KlingError as error:
        task_id = error.task_id
    except TimeoutError:
        task_id = other.task_id
    raise duplicate(job.attempt.external_task_id, task_id)


def _has_same_source(known: JobRecord, request: ExpandRequest | None) -> bool:
    """Return whether a job of the store was submitted with the photo of *request*, not an identical one."""
    image = request and request.image
    if known.source is None or not isinstance(image, str | os.PathLike) or "://" in str(image):
        return True
    return known.source == os.path.abspath(str(image))  # noqa: PTH100 - text stays text


def _is_replaced(known: JobRecord, request: ExpandRequest) -> bool:
    """Return whether the request has a different id than the recorded job, which was never sent.

    Raises:
        DuplicateTask: if that job has a task, or may have one.
    """
    given = request.external_task_id
    if given is None or given == known.external_task_id:
        return False
    if known.task_id is None and not known.may_exist:
        return True
    task = f"task {known.task_id}" if known.task_id else "its task may exist"
    raise other_task(
        f"external_task_id must be {known.external_task_id}, under which the journal has this job ({task}), "
        f"got {given}; omit it to continue that job, or give another key, or fresh=True",
        given,
        known.task_id,
    )


def _deadline_error(job: Job, error: Exception) -> KlingError:
    """Return the error of a job whose deadline has passed."""
    if job.attempt.state.may_cost:
        return job.attempt.unknown("the deadline passed before it was known whether the create succeeded")
    outcome = "another submission of the same job continues" if job.waits else "no task exists"
    failure = DeadlineExceeded(f"the deadline passed before the job was sent; {outcome}")
    failure.__cause__ = error
    return failure


def _cancellation_error(job: Job) -> KlingError:
    """Return the error of a job that was cancelled."""
    if job.attempt.state.may_cost:
        return job.attempt.unknown("the job was cancelled when its create might already have been accepted")
    outcome = "another submission of the same job continues" if job.waits else "no task exists"
    later = ", and `resume` continues the job" if job.resumable else ""
    error = NotSubmitted(f"cancelled before it was sent; {outcome}{later}", resumable=job.resumable)
    error.external_task_id = job.final_id
    return error


def _unexpected_error(job: Job, error: Exception) -> KlingError:
    """Return the error of a job that ended because of a bug, in this package or in a user's own class."""
    reason = f"submitting failed with an unexpected error: {error!r}"
    failure = job.attempt.unknown(reason) if job.attempt.state.may_cost else KlingError(reason)
    failure.__cause__ = error
    return failure


def is_resumable(job: JobRecord) -> bool:
    """Return whether a job of the store can be continued: it has not ended, or might now be accepted.

    Problems with the account, its permissions, its keys or its allowed addresses may have been solved. An
    invalid request stays invalid.
    """
    temporary = (AccountError, AuthenticationError, TokenExpired, PermissionDenied, IPNotAllowed)
    names = {kind.__name__ for kind in (*temporary, NotFound, RateLimited)}
    may_have_passed = (job.error or "").partition(":")[0] in names
    return job.state in UNFINISHED or (job.state is JobState.REJECTED and may_have_passed)


def _costs(job: JobRecord) -> bool:
    """Return whether an attempt has cost units, or may have."""
    return job.state in {JobState.SUBMITTED, *_SUCCEEDED} or (
        job.last_post_at is not None and job.state not in {JobState.FAILED, JobState.REJECTED}
    )
