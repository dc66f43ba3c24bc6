"""How good is the learned pace? Its looks and lateness, against fixed and growing steps and hindsight.

    python -m benchmarks.pacing --json

One task at a time, no network: a pace is asked when to look again until the task has ended, then told
its duration. The laws: log-normal (median 12 s, sigma 0.35), bimodal (7 in 10 near 8 s, the others near
30), drifting (a median that grows from 8 to 24 s), heavy tail (Pareto, exponent 1.5, from 5 s). Each pace
also stands beside *hindsight*: the fewest looks that any fixed plan needs to be no later on the very
same tasks, found by dynamic programming over all of them (for the drifting law, block by block). The
first tasks, from which a pace learns, are left out for all. With few tasks hindsight is unfair: it
knows when each of the slowest ends. What nobody can do better than without knowing the tasks is told too:
the fewest looks of any plan at 0.6 s, if the log-normal law is known exactly.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from math import sqrt
from random import Random
from statistics import fmean

import numpy as np
from attrs import define
from numpy.typing import NDArray

from benchmarks.durations import SIGMA, lasting
from benchmarks.reporting import by_turns, finish, medians, options, rounded, table
from kling_expand.jobs.poll_schedule import AdaptiveSchedule, ExponentialSchedule, PollSchedule

Floats = NDArray[np.float64]
MEDIAN = 12.0  # seconds, of the log-normal law
WARM = 200  # tasks to learn from
BLOCK = 400  # tasks of the drifting law that share one optimum
CELLS = 500  # quantiles at which hindsight may look
EXACT = 20_000  # quantiles that stand for a law
LIMIT_AT = 0.6  # seconds late
TURNS = 36  # of the search for its price of lateness


@define
class Fixed:
    """Looks every `step` seconds."""

    step: float

    def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
        """Always the same."""
        del ages, price
        return self.step

    def learn(self, duration: float) -> None:
        """Nothing is learned."""


def log_normal(rng: Random, number: int) -> Iterator[float]:
    """What image services do."""
    return (rng.lognormvariate(0.0, SIGMA) * MEDIAN for _ in range(number))


def bimodal(rng: Random, number: int) -> Iterator[float]:
    """A cache, a second model, a queue."""
    return (max(1.0, rng.gauss(8, 1) if rng.random() < 0.7 else rng.gauss(30, 3)) for _ in range(number))


def drifting(rng: Random, number: int) -> Iterator[float]:
    """A service that grows slower."""
    return (rng.lognormvariate(0.0, 0.2) * (8 + 16 * index / number) for index in range(number))


def heavy_tail(rng: Random, number: int) -> Iterator[float]:
    """Some take minutes."""
    return (5 * rng.paretovariate(1.5) for _ in range(number))


LAWS: dict[str, Callable[[Random, int], Iterator[float]]] = {
    "log-normal": log_normal,
    "bimodal": bimodal,
    "drifting": drifting,
    "heavy tail": heavy_tail,
}
PACES: dict[str, Callable[[Random], PollSchedule]] = {
    "learned": AdaptiveSchedule,
    "fixed 1 s": lambda _rng: Fixed(1.0),
    "fixed 2 s": lambda _rng: Fixed(2.0),
    "growing 1 to 10 s": ExponentialSchedule,
}


def follow(schedule: PollSchedule, durations: list[float]) -> tuple[float, float]:
    """Looks and lateness per task, after the warm ones."""
    looks, latency = [], []
    for duration in durations:
        age, number = 0.0, 0
        while age < duration:
            age += schedule.wait([age])
            number += 1
        schedule.learn(duration)
        looks.append(number)
        latency.append(age - duration)
    return fmean(looks[WARM:]), fmean(latency[WARM:])


def hindsight(durations: list[float], latency: float) -> float:
    """The fewest looks per task of any plan that is on average no more than *latency* seconds late.

    For each price of lateness the cheapest plan is found backwards from the longest task; the price is
    then searched for, and between two neighbouring plans one may mix.
    """
    ages, ended, told = _shares(np.sort(np.asarray(durations)))
    low, high = 1e-6, 1e6
    cheap, dear = _plan(ages, ended, told, low), _plan(ages, ended, told, high)
    for _ in range(TURNS):
        price = sqrt(low * high)
        plan = _plan(ages, ended, told, price)
        if plan[1] > latency:
            low, cheap = price, plan
        else:
            high, dear = price, plan
    if not dear[1] <= latency < cheap[1]:
        return dear[0]
    share = (latency - dear[1]) / (cheap[1] - dear[1])
    return dear[0] + share * (cheap[0] - dear[0])


def _shares(ordered: Floats) -> tuple[Floats, Floats, Floats]:
    """Ages at which to look; by each the share of tasks that have ended, and the sum of their durations."""
    number = len(ordered)
    quantiles = np.quantile(ordered, np.linspace(0, 1, CELLS))
    ages = np.unique(np.concatenate([[0.0], quantiles, ordered[-60:]]))
    places = np.searchsorted(ordered, ages, side="right")
    return ages, places / number, np.concatenate([[0.0], np.cumsum(ordered)])[places] / number


def _plan(ages: Floats, ended: Floats, told: Floats, price: float) -> tuple[float, float]:
    """Looks and lateness per task of the plan that is cheapest when a second of lateness costs *price*."""
    costs, looks, lates = np.zeros(len(ages)), np.zeros(len(ages)), np.zeros(len(ages))
    for here in range(len(ages) - 2, -1, -1):
        late = ages[here + 1 :] * (ended[here + 1 :] - ended[here]) - (told[here + 1 :] - told[here])
        cost = price * late + costs[here + 1 :]
        best = int(np.argmin(cost))
        open_yet = 1 - ended[here]
        costs[here] = cost[best] + open_yet
        looks[here] = open_yet + looks[here + 1 + best]
        lates[here] = late[best] + lates[here + 1 + best]
    return float(looks[0]), float(lates[0])


def optimum(law: str, durations: list[float], latency: float) -> float:
    """Hindsight for what was counted."""
    counted = durations[WARM:]
    if law != "drifting":
        return hindsight(counted, latency)
    starts = range(0, len(counted) - BLOCK + 1, BLOCK)
    return fmean(hindsight(counted[start : start + BLOCK], latency) for start in starts)


def knowing_the_law(latency: float) -> float:
    """The fewest looks at log-normal tasks of one who knows the law and not the tasks: its own quantiles."""
    shares = ((index + 0.5) / EXACT for index in range(EXACT))
    return hindsight([lasting(share, MEDIAN) for share in shares], latency)


def contest(law: str, schedule: str, number: int, seed: int) -> dict[str, float]:
    """One pace under one law."""
    durations = list(LAWS[law](Random(seed), number))
    looks, latency = follow(PACES[schedule](Random(seed)), durations)
    best = optimum(law, durations, latency)
    return {"looks": looks, "lateness s": latency, "hindsight looks": best, "ratio": looks / best}


def measure(number: int, runs: int) -> dict[tuple[str, str], dict[str, float]]:
    """Medians over the runs, each with a seed of its own."""

    def contestant(law: str, schedule: str) -> Callable[[], dict[str, float]]:
        seeds = count(1)
        return lambda: contest(law, schedule, number, next(seeds))

    pairs = [(law, schedule) for law in LAWS for schedule in PACES]
    found = by_turns({f"{law}/{schedule}": contestant(law, schedule) for law, schedule in pairs}, runs)
    return {(law, schedule): medians(found[f"{law}/{schedule}"]) for law, schedule in pairs}


def main() -> None:
    """Measure, and say it in words or as one JSON object."""
    given = options("How good is the learned pace?", tasks=4000, runs=5)
    found = measure(given.tasks, given.runs)
    table([{"law": law, "pace": schedule} | row for (law, schedule), row in found.items()])
    worst = max(row["ratio"] for (_, schedule), row in found.items() if schedule == "learned")
    print(
        f"medians of {given.runs} runs; the learned pace at most {rounded(worst)} x hindsight (at most 1.3)"
    )
    limit = rounded(knowing_the_law(LIMIT_AT))
    print(f"knowing the log-normal law exactly: at least {limit} looks at {LIMIT_AT:g} s")
    laws = {law: {schedule: found[law, schedule] for schedule in PACES} for law in LAWS}
    finish({"worst_ratio": worst, "laws": laws, "limit": limit}, as_json=given.json)


if __name__ == "__main__":
    main()
