"""The execution of one fleet job, from its payload in the queue to its outcome in the store.

A payload is the request as JSON. It has the location of the photo, not its content. It may allow several
passes (see `kling_expand.fleet.passes`).

Any queue can call `execute`, provided that it reruns a started job, on this or another machine, until one of
the calls returns. A call may be cancelled at any point. Two calls may run the same job at once, because the
store decides which of them may send it.

A job whose task exists, or may exist, is followed without its photo and without a permit. A job that was paid
for ends as ``succeeded`` or ``failed``, never as ``refused``.
"""

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from urllib.parse import urlsplit

import attrs
from attrs import asdict, evolve, frozen

from kling_expand.api import codec
from kling_expand.api.photo import MAX_BYTES, load_photo
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
    PictureMismatch,
    ResultExpired,
    SubmissionUnknown,
    TaskFailed,
    TransportError,
)
from kling_expand.geometry import Padding, Ratios, ToAspect, ToSize, Towards
from kling_expand.jobs.future import ExpandResult
from kling_expand.models import (
    Dialect,
    ExpandRequest,
    request_fields,
    resolve_geometry,
    source_name,
    source_stem,
)
from kling_expand.store.base import JobRecord, JobState
from kling_expand.store.postgres import JobOutcome, PostgresStore, TakenOver

Payload = dict[str, Any]

MAX_ATTEMPTS = 30  # attempts at a job that has transient errors and no task
MAX_FOLLOW_DELAY = 10.0  # seconds between two attempts at a job that may have a task
SAVE_ATTEMPTS = 3  # attempts to save the pictures before a succeeded job ends without them
MAX_SAVE_DELAY = 600.0  # seconds between two attempts to save them later
OBJECT_TIMEOUT = 300.0  # seconds to read a photo from an object store, or to write pictures to one
# The job is valid, but the operator must first top up the account, or change a key or a setting.
_OPERATOR_ERRORS = (AccountError, AuthenticationError, PermissionDenied, IPNotAllowed)
OPERATOR_RETRY_DELAY = 300.0  # seconds
_GEOMETRIES = {kind.__name__: kind for kind in (Ratios, ToAspect, ToSize, Padding, Towards)}
_TEMPLATE = "{name}-{external_task_id}-{index}{ext}"

logger: logging.Logger = logging.getLogger(__name__)


class RetryLater(Exception):
    """A signal to run the job again in `delay` seconds, with the error as its cause.

    `charge` says whether this counts as a failed attempt. If `saving` is True, only the pictures remain to be
    saved.
    """

    def __init__(self, delay: float, *, charge: bool = True, saving: bool = False) -> None:
        super().__init__(f"the job will run again in {delay:g} seconds")
        self.delay = delay
        self.charge = charge
        self.saving = saving


class WorkersDied(KlingError):
    """The error of a job that is not run again, because too many workers died while running it."""


Hold = Callable[[int, str], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _no_permits(_n: int, _key: str) -> AsyncIterator[None]:
    """Admit every job, because without permits the client estimates the account's limit."""
    yield


@frozen
class WorkerContext:
    """The resources that a worker uses to execute its jobs.

    Pictures are saved to `output`. If it is None, only their URLs are kept. `hold` takes a job's number of
    pictures and its key, and returns a context manager. This waits for the job's permits, and releases them
    after its task has ended. `callback_url` applies to requests without their own. With `full_size`, each
    picture is also saved at the size of its photo, and `composing` limits this to one job at a time.
    `unsaved` holds the keys of jobs whose pictures could not be saved.
    """

    client: KlingClient
    store: PostgresStore
    output: str | None = None
    hold: Hold = _no_permits
    callback_url: str | None = None
    full_size: bool = False
    unsaved: set[str] = attrs.field(factory=set)
    composing: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(1))


@frozen
class History:
    """The history of a job in the queue.

    `attempts` counts its failed attempts, and `deaths` the workers that died while executing it. If `follow`
    is True, its task exists or may exist. If `saving` is True, only its pictures remain to be saved. If
    `forbidden` is True, no task is created for it and no picture is saved. `queued` is its number in the
    queue, from which it is removed when its outcome is recorded.
    """

    attempts: int = 0
    follow: bool = False
    saving: bool = False
    deaths: int = 0
    forbidden: bool = False
    queued: int | None = None


async def execute(
    payload: Payload, context: WorkerContext, history: History | None = None, priority: int = 0
) -> JobOutcome:
    """Execute one job, record its outcome in the store, and return the outcome.

    A job of higher *priority* gets a slot first.

    Raises:
        RetryLater: if the failure may be transient, or the job was not sent because the worker is stopping.
        TakenOver: if another worker has taken the job over.
    """
    history = history or History()
    key: str = payload["key"]
    runner = _Runner(context, history, priority)
    try:
        added = {"callback_url": context.callback_url} if context.callback_url else {}
        request = unpack({**added, **payload})
        _check_full_size(request, context, history)
        result = await _result(payload, request, runner)
    except TakenOver:
        raise
    except Exception as error:  # noqa: BLE001 - a bug must not lose a job
        outcome = _failure(key, error, history.attempts, runner.paid)
        await context.store.record_outcome(outcome, queued=history.queued)
        return outcome
    return await _ended(request, result, context, history)


async def _result(payload: Payload, request: ExpandRequest, runner: "_Runner") -> ExpandResult:
    """Return the result of the job's task or last pass, and create the task if there is none."""
    if payload.get("passes", 1) != 1:
        from .passes import run_passes  # imported here, because few jobs need it

        async for result in run_passes(payload, request, runner, load):
            runner.paid = result
        if runner.paid is not None:
            return runner.paid
    if runner.follows:
        known = await _known(request, runner.store)
        if known is not None and (followed := await runner.follow(known)):
            return followed
    return await runner.create(request)


@attrs.define
class _Runner:
    """A runner of the tasks of one job. `paid` is the result of its last finished pass, if it has several."""

    context: WorkerContext
    history: History
    priority: int
    paid: ExpandResult | None = None

    @property
    def store(self) -> PostgresStore:
        return self.context.store

    @property
    def follows(self) -> bool:
        return self.history.follow or self.history.forbidden

    async def follow(self, known: JobRecord) -> ExpandResult | None:
        """Follow a known job without its photo or a permit. Return its result, or None if it has no task."""
        try:
            result = await self.context.client.resume_job(known, priority=self.priority)
        except NotSubmitted:  # its create was lost, and the store does not have its photo
            return None
        # Once the queue has deleted the job, nothing would record the end, and the task would still count.
        await self.store.observe(_external_task_id(result), result.task)
        return result

    async def create(self, request: ExpandRequest, note: Mapping[str, Any] | None = None) -> ExpandResult:
        """Create a task, with *note* in its record in the store, and return its result."""
        if self.history.forbidden:
            deaths = f"{self.history.deaths} workers died running this job"
            raise WorkersDied(f"{deaths}, the last one while it ran no other job")
        async with self.context.hold(request.n, str(request.key)):
            result = await self._submit(request, note)
            await self.store.observe(_external_task_id(result), result.task)
        return result

    async def _submit(self, request: ExpandRequest, note: Mapping[str, Any] | None) -> ExpandResult:
        """Submit a job, or continue an earlier submission if the photo is gone."""
        client = self.context.client
        try:
            return await client.submit(await load(request), priority=self.priority, note=note)
        except ImageError:
            known = None if note else await _known(request, self.store)
            if known is None or known.state is JobState.FAILED:
                raise
            return await client.resume_job(known, priority=self.priority)


def _check_full_size(request: ExpandRequest, context: WorkerContext, history: History) -> None:
    """Raise `InvalidRequest` for a job that is not paid for yet and could not be saved at full size."""
    if context.full_size and not history.follow and _scheme(str(request.image)) in {"http", "https"}:
        limit = "must be a path or an object-store URL for workers with --full-size"
        raise InvalidRequest("image", source_name(request.image), limit)


async def _known(request: ExpandRequest, store: PostgresStore) -> JobRecord | None:
    """Return the record of exactly this request if its task exists or may exist, otherwise None.

    The geometry is not compared, because the record has the ratios that were computed for the photo.
    """
    known = await store.find(str(request.key))
    if known is None or (known.task_id is None and not known.may_exist):
        return None
    sent = codec.unpack_request(known.params, known.source or "", known.key)
    names = [each.name for each in request_fields() if each.changes_result]
    same = all(getattr(sent, name) == getattr(request, name) for name in names)
    return known if same and known.source in {None, str(request.image)} else None


def _failure(key: str, error: Exception, attempts: int, earlier: ExpandResult | None = None) -> JobOutcome:
    """Return the outcome of a job that ended with *error*, or raise `RetryLater` if a retry may help.

    *earlier* is the result of the last pass that was paid for, if any.
    """
    delay = retry_delay(error, attempts)
    if delay is not None:
        logger.info("job %s will be retried in %g seconds: %s", key, delay, error)
        raise RetryLater(delay, charge=delay > 0) from error
    task_id = getattr(error, "task_id", None)
    external_task_id = getattr(error, "external_task_id", None)
    reason, units = f"{type(error).__name__}: {error}", None
    if earlier is not None:
        units = _units(earlier)
        expired = isinstance(error, ResultExpired)
        advice = "use another key to start the job again" if expired else "submit the job again to continue"
        reason += f"; an earlier pass was paid for (task {earlier.task_id}): {advice}"
        if task_id is None:
            task_id, external_task_id = earlier.task_id, earlier.external_task_id
    status = "failed" if isinstance(error, TaskFailed) or task_id is not None else "refused"
    return JobOutcome(key, status, external_task_id, task_id, units=units, error=reason)


async def _ended(
    request: ExpandRequest, result: ExpandResult, context: WorkerContext, history: History
) -> JobOutcome:
    """Save the pictures of a succeeded job, and return its outcome."""
    key, files = str(request.key), tuple(map(str, result.files))
    error: Exception | None = None
    incomplete = None
    if context.output and not files:
        try:
            files, incomplete = await _save(request, result, context, history)
        except ClientClosed as closed:
            raise RetryLater(0.0, charge=False, saving=history.saving) from closed
        except Exception as failure:  # noqa: BLE001 - whatever failed, the job is paid for
            error = failure
    outcome = evolve(_succeeded(key, result, files), error=incomplete)
    if error is None:
        await context.store.record_outcome(outcome, queued=history.queued)
        return outcome
    return await _unsaved(outcome, error, context, history)


async def _save(
    request: ExpandRequest, result: ExpandResult, context: WorkerContext, history: History
) -> tuple[tuple[str, ...], str | None]:
    """Save the pictures. Return the files, and the reason if full-size ones cannot be made, or else None."""
    if history.forbidden:
        raise WorkersDied(f"{history.deaths} workers died running this job, so its pictures are not saved")
    name, target = source_stem(request.image) or result.task_id, str(context.output)
    files, incomplete = await save(result, target, name), None
    if context.full_size:
        try:
            async with context.composing:
                files += await save_full_size(result, target, name, request)
        except (ImageError, InvalidRequest, PictureMismatch) as error:
            incomplete = f"{type(error).__name__}: {error}"
    context.unsaved.clear()
    return files, incomplete


async def _unsaved(
    outcome: JobOutcome, error: Exception, context: WorkerContext, history: History
) -> JobOutcome:
    """Record why the pictures of a succeeded job are not saved. Raise `RetryLater` if a retry may help."""
    final = isinstance(error, ResultExpired | WorkersDied)
    delay = min(5.0 * float(1 << min(history.attempts, 10)), MAX_SAVE_DELAY)
    if not final and not history.saving and history.attempts + 1 < SAVE_ATTEMPTS:
        raise RetryLater(delay) from error
    if not context.unsaved:
        logger.warning("pictures cannot be saved; saving will be retried until their URLs expire: %s", error)
    context.unsaved.add(outcome.key)
    outcome = evolve(outcome, saved=False, error=f"{type(error).__name__}: {error}")
    if final or not history.saving:
        await context.store.record_outcome(outcome, queued=history.queued if final else None)
    if not final:
        raise RetryLater(delay, saving=True) from error
    return outcome


def _external_task_id(result: ExpandResult) -> str:
    return result.task.external_task_id or ""


def _succeeded(key: str, result: ExpandResult, files: tuple[str, ...]) -> JobOutcome:
    urls = tuple(image.url for image in result.images)
    return JobOutcome(
        key, "succeeded", _external_task_id(result), result.task_id, urls, files, _units(result)
    )


def _units(result: ExpandResult) -> int | float | None:
    """Return the cost of a result and its earlier passes in units, or None if the cost of any is unknown."""
    units: Any = result.task.units
    if result.earlier is None or units is None:
        return cast("int | float | None", units)
    before = _units(result.earlier)
    return None if before is None else before + units


def retry_delay(error: Exception, attempt: int) -> float | None:
    """Return the seconds to wait before a retry, or None if the job is not retried.

    *error* ended the attempt with the number *attempt*, which counts from 0.
    """
    known = getattr(error, "task_id", None) is not None
    if isinstance(error, ClientClosed | NotSubmitted) or (isinstance(error, JournalError) and known):
        return 0.0  # this worker is stopping, or another worker has created the task, which is then followed
    may_exist = known or isinstance(error, SubmissionUnknown)
    if isinstance(error, ResultExpired) or (attempt + 1 >= MAX_ATTEMPTS and not may_exist):
        return None
    if isinstance(error, _OPERATOR_ERRORS):
        return OPERATOR_RETRY_DELAY
    # If this machine has never reached the service, another machine may reach it, or this one after a repair.
    temporary = (SubmissionUnknown, TransportError, DeadlineExceeded, DownloadError, JournalError)
    transient = isinstance(error, temporary) or not isinstance(error, KlingError)
    if not transient and not getattr(error, "retryable", False):
        return None
    return min(5.0 * float(1 << min(attempt, 10)), MAX_FOLLOW_DELAY if may_exist else 600.0)


# ---------------------------------------------------------------------------- payloads


def pack(request: ExpandRequest, passes: int = 1) -> Payload:
    """Return *request* as a payload with a key: its own, or a digest of all its parameters.

    A path is made absolute, because another process will read it. The allowed number of *passes* does not
    change the key. So a job that needs only one pass is the same job, whatever number is allowed.

    Raises:
        InvalidRequest: if the photo is not a path or URL, or the geometry is of a class of the caller's own.
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
    return payload if passes == 1 else payload | {"passes": passes}


def unpack(payload: Payload) -> ExpandRequest:
    """Return the request from a *payload* of `pack`.

    Raises:
        InvalidRequest: if a value is not allowed.
    """
    try:
        values = {name: value for name, value in payload.items() if name != "passes"}
        geometry = dict(values.pop("geometry"))
        return ExpandRequest(geometry=_GEOMETRIES[geometry.pop("kind")](**geometry), **values)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            "payload", f"{type(error).__name__}: {error}", "must be a payload made by `pack`"
        ) from error


def _location(image: Any) -> str:
    if isinstance(image, os.PathLike):
        image = os.fsdecode(image)
    if not isinstance(image, str) or image.startswith("data:"):
        rule = "must be a path, an http(s) URL or the URL of an object store to be queued"
        raise InvalidRequest("image", source_name(image), rule)
    return image if _scheme(image) else os.path.abspath(image)  # noqa: PTH100 - symbolic links stay as given


def _scheme(location: str) -> str:
    found = re.match(r"([a-z][a-z0-9+.-]+)://", location, re.IGNORECASE)
    return found[1].lower() if found else ""


def in_object_store(location: str) -> bool:
    """Return whether *location* is the URL of an object store: any URL that is not http or https."""
    return _scheme(location) not in {"", "http", "https"}


async def load(request: ExpandRequest) -> ExpandRequest:
    """Return *request* with the content of its photo if the photo is in an object store.

    Raises:
        ImageError: if the store has no such object.
        MissingExtra: if the extra `objects` is not installed.
        TransportError: if the store cannot be read.
    """
    location = request.image
    if not isinstance(location, str) or not in_object_store(location):
        return request
    try:
        async with asyncio.timeout(OBJECT_TIMEOUT):
            return evolve(request, image=await asyncio.to_thread(_read, location))
    except TimeoutError:
        reason = f"reading the photo from its object store took more than {OBJECT_TIMEOUT:g} s"
        raise TransportError(reason, sent=False) from None


def _read(location: str) -> bytes:
    from kling_expand.downloads.objects import open_object, without_password  # most photos are files

    try:
        with open_object(location) as file:
            content: bytes = file.read(MAX_BYTES + 1)  # one more, so that a larger photo is refused later
            return content
    except (FileNotFoundError, ValueError) as error:  # no such object, or no such kind of store
        shown, reason = without_password(location), without_password(error)
        raise ImageError("image", shown, "not in its object store", reason) from error
    except MissingExtra:
        raise
    except Exception as error:  # each kind of store raises its own exceptions
        raise TransportError(without_password(f"{location} cannot be read: {error}"), sent=False) from error


async def save_full_size(
    result: ExpandResult, target: str, name: str, request: ExpandRequest
) -> tuple[str, ...]:
    """Save the pictures of *result* at the size of the photo of *request*, and return their paths or URLs.

    *target* and *name* are as in `save`.

    Raises:
        ImageError: if the photo is gone.
        PictureMismatch: if the photo was not found in a picture.
        KlingError: if `save` fails.
    """
    photo = str(request.image)
    with TemporaryDirectory(prefix="kling-expand-") as folder:
        if in_object_store(photo):
            copy = Path(folder) / Path(urlsplit(photo).path).name
            content: Any = (await load(request)).image
            await asyncio.to_thread(copy.write_bytes, content)
            photo = str(copy)
        if result.earlier is None:  # the result of a pass has its own ratios
            size = (await load_photo(photo)).dimensions
            ratios = resolve_geometry(request, Dialect.EDITING, size)
            result = evolve(result, request=evolve(request, geometry=ratios))
        return await save(result, target, name, full_size=photo)


async def save(
    result: ExpandResult, target: str, name: str, *, full_size: str | bool = False
) -> tuple[str, ...]:
    """Save the pictures of *result* to *target* and return their paths or URLs.

    *target* is a directory, a template, or the URL of a directory in an object store. *name* fills the
    template's `{name}`. File names in a directory also contain the job's id, so that photos with the same
    name do not conflict. If *full_size* is a photo, the pictures are saved at its size.

    Raises:
        DownloadError: if a picture cannot be downloaded or written.
        MissingExtra: if the extra `objects` is not installed.
    """
    result = evolve(result, name=name)
    template = target if "{" in target else f"{target.rstrip('/')}/{_TEMPLATE}"
    if in_object_store(target):
        seconds = 2 * OBJECT_TIMEOUT  # to download the pictures, and to write them
        try:
            async with asyncio.timeout(seconds):
                return await result.upload(template, full_size=full_size)
        except TimeoutError:
            raise DownloadError(f"writing to the object store took more than {seconds:g} seconds") from None
    return tuple(str(path.absolute()) for path in await result.save(template, full_size=full_size))
