"""Expansion in several passes: the result of each is the photo of the next, and each is a job of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import evolve

from .api.photo import load_photo
from .errors import InvalidRequest
from .geometry import Ratios, plan
from .jobs.future import ExpandResult
from .models import ExpandRequest, source_name

Run = Callable[[ExpandRequest], Awaitable[ExpandResult]]


async def expand_in_passes(request: ExpandRequest, passes: int, run: Run) -> ExpandResult:
    """Run the job of each pass in turn, and return the result of the last, with the others as `earlier`.

    With a journal, a pass that was paid in an earlier run is found again, as its photo and its parameters are
    the same.

    Raises:
        GeometryError: more passes are needed.
        InvalidRequest: the photo is at a URL, so that its size is not known.
        KlingError: whatever a pass raises.
    """
    request = await _readable_again(request)
    steps = await _steps(request, passes)
    result: ExpandResult | None = None
    for number, step in enumerate(steps, 1):
        picture = await result.images[0].read() if result else None
        found = await run(_request(request, step, picture, number, last=number == len(steps)))
        result = evolve(found, earlier=result, name=result.name if result else found.name)
    if result is None:
        raise InvalidRequest("passes", passes, "must be at least 1")
    return result


async def _readable_again(request: ExpandRequest) -> ExpandRequest:
    """Return the request with the bytes of an open file, which can be read only once."""
    image: Any = request.image
    if not hasattr(image, "read"):
        return request
    return evolve(request, image=await asyncio.to_thread(image.read))


async def _steps(request: ExpandRequest, passes: int) -> list[Ratios]:
    size = (await load_photo(request.image)).dimensions
    if size is None:
        limit = "must be a photo whose size can be read, to be expanded in passes"
        raise InvalidRequest("image", source_name(request.image), limit)
    return plan(*size, request.geometry, passes)


def _request(
    request: ExpandRequest, step: Ratios, picture: bytes | None, number: int, *, last: bool
) -> ExpandRequest:
    """Return the request of one pass: only the last has several pictures, watermarks and the caller's id."""
    changed = evolve(request, image=request.image if picture is None else picture, geometry=step)
    if last:
        return changed
    key = f"{request.key}-pass{number}" if request.key else None
    return evolve(changed, n=1, watermark=False, external_task_id=None, key=key)
