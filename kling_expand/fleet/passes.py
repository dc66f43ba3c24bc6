"""Fleet jobs with several passes. Each pass is a job of the store, under the key of the fleet's job.

A job's entry in the queue, its permits, its deaths, its cancellation and its outcome are all found by its
key. The store distinguishes jobs with the same key by their parameters, which differ for each pass. So each
pass has its own record, external id, create and price. Every SQL statement for a job also works for its
current pass. The task of the pass is therefore followed without a permit, counts against the limit and
prevents a cancellation. The step from one pass to the next needs no statement of its own. Whenever a worker
dies, the newest record under the key shows which pass is next:

=======================  =====================================================================================
newest record            what the next worker does
=======================  =====================================================================================
none                     plans the passes for the size of the photo, and runs the first
pass n, maybe sent       follows or looks up its task, without the photo and without a permit
pass n, not sent         runs pass n on the result of the previous pass
pass n, failed           runs pass n again as a new attempt, because a failed task costs nothing
pass n, succeeded        runs pass n + 1 on its result, or ends the job
=======================  =====================================================================================

The note of each record holds the payload of its job, so a record of another request under the same key is not
continued. A photo that has been replaced in the meantime also makes a new job, unless the queue says that a
task must be followed. Since even the first pass is recorded under its job's key, two jobs never share a first
pass.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Protocol

from attrs import evolve

from kling_expand.api import codec
from kling_expand.api.photo import load_photo
from kling_expand.errors import ImageError, JournalError, TransportError
from kling_expand.geometry import shape_name
from kling_expand.jobs.future import ExpandResult
from kling_expand.models import ExpandRequest, check
from kling_expand.passes import Pass, earlier_jobs, first_pass, pass_of
from kling_expand.store.base import JobRecord, JobState, JobStore

Load = Callable[[ExpandRequest], Awaitable[ExpandRequest]]  # reads a photo that is in an object store


class Runner(Protocol):
    """The interface of a worker that passes use: its store, and two methods that return a task's result."""

    @property
    def store(self) -> JobStore:
        """The store of the jobs."""
        ...

    @property
    def follows(self) -> bool:
        """Whether the job has or may have a task to follow, even if its photo has changed."""
        ...

    async def follow(self, known: JobRecord, /) -> ExpandResult | None:
        """Return the result of a known job, or None if it has no task."""
        ...

    async def create(self, request: ExpandRequest, note: Mapping[str, Any] | None, /) -> ExpandResult:
        """Create a task, with *note* in its record in the store, and return its result."""
        ...


async def run_passes(
    payload: Mapping[str, Any], request: ExpandRequest, runner: Runner, load: Load
) -> AsyncGenerator[ExpandResult, None]:
    """Yield the result of each pass, or nothing if one pass is enough.

    Each result has the previous one as `earlier`. *payload* is the job's payload in the queue, *request* was
    unpacked from it, and *load* reads a photo that is in an object store.

    Raises:
        InvalidRequest: if the payload's number of passes is invalid.
        KlingError: if a pass fails, or the result of the previous one cannot be read.
    """
    check(passes=payload["passes"])
    newest = await runner.store.find(str(request.key))
    step = _step_of(newest, payload, request)
    records = await earlier_jobs(runner.store, step) if step else []
    if newest and step and not runner.follows and await _is_replaced(step, [*records, newest][0], load):
        step = None
    if step is None:
        newest, records, step = None, [], await _first(payload, request, load)
    if step is None:
        return
    result: ExpandResult | None = None
    for number, record in enumerate(records, 1):
        found = await runner.follow(record)
        if found is not None:
            yield (result := _joined(found, evolve(step, number=number), result))
    while True:
        found = await _run(step, newest, result, runner)
        yield (result := _joined(found, step, result))
        if step.is_last:
            return
        newest, step = None, step.after(result.external_task_id)


def _step_of(newest: JobRecord | None, payload: Mapping[str, Any], request: ExpandRequest) -> Pass | None:
    """Return the pass of a record, or None if it does not belong to this job."""
    if newest is None or newest.note.get("job") != payload:
        return None
    step = pass_of(newest)
    return step and evolve(step, request=request)


async def _is_replaced(step: Pass, first: JobRecord, load: Load) -> bool:
    """Return whether the photo can be read and differs from the photo of the first pass."""
    try:
        photo = await load_photo((await load(step.request)).image)
    except (ImageError, TransportError):  # later passes do not need it
        return False
    request = evolve(step, number=1).pass_request()
    return codec.fingerprint(request, step.steps[0], photo.digest) != first.params_hash


async def _first(payload: Mapping[str, Any], request: ExpandRequest, load: Load) -> Pass | None:
    """Return the first of several passes, or None if one is enough or the photo's size is not known."""
    try:
        loaded = await load(request)
        if "://" in str(request.image) and loaded is request:
            return None  # at a URL, which only the service reads
        step = await first_pass(loaded, payload["passes"], {"job": payload})
    except ImageError:  # the job may have a task; otherwise its create reports the error
        return None
    return None if step.is_last else evolve(step, request=request)


async def _run(
    step: Pass, record: JobRecord | None, earlier: ExpandResult | None, runner: Runner
) -> ExpandResult:
    """Return the result of a pass, from the task of its *record* or else from a new task."""
    if record is not None and record.state is not JobState.FAILED and (record.task_id or record.may_exist):
        found = await runner.follow(record)
        if found is not None:
            return found
    request = step.pass_request()
    if step.number > 1:
        if earlier is None:
            raise JournalError(
                f"the store must have a record of {step.before}, the pass before pass {step.number}"
            )
        request = evolve(request, image=await earlier.images[0].read())
    return await runner.create(request, step.packed())


def _joined(found: ExpandResult, step: Pass, earlier: ExpandResult | None) -> ExpandResult:
    """Return the result of a pass with its own ratios, the *earlier* result and the job's shape name."""
    shape = shape_name(step.request.geometry)
    return evolve(found, request=step.pass_request(), earlier=earlier, shape=shape)
