"""A bounded map over many requests: outcomes as they end, or in order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from itertools import count

from attrs import frozen

from kling_expand.errors import KlingError
from kling_expand.models import ExpandRequest

from .future import ExpandResult, TaskFuture


@frozen(eq=False)
class Outcome:
    """How one of many requests ended: `result` or `error`, never both."""

    index: int
    request: ExpandRequest
    result: ExpandResult | None = None
    error: KlingError | None = None


Requests = Iterable[ExpandRequest] | AsyncIterable[ExpandRequest]


async def each(requests: Requests) -> AsyncGenerator[ExpandRequest, None]:
    """The requests one by one, whichever kind of iterable they come in."""
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


class BoundedMap:
    """Many requests, read, submitted and handed out so that never more than *prefetch* are held.

    What the reader does not take is not replaced: a slow reader slows the source.
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
        self._withdraw = cancel
        self._ordered = ordered
        self._failures_left = max_failures
        self._places = asyncio.Semaphore(prefetch)
        self._open: dict[TaskFuture, tuple[int, ExpandRequest]] = {}
        self._ended: asyncio.Queue[TaskFuture | None] = asyncio.Queue()

    async def run(self, requests: Requests) -> AsyncGenerator[Outcome, None]:
        """The outcomes, in the order of the requests or as they end.

        An error of the *requests* themselves is raised after the outcomes of those already read.
        A reader who leaves early takes back what has not been sent yet.
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
            self._take_back()
            await asyncio.gather(feeder, return_exceptions=True)
        if not feeder.cancelled():
            feeder.result()

    async def _feed(self, requests: Requests) -> None:
        async with aclosing(each(requests)) as source:
            for index in count():
                await self._places.acquire()
                try:
                    request = await anext(source)
                except StopAsyncIteration:
                    return
                future = self._submit(request)
                self._open[future] = index, request
                future.add_done_callback(self._ended.put_nowait)

    async def _outcomes(self, feeder: asyncio.Task[None]) -> AsyncGenerator[Outcome, None]:
        early: dict[int, Outcome] = {}
        following = 0
        while self._open or early or not feeder.done():
            future = await self._ended.get()
            if future is None:  # the source has ended; what is open goes on
                continue
            outcome = await _outcome(future, *self._open.pop(future))
            self._count(outcome, feeder)
            if not self._ordered:
                yield outcome
                continue
            early[outcome.index] = outcome
            while following in early:
                yield early.pop(following)
                following += 1

    def _count(self, outcome: Outcome, feeder: asyncio.Task[None]) -> None:
        if outcome.error is not None and self._failures_left is not None:
            self._failures_left -= 1
            if self._failures_left == 0:
                feeder.cancel()
                self._take_back()

    def _take_back(self) -> None:
        for future in tuple(self._open):
            self._withdraw(future)


async def _outcome(future: TaskFuture, index: int, request: ExpandRequest) -> Outcome:
    try:
        return Outcome(index, request, result=await future)
    except KlingError as error:
        return Outcome(index, request, error=error)
