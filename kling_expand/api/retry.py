"""Waits between tries, from the generators of `backoff`."""

from collections.abc import Iterator
from random import Random


def retry_waits(rng: Random, *, first: float = 0.5, longest: float = 20.0) -> Iterator[float]:
    """Waits in seconds before each next try: doubling, each drawn from its upper half.

    `backoff.full_jitter` would draw from the global generator, and down to nothing.
    """
    for wait in growing(2, first, longest):
        yield wait * rng.uniform(0.5, 1.0)


def growing(factor: float, first: float, longest: float) -> Iterator[float]:
    """Yield waits that grow by *factor* from *first* up to *longest* seconds."""
    import backoff  # here, as a client that never waits needs none of it

    waits = backoff.expo(base=factor, factor=first, max_value=longest)
    next(waits)  # its first value only primes it
    return waits
