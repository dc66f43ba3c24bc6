"""The polls and the latency of each poll schedule, compared with the optimum in hindsight.

    python -m benchmarks.schedules --json

One task runs at a time, without a network. A schedule decides when to poll until the task has ended, and then
learns its duration. Four distributions are those of `benchmarks.durations`: exponential, constant,
uniform and an idle queue. The other four are:

    log-normal    median 12 s, sigma 0.35
    bimodal       7 of 10 near 8 s, the others near 30 s
    drifting      the median grows from 8 to 24 s
    heavy tail    Pareto with exponent 1.5, at least 5 s

The *optimum* is the smallest number of polls of any fixed plan with the same latency on the same tasks. It is
found by dynamic programming over all tasks, for the drifting distribution in blocks. The first tasks,
from which a schedule learns, are not counted. With few tasks the optimum is not a fair limit, since it knows
the end of each of the slowest tasks. The line "with the log-normal distribution known exactly" has the limit
without such knowledge: the fewest polls at 0.6 s if only the distribution is known.

The second table is about the first task of a process whose schedule knows nothing, for durations spread
evenly over a range. The third is about the same task if an earlier process has learned `KNOWN` durations of
the same kind, which a journal or `Settings.cache_dir` keeps.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, product
from math import sqrt
from random import Random
from statistics import fmean

import numpy as np
from attrs import define
from numpy.typing import NDArray

from benchmarks.durations import DISTRIBUTIONS, SIGMA, quantile
from benchmarks.reporting import finish, interleaved, medians, options, rounded, table
from kling_expand.jobs.poll_schedule import AdaptiveSchedule, ExponentialSchedule, PollSchedule

Floats = NDArray[np.float64]
MEDIAN = 12.0  # seconds, of the log-normal distribution
WARM = 200  # tasks that are not counted
BLOCK = 400  # tasks of the drifting distribution that share one optimum
CELLS = 500  # quantiles at which the optimum may poll
EXACT = 20_000  # quantiles that represent a distribution
LIMIT_LATENCY = 0.6  # seconds
FIRST_RANGES = [(0, 1), (1, 8), (8, 15), (15, 60), (60, 120), (120, 600)]  # seconds
KNOWN = 50  # durations that an earlier process has learned
STEPS = 36  # of the search for the price of latency


@define
class Fixed:
    """A schedule with a constant interval in seconds."""

    interval: float

    def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
        """Return the interval."""
        del ages, price
        return self.interval

    def learn(self, duration: float) -> None:
        """Ignore the duration."""


def log_normal(rng: Random, number: int) -> Iterator[float]:
    """Yield durations that are typical of image services."""
    return (rng.lognormvariate(0.0, SIGMA) * MEDIAN for _ in range(number))


def bimodal(rng: Random, number: int) -> Iterator[float]:
    """Yield durations of a service with a cache, a second model or a queue."""
    return (max(1.0, rng.gauss(8, 1) if rng.random() < 0.7 else rng.gauss(30, 3)) for _ in range(number))


def drifting(rng: Random, number: int) -> Iterator[float]:
    """Yield durations of a service that becomes slower."""
    return (rng.lognormvariate(0.0, 0.2) * (8 + 16 * index / number) for index in range(number))


def heavy_tail(rng: Random, number: int) -> Iterator[float]:
    """Yield durations, some of which are minutes."""
    return (5 * rng.paretovariate(1.5) for _ in range(number))


def sampled(distribution: Callable[[float, int], float], rng: Random, number: int) -> Iterator[float]:
    """Yield independent durations of a distribution of `benchmarks.durations`."""
    return (distribution(rng.random(), index) for index in range(number))


SAMPLERS: dict[str, Callable[[Random, int], Iterator[float]]] = {
    "log-normal": log_normal,
    "bimodal": bimodal,
    "drifting": drifting,
    "heavy tail": heavy_tail,
    **{
        name: partial(sampled, DISTRIBUTIONS[name])
        for name in ("exponential", "constant", "uniform", "queue")
    },
}
SCHEDULES: dict[str, Callable[[Random], PollSchedule]] = {
    "adaptive": lambda _rng: AdaptiveSchedule(),
    "fixed 1 s": lambda _rng: Fixed(1.0),
    "fixed 2 s": lambda _rng: Fixed(2.0),
    "exponential 1 to 10 s": ExponentialSchedule,
}


def simulate(schedule: PollSchedule, durations: list[float]) -> tuple[float, float]:
    """Return the mean polls and latency of the tasks that are counted."""
    polls, latencies = [], []
    for duration in durations:
        age, number = 0.0, 0
        while age < duration:
            age += schedule.wait([age])
            number += 1
        schedule.learn(duration)
        polls.append(number)
        latencies.append(age - duration)
    return fmean(polls[WARM:]), fmean(latencies[WARM:])


def optimum(durations: list[float], latency: float) -> float:
    """Return the fewest polls per task of any plan whose mean latency is at most *latency* seconds.

    For a price of latency the cheapest plan is found backwards from the longest task. A binary search finds
    the price. The result may be a mixture of the two plans on both sides of *latency*.
    """
    ages, ended, summed = _shares(np.sort(np.asarray(durations)))
    low, high = 1e-6, 1e6
    cheap, expensive = _plan(ages, ended, summed, low), _plan(ages, ended, summed, high)
    for _ in range(STEPS):
        price = sqrt(low * high)
        plan = _plan(ages, ended, summed, price)
        if plan[1] > latency:
            low, cheap = price, plan
        else:
            high, expensive = price, plan
    if not expensive[1] <= latency < cheap[1]:
        return expensive[0]
    share = (latency - expensive[1]) / (cheap[1] - expensive[1])
    return expensive[0] + share * (cheap[0] - expensive[0])


def _shares(ordered: Floats) -> tuple[Floats, Floats, Floats]:
    """Return ages at which to poll, and for each the share of ended tasks and the sum of their durations."""
    number = len(ordered)
    quantiles = np.quantile(ordered, np.linspace(0, 1, CELLS))
    ages = np.unique(np.concatenate([[0.0], quantiles, ordered[-60:]]))
    positions = np.searchsorted(ordered, ages, side="right")
    return ages, positions / number, np.concatenate([[0.0], np.cumsum(ordered)])[positions] / number


def _plan(ages: Floats, ended: Floats, summed: Floats, price: float) -> tuple[float, float]:
    """Return the polls and the latency per task of the cheapest plan if a second of latency costs *price*."""
    costs, polls, latencies = np.zeros(len(ages)), np.zeros(len(ages)), np.zeros(len(ages))
    for here in range(len(ages) - 2, -1, -1):
        latency = ages[here + 1 :] * (ended[here + 1 :] - ended[here]) - (summed[here + 1 :] - summed[here])
        cost = price * latency + costs[here + 1 :]
        best = int(np.argmin(cost))
        running = 1 - ended[here]
        costs[here] = cost[best] + running
        polls[here] = running + polls[here + 1 + best]
        latencies[here] = latency[best] + latencies[here + 1 + best]
    return float(polls[0]), float(latencies[0])


def counted_optimum(distribution: str, durations: list[float], latency: float) -> float:
    """Return the optimum for the tasks that are counted."""
    counted = durations[WARM:]
    if distribution != "drifting":
        return optimum(counted, latency)
    starts = range(0, len(counted) - BLOCK + 1, BLOCK)
    return fmean(optimum(counted[start : start + BLOCK], latency) for start in starts)


def known_distribution(latency: float) -> float:
    """Return the fewest polls for log-normal tasks if the distribution is known and the tasks are not."""
    shares = ((index + 0.5) / EXACT for index in range(EXACT))
    return optimum([quantile(share, MEDIAN) for share in shares], latency)


def measure_schedule(distribution: str, schedule: str, number: int, seed: int) -> dict[str, float]:
    """Measure one schedule with one distribution."""
    durations = list(SAMPLERS[distribution](Random(seed), number))
    polls, latency = simulate(SCHEDULES[schedule](Random(seed)), durations)
    best = counted_optimum(distribution, durations, latency)
    return {"polls per task": polls, "latency (s)": latency, "optimal polls": best, "ratio": polls / best}


def first_task(low: float, high: float, schedule: str, number: int, known: int = 0) -> dict[str, float]:
    """Return the means of *number* tasks of *low* to *high* seconds, each after *known* learned durations."""
    polls, latencies = [], []
    for index in range(number):
        rng = Random(index)
        fresh = SCHEDULES[schedule](rng)
        for _ in range(known):
            fresh.learn(rng.uniform(low, high))
        duration = low + (high - low) * (index + 0.5) / number
        age, polled = 0.0, 0
        while age < duration:
            age += fresh.wait([age])
            polled += 1
        polls.append(polled)
        latencies.append(age - duration)
    return {"polls": fmean(polls), "latency (s)": fmean(latencies)}


def first_tasks(known: int, number: int) -> dict[str, dict[str, float]]:
    """Return the polls and latency of a first task with the adaptive and the exponential schedule."""
    found = {}
    for low, high in FIRST_RANGES:
        plain = first_task(low, high, "exponential 1 to 10 s", number)
        found[f"{low:g} to {high:g} s"] = first_task(low, high, "adaptive", number, known) | {
            f"exponential {name}": value for name, value in plain.items()
        }
    return found


def measure(distributions: list[str], number: int, runs: int) -> dict[tuple[str, str], dict[str, float]]:
    """Return the medians over the runs, each with its own seed."""

    def candidate(distribution: str, schedule: str) -> Callable[[], dict[str, float]]:
        seeds = count(1)
        return lambda: measure_schedule(distribution, schedule, number, next(seeds))

    pairs = list(product(distributions, SCHEDULES))
    found = interleaved({"/".join(pair): candidate(*pair) for pair in pairs}, runs)
    return {pair: medians(found["/".join(pair)]) for pair in pairs}


def main() -> None:
    """Measure and print the results."""
    numbers = {"tasks": 4000, "first_tasks": 400, "runs": 5}
    given = options("Polls and latency of each poll schedule.", distributions=",".join(SAMPLERS), **numbers)
    distributions = given.distributions.split(",")
    found = measure(distributions, given.tasks, given.runs)
    table([{"durations": name, "schedule": schedule} | row for (name, schedule), row in found.items()])
    worst = max(row["ratio"] for (_, schedule), row in found.items() if schedule == "adaptive")
    print(f"medians of {given.runs} runs; adaptive: ratio at most {rounded(worst)} (goal: at most 1.3)")
    limit = rounded(known_distribution(LIMIT_LATENCY))
    print(f"with the log-normal distribution known exactly: {limit} polls at {LIMIT_LATENCY:g} s")
    firsts = {known: first_tasks(known, given.first_tasks) for known in (0, KNOWN)}
    for known, ranges in firsts.items():
        print(f"first task of a process that knows {known} durations:")
        table([{"durations": name} | row for name, row in ranges.items()])
    rows = {name: {schedule: found[name, schedule] for schedule in SCHEDULES} for name in distributions}
    finish({"worst_ratio": worst, "distributions": rows, "limit": limit, "first": firsts}, as_json=given.json)


if __name__ == "__main__":
    main()
