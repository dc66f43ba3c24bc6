"""What is a task one can await? A `TaskFuture` is told the news; it never fetches any."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
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


def _result(task: Task) -> ExpandResult:
    return ExpandResult(task)


class TaskFuture:
    """One task, for any number of awaiters, iterators and callbacks.

    `await future` gives the `ExpandResult` or raises: `TaskFailed` when the job failed, any other
    `KlingError` when the call did, `DeadlineExceeded` when *deadline* (loop time) passes first.
    A deadline is no failure: an await begun after it has no bound, and the task goes on.
    Cancelling an awaiter disturbs nobody else. `number` is its own within the process; ids may change.
    """

    __slots__ = (
        "__weakref__", "_bell", "_callbacks", "_error", "_given", "_result", "_task", "deadline", "number"
    )  # fmt: skip

    def __init__(
        self,
        any_id: str,
        *,
        deadline: float | None = None,
        result: Callable[[Task], ExpandResult] = _result,
    ) -> None:
        self.deadline = deadline
        self.number = next(_numbers)
        self._given = any_id
        self._result = result
        self._task: Task | None = None
        self._error: KlingError | None = None
        self._bell: asyncio.Event | None = None
        self._callbacks: tuple[Callable[[TaskFuture], object], ...] = ()

    def __repr__(self) -> str:
        state = self._error.__class__.__name__ if self._error else self._task and self._task.task_status
        return f"<TaskFuture {self.any_id} {state or 'not yet accepted'}>"

    @property
    def any_id(self) -> str:
        """An id the service can be asked by: its own once known, before that the one given."""
        return self._task.task_id if self._task else self._given

    @property
    def task_id(self) -> str | None:
        """The service's id, once the task is accepted."""
        return self._task.task_id if self._task else None

    @property
    def external_task_id(self) -> str | None:
        """Your id, or the one the client made; None while neither is known."""
        if self._task is not None:
            return self._task.external_task_id or (self._given if self._given != self._task.task_id else None)
        return self._given or None

    def rename(self, external_task_id: str) -> None:
        """Set the id of a job that has not been sent yet."""
        self._given = external_task_id

    @property
    def task(self) -> Task | None:
        """The newest snapshot; None before the task is accepted."""
        return self._task

    @property
    def error(self) -> KlingError | None:
        """Why no more news will come, if that is so. A failed *task* is in `task` instead."""
        return self._error

    def done(self) -> bool:
        """Whether the end is known."""
        return self._error is not None or (self._task is not None and self._task.status.final)

    def observe(self, news: Task) -> bool:
        """Take a snapshot from anyone: a poll, a webhook, a replayed journal.

        Old, repeated or foreign news changes nothing (False), so reporters need not agree.
        """
        if self.done() or (self._task and not _is_news(self._task, news)):
            return False
        self._task = news
        self._ring()
        return True

    def fail(self, error: KlingError) -> None:
        """No more news will come, because of *error*."""
        if not self.done():
            error.task_id = error.task_id or self.task_id
            error.external_task_id = error.external_task_id or self.external_task_id
            self._error = error
            self._ring()

    def add_done_callback(self, callback: Callable[["TaskFuture"], object]) -> None:
        """Have *callback* called with this future soon after it is done."""
        if self.done():
            asyncio.get_running_loop().call_soon(callback, self)
        else:
            self._callbacks = (*self._callbacks, callback)

    async def accepted(self) -> Task:
        """Wait until the service has the task; its newest snapshot. Raises why it never will, or
        `DeadlineExceeded`.
        """
        deadline_at = self._deadline_at()
        while self._task is None:
            if self._error is not None:
                raise self._error
            await self._news(deadline_at)
        return self._task

    async def finished(self, *, within: float | None = None) -> bool:
        """Wait until done, at most *within* seconds; say whether it is."""
        try:
            async with asyncio.timeout(within):
                while not self.done():
                    await self._news()
        except TimeoutError:
            pass
        return self.done()

    async def __aiter__(self) -> AsyncIterator[Task]:
        """Each newest snapshot, the last one included; a slow reader does not see those between.

        Raises what `await` would, except for a failed task: that is its last snapshot.
        """
        seen: Task | None = None
        deadline_at = self._deadline_at()
        while True:
            if self._task is not None and self._task is not seen:
                seen = self._task
                yield seen
            elif self._error is not None:
                raise self._error
            elif self.done():
                return
            else:
                await self._news(deadline_at)

    def __await__(self) -> Generator[Any, None, ExpandResult]:
        return self._outcome().__await__()

    async def _outcome(self) -> ExpandResult:
        deadline_at = self._deadline_at()
        while not self.done():
            await self._news(deadline_at)
        if self._task is None or self._error is not None:
            raise self._error or KlingError("done without news")
        if self._task.status is Status.FAILED:
            raise failure(self._task, self.external_task_id)
        return self._result(self._task)

    def _deadline_at(self) -> float | None:
        """The deadline of a wait that begins now."""
        passed = self.deadline is not None and self.deadline <= asyncio.get_running_loop().time()
        return None if passed else self.deadline

    async def _news(self, deadline_at: float | None = None) -> None:
        """Wait until something changes. Raises `DeadlineExceeded` where nothing has by *deadline_at*."""
        bell = self._bell = self._bell or asyncio.Event()
        try:
            async with asyncio.timeout_at(deadline_at):
                await bell.wait()
        except TimeoutError:
            if not bell.is_set():
                outlook = "the task goes on" if self._task else "whether a task came of it is not known yet"
                raise DeadlineExceeded(
                    f"time is up; {outlook}, and can be awaited again",
                    task_id=self.task_id,
                    external_task_id=self.external_task_id,
                ) from None

    def _ring(self) -> None:
        if self.done() and self._callbacks:  # before any awaiter goes on, so that it finds its slot free
            callbacks, self._callbacks = self._callbacks, ()
            loop = asyncio.get_running_loop()
            for callback in callbacks:
                loop.call_soon(callback, self)
        if self._bell is not None:
            self._bell.set()
            self._bell = None


def _is_news(known: Task, news: Task) -> bool:
    return news.task_id == known.task_id and news.status in NEXT[known.status]
