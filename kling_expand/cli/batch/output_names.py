"""Where do many results go? Each under a name of its own; nothing that is there already is replaced."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from kling_expand.downloads.filenames import SUFFIXES, OutputPaths, output_paths
from kling_expand.models import Task


class Places:
    """Hands out names below *target*, a directory or a template, to those who save at the same time."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._claimed: set[str] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def name(self, task: Task, candidates: Sequence[str]) -> AsyncIterator[str]:
        """The first of the *candidates* that is free; the last belongs to this task, free or not.

        Raises `InvalidRequest` where the target cannot be read.
        """
        last = candidates[-1]
        # Two rows that ask for the same are one task, and save the same pictures one after the other.
        async with self._turns.setdefault(last, asyncio.Lock()):
            chosen = last
            for candidate in candidates[:-1]:
                if await self._claim(task, candidate):
                    chosen = candidate
                    break
            try:
                yield chosen
            finally:
                self._claimed.discard(chosen.casefold())

    async def _claim(self, task: Task, candidate: str) -> bool:
        if candidate.casefold() in self._claimed:
            return False
        self._claimed.add(candidate.casefold())
        if await asyncio.to_thread(_taken, output_paths(task, self.target, candidate)):
            self._claimed.discard(candidate.casefold())
            return False
        return True


def _taken(found: OutputPaths) -> bool:
    """Whether any of the paths is there; only the service decides the format."""
    return any(
        os.path.lexists(found.path(place, ending, watermark=mark))
        for place in range(len(found.numbers))
        for ending in SUFFIXES
        for mark in (False, True)
    )
