"""What time is it here? A clock that can be moved forwards, and waited for."""

import asyncio
from collections.abc import Callable


class Clock:
    """`source` gives Unix seconds; `advance` adds to it, and whoever waits in `until` notices at once."""

    def __init__(self, source: Callable[[], float], *, moved: float = 0.0) -> None:
        self._source = source
        self._changed = asyncio.Event()
        self.moved = moved

    def real(self) -> float:
        """The source's own time: tokens are judged by it, their makers know nothing of moves."""
        return self._source()

    def now(self) -> float:
        """The service's time in Unix seconds."""
        return self._source() + self.moved

    def advance(self, seconds: float) -> None:
        """Move forwards; raises ValueError for a move backwards, which would un-finish tasks."""
        if not 0 <= seconds < float("inf"):
            raise ValueError("the clock moves forwards only")
        self.moved += seconds
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, moment: float) -> None:
        """Return when it is `moment`, by waiting or by a move."""
        while (left := moment - self.now()) > 0:
            changed = self._changed
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                continue
