"""The contract of job stores, with job states, their transitions, job records and the in-memory store.

=========  ==========================================  ===================================================
state      meaning                                     next states
=========  ==========================================  ===================================================
intent     not sent, unless `last_post_at` is set      intent, unknown, rejected, submitted, succeeded, failed
unknown    sent, without a usable response             intent, rejected, submitted, succeeded, failed
rejected   refused by the service, so no task exists   intent, submitted, succeeded, failed
submitted  a task exists                               succeeded, failed
succeeded  the task succeeded                          succeeded, done
done       its pictures are on disk                    done
failed     the task failed
=========  ==========================================  ===================================================

Any other report is late and changes nothing, so reports may arrive in any order. A task that appears after a
refusal disproves it. If the table lists a state as its own next state, a repeated report updates the record,
for example with fresh URLs or other files. After ``failed``, the next intent is a new attempt with a new id.
From another state only `record_intent` with `after` leads to a new attempt.
"""

import asyncio
import logging
import os
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from enum import StrEnum
from functools import cached_property, partial
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

from attrs import evolve, field, fields, frozen

from kling_expand.api import codec
from kling_expand.api.photo import Photo
from kling_expand.errors import JournalError
from kling_expand.geometry import Ratios, Towards
from kling_expand.models import ExpandRequest, Status, Task

MAX_MEMORY_JOBS = 10_000  # records that an in-memory store keeps at most

logger: logging.Logger = logging.getLogger(__name__)


class JobState(StrEnum):
    """The last known state of a job.

    INTENT: not sent yet, or waiting to be sent again.
    UNKNOWN: sent without a usable response; its id is looked up before anything else.
    REJECTED: refused, and nothing was paid. `KlingClient.resume` sends it again only if the reason was
        temporary, such as an empty account.
    SUBMITTED: a task exists and has not ended.
    SUCCEEDED: the task succeeded and was paid for; its pictures are not recorded as saved.
    DONE: the pictures are saved. This state is final.
    FAILED: the task failed, and nothing was paid. Submitting the job again makes a new task.
    """

    INTENT = "intent"
    UNKNOWN = "unknown"
    REJECTED = "rejected"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    DONE = "done"
    FAILED = "failed"


_ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED})
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.INTENT: _ENDED | {JobState.INTENT, JobState.UNKNOWN, JobState.REJECTED, JobState.SUBMITTED},
    JobState.UNKNOWN: _ENDED | {JobState.INTENT, JobState.REJECTED, JobState.SUBMITTED},
    JobState.REJECTED: _ENDED | {JobState.INTENT, JobState.SUBMITTED},
    JobState.SUBMITTED: _ENDED,
    JobState.SUCCEEDED: frozenset({JobState.SUCCEEDED, JobState.DONE}),
    JobState.DONE: frozenset({JobState.DONE}),
    JobState.FAILED: frozenset(),
}
PREVIOUS: dict[JobState, list[str]] = {
    state: [str(earlier) for earlier in JobState if state in TRANSITIONS[earlier]] for state in JobState
}
UNFINISHED = (JobState.INTENT, JobState.UNKNOWN, JobState.SUBMITTED, JobState.SUCCEEDED)


def _path(stored: bytes | str | None) -> str | None:
    return None if stored is None else os.fsdecode(stored)


def _paths(stored: bytes | Iterable[str] | None) -> tuple[str, ...]:
    if isinstance(stored, bytes):
        stored = map(os.fsdecode, stored.split(b"\0")) if stored else ()
    return tuple(stored or ())


@frozen(slots=False)
class JobRecord:
    """One attempt at one request, as recorded in its store. Times are in Unix seconds.

    Stores create records, and programs read them. These attributes are useful to a program:

    - `external_task_id`, and the `task_id` once the service has accepted the task;
    - the `state`, and the `error` that says why the job failed, was refused or is unknown;
    - `task`, a snapshot, and `files`, the absolute paths of the saved pictures;
    - `request` and `note`, as they were submitted, and the `key`;
    - `source`, the photo's path or URL, or None if the photo was bytes;
    - `created_at` and `updated_at`.

    The rest belongs to the store. `params` is the JSON text of the request and the note. `params_hash` is the
    digest of the request and the photo. `attempt` counts from 1. `snapshot` is the packed task.
    `last_post_at` is the time by the wall clock at which a create was last about to be sent. Because that
    clock may be set, `last_post_mark` is the same moment by another clock, in a form that the store defines
    (see `JobStore.post_age`).
    """

    external_task_id: str
    key: str = ""
    params_hash: str = ""
    attempt: int = 1
    state: JobState = field(default=JobState.INTENT, converter=JobState)
    task_id: str | None = None
    last_post_at: float | None = None
    last_post_mark: str | None = None
    snapshot: str | None = field(default=None, repr=False)
    error: str | None = None
    files: tuple[str, ...] = field(default=(), converter=_paths)
    source: str | None = field(default=None, converter=_path)
    params: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0

    @cached_property
    def task(self) -> Task | None:
        """The final snapshot, a `submitted` one if only the task's id is known, or None without a task."""
        if self.snapshot is not None:
            return codec.unpack(self.snapshot)
        if self.task_id is not None:
            return Task(self.task_id, Status.SUBMITTED, external_task_id=self.external_task_id)
        return None

    @property
    def request(self) -> ExpandRequest | None:
        """The request, restored from the record, or None if its photo was bytes."""
        return None if self.source is None else codec.unpack_request(self.params, self.source, self.key)

    @property
    def note(self) -> dict[str, Any]:
        """The caller's values that were recorded with the job."""
        return codec.unpack_note(self.params)

    @property
    def may_exist(self) -> bool:
        """Whether a create may have been sent. If so, the id must be looked up before the next create."""
        return self.last_post_at is not None or self.state is JobState.UNKNOWN

    @property
    def units(self) -> int:
        """The cost of the job in units if it succeeds."""
        return codec.unpack_request(self.params, self.source or "", self.key).units

    def complete_saves(self) -> tuple[tuple[Path, ...], ...]:
        """Return the paths of each save whose pictures all still exist, the newest first."""
        # `Path.exists` raises if the file system cannot tell, for example without permission for a directory.
        return tuple(saved for saved in self.saves() if saved and all(map(os.path.exists, saved)))

    def saves(self) -> list[tuple[Path, ...]]:
        """Return the paths of each save of the pictures, the newest first."""
        files = tuple(map(Path, self.files))
        size = len(self.task.images) if self.task else 0
        return [files[start : start + size] for start in range(0, len(files), size)] if size else [files]


COLUMNS = ", ".join(attribute.name for attribute in fields(JobRecord))


class PreparedRequest(NamedTuple):
    """A request that is ready to be sent, with its photo checked and its geometry resolved for that photo.

    `note` holds the caller's own JSON values, which a durable store keeps with the job.
    """

    request: ExpandRequest
    photo: Photo
    expansion: Ratios | Towards
    note: Mapping[str, Any] | None = None


class JobIdentity(NamedTuple):
    """The identity of a job: a key within the run, and a digest of the request."""

    key: str
    digest: str


def identify(store: "JobStore", prepared: PreparedRequest) -> JobIdentity | None:
    """Return the identity of a job, or None if every submission is a separate job.

    In a durable store, every job has an identity. Without a `key`, identical requests are the same job. In
    any other store, a job has an identity only if the request has a `key` and no `external_task_id`.
    """
    request = prepared.request
    if not store.durable and (not request.key or request.external_task_id):
        return None
    digest = codec.fingerprint(request, prepared.expansion, prepared.photo.digest)
    return JobIdentity(request.key or digest, digest)


class JobStore(ABC):
    """The records of the jobs of one `run`, opened with ``async with``.

    A job is identified by its `external_task_id`. A *prepared* request has been checked, and has its photo
    and geometry. Times are Unix seconds.

    Each method returns once its record is stored. In a `durable` store, the record then survives a crash. A
    durable store raises `JournalError` for an unknown job. Any other store keeps a record only until its job
    ends, and ignores reports about unknown jobs.

    `JournalError` is the only exception that a method raises on purpose; the record may then be missing. Any
    other exception is a bug in the store. After a cancelled call the record may or may not be stored.

    A new store must implement `_claim`, `_transition`, `mark_sending`, `get`, `find`, `jobs`, `attempts` and
    `counts`.
    """

    durable: ClassVar[bool] = True
    queued: bool = False  # whether a queue also keeps the jobs, and where their photos are
    recovered: bool = True  # False until `recover` is called, if an earlier store may have been lost
    run: str
    _clock: Callable[[], float]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:  # noqa: B027 - a store may have nothing to close
        """Store all waiting records and close. A second call does nothing."""

    # ------------------------------------------------------------------------ reports

    async def record_intent(
        self, identity: JobIdentity, prepared: PreparedRequest, *, after: int = 0
    ) -> JobRecord:
        """Record that a job is to be sent, and return the record to continue with.

        The record of a known job that neither failed nor was rejected is returned unchanged, unless its
        attempt number is at most *after*. A rejected job with a higher attempt number becomes an intent again
        under its old id, as no task exists. A new job or attempt gets an id that is derived from the run, the
        identity and the attempt, unless the request has one. A known key with different parameters is a new
        job, and a warning is logged.

        Raises:
            JournalError: if the job cannot be stored, or another job has the request's `external_task_id`.
        """
        request, source = prepared.request, prepared.photo.source
        now = self._clock()
        draft = {
            "key": identity.key,
            "params_hash": identity.digest,
            "params": codec.pack_request(request, prepared.expansion, prepared.note),
            "source": None if source is None or source.startswith("data:") else os.fsencode(source),
            "created_at": now,
            "updated_at": now,
        }
        external_id = partial(_external_id, request.external_task_id, self.run, identity)
        return await self._claim(draft, external_id, after)

    @abstractmethod
    async def mark_sending(self, external_task_id: str) -> None:
        """Record that a create is about to be sent. The caller sends it as soon as this returns.

        Raises:
            JournalError: if a task of the job is known. The error then has its `task_id`, and the create must
                not be sent.
        """

    async def recover(self, tasks: Iterable[Task] | None) -> None:
        """Record the *tasks* of the account, because a lost earlier store may have recorded them.

        From then on, `record_intent` finds the task of a job among them. None means that they cannot be
        listed. Each new job is then recorded as one whose task may exist, so that it is looked up. While
        `recovered` is False, the client must call this before it records anything.
        """
        del tasks

    async def mark_uncertain(self, external_task_id: str, error: str) -> None:
        """Record that a create got no usable response, because of *error*."""
        await self._transition(external_task_id, JobState.UNKNOWN, error=self._text(error))

    async def mark_refused(self, external_task_id: str, error: str) -> None:
        """Record that the service refused the job with *error*, so that no task exists."""
        values = {"error": self._text(error), "last_post_at": None}  # no create is left to look up
        await self._transition(external_task_id, JobState.REJECTED, **values)

    async def mark_unsent(self, external_task_id: str) -> None:
        """Record that no task exists and no create is in progress."""
        await self._transition(external_task_id, JobState.INTENT, last_post_at=None)

    async def observe(self, external_task_id: str, task: Task) -> None:
        """Record the snapshot *task*, in full if it is final. Otherwise record only that the task exists."""
        if not task.status.final:
            await self._transition(external_task_id, JobState.SUBMITTED, task_id=task.task_id, error=None)
            return
        state = JobState.FAILED if task.status is Status.FAILED else JobState.SUCCEEDED
        await self._transition(external_task_id, state, **self._final_columns(task))

    async def mark_saved(self, external_task_id: str, files: Iterable[str | os.PathLike[str]]) -> None:
        """Record that the pictures of a succeeded task are on disk, as *files*."""
        await self._transition(external_task_id, JobState.DONE, files=b"\0".join(map(os.fsencode, files)))

    # ------------------------------------------------------------------------ queries

    @abstractmethod
    async def get(self, external_task_id: str) -> JobRecord | None:
        """Return the record with this id, which may be of an earlier attempt, or None."""

    async def saves(self, external_task_id: str) -> list[tuple[Path, ...]] | None:
        """Return the paths of each save of a job's pictures, newest first, or None for an unknown job."""
        known = await self.get(external_task_id)
        return None if known is None else known.saves()

    async def get_from_any(self, external_task_id: str) -> JobRecord | None:
        """Return the record with this id, even if only another worker's journal has it, or None."""
        return await self.get(external_task_id)

    async def find_task(self, task_id: str) -> JobRecord | None:
        """Return the record with this *task_id*, or None. A store with an index overrides this."""
        async for job in self.jobs():
            if job.task_id == task_id:
                return job
        return None

    @abstractmethod
    async def find(self, key: str, digest: str | None = None) -> JobRecord | None:
        """Return the newest record of *key*, and of this *digest* if it is given, or None."""

    @abstractmethod
    def jobs(self, *states: JobState) -> AsyncIterator[JobRecord]:
        """Yield the jobs in these *states* (all jobs if none is given), oldest first.

        Only the last attempt of each job is yielded. A job whose state changes in the meantime is yielded
        once, in the old or the new state. At most one page of jobs is held in memory.
        """

    @abstractmethod
    def attempts(self) -> AsyncIterator[JobRecord]:
        """Yield every attempt of every job, oldest first, including those that a later attempt replaced."""

    @abstractmethod
    async def counts(self) -> dict[JobState, int]:
        """Return the number of jobs by the state of their last attempt."""

    async def post_age(self, job: JobRecord) -> float:
        """Return the seconds since a create of *job* was last about to be sent, or infinity if unknown.

        The result may be too low but must never be too high, or a job would be sent again while its create is
        in progress. This method uses the wall clock, which may have been set forward. A store with a better
        clock overrides it.
        """
        return inf if job.last_post_at is None else max(0.0, self._clock() - job.last_post_at)

    async def durations(self) -> str:
        """Return the text that `keep_durations` stored, or an empty string."""
        return ""

    async def keep_durations(self, durations: str) -> None:
        """Store the *durations* of the newest tasks, as text, for the poll schedule of a later process."""
        del durations

    # ------------------------------------------------------------------------ implemented by each store

    @abstractmethod
    async def _claim(
        self, draft: dict[str, Any], external_id: Callable[[int], str], after: int = 0
    ) -> JobRecord:
        """Store the record that `record_intent` describes, and return it.

        *draft* holds the columns of a new row that do not depend on the attempt, and ``external_id(n)``
        returns the id of attempt *n*. It may be called on another thread.
        """

    @abstractmethod
    async def _transition(self, external_task_id: str, state: JobState, **values: Any) -> None:
        """Set the state of a job and these columns, or do nothing if `TRANSITIONS` does not allow it.

        If *values* name a different task than the record, nothing changes and a warning is logged.
        """

    def _final_columns(self, task: Task) -> dict[str, Any]:
        """Return the columns that store a final snapshot."""
        failed = task.status is Status.FAILED
        return {
            "task_id": task.task_id,
            "snapshot": codec.pack(task),
            "error": self._text(task.task_status_msg or "the service gave no reason") if failed else None,
        }

    def _text(self, text: str) -> str:
        """Return *text* without characters that cannot be stored."""
        return text.encode(errors="replace").decode()


def _external_id(given: str | None, run: str, identity: JobIdentity, attempt: int) -> str:
    return given or codec.external_id(run, identity.key, identity.digest, attempt)


def unknown_job(external_task_id: str) -> JournalError:
    """Return the error for a report about a job that is not in the store."""
    return JournalError("the journal has no such job", external_task_id=external_task_id)


def task_exists(external_task_id: str, task_id: str | None) -> JournalError:
    """Return the error for a create that would pay for a job twice."""
    return JournalError(
        "this job already has a task, so it must not be sent again",
        task_id=task_id,
        external_task_id=external_task_id,
    )


def warn_of_other_parameters(key: str, params: str) -> None:
    """Log that a known key has a new request, unless the note in *params* says that it is a later pass."""
    step = codec.unpack_note(params).get("pass")
    if not isinstance(step, dict) or step.get("before") is None:
        logger.warning("job %r has different parameters than before, so a new task is made", key)


def warn_of_two_tasks(external_task_id: str, known: str | None, task_id: str | None) -> None:
    """Log that the service has created two tasks with one id."""
    if None not in (task_id, known) and task_id != known:
        logger.warning("two tasks under the id %s: %s, and now %s", external_task_id, known, task_id)


class MemoryStore(JobStore):
    """The store of a client without a journal, which keeps each job of one process until it ends.

    At most *limit* records are kept, and beyond that the oldest is dropped. That is safe, because the id of a
    job with a key is derived from *run* and the key, so its task can still be found at the service. *clock*
    returns Unix seconds.
    """

    durable = False

    def __init__(
        self, *, run: str = "default", clock: Callable[[], float] = time.time, limit: int = MAX_MEMORY_JOBS
    ) -> None:
        self.run = run
        self._clock = clock
        self._limit = limit
        self._jobs: dict[str, JobRecord] = {}
        self._ids: dict[str, dict[str, str]] = {}  # by key and digest
        self._failed: OrderedDict[tuple[str, str], int] = OrderedDict()  # the last failed attempts

    async def mark_sending(self, external_task_id: str) -> None:
        """Record the time of a create. Raise `JournalError` if a task of the job is known."""
        job = self._jobs.get(external_task_id)
        if job is None:
            return
        if job.task_id is not None:
            raise task_exists(external_task_id, job.task_id)
        now, mark = self._clock(), str(asyncio.get_running_loop().time())
        self._jobs[external_task_id] = evolve(job, last_post_at=now, last_post_mark=mark, updated_at=now)

    async def post_age(self, job: JobRecord) -> float:
        """Return the seconds since the last create of *job* by the event loop's clock."""
        if job.last_post_mark is None:
            return await super().post_age(job)
        return max(0.0, asyncio.get_running_loop().time() - float(job.last_post_mark))

    async def get(self, external_task_id: str) -> JobRecord | None:
        """Return the record with this id if its job is open, or None."""
        return self._jobs.get(external_task_id)

    async def find(self, key: str, digest: str | None = None) -> JobRecord | None:
        """Return the newest open job of *key*, and of this *digest* if it is given, or None."""
        found = self._ids.get(key, {})
        name = next(reversed(found.values()), "") if digest is None else found.get(digest, "")
        return self._jobs.get(name)

    async def jobs(self, *states: JobState) -> AsyncIterator[JobRecord]:
        """Yield the open jobs in these states (all open jobs if none is given), oldest first."""
        for name in tuple(self._jobs):
            job = self._jobs.get(name)
            if job is not None and (not states or job.state in states):
                yield job

    def attempts(self) -> AsyncIterator[JobRecord]:
        """Yield the open jobs, as no other attempt is kept."""
        return self.jobs()

    async def counts(self) -> dict[JobState, int]:
        """Return the number of open jobs by state."""
        counts = dict.fromkeys(JobState, 0)
        for job in self._jobs.values():
            counts[job.state] += 1
        return counts

    async def _claim(
        self, draft: dict[str, Any], external_id: Callable[[int], str], after: int = 0
    ) -> JobRecord:
        key, digest = identity = draft["key"], draft["params_hash"]
        known = self._ids.get(key, {})
        open_job = self._jobs[known[digest]] if digest in known else None
        if open_job and open_job.attempt > after:
            return open_job
        if open_job:
            self._drop(open_job)
        attempt = max(self._failed.get(identity, 0), after) + 1
        job = JobRecord(external_id(attempt), attempt=attempt, **draft)
        if job.external_task_id in self._jobs:
            raise JournalError(
                "two jobs cannot share one external_task_id", external_task_id=job.external_task_id
            )
        if known:
            warn_of_other_parameters(key, draft["params"])
        while len(self._jobs) >= self._limit:
            self._drop(next(iter(self._jobs.values())))
        self._jobs[job.external_task_id] = job
        self._ids.setdefault(key, {})[digest] = job.external_task_id
        return job

    async def _transition(self, external_task_id: str, state: JobState, **values: Any) -> None:
        job = self._jobs.get(external_task_id)
        if job is None:
            return
        task_id = values.get("task_id")
        if state not in TRANSITIONS[job.state] or task_id not in {None, job.task_id or task_id}:
            warn_of_two_tasks(external_task_id, job.task_id, task_id)
        elif state in {JobState.SUBMITTED, JobState.UNKNOWN}:
            self._jobs[external_task_id] = evolve(job, state=state, **values, updated_at=self._clock())
        else:
            self._drop(job)
            if state is JobState.FAILED:
                self._note_failure((job.key, job.params_hash), job.attempt)

    def _drop(self, job: JobRecord) -> None:
        del self._jobs[job.external_task_id]
        digests = self._ids[job.key]
        del digests[job.params_hash]
        if not digests:
            del self._ids[job.key]

    def _note_failure(self, identity: tuple[str, str], attempt: int) -> None:
        self._failed[identity] = attempt
        self._failed.move_to_end(identity)
        if len(self._failed) > self._limit:
            self._failed.popitem(last=False)
