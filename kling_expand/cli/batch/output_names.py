"""Names of results: distinct within a batch, and never the name of a photo that was given."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePath
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from kling_expand.downloads.files import SUFFIXES, OutputPaths, output_paths
from kling_expand.errors import InvalidRequest
from kling_expand.models import Image, Task, source_stem


class OutputNames:
    """Assigns names below *target*, a directory or a template, to results that are saved concurrently."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._claimed: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def name(self, task: Task, candidates: Sequence[str]) -> AsyncIterator[str]:
        """Reserve the first of *candidates* whose files do not exist, or the last: it is this task's own.

        Raises:
            InvalidRequest: the target is no directory and no template.
        """
        last = candidates[-1]
        # Rows that ask for the same are one task, and save the same pictures one after the other.
        async with self._locks.setdefault(last, asyncio.Lock()):
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
        if await asyncio.to_thread(_exists, output_paths(task, self.target, candidate)):
            self._claimed.discard(candidate.casefold())
            return False
        return True


def _exists(paths: OutputPaths) -> bool:
    """Return whether any of the files exists, in any format that the service may choose."""
    return any(os.path.lexists(path) for path in _all_paths(paths))


def _all_paths(paths: OutputPaths) -> list[Path]:
    return [
        paths.path(place, suffix, watermark=watermark)
        for place in range(len(paths.numbers))
        for suffix in SUFFIXES
        for watermark in (False, True)
    ]


def stem(photo: str) -> str:
    """Return the name that a photo gives its results."""
    return source_stem(photo) or "photo"


def _path(photo: str) -> PurePath:
    return PurePath(urlsplit(photo).path if "://" in photo else photo)


def distinct_names(photos: Sequence[str], target: str, n: int) -> list[str]:
    """Return one name for the results of each photo, *n* pictures each, and check all of their paths.

    Raises:
        InvalidRequest: two results would share a path, or a result would replace a photo.
    """
    chosen = _distinct(photos)
    taken = {_key(photo): f"the photo {photo}" for photo in photos}
    for index, (photo, name) in enumerate(zip(photos, chosen, strict=True)):
        paths = _possible_paths(index, name, target, n)
        for path in paths:
            if path in taken:
                problem = f"a result of {photo} would replace {taken[path]}"
                raise InvalidRequest("output", repr(target), problem, "choose another --output")
        taken |= dict.fromkeys(paths, f"a result of {photo}")
    return chosen


def _distinct(photos: Sequence[str]) -> list[str]:
    """Return the photos' own names, preceded by their folders where they coincide, and numbered at last."""
    stems = Counter(stem(photo).casefold() for photo in photos)
    chosen: list[str] = []
    for photo in photos:
        name = stem(photo)
        if stems[name.casefold()] > 1:
            folder = _path(photo).parent.name if "://" in photo else Path(photo).resolve().parent.name
            name = f"{folder}-{name}" if folder else name
        chosen.append(_numbered(name, chosen))
    return chosen


def _numbered(name: str, taken: list[str]) -> str:
    used, number, candidate = {other.casefold() for other in taken}, 1, name
    while candidate.casefold() in used:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _possible_paths(index: int, name: str, target: str, n: int) -> set[str]:
    """Return every path that a picture of the photo may get: only the service decides the format."""
    images = tuple(Image(number, "") for number in range(n))
    sample = Task(f"task {index}", "succeed", external_task_id=f"external {index}", images=images)
    return {_key(path) for path in _all_paths(output_paths(sample, target, name))}


def _key(path: str | os.PathLike[str]) -> str:
    return os.path.normcase(Path(path).resolve())
