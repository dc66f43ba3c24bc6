"""How many at once? Slots of the account, weighted by pictures, and bounded work over many requests."""

import asyncio
import heapq
from itertools import count

START = 9  # parallel pictures of an image pack (doc)
CALM = 60  # ended pictures before a refused slot is asked for again: at most one create in so many is refused
SHRINK = 0.75


class Flow:
    """A stream of jobs that shares evenly with the other streams, however many it has waiting."""

    __slots__ = ("tag",)

    def __init__(self) -> None:
        self.tag = 0.0  # how much it has asked for, counted from where the others stand


class WeightedSemaphore:
    """At most `capacity` in all, each holder taking as many as it says.

    Higher `priority` goes first, then lanes in turn, then first come; a caller who waits for many is
    not overtaken by those who want few. It belongs to one event loop.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self._waiting: list[tuple[int, float, int, int, asyncio.Future[None]]] = []
        self._order = count()
        self._turn = 0.0  # the tag that was served last

    async def acquire(
        self, n: int, flow: Flow | None = None, *, priority: int = 0, first: bool = False
    ) -> None:
        """Wait for *n*; *first* before all others of the priority."""
        flow = flow or Flow()
        tag = -1.0 if first else max(flow.tag, self._turn)
        flow.tag = max(flow.tag, self._turn) + n
        place = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (-priority, tag, next(self._order), n, place))
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
        """Count *n* as held that nobody can refuse."""
        self.held += n

    def release(self, n: int) -> None:
        """Give *n* back."""
        self.held -= n
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            _, tag, _, n, place = self._waiting[0]
            # One may always go on, or a fallen capacity would shut out those who want more.
            if not place.done() and self.held and self.held + n > self.capacity:
                return
            heapq.heappop(self._waiting)
            if not place.done():
                self._turn = max(self._turn, tag)
                self.held += n
                place.set_result(None)


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
        if not self._step and self._calm >= CALM and self._waiting:
            self._grow(1)
            self._step = 1
        self.release(n)

    def take(self, n: int) -> None:
        """Count *n* as held that nobody can refuse: a task that runs already."""
        super().take(n)
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
