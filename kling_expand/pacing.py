"""How long to wait? Between tries, and between looks at a task. Pure: no clock, no loop.

Looks are a trade: each costs a request, and what ended between two of them is late. If a task of
some age ends at the rate h, looking every Δ seconds costs 1/Δ requests a second and makes h·Δ/2
seconds of lateness; the best Δ is proportional to 1/√h. So the learned pace has its candidates evenly
spaced on ∫√h (none while nothing can have ended, many where most tasks end, few in the tail) and
chooses the cheapest of them, backwards from the last.
"""

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import pairwise
from math import inf, log, sqrt
from random import Random
from typing import Protocol

LATENESS = 0.55  # seconds the news of an end is to be late on average, beyond the network's own time
ENOUGH = 5  # ended tasks from which a pace is learned
_TAIL = 1.25  # beyond the longest task seen, each further stretch is so much longer
_STRETCHES = 12
_GRAIN = 8  # candidates from one look to the next
_DEARER = 20.0  # the most by which the price of a look may differ from that of even spacing
_MOST = 2048  # candidates at all: choosing among them holds the loop for some 20 ms


def retry_waits(rng: Random, *, first: float = 0.5, longest: float = 20.0) -> Iterator[float]:
    """Waits in seconds before each next try: doubling, each drawn from its upper half.

    `backoff.full_jitter` would draw from the global generator, and down to nothing.
    """
    for wait in _growing(2, first, longest):
        yield wait * rng.uniform(0.5, 1.0)


def _growing(factor: float, first: float, longest: float) -> Iterator[float]:
    import backoff  # here, as a client that never waits needs none of it

    waits = backoff.expo(base=factor, factor=first, max_value=longest)
    next(waits)  # its first value only primes it
    return waits


class Pace(Protocol):
    """When to look at a task again."""

    lateness: float

    def wait(self, age: float, sharing: int = 1) -> float:
        """Seconds until a task that is *age* seconds old should next be looked at.

        *sharing* is how many such tasks one look tells of: the more, the sooner it is worth its price.
        """
        ...

    def learn(self, duration: float) -> None:
        """A task has taken *duration* seconds."""
        ...


class ExponentialPace:
    """Looks ever further apart: what is right as long as nothing is known.

    The looks lie at fixed ages, so nothing has to be remembered for a task.
    """

    def __init__(
        self,
        rng: Random,
        *,
        first: float = 1.0,
        factor: float = 1.5,
        longest: float = 10.0,
        lateness: float = LATENESS,
    ) -> None:
        self.lateness = lateness
        self._rng = rng
        self._first = first
        self._factor = factor
        self._longest = longest

    def wait(self, age: float, sharing: int = 1) -> float:  # noqa: ARG002 - nothing is known to share
        """The next step of the ladder above *age*, up to a tenth later."""
        steps = _growing(self._factor, self._first, self._longest)
        look = step = 0.0
        while look <= age and step < self._longest:
            step = next(steps)
            look += step
        return (look - age if look > age else self._longest) * self._rng.uniform(1.0, 1.1)

    def learn(self, duration: float) -> None:
        """Nothing is learned."""


class LearnedPace:
    """Places looks by the durations of the newest *window* tasks, to be *lateness* seconds late on average.

    Until `ENOUGH` have ended it is exponential, and so it is beyond the longest that can be expected.
    """

    def __init__(
        self, rng: Random, *, lateness: float = LATENESS, window: int = 256, longest: float = 10.0
    ) -> None:
        self.lateness = lateness
        self._unlearned = ExponentialPace(rng, longest=longest, lateness=lateness)
        self._durations: deque[float] = deque(maxlen=window)
        self._longest = longest
        self._fresh = 0  # durations that came since the last fit
        self._price = 1.0  # of a look, as a multiple of what it would be if even spacing were the best
        self._ages: list[float] = []  # at which a look may be …
        self._looks: list[int] = []  # … and after each of them the index of the next

    def wait(self, age: float, sharing: int = 1) -> float:
        """Until the best next look for a task that has not ended at *age*."""
        if len(self._durations) < ENOUGH:
            return self._unlearned.wait(age, sharing)
        if self._fresh * 16 >= len(self._durations) or not self._ages:
            self._fit()
        here = max(bisect_right(self._ages, age) - 1, 0)
        if here + 1 >= len(self._ages):
            return self._longest
        # A look at k tasks costs each a k-th of its price, so the best Δ is smaller by √k.
        ahead = max(round((self._looks[here] - here) / sqrt(sharing)), 1)
        return max(self._ages[here + ahead] - age, 1e-3)

    def learn(self, duration: float) -> None:
        """Take it into the window."""
        self._durations.append(duration)
        self._fresh += 1

    def _fit(self) -> None:
        """Read the rate of ends off the window, space candidates evenly on ∫√h, choose the best of them."""
        self._fresh = 0
        ages, masses = _pieces(sorted(self._durations))
        ended, progress, slowness = [0.0], [0.0], 0.0
        for (start, end), mass in zip(pairwise(ages), masses, strict=True):
            root = sqrt(log((1 - ended[-1]) / (1 - ended[-1] - mass)) / (end - start))
            progress.append(progress[-1] + root * (end - start))
            slowness += mass / root
            ended.append(ended[-1] + mass)
        # A look every step/√h makes an end late by half of that: `lateness` on average over all ends.
        step = 2 * self.lateness * ended[-1] / slowness
        # The work is bounded: among short tasks a single very long one asks for a million candidates.
        grain = max(step / _GRAIN, progress[-1] / _MOST)
        count = int(progress[-1] / grain)
        self._ages = [0.0, *(_interpolate(progress, ages, i * grain) for i in range(1, count + 1))]
        shares = [_interpolate(ages, ended, age) for age in self._ages]
        self._looks, late = _best_looks(self._ages, shares, self._price * step**2 / 2)
        # Even spacing is not quite the best: settle on what is, but never so far that there is no way back.
        self._price = min(max(self._price * self.lateness / max(late, 1e-9), 1 / _DEARER), _DEARER)


def _best_looks(ages: list[float], ended: list[float], price: float) -> tuple[list[int], float]:
    """For each of *ages* the next to look at, where a look costs *price* seconds of lateness.

    *ended* is the share of tasks that have ended by then. Worked out from the last age to the
    first; the second value is the lateness per task that comes of it.
    """
    last = len(ages) - 1
    looks, costs, lates = [last] * (last + 1), [0.0] * (last + 1), [0.0] * (last + 1)
    means = [0.0]  # ∫ age d(ended)
    for (start, end), (before, after) in zip(pairwise(ages), pairwise(ended), strict=True):
        means.append(means[-1] + (after - before) * (start + end) / 2)
    for here in range(last - 1, -1, -1):
        best = inf
        for there in range(here + 1, min(here + 4 * _GRAIN, last) + 1):
            late = ages[there] * (ended[there] - ended[here]) - (means[there] - means[here])
            cost = late + costs[there]
            if cost < best:
                best, looks[here], lates[here] = cost, there, late + lates[there]
        costs[here] = best + price * (1 - ended[here])
    return looks, lates[0]


def _pieces(durations: list[float]) -> tuple[list[float], list[float]]:
    """Stretches of age and the share of tasks that end in each, from sorted *durations*.

    Each duration is spread evenly to both sides, as far as its k-th nearest neighbour lies.
    """
    count = len(durations)
    near = min(round(1.5 * sqrt(count)), count - 1)
    blur = max(0.01 * durations[count // 2], 1e-3)  # durations that are all alike still have a spread
    density: dict[float, float] = defaultdict(float)
    for i, duration in enumerate(durations):
        around = range(max(0, i - near), min(count - near, i + 1))
        reach = max(blur, min(max(duration - durations[j], durations[j + near] - duration) for j in around))
        low, high = max(0.0, duration - reach), duration + reach
        density[low] += 1 / (high - low)
        density[high] -= 1 / (high - low)
    ages, masses, height = sorted(density), [], 0.0
    for start, end in pairwise(ages):
        height += density[start]
        masses.append(max(height * (end - start) / (count + 1), 1e-9))
    for _ in range(_STRETCHES):  # the longest task seen is not the longest there is
        masses.append((1 - sum(masses)) / 2)
        ages.append(ages[-1] * _TAIL + blur)
    return ages, masses


def _interpolate(xs: list[float], ys: list[float], x: float) -> float:
    """The piecewise linear function through the points, level outside them."""
    i = bisect_right(xs, x)
    if i == 0:
        return ys[0]
    if i == len(xs):
        return ys[-1]
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])
