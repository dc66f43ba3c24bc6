"""What is already known of this job? Its id, and with a journal how far it came before."""

import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kling_expand.api import codec
from kling_expand.api.photo import Photo
from kling_expand.errors import KlingError
from kling_expand.geometry import Expansion
from kling_expand.models import ExpandRequest, Task

if TYPE_CHECKING:
    from .sqlite import Job, State


class Records(Protocol):
    """What keeps jobs: a `Journal`, or a database that many machines share. `Journal` says what each does."""

    async def intend(
        self,
        key: str,
        *,
        params_hash: str,
        params: str,
        source: str | None,
        external_id: Callable[[int], str],
    ) -> "Job": ...

    async def posting(self, external_task_id: str) -> None: ...

    async def observed(self, external_task_id: str, task: Task) -> None: ...

    async def downloaded(self, external_task_id: str, files: Iterable[str | os.PathLike[str]]) -> None: ...

    async def rejected(self, external_task_id: str, error: str) -> None: ...

    async def unknown(self, external_task_id: str, error: str) -> None: ...

    async def get(self, external_task_id: str) -> "Job | None": ...

    def jobs(self, *states: "State") -> AsyncIterator["Job"]: ...


class PreparedRequest(NamedTuple):
    """A request as it will be sent: its photo checked, its geometry worked out for it."""

    request: ExpandRequest
    photo: Photo
    expansion: Expansion


class Identity(NamedTuple):
    """A job's key within its run, and a digest of all that it asks for."""

    key: str
    digest: str


class JobRecord(NamedTuple):
    """Where to begin with a job.

    With `adopt` its id is derived from the job itself, so a task that has it is this job's.
    `doubtful`: a create may have left before. `task` is the newest snapshot, `files` its pictures on disk.
    """

    external_task_id: str
    adopt: bool = False
    doubtful: bool = False
    task: Task | None = None
    files: tuple[Path, ...] = ()
    digest: str = ""


class Ledger:
    """Gives jobs their ids, and writes down what happens to them if there is a journal.

    A job is told by its `key` within the *run*; with a journal, one without a key by what it asks
    for: the same photo with the same parameters is then the same job.
    """

    def __init__(self, run: str, journal: Records | None = None) -> None:
        self._run = run
        self._journal = journal

    def identify(self, order: PreparedRequest) -> Identity | None:
        """What makes it the same job in another process; None where nothing does."""
        request = order.request
        if self._journal is None and (not request.key or request.external_task_id):
            return None
        digest = codec.fingerprint(request, order.expansion, order.photo.digest)
        return Identity(request.key or digest, digest)

    async def intend(self, identity: Identity, order: PreparedRequest, attempt: int) -> JobRecord:
        """Where to begin with a job, written down before this returns. A journal counts attempts itself."""
        request = order.request

        def external_id(attempt: int) -> str:
            given = request.external_task_id
            return given or codec.external_id(self._run, identity.key, identity.digest, attempt)

        if self._journal is None:
            return JobRecord(external_id(attempt), adopt=True)
        job = await self._journal.intend(
            identity.key,
            params_hash=identity.digest,
            params=codec.pack_request(request, order.expansion),
            source=order.photo.source,
            external_id=external_id,
        )
        return _known(job)

    async def posting(self, external_task_id: str) -> None:
        """A POST is about to leave."""
        if self._journal:
            await self._journal.posting(external_task_id)

    async def observed(self, external_task_id: str, task: Task) -> None:
        """The service has the task, or it has ended."""
        if self._journal:
            await self._journal.observed(external_task_id, task)

    async def mark_unknown_or_rejected(
        self, external_task_id: str, error: KlingError, *, refused: bool
    ) -> None:
        """It was refused for good, or (not *refused*) nobody can say whether it exists."""
        if self._journal and refused:
            await self._journal.rejected(external_task_id, str(error))
        elif self._journal:
            await self._journal.unknown(external_task_id, str(error))

    async def saved(self, task: Task, files: Sequence[Path]) -> None:
        """The pictures are on disk."""
        if self._journal and task.external_task_id and await self._journal.get(task.external_task_id):
            await self._journal.observed(task.external_task_id, task)
            await self._journal.downloaded(task.external_task_id, [file.absolute() for file in files])

    async def unfinished(self) -> AsyncIterator[tuple[JobRecord, ExpandRequest | None, str | None]]:
        """Every job whose pictures are not on disk, its request if the photo can be had again, its source."""
        if self._journal:
            from .sqlite import State

            open_states = State.INTENT, State.UNKNOWN, State.SUBMITTED, State.SUCCEEDED
            async for job in self._journal.jobs(*open_states):
                request = codec.unpack_request(job.params, job.source, job.key) if job.source else None
                yield _known(job), request, job.source


def _known(job: "Job") -> JobRecord:
    task = job.task
    if task is None and job.task_id is not None:
        task = Task(job.task_id, "submitted", external_task_id=job.external_task_id)
    files = tuple(map(Path, job.files))
    return JobRecord(
        job.external_task_id,
        adopt=True,
        doubtful=job.last_post_at is not None or job.state == "unknown",
        task=task,
        files=files if all(file.exists() for file in files) else (),
        digest=job.params_hash,
    )
