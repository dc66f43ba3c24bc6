"""How many at once? Slots of the account, weighted by pictures, and bounded work over many requests."""

import asyncio
import heapq
from collections import OrderedDict
from itertools import count
from math import inf

START = 9  # parallel pictures of an image pack (doc)
CALM = 60  # ended pictures before a refused slot is asked for again: at most one create in so many is refused
SHRINK = 0.75


class Flow:
    """A stream of jobs that shares evenly with other streams, however many jobs it has waiting.

    `tag` is its virtual time (start-time fair queueing): pictures granted so far. A new or idle flow
    begins where the others are.
    """

    __slots__ = ("tag",)

    def __init__(self, tag: float = 0.0) -> None:
        self.tag = tag


_Waiters = OrderedDict[asyncio.Future[None], int]  # each waiter and how many it wants, in order of arrival


class WeightedSemaphore:
    """A fair semaphore of `capacity` units, of which a holder may take several.

    Waiters are served by priority, then by flow (the one that has been granted least), then in order
    of arrival. A waiter that wants many units is not overtaken by later ones of its priority that want
    few. A waiter that gives up costs its flow nothing. A semaphore belongs to one event loop.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self._heap: list[tuple[int, float, int, Flow]] = []  # one entry for each key of `_queues`
        self._queues: dict[tuple[int, Flow], _Waiters] = {}
        self._retries = Flow(-inf)  # stands before all other flows
        self._order = count()
        self._turn = 0.0  # the tag that was served last

    async def acquire(
        self, n: int, flow: Flow | None = None, *, priority: int = 0, first: bool = False
    ) -> None:
        """Wait for *n* units; with *first* before all others of the same priority."""
        place = asyncio.get_running_loop().create_future()
        waiters = self._waiters(self._retries if first else flow or Flow(), -priority)
        waiters[place] = n
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                waiters.pop(place, None)
                self._serve()  # it may have been what others waited behind
            else:
                self.release(n)
            raise

    def force_acquire(self, n: int) -> None:
        """Count *n* units as held at once, even above the capacity."""
        self.held += n

    def release(self, n: int) -> None:
        """Give *n* units back."""
        self.held -= n
        self._serve()

    def _waiters(self, flow: Flow, rank: int) -> _Waiters:
        """Return the queue of a flow at one priority, where *rank* is minus the priority."""
        waiters = self._queues.get((rank, flow))
        if not waiters and flow is not self._retries:
            flow.tag = max(flow.tag, self._turn)  # time spent idle gives no claim
        if waiters is None:
            waiters = self._queues[rank, flow] = OrderedDict()
            heapq.heappush(self._heap, (rank, flow.tag, next(self._order), flow))
        return waiters

    def _serve(self) -> None:
        """Grant waiters their units for as long as the first of them is admitted."""
        while (head := self._head()) and self._admits(head[1]):
            flow, n, waiters = head
            place, _ = waiters.popitem(last=False)
            self._turn = max(self._turn, flow.tag)
            flow.tag += n
            self.held += n
            place.set_result(None)

    def _head(self) -> tuple[Flow, int, _Waiters] | None:
        """Return the flow that is next, what its first waiter wants, and its queue."""
        while self._heap:
            rank, tag, _, flow = self._heap[0]
            waiters = self._queues[rank, flow]
            while waiters and next(iter(waiters)).done():
                waiters.popitem(last=False)  # cancelled
            if not waiters:
                heapq.heappop(self._heap)
                del self._queues[rank, flow]
            elif tag < flow.tag:  # the flow has been served since this entry was made
                heapq.heapreplace(self._heap, (rank, flow.tag, next(self._order), flow))
            else:
                return flow, next(iter(waiters.values())), waiters
        return None

    def _admits(self, n: int) -> bool:
        """Whether *n* more may be held. A waiter for more than the capacity is admitted alone."""
        return not self.held or self.held + n <= self.capacity


class Slots(WeightedSemaphore):
    """The account's parallel slots: a task of n pictures holds n from before its create to its known end.

    `limit` is the most we may hold, `capacity` what the service is believed to let us have. It begins
    at the documented pack of `START` and doubles as long as everything is accepted; it falls to what is
    held when a create is refused, and after `CALM` pictures have ended it is probed again, by one at first.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(min(limit, START))
        self.limit = limit
        self.running = 0  # pictures of tasks that the service has accepted, as far as we know
        self.epoch = 0  # how often the capacity has fallen
        self._step = self.capacity  # by how much to grow once all of it runs; 0: it has fallen
        self._row = 0  # pictures accepted since it last grew or fell
        self._most = 0  # that ran at once while the limit was what it is
        self._calm = 0  # pictures that ended since it fell
        self._accepted = False  # anything, since it fell

    def accepted(self, n: int) -> None:
        """A task of *n* pictures runs, so there may be room for others."""
        self.running += n
        self._most = max(self._most, self.running)
        self._accepted = True
        self._row += n
        # Creates in doubt hold slots too, so the whole of it may never run: as many in a row will do.
        if self._step and self.held >= self.capacity <= max(self.running, self._row):
            self._grow(self._step)
            self._step *= 2
            self._serve()  # those who wait need not wait for an end as well

    def refused(self, n: int, epoch: int) -> None:
        """The service had no room for *n* more. *epoch* is what it was when they were acquired."""
        if epoch == self.epoch or self.held - n < self.capacity:
            self.capacity = max(1, self._fallen(self.held - n, fresh=epoch == self.epoch))
            self.epoch += 1
            self._step = self._calm = self._row = 0
            self._accepted = False
        self.release(n)

    def ended(self, n: int) -> None:
        """A task of *n* pictures has ended: its slots are free, and after many such there may be more."""
        self.running -= n
        self._calm += n
        if not self._step and self._calm >= CALM and self._head():
            self._grow(1)
            self._step = 1
        self.release(n)

    def force_acquire(self, n: int) -> None:
        """Count *n* as held that nobody can refuse: a task that runs already."""
        super().force_acquire(n)
        self.running += n

    def _fallen(self, held: int, *, fresh: bool) -> int:
        """What there is, when a create was refused while *held* others were not, or not yet."""
        if (
            self._step or not fresh
        ):  # it was probed; as many as have run will do, though some have ended since
            return max(min(held, self.running), self._most)
        # Refused within what had run: the limit has come down. If nothing was accepted since, it has
        # come down below what still runs: make room in steps, not by asking after every end.
        self._most = 0
        return held if self._accepted else int(held * SHRINK)

    def _grow(self, step: int) -> None:
        self._row = 0
        self.capacity = min(self.limit, self.capacity + step)
