"""A poll schedule that never makes a client poll, and the loop's time."""

import asyncio
from collections.abc import Sequence


class NeverPolls:
    """A schedule whose first poll is due after eleven days."""

    def wait(self, _ages: Sequence[float], _price: float = 1.0) -> float:
        return 1e6

    def learn(self, _duration: float) -> None:
        pass


def now() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()
