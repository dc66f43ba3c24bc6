"""Task records and the futures that wait for them, without any I/O.

One record per task holds the state that all its futures share:

    poll, callback, store, create ──deliver──> TaskRecord ──> every TaskFuture, iterator and done callback

The registry finds open records by either of their ids. If a task turns out to have two records, they are
merged, so slots, statistics and learned durations are counted once per task.
"""

import asyncio
import contextvars
import copy
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from attrs import evolve, field, frozen

from kling_expand.errors import (
    DeadlineExceeded,
    InvalidRequest,
    KlingError,
    NotSubmitted,
    TaskFailed,
    TaskModerated,
)
from kling_expand.geometry import shape_name
from kling_expand.models import NEXT, ExpandRequest, Image, Status, Task, check, portable
from kling_expand.serialization import Serializable, to_json

if TYPE_CHECKING:
    from kling_expand.downloads.files import OutputPaths, SaveOptions
    from kling_expand.pictures.convert import Metadata

LOGGED_IDS = 20  # jobs that one log line names at most

_numbers = count(1)
_RISK_CONTROL = "risk control"  # `task_status_msg` of a moderated task (observed)

logger: logging.Logger = logging.getLogger(__name__)


def deadline_at(deadline: float | None) -> float | None:
    """Return the loop time that is *deadline* seconds from now, or None if there is no deadline.

    Raises:
        InvalidRequest: if *deadline* is not above 0.
    """
    if deadline is None:
        return None
    if not deadline > 0:
        raise InvalidRequest("deadline", deadline, "must be above 0 seconds")
    return asyncio.get_running_loop().time() + deadline


class Save(Protocol):
    """A function that saves the pictures of a task (see `kling_expand.downloads.downloader`)."""

    def __call__(
        self,
        task: Task,
        target: str | os.PathLike[str],
        options: "SaveOptions",
        /,
        *,
        deadline_at: float | None,
    ) -> Awaitable[tuple[Path, ...]]:
        """Save the pictures and return their paths."""
        ...


class Read(Protocol):
    """A function that yields one picture of a task in chunks."""

    def __call__(
        self, task: Task, position: int, /, *, deadline_at: float | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of the picture at *position*, which counts the images in index order."""
        ...


class SubmittedJob(Protocol):
    """The interface of a job that its futures use."""

    @property
    def queued(self) -> bool:
        """Whether the job waits for slots."""
        ...

    @property
    def sent(self) -> bool:
        """Whether a task exists or may exist, so that the job cannot be cancelled."""
        ...

    @property
    def found(self) -> bool:
        """Whether the task existed before this client sent anything for the job."""
        ...

    @property
    def recorded_id(self) -> str | None:
        """The id under which the store has recorded the job, or None if it has not."""
        ...

    @property
    def final_id(self) -> str | None:
        """The id that the caller or the store gave the job, or None if neither has done so yet."""
        ...

    def cancel(self, *, for_good: bool = False) -> bool:
        """Cancel the job if it has not been sent yet, and return whether it is cancelled.

        With *for_good*, no later run resumes it from the store.
        """
        ...


@frozen(eq=False)
class ResultImage(Image):
    """An expanded picture whose bytes can be read.

    It equals the task's own `Image`, which has the same `index`, `url` and `watermark_url`.
    """

    _read: Callable[[float | None], AsyncGenerator[bytes, None]] | None = field(default=None, repr=False)

    async def read(self, *, deadline: float | None = None) -> bytes:
        """Return the whole picture, after the same checks as in `ExpandResult.save`.

        *deadline* is in seconds from now.

        Raises:
            KlingError: for the same reasons as in `ExpandResult.save`.
        """
        return b"".join([chunk async for chunk in self.stream(deadline=deadline)])

    async def stream(self, *, deadline: float | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the picture in chunks, once it has been downloaded completely.

        *deadline* is in seconds from now.

        Raises:
            KlingError: for the same reasons as in `ExpandResult.save`.
        """
        check(deadline=deadline)
        if self._read is None:
            raise _without_client()
        async with aclosing(self._read(deadline_at(deadline))) as chunks:
            async for chunk in chunks:
                yield chunk

    @property
    def _plain(self) -> Image:
        return Image(self.index, self.url, self.watermark_url)

    def __eq__(self, other: object) -> bool:
        return self._plain == (other._plain if isinstance(other, ResultImage) else other)

    def __hash__(self) -> int:
        return hash(self._plain)

    def __reduce__(self) -> Any:
        return ResultImage, (self.index, self.url, self.watermark_url)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self


@frozen
class ExpandResult(Serializable):
    """A succeeded task, with methods to save and read its pictures.

    `task` is the task's final snapshot. `request` is the request, or None for an attached task. `files` are
    the paths of the newest earlier save, according to the journal, whose pictures all still exist. `files` is
    empty if there is no such save. *saves* has the paths of every such save, including those of other jobs
    with an identical photo. `name` is the photo's name, from which file names are formed. `shape` is the name
    of the shape, by default as in `geometry.shape_name`. `earlier` is the result of the previous pass, whose
    picture was the input of this one, or None.

    If the service lists fewer pictures than ordered, `save` reads the task again, as some may be listed late.

    A result can be pickled. The unpickled copy has the URLs but no client, so it cannot save or read.
    """

    task: Task
    request: ExpandRequest | None = None
    name: str | None = None
    files: tuple[Path, ...] = ()
    earlier: "ExpandResult | None" = None
    shape: str | None = None
    _saves: tuple[tuple[Path, ...], ...] = field(default=(), repr=False, eq=False)  # see *saves*
    _save: Save | None = field(default=None, repr=False, eq=False)
    _read: Read | None = field(default=None, repr=False, eq=False)

    @property
    def images(self) -> tuple[ResultImage, ...]:
        """The expanded pictures, sorted by index. Their URLs are valid for 30 days (documented)."""
        return tuple(
            ResultImage(image.index, image.url, image.watermark_url, self._reader(position))
            for position, image in enumerate(sorted(self.task.images, key=lambda image: image.index))
        )

    @property
    def task_id(self) -> str:
        """The service's id of the task."""
        return self.task.task_id

    @property
    def external_task_id(self) -> str | None:
        """The caller's id or the generated one, or None if neither is known."""
        return self.task.external_task_id

    async def save(
        self,
        target: str | os.PathLike[str] = ".",
        *,
        overwrite: bool = False,
        full_size: bool | str | os.PathLike[str] = False,
        format: str | None = None,  # noqa: A002 - as in Pillow's `save`
        quality: int | None = None,
        metadata: bool | str | os.PathLike[str] = False,
        deadline: float | None = None,
    ) -> tuple[Path, ...]:
        """Save every picture, each complete or not at all, and return their paths in the order of `images`.

        *target* is a directory, in which pictures are named after the photo (``dog-0.png``), or a template
        such as ``"out/{folder}/{task_id}-{index}{ext}"``. Its fields: ``name index task_id ext key shape``,
        ``external_task_id``, ``folder`` (the photo's own) and ``path`` (the folders that `name` begins with).

        A leading ``~`` is the user's home. If another file has the name, the task's id is appended, unless
        *overwrite* is set. Pictures already there are not downloaded again. Watermarked copies are saved too.

        *format* (``jpeg``, ``png``, ``webp`` or ``tiff``) converts each picture, for JPEG and WebP with a
        *quality* of 1 to 100 (default 92). *metadata* adds the EXIF data and the color profile of the photo.
        *full_size* also saves each picture at the photo's scale, with the photo's pixels, and returns those
        paths (``dog-0-full.jpg``). *metadata* and *full_size* may be the path of the photo. All need the
        extra `images`.

        *deadline* limits the call, in seconds from now. Without it, `download_timeout` limits each picture.

        Raises:
            ResultExpired: if the service no longer keeps a picture; submit the job again with ``fresh=True``.
            DownloadError: if a picture could not be fetched or written.
            DeadlineExceeded: if the deadline passes. The result can be saved again.
            InvalidRequest: if an argument is wrong, or *full_size* or *metadata* is set for a photo at a URL.
            PictureMismatch: if the photo was not found in a picture. The service's picture is still saved.
            MissingExtra: if the extra `images` is not installed.
            ClientClosed: if the client was closed.
        """
        check(target=target, overwrite=overwrite, full_size=full_size, metadata=metadata, deadline=deadline)
        if self._save is None:
            raise _without_client(self.task_id)
        plain = quality if format or not full_size else None
        options = self._options(overwrite=overwrite, format=format, quality=plain)
        if metadata:
            options = evolve(options, metadata=await self._metadata(None if metadata is True else metadata))
        if full_size:
            from kling_expand.downloads.full_size import save_full_size  # imported here, as it needs Pillow

            finish = partial(save_full_size, self, target, options, photo=full_size, quality=quality)
            options = evolve(options, finish=finish)
        return await self._save(self.task, target, options, deadline_at=deadline_at(deadline))

    async def _metadata(self, photo: str | os.PathLike[str] | None) -> "Metadata":
        from kling_expand.pictures.convert import read_metadata  # imported here, as it needs Pillow

        request = portable(self.request)
        source = request.image if photo is None and request is not None else photo
        return await asyncio.to_thread(read_metadata, source)

    def saved_at(self, target: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Return the paths of pictures that an earlier run saved where `save` would put them, or ``()``.

        The contents of the files are not checked, so an edited picture counts as saved.

        Raises:
            InvalidRequest: if *target* is invalid.
        """
        from kling_expand.downloads.files import output_paths  # imported here, as many never save

        check(target=target)
        paths = output_paths(self.task, target, self._options())
        return next(filter(None, map(paths.locate, (self.files, *self._saves))), ())

    def _options(self, **given: Any) -> "SaveOptions":
        from kling_expand.downloads.files import SaveOptions, source_folder  # imported here: many never save

        request = self.request
        return SaveOptions(
            name=self.name,
            key=request.key if request else None,
            folder=source_folder(request.image) if request else None,
            shape=self.shape or (shape_name(request.geometry) if request else None),
            watermark=request is None or request.watermark,
            pictures=request.n if request else 1,
            **given,
        )

    async def upload(
        self,
        url: str,
        *,
        overwrite: bool = False,
        full_size: bool | str | os.PathLike[str] = False,
        format: str | None = None,  # noqa: A002 - as in `save`
        quality: int | None = None,
        deadline: float | None = None,
    ) -> tuple[str, ...]:
        """Save every picture to an object store, such as ``"s3://bucket/out/"``, and return their URLs.

        Names, *full_size*, *format*, *quality* and *deadline* are as in `save`. An existing object with
        different content is replaced only with *overwrite*, unless two programs write it at the same moment.
        This needs the extra `objects` and the fsspec package of the object store.

        Raises:
            KlingError: if `save` fails.
            MissingExtra: if an extra is not installed.
            InvalidRequest: if *url* is not a URL of an object store.
            DownloadError: if the store cannot be written.
        """
        from kling_expand.downloads.objects import Upload  # imported here, as few programs upload

        check(url=url, overwrite=overwrite, full_size=full_size, deadline=deadline)
        upload = Upload(url, overwrite=overwrite)
        with upload.folder() as folder:
            save = self.save(folder, full_size=full_size, format=format, quality=quality, deadline=deadline)
            return await upload.run(await save, self.task_id)

    async def image(
        self,
        position: int = 0,
        *,
        full_size: bool | str | os.PathLike[str] = False,
        deadline: float | None = None,
    ) -> Any:
        """Return the picture at *position* in `images` as a PIL image, without writing a file.

        With *full_size*, it has the photo's scale and contains the photo's own pixels, as in `save`.
        *deadline* is in seconds from now. This needs the extra `images`.

        Raises:
            KlingError: for the same reasons as in `save`.
        """
        check(position=position, full_size=full_size, deadline=deadline)
        from kling_expand.downloads.full_size import image_of  # imported here, as it needs Pillow

        try:
            async with asyncio.timeout_at(deadline_at(deadline)):
                return await image_of(self, position, full_size)
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while a picture was being made", task_id=self.task_id
            ) from None

    async def read(self, *, deadline: float | None = None) -> tuple[bytes, ...]:
        """Return the bytes of every picture, in the order of `images`, without writing a file.

        *deadline* is in seconds from now.

        Raises:
            KlingError: for the same reasons as in `save`.
        """
        from kling_expand.downloads.files import all_ended  # imported here, as many callers never read

        return tuple(await all_ended(*(image.read(deadline=deadline) for image in self.images)))

    def to_dict(self) -> dict[str, Any]:
        """Return the ids, the images, the files, the request and the task as JSON types."""
        ids = {"task_id": self.task_id, "external_task_id": self.external_task_id}
        return ids | {"images": to_json(self.task.images)} | super().to_dict()

    def _reader(self, position: int) -> Callable[[float | None], AsyncGenerator[bytes, None]] | None:
        read = self._read
        if read is None:
            return None
        return lambda deadline_at: read(self.task, position, deadline_at=deadline_at)

    def __reduce__(self) -> Any:
        return ExpandResult, (
            self.task,
            portable(self.request),
            self.name,
            self.files,
            self.earlier,
            self.shape,
        )

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self  # it is immutable, and a copy has the same client


def _without_client(task_id: str | None = None) -> KlingError:
    advice = "call `attach` on an open client to get the result again"
    return KlingError(f"this result has no client to download with; {advice}", task_id=task_id)


def task_failure(task: Task, external_task_id: str | None = None) -> TaskFailed:
    """Return the exception for a failed task."""
    reason = task.task_status_msg or "the service gave no reason"
    kind = TaskModerated if _RISK_CONTROL in reason.lower() else TaskFailed
    return kind(reason, task_id=task.task_id, external_task_id=task.external_task_id or external_task_id)


_Callback = tuple[Callable[["TaskFuture"], object], "TaskFuture", contextvars.Context]


class TaskRecord:
    """The state of one task, shared by all its futures.

    `any_id` is an id that the service accepts in a query: the `task_id` once it is known, the external id
    before that. `number` is unique within the process, while ids may change. `job` is the runner's job, or
    None for an attached task. `submissions` counts the submissions that share the record. `error` says why no
    snapshot will follow. `pictures` is the number of pictures that a success must have to be complete.
    `unretrieved` counts the futures, and is None once a caller has retrieved the outcome. An outcome that no
    caller has retrieved is logged when the last future is garbage-collected or the client closes.
    """

    __slots__ = (
        "_callbacks", "_changed", "_known_id", "_merged", "_registry", "error", "job", "number", "pictures",
        "submissions", "task", "unretrieved",
    )  # fmt: skip

    def __init__(
        self,
        any_id: str,
        *,
        job: SubmittedJob | None = None,
        pictures: int = 0,
    ) -> None:
        self.number: int = next(_numbers)
        self.task: Task | None = None
        self.error: KlingError | None = None
        self.job: SubmittedJob | None = job
        self.pictures: int = pictures
        self.submissions: int = 1
        self.unretrieved: int | None = 0
        self._known_id = any_id
        self._registry: TaskRegistry | None = None
        self._merged: TaskRecord | None = None
        self._changed: asyncio.Event | None = None
        self._callbacks: tuple[_Callback, ...] = ()

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
        """The `task_id` once it is known, and the given id before that."""
        return self.task.task_id if self.task else self._known_id

    @property
    def ids(self) -> set[str]:
        """All ids of the task."""
        ids = {self._known_id, self.any_id, self.external_task_id or ""}
        return ids - {""}

    @property
    def task_id(self) -> str | None:
        """The service's id, once the task is accepted."""
        return self.task.task_id if self.task else None

    @property
    def external_task_id(self) -> str | None:
        """The caller's id or the generated one, or None if neither is known."""
        if self.task is not None and self._known_id in {"", self.task.task_id}:
            return self.task.external_task_id
        return self._known_id or None

    def rename(self, external_task_id: str) -> None:
        """Change the id of a job that has not been sent yet."""
        if self._registry is not None:
            self._registry.forget_ids(self)
        self._known_id = external_task_id
        if self._registry is not None:
            self._registry.changed(self)

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self.error is not None or (self.task is not None and self.task.status.final)

    def failure(self) -> KlingError | None:
        """Return a new exception that says why there is no result, or None if there is or may be one."""
        if self.error is not None:
            return _copy(self.error)
        failed = self.task is not None and self.task.status is Status.FAILED
        return task_failure(self.task, self.external_task_id) if self.task and failed else None

    def result(self) -> ExpandResult:
        """Return the result of a task that succeeded."""
        if self.task is None:
            raise KlingError("the future is done without a snapshot")
        make = None if self._registry is None else self._registry.make_result
        return make(self, self.task) if make else ExpandResult(self.task)

    def deliver(self, task: Task) -> bool:
        """Process a snapshot from a poll, a callback, the store or a create, and return whether it is new.

        An old or repeated snapshot, or one of another task, changes nothing, so the sources need no
        coordination. The record keeps its `external_task_id`, as not every snapshot has one.
        """
        if self.done() or (self.task and not _is_newer(self.task, task)):
            return False
        if self.job is not None and 0 < self.pictures < len(task.images):
            task = evolve(task, images=task.images[: self.pictures])  # the service made more than requested
        external_task_id = None if self._known_id == task.task_id else self._known_id
        external_task_id = external_task_id or (self.task.external_task_id if self.task else None)
        if external_task_id and external_task_id != task.external_task_id:
            task = evolve(task, external_task_id=external_task_id)
        self.task = task
        self._notify()
        return True

    def fail(self, error: KlingError) -> None:
        """End every future of this record with *error*, as no snapshot will follow."""
        if not self.done():
            error.task_id = error.task_id or self.task_id
            error.external_task_id = error.external_task_id or self.external_task_id
            self.error = _without_tracebacks(error)
            self._notify()

    def add_done_callback(
        self,
        callback: "Callable[[TaskFuture], object]",
        future: "TaskFuture",
        context: contextvars.Context | None = None,
    ) -> None:
        """Call *callback* with *future* in *context* soon after the end."""
        context = contextvars.copy_context() if context is None else context  # an empty context is false
        if self.done():
            asyncio.get_running_loop().call_soon(callback, future, context=context)
        else:
            self._callbacks = (*self._callbacks, (callback, future, context))

    def remove_done_callback(self, callback: "Callable[[TaskFuture], object]", future: "TaskFuture") -> int:
        """Remove *callback* of *future*, and return how many times it had been added."""
        kept = tuple(each for each in self._callbacks if each[:2] != (callback, future))
        removed, self._callbacks = len(self._callbacks) - len(kept), kept
        return removed

    def cancel_submission(self, future: "TaskFuture") -> "TaskRecord":
        """Return a separate, cancelled record for *future*, while other submissions of the job continue."""
        self.submissions -= 1
        cancelled = TaskRecord(self._known_id)
        cancelled.retrieve()
        cancelled.attach_future()
        cancelled.fail(
            NotSubmitted("cancelled before it was sent; another submission of the same job continues")
        )
        for callback, owner, context in self._callbacks:
            if owner is future:
                cancelled.add_done_callback(callback, future, context)
        self._callbacks = tuple(each for each in self._callbacks if each[1] is not future)
        self.wake()
        self.detach_future()
        return cancelled

    def attach_future(self) -> None:
        """Count a future of this record."""
        if self.unretrieved is not None:
            self.unretrieved += 1

    def detach_future(self) -> None:
        """Stop counting a future of this record. After the last one, no caller can retrieve the outcome."""
        if self.unretrieved is not None:
            self.unretrieved -= 1
            self._check_retrieved()

    def retrieve(self) -> None:
        """Record that a caller has retrieved the outcome."""
        self.unretrieved = None
        if self._registry is not None:
            self._registry.unretrieved.pop(self, None)

    def _check_retrieved(self) -> None:
        """Log an outcome that no future can retrieve any more, or keep it until the client closes."""
        if self.unretrieved is None or not self.done():
            return
        if self.unretrieved == 0:
            log_unretrieved([self])
        elif self._registry is not None:
            self._registry.unretrieved[self] = None

    async def wait_changed(self) -> None:
        """Wait for the next snapshot, error or merge."""
        event = self._changed = self._changed or asyncio.Event()
        await event.wait()

    def merge_into(self, other: "TaskRecord") -> None:
        """Move the futures of this record to *other*."""
        self._merged = other
        other.submissions += self.submissions
        if other.unretrieved is not None:
            other.unretrieved += self.unretrieved or 0
        callbacks, self._callbacks = self._callbacks, ()
        for callback, future, context in callbacks:
            other.add_done_callback(callback, future, context)
        self.wake()

    def _notify(self) -> None:
        if self._registry is not None:
            self._registry.changed(self)  # first, so that the slots are free when the awaiters continue
        self._check_retrieved()
        if self.done() and self._callbacks:
            callbacks, self._callbacks = self._callbacks, ()
            loop = asyncio.get_running_loop()
            for callback, future, context in callbacks:
                loop.call_soon(callback, future, context=context)
        self.wake()

    def wake(self) -> None:
        """Wake every waiter, so that it checks this record."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class TaskRegistry:
    """The open records of one client, found by either of their ids.

    The functions in `on_end` are called once for each record when its outcome becomes known. Those in
    `on_merge` are called for each record that another one replaces. None of them may raise. `make_result`
    makes the result of a succeeded task. `unretrieved` holds ended records whose outcome no caller has
    retrieved.
    """

    def __init__(self) -> None:
        self.on_end: list[Callable[[TaskRecord], object]] = []
        self.make_result: Callable[[TaskRecord, Task], ExpandResult] | None = None
        self.on_merge: list[Callable[[TaskRecord], object]] = []
        self.unretrieved: dict[TaskRecord, None] = {}
        self._records: dict[TaskRecord, None] = {}
        self._by_id: dict[str, TaskRecord] = {}
        self._aliases: dict[TaskRecord, set[str]] = {}  # ids of records that were merged into these

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[TaskRecord]:
        return iter(tuple(self._records))

    def get(self, any_id: str) -> TaskRecord | None:
        """Return the open record of the task with this id, or None."""
        return self._by_id.get(any_id)

    def add(self, record: TaskRecord) -> TaskRecord:
        """Open *record*, or merge it into the open record of the same task. Return the record to use."""
        record = record.canonical
        if record not in self._records and not record.done():
            self._records[record] = None
            record._registry = self  # noqa: SLF001 - the two classes are one unit
            self.changed(record)
        return record.canonical

    def forget_ids(self, record: TaskRecord) -> None:
        """Remove the current ids of *record* from the index."""
        for any_id in record.ids:
            if self._by_id.get(any_id) is record:
                del self._by_id[any_id]

    def changed(self, record: TaskRecord) -> None:
        """Index the ids of *record*, or close it if its outcome is known."""
        if record not in self._records:
            return
        if record.done():
            self._close(record)
            for hook in self.on_end:
                hook(record)
            return
        for any_id in record.ids:
            other = self._by_id.setdefault(any_id, record)
            if other is record:
                continue
            # A record with a job of this client is kept, because that job holds the slots.
            kept, dropped = (record, other) if other.job is None and record.job else (other, record)
            if dropped.task is not None and kept.job is not None and kept.task is None:
                self._by_id[any_id] = kept  # merged once the job has its task, as it may still fail
                continue
            self._merge(dropped, kept)
            if dropped is record:
                return

    def _merge(self, dropped: TaskRecord, kept: TaskRecord) -> None:
        ids = dropped.ids | self._aliases.get(dropped, set())
        self._close(dropped)
        for any_id in ids:
            self._by_id.setdefault(any_id, kept)
        self._aliases.setdefault(kept, set()).update(ids)
        dropped.merge_into(kept)
        for hook in self.on_merge:
            hook(dropped)
        if dropped.task is not None:
            kept.deliver(dropped.task)

    def _close(self, record: TaskRecord) -> None:
        self._records.pop(record, None)
        self.forget_ids(record)
        for any_id in self._aliases.pop(record, ()):
            if self._by_id.get(any_id) is record:
                del self._by_id[any_id]


def paths_of(
    result: ExpandResult, target: str | os.PathLike[str], *, metadata: bool = False, **conversion: Any
) -> "OutputPaths":
    """Return where `ExpandResult.save` puts the pictures of a *result*.

    *conversion* holds the arguments `format` and `quality` of that call.

    Raises:
        InvalidRequest: if *target* is invalid.
    """
    from kling_expand.downloads.files import output_paths  # imported here, as many callers never save

    options = result._options(**conversion)  # noqa: SLF001 - the two are one unit
    if metadata:
        from kling_expand.pictures.convert import Metadata  # imported here, as it is an option

        options = evolve(options, metadata=Metadata())  # the paths do not depend on its values
    return output_paths(result.task, target, options)


def log_unretrieved(records: Iterable[TaskRecord]) -> None:
    """Log the outcomes that no caller has retrieved: one line for the errors, one for the results."""
    unretrieved: list[tuple[TaskRecord, KlingError | None]] = [(each, each.failure()) for each in records]
    for record, _ in unretrieved:
        record.retrieve()
    errors = [f"{type(error).__name__}: {error}" for _, error in unretrieved if error is not None]
    results = [str(record.any_id) for record, error in unretrieved if error is None]
    if errors:
        subject = "the error of a job was" if len(errors) == 1 else f"the errors of {len(errors)} jobs were"
        logger.warning("%s never retrieved: %s", subject, "; ".join(errors[:LOGGED_IDS]))
    if results:
        ids = ", ".join(results[:LOGGED_IDS])
        logger.info("the results of %d tasks were never retrieved: %s", len(results), ids)


class TaskFuture:
    """The future of one task, for any number of awaiters, iterators and done callbacks.

    Only clients create futures, each from the client's *record* of the task.

    A future has the methods of `asyncio.Future` except those that set a result, so `asyncio.wait`, `gather`,
    `as_completed`, `shield` and `wait_for` accept it.

    `await future` returns the `ExpandResult` or raises an error. The error is `TaskFailed` if the task
    failed, another `KlingError` if a call failed, and `DeadlineExceeded` if *deadline_at* (loop time) passes
    first. An expired deadline is not a failure. The task continues, and a later await has no time limit.
    Cancelling one awaiter does not affect the others. If a task exists or may exist by then, its ids are
    logged and added to the `CancelledError` as a note.

    An error that is never retrieved is logged with its ids when the last future of the task is
    garbage-collected or the client closes. `await`, `result`, `exception`, `error`, `task` and iteration
    retrieve it.
    """

    __slots__ = ("__weakref__", "_record", "deadline_at")

    def __init__(self, record: TaskRecord | str, *, deadline_at: float | None = None) -> None:
        self._record = TaskRecord(record) if isinstance(record, str) else record
        self.deadline_at: float | None = deadline_at
        self.record.attach_future()

    def __del__(self) -> None:
        if hasattr(self, "_record"):  # a second Ctrl-C may interrupt the constructor
            self.record.detach_future()

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
        """The `task_id` once it is known. Before that, the `external_task_id`, which may still change."""
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
        """The caller's id or the generated one, or None until it is final (see `recorded`)."""
        record = self.record
        if record.task is None and record.job is not None:
            return record.job.final_id
        return record.external_task_id

    @property
    def task(self) -> Task | None:
        """The newest snapshot, or None before the task is accepted."""
        return self._retrieved_record().task

    @property
    def error(self) -> KlingError | None:
        """The exception that ended this future, or None. `task` reports a failed task."""
        return self._retrieved_record().error

    def done(self) -> bool:
        """Return whether the outcome is known."""
        return self.record.done()

    def cancel(self) -> bool:
        """Cancel the job if it has not been sent yet, and return whether it is cancelled.

        A cancelled job costs nothing, and its future raises `NotSubmitted`. The service cannot cancel a task,
        so an existing task continues. Other submissions of the same job continue too. A journal records that
        the job was cancelled, so `KlingClient.resume` does not send it. Submitting the job again sends it.
        """
        return self._cancel(for_good=True)

    def _cancel(self, *, for_good: bool) -> bool:
        record = self.record
        if record.done() or record.job is None or record.job.sent:
            return False
        if record.submissions > 1:
            self._record = record.cancel_submission(self)
            return True
        cancelled = record.job.cancel(for_good=for_good)
        if cancelled:
            record.retrieve()  # the caller of this method knows the outcome
        return cancelled

    def cancelled(self) -> bool:
        """Return whether the job was cancelled before it was sent."""
        return isinstance(self.record.error, NotSubmitted)

    def exception(self) -> KlingError | None:
        """Return the exception that awaiting this future raises, or None for a succeeded task.

        Raises:
            asyncio.InvalidStateError: if the future is not done.
        """
        return self._ended_record().failure()

    def result(self) -> ExpandResult:
        """Return the result that awaiting this future returns, or raise the exception that it raises.

        Raises:
            KlingError: if awaiting the future raises it.
            asyncio.InvalidStateError: if the future is not done.
        """
        record = self._ended_record()
        if (error := record.failure()) is not None:
            raise error
        return record.result()

    def add_done_callback(
        self, callback: Callable[["TaskFuture"], object], *, context: contextvars.Context | None = None
    ) -> None:
        """Call *callback* with this future soon after its end, in *context* or a copy of the current one."""
        self.record.add_done_callback(callback, self, context)

    def remove_done_callback(self, callback: Callable[["TaskFuture"], object]) -> int:
        """Remove *callback*, and return how many times it had been added."""
        return self.record.remove_done_callback(callback, self)

    async def recorded(self) -> str:
        """Wait until the job has its final `external_task_id` and is in the journal, if any. Return the id.

        `submit` returns before that. Once `recorded` has returned, `KlingClient.resume` finds the job after a
        crash. A job that was not sent before the crash is sent only if its photo was a path or a URL. If the
        photo was bytes, an open file or a PIL image, the job is lost. Another submission of the same job has
        the same id.

        With an empty journal, the client first lists the account's tasks, so the first call waits for the
        service. If you stop waiting, the job continues. Call `cancel` to cancel the job itself.

        Raises:
            KlingError: if the job was refused, or could not be recorded.
            DeadlineExceeded: if the deadline passes first.
        """
        wait_until = self._wait_until()
        while (record := self.record).task is None and record.job is not None:
            if record.job.recorded_id is not None:
                return record.job.recorded_id
            if self.done():
                raise self.exception() or KlingError("the future is done without a record")
            await self._wait_changed(wait_until)
        return record.external_task_id or record.any_id

    async def accepted(self) -> Task:
        """Wait until the service has accepted the task and return its newest snapshot.

        Raises:
            KlingError: if the job was refused, or it is not known whether a task exists.
            DeadlineExceeded: if the deadline passes first.
        """
        wait_until = self._wait_until()
        while (task := self.record.task) is None:
            if self.done():
                raise self.exception() or KlingError("the future is done without a snapshot")
            await self._wait_changed(wait_until)
        return task

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as in the standard library
        """Wait until the future is done, for at most *timeout* seconds. Return whether it is done."""
        check(timeout=timeout)
        wait_until = None if timeout is None else asyncio.get_running_loop().time() + timeout
        try:
            while not self.done():
                await self._wait_changed(wait_until)
        except DeadlineExceeded:
            pass
        return self.done()

    async def __aiter__(self) -> AsyncIterator[Task]:
        """Yield the newest snapshot after each change, up to the final one. A slow reader misses some.

        While the job waits for slots, a snapshot with the status ``queued`` and no `task_id` is yielded once.

        Raises:
            KlingError: if awaiting the future raises it. A failed task is the last snapshot instead.
        """
        seen: Task | None = None
        wait_until = self._wait_until()
        while True:
            newest = self._newest()
            if newest is not None and newest != seen:
                seen = newest
                yield newest
            elif self.done():
                if self.error is not None:
                    raise _copy(self.error)
                return
            else:
                await self._wait_changed(wait_until)

    def __await__(self) -> Generator[Any, None, ExpandResult]:
        return self._outcome().__await__()

    async def _outcome(self) -> ExpandResult:
        wait_until = self._wait_until()
        while not self.done():
            await self._wait_changed(wait_until)
        return self.result()

    def _newest(self) -> Task | None:
        """Return the newest snapshot, or one with the status ``queued``."""
        record = self.record
        if record.task is None and record.job is not None and record.job.queued and not record.done():
            return Task("", Status.QUEUED, external_task_id=record.external_task_id)
        return record.task

    def _retrieved_record(self) -> TaskRecord:
        """Return the record, and mark its outcome, if any, as retrieved."""
        record = self.record
        if record.unretrieved is not None and record.done():
            record.retrieve()
        return record

    def _ended_record(self) -> TaskRecord:
        """Return the record of a done future, and mark its outcome as retrieved."""
        if not self.done():
            raise asyncio.InvalidStateError("the future is not done")
        return self._retrieved_record()

    def _wait_until(self) -> float | None:
        """Return the deadline of a wait that begins now, or None if the deadline has already passed."""
        passed = self.deadline_at is not None and self.deadline_at <= asyncio.get_running_loop().time()
        return None if passed else self.deadline_at

    async def _wait_changed(self, wait_until: float | None = None) -> None:
        """Wait for a change. Raise `DeadlineExceeded` if none comes by *wait_until*."""
        record, task = self.record, self.record.task
        try:
            async with asyncio.timeout_at(wait_until):
                await record.wait_changed()
        except TimeoutError:
            if self.done() or self.record.task is not task or self.record is not record:
                return
            task_state = "the task continues" if task else "it is not known yet whether a task was created"
            raise DeadlineExceeded(
                f"the deadline passed; {task_state}, and the future can be awaited again",
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
            "a wait was cancelled, but its task continues at the service: "
            f"task_id={record.task_id}, external_task_id={record.external_task_id}"
        )
        error.add_note(note)
        logger.warning(note)


def interrupt(future: TaskFuture) -> bool:
    """Cancel a job that has not been sent yet, but leave it in the journal to be resumed."""
    return future._cancel(for_good=False)  # noqa: SLF001 - the two are one unit


def _is_newer(known: Task, task: Task) -> bool:
    return task.task_id == known.task_id and task.status in NEXT[known.status]


def _copy(error: KlingError) -> KlingError:
    """Return a copy of *error*. A shared exception would collect the frames and notes of every awaiter."""
    fresh = copy.copy(error)
    fresh.__cause__ = error.__cause__
    fresh.__suppress_context__ = True
    if hasattr(error, "__notes__"):
        fresh.__notes__ = list(error.__notes__)
    return fresh


def _without_tracebacks(error: KlingError) -> KlingError:
    """Remove the tracebacks of *error* and its causes, because they may hold a photo, and return it."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each.__context__ = None
        each = each.__cause__
    return error
