"""How long to wait? Between tries, and between looks at a task. Pure: no clock, no loop."""

from collections.abc import Iterator
from random import Random
from typing import Protocol

import backoff


def retry_waits(rng: Random, *, first: float = 0.5, longest: float = 20.0) -> Iterator[float]:
    """Waits in seconds before each next try: doubling, each drawn from its upper half.

    `backoff.full_jitter` would draw from the global generator, and down to nothing.
    """
    waits = backoff.expo(base=2, factor=first, max_value=longest)
    next(waits)  # its first value only primes it
    for wait in waits:
        yield wait * rng.uniform(0.5, 1.0)


class Pace(Protocol):
    """When to look at a task again."""

    def wait(self, age: float) -> float:
        """Seconds until a task that is *age* seconds old should next be looked at."""
        ...

    def learn(self, duration: float) -> None:
        """A task has taken *duration* seconds."""
        ...


class ExponentialPace:
    """Looks ever further apart: what is right as long as nothing is known.

    The looks lie at fixed ages, so nothing has to be remembered for a task.
    """

    def __init__(
        self, rng: Random, *, first: float = 1.0, factor: float = 1.5, longest: float = 10.0
    ) -> None:
        self._rng = rng
        self._first = first
        self._factor = factor
        self._longest = longest

    def wait(self, age: float) -> float:
        """The next step of the ladder above *age*, up to a tenth later."""
        steps = backoff.expo(base=self._factor, factor=self._first, max_value=self._longest)
        next(steps)
        look = step = 0.0
        while look <= age and step < self._longest:
            step = next(steps)
            look += step
        return (look - age if look > age else self._longest) * self._rng.uniform(1.0, 1.1)

    def learn(self, duration: float) -> None:
        """Nothing is learned."""
