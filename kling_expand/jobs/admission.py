"""When may a create leave, and what is held for it? Its price, its slots, its bytes on the way.

All of it is given back exactly once: what was not spent at once, a slot when its task is over.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from attrs import define, field

from kling_expand.api import codec
from kling_expand.api.session import Body
from kling_expand.errors import (
    APIError,
    BudgetExceeded,
    InvalidRequest,
    JournalError,
    ParallelLimit,
    SubmissionUnknown,
)
from kling_expand.models import ExpandRequest, Task
from kling_expand.store.base import JobRecord, JobStore, PreparedRequest

from .future import TaskRecord
from .scheduler import Flow, Slots, WeightedSemaphore
from .submission import Submitter

logger = logging.getLogger(__name__)


@define(eq=False, repr=False)
class Job:
    """One request on its way, and the record of its task. `known`: what a journal had of it."""

    request: ExpandRequest | None
    record: TaskRecord
    deadline_at: float | None = None
    flow: Flow | None = None
    priority: int = 0
    known: JobRecord | None = None
    files: list[Path] = field(factory=list)  # where an earlier run has put its pictures
    external_task_id: str = ""  # of its task, once there is one
    refused: bool = False  # for want of slots
    doubtful: bool = False  # an earlier run may have sent it
    leaving: bool = False  # from its first POST on, nobody can say that no task exists
    earlier: bool = False  # its task was there before anything of ours left
    due: int = 0  # units set aside for it
    held: int = 0  # slots
    running: bool = False  # at the service, so that they are free only when it ends
    runner: asyncio.Task[None] | None = None

    @property
    def n(self) -> int:
        """How many slots it takes."""
        return self.request.n if self.request else 1


class Admission:
    """Creates the tasks of jobs, each once the budget, the account's slots and the line have room for it.

    `budget` is the most that may be spent, in units; `units_due` what has been or may yet be.
    `upload_bytes` may be on the way at once.
    """

    def __init__(
        self,
        submitter: Submitter,
        slots: Slots,
        store: JobStore,
        *,
        budget: int | None,
        upload_bytes: int,
        rng: Random,
    ) -> None:
        self._submitter = submitter
        self._slots = slots
        self._store = store
        self._uploads = WeightedSemaphore(upload_bytes)
        self._budget = budget
        self._rng = rng
        self.units_due = 0

    async def create(
        self, job: Job, known: JobRecord, order: PreparedRequest, limit: asyncio.Timeout
    ) -> Task:
        """Create the task; its slots are held when this returns."""
        request = order.request
        head, tail = codec.encode(request, order.expansion, known.external_task_id)
        self._reserve(job, request)
        try:
            task = await self._admitted(job, known, partial(Body, head, order.photo, tail), limit)
        except SubmissionUnknown as error:
            self.free(job)
            await self._store.mark_uncertain(known.external_task_id, str(error))
            raise
        except BaseException as error:
            self.free(job)
            if not (job.leaving and isinstance(error, asyncio.CancelledError)):  # then it may be billed
                self.refund(job)
            if isinstance(error, APIError) and not error.retryable:
                await self._store.mark_refused(known.external_task_id, str(error))
            raise
        if job.earlier:
            self.refund(job)  # whoever made it has paid for it
        try:
            await self._store.observe(known.external_task_id, task)
        except JournalError as error:
            # It knows that a POST has left, and a later run will look the id up: nothing is lost.
            logger.warning("an accepted task could not be written down: %s", error)
        return task

    def _reserve(self, job: Job, request: ExpandRequest) -> None:
        """Set aside what it will cost. Raises `BudgetExceeded`, or `InvalidRequest` for too many slots."""
        if request.n > self._slots.limit:
            raise InvalidRequest(
                "n", request.n, f"the client may hold {self._slots.limit} slots (max_in_flight)"
            )
        if self._budget is not None and self.units_due + request.units > self._budget:
            left = self._budget - self.units_due
            limit = f"it costs {request.units} units and the budget has {left} left"
            raise BudgetExceeded("n", request.n, limit)
        job.due = request.units
        self.units_due += job.due

    def refund(self, job: Job) -> None:
        """Nothing is to be paid for it."""
        self.units_due -= job.due
        job.due = 0

    async def _admitted(
        self, job: Job, known: JobRecord, body: Callable[[], Body], limit: asyncio.Timeout
    ) -> Task:
        """Create it once the account has room for it, by our count and by the service's."""
        deadline = job.deadline_at
        limit.reschedule(deadline)
        while True:
            epoch = await self._slots.acquire(job.n, job.flow, priority=job.priority, first=job.refused)
            job.held = job.n
            limit.reschedule(None)  # a create is not cut off: it has the deadline as a time-out of its own
            try:
                task = await self._post(job, known, body, deadline)
            except ParallelLimit:
                job.refused, job.leaving, job.doubtful = True, False, False
            else:
                self._slots.accepted(job.n)
                job.running = True
                return task
            limit.reschedule(deadline)
            job.held = 0
            self._slots.refused(job.n, epoch)

    async def _post(
        self, job: Job, known: JobRecord, body: Callable[[], Body], deadline_at: float | None
    ) -> Task:
        if known.may_exist:
            self._submitter.doubt(known.external_task_id)
        size = min(body().size or 0, self._uploads.capacity)
        await self._uploads.acquire(size)
        job.leaving = True
        try:
            return await self._submitter.create(
                body,
                known.external_task_id,
                adopt=bool(known.params_hash),
                announce=partial(self._store.mark_sending, known.external_task_id),
                earlier=partial(self._earlier, job),
                deadline_at=deadline_at,
            )
        finally:
            self._uploads.release(size)

    def _earlier(self, job: Job) -> None:
        job.earlier = not job.refused  # otherwise it may be a task of a POST that was refused at first

    def run(self, job: Job) -> None:
        """Its task runs at the service already, slots or no slots."""
        if not job.held:
            job.held = job.n
            self._slots.force_acquire(job.n)
            job.running = True

    def free(self, job: Job) -> None:
        """Give its slots back."""
        held, job.held = job.held, 0
        running, job.running = job.running, False
        if held:
            (self._slots.ended if running else self._slots.release)(held)
