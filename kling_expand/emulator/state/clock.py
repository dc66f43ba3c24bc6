"""A clock that can be moved forward."""

import asyncio
from collections.abc import Callable

from .change_signal import ChangeSignal


class Clock:
    """The emulator's time: *source*, which returns Unix seconds, plus an offset."""

    def __init__(self, source: Callable[[], float], *, offset: float = 0.0) -> None:
        self._source = source
        self._moved = ChangeSignal()
        self.offset: float = offset

    def source_now(self) -> float:
        """Return the source's time. Tokens are checked against it, because clients do not know the offset."""
        return self._source()

    def now(self) -> float:
        """Return the emulator's time in Unix seconds."""
        return self._source() + self.offset

    def advance(self, seconds: float) -> None:
        """Move the clock forward and wake everything that waits in `sleep_until`.

        Raises:
            ValueError: if *seconds* is not finite, or negative, which could make ended tasks open again.
        """
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"seconds must be a finite number of at least 0, got {seconds}")
        self.offset += seconds
        self._moved.notify()

    async def sleep_until(self, moment: float) -> None:
        """Wait until the clock reaches *moment*, as time passes or through `advance`."""
        while (left := moment - self.now()) > 0:
            moved = self._moved.next
            try:
                async with asyncio.timeout(left):
                    await moved.wait()
            except TimeoutError:
                continue
