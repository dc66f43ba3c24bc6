"""Full-size pictures, which contain the photo of a result at its own size."""

import asyncio
import base64
import io
import os
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from kling_expand.api.photo import load_photo
from kling_expand.downloads.files import (
    FORMATS,
    Destination,
    PartialFile,
    SaveOptions,
    all_ended,
    output_paths,
    publish,
)
from kling_expand.errors import InvalidRequest, KlingError, require
from kling_expand.geometry import Ratios
from kling_expand.models import Dialect, ImageSource, Task, portable, resolve_geometry, shown
from kling_expand.pictures.full_size import CompositeJob, make, usual_format

if TYPE_CHECKING:
    from kling_expand.jobs.future import ExpandResult

MAX_COMPOSITES = 2  # composites that one call makes at once; each holds the photo and its canvas in memory


class _Scratch:
    """A temporary directory for the input files of the composites that one call makes."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._numbers = count(1)

    async def write(self, content: bytes) -> str:
        """Write a file, and return its path."""
        path = self._folder / str(next(self._numbers))
        await asyncio.to_thread(path.write_bytes, content)
        return str(path)


async def save_full_size(
    result: "ExpandResult",
    target: Any,
    options: SaveOptions,
    task: Task,
    saved: tuple[Path, ...],
    *,
    photo: bool | str | os.PathLike[str],
    quality: int | None,
) -> tuple[Path, ...]:
    """Save a full-size picture next to each *saved* picture of *task*, and return the new paths.

    *photo* is the path of the photo to put back, or True for the photo that was sent.

    Without `overwrite`, a full-size picture from an earlier save is kept, and its path is returned.

    Raises:
        InvalidRequest: if the photo of the result is not known or cannot be read here, or *quality* is wrong.
        PictureMismatch: if the photo was not found in a picture.
        DownloadError: if a picture could not be written.
    """
    with tempfile.TemporaryDirectory(prefix="kling-expand-", ignore_cleanup_errors=True) as folder:
        scratch = _Scratch(folder)
        path = await _photo(result, photo, scratch)
        wanted = options.format or _named_format(target) or await asyncio.to_thread(usual_format, path)
        options = evolve(options, format=wanted, quality=quality)
        paths = output_paths(task, target, options).full_size()
        earlier, passes = await _passes(result, scratch)
        tagged = not options.overwrite and await asyncio.to_thread(paths.is_taken)
        destination = Destination(paths, tagged, options.overwrite)
        limit = asyncio.Semaphore(MAX_COMPOSITES)

        async def save_composite(position: int, picture: Path) -> Path:
            job = CompositeJob(path, (*earlier, str(picture)), passes, "", str(wanted), quality)
            async with limit:
                return await _save_picture(job, destination, position)

        return tuple(await all_ended(*(save_composite(*each) for each in enumerate(saved))))


def _named_format(target: Any) -> str | None:
    """Return the format that the suffix of *target* names, or None."""
    suffix = Path(os.fsdecode(target)).suffix.lower()
    names = {ext: name for name, ext in FORMATS.items()} | {".jpeg": "jpeg", ".tif": "tiff"}
    return names.get(suffix)


async def image_of(result: "ExpandResult", position: int, full_size: Any) -> Any:
    """Return one picture of the result as a PIL image, at its own or the photo's size.

    Raises:
        InvalidRequest: if the result has no such picture.
        KlingError: if the picture cannot be downloaded or combined with the photo.
    """
    require("images", "PIL")
    if position >= len(result.images):
        limit = f"must be less than {len(result.images)}, the number of pictures"
        raise InvalidRequest("position", position, limit)
    if not full_size:
        return await asyncio.to_thread(load_image, io.BytesIO(await result.images[position].read()))
    with tempfile.TemporaryDirectory(prefix="kling-expand-", ignore_cleanup_errors=True) as folder:
        scratch = _Scratch(folder)
        photo = await _photo(result, full_size, scratch)
        earlier, passes = await _passes(result, scratch)
        picture = await scratch.write(await result.images[position].read())
        target = str(Path(folder) / "full.tiff")  # TIFF is lossless and fast to write
        await make(CompositeJob(photo, (*earlier, picture), passes, target, "tiff"))
        return await asyncio.to_thread(load_image, target)


def load_image(file: str | io.BytesIO) -> Any:
    """Return the decoded image of a file."""
    from PIL import Image

    with Image.open(file) as image:
        image.load()
        return image


async def _save_picture(job: CompositeJob, destination: Destination, position: int) -> Path:
    async def compose(part: PartialFile) -> None:
        part.ext = FORMATS[job.format]
        await make(evolve(job, target=str(part.path)))

    return await publish(destination, position, compose)


async def _photo(result: "ExpandResult", given: Any, scratch: _Scratch) -> str:
    """Return the path of the photo to put back, which is the given one or the one that was sent."""
    if isinstance(given, str | os.PathLike):
        return os.fsdecode(given)
    request = portable(first(result).request)
    if request is None:
        limit = "must be the path of the photo, because the photo that was sent is unknown or unreadable"
        raise InvalidRequest("full_size", given, limit)
    return await _as_file(request.image, scratch)


async def _as_file(image: ImageSource, scratch: _Scratch) -> str:
    """Return the path of an image, which is first written to a file if it is not one."""
    photo = await load_photo(image)
    if photo.url is not None:
        advice = "download the photo, and pass its path as full_size"
        raise InvalidRequest(
            "full_size", shown(image), "must be a photo that can be read on this machine", advice
        )
    if photo.source is not None:
        return photo.source
    content = b"".join([part async for part in photo.slices()])
    return await scratch.write(base64.b64decode(content))


def first(result: "ExpandResult") -> "ExpandResult":
    """Return the result of the first pass."""
    while result.earlier is not None:
        result = result.earlier
    return result


async def _passes(
    result: "ExpandResult", scratch: _Scratch
) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Return the pictures of the earlier passes, and the ratios of all passes."""
    pictures: list[str] = []
    passes: list[tuple[float, ...]] = []
    chain = [result]
    while chain[0].earlier is not None:
        chain.insert(0, chain[0].earlier)
    for each in chain:
        if each is not result:
            pictures.append(await scratch.write(await each.images[0].read()))
        passes.append(await _ratios(each))
    return tuple(pictures), tuple(passes)


async def _ratios(result: "ExpandResult") -> tuple[float, ...]:
    request = portable(result.request)
    if request is None:
        raise KlingError("the ratios of this task are not known", task_id=result.task_id)
    size = None
    if request.geometry.needs_size:
        size = (await load_photo(request.image)).dimensions
    expansion = resolve_geometry(request, Dialect.EDITING, size)
    ratios = expansion if isinstance(expansion, Ratios) else expansion.ratios()
    return ratios.up, ratios.down, ratios.left, ratios.right
