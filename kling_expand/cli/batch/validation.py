"""What would go wrong later? Said before the first photo is sent, so that nothing is paid for in vain."""

import asyncio
from contextlib import suppress
from pathlib import Path

from attrs import evolve, frozen

from kling_expand.api.photo import Photo, load_photo
from kling_expand.errors import ImageError, InvalidRequest
from kling_expand.geometry import Towards
from kling_expand.models import Dialect, ExpandRequest
from kling_expand.pictures.fit import can_fit, fit, is_turned

_TURNED = "it is stored turned (EXIF), and the service may not turn it back: --fit does"


@frozen
class Checked:
    """A request that can be sent, and what its user should know of it."""

    request: ExpandRequest
    notes: tuple[str, ...] = ()


async def check(request: ExpandRequest, dialect: str | None, folder: Path | None = None) -> Checked:
    """Raise now what would be raised once other photos were already paid for.

    With a *folder* a photo is made acceptable first, and written into it. Raises `InvalidRequest`
    and what `kling_expand.pictures.fit` raises.
    """
    photo = str(request.image)
    if dialect == Dialect.DIRECTION and not isinstance(request.geometry, Towards):
        raise InvalidRequest("geometry", "it", "the direction dialect only knows --direction and --ratio")
    local = await asyncio.to_thread(Path(photo).is_file)
    checked = Checked(request)
    if local and folder is not None:
        checked = await _fitted(request, folder)
    elif local and await asyncio.to_thread(is_turned, photo):
        checked = Checked(request, (_TURNED,))
    _check_geometry(checked.request, await _load(str(checked.request.image)))
    return checked


def _check_geometry(request: ExpandRequest, photo: Photo) -> None:
    if photo.width is not None and photo.height is not None:
        request.geometry.ratios(photo.width, photo.height)
    elif request.geometry.needs_size:
        limit = "its size is not known here: use --up/--down/--left/--right or --direction"
        raise InvalidRequest("photo", photo.name, limit)


async def _fitted(request: ExpandRequest, folder: Path) -> Checked:
    photo, acceptable = str(request.image), False
    with suppress(ImageError):
        await load_photo(photo)
        acceptable = True
    fitted = await asyncio.to_thread(fit, photo, folder, acceptable=acceptable)
    return Checked(evolve(request, image=fitted.path), fitted.changes)


async def _load(photo: str) -> Photo:
    try:
        return await load_photo(photo)
    except ImageError as error:
        if not await asyncio.to_thread(can_fit, photo):
            raise
        raise ImageError(error.field, error.value, error.limit, f"{error.advice}, or use --fit") from None
