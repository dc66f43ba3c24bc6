"""Background tasks that are cancelled when the emulator stops."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class BackgroundTasks:
    """A set of running coroutines."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Start a coroutine. If it raises an exception, the event loop reports the exception."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Cancel all coroutines and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
