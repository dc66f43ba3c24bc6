"""What stands in the queue for a job? A request as JSON: where its photo is, never the photo."""

import asyncio
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from attrs import asdict, evolve, fields

from kling_expand.errors import ImageError, InvalidRequest, MissingExtra, TransportError
from kling_expand.geometry import Padding, Ratios, ToAspect, ToSize, Towards
from kling_expand.jobs.future import ExpandResult
from kling_expand.models import ExpandRequest, source_name

Payload = dict[str, Any]

_GEOMETRIES = {kind.__name__: kind for kind in (Ratios, ToAspect, ToSize, Padding, Towards)}
_FIELDS = [field.name for field in fields(ExpandRequest) if field.name not in {"image", "geometry"}]


def pack(request: ExpandRequest) -> Payload:
    """*request* for the queue, with a key: its own, or one that follows from all it asks for.

    A path is made absolute, as it is read by another process. Raises `InvalidRequest` for a photo that
    is not a path or a URL, and for a geometry of one's own making.
    """
    kind = type(request.geometry).__name__
    if _GEOMETRIES.get(kind) is not type(request.geometry):
        raise InvalidRequest("geometry", kind, f"one of {', '.join(_GEOMETRIES)} can be queued")
    geometry = {"kind": kind, **asdict(request.geometry)}
    said = {name: value for name in _FIELDS if (value := getattr(request, name)) not in (None, False)}
    payload = {"image": _place(request.image), "geometry": geometry, **said}
    if "key" not in payload:
        payload["key"] = hashlib.sha256(repr(sorted(payload.items())).encode()).hexdigest()[:32]
    return payload


def unpack(payload: Payload) -> ExpandRequest:
    """The request that `pack` made a payload of. Raises `InvalidRequest`."""
    said = dict(payload)
    geometry = dict(said.pop("geometry"))
    return ExpandRequest(geometry=_GEOMETRIES[geometry.pop("kind")](**geometry), **said)


def _place(image: Any) -> str:
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if not isinstance(image, str) or image.startswith("data:"):
        limit = "no queue carries photos: a path, an http(s) URL or an object store's URL is needed"
        raise InvalidRequest("image", source_name(image), limit)
    return image if _scheme(image) else os.path.abspath(image)  # noqa: PTH100 - links stay as they were given


def _scheme(place: str) -> str:
    found = re.match(r"([a-z][a-z0-9+.-]+)://", place, re.IGNORECASE)
    return found[1].lower() if found else ""


def stored(place: str) -> bool:
    """Whether *place* is in an object store: a URL, and not of the web."""
    return _scheme(place) not in {"", "http", "https"}


def stem(image: str) -> str:
    """The photo's own name, for those of its results."""
    return PurePath(urlsplit(image).path if _scheme(image) else image).stem


async def fetched(request: ExpandRequest) -> ExpandRequest:
    """*request* with its photo at hand: one in an object store is read.

    Raises `ImageError` where there is no such object, `TransportError` where the store does not answer.
    """
    place = str(request.image)
    return evolve(request, image=await asyncio.to_thread(_read, place)) if stored(place) else request


def _read(place: str) -> bytes:
    try:
        with _fsspec().open(place, "rb") as file:
            content: bytes = file.read()
            return content
    except (FileNotFoundError, ValueError) as error:  # no such object; no such kind of store
        raise ImageError("image", place, f"it cannot be had from its store: {error}") from error
    except MissingExtra:
        raise
    except Exception as error:  # each store raises its own kinds
        raise TransportError(f"{place} cannot be read: {error}", sent=False) from error


async def save(result: ExpandResult, target: str, name: str) -> tuple[str, ...]:
    """Bring the pictures to *target*: a directory, a template, or the URL of a folder in an object store.

    In a directory they are called after photo and job, so that photos of one name keep apart.
    """
    result = evolve(result, name=name)
    if stored(target):
        with tempfile.TemporaryDirectory() as folder:
            paths = await result.save(f"{folder}/{_NAMES}")
            return await asyncio.to_thread(_put, paths, target.rstrip("/"))
    plain = target if "{" in target else f"{target}/{_NAMES}"
    return tuple(str(path.absolute()) for path in await result.save(plain))


_NAMES = "{name}-{external_task_id}-{index}{ext}"


def _put(paths: Sequence[Path], target: str) -> tuple[str, ...]:
    places = tuple(f"{target}/{path.name}" for path in paths)
    try:
        for path, place in zip(paths, places, strict=True):
            with _fsspec().open(place, "wb") as file:
                file.write(path.read_bytes())
    except MissingExtra:
        raise
    except Exception as error:  # each store raises its own kinds
        raise TransportError(f"{target} cannot be written: {error}") from error
    return places


def _fsspec() -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra("object stores need the extra kling-expand[objects]") from error
    return fsspec
