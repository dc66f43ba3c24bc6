"""What is a job to the server? A duration, drawn from a log-normal law, and when it began."""

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
STRATA = 12  # of as many jobs one lasts as long as each twelfth of the law says: few jobs are typical then


def lasting(share: float, median: float) -> float:
    """The seconds within which this *share* of all jobs ends."""
    return median * exp(SIGMA * NORMAL.inv_cdf(share))


@define(eq=False)
class Jobs:
    """Every job's end, and how many requests there were."""

    median: float
    seed: int
    requests: Counter[str] = field(factory=Counter)
    ends: dict[str, float] = field(factory=dict)
    began: dict[str, float] = field(factory=dict)
    shares: list[float] = field(factory=list)
    rng: Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.forget(self.seed)

    def forget(self, seed: int) -> None:
        """Begin anew, with durations of another *seed*."""
        self.rng = Random(seed)
        self.shares.clear()
        self.requests.clear()
        self.ends.clear()
        self.began.clear()

    def new(self) -> str:
        """The id of a new job."""
        name = f"{10**17 + len(self.ends)}"
        self.began[name] = time.time()
        self.ends[name] = self.began[name] + lasting(self._share(), self.median)
        return name

    def _share(self) -> float:
        """Which share of all jobs is quicker than the next one: drawn evenly, twelve by twelve."""
        if not self.shares:
            self.shares += [(index + self.rng.uniform(0.001, 0.999)) / STRATA for index in range(STRATA)]
            self.rng.shuffle(self.shares)
        return self.shares.pop()

    def ended(self, name: str) -> bool:
        """Whether the job is over."""
        return time.time() >= self.ends[name]

    def told(self) -> dict[str, Any]:
        """The books, as JSON."""
        return {"requests": dict(self.requests), "ends": self.ends}


Handler = Callable[[web.Request, Jobs], dict[str, Any]]
