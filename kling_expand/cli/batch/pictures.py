"""Full-size pictures and checks of the results of a batch (`--full-size`, `--check`)."""

import asyncio
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from attrs import evolve

from kling_expand.cli.options import OutputOptions
from kling_expand.errors import InvalidRequest
from kling_expand.geometry import Ratios
from kling_expand.jobs.future import ExpandResult
from kling_expand.models import Dialect, ExpandRequest, resolve_geometry
from kling_expand.pictures.fit import upright_size
from kling_expand.store.base import JobRecord


def own_result(
    result: ExpandResult, own: ExpandRequest | None, record: JobRecord | None = None
) -> ExpandResult:
    """Return the result, and those of earlier passes, with the photo and the key of the user's *own* request.

    The geometry is that of the journal's *record*, which has ratios, or that of the result. If the photo was
    converted, the ratios are those for its upright size.
    """
    request = (record.request if record else None) or result.request
    if request is None:
        return result
    own = own or request
    photo, geometry = str(own.image), request.geometry
    if getattr(request.image, "origin", None) and geometry.needs_size:
        geometry = geometry.ratios(*upright_size(photo))
    return evolve(
        result,
        request=evolve(request, image=photo, key=own.key, geometry=geometry),
        earlier=result.earlier and own_result(result.earlier, own),
    )


async def save_full_size(result: ExpandResult, output: OutputOptions) -> tuple[Path, ...]:
    """Save full-size pictures of a saved result, and return their paths.

    Raises:
        KlingError: if a picture cannot be made or saved.
    """
    request = result.request
    photo = str(request.image) if request else True
    return await result.save(
        output.target,
        full_size=photo,
        **output.form,
        metadata=photo if output.metadata else False,
    )


async def suspicions(result: ExpandResult, files: tuple[Path, ...], folder: str) -> tuple[str, ...]:
    """Return the problems of the saved pictures of a result, by their paths below *folder*.

    Raises:
        ImageError: if a picture or the photo cannot be read.
        InvalidRequest: if the photo or its ratios are not known.
    """
    return tuple(await _suspicions(result, [(_name(file, folder), file) for file in files]))


def _name(file: Path, folder: str) -> str:
    return os.path.relpath(file, folder)


async def _suspicions(result: ExpandResult, pictures: Sequence[tuple[str, Path | BytesIO]]) -> list[str]:
    """Return the problems of pictures, and of the pictures of earlier passes from which they were made."""
    from kling_expand.pictures.inspect import inspect  # imported here, after the check for the extra

    request, found = result.request, list[str]()
    if request is None or "://" in str(request.image):
        limit = "must be a file, to be compared with the pictures"
        raise InvalidRequest("photo", request and str(request.image), limit)
    photo: str | bytes = str(request.image)
    if result.earlier is not None:
        photo = await result.earlier.images[0].read()
        found += await _suspicions(result.earlier, [("earlier pass", BytesIO(photo))])
    size = await asyncio.to_thread(upright_size, str(photo)) if request.geometry.needs_size else None
    expansion = resolve_geometry(request, Dialect.EDITING, size)
    ratios = expansion if isinstance(expansion, Ratios) else expansion.ratios()
    for name, picture in pictures:
        source = BytesIO(photo) if isinstance(photo, bytes) else photo
        report = await asyncio.to_thread(inspect, source, picture, ratios)
        found += [] if report.ok else [f"{name}: {report}"]
    return found
