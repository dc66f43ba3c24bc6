"""What are the results of several photos called? Told apart, and never laid over a photo that was given."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from urllib.parse import urlsplit

from kling_expand.downloads.filenames import output_paths
from kling_expand.errors import InvalidRequest
from kling_expand.models import Image, Task

_ENDINGS = (".png", ".jpg", ".jpeg")


def plan(photos: Sequence[str], target: str, n: int) -> list[str]:
    """One name for each photo; *target* and the pictures of each, *n*, are checked before anything is sent.

    Raises `InvalidRequest` where two photos would share a result's path, or a result would replace a photo.
    """
    chosen = _distinct(photos)
    taken = {_key(photo): f"the photo {photo}" for photo in photos}
    for index, (photo, name) in enumerate(zip(photos, chosen, strict=True)):
        for path in _paths(index, name, target, n):
            if path in taken:
                limit = f"a result of {photo} would replace {taken[path]}: choose another --output"
                raise InvalidRequest("output", repr(target), limit)
        taken |= dict.fromkeys(_paths(index, name, target, n), f"one of {photo}")
    return chosen


def _distinct(photos: Sequence[str]) -> list[str]:
    """The photo's own name; where several share it, their folder's before it; at last a number behind it."""
    places = [PurePath(urlsplit(photo).path if "://" in photo else photo) for photo in photos]
    stems = Counter(place.stem.casefold() for place in places)
    chosen: list[str] = []
    for place, photo in zip(places, photos, strict=True):
        stem = place.stem or "photo"
        if stems[stem.casefold()] > 1:
            folder = place.parent.name if "://" in photo else Path(photo).resolve().parent.name
            stem = f"{folder}-{stem}" if folder else stem
        chosen.append(_numbered(stem, chosen))
    return chosen


def _numbered(name: str, taken: list[str]) -> str:
    used, number, candidate = {other.casefold() for other in taken}, 1, name
    while candidate.casefold() in used:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _paths(index: int, name: str, target: str, n: int) -> set[str]:
    """Every path at which a picture of the photo may come to lie; only the service decides the format."""
    images = tuple(Image(number, "") for number in range(n))
    rehearsal = Task(f"task {index}", "succeed", external_task_id=f"external {index}", images=images)
    found = output_paths(rehearsal, target, name)
    return {
        _key(found.path(place, ending, watermark=mark))
        for place in range(n)
        for ending in _ENDINGS
        for mark in (False, True)
    }


def _key(path: str | os.PathLike[str]) -> str:
    return os.path.normcase(Path(path).resolve())
