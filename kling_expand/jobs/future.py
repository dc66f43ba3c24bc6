"""Task records and the futures that wait for them; nothing here fetches.

One record per task holds what all its futures share:

    poll, callback, store, create ──deliver──> TaskRecord ──> every TaskFuture, iterator and callback

The registry finds the open records by either id. A record that turns out to be of a task already known
is merged into the other one, so slots, statistics and learned durations are counted once per task.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

from kling_expand.errors import DeadlineExceeded, KlingError, TaskFailed, TaskModerated
from kling_expand.models import NEXT, ExpandRequest, Image, Status, Task

_numbers = count(1)
_RISK_CONTROL = "risk control"  # what `task_status_msg` says of moderated tasks (live)


class Save(Protocol):
    """Brings the pictures of a task to disk; see `kling_expand.downloads.downloader`."""

    def __call__(
        self, task: Task, target: str | os.PathLike[str], *, name: str | None, deadline_at: float | None
    ) -> Awaitable[tuple[Path, ...]]: ...


@frozen
class ExpandResult:
    """A task that succeeded, and how to bring its pictures to disk.

    `files` is where an earlier run has put them, if a journal says so and they are all still there.
    """

    task: Task
    request: ExpandRequest | None = None
    name: str | None = None
    files: tuple[Path, ...] = ()
    _save: Save | None = field(default=None, repr=False, eq=False)
    _deadline_at: float | None = field(default=None, repr=False, eq=False)

    @property
    def images(self) -> tuple[Image, ...]:
        """The expanded pictures; their URLs live 30 days."""
        return self.task.images

    @property
    def task_id(self) -> str:
        """The service's id of the task."""
        return self.task.task_id

    async def save(self, target: str | os.PathLike[str] = ".") -> tuple[Path, ...]:
        """Bring every picture to disk, whole or not at all; paths in the order of `images`.

        *target* is a directory (pictures are named after the photo: ``dog-0.png``) or a template
        such as ``"out/{task_id}-{index}{ext}"`` of the fields `name index task_id
        external_task_id ext`. A watermarked picture lies beside its own. Raises `DownloadError`,
        `ResultExpired`, `DeadlineExceeded`, `InvalidRequest`.
        """
        if self._save is None:
            raise KlingError("this result has no client to download with", task_id=self.task_id)
        return await self._save(self.task, target, name=self.name, deadline_at=self._deadline_at)


def failure(task: Task, external_task_id: str | None = None) -> TaskFailed:
    """Why a failed task failed."""
    reason = task.task_status_msg or "the service gave no reason"
    kind = TaskModerated if _RISK_CONTROL in reason.lower() else TaskFailed
    return kind(reason, task_id=task.task_id, external_task_id=task.external_task_id or external_task_id)


class TaskRecord:
    """Everything known of one task, shared by all its futures.

    `any_id` is an id that the service can be asked by: the task's own once known, before that the one
    given. `number` is unique within the process; ids may change. `job` is what the runner keeps for a job
    of this client, and None for a task that was attached. `error` says why no snapshot will follow.
    """

    __slots__ = (
        "_callbacks", "_changed", "_given", "_merged", "_registry", "error", "job", "make_result", "number",
        "task",
    )  # fmt: skip

    def __init__(
        self, any_id: str, *, make_result: "Callable[[Task], ExpandResult] | None" = None, job: Any = None
    ) -> None:
        self.number = next(_numbers)
        self.task: Task | None = None
        self.error: KlingError | None = None
        self.job = job
        self.make_result = make_result
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
        if self.task is not None:
            return self.task.external_task_id or (self._given if self._given != self.task.task_id else None)
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

        Old, repeated and foreign snapshots change nothing and return False, so sources need not agree.
        """
        if self.done() or (self.task and not _is_newer(self.task, task)):
            return False
        self.task = task
        self._notify()
        return True

    def fail(self, error: KlingError) -> None:
        """End every future of this record with *error*; no snapshot will follow."""
        if not self.done():
            error.task_id = error.task_id or self.task_id
            error.external_task_id = error.external_task_id or self.external_task_id
            self.error = error
            self._notify()

    def add_done_callback(self, callback: "Callable[[TaskFuture], object]", future: "TaskFuture") -> None:
        """Call *callback* with *future* soon after the end."""
        if self.done():
            asyncio.get_running_loop().call_soon(callback, future)
        else:
            self._callbacks = (*self._callbacks, (callback, future))

    async def wait_changed(self) -> None:
        """Wait for the next snapshot, error or merge."""
        event = self._changed = self._changed or asyncio.Event()
        await event.wait()

    def merge_into(self, other: "TaskRecord") -> None:
        """Let *other* serve the futures of this record from now on."""
        self._merged = other
        callbacks, self._callbacks = self._callbacks, ()
        for callback, future in callbacks:
            other.add_done_callback(callback, future)
        self._wake()

    def _notify(self) -> None:
        if self._registry is not None:
            self._registry.changed(self)  # first, so that an awaiter that goes on finds its slot free
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
        """The open record of the task with this id, or None."""
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
                # The record of a job of ours holds its slots, so it is the one that stays.
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
        # A job whose create is under way learns of its task by the answer to that create.
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
    Cancelling one awaiter affects no other.
    """

    __slots__ = ("__weakref__", "_record", "deadline_at")

    def __init__(self, record: TaskRecord | str, *, deadline_at: float | None = None) -> None:
        self._record = TaskRecord(record) if isinstance(record, str) else record
        self.deadline_at = deadline_at

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
        """Whether the end is known."""
        return self.record.done()

    def add_done_callback(self, callback: Callable[["TaskFuture"], object]) -> None:
        """Call *callback* with this future soon after it is done."""
        self.record.add_done_callback(callback, self)

    async def accepted(self) -> Task:
        """Wait until the service has accepted the task and return its newest snapshot.

        Raises:
            KlingError: the job was refused, or its create could not be settled.
            DeadlineExceeded: the deadline passed first.
        """
        deadline_at = self._wait_until()
        while self.task is None:
            if self.error is not None:
                raise self.error
            await self._wait_changed(deadline_at)
        return self.task

    async def finished(self, *, within: float | None = None) -> bool:
        """Wait until done, at most *within* seconds, and return whether it is."""
        try:
            async with asyncio.timeout(within):
                while not self.done():
                    await self._wait_changed()
        except TimeoutError:
            pass
        return self.done()

    async def __aiter__(self) -> AsyncIterator[Task]:
        """Yield each newest snapshot up to the last; a slow reader does not see those between.

        Raises what `await` raises, except for a failed task: that is the last snapshot.
        """
        seen: Task | None = None
        deadline_at = self._wait_until()
        while True:
            if self.task is not None and self.task is not seen:
                seen = self.task
                yield seen
            elif self.error is not None:
                raise self.error
            elif self.done():
                return
            else:
                await self._wait_changed(deadline_at)

    def __await__(self) -> Generator[Any, None, ExpandResult]:
        return self._outcome().__await__()

    async def _outcome(self) -> ExpandResult:
        deadline_at = self._wait_until()
        while not self.done():
            await self._wait_changed(deadline_at)
        record = self.record
        if record.task is None or record.error is not None:
            raise record.error or KlingError("the future is done without a snapshot")
        if record.task.status is Status.FAILED:
            raise failure(record.task, record.external_task_id)
        return record.make_result(record.task) if record.make_result else ExpandResult(record.task)

    def _wait_until(self) -> float | None:
        """Return the deadline of a wait that begins now: none if it has passed already."""
        passed = self.deadline_at is not None and self.deadline_at <= asyncio.get_running_loop().time()
        return None if passed else self.deadline_at

    async def _wait_changed(self, deadline_at: float | None = None) -> None:
        """Wait for a change. Raise `DeadlineExceeded` where none has come by *deadline_at*."""
        record, task = self.record, self.task
        try:
            async with asyncio.timeout_at(deadline_at):
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


def _is_newer(known: Task, task: Task) -> bool:
    return task.task_id == known.task_id and task.status in NEXT[known.status]
