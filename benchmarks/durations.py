"""The jobs of the local server: each is a duration from a log-normal distribution and a start time."""

import time
from collections import Counter
from collections.abc import Callable
from math import exp
from random import Random
from statistics import NormalDist
from typing import Any

from aiohttp import web
from attrs import define, field

NORMAL = NormalDist()
SIGMA = 0.35  # of the logarithm
STRATA = 12  # of every 12 jobs one falls in each twelfth of the distribution, so that a few jobs represent it


def quantile(share: float, median: float) -> float:
    """Return the duration in seconds that a *share* of all jobs does not exceed."""
    return median * exp(SIGMA * NORMAL.inv_cdf(share))


@define(eq=False)
class Jobs:
    """The start and end of each job, and the number of requests by route."""

    median: float
    seed: int
    requests: Counter[str] = field(factory=Counter)
    ends: dict[str, float] = field(factory=dict)
    starts: dict[str, float] = field(factory=dict)
    shares: list[float] = field(factory=list)
    rng: Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reset(self.seed)

    def reset(self, seed: int) -> None:
        """Delete all jobs and counts, and draw further durations from *seed*."""
        self.rng = Random(seed)
        self.shares.clear()
        self.requests.clear()
        self.ends.clear()
        self.starts.clear()

    def new(self) -> str:
        """Start a job and return its id."""
        name = f"{10**17 + len(self.ends)}"
        self.starts[name] = time.time()
        self.ends[name] = self.starts[name] + quantile(self._share(), self.median)
        return name

    def _share(self) -> float:
        """Draw the next job's quantile from the current set of strata."""
        if not self.shares:
            self.shares += [(index + self.rng.uniform(0.001, 0.999)) / STRATA for index in range(STRATA)]
            self.rng.shuffle(self.shares)
        return self.shares.pop()

    def ended(self, name: str) -> bool:
        """Return whether the job has ended."""
        return time.time() >= self.ends[name]

    def statistics(self) -> dict[str, Any]:
        """Return the requests by route and the end of each job in Unix seconds."""
        return {"requests": dict(self.requests), "ends": self.ends}


Handler = Callable[[web.Request, Jobs], dict[str, Any]]
