"""One fleet job: its payload in a queue, and its execution up to its outcome in the store.

A payload is the request as JSON, with the location of the photo instead of the photo.

Any queue may call `execute` that runs a started job again, on this or another machine, until the call
returns. A call may be cancelled at any point, and two calls may run one job at the same
time: the store decides which of them may send.
"""

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import inf
from typing import Any, ClassVar

from attrs import asdict, evolve, frozen

from kling_expand.client import KlingClient
from kling_expand.errors import (
    AccountError,
    AuthenticationError,
    ClientClosed,
    DeadlineExceeded,
    DownloadError,
    ImageError,
    InvalidRequest,
    IPNotAllowed,
    JournalError,
    KlingError,
    MissingExtra,
    NotSubmitted,
    PermissionDenied,
    ResultExpired,
    SubmissionUnknown,
    TaskFailed,
    TransportError,
)
from kling_expand.geometry import Padding, Ratios, ToAspect, ToSize, Towards
from kling_expand.jobs.future import ExpandResult
from kling_expand.jobs.scheduler import Flow, Slots
from kling_expand.models import ExpandRequest, request_fields, source_name, source_stem
from kling_expand.store.base import JobState
from kling_expand.store.postgres import JobOutcome, PostgresStore, TakenOver

Payload = dict[str, Any]

MAX_ATTEMPTS = 30  # of a job whose errors are transient
FOLLOW_INTERVAL = 2.0  # seconds between two reads of a job that another worker owns
# The job is valid, but the operator must first pay the account, or change a key or a setting.
_OPERATOR_ERRORS = (AccountError, AuthenticationError, PermissionDenied, IPNotAllowed)
OPERATOR_RETRY_DELAY = 300.0  # seconds
_OPEN = {JobState.INTENT, JobState.UNKNOWN, JobState.SUBMITTED}
_GEOMETRIES = {kind.__name__: kind for kind in (Ratios, ToAspect, ToSize, Padding, Towards)}
_TEMPLATE = "{name}-{external_task_id}-{index}{ext}"

logger: logging.Logger = logging.getLogger(__name__)


class RetryLater(Exception):
    """A request to run the job again in `delay` seconds; its cause is the error."""

    def __init__(self, delay: float) -> None:
        super().__init__(f"the job is to run again in {delay:g} seconds")
        self.delay = delay


Hold = Callable[[int, str], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _no_permits(_n: int, _key: str) -> AsyncIterator[None]:
    """Admit every job: without exact permits, the client estimates the account's limit itself."""
    yield


@frozen
class WorkerContext:
    """Everything a worker needs to execute its jobs.

    `output` is where images are saved; with None only their URLs are kept. `hold` is a context manager
    that waits for the permits of a job, given its number of images and its key, and releases them when
    the end of its task is known.
    """

    client: KlingClient
    store: PostgresStore
    output: str | None = None
    hold: Hold = _no_permits
    callback_url: str | None = None


async def execute(
    payload: Payload, context: WorkerContext, attempt: int = 0, priority: int = 0
) -> JobOutcome:
    """Execute one job and return its outcome, which the store holds by then.

    *attempt* counts the earlier starts of the job. A job of higher *priority* gets a slot first.

    Raises:
        RetryLater: when the failure may be transient, or the job was not sent because the worker stops.
    """
    key: str = payload["key"]
    try:
        outcome = await _expand(payload, context, priority)
    except TakenOver:
        return await _follow(key, context.store)
    except Exception as error:  # a bug must not lose a job
        delay = retry_delay(error, attempt)
        if delay is not None:
            logger.info("job %s is retried in %g seconds: %s", key, delay, error)
            raise RetryLater(delay) from error
        status = "failed" if isinstance(error, TaskFailed) else "refused"
        task_id = getattr(error, "task_id", None)
        external_task_id = getattr(error, "external_task_id", None)
        reason = f"{type(error).__name__}: {error}"
        outcome = JobOutcome(key, status, external_task_id, task_id, error=reason)
    await context.store.record_outcome(outcome)
    return outcome


async def _expand(payload: Payload, context: WorkerContext, priority: int) -> JobOutcome:
    if context.callback_url:
        payload = {"callback_url": context.callback_url, **payload}
    request = unpack(payload)
    name = source_stem(request.image)
    loaded = await load(request)
    async with context.hold(request.n, payload["key"]):
        result = await context.client.submit(loaded, priority=priority)
    # The end must be in the store before the queue deletes the job, else its permits would count as held.
    await context.store.observe(_external_task_id(result), result.task)
    files: tuple[str, ...] = tuple(map(str, result.files))
    if context.output and not files:
        files = await save(result, context.output, name or result.task_id)
    return _succeeded(payload["key"], result, files)


def _external_task_id(result: ExpandResult) -> str:
    return result.task.external_task_id or ""


def _succeeded(key: str, result: ExpandResult, files: tuple[str, ...]) -> JobOutcome:
    urls = tuple(image.url for image in result.images)
    units: Any = result.task.units
    return JobOutcome(key, "succeeded", _external_task_id(result), result.task_id, urls, files, units)


async def _follow(key: str, store: PostgresStore) -> JobOutcome:
    """Return the outcome that the job's new owner records, after this worker lost the job."""
    logger.warning("job %s was taken over by another worker", key)
    while True:
        job, outcome = await store.find(key), await store.outcome(key)
        if outcome is not None and job is not None and job.state not in _OPEN:
            return outcome
        await asyncio.sleep(FOLLOW_INTERVAL)


def retry_delay(error: Exception, attempt: int) -> float | None:
    """Return the seconds until a job is retried after *error* at *attempt* (from 0), or None for never."""
    if isinstance(error, ClientClosed | NotSubmitted):
        return 0.0  # this worker stops, and another runs the job
    if isinstance(error, JournalError) and error.task_id:
        return 0.0  # another worker has created the task, and the retry adopts it
    if attempt + 1 >= MAX_ATTEMPTS or isinstance(error, ResultExpired):
        return None
    if isinstance(error, _OPERATOR_ERRORS):
        return OPERATOR_RETRY_DELAY
    # If this machine never reached the service, another one may, or this one after a repair.
    passing = (SubmissionUnknown, TransportError, DeadlineExceeded, DownloadError, JournalError)
    transient = isinstance(error, passing) or not isinstance(error, KlingError)
    return min(5.0 * 2**attempt, 600.0) if transient or getattr(error, "retryable", False) else None


class SharedSlots(Slots):
    """Slots of an account that other workers use too, and that can be closed.

    Other workers take and leave slots all the time, so free ones are probed for more often. Once closed,
    present and later waiters get `NotSubmitted`.
    """

    tasks_per_probe: ClassVar[int] = 20
    longest_probe_pause: ClassVar[float] = 20.0
    level_tolerance: ClassVar[float] = inf  # the level changes all the time, so it never resets the pause

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Admit nothing more."""
        self._closed.set()

    async def acquire(
        self, n: int, flow: Flow | None = None, *, priority: int = 0, first: bool = False
    ) -> int:
        """Wait for *n* slots and return the epoch they were granted in.

        Raises:
            NotSubmitted: when the slots are closed.
        """
        place = asyncio.ensure_future(super().acquire(n, flow, priority=priority, first=first))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({place, closed}, return_when=asyncio.FIRST_COMPLETED)
            if self._closed.is_set():
                if place.done():
                    self.release(n)
                raise NotSubmitted("the worker is stopping and created no task: another worker runs the job")
            return place.result()
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release(n)
            raise
        finally:
            place.cancel()
            closed.cancel()


# ---------------------------------------------------------------------------- payloads


def pack(request: ExpandRequest) -> Payload:
    """Return *request* as a payload with a key: its own, or a digest of everything it asks for.

    A path is made absolute, because another process reads it.

    Raises:
        InvalidRequest: when the photo is not a path or URL, or the geometry is of a class of the caller.
    """
    kind = type(request.geometry).__name__
    if _GEOMETRIES.get(kind) is not type(request.geometry):
        raise InvalidRequest("geometry", kind, f"must be one of {', '.join(_GEOMETRIES)} to be queued")
    payload = {"image": _location(request.image), "geometry": {"kind": kind, **asdict(request.geometry)}}
    for field in request_fields():
        value = getattr(request, field.name)
        if value != field.default:
            payload[field.name] = value
    if "key" not in payload:
        payload["key"] = hashlib.sha256(repr(sorted(payload.items())).encode()).hexdigest()[:32]
    return payload


def unpack(payload: Payload) -> ExpandRequest:
    """Return the request from a *payload* that `pack` made.

    Raises:
        InvalidRequest: when a value is not allowed.
    """
    values = dict(payload)
    geometry = dict(values.pop("geometry"))
    return ExpandRequest(geometry=_GEOMETRIES[geometry.pop("kind")](**geometry), **values)


def _location(image: Any) -> str:
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if not isinstance(image, str) or image.startswith("data:"):
        rule = "must be a path, an http(s) URL or the URL of an object store to be queued"
        raise InvalidRequest("image", source_name(image), rule)
    return image if _scheme(image) else os.path.abspath(image)  # noqa: PTH100 - symbolic links stay as given


def _scheme(location: str) -> str:
    found = re.match(r"([a-z][a-z0-9+.-]+)://", location, re.IGNORECASE)
    return found[1].lower() if found else ""


def in_object_store(location: str) -> bool:
    """Return whether *location* is a URL of an object store, which is any scheme but http and https."""
    return _scheme(location) not in {"", "http", "https"}


async def load(request: ExpandRequest) -> ExpandRequest:
    """Return *request* with the content of its photo, if that is in an object store.

    Raises:
        ImageError: when the store has no such object.
        MissingExtra: when the extra `objects` is not installed.
        TransportError: when the store cannot be read.
    """
    location = str(request.image)
    if not in_object_store(location):
        return request
    return evolve(request, image=await asyncio.to_thread(_read, location))


def _read(location: str) -> bytes:
    from kling_expand.downloads.objects import fsspec_module  # imported here, as most photos are files

    try:
        with fsspec_module().open(location, "rb") as file:
            content: bytes = file.read()
            return content
    except (FileNotFoundError, ValueError) as error:  # no such object, or no such kind of store
        raise ImageError("image", location, "not in its object store", str(error)) from error
    except MissingExtra:
        raise
    except Exception as error:  # each kind of store raises its own exceptions
        raise TransportError(f"{location} cannot be read: {error}", sent=False) from error


async def save(result: ExpandResult, target: str, name: str) -> tuple[str, ...]:
    """Save the images to *target* and return their paths or URLs.

    *target* is a directory, a template, or the URL of a folder in an object store. In a directory files
    are named after photo and job, so that photos of the same name do not overwrite each other.

    Raises:
        DownloadError: when an image cannot be downloaded or written.
        MissingExtra: when the extra `objects` is not installed.
    """
    result = evolve(result, name=name)
    template = target if "{" in target else f"{target.rstrip('/')}/{_TEMPLATE}"
    if in_object_store(target):
        return await result.upload(template)
    return tuple(str(path.absolute()) for path in await result.save(template))
