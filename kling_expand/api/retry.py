"""The decision whether a failed call is tried again, and after how long."""

import asyncio
from collections.abc import Iterator
from random import Random

from kling_expand.errors import KlingError


class Retry:
    """The tries of one call: each failure is answered with a wait in seconds, or with None to give up.

    Failures that may pass are tried again for *timeout* seconds, after waits that double. A wait that
    the service asks for is kept exactly, but one above *max_retry_after* seconds ends the tries.
    """

    def __init__(self, rng: Random, *, timeout: float, max_retry_after: float) -> None:
        self._give_up_at = asyncio.get_running_loop().time() + timeout
        self._max_retry_after = max_retry_after
        self._waits = retry_waits(rng)

    def after(self, error: KlingError) -> float | None:
        """Return the wait before the call that failed with *error* is made again, or None to give up."""
        return self.wait(getattr(error, "retry_after", None)) if error.retryable else None

    def wait(self, retry_after: float | None) -> float | None:
        """Return the wait after a failure that may pass, for which the service asked *retry_after* seconds.

        A wait that the service asks for may end after the time for tries: the service is alive.
        """
        now = asyncio.get_running_loop().time()
        if retry_after:
            return retry_after if now <= self._give_up_at and retry_after <= self._max_retry_after else None
        wait = next(self._waits)
        return wait if now + wait <= self._give_up_at else None


def retry_waits(rng: Random, *, first: float = 0.5, longest: float = 20.0) -> Iterator[float]:
    """Yield the waits in seconds before each next try: doubling, each drawn from its upper half.

    `backoff.full_jitter` would draw from the global generator, and down to nothing.
    """
    for wait in growing(2, first, longest):
        yield wait * rng.uniform(0.5, 1.0)


def growing(factor: float, first: float, longest: float) -> Iterator[float]:
    """Return waits that grow by *factor* from *first* up to *longest* seconds."""
    import backoff  # here, as a client that never waits needs none of it

    waits = backoff.expo(base=factor, factor=first, max_value=longest)
    next(waits)  # its first value only primes it
    return waits
