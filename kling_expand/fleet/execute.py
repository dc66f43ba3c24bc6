"""What is done for one job of a fleet? From payload and ledger to an outcome; it knows no queue.

Whatever runs it must keep to one thing: a job it has begun is begun again, here or elsewhere, until
this returns. It may be stopped at any point, and begun twice at once; the ledger sees to the rest.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import inf
from random import Random
from typing import Any

from attrs import frozen

from kling_expand.client import KlingClient
from kling_expand.errors import (
    AccountError,
    AuthenticationError,
    ClientClosed,
    DeadlineExceeded,
    DownloadError,
    IPNotAllowed,
    JournalError,
    KlingError,
    NotSubmitted,
    PermissionDenied,
    ResultExpired,
    SubmissionUnknown,
    TaskFailed,
)
from kling_expand.jobs.future import ExpandResult
from kling_expand.jobs.scheduler import Flow, Slots
from kling_expand.store.postgres import JobOutcome, PostgresStore, TakenOver
from kling_expand.store.sqlite_statements import State

from . import payload as payloads
from .payload import Payload

ATTEMPTS = 30  # of a job that fails in ways that may pass
FOLLOW = 2.0  # seconds between two looks at a job that another worker has taken over
# Nothing is wrong with the job: somebody has to pay, or to change a setting.
_HALT = (AccountError, AuthenticationError, PermissionDenied, IPNotAllowed)
_HALTED = 300.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds nobody tries where all slots are others'
EAGER = 6  # times as often as one client alone does a worker ask for more: others come and go, and die
_OPEN = {State.INTENT, State.UNKNOWN, State.SUBMITTED}

logger = logging.getLogger(__name__)


class RetryLater(Exception):
    """The job is to be begun again in `pause` seconds; its cause says why."""

    def __init__(self, pause: float) -> None:
        super().__init__(f"again in {pause:g} seconds")
        self.pause = pause


Hold = Callable[[int, str], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _freely(_n: int, _key: str) -> AsyncIterator[None]:
    """Permits where there are none: the client finds out by itself how much the account takes."""
    yield


@frozen
class WorkerContext:
    """All that a worker needs for its jobs. `output` is where pictures go; None: their URLs will do.

    `hold` is waited for with a job's number of pictures and its key, and left when its end is known.
    """

    kling: KlingClient
    ledger: PostgresStore
    output: str | None = None
    hold: Hold = _freely
    callback_url: str | None = None


async def work(payload: Payload, bench: WorkerContext, attempt: int = 0, priority: int = 0) -> JobOutcome:
    """See one job through; its outcome, which is in the ledger when this returns.

    Raises `RetryLater` where *attempt* (from 0) failed in a way that may pass. What is cancelled leaves its
    task at the service, for whoever begins the job again.
    """
    key: str = payload["key"]
    try:
        ended = await _expanded(payload, bench, priority)
    except TakenOver:
        return await _followed(key, bench.ledger)
    except Exception as error:  # a bug must not lose a job either
        pause = pause_after(error, attempt)
        if pause is not None:
            logger.info("job %s is put off by %g seconds: %s", key, pause, error)
            raise RetryLater(pause) from error
        status = "failed" if isinstance(error, TaskFailed) else "refused"
        task_id, name = getattr(error, "task_id", None), getattr(error, "external_task_id", None)
        ended = JobOutcome(key, status, name, task_id, error=f"{type(error).__name__}: {error}")
    await bench.ledger.ended(ended)
    return ended


async def _expanded(payload: Payload, bench: WorkerContext, priority: int) -> JobOutcome:
    if bench.callback_url:
        payload = {"callback_url": bench.callback_url, **payload}
    request = payloads.unpack(payload)
    name = payloads.stem(str(request.image))
    ready = await payloads.fetched(request)
    async with bench.hold(request.n, payload["key"]):
        result = await bench.kling.submit(ready, priority=priority)
    # Before the queue forgets the job its end must be on record, or its slot would be thought taken.
    await bench.ledger.observed(_name(result), result.task)
    files: tuple[str, ...] = tuple(map(str, result.files))
    if bench.output and not files:
        files = await payloads.save(result, bench.output, name)
    return _succeeded(payload["key"], result, files)


def _name(result: ExpandResult) -> str:
    return result.task.external_task_id or ""


def _succeeded(key: str, result: ExpandResult, files: tuple[str, ...]) -> JobOutcome:
    urls = tuple(image.url for image in result.images)
    units: Any = result.task.units
    return JobOutcome(key, "succeeded", _name(result), result.task_id, urls, files, units)


async def _followed(key: str, ledger: PostgresStore) -> JobOutcome:
    """The outcome that the job's new owner comes to: this worker had been taken for dead."""
    logger.warning("job %s was taken over by another worker", key)
    while True:
        job, ended = await ledger.find(key), await ledger.outcome(key)
        if ended is not None and job is not None and job.state not in _OPEN:
            return ended
        await asyncio.sleep(FOLLOW)


def pause_after(error: Exception, attempt: int) -> float | None:
    """Seconds until a job is begun again after *error*, at its *attempt* (from 0); None: never."""
    if isinstance(error, ClientClosed | NotSubmitted):
        return 0.0  # handed over
    if isinstance(error, JournalError) and error.task_id:
        return 0.0  # somebody else's create was quicker: there is a task to take up
    if attempt + 1 >= ATTEMPTS or isinstance(error, ResultExpired):
        return None
    if isinstance(error, _HALT):
        return _HALTED
    passing = isinstance(
        error, SubmissionUnknown | DeadlineExceeded | DownloadError | JournalError
    ) or not isinstance(error, KlingError)
    return min(5.0 * 2**attempt, 600.0) if passing or getattr(error, "retryable", False) else None


class SharedSlots(Slots):
    """Slots of an account that others use too, which can be shut.

    Where a create is refused and none of ours runs, only time can make room: then nobody tries for a
    while, and after that one at a time. Shut, who waits for a slot or comes later is told that nothing
    was submitted.
    """

    def __init__(self, limit: int, rng: Random | None = None) -> None:
        super().__init__(limit)
        self._shut = asyncio.Event()
        self._rng = rng or Random()
        self._pause = 0.0  # how long nobody tries; doubled from refusal to refusal
        self._closed_until = -inf

    def refused(self, n: int, epoch: int) -> None:
        """The service had no room for *n* more."""
        if not self.running:
            loop = asyncio.get_running_loop()
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            pause = self._pause * self._rng.uniform(0.5, 1.0)
            self._closed_until = loop.time() + pause
            loop.call_later(pause, self._open_again)
        super().refused(n, epoch)

    def accepted(self, n: int) -> None:
        """A task of *n* pictures runs, so whoever waits is waited for no longer."""
        self._pause, self._closed_until = 0.0, -inf
        super().accepted(n)

    def ended(self, n: int) -> None:
        """A task of *n* pictures has ended: what it leaves may be had again, and soon more is asked for."""
        self._calm += (EAGER - 1) * n
        super().ended(n)

    def _open_again(self) -> None:
        self._closed_until = -inf
        self._serve()

    def _serve(self) -> None:
        if asyncio.get_running_loop().time() >= self._closed_until:
            super()._serve()

    def shut(self) -> None:
        """Let nobody in any more."""
        self._shut.set()

    async def acquire(
        self, n: int, flow: Flow | None = None, *, priority: int = 0, first: bool = False
    ) -> None:
        """Wait for *n*. Raises `NotSubmitted` once the doors are shut."""
        place = asyncio.ensure_future(super().acquire(n, flow, priority=priority, first=first))
        shut = asyncio.ensure_future(self._shut.wait())
        try:
            await asyncio.wait({place, shut}, return_when=asyncio.FIRST_COMPLETED)
            if self._shut.is_set():
                if place.done():
                    self.release(n)
                raise NotSubmitted("the worker is closing, and no task exists: the job is for another")
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release(n)
            raise
        finally:
            place.cancel()
            shut.cancel()
