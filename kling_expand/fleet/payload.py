"""The payload of a queued job: its request as JSON, with the location of the photo instead of the photo."""

import asyncio
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, evolve

from kling_expand.errors import ImageError, InvalidRequest, MissingExtra, TransportError
from kling_expand.geometry import Padding, Ratios, ToAspect, ToSize, Towards
from kling_expand.jobs.future import ExpandResult
from kling_expand.models import ExpandRequest, request_fields, source_name

Payload = dict[str, Any]

_GEOMETRIES = {kind.__name__: kind for kind in (Ratios, ToAspect, ToSize, Padding, Towards)}
_TEMPLATE = "{name}-{external_task_id}-{index}{ext}"


def pack(request: ExpandRequest) -> Payload:
    """Return *request* as a payload with a key: its own, or a digest of everything it asks for.

    A path is made absolute, because another process reads it.

    Raises:
        InvalidRequest: when the photo is not a path or URL, or the geometry is of a class of the caller.
    """
    kind = type(request.geometry).__name__
    if _GEOMETRIES.get(kind) is not type(request.geometry):
        raise InvalidRequest("geometry", kind, f"must be one of {', '.join(_GEOMETRIES)} to be queued")
    payload = {"image": _location(request.image), "geometry": {"kind": kind, **asdict(request.geometry)}}
    for field in request_fields():
        value = getattr(request, field.name)
        if value != field.default:
            payload[field.name] = value
    if "key" not in payload:
        payload["key"] = hashlib.sha256(repr(sorted(payload.items())).encode()).hexdigest()[:32]
    return payload


def unpack(payload: Payload) -> ExpandRequest:
    """Return the request that `pack` made *payload* of.

    Raises:
        InvalidRequest: when a value is not allowed.
    """
    values = dict(payload)
    geometry = dict(values.pop("geometry"))
    return ExpandRequest(geometry=_GEOMETRIES[geometry.pop("kind")](**geometry), **values)


def _location(image: Any) -> str:
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if not isinstance(image, str) or image.startswith("data:"):
        rule = "must be a path, an http(s) URL or the URL of an object store to be queued"
        raise InvalidRequest("image", source_name(image), rule)
    return image if _scheme(image) else os.path.abspath(image)  # noqa: PTH100 - symbolic links stay as given


def _scheme(location: str) -> str:
    found = re.match(r"([a-z][a-z0-9+.-]+)://", location, re.IGNORECASE)
    return found[1].lower() if found else ""


def in_object_store(location: str) -> bool:
    """Return whether *location* is a URL of an object store, which is any scheme but http and https."""
    return _scheme(location) not in {"", "http", "https"}


async def load(request: ExpandRequest) -> ExpandRequest:
    """Return *request* with the content of its photo, if that is in an object store.

    Raises:
        ImageError: when the store has no such object.
        MissingExtra: when the extra `objects` is not installed.
        TransportError: when the store cannot be read.
    """
    location = str(request.image)
    if not in_object_store(location):
        return request
    return evolve(request, image=await asyncio.to_thread(_read, location))


def _read(location: str) -> bytes:
    try:
        with _fsspec().open(location, "rb") as file:
            content: bytes = file.read()
            return content
    except (FileNotFoundError, ValueError) as error:  # no such object, or no such kind of store
        raise ImageError("image", location, "not in its object store", str(error)) from error
    except MissingExtra:
        raise
    except Exception as error:  # each kind of store raises its own exceptions
        raise TransportError(f"{location} cannot be read: {error}", sent=False) from error


async def save(result: ExpandResult, target: str, name: str) -> tuple[str, ...]:
    """Save the images to *target* and return their paths or URLs.

    *target* is a directory, a template, or the URL of a folder in an object store. In a directory files
    are named after photo and job, so that photos of the same name do not overwrite each other.

    Raises:
        DownloadError: when an image cannot be downloaded or written.
        MissingExtra: when the extra `objects` is not installed.
        TransportError: when the object store cannot be written.
    """
    result = evolve(result, name=name)
    if in_object_store(target):
        with tempfile.TemporaryDirectory() as folder:
            paths = await result.save(f"{folder}/{_TEMPLATE}")
            return await asyncio.to_thread(_upload, paths, target.rstrip("/"))
    template = target if "{" in target else f"{target}/{_TEMPLATE}"
    return tuple(str(path.absolute()) for path in await result.save(template))


def _upload(paths: Sequence[Path], target: str) -> tuple[str, ...]:
    locations = tuple(f"{target}/{path.name}" for path in paths)
    try:
        for path, location in zip(paths, locations, strict=True):
            with _fsspec().open(location, "wb") as file:
                file.write(path.read_bytes())
    except MissingExtra:
        raise
    except Exception as error:  # each kind of store raises its own exceptions
        raise TransportError(f"{target} cannot be written: {error}") from error
    return locations


def _fsspec() -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra("object stores need the extra kling-expand[objects]") from error
    return fsspec
