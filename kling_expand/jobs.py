"""How does a request become a watched task? Checked, given an id and slots, created once, then watched."""

import asyncio
from functools import partial
from random import Random

from attrs import define

from . import images, wire
from .errors import (
    BudgetExceeded,
    DeadlineExceeded,
    InvalidRequest,
    KlingError,
    NotSubmitted,
    ParallelLimit,
    SubmissionUnknown,
)
from .future import TaskFuture
from .geometry import Ratios, Towards
from .images import Photo
from .models import Dialect, ExpandRequest, Status, Task
from .pacing import retry_waits
from .polling import Poller
from .scheduler import Slots
from .session import Body
from .submission import Submitter

GRACE = 10.0  # seconds a create under way is given to end when the client closes


@define(eq=False)
class _Job:
    """One request on its way."""

    request: ExpandRequest
    future: TaskFuture
    priority: int = 0
    leaving: bool = False  # from its first POST on, nobody can say that no task exists
    runner: asyncio.Task[None] | None = None


class Jobs:
    """Everything submitted through one client and not yet handed to the poll loop.

    `budget` is the most that may be spent, in units; `units_due` what has been or may yet be.
    """

    def __init__(
        self,
        submitter: Submitter,
        poller: Poller,
        slots: Slots,
        *,
        dialect: Dialect,
        run: str,
        budget: int | None,
        upload_bytes: int,
        rng: Random,
    ) -> None:
        self._submitter = submitter
        self._poller = poller
        self._slots = slots
        self._uploads = Slots(upload_bytes)
        self._dialect = dialect
        self._run = run
        self._budget = budget
        self._rng = rng
        self._jobs: dict[TaskFuture, _Job] = {}
        self.units_due = 0

    def start(self, request: ExpandRequest, future: TaskFuture, *, priority: int = 0) -> None:
        """Begin to submit *request*; *future* hears of everything that comes of it."""
        job = _Job(request, future, priority)
        job.runner = asyncio.create_task(self._see_through(job))
        self._jobs[future] = job

    def withdraw(self, future: TaskFuture) -> bool:
        """Take a job back if nothing was sent for it yet; say whether that was so."""
        job = self._jobs.get(future)
        if job is None or job.leaving or job.runner is None:
            return False
        return job.runner.cancel()

    async def idle(self) -> None:
        """Wait until everything started has been handed over or has failed."""
        while runners := [job.runner for job in self._jobs.values() if job.runner]:
            await asyncio.wait(runners)

    async def close(self) -> None:
        """Take back what was not sent, and give what is under way a moment to be answered."""
        for future in tuple(self._jobs):
            self.withdraw(future)
        for cancel in (False, True):
            runners = [job.runner for job in self._jobs.values() if job.runner]
            for runner in runners if cancel else ():
                runner.cancel()
            if runners:
                await asyncio.wait(runners, timeout=None if cancel else GRACE)

    async def _see_through(self, job: _Job) -> None:
        future = job.future
        try:
            async with asyncio.timeout_at(future.deadline) as limit:
                await self._submit(job, limit)
        except KlingError as error:
            future.fail(error)
        except TimeoutError:
            future.fail(DeadlineExceeded("time was up before the job was sent; no task exists"))
        except asyncio.CancelledError:
            future.fail(_cancelled(job))
        except Exception as error:  # noqa: BLE001 - a bug here must not leave anybody waiting for ever
            broken = KlingError(f"submitting broke: {error!r}")
            broken.__cause__ = error
            future.fail(broken)
        finally:
            del self._jobs[future]

    async def _submit(self, job: _Job, limit: asyncio.Timeout) -> None:
        request, future = job.request, job.future
        photo = await images.load(request.image)
        expansion = _fit(request, photo, self._dialect)
        if request.key is not None and request.external_task_id is None:
            digest = wire.fingerprint(request, expansion, photo.digest)
            future.rename(wire.external_id(self._run, request.key, digest))
        parts = wire.encode(request, expansion, future.any_id)
        self._reserve(request)
        try:
            await self._create(job, partial(Body, parts[0], photo, parts[1]), limit)
        except BaseException as error:
            if not isinstance(error, SubmissionUnknown):
                self.units_due -= request.units
            raise

    def _reserve(self, request: ExpandRequest) -> None:
        """Set aside what the job will cost. Raises `BudgetExceeded`."""
        if self._budget is not None and self.units_due + request.units > self._budget:
            left = self._budget - self.units_due
            raise BudgetExceeded(
                "n", request.n, f"it costs {request.units} units and the budget has {left} left"
            )
        self.units_due += request.units

    async def _create(self, job: _Job, body: partial[Body], limit: asyncio.Timeout) -> None:
        n, future = job.request.n, job.future
        deadline = limit.when()
        refused = False
        for pause in retry_waits(self._rng):
            await self._slots.acquire(n, priority=job.priority, again=refused)
            limit.reschedule(None)  # a create is not cut off: it has the deadline as a time-out of its own
            try:
                task = await self._post(job, body, deadline)
            except ParallelLimit:
                self._slots.refused(n)
            except BaseException:
                self._slots.release(n)
                raise
            else:
                break
            refused, job.leaving = True, False
            limit.reschedule(deadline)
            if not self._slots.held:  # others on this account have it all; none of ours can make room
                await asyncio.sleep(pause)
        future.observe(task)
        future.add_done_callback(lambda _: self._ended(job))
        self._poller.watch(future)

    async def _post(self, job: _Job, body: partial[Body], until: float | None) -> Task:
        size = min(body().size or 0, self._uploads.limit)
        await self._uploads.acquire(size)
        job.leaving = True
        try:
            return await self._submitter.create(
                body,
                job.future.any_id,
                adopt=job.request.key is not None,
                until=until,
            )
        finally:
            self._uploads.release(size)

    def _ended(self, job: _Job) -> None:
        self._slots.ended(job.request.n)
        task = job.future.task
        if task is not None and task.status is Status.FAILED:
            self.units_due -= job.request.units  # only pictures that were made are billed (live)


def _fit(request: ExpandRequest, photo: Photo, dialect: Dialect) -> Ratios | Towards:
    """What the dialect can say of the request's geometry, for this photo."""
    geometry = request.geometry
    if dialect is Dialect.DIRECTION:
        if isinstance(geometry, Towards):
            return geometry
        raise InvalidRequest("geometry", geometry, "the direction dialect can only say Towards(…)")
    if photo.width is None or photo.height is None:
        if geometry.needs_size:
            raise InvalidRequest(
                "geometry", geometry, "the size of a photo given by URL is not known here: "
                "pass Ratios(…) or Towards(…), or what geometry.ratios(width, height) gives"
            )  # fmt: skip
        return geometry.ratios(0, 0)
    return geometry.ratios(photo.width, photo.height)


def _cancelled(job: _Job) -> KlingError:
    if job.leaving:
        return SubmissionUnknown(
            "the client closed while the create was under way; look it up by its external_task_id"
        )
    return NotSubmitted("taken back before it was sent; no task exists")
