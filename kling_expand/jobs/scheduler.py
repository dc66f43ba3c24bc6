"""Weighted, fair and adaptive slots, which limit how many pictures are in progress at once."""

import asyncio
import heapq
from collections import OrderedDict
from itertools import count
from math import inf
from typing import ClassVar

from kling_expand.config import COUNT, check_option

INITIAL_CAPACITY = 9  # pictures; the parallel tasks of an image pack (documented)
REFUSAL_PAUSE = 1.0  # seconds without creates after a 1303 (documented)
FIRST_PROBE_PAUSE = 2.0  # seconds from a 1303 to the next probe
LONGEST_PROBE_PAUSE = 300.0  # seconds
TASKS_PER_PROBE = 60  # ended tasks after which a probe does not wait for the pause
LEVEL_TOLERANCE = 0.25  # relative difference of running pictures up to which the limit counts as unchanged


class Flow:
    """A stream of jobs that shares slots evenly with other streams, however many of its jobs are waiting.

    `tag` is its virtual time (start-time fair queueing): the number of pictures granted so far. A flow that
    is new or was idle starts at the tag that was served last, if that is higher than its own.
    """

    __slots__ = ("tag",)

    def __init__(self, tag: float = 0.0) -> None:
        self.tag: float = tag


_Waiters = OrderedDict[asyncio.Future[int], int]  # each waiter and how many it wants, in order of arrival


class WeightedSemaphore:
    """A fair semaphore with `capacity` places, of which a holder may take several.

    Waiters are served by priority, then by flow (the flow with the lowest tag comes first), then in order
    of arrival. A waiter that wants many places blocks the waiters behind it, so that they do not overtake it.
    A waiter that is cancelled does not count against its flow. A semaphore belongs to one event loop.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity: int = capacity
        self.held: int = 0
        self.epoch: int = 0  # increases each time the capacity falls
        self._heap: list[tuple[int, float, int, Flow]] = []  # one entry for each key of `_queues`
        self._queues: dict[tuple[int, Flow], _Waiters] = {}
        self._retries = Flow(-inf)  # a flow served before all others
        self._order = count()
        self._virtual_time = 0.0  # the tag that was served last

    async def acquire(
        self, n: int, flow: Flow | None = None, *, priority: int = 0, first: bool = False
    ) -> int:
        """Wait for *n* places, and return the `epoch` in which they were granted.

        With *first*, this waiter is served before all others of the same priority.
        """
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiters = self._waiters(self._retries if first else flow or Flow(), -priority)
        waiters[waiter] = n
        self._serve()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                waiters.pop(waiter, None)
                self._serve()  # others may have waited behind it
            else:
                self.release(n)
            raise

    def force_acquire(self, n: int) -> None:
        """Count *n* places as held at once, even above the capacity."""
        self.held += n

    def release(self, n: int) -> None:
        """Release *n* places."""
        self.held -= n
        self._serve()

    def _waiters(self, flow: Flow, rank: int) -> _Waiters:
        """Return the queue of a flow at one priority, where *rank* is minus the priority."""
        waiters = self._queues.get((rank, flow))
        if not waiters and flow is not self._retries:
            flow.tag = max(flow.tag, self._virtual_time)  # idle time earns no credit
        if waiters is None:
            waiters = self._queues[rank, flow] = OrderedDict()
            heapq.heappush(self._heap, (rank, flow.tag, next(self._order), flow))
        return waiters

    def _serve(self) -> None:
        """Serve waiters as long as the first of them is admitted."""
        while (head := self._head()) and self._admits(head[1]):
            flow, n, waiters = head
            waiter, _ = waiters.popitem(last=False)
            self._virtual_time = max(self._virtual_time, flow.tag)
            flow.tag += n
            self.held += n
            waiter.set_result(self.epoch)

    def _head(self) -> tuple[Flow, int, _Waiters] | None:
        """Return the next flow, the number that its first waiter wants, and its queue."""
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
        """Return whether *n* more may be held. A waiter for more than the capacity is admitted alone."""
        return not self.held or self.held + n <= self.capacity


class Slots(WeightedSemaphore):
    """The account's parallel slots. A task of n pictures holds n, from its create until its end is known.

    `limit` is the largest number of slots that may be held. `capacity` (0 to `limit`) is an estimate of how
    many the service allows. It follows additive increase and multiplicative decrease (AIMD):

    | event                                  | capacity               | next growth                       |
    |----------------------------------------|------------------------|-----------------------------------|
    | start                                  | 9, or `limit` if lower | when all of it is in use          |
    | all of it in use, no refusal so far    | half as much again     | when all of it is in use          |
    | 1303                                   | the number in progress | after a pause, or 60 ended tasks  |
    | 1303 again, nothing accepted since     | three quarters of that | after a pause, or 60 ended tasks  |
    | the pause is over, or 60 tasks ended   | room for one more task | when that task is accepted        |
    | a task of n > 1 pictures, tried alone  | n once it is accepted  | when that task is accepted        |
    | 1303 for that task                     | at most n - 1          | unchanged                         |
    | a running task is attached             | ≥ number in progress   | unchanged                         |

    The capacity grows only while a job waits, so after the first refusal a probe costs one create. After a
    1303, no create is sent for 1 s (documented). The pause before the next probe is 2 s at first. It doubles
    with each refusal at about the same number of running pictures, up to 300 s, and returns to 2 s once that
    number has clearly changed. So slots that another program held are found within about as long as it held
    them, and within 300 s at most, even if none of our tasks ends.

    A job for which too few slots are free blocks the jobs behind it until it fits, or until nothing else is
    in progress and it is tried alone. If it is refused even then, other programs hold the slots, or the
    account never has that many. So smaller jobs pass it for 2 s, and after each further refusal for twice as
    long, up to 300 s. It is then tried alone again.

    A caller acquires slots and sends the create. If it succeeds, the caller calls `accepted` and later
    `ended`. After a 1303 the caller calls `refused` with the epoch that `acquire` returned. If, for any other
    reason, no task was created, it calls `release`. A task that is already running is counted by
    `force_acquire` and later `ended`. All times are by the event loop's clock.

    Raises:
        ConfigurationError: if *limit* is not a whole number above 0.
    """

    capacity: int
    epoch: int
    tasks_per_probe: ClassVar[int] = TASKS_PER_PROBE
    longest_probe_pause: ClassVar[float] = LONGEST_PROBE_PAUSE
    level_tolerance: ClassVar[float] = LEVEL_TOLERANCE

    def __init__(self, limit: int) -> None:
        check_option(COUNT, limit=limit)
        super().__init__(min(limit, INITIAL_CAPACITY))
        self.limit: int = limit
        self.running: int = 0  # pictures of tasks known to be running at the service
        self._unanswered = self.capacity  # pictures still to be accepted before the capacity may grow
        self._accepted = True  # whether a create was accepted since the capacity fell
        self._ended = 0  # tasks that ended since the capacity fell or grew
        self._pause = FIRST_PROBE_PAUSE / 2
        self._level = 0  # running pictures when the pause was last reset
        self._open_at = -inf  # no create is sent before this time
        self._probe_at = -inf  # the pause before the next probe ends at this time
        self._aside: list[tuple[int, Flow, asyncio.Future[int], int]] = []  # waiters that smaller ones pass
        self._aside_size: float = inf  # the number that was last refused although nothing else was held
        self._aside_until = -inf  # waiters for that number or more are set aside until this time
        self._aside_pause = FIRST_PROBE_PAUSE
        self._wake_at = inf  # when waiters may be served although nothing ends
        self._timer: asyncio.TimerHandle | None = None

    def accepted(self, n: int) -> None:
        """Record that the service runs a task of *n* acquired pictures."""
        self._unanswered -= n
        self._accepted = True
        if n == self.held > self.capacity:
            self._probe_at = -inf  # it was tried alone, and more may be free
        if n >= self._aside_size or (self._unanswered <= 0 and self._probe_at == -inf):
            self._aside_size, self._aside_pause = inf, FIRST_PROBE_PAUSE  # the account has more room now
        self._run(n)
        self._serve()

    def refused(self, n: int, epoch: int) -> bool:
        """Release *n* slots that the service refused with a 1303. *epoch* is what `acquire` returned.

        Return whether smaller tasks go first for a while, because nothing else was held.
        """
        now = asyncio.get_running_loop().time()
        self._open_at = now + REFUSAL_PAUSE
        current = epoch == self.epoch  # otherwise the create was sent before the capacity fell
        alone = current and 1 < n == self.held
        if current:
            self.epoch += 1
        if alone:
            self._set_aside(n)
        elif current:
            self._shrink()
            self._ended = self._unanswered = 0
            self._lengthen_pause(n)
            self._probe_at = now + self._pause
        self.release(n)
        return alone

    def ended(self, n: int) -> None:
        """Release the *n* slots of a task that has ended at the service."""
        self.running -= n
        self._ended += 1
        self.release(n)

    def force_acquire(self, n: int) -> None:
        """Count a running task of *n* pictures, even above the limit."""
        super().force_acquire(n)
        self._run(n)

    def _run(self, n: int) -> None:
        self.running += n
        self.capacity = max(self.capacity, min(self.running, self.limit))

    def _shrink(self) -> None:
        """Lower the capacity to the number in progress, or further if nothing was accepted since it fell."""
        probing = self._unanswered > 0
        reduction = 0 if probing or self._accepted else self.running // 4
        self.capacity = min(self.running - reduction, self.limit)
        self._accepted = False

    def _set_aside(self, n: int) -> None:
        """Let smaller waiters pass those for *n* or more for a while, as fewer slots may be free."""
        self._aside_size = n
        self._aside_until = asyncio.get_running_loop().time() + self._aside_pause
        self._aside_pause = min(2 * self._aside_pause, self.longest_probe_pause)
        self.capacity = self._unanswered = min(self.capacity, n - 1)

    def _lengthen_pause(self, n: int) -> None:
        """Double the pause, or reset it if the number of running pictures has clearly changed."""
        if abs(self.running - self._level) <= max(n, self._level * self.level_tolerance):
            self._pause = min(2 * self._pause, self.longest_probe_pause)
        else:
            self._pause, self._level = FIRST_PROBE_PAUSE, self.running

    def _admits(self, n: int) -> bool:
        """Return whether *n* more may be held now. Raise the capacity if it is due to grow."""
        now = asyncio.get_running_loop().time()
        if now < self._open_at:
            self._wake_at = self._open_at
            return False
        if self.held + n <= self.capacity:
            return True
        if not self.held and n > 1:
            self._unanswered = n  # it is tried alone, and the capacity rises if it is accepted
            return True
        pending = min(self._unanswered, self.held - self.running) > 0  # creates within the capacity
        if pending or self.held + n > self.limit or n >= self._aside_size:
            return False
        if now < self._probe_at and self._ended < self.tasks_per_probe:
            self._wake_at = self._probe_at
            return False
        self._grow(n)
        return True

    def _grow(self, n: int) -> None:
        """Raise the capacity by *n*, or by half until the first refusal."""
        grown = self.capacity * 3 // 2 if self.epoch == 0 else 0
        self.capacity = min(self.limit, max(grown, self.held + n))
        self._unanswered = self.capacity - self.running
        self._ended = 0
        self._probe_at = -inf  # the next growth follows once these run

    def _serve(self) -> None:
        self._wake_at = inf
        super()._serve()
        if self._head() is None:  # slots are free, and must be in use before the capacity grows
            self._unanswered = self.capacity - self.running
        if self._aside:
            self._wake_at = min(self._wake_at, self._aside_until)
        if self._timer is not None:
            self._timer.cancel()
        if self._wake_at < inf:
            self._timer = asyncio.get_running_loop().call_at(self._wake_at, self._serve)

    def _head(self) -> tuple[Flow, int, _Waiters] | None:
        """Return the next waiter as the base class does, but skip those that are set aside."""
        passing = asyncio.get_running_loop().time() < self._aside_until
        while not passing and self._aside:
            rank, flow, waiter, n = self._aside.pop()
            waiters = self._waiters(flow, rank)
            waiters[waiter] = n
            waiters.move_to_end(waiter, last=False)
        while (head := super()._head()) and passing and head[1] >= self._aside_size:
            flow, _, waiters = head
            self._aside.append((self._heap[0][0], flow, *waiters.popitem(last=False)))
        return head
