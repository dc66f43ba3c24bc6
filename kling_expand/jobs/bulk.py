"""A bounded map over many requests, which yields outcomes in the order of the requests or as jobs end."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Any, Self, TypedDict, TypeVar

from attrs import evolve, fields, frozen

from kling_expand.api.session import is_cancelled
from kling_expand.errors import InvalidRequest, KlingError, ResultExpired
from kling_expand.models import ExpandRequest, nearest_name, portable, shown, source_stem
from kling_expand.serialization import Serializable

from .future import ExpandResult, TaskFuture

SOURCE_CLOSE_TIMEOUT = 5.0  # seconds
REMEMBERED_FILES = 10_000  # saved files that a map remembers; the limit bounds its memory

T = TypeVar("T")

logger: logging.Logger = logging.getLogger(__name__)


@frozen(eq=False)
class Outcome(Serializable):
    """The outcome of one of many requests.

    `index` is the position of the request, from 0. `result` or `error` is set. Both are set if the pictures
    could not be saved, so that `result.save` can be called again. `request` is None if the row gave no valid
    request. `files` are the paths of the saved pictures.
    """

    index: int
    request: ExpandRequest | Any  # None only for an invalid row that is a mapping or a function
    result: ExpandResult | None = None
    error: KlingError | None = None
    files: tuple[Path, ...] = ()

    def __reduce__(self) -> Any:
        return Outcome, (self.index, portable(self.request), self.result, self.error, self.files)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self


# A request, a mapping of its fields, or a function that returns it. An error in a mapping or a function is
# the outcome of its row.
Row = ExpandRequest | Mapping[str, Any] | Callable[[], ExpandRequest]
Requests = Iterable[Row] | AsyncIterable[Row]


# Where the pictures of a job are saved: a target of `ExpandResult.save`, or a function that returns one.
Target = str | os.PathLike[str]
SaveTo = Target | Callable[[ExpandRequest], Target]


class SaveArguments(TypedDict, total=False):
    """The keyword arguments of `ExpandResult.save` that apply to every job of a map."""

    overwrite: bool
    full_size: bool
    format: str | None
    quality: int | None
    metadata: bool


def check_saves(save_to: SaveTo | None, options: SaveArguments | None) -> None:
    """Check where and how a map saves pictures, before any job is sent.

    Raises:
        InvalidRequest: if the target or an option is invalid, or there are options without a target.
    """
    if save_to is None:
        if options:
            raise InvalidRequest("save_options", shown(options), "must come with save_to")
        return
    from kling_expand.downloads.files import SaveOptions, check_target  # imported here, as many never save

    options = options or {}
    names = list(SaveArguments.__annotations__)
    for name, value in options.items():
        if name not in names:
            advice = nearest_name(str(name), names) or f"the arguments are {', '.join(names)}"
            raise InvalidRequest("save_options", repr(name), "must name arguments of `save`", advice)
        if name in {"overwrite", "full_size", "metadata"} and not isinstance(value, bool):
            raise InvalidRequest(name, shown(value), "must be True or False")
    picture_format, quality = options.get("format"), options.get("quality")
    SaveOptions(
        format=picture_format or ("jpeg" if options.get("full_size") and quality else None), quality=quality
    )
    if not callable(save_to):
        check_target("save_to", save_to, SaveOptions(format=picture_format))


def make_request(row: Row) -> ExpandRequest:
    """Return the request of a row.

    Raises:
        InvalidRequest: if a field is invalid, or the row's function failed or returned no request.
        KlingError: if the row's function raises one.
    """
    if isinstance(row, Mapping):
        names = [each.name for each in fields(ExpandRequest)]
        for name in row.keys() - {*names}:
            advice = nearest_name(str(name), names) or f"the fields are {', '.join(names)}"
            raise InvalidRequest("row", repr(name), "must contain only fields of a request", advice)
        for name in ("image", "geometry"):
            if name not in row:
                raise InvalidRequest("row", shown(dict(row)), f"must contain the field {name!r}")
    try:
        request = ExpandRequest(**row) if isinstance(row, Mapping) else row() if callable(row) else row
    except KlingError:
        raise
    except (Exception, asyncio.CancelledError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidRequest("row", reason, "must give an ExpandRequest") from error
    if not isinstance(request, ExpandRequest):
        raise InvalidRequest("row", shown(request), "must give an ExpandRequest")
    return request


def _target(save_to: SaveTo | None, request: ExpandRequest, options: SaveArguments) -> Target | None:
    """Return where to save the pictures of *request*. Raise `InvalidRequest` if the target is invalid."""
    if not callable(save_to):
        return save_to
    from kling_expand.downloads.files import SaveOptions, check_target  # imported here, as many never save

    try:
        target = os.fsdecode(save_to(request))
    except (Exception, asyncio.CancelledError) as error:
        raise InvalidRequest("save_to", f"{type(error).__name__}: {error}", "must return a path") from error
    check_target("save_to", target, SaveOptions(format=options.get("format")))
    return target


def _is_row(row: object) -> bool:
    return isinstance(row, ExpandRequest | Mapping) or (callable(row) and not isinstance(row, type))


async def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """Yield the items of a synchronous or asynchronous iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


class BoundedMap:
    """A map that holds at most *prefetch* requests at a time between its source and its reader.

    A request counts from just before it is read until the reader has processed its outcome. So a slow
    reader slows the source. `submit` starts a job and may give it a deadline. The outcome holds what
    awaiting the job's future returns or raises. `cancel` cancels a job that has not been sent yet, and has no
    effect on a job that was. With `save_to`, the pictures are saved before the outcome is yielded, while
    other jobs use the slots.
    """

    def __init__(
        self,
        submit: Callable[[ExpandRequest], TaskFuture],
        cancel: Callable[[TaskFuture], object],
        *,
        prefetch: int,
        save_to: SaveTo | None = None,
        save_options: SaveArguments | None = None,
        ordered: bool = False,
        max_failures: int | None = None,
    ) -> None:
        self._submit = submit
        self._cancel = cancel
        self._save_to = save_to
        self._save_options: SaveArguments = save_options or {}
        self._ordered = ordered
        self._failures_left = max_failures
        self._used_files: dict[int, None] = {}  # hashes of the newest files of this map
        self._prefetched = asyncio.Semaphore(prefetch)
        self._open: dict[asyncio.Task[Outcome], TaskFuture | None] = {}
        self._ended: asyncio.Queue[asyncio.Task[Outcome] | None] = asyncio.Queue()

    async def run(self, requests: Requests) -> AsyncGenerator[Outcome, None]:
        """Yield the outcomes, in the order of the requests or as jobs end.

        If the reader stops early, jobs that were not sent are cancelled. A source that cannot be interrupted
        is abandoned after `SOURCE_CLOSE_TIMEOUT` seconds.

        Raises:
            Exception: if the source raises. The outcomes of all requests read before that are yielded first.
                A `CancelledError` of the source becomes a RuntimeError.
        """
        feeder = asyncio.create_task(self._feed(requests), name="kling-expand map")
        feeder.add_done_callback(lambda _: self._ended.put_nowait(None))
        try:
            async with aclosing(self._outcomes(feeder)) as outcomes:
                async for outcome in outcomes:
                    yield outcome
                    self._prefetched.release()
        finally:
            feeder.cancel()
            await self._close(feeder)
        if not feeder.cancelled():
            feeder.result()

    async def _feed(self, requests: Requests) -> None:
        """Submit each request as soon as the map holds fewer than *prefetch* requests."""
        async with aclosing(each(requests)) as source:
            for index in count():
                await self._prefetched.acquire()
                try:
                    row = await anext(source)
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError as error:
                    if is_cancelled():
                        raise
                    raise RuntimeError(f"the source of the requests raised {error!r}") from error
                if is_cancelled():
                    return  # the source ignored its cancellation, and this row must not be sent
                self._start(index, row)

    def _start(self, index: int, row: Row) -> None:
        """Submit the request of a row, or turn the error that it raises into an outcome."""
        if not _is_row(row):
            limit = "must contain ExpandRequest objects, mappings of their fields or functions that make them"
            raise InvalidRequest("requests", shown(row), limit)
        future: TaskFuture | None = None
        request: ExpandRequest | None = None
        try:
            request = make_request(row)
            # An invalid target is found before any job is paid for.
            target = _target(self._save_to, request, self._save_options)
        except KlingError as error:
            ended = _failed(index, request, error)
        else:
            future = self._submit(request)
            # Awaited from now on, because an await that begins after the deadline is not bounded by it.
            ended = self._outcome(future, index, request, target)
        job = asyncio.create_task(ended)
        self._open[job] = future
        job.add_done_callback(self._ended.put_nowait)

    async def _outcome(
        self, future: TaskFuture, index: int, request: ExpandRequest, target: Target | None
    ) -> Outcome:
        result: ExpandResult | None = None
        files: tuple[Path, ...] = ()
        try:
            result = await future
            # Jobs with identical photos share a result, which has the request and name of only one of them.
            result = evolve(result, request=request, name=source_stem(request.image))
            files = result.files if target is None else await self._saved(result, target)
        except KlingError as error:
            return Outcome(index, request, result, error)
        return Outcome(index, request, result, files=files)

    async def _saved(self, result: ExpandResult, target: Target) -> tuple[Path, ...]:
        """Save the pictures of a job under paths that no other job of this map has, and return the paths.

        Jobs with identical photos may share a task, so their paths could be the same.
        """
        name, options = result.name or result.task_id, self._save_options
        files = await _saved_at(result, target, options)
        for number in count(2):
            if self._used_files.keys().isdisjoint(map(hash, files)):
                break
            other = await _saved_at(evolve(result, name=f"{name}-{number}"), target, options)
            if other == files:  # the template has no field `name`
                break
            files = other
        self._used_files |= dict.fromkeys(map(hash, files))
        while len(self._used_files) > REMEMBERED_FILES:
            del self._used_files[next(iter(self._used_files))]
        return files

    async def _outcomes(self, feeder: asyncio.Task[None]) -> AsyncGenerator[Outcome, None]:
        completed: dict[int, Outcome] = {}
        next_index = 0
        while self._open or not feeder.done():
            job = await self._ended.get()
            if job is None:  # the source has ended; open jobs continue
                continue
            del self._open[job]
            outcome = job.result()
            self._count(outcome, feeder)
            if not self._ordered:
                yield outcome
                continue
            completed[outcome.index] = outcome
            while next_index in completed:
                yield completed.pop(next_index)
                next_index += 1

    def _count(self, outcome: Outcome, feeder: asyncio.Task[None]) -> None:
        """Count a failure, and stop feeding after too many."""
        if outcome.error is not None and self._failures_left is not None:
            self._failures_left -= 1
            if self._failures_left == 0:
                feeder.cancel()
                self._cancel_unsent()

    def _cancel_unsent(self) -> None:
        for future in self._open.values():
            if future is not None:
                self._cancel(future)

    async def _close(self, feeder: asyncio.Task[None]) -> None:
        """Cancel the jobs that were not sent, and wait for the source to close."""
        self._cancel_unsent()
        for job in self._open:
            job.cancel()
        await asyncio.wait({feeder, *self._open}, timeout=SOURCE_CLOSE_TIMEOUT)
        if not feeder.done():
            logger.warning(
                "the source of a map did not stop within %g s and was abandoned", SOURCE_CLOSE_TIMEOUT
            )


async def _saved_at(result: ExpandResult, target: Target, options: SaveArguments) -> tuple[Path, ...]:
    """Return the paths of a result's pictures at *target*, and save the pictures there if necessary.

    If the service no longer has the pictures, return the paths at which an earlier run saved them.
    """
    found = () if options else result.saved_at(target)
    try:
        return found or await result.save(target, **options)
    except ResultExpired:
        if not result.files:
            raise
        return result.files


async def _failed(index: int, request: ExpandRequest | None, error: KlingError) -> Outcome:
    return Outcome(index, request, error=error)
