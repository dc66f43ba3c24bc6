"""A bounded map over many requests, with outcomes as they end or in order."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from itertools import count

from attrs import frozen

from kling_expand.errors import KlingError
from kling_expand.models import ExpandRequest

from .future import ExpandResult, TaskFuture

SOURCE_CLOSE_TIMEOUT = 5.0  # seconds

logger: logging.Logger = logging.getLogger(__name__)


@frozen(eq=False)
class Outcome:
    """The end of one request of many: either `result` or `error` is set."""

    index: int
    request: ExpandRequest
    result: ExpandResult | None = None
    error: KlingError | None = None


Requests = Iterable[ExpandRequest] | AsyncIterable[ExpandRequest]


async def each(requests: Requests) -> AsyncGenerator[ExpandRequest, None]:
    """Yield the requests of either kind of iterable."""
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


class BoundedMap:
    """A map that holds at most *prefetch* requests between its source and its reader.

    A request counts from before it is read to after its outcome was handed out, so a slow reader slows
    the source. `submit` starts a job and may give it a deadline of its own: an outcome is what awaiting
    the future gives. `cancel` takes back a job that was not sent and leaves any other alone.
    """

    def __init__(
        self,
        submit: Callable[[ExpandRequest], TaskFuture],
        cancel: Callable[[TaskFuture], object],
        *,
        prefetch: int,
        ordered: bool = False,
        max_failures: int | None = None,
    ) -> None:
        self._submit = submit
        self._cancel = cancel
        self._ordered = ordered
        self._failures_left = max_failures
        self._places = asyncio.Semaphore(prefetch)
        self._open: dict[asyncio.Task[Outcome], TaskFuture] = {}
        self._ended: asyncio.Queue[asyncio.Task[Outcome] | None] = asyncio.Queue()

    async def run(self, requests: Requests) -> AsyncGenerator[Outcome, None]:
        """Yield the outcomes, in the order of the requests or as they end.

        A reader who leaves early takes back what was not sent. A source that cannot be interrupted is
        left to itself after `SOURCE_CLOSE_TIMEOUT`.

        Raises:
            Exception: whatever the source raised, after the outcomes of all requests read before.
        """
        feeder = asyncio.create_task(self._feed(requests), name="kling-expand map")
        feeder.add_done_callback(lambda _: self._ended.put_nowait(None))
        try:
            async with aclosing(self._outcomes(feeder)) as outcomes:
                async for outcome in outcomes:
                    yield outcome
                    self._places.release()
        finally:
            feeder.cancel()
            await self._leave(feeder)
        if not feeder.cancelled():
            feeder.result()

    async def _feed(self, requests: Requests) -> None:
        """Submit each request as soon as fewer than *prefetch* are held."""
        async with aclosing(each(requests)) as source:
            for index in count():
                await self._places.acquire()
                try:
                    request = await anext(source)
                except StopAsyncIteration:
                    return
                if (task := asyncio.current_task()) and task.cancelling():
                    return  # else jobs of a source that ignores its cancellation would be sent
                future = self._submit(request)
                # Awaited from now on, because an await that begins after the deadline is not bounded by it.
                job = asyncio.create_task(_outcome(future, index, request))
                self._open[job] = future
                job.add_done_callback(self._ended.put_nowait)

    async def _outcomes(self, feeder: asyncio.Task[None]) -> AsyncGenerator[Outcome, None]:
        early: dict[int, Outcome] = {}
        following = 0
        while self._open or not feeder.done():
            job = await self._ended.get()
            if job is None:  # the source has ended, and open jobs go on
                continue
            del self._open[job]
            outcome = job.result()
            self._count(outcome, feeder)
            if not self._ordered:
                yield outcome
                continue
            early[outcome.index] = outcome
            while following in early:
                yield early.pop(following)
                following += 1

    def _count(self, outcome: Outcome, feeder: asyncio.Task[None]) -> None:
        """Stop feeding after too many failures."""
        if outcome.error is not None and self._failures_left is not None:
            self._failures_left -= 1
            if self._failures_left == 0:
                feeder.cancel()
                self._cancel_unsent()

    def _cancel_unsent(self) -> None:
        for future in self._open.values():
            self._cancel(future)

    async def _leave(self, feeder: asyncio.Task[None]) -> None:
        """Take back what was not sent, and wait for the source to close."""
        self._cancel_unsent()
        for job in self._open:
            job.cancel()
        await asyncio.wait({feeder, *self._open}, timeout=SOURCE_CLOSE_TIMEOUT)
        if not feeder.done():
            logger.warning("the source of a map did not stop within %g s and is left", SOURCE_CLOSE_TIMEOUT)


async def _outcome(future: TaskFuture, index: int, request: ExpandRequest) -> Outcome:
    try:
        return Outcome(index, request, result=await future)
    except KlingError as error:
        return Outcome(index, request, error=error)
