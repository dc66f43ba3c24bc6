"""The jobs of the local server: each has a start time and a duration that follows a distribution.

There are eight distributions, described here for a median of 12 s. The durations scale with the given median:

    log-normal   sigma 0.35, typical of image services
    bimodal      7 of 10 near 8 s, the others near 30 s: a cache, or a second model
    heavy tail   Pareto with exponent 1.5, at least 5 s: some take minutes
    drifting     log-normal with sigma 0.2, whose median goes from 8 to 24 s and back within 2,000 jobs
    exponential  mean 12 s: the age of a job says nothing about its end
    constant     12 s
    uniform      5 to 20 s
    queue        four workers that take 6 to 12 s a job: with many jobs most of the time is spent waiting
"""

import heapq
import time
from collections import Counter
from collections.abc import Callable
from math import exp, log
from random import Random
from statistics import NormalDist
from typing import Any

from aiohttp import web
from attrs import define, field

NORMAL = NormalDist()
SIGMA = 0.35  # of the logarithm
STRATA = 12  # of every 12 jobs one falls in each twelfth of the distribution, so that a few jobs represent it
DRIFT = 1000  # jobs from the shortest median to the longest
WORKERS = 4  # of a queue


def quantile(share: float, median: float) -> float:
    """Return the duration in seconds that a *share* of all jobs does not exceed."""
    return median * exp(SIGMA * NORMAL.inv_cdf(share))


def _bimodal(share: float, _number: int) -> float:
    mean, deviation, within = (8.0, 1.0, share / 0.7) if share < 0.7 else (30.0, 3.0, (share - 0.7) / 0.3)
    return max(1.0, mean + deviation * NORMAL.inv_cdf(min(max(within, 1e-6), 1 - 1e-6)))


def _drifting(share: float, number: int) -> float:
    step = number % (2 * DRIFT)
    return exp(0.2 * NORMAL.inv_cdf(share)) * (8 + 16 * min(step, 2 * DRIFT - step) / DRIFT)


# The duration of the job with a *number* at the quantile *share*, for a median of 12 s.
DISTRIBUTIONS: dict[str, Callable[[float, int], float]] = {
    "log-normal": lambda share, _number: quantile(share, 12.0),
    "bimodal": _bimodal,
    "heavy tail": lambda share, _number: 5 * (1 - share) ** (-1 / 1.5),
    "drifting": _drifting,
    "exponential": lambda share, _number: -12 * log(1 - share),
    "constant": lambda _share, _number: 12.0,
    "uniform": lambda share, _number: 5 + 15 * share,
    "queue": lambda share, _number: 6 + 6 * share,
}


@define(eq=False)
class Jobs:
    """The start and end of each job by the *clock*, and the number of requests by route."""

    median: float
    seed: int
    distribution: str = "log-normal"
    clock: Callable[[], float] = time.time
    requests: Counter[str] = field(factory=Counter)
    ends: dict[str, float] = field(factory=dict)
    starts: dict[str, float] = field(factory=dict)
    shares: list[float] = field(factory=list)
    free_at: list[float] = field(factory=list)  # when each worker of a queue is free, a heap
    warm: bool = True  # whether the current jobs are those that are not measured
    deleted: int = 0  # jobs, whose ids are not reused because callbacks about them may still arrive
    rng: Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reset(self.seed)

    def measure(self, seed: int) -> None:
        """Delete all jobs and counts, and measure the jobs that follow."""
        self.deleted += len(self.ends)
        self.reset(seed)
        self.warm = False

    def reset(self, seed: int) -> None:
        """Delete all jobs and counts, and draw the next durations from *seed*."""
        self.rng = Random(seed)
        self.shares.clear()
        self.requests.clear()
        self.ends.clear()
        self.starts.clear()
        self.free_at = [0.0] * WORKERS if self.distribution == "queue" else []

    def new(self) -> str:
        """Start a job and return its id."""
        number = len(self.ends)
        name, now = f"{10**17 + self.deleted + number}", self.clock()
        seconds = DISTRIBUTIONS[self.distribution](self._share(), number) * self.median / 12
        begin = max(now, self.free_at[0]) if self.free_at else now
        self.starts[name], self.ends[name] = now, begin + seconds
        if self.free_at:
            heapq.heapreplace(self.free_at, begin + seconds)
        return name

    def _share(self) -> float:
        """Draw the next job's quantile from the current set of strata."""
        if not self.shares:
            self.shares += [(index + self.rng.uniform(0.001, 0.999)) / STRATA for index in range(STRATA)]
            self.rng.shuffle(self.shares)
        return self.shares.pop()

    def ended(self, name: str) -> bool:
        """Return whether the job has ended."""
        return self.clock() >= self.ends[name]

    def statistics(self) -> dict[str, Any]:
        """Return the requests by route and the end of each job in Unix seconds."""
        return {"requests": dict(self.requests), "ends": self.ends}


Handler = Callable[[web.Request, Jobs], dict[str, Any]]
