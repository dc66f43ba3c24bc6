"""What becomes of one photo, or one task? Followed to its end, saved, and accounted for on any way out."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from attrs import define, evolve

from kling_expand.client import KlingClient
from kling_expand.errors import KlingError, SubmissionUnknown
from kling_expand.jobs.future import TaskFuture
from kling_expand.models import Status, Task


@define(eq=False)
class Job:
    """One task that the command answers for; `label` is what its user called it.

    Its results go to `target`, and are called `name`, or after the task.
    """

    label: str
    future: TaskFuture
    target: str
    name: str | None = None
    paths: tuple[Path, ...] = ()
    error: KlingError | None = None
    notes: tuple[str, ...] = ()

    @property
    def open_id(self) -> str | None:
        """The id of a task that exists, or may, whose results are not saved yet; else None."""
        if self.paths:
            return None
        task = self.future.task
        if task is not None:
            return None if task.status is Status.FAILED else task.task_id
        error = self.future.error
        return self.future.any_id if error is None or isinstance(error, SubmissionUnknown) else None

    def facts(self) -> dict[str, Any]:
        """What is known of it, for JSON."""
        task = self.future.task
        return {
            "source": self.label,
            "status": task.task_status if task else None,
            "task_id": self.future.task_id,
            "external_task_id": self.future.external_task_id,
            "notes": list(self.notes),
            "files": [str(path) for path in self.paths],
            "urls": [image.url for image in task.images] if task else [],
            "units": task.final_unit_deduction if task else None,
            "error": self.error and {"type": type(self.error).__name__, "message": self.error.message},
        }


class Listener(Protocol):
    """Somebody who is told how jobs go."""

    def news(self, job: Job, task: Task) -> None:
        """A new snapshot of the job's task."""
        ...

    def ended(self, job: Job) -> None:
        """The job has ended, well or not."""
        ...

    def note(self, text: str) -> None:
        """A line about the whole."""
        ...


async def see_through(kling: KlingClient, jobs: Sequence[Job], listener: Listener, resume: str) -> None:
    """Follow every job to its end; one that fails disturbs no other.

    When cancelled it closes *kling* and tells which tasks go on, and how (*resume*) they are waited for.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(_follow(job, listener))
    except asyncio.CancelledError:
        try:  # pressed again, it may be while this is still being said
            listener.note("interrupted: closing (again to leave at once)")
            await kling.aclose()
        finally:
            _tell_open(jobs, listener, resume)
        raise
    _tell_open(jobs, listener, resume)


async def _follow(job: Job, listener: Listener) -> None:
    watching = asyncio.create_task(_watch(job, listener))
    try:
        result = await job.future
        await watching  # so that what is said of it does not depend on who was woken first
        job.paths = await evolve(result, name=job.name).save(job.target)
    except KlingError as error:
        job.error = error
    finally:
        watching.cancel()
    listener.ended(job)


async def _watch(job: Job, listener: Listener) -> None:
    """Pass the news on; how it ends is told by the future itself."""
    with suppress(KlingError):
        async for task in job.future:
            listener.news(job, task)


def _tell_open(jobs: Sequence[Job], listener: Listener, resume: str) -> None:
    """There is no remote cancel, so whatever was begun goes on, and costs what it costs."""
    running = {job.open_id: job for job in jobs if job.open_id}
    if not running:
        return
    if not resume:
        listener.note(f"{_counted(len(running))} ended with the local emulator; nothing is owed")
        return
    listener.note(f"{_counted(len(running))} still at the service, which cannot be told to cancel:")
    for any_id, job in running.items():
        known = f"external id {job.future.external_task_id or '-'}"
        listener.note(f"  {any_id}  {known if job.future.task else 'not confirmed'}  {job.label}")
    listener.note(f"resume with: {resume}{' '.join(running)}")


def _counted(number: int) -> str:
    return f"{number} task" if number == 1 else f"{number} tasks"
