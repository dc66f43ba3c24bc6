"""Expansion of a photo in several passes, each of which expands the result of the previous one.

Each pass is one job. With the job, a journal records the number of the pass and the original request. A later
pass is identified by the task of the previous pass, not by the bytes of its picture. So an interrupted run
continues after the last pass that was paid for, even without the photo.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from attrs import evolve, frozen

from .api import codec
from .api.photo import load_photo, read_header
from .errors import DeadlineExceeded, InvalidRequest, NotSubmitted
from .geometry import Ratios, plan, shape_name
from .jobs.future import ExpandResult, TaskFuture
from .jobs.runner import Budget, PassReservation
from .models import UNITS_PER_IMAGE, ExpandRequest, Task, source_name
from .store.base import JobRecord, JobState, JobStore

PAID = (JobState.SUBMITTED, JobState.SUCCEEDED, JobState.DONE)


@frozen
class Pass:
    """One of several passes, as a journal records it with its job.

    `number` counts from 1, and `steps` are the ratios of all passes. `request` is the request as submitted,
    with the original photo. `before` is the `external_task_id` of the previous pass, or None for the first.
    `note` is the caller's note.
    """

    number: int
    steps: tuple[Ratios, ...]
    request: ExpandRequest
    before: str | None = None
    note: Mapping[str, Any] | None = None

    @property
    def is_last(self) -> bool:
        """Whether this is the last pass."""
        return self.number == len(self.steps)

    @property
    def units_after(self) -> int:
        """The cost of the later passes in units."""
        return (
            0 if self.is_last else UNITS_PER_IMAGE * (len(self.steps) - self.number - 1) + self.request.units
        )

    def pass_request(self) -> ExpandRequest:
        """Return the request of this pass. Only the last pass keeps `n`, `watermark` and a given id."""
        changed = evolve(self.request, geometry=self.steps[self.number - 1])
        if self.is_last:
            return changed
        return evolve(changed, n=1, watermark=False, external_task_id=None)

    def after(self, external_task_id: str | None) -> "Pass":
        """Return the next pass, which expands the result of the task with *external_task_id*."""
        return evolve(self, number=self.number + 1, before=external_task_id)

    def key(self, *, durable: bool) -> str | None:
        """Return the key of the job of this pass, or None if it has none."""
        given = self.request.key
        if self.before is None:
            return f"{given}-pass1" if given else None
        if not (durable or given):
            return None
        request = self.pass_request()
        name = codec.fingerprint(request, self.steps[self.number - 1], self.before)[:32]
        return f"{given}-pass{self.number}-{name}" if given else f"pass{self.number}-{name}"

    def packed(self) -> dict[str, Any]:
        """Return the pass as JSON values, for the note of its job."""
        image = self.request.image
        photo = _location(image) if isinstance(image, str | os.PathLike) else None
        steps = [[each.up, each.down, each.left, each.right] for each in self.steps]
        packed = codec.pack_request(self.request, self.steps[0])
        fields = {"number": self.number, "steps": steps, "photo": photo, "request": packed}
        return {**(self.note or {}), "pass": fields | {"key": self.request.key, "before": self.before}}


def pass_of(record: JobRecord) -> Pass | None:
    """Return the pass that a journal recorded with a job, or None if the job is not one of several."""
    note = record.note
    found = note.pop("pass", None)
    if not isinstance(found, dict) or "steps" not in found:  # a value of the caller's own
        return None
    request = codec.unpack_request(found["request"], found["photo"] or "", found["key"])
    steps = tuple(Ratios(*each) for each in found["steps"])
    return Pass(found["number"], steps, request, found["before"], note)


async def first_pass(request: ExpandRequest, limit: int, note: Mapping[str, Any] | None = None) -> Pass:
    """Plan at most *limit* passes for the photo of a request, and return the first.

    Raises:
        GeometryError: if more passes are needed.
        ImageError: if the photo cannot be read.
        InvalidRequest: if the photo is at a URL, so that its size is not known.
    """
    return Pass(1, tuple(plan(*await _size(request), request.geometry, limit)), request, note=note)


async def earlier_jobs(store: JobStore, step: Pass) -> list[JobRecord]:
    """Return the jobs of the passes before *step*, beginning with the first pass."""
    found: list[JobRecord] = []
    before = step.before
    while before and (record := await store.get(before)):
        found.insert(0, record)
        earlier = pass_of(record)
        before = earlier.before if earlier else None
    return found


@frozen
class PassJobs:
    """The parts of a client that `Passes` uses: store, budget, and functions that start and record jobs.

    `deadline_at` is the loop time by which the last pass must end, or None.
    """

    store: JobStore
    budget: Budget
    submit: Callable[[ExpandRequest, Mapping[str, Any] | None, PassReservation | None], TaskFuture]
    resume: Callable[[JobRecord], TaskFuture]
    record_saved: Callable[[Task, tuple[()]], Awaitable[None]]
    deadline_at: float | None
    fresh: bool = False


class Passes:
    """The jobs of a photo that is expanded in several passes.

    Iterate over `futures`, and await each future before the next. After that, `result` is the result of the
    last pass. Its `earlier` is the result of the pass before, and its `request` has the original photo.
    `step` is the current pass.
    """

    def __init__(
        self,
        jobs: PassJobs,
        request: ExpandRequest | None = None,
        limit: int = 1,
        note: Mapping[str, Any] | None = None,
        known: JobRecord | None = None,
    ) -> None:
        self.result: ExpandResult | None = None
        self.step: Pass | None = None
        self._jobs = jobs
        self._request = request
        self._limit = limit
        self._note = note
        self._known = known
        self._reservation = PassReservation()
        self._stopped = False

    def stop(self) -> None:
        """Start no further pass."""
        self._stopped = True

    async def futures(self) -> AsyncGenerator[TaskFuture, None]:
        """Yield the future of each pass, once the previous pass has ended.

        The units of later passes are set aside when the first is submitted.

        Raises:
            GeometryError: if more passes are needed.
            InvalidRequest: if the photo is at a URL, so that its size is not known.
            NotSubmitted: if `stop` was called.
            DeadlineExceeded: if the deadline passes between two passes.
            KlingError: if the result of a pass cannot be read.
        """
        step, known = await self._first(), self._known
        try:
            while True:
                self.step = step
                request = step.pass_request()
                future = self._jobs.resume(known) if known else await self._submit(step)
                yield future
                found = await future
                name = self.result.name if self.result else found.name
                shape = shape_name(step.request.geometry)
                self.result = evolve(found, request=request, earlier=self.result, name=name, shape=shape)
                if step.is_last:
                    break
                step = step.after(found.external_task_id or future.external_task_id)
                known = await self._find(step)
        finally:
            self._jobs.budget.release(self._reservation)
        earlier = self.result.earlier
        while earlier is not None:  # so that no later run saves the pictures of this pass
            await self._jobs.record_saved(earlier.task, ())
            earlier = earlier.earlier

    async def _first(self) -> Pass:
        """Return the pass to begin with. If earlier passes are known, read their results."""
        if self._known is not None:
            found = pass_of(self._known)
            if found is None:
                limit = "must be a job that is one pass of several"
                raise InvalidRequest("known", self._known.external_task_id, limit)
            await self._read_earlier(found)
            return found
        if self._request is None:
            raise InvalidRequest("request", None, "must be given, except with a known job")
        return await first_pass(await _readable_again(self._request), self._limit, self._note)

    async def _read_earlier(self, found: Pass) -> None:
        """Read the results of the passes before *found*."""
        for number, record in enumerate(await earlier_jobs(self._jobs.store, found), 1):
            result = await self._jobs.resume(record)
            request = evolve(found, number=number).pass_request()
            self.result = evolve(result, request=request, earlier=self.result)

    async def _find(self, step: Pass) -> JobRecord | None:
        """Return the job of *step* if it was already paid for, or None."""
        key = step.key(durable=self._jobs.store.durable)
        if self._jobs.fresh or key is None or not self._jobs.store.durable:
            return None
        found = await self._jobs.store.find(key)
        return found if found and found.state in PAID else None

    async def _submit(self, step: Pass) -> TaskFuture:
        if self._stopped:
            raise NotSubmitted(f"stopped before pass {step.number} of {len(step.steps)}")
        request = step.pass_request()
        if len(step.steps) == 1:
            return self._jobs.submit(request, step.note, None)
        if step.before is not None and self.result is not None:
            request = evolve(request, image=await self._read_picture(self.result))
        request = evolve(request, key=step.key(durable=self._jobs.store.durable))
        self._reservation.wanted = step.units_after
        return self._jobs.submit(request, step.packed(), self._reservation)

    async def _read_picture(self, result: ExpandResult) -> bytes:
        """Return the picture of the previous pass. The deadline of all passes limits the download too."""
        try:
            async with asyncio.timeout_at(self._jobs.deadline_at):
                return await result.images[0].read()
        except TimeoutError:
            reason = "the deadline passed before the next pass was sent"
            raise DeadlineExceeded(reason, task_id=result.task_id) from None


def _location(image: str | os.PathLike[str]) -> str:
    """Return the location of a photo for another process: its absolute path or its URL.

    A converted photo is temporary, so its `origin` is returned.
    """
    place = getattr(image, "origin", None) or os.fsdecode(image)
    return place if "://" in place else os.path.abspath(place)  # noqa: PTH100 - symbolic links are kept


async def _readable_again(request: ExpandRequest) -> ExpandRequest:
    """Return *request* with the bytes of its photo instead of an open file, which can be read only once."""
    image: Any = request.image
    if not hasattr(image, "read"):
        return request
    return evolve(request, image=await asyncio.to_thread(image.read))


async def _size(request: ExpandRequest) -> tuple[int, int]:
    """Return the size of the photo in pixels. If it is a file, read only its header."""
    image = request.image
    if isinstance(image, str | os.PathLike) and not str(image).startswith("data:"):
        header = await asyncio.to_thread(read_header, image)
        size = (header.width, header.height) if header else None
    else:
        size = (await load_photo(image)).dimensions
    if size is None:
        limit = "must not be a URL, because an expansion in passes needs the size of the photo"
        raise InvalidRequest("image", source_name(image), limit)
    return size
