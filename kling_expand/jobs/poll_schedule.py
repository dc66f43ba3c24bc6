"""Poll schedules (adaptive and exponential), and the trust in list pages and callbacks.

A read costs a request, but a task that ends between two reads is noticed late. So a read has a price in
seconds of latency. It is made when the expected latency, summed over all tasks that may have ended unnoticed,
reaches that price. For a single task, this is within 1 % of the optimum found by dynamic programming. The
same rule applies to many tasks on one list page. The price follows from the target latency, and the
probabilities from the durations of earlier tasks. Nothing here reads a clock.

The durations are kept for later processes in a small text file. It has one line for each account, with the
account's name and the durations in seconds. The file is replaced as a whole, and invalid lines are ignored.
"""

import logging
import os
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from math import inf, isfinite, log, sqrt
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

from kling_expand.api.session import growing
from kling_expand.config import COUNT, NUMBER, check_option
from kling_expand.models import Task

logger: logging.Logger = logging.getLogger(__name__)

TARGET_LATENCY = 0.58  # average seconds from the end of a task to the read that shows it
LEARN_AFTER = 5  # ended tasks before the schedule uses their durations
MIN_DISTRUST = 20.0  # seconds without lists after the first bad list
STALE_AFTER = 3.0  # seconds a list may lag behind single reads
CALLBACK_TIMEOUT = 2.0  # seconds after the end of a task within which its callback must arrive
FEWEST_MISSED = 0.02  # the lowest estimate of the share of missed callbacks
_RECEIVED_WEIGHT, _MISSED_WEIGHT = 0.1, 0.5  # the weight of one end in that estimate
WINDOW = 256  # durations that are remembered
HISTORY_FILE = "durations.txt"
HISTORY_ACCOUNTS = 32  # accounts in that file at most
HISTORY_BYTES = 256 << 10  # a larger file is ignored
_TAIL_FACTOR = 1.25  # each interval beyond the longest duration seen is longer by this factor
_TAIL_INTERVALS = 12
_SAMPLE_SIZE = 32  # tasks that represent all tasks of a shared read
_MAX_READS = 400  # reads of one task over which the latency of a price is computed
_NEGLIGIBLE = 1e-3  # share of running tasks below which that computation ends


class PollSchedule(Protocol):
    """The interface of poll schedules, which decide when tasks are polled.

    The methods `expected_ends` and `overdue` of `AdaptiveSchedule` are optional.
    """

    def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
        """Return the seconds until the next read of tasks of these *ages* (seconds), which were just read.

        One read covers all of them. *price* is its price, as a multiple of the price of reading one task.
        """
        ...

    def learn(self, duration: float) -> None:
        """Record that a task took *duration* seconds."""
        ...


class ExponentialSchedule:
    """Intervals that grow from *first* to *longest* seconds.

    The intervals depend only on the age of a task, so no state is kept. With many tasks, the age of the
    youngest decides.
    """

    def __init__(
        self, rng: Random, *, first: float = 1.0, factor: float = 1.5, longest: float = 10.0
    ) -> None:
        self._rng = rng
        self._first = first
        self._factor = factor
        self._longest = longest

    def wait(self, ages: Sequence[float], price: float = 1.0) -> float:  # noqa: ARG002 - part of the protocol
        """Return the interval for the youngest of *ages*, randomly lengthened by up to a tenth."""
        age = min(ages)
        read_at = 0.0
        for step in growing(self._factor, self._first, self._longest):
            read_at += step
            if read_at > age or step >= self._longest:
                break
        return step * self._rng.uniform(1.0, 1.1)

    def learn(self, duration: float) -> None:
        """Do nothing: this schedule does not learn."""


class AdaptiveSchedule:
    """A schedule that polls when tasks have probably ended, estimated from the newest *window* durations.

    The average latency is *target_latency* seconds plus the network's own time. Until `LEARN_AFTER` tasks
    have ended, the schedule uses `PRIOR`, in which most tasks take 15 to 60 s. Tasks that share a list page
    have a lower latency than a single task, with fewer requests each. Once a task may have ended, reads are
    at most *longest* seconds apart.

    Raises:
        ConfigurationError: if an argument is invalid.
    """

    def __init__(
        self,
        *,
        target_latency: float = TARGET_LATENCY,
        window: int = WINDOW,
        longest: float = 10.0,
    ) -> None:
        check_option(NUMBER, target_latency=target_latency, longest=longest)
        check_option(COUNT, window=window)
        self._target_latency = target_latency
        self._durations: deque[float] = deque(maxlen=window)
        self._longest = longest
        self._unfitted = 0  # durations since the last fit
        self._model: DurationModel | None = None
        self._price = target_latency / 6  # of one read, in seconds of latency summed over tasks

    def wait(self, ages: Sequence[float], price: float = 1.0) -> float:
        """Return the seconds until the expected summed latency of ended tasks equals the *price* of the read.

        *ages* are the ages in seconds of the tasks that the read will cover.
        """
        sample = ages[:: -(-len(ages) // _SAMPLE_SIZE)]
        share = price * len(sample) / len(ages)
        if len(self._durations) < LEARN_AFTER:
            return PRIOR.wait(sample, self._target_latency / 3 * share, self._longest)
        if self._model is None or self._unfitted * 16 >= len(self._durations):
            self._model = self._fit(ages)
        return self._model.wait(sample, self._price * share, self._longest)

    @property
    def durations(self) -> tuple[float, ...]:
        """The durations of the newest tasks, oldest first."""
        return tuple(self._durations)

    def learn(self, duration: float) -> None:
        """Add *duration* to the window."""
        self._durations.append(duration)
        self._unfitted += 1

    def expected_ends(self, ages: Sequence[float], unseen: Sequence[float]) -> float | None:
        """Return the hazard of tasks now at *ages*, accumulated over the last *unseen* seconds of each.

        It is the sum of -log(p), where p is the probability that a task did not end in that time. So one task
        may count for more than 1. If the sum is *x*, the probability that no task has ended is exp(-x). The
        result is None until enough durations are known.
        """
        if self._model is None or len(self._durations) < LEARN_AFTER:
            return None
        expected = 0.0
        for age, seconds in zip(ages, unseen, strict=True):
            before, now = self._model.at(max(age - seconds, 0.0))[0], self._model.at(age)[0]
            expected += log(max(1 - before, 1e-9) / max(1 - now, 1e-9))
        return expected

    def overdue(self, age: float, share: float) -> float:
        """Return the seconds after which only a *share* of the tasks now at *age* are still running.

        A task that has already outlived all but this share of all tasks is overdue again after at most the
        schedule's `longest` seconds.
        """
        learned = self._model if len(self._durations) >= LEARN_AFTER else None
        model = learned or PRIOR
        first = model.age_at(1 - share)
        again = model.age_at(1 - share * (1 - model.at(age)[0]))
        return max(0.0, min(again, max(first, age + self._longest)) - age)

    def _fit(self, running: Sequence[float]) -> "DurationModel":
        """Fit a model to the window and to the ages of *running* tasks, and set the price of a read."""
        self._unfitted = 0
        model = DurationModel.of(sorted(self._durations), sorted(running))
        for _ in range(8):
            latency = model.latency(self._price, self._longest)
            if abs(latency / self._target_latency - 1) < 0.01:
                break
            # The latency grows about with the square root of the price.
            self._price *= min(max((self._target_latency / latency) ** 2, 1 / 16), 16.0)
        return model


class DurationModel(NamedTuple):
    """The distribution of durations: the share of tasks that have *ended* by each of *ages*.

    `integral` is the integral of `ended` up to each age. `ended` is linear between two ages. A share of tasks
    always runs longer than the last age.
    """

    ages: list[float]
    ended: list[float]
    integral: list[float]  # ∫ ended d(age)

    @classmethod
    def of(cls, durations: list[float], running: list[float]) -> "DurationModel":
        """Estimate the distribution from sorted *durations* and the sorted ages of tasks still *running*."""
        return cls.of_pieces(*_pieces(durations, _weights(durations, running)))

    @classmethod
    def of_pieces(cls, ages: list[float], masses: list[float]) -> "DurationModel":
        """Return the distribution with the share *masses[i]* of tasks between *ages[i]* and the next age."""
        ended = list(accumulate(masses, initial=0.0))
        areas = [
            (end - start) * (before + after) / 2
            for (start, end), (before, after) in zip(pairwise(ages), pairwise(ended), strict=True)
        ]
        return cls(ages, ended, list(accumulate(areas, initial=0.0)))

    def at(self, age: float) -> tuple[float, float]:
        """Return the share of tasks that have ended at *age*, and the integral of that share up to *age*."""
        ages, ended, integral = self
        i = bisect_right(ages, age) - 1
        if i < 0:
            return 0.0, 0.0
        base, elapsed = ended[i], age - ages[i]
        if i + 1 == len(ages):
            return base, integral[i] + elapsed * base
        share = base + elapsed * (ended[i + 1] - base) / (ages[i + 1] - ages[i])
        return share, integral[i] + elapsed * (base + share) / 2

    def age_at(self, share: float) -> float:
        """Return the age by which a *share* of tasks has ended, or infinity."""
        i = bisect_left(self.ended, share)
        if i == len(self.ended):
            return inf
        if i == 0:
            return self.ages[0]
        before, after = self.ended[i - 1 : i + 1]
        return self.ages[i - 1] + (self.ages[i] - self.ages[i - 1]) * (share - before) / (after - before)

    def wait(self, ages: Sequence[float], price: float, longest: float) -> float:
        """Return the seconds until the expected summed latency of the tasks now at *ages* is *price* seconds.

        It is at most *longest* seconds once the first of them may have ended.
        """
        seen = [(age, *self.at(age)) for age in ages]
        wait = max(self.ages[0] - max(ages), 0.0) + longest
        while True:
            waited, slope = -price, 0.0  # the summed latency, which is convex, and its slope
            for age, ended, integral in seen:
                next_ended, next_integral = self.at(age + wait)
                waited += (next_integral - integral - ended * wait) / (1 - ended)
                slope += (next_ended - ended) / (1 - ended)
            # The sum is convex, so Newton's method converges from above and never overshoots.
            if waited <= 1e-3 * price or not slope:
                return wait
            wait -= waited / slope

    def latency(self, price: float, longest: float) -> float:
        """Return the average latency of a single task, in seconds, if a read has this *price*."""
        age = latency = ended = integral = 0.0
        for _ in range(_MAX_READS):
            wait = self.wait([age], price, longest)
            age += wait
            next_ended, next_integral = self.at(age)
            latency += next_integral - integral - ended * wait
            ended, integral = next_ended, next_integral
            if 1 - ended < _NEGLIGIBLE:
                break
        return latency


# Most tasks take 15 to 60 s. The share below 15 s keeps the first reads as close together as those of an
# exponential schedule, so that a task that ends at once is noticed soon.
PRIOR = DurationModel.of_pieces(
    [0.0, 1.0, 7.0, 15.0, 60.0, 120.0, 600.0], [0.37, 0.09, 0.035, 0.485, 0.011, 0.004]
)


def format_durations(durations: Iterable[float]) -> str:
    """Return *durations* as text."""
    return " ".join(f"{duration:.2f}" for duration in durations)


def parse_durations(text: str) -> list[float]:
    """Return the newest durations in *text*.

    Raises:
        ValueError: if the text contains anything but durations.
    """
    durations = [float(word) for word in text.split()[-WINDOW:]]
    if not all(isfinite(duration) and duration > 0 for duration in durations):
        raise ValueError("a duration must be a number of seconds above 0")
    return durations


def read_history(folder: Path, account: str) -> list[float]:
    """Return the stored durations of an account from *folder*, or an empty list."""
    try:
        return parse_durations(_history(folder).get(account, ""))
    except (OSError, ValueError) as error:
        logger.debug("the durations of earlier tasks in %s cannot be read: %s", folder, error)
        return []


def write_history(folder: Path, account: str, durations: Iterable[float]) -> None:
    """Store the durations of an account in *folder*, if possible."""
    part = folder / f"{HISTORY_FILE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines: dict[str, str] = {}
        with suppress(OSError, ValueError):  # a damaged file is replaced
            lines = _history(folder)
        lines.pop(account, None)
        lines[account] = format_durations(durations)
        kept = list(lines.items())[-HISTORY_ACCOUNTS:]
        part.unlink(missing_ok=True)
        with part.open("x", encoding="utf-8") as file:  # never follows another program's link
            file.writelines(f"{name}\t{text}\n" for name, text in kept)
        part.replace(folder / HISTORY_FILE)
    except OSError as error:
        logger.debug("the durations of tasks cannot be stored in %s: %s", folder, error)
        with suppress(OSError):
            part.unlink()


def _history(folder: Path) -> dict[str, str]:
    """Return the lines of the file by account, with the most recently written one last."""
    file = folder / HISTORY_FILE
    if not file.exists():
        return {}
    if file.stat().st_size > HISTORY_BYTES:
        raise ValueError(f"{file} is longer than {HISTORY_BYTES} bytes")
    lines = (line.partition("\t") for line in file.read_text(encoding="utf-8").splitlines())
    return {name: text for name, tab, text in lines if tab}


def _weights(durations: list[float], running: list[float]) -> list[float]:
    """Return the share of tasks that each of the *durations* represents, by the Kaplan-Meier estimate.

    A *running* task counts as one that lasts longer than its age. Otherwise the first ends among tasks that
    began together would make all of them appear short. One additional task counts as lasting longer than any
    other.
    """
    weights, left = [], 1.0
    for index, duration in enumerate(durations):
        longer = len(running) - bisect_left(running, duration)
        weights.append(left / (len(durations) - index + longer + 1))
        left -= weights[-1]
    return weights


def _pieces(durations: list[float], weights: list[float]) -> tuple[list[float], list[float]]:
    """Return intervals of age and the share of tasks that end in each.

    Each of the sorted *durations* is spread evenly over the distance to its k-th nearest neighbor.
    """
    count = len(durations)
    neighbors = min(round(1.5 * sqrt(count)), count - 1)
    min_bandwidth = max(0.01 * durations[count // 2], 1e-3)  # equal durations still have a spread
    density: dict[float, float] = defaultdict(float)
    for i, (duration, weight) in enumerate(zip(durations, weights, strict=True)):
        around = range(max(0, i - neighbors), min(count - neighbors, i + 1))
        bandwidth = max(
            min_bandwidth,
            min(max(duration - durations[j], durations[j + neighbors] - duration) for j in around),
        )
        low, high = max(0.0, duration - bandwidth), duration + bandwidth
        density[low] += weight / (high - low)
        density[high] -= weight / (high - low)
    ages, masses, height = sorted(density), [], 0.0
    for start, end in pairwise(ages):
        height += density[start]
        masses.append(max(height * (end - start), 1e-9))
    for _ in range(_TAIL_INTERVALS):  # a task can run longer than any task before
        masses.append((1 - sum(masses)) / 2)
        ages.append(ages[-1] * _TAIL_FACTOR + min_bandwidth)
    return ages, masses


class ListTrust:
    """The trust in list pages: whether they are worth reading, and whether their statuses are up to date."""

    def __init__(self) -> None:
        self.evidence_at: float = -inf  # when a list last showed a change (loop time)
        self._trusted_at = 0.0
        self._distrust_seconds = MIN_DISTRUST
        self._ended: dict[str, float] = {}  # tasks whose end a single read showed before any list did

    def trusted(self, now: float) -> bool:
        """Return whether lists may be read at *now*."""
        return now >= self._trusted_at

    def record_coverage(self, seen: int, absent: int, now: float) -> None:
        """Record that a list showed *seen* of our tasks and omitted *absent* of them."""
        if absent > seen:
            self.distrust(now, f"a list showed {seen} of {seen + absent} tasks")
        elif self.trusted(now) and seen and not self._ended:
            self._distrust_seconds = max(MIN_DISTRUST, self._distrust_seconds / 2)

    def distrust(self, now: float, reason: str) -> None:
        """Stop using lists for a while, for longer each time."""
        if not self.trusted(now):
            return
        text = "lists will not be read for %g s, and tasks will be read one by one: %s"
        logger.warning(text, self._distrust_seconds, reason)
        self._trusted_at = now + self._distrust_seconds
        self._distrust_seconds *= 2
        self._ended.clear()

    def evidence(self, now: float) -> None:
        """Record a sign that the list is up to date."""
        self.evidence_at = now

    def expect(self, task_id: str, now: float) -> None:
        """Expect later lists to show the end of a task that a single read has shown."""
        self._ended[task_id] = now

    def is_expected(self, task_id: str) -> bool:
        """Return whether the status of this ended task in a list must be compared with a single read."""
        return task_id in self._ended

    def compare(self, task_id: str, task: Task | None, now: float) -> None:
        """Compare the status of an ended task in a list with the earlier single read."""
        ended_at = self._ended.get(task_id, inf)
        if task is not None and task.status.final:
            self._ended.pop(task_id, None)
            self.evidence(now)
        elif now - ended_at >= STALE_AFTER:
            self.distrust(now, "a list still shows an ended task as unfinished")


class CallbackTrust:
    """The share of ends that come without a callback in time, estimated from recent ends.

    While the share is small, the poller waits for callbacks and reads a task only when all but this share of
    tasks would have ended. So at most this share of tasks is read needlessly, before the callback arrives. A
    missed callback raises the share at once by half of its distance to 1. A received callback lowers it by a
    tenth.
    """

    def __init__(self) -> None:
        self.missed: float = 1.0  # the estimated share
        self.missed_more: bool = False  # whether the share rose since the poller's last check
        self.evidence_at: float = -inf  # when a callback arrived in time or a list was read (loop time)
        self._awaited: dict[
            str, float
        ] = {}  # ends that a read showed first, and the time from which their callbacks are late

    @property
    def active(self) -> bool:
        """Whether callbacks are relied on or awaited."""
        return self.missed < 1 or bool(self._awaited)

    @property
    def max_silent_ends(self) -> float:
        """The number of expected ends, with no callback arriving, after which callbacks count as stopped."""
        return -log(self.missed)

    def ended(self, task_id: str, latency: float, now: float, *, called: bool) -> None:
        """Record an end that became known after *latency* seconds, by a callback if *called*."""
        if latency >= CALLBACK_TIMEOUT:
            self._count(received=False)
        elif called:
            self._received(now)
        else:
            self._awaited[task_id] = now + CALLBACK_TIMEOUT - latency

    def arrived(self, task_id: str, now: float) -> None:
        """Record a callback about a task whose end is already known."""
        if self._awaited.pop(task_id, -inf) > now:
            self._received(now)

    def expire(self, now: float) -> None:
        """Count the awaited callbacks that are late as missed."""
        for task_id in [each for each, late_at in self._awaited.items() if late_at <= now]:
            del self._awaited[task_id]
            self._count(received=False)

    def _received(self, now: float) -> None:
        self.evidence_at = now
        self._count(received=True)

    def _count(self, *, received: bool) -> None:
        if received:
            self.missed = max(FEWEST_MISSED, self.missed * (1 - _RECEIVED_WEIGHT))
        else:
            self.missed += (1 - self.missed) * _MISSED_WEIGHT
            self.missed_more = True
