"""How long to wait? Between tries, and between looks at tasks. Pure: no clock, no loop.

Looks are a trade: each costs a request, and what ended between two of them is late. So a look has a
price in seconds of lateness, and is taken when what has probably ended unseen has waited for so long in all.
For one task that is within a hundredth of the best plan there is, and it holds as well for many tasks that
one look tells of. The price follows from the lateness that is asked for; the chances from what
earlier tasks have taken.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import sqrt
from random import Random
from typing import NamedTuple, Protocol

from kling_expand.api.retry import growing
from kling_expand.errors import ConfigurationError

LATENESS = 0.58  # seconds the news of an end is to be late on average, beyond the network's own time
ENOUGH = 5  # ended tasks from which a pace is learned
_TAIL = 1.25  # beyond the longest task seen, each further stretch is so much longer
_STRETCHES = 12
_SAMPLE = 32  # tasks that stand for however many share a look
_MOST = 400  # looks at one task that a price is worked out over
_OVER = 1e-3  # share of tasks that still run when one need not go on working it out


class PollSchedule(Protocol):
    """When to look at tasks again."""

    def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
        """Seconds until a look is due at tasks that were all just seen, at these *ages* in seconds.

        It tells of all of them. Its *price* is a multiple of what a look at a single task is worth.
        """
        ...

    def learn(self, duration: float) -> None:
        """A task has taken *duration* seconds."""
        ...


class ExponentialSchedule:
    """Looks ever further apart: what is right as long as nothing is known.

    The steps depend on the age alone, so nothing is remembered for a task. Of many the youngest counts.
    """

    def __init__(
        self, rng: Random, *, first: float = 1.0, factor: float = 1.5, longest: float = 10.0
    ) -> None:
        self._rng = rng
        self._first = first
        self._factor = factor
        self._longest = longest

    def wait(self, ages: Sequence[float], price: float = 1.0) -> float:  # noqa: ARG002 - nothing is weighed
        """The step of the ladder that begins below the youngest of *ages*, up to a tenth longer."""
        age = min(ages)
        look = 0.0
        for step in growing(self._factor, self._first, self._longest):
            look += step
            if look > age or step >= self._longest:
                break
        return step * self._rng.uniform(1.0, 1.1)

    def learn(self, duration: float) -> None:
        """Nothing is learned."""


class AdaptiveSchedule:
    """Places looks by the durations of the newest *window* tasks, to be *latency* seconds late on average.

    Until `ENOUGH` have ended it is exponential. Tasks that share a look are told of sooner than one alone,
    and with fewer requests for each. Once a task can have ended, looks are at most *longest* seconds apart.
    Raises `ConfigurationError` for a *latency* that is not above zero.
    """

    def __init__(
        self,
        rng: Random | None = None,
        *,
        latency: float = LATENESS,
        window: int = 256,
        longest: float = 10.0,
    ) -> None:
        if not latency > 0:
            raise ConfigurationError(f"lateness must be a number of seconds above zero, not {latency!r}")
        self._latency = latency
        self._unlearned = ExponentialSchedule(rng or Random(), longest=longest)
        self._durations: deque[float] = deque(maxlen=window)
        self._longest = longest
        self._fresh = 0  # durations that came since the last fit
        self._law: DurationModel | None = None
        self._price = latency / 6  # of a look, in seconds that ends go unseen

    def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
        """Until what has ended unseen by then will have waited for as long as the look is worth."""
        if len(self._durations) < ENOUGH:
            return self._unlearned.wait(ages)
        if self._law is None or self._fresh * 16 >= len(self._durations):
            self._law = self._fit(ages)
        some = ages[:: -(-len(ages) // _SAMPLE)]
        return self._law.wait(some, self._price * price * len(some) / len(ages), self._longest)

    def learn(self, duration: float) -> None:
        """Take it into the window."""
        self._durations.append(duration)
        self._fresh += 1

    def _fit(self, running: Sequence[float]) -> "DurationModel":
        """The law that the window and what is *running* show, and the price that makes looks late enough."""
        self._fresh = 0
        law = DurationModel.of(sorted(self._durations), sorted(running))
        for _ in range(8):
            late = law.latency(self._price, self._longest)
            if abs(late / self._latency - 1) < 0.01:
                break
            # It grows about with the root of the price.
            self._price *= min(max((self._latency / late) ** 2, 1 / 16), 16.0)
        return law


class DurationModel(NamedTuple):
    """How long tasks take: at each of *ages* the share that has *ended*, and the *unseen* sum of it so far.

    Between them the first is linear. Some always go on beyond the last.
    """

    ages: list[float]
    ended: list[float]
    unseen: list[float]  # ∫ ended d(age)

    @classmethod
    def of(cls, durations: list[float], running: list[float]) -> "DurationModel":
        """Read off sorted *durations*, and the sorted ages of what has not ended."""
        ages, masses = _pieces(durations, _weights(durations, running))
        ended = list(accumulate(masses, initial=0.0))
        areas = [
            (end - start) * (before + after) / 2
            for (start, end), (before, after) in zip(pairwise(ages), pairwise(ended), strict=True)
        ]
        return cls(ages, ended, list(accumulate(areas, initial=0.0)))

    def at(self, age: float) -> tuple[float, float]:
        """The share that has ended at *age*, and its integral up to there."""
        ages, ended, unseen = self
        i = bisect_right(ages, age) - 1
        if i < 0:
            return 0.0, 0.0
        here, beyond = ended[i], age - ages[i]
        if i + 1 == len(ages):
            return here, unseen[i] + beyond * here
        share = here + beyond * (ended[i + 1] - here) / (ages[i + 1] - ages[i])
        return share, unseen[i] + beyond * (here + share) / 2

    def wait(self, ages: Sequence[float], price: float, longest: float) -> float:
        """Seconds until tasks that run at *ages* will have been over, unseen, for *price* seconds in all.

        At most *longest*, from when one of them can have ended.
        """
        seen = [(age, *self.at(age)) for age in ages]
        wait = max(self.ages[0] - max(ages), 0.0) + longest
        while True:
            waited, over = -price, 0.0  # a sum that grows ever faster, and how fast it does
            for age, ended, unseen in seen:
                ended_then, unseen_then = self.at(age + wait)
                waited += (unseen_then - unseen - ended * wait) / (1 - ended)
                over += (ended_then - ended) / (1 - ended)
            # Newton's steps come from above and never go too far.
            if waited <= 1e-3 * price or not over:
                return wait
            wait -= waited / over

    def latency(self, price: float, longest: float) -> float:
        """Seconds that the end of one task is unseen on average, if looks have this *price*."""
        age = late = ended = unseen = 0.0
        for _ in range(_MOST):
            wait = self.wait([age], price, longest)
            age += wait
            ended_then, unseen_then = self.at(age)
            late += unseen_then - unseen - ended * wait
            ended, unseen = ended_then, unseen_then
            if 1 - ended < _OVER:
                break
        return late


def _weights(durations: list[float], running: list[float]) -> list[float]:
    """The share of tasks that each of the *durations* stands for, by the estimate of Kaplan and Meier.

    What is *running* has been seen to last longer than its age: of tasks begun together those that end
    first would otherwise make all of them look short. One more counts as lasting longer than any.
    """
    weights, left = [], 1.0
    for index, duration in enumerate(durations):
        longer = len(running) - bisect_left(running, duration)
        weights.append(left / (len(durations) - index + longer + 1))
        left -= weights[-1]
    return weights


def _pieces(durations: list[float], weights: list[float]) -> tuple[list[float], list[float]]:
    """Stretches of age and the share of tasks that end in each, from sorted *durations* and their *weights*.

    Each duration is spread evenly to both sides, as far as its k-th nearest neighbour lies.
    """
    count = len(durations)
    near = min(round(1.5 * sqrt(count)), count - 1)
    blur = max(0.01 * durations[count // 2], 1e-3)  # durations that are all alike still have a spread
    density: dict[float, float] = defaultdict(float)
    for i, (duration, weight) in enumerate(zip(durations, weights, strict=True)):
        around = range(max(0, i - near), min(count - near, i + 1))
        reach = max(blur, min(max(duration - durations[j], durations[j + near] - duration) for j in around))
        low, high = max(0.0, duration - reach), duration + reach
        density[low] += weight / (high - low)
        density[high] -= weight / (high - low)
    ages, masses, height = sorted(density), [], 0.0
    for start, end in pairwise(ages):
        height += density[start]
        masses.append(max(height * (end - start), 1e-9))
    for _ in range(_STRETCHES):  # the longest task seen is not the longest there is
        masses.append((1 - sum(masses)) / 2)
        ages.append(ages[-1] * _TAIL + blur)
    return ages, masses
