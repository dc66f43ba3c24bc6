"""What would go wrong later? Said before the first photo is sent, so that nothing is paid for in vain."""

import asyncio
from contextlib import suppress
from pathlib import Path

from attrs import evolve, frozen

from kling_expand.api.photo import Photo, load_photo
from kling_expand.config import Settings
from kling_expand.errors import ImageError
from kling_expand.models import ExpandRequest, resolve_geometry
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
    local = await asyncio.to_thread(Path(photo).is_file)
    checked = Checked(request)
    if local and folder is not None:
        checked = await _fitted(request, folder)
    elif local and await asyncio.to_thread(is_turned, photo):
        checked = Checked(request, (_TURNED,))
    loaded = await _load(str(checked.request.image))
    resolve_geometry(checked.request, Settings.from_env(dialect=dialect).dialect, loaded.dimensions)
    return checked


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
