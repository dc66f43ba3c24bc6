"""What goes on after an answer was sent? Tasks that are held while they run and cancelled at the end."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Background:
    """Starts coroutines nobody waits for."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin; what it raises is reported by the event loop."""
        running = asyncio.ensure_future(work)
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def aclose(self) -> None:
        """Cancel everything and wait until it is gone."""
        running = list(self._running)
        for each in running:
            each.cancel()
        if running:
            await asyncio.wait(running)
