"""What tests of waiting share: a pace that leaves every look to them, and the time by which they wait."""

import asyncio
from collections.abc import Sequence


class Blind:
    """A pace that never looks by itself."""

    def wait(self, _ages: Sequence[float], _price: float = 1.0) -> float:
        return 1e6

    def learn(self, _duration: float) -> None:
        pass


def now() -> float:
    """The loop's time."""
    return asyncio.get_running_loop().time()
