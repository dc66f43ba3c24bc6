"""Checks of photos and geometry before the first one is sent, so that nothing is paid for in vain."""

import asyncio
from contextlib import suppress
from pathlib import Path

from attrs import evolve, frozen

from kling_expand.api.photo import Photo, load_photo
from kling_expand.config import Settings
from kling_expand.errors import ImageError, InvalidRequest
from kling_expand.geometry import Expansion
from kling_expand.models import Dialect, ExpandRequest, resolve_geometry
from kling_expand.pictures.fit import can_fit, fit, is_turned
from kling_expand.store.base import PreparedRequest

_TURNED = "the photo is rotated by its EXIF data, which the service may ignore; --fit rotates it"


@frozen
class Checked:
    """A request that can be sent, and notes about it for the user."""

    prepared: PreparedRequest
    notes: tuple[str, ...] = ()


async def check(request: ExpandRequest, dialect: str | None, folder: Path | None = None) -> Checked:
    """Return the request with its photo and geometry; with a *folder*, first fit the photo into it.

    Raises:
        InvalidRequest: the dialect cannot express the request, or the geometry does not suit the photo.
        ImageError: the service would refuse the photo.
        MissingExtra: fitting needs Pillow.
    """
    source, notes = str(request.image), tuple[str, ...]()
    if await asyncio.to_thread(Path(source).is_file):
        if folder is not None:
            request, notes = await _fitted(request, folder)
        elif await asyncio.to_thread(is_turned, source):
            notes = (_TURNED,)
    photo = await _load(str(request.image))
    chosen = Settings.from_env(dialect=dialect).dialect
    return Checked(PreparedRequest(request, photo, _expansion(request, photo, chosen)), notes)


def _expansion(request: ExpandRequest, photo: Photo, dialect: Dialect) -> Expansion:
    """Resolve the geometry; advice about other geometries names their options."""
    try:
        return resolve_geometry(request, dialect, photo.dimensions)
    except InvalidRequest as error:
        if error.field != "geometry":
            raise
        sides = "" if dialect is Dialect.DIRECTION else "--up/--down/--left/--right or "
        raise InvalidRequest(error.field, error.value, error.limit, f"use {sides}--direction") from None


async def _fitted(request: ExpandRequest, folder: Path) -> tuple[ExpandRequest, tuple[str, ...]]:
    source, acceptable = str(request.image), False
    with suppress(ImageError):
        await load_photo(source)
        acceptable = True
    fitted = await asyncio.to_thread(fit, source, folder, acceptable=acceptable)
    return evolve(request, image=fitted.path), fitted.changes


async def _load(source: str) -> Photo:
    try:
        return await load_photo(source)
    except ImageError as error:
        if not await asyncio.to_thread(can_fit, source):
            raise
        advice = f"{error.advice}, or use --fit" if error.advice else "use --fit"
        raise ImageError(error.field, error.value, error.limit, advice) from None
