"""Task records and the futures that wait for them; nothing here fetches.

One record per task holds what all its futures share:

    poll, callback, store, create ──deliver──> TaskRecord ──> every TaskFuture, iterator and callback

The registry finds the open records by either id. If the task of a record turns out to have another record
already, the two are merged, so slots, statistics and learned durations are counted once per task.
"""

import asyncio
import copy
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from attrs import evolve, field, frozen

from kling_expand.errors import (
    DeadlineExceeded,
    InvalidRequest,
    KlingError,
    NotSubmitted,
    TaskFailed,
    TaskModerated,
)
from kling_expand.models import NEXT, ExpandRequest, Image, Status, Task

_numbers = count(1)
_RISK_CONTROL = "risk control"  # what `task_status_msg` says of moderated tasks (live)

logger: logging.Logger = logging.getLogger(__name__)


def deadline_at(deadline: float | None) -> float | None:
    """Return the moment of the loop's clock that is *deadline* seconds from now, or None without one.

    Raises:
        InvalidRequest: when it is not above 0.
    """
    if deadline is None:
        return None
    if not deadline > 0:
        raise InvalidRequest("deadline", deadline, "must be above 0 seconds")
    return asyncio.get_running_loop().time() + deadline


class Save(Protocol):
    """A function that saves the pictures of a task; see `kling_expand.downloads.downloader`."""

    def __call__(
        self, task: Task, target: str | os.PathLike[str], *, name: str | None, deadline_at: float | None
    ) -> Awaitable[tuple[Path, ...]]:
        """Save the pictures and return their paths."""
        ...


class Cancellable(Protocol):
    """The interface of a job that its futures use."""

    @property
    def sent(self) -> bool:
        """Whether a task exists or may exist, so that the job cannot be taken back."""
        ...

    def cancel(self) -> bool:
        """Cancel the job if it was not sent, and return whether it is cancelled."""
        ...


@frozen
class ExpandResult:
    """A task that succeeded, and the way to save its pictures.

    `files` are the paths where an earlier run saved them, according to the journal, if all of them still
    exist. `name` is the photo's own name, after which the pictures are named. It may begin with folders, as
    in ``2024/dog``: a directory repeats them, and templates have the field ``folder``.
    """

    task: Task
    request: ExpandRequest | None = None
    name: str | None = None
    files: tuple[Path, ...] = ()
    _save: Save | None = field(default=None, repr=False, eq=False)

    @property
    def images(self) -> tuple[Image, ...]:
        """The expanded pictures. Their URLs live 30 days (documented)."""
        return self.task.images

    @property
    def task_id(self) -> str:
        """The service's id of the task."""
        return self.task.task_id

    @property
    def external_task_id(self) -> str | None:
        """The caller's id of the task, or the one the client made; None where neither is known."""
        return self.task.external_task_id

    async def save(
        self, target: str | os.PathLike[str] = ".", *, deadline: float | None = None
    ) -> tuple[Path, ...]:
        """Save every picture, each complete or not at all, and return their paths in the order of `images`.

        *target* is a directory (pictures are named after the photo: ``dog-0.png``) or a template such as
        ``"out/{task_id}-{index}{ext}"`` with the fields ``folder name index task_id external_task_id ext``. A
        watermarked picture is saved beside the plain one. *deadline* seconds from now bound the call. Without
        one the settings `download_timeout`, `read_timeout` and `retry_timeout` bound each picture. The
        deadline of the job has no effect here, as its pictures are paid.

        Raises:
            ResultExpired: the service no longer keeps a picture; submit the job again with ``fresh=True``.
            DownloadError: a picture could not be fetched or written.
            DeadlineExceeded: the deadline passed. The result can be saved again.
            InvalidRequest: *target* or *deadline* is wrong.
            ClientClosed: the client was closed.
        """
        if self._save is None:
            raise KlingError("this result has no client to download with", task_id=self.task_id)
        return await self._save(self.task, target, name=self.name, deadline_at=deadline_at(deadline))


def failure(task: Task, external_task_id: str | None = None) -> TaskFailed:
    """Return the exception for a failed task."""
    reason = task.task_status_msg or "the service gave no reason"
    kind = TaskModerated if _RISK_CONTROL in reason.lower() else TaskFailed
    return kind(reason, task_id=task.task_id, external_task_id=task.external_task_id or external_task_id)


class TaskRecord:
    """Everything known of one task, shared by all its futures.

    `any_id` is an id that the service can be asked by: the task's own once known, before that the one
    given. `number` is unique within the process; ids may change. `job` is what the runner keeps for a job
    of this client, and None for a task that was attached. `submissions` is how many calls rely on the
    record. `error` says why no snapshot will follow. `pictures` is how many a success must have to be
    believed at once.
    """

    __slots__ = (
        "_callbacks", "_changed", "_given", "_merged", "_registry", "error", "job", "make_result", "number",
        "pictures", "submissions", "task",
    )  # fmt: skip

    def __init__(
        self,
        any_id: str,
        *,
        make_result: "Callable[[TaskRecord, Task], ExpandResult] | None" = None,
        job: Cancellable | None = None,
        pictures: int = 0,
    ) -> None:
        self.number: int = next(_numbers)
        self.task: Task | None = None
        self.error: KlingError | None = None
        self.job: Cancellable | None = job
        self.pictures: int = pictures
        self.make_result: Callable[[TaskRecord, Task], ExpandResult] | None = make_result
        self.submissions: int = 1
        self._given = any_id
        self._registry: TaskRegistry | None = None
        self._merged: TaskRecord | None = None
        self._changed: asyncio.Event | None = None
        self._callbacks: tuple[tuple[Callable[[TaskFuture], object], TaskFuture], ...] = ()

    def __repr__(self) -> str:
        state = self.error.__class__.__name__ if self.error else self.task and self.task.task_status
        return f"<TaskRecord {self.any_id} {state or 'not yet accepted'}>"

    @property
    def canonical(self) -> "TaskRecord":
        """This record, or the one it was merged into."""
        record = self
        while record._merged is not None:
            record = record._merged
        return record

    @property
    def any_id(self) -> str:
        """The task's id once known, before that the id given."""
        return self.task.task_id if self.task else self._given

    @property
    def ids(self) -> set[str]:
        """Every id the task is known by."""
        ids = {self._given, self.any_id, self.external_task_id or ""}
        return ids - {""}

    @property
    def task_id(self) -> str | None:
        """The service's id, once the task is accepted."""
        return self.task.task_id if self.task else None

    @property
    def external_task_id(self) -> str | None:
        """The caller's id or the one the client made; None while neither is known."""
        if self.task is not None and self._given in {"", self.task.task_id}:
            return self.task.external_task_id
        return self._given or None

    def rename(self, external_task_id: str) -> None:
        """Set the id of a job that was not sent yet."""
        if self._registry is not None:
            self._registry.forget_ids(self)
        self._given = external_task_id
        if self._registry is not None:
            self._registry.changed(self)

    def done(self) -> bool:
        """Whether the end is known."""
        return self.error is not None or (self.task is not None and self.task.status.final)

    def deliver(self, task: Task) -> bool:
        """Take a snapshot from a poll, a callback, the store or a create.

        Old, repeated and foreign snapshots change nothing and return False, so sources need not agree. The
        record's own `external_task_id` stays, as not every snapshot has one.
        """
        if self.done() or (self.task and not _is_newer(self.task, task)):
            return False
        external_task_id = None if self._given == task.task_id else self._given
        external_task_id = external_task_id or (self.task.external_task_id if self.task else None)
        if external_task_id and external_task_id != task.external_task_id:
            task = evolve(task, external_task_id=external_task_id)
        self.task = task
        self._notify()
        return True

    def fail(self, error: KlingError) -> None:
        """End every future of this record with *error*; no snapshot will follow."""
        if not self.done():
            error.task_id = error.task_id or self.task_id
            error.external_task_id = error.external_task_id or self.external_task_id
            self.error = _without_tracebacks(error)
            self._notify()

    def add_done_callback(self, callback: "Callable[[TaskFuture], object]", future: "TaskFuture") -> None:
        """Call *callback* with *future* soon after the end."""
        if self.done():
            asyncio.get_running_loop().call_soon(callback, future)
        else:
            self._callbacks = (*self._callbacks, (callback, future))

    def remove_done_callback(self, callback: "Callable[[TaskFuture], object]", future: "TaskFuture") -> int:
        """Forget *callback* of *future*, and return how often it was added."""
        kept = tuple(each for each in self._callbacks if each != (callback, future))
        removed, self._callbacks = len(self._callbacks) - len(kept), kept
        return removed

    def withdraw(self, future: "TaskFuture") -> "TaskRecord":
        """Return a separate record for *future*, which is cancelled while other submissions continue."""
        self.submissions -= 1
        own = TaskRecord(self._given)
        own.fail(NotSubmitted("taken back before it was sent; another submission of the same job goes on"))
        for callback, owner in self._callbacks:
            if owner is future:
                own.add_done_callback(callback, future)
        self._callbacks = tuple(each for each in self._callbacks if each[1] is not future)
        self._wake()
        return own

    async def wait_changed(self) -> None:
        """Wait for the next snapshot, error or merge."""
        event = self._changed = self._changed or asyncio.Event()
        await event.wait()

    def merge_into(self, other: "TaskRecord") -> None:
        """Move the futures of this record to *other*."""
        self._merged = other
        other.submissions += self.submissions
        callbacks, self._callbacks = self._callbacks, ()
        for callback, future in callbacks:
            other.add_done_callback(callback, future)
        self._wake()

    def _notify(self) -> None:
        if self._registry is not None:
            self._registry.changed(self)  # first, so that the slots are free when the awaiters continue
        if self.done() and self._callbacks:
            callbacks, self._callbacks = self._callbacks, ()
            loop = asyncio.get_running_loop()
            for callback, future in callbacks:
                loop.call_soon(callback, future)
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class TaskRegistry:
    """The open records of one client, found by either id.

    `on_end` is called once with each record whose end becomes known, and `on_merge` with each record that
    another one replaces; neither may raise.
    """

    def __init__(self) -> None:
        self.on_end: list[Callable[[TaskRecord], object]] = []
        self.on_merge: list[Callable[[TaskRecord], object]] = []
        self._records: dict[TaskRecord, None] = {}
        self._by_id: dict[str, TaskRecord] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[TaskRecord]:
        return iter(tuple(self._records))

    def get(self, any_id: str) -> TaskRecord | None:
        """Return the open record of the task with this id, or None."""
        return self._by_id.get(any_id)

    def add(self, record: TaskRecord) -> TaskRecord:
        """Open *record*, or merge it into the open record of the same task; return the one that serves."""
        record = record.canonical
        if record not in self._records and not record.done():
            self._records[record] = None
            record._registry = self  # noqa: SLF001 - the two classes are one unit
            self.changed(record)
        return record.canonical

    def forget_ids(self, record: TaskRecord) -> None:
        """Stop finding *record* by its present ids."""
        for any_id in record.ids:
            if self._by_id.get(any_id) is record:
                del self._by_id[any_id]

    def changed(self, record: TaskRecord) -> None:
        """Index the ids of *record*, or close it if its end is known."""
        if record not in self._records:
            return
        if record.done():
            self._close(record)
            for hook in self.on_end:
                hook(record)
            return
        for any_id in record.ids:
            other = self._by_id.setdefault(any_id, record)
            if other is not record:
                # The record of a job of this client holds its slots, so it is kept.
                stays, goes = (record, other) if other.job is None and record.job else (other, record)
                self._merge(goes, stays)
                if goes is record:
                    return

    def _merge(self, goes: TaskRecord, stays: TaskRecord) -> None:
        self._close(goes)
        for any_id in goes.ids:
            self._by_id.setdefault(any_id, stays)
        goes.merge_into(stays)
        for hook in self.on_merge:
            hook(goes)
        # A job whose create is in progress gets its task from the answer to that create.
        if goes.task is not None and (stays.job is None or stays.task is not None):
            stays.deliver(goes.task)

    def _close(self, record: TaskRecord) -> None:
        self._records.pop(record, None)
        record._registry = None  # noqa: SLF001 - the two classes are one unit
        self.forget_ids(record)


class TaskFuture:
    """One task, for any number of awaiters, iterators and callbacks.

    `await future` returns the `ExpandResult` or raises: `TaskFailed` when the task failed, any other
    `KlingError` when a call did, `DeadlineExceeded` when *deadline_at* (loop time) passes first.
    A deadline is not a failure: the task goes on, and an await begun after the deadline has no bound.
    Cancelling one awaiter affects no other. Where a task exists or may exist by then, its ids are logged and
    added to the `CancelledError` as a note.
    """

    __slots__ = ("__weakref__", "_record", "deadline_at")

    def __init__(self, record: TaskRecord | str, *, deadline_at: float | None = None) -> None:
        self._record = TaskRecord(record) if isinstance(record, str) else record
        self.deadline_at: float | None = deadline_at

    def __repr__(self) -> str:
        return f"<TaskFuture{repr(self.record).removeprefix('<TaskRecord')}"

    @property
    def record(self) -> TaskRecord:
        """The record shared by all futures of the task."""
        if self._record._merged is not None:  # noqa: SLF001 - the two classes are one unit
            self._record = self._record.canonical
        return self._record

    @property
    def any_id(self) -> str:
        """An id the service can be asked by: the task's own once known, before that the one given."""
        return self.record.any_id

    @property
    def number(self) -> int:
        """The job's number, unique within the process."""
        return self.record.number

    @property
    def task_id(self) -> str | None:
        """The service's id, once the task is accepted."""
        return self.record.task_id

    @property
    def external_task_id(self) -> str | None:
        """The caller's id or the one the client made; None while neither is known."""
        return self.record.external_task_id

    @property
    def task(self) -> Task | None:
        """The newest snapshot; None before the task is accepted."""
        return self.record.task

    @property
    def error(self) -> KlingError | None:
        """The exception that ended this future, or None. A failed task is reported by `task`."""
        return self.record.error

    def done(self) -> bool:
        """Return whether the end is known."""
        return self.record.done()

    def cancel(self) -> bool:
        """Cancel the job if nothing was sent for it yet, and return whether it is cancelled.

        A job that is taken back costs nothing, and its future ends with `NotSubmitted`. There is no remote
        cancel, so a task that exists goes on. Other submissions of the same job go on, too.
        """
        record = self.record
        if record.done() or record.job is None or record.job.sent:
            return False
        if record.submissions == 1:
            return record.job.cancel()
        self._record = record.withdraw(self)
        return True

    def cancelled(self) -> bool:
        """Return whether the job was taken back."""
        return isinstance(self.error, NotSubmitted)

    def exception(self) -> KlingError | None:
        """Return what awaiting this future raises, or None for a task that succeeded.

        Raises:
            asyncio.InvalidStateError: the future is not done.
        """
        if not self.done():
            raise asyncio.InvalidStateError("the future is not done")
        record = self.record
        if record.error is not None or record.task is None:
            return _copy(record.error or KlingError("the future is done without a snapshot"))
        failed = record.task.status is Status.FAILED
        return failure(record.task, record.external_task_id) if failed else None

    def add_done_callback(self, callback: Callable[["TaskFuture"], object]) -> None:
        """Call *callback* with this future soon after it is done."""
        self.record.add_done_callback(callback, self)

    def remove_done_callback(self, callback: Callable[["TaskFuture"], object]) -> int:
        """Forget *callback*, and return how often it was added."""
        return self.record.remove_done_callback(callback, self)

    async def accepted(self) -> Task:
        """Wait until the service has accepted the task and return its newest snapshot.

        Raises:
            KlingError: the job was refused, or its create could not be settled.
            DeadlineExceeded: the deadline passed first.
        """
        wait_until = self._wait_until()
        while self.task is None:
            if self.error is not None:
                raise _copy(self.error)
            await self._wait_changed(wait_until)
        return self.task

    async def finished(self, *, within: float | None = None) -> bool:
        """Wait until done, at most *within* seconds, and return whether it is."""
        wait_until = None if within is None else asyncio.get_running_loop().time() + within
        try:
            while not self.done():
                await self._wait_changed(wait_until)
        except DeadlineExceeded:
            pass
        return self.done()

    async def __aiter__(self) -> AsyncIterator[Task]:
        """Yield each newest snapshot up to the last; a slow reader does not see those between.

        Raises:
            KlingError: whatever `await` raises, except for a failed task, which is the last snapshot.
        """
        seen: Task | None = None
        wait_until = self._wait_until()
        while True:
            if self.task is not None and self.task is not seen:
                seen = self.task
                yield seen
            elif self.error is not None:
                raise _copy(self.error)
            elif self.done():
                return
            else:
                await self._wait_changed(wait_until)

    def __await__(self) -> Generator[Any, None, ExpandResult]:
        return self._outcome().__await__()

    async def _outcome(self) -> ExpandResult:
        wait_until = self._wait_until()
        while not self.done():
            await self._wait_changed(wait_until)
        record, error = self.record, self.exception()
        if error is not None or record.task is None:
            raise error or KlingError("the future is done without a snapshot")
        return record.make_result(record, record.task) if record.make_result else ExpandResult(record.task)

    def _wait_until(self) -> float | None:
        """Return the deadline of a wait that begins now, or None if it has passed already."""
        passed = self.deadline_at is not None and self.deadline_at <= asyncio.get_running_loop().time()
        return None if passed else self.deadline_at

    async def _wait_changed(self, wait_until: float | None = None) -> None:
        """Wait for a change. Raise `DeadlineExceeded` if none comes by *wait_until*."""
        record, task = self.record, self.task
        try:
            async with asyncio.timeout_at(wait_until):
                await record.wait_changed()
        except TimeoutError:
            if self.done() or self.task is not task or self.record is not record:
                return
            outlook = "the task goes on" if task else "whether a task was created is not known yet"
            raise DeadlineExceeded(
                f"time is up; {outlook}, and the future can be awaited again",
                task_id=self.task_id,
                external_task_id=self.external_task_id,
            ) from None
        except asyncio.CancelledError as error:
            self._note_ids(error)
            raise

    def _note_ids(self, error: asyncio.CancelledError) -> None:
        """Log the ids of a task that continues without this awaiter, and add them to *error* as a note."""
        record = self.record
        if record.done() or (record.task is None and not (record.job and record.job.sent)):
            return
        note = (
            "a wait was cancelled while its task goes on at the service: "
            f"task_id={record.task_id}, external_task_id={record.external_task_id}"
        )
        error.add_note(note)
        logger.warning(note)


def _is_newer(known: Task, task: Task) -> bool:
    return task.task_id == known.task_id and task.status in NEXT[known.status]


def _copy(error: KlingError) -> KlingError:
    """Return a copy to raise: a shared exception would collect the frames and notes of every awaiter."""
    fresh = copy.copy(error)
    fresh.__cause__ = error.__cause__
    fresh.__suppress_context__ = True
    if hasattr(error, "__notes__"):
        fresh.__notes__ = list(error.__notes__)
    return fresh


def _without_tracebacks(error: KlingError) -> KlingError:
    """Remove the tracebacks of *error* and its causes, which may hold a photo, and return it."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each.__context__ = None
        each = each.__cause__
    return error
