"""How many at once? Slots of the account, weighted by pictures, and bounded work over many requests."""

import asyncio
import heapq
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from itertools import count

from attrs import frozen

from .errors import InvalidRequest, KlingError
from .future import ExpandResult, TaskFuture
from .models import ExpandRequest


class Slots:
    """The account's parallel slots: a task of n pictures holds n from before its create to its known end.

    First come, first served, higher `priority` before lower. A caller who waits for many is not
    overtaken by those who want few. `limit` is what we are told; `estimate` what the service has
    let us have: it shrinks when a create is refused for want of slots and grows again as tasks end.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.estimate = float(limit)
        self.held = 0
        self._order = count()
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []

    async def acquire(self, n: int, *, priority: int = 0, again: bool = False) -> None:
        """Wait for *n* slots; whoever tries *again* after a refusal stands before all others.

        Raises `InvalidRequest` if there are not that many.
        """
        if n > self.limit:
            raise InvalidRequest("n", n, f"the client may hold {self.limit} slots (max_in_flight)")
        place = asyncio.get_running_loop().create_future()
        order = -next(self._order) if again else next(self._order)
        heapq.heappush(self._waiting, (-priority, order, n, place))
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release(n)
            else:
                place.cancel()
                self._serve()
            raise

    def take(self, n: int) -> None:
        """Count *n* slots as held that nobody can refuse: a task that runs already."""
        self.held += n

    def release(self, n: int) -> None:
        """Give *n* slots back."""
        self.held -= n
        self._serve()

    def refused(self, n: int) -> None:
        """The service had no room for *n* more: what it has is what we hold besides."""
        self.estimate = float(max(self.held - n, 1))
        self.release(n)

    def ended(self, n: int) -> None:
        """A task of *n* pictures has ended: its slots are free, and there may be more."""
        self.estimate = min(self.limit, self.estimate + n / max(self.estimate, 1.0))
        self.release(n)

    def _serve(self) -> None:
        while self._waiting:
            _, _, n, place = self._waiting[0]
            # One job may always run, or a shrunken estimate would shut out those who want more.
            if not place.done() and self.held and self.held + n > max(self.estimate, 1.0):
                return
            heapq.heappop(self._waiting)
            if not place.done():
                self.held += n
                place.set_result(None)


@frozen
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


class Bulk:
    """Many requests, read, submitted and handed out so that never more than *look_ahead* are held.

    What the reader does not take is not replaced: a slow reader slows the source.
    """

    def __init__(
        self,
        submit: Callable[[ExpandRequest], TaskFuture],
        withdraw: Callable[[TaskFuture], object],
        *,
        look_ahead: int,
        ordered: bool = False,
        stop_after: int | None = None,
    ) -> None:
        self._submit = submit
        self._withdraw = withdraw
        self._ordered = ordered
        self._failures_left = stop_after
        self._places = asyncio.Semaphore(look_ahead)
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
