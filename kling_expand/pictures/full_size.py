"""Composites made in a separate process, which leaves the event loop free and can be killed at once."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from attrs import asdict, frozen

from kling_expand.errors import ImageError, KlingError, PictureMismatch, require
from kling_expand.geometry import Ratios

from .convert import encode

_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "HEIF": "jpeg", "WEBP": "webp", "TIFF": "tiff"}
_START = (
    "import sys; sys.path[:] = {path!r}; from kling_expand.pictures.full_size import serve; serve(**{job!r})"
)

logger: logging.Logger = logging.getLogger(__name__)


@frozen
class CompositeJob:
    """A composite to be made, by the paths of its images.

    `pictures` are the results of the passes, in order. `passes` are the ratios of each pass as (up, down,
    left, right). The composite is written to `target`.
    """

    photo: str
    pictures: tuple[str, ...]
    passes: tuple[tuple[float, ...], ...]
    target: str
    format: str
    quality: int | None = None


def usual_format(photo: str) -> str:
    """Return the default format for the composite of a photo, which is the photo's own if possible, or PNG.

    Raises:
        ImageError: if Pillow cannot read the photo.
        MissingExtra: if Pillow is not installed.
    """
    from .fit import open_image

    require("images", "numpy", "PIL")
    with open_image(photo) as image:
        return _FORMATS.get(image.format or "", "png")


async def make(job: CompositeJob) -> None:
    """Make a composite in another process, and kill that process if cancelled.

    Raises:
        PictureMismatch: if the photo was not found in the picture.
        ImageError: if one of the images cannot be read.
        KlingError: if the process failed in another way.
    """
    command = [sys.executable, "-c", _START.format(path=sys.path, job=asdict(job))]
    process = _Process()
    running = asyncio.ensure_future(asyncio.to_thread(process.run, command))
    try:
        code, output, trace = await asyncio.shield(running)
    except asyncio.CancelledError:
        process.kill()
        await asyncio.wait([running])
        raise
    if code:
        raise _error(job, output, trace)
    for warning in output.splitlines():
        logger.warning("%s: %s", job.photo, warning)


class _Process:
    """A process that is started and awaited in one thread and may be killed from another at any time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._killed = False
        self._process: subprocess.Popen[str] | None = None

    def run(self, command: Sequence[str]) -> tuple[int, str, str]:
        """Run the process, and return its exit code, output and error output."""
        with self._lock:
            if self._killed:
                return -1, "", ""
            self._process = process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own code
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C reaches only the parent, which then kills this process
            )
        output, trace = process.communicate()
        return process.returncode, output, trace

    def kill(self) -> None:
        """Kill the process, or prevent its start."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()


def _error(job: CompositeJob, output: str, trace: str) -> KlingError:
    kind, _, message = output.partition(": ")
    if kind == "PictureMismatch":
        return PictureMismatch(message)
    if kind == "ImageError":
        return ImageError("image", job.photo, message)
    reason = (trace.strip().splitlines() or ["the process ended"])[-1]
    return KlingError(f"the full-size picture of {job.photo} could not be made: {reason}")


def serve(
    *,
    photo: str,
    pictures: Sequence[str],
    passes: Sequence[Sequence[float]],
    target: str,
    format: str,  # noqa: A002 - the field of a job
    quality: int | None,
) -> None:
    """Make one composite in this process, and write warnings to stdout.

    On an expected error, write it to stdout and exit with code 1.
    """
    from .composite import composite
    from .fit import open_picture

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    ratios = [Ratios(*each) for each in passes]
    try:
        picture = open_picture(Path(pictures[0]))
        whole = None
        for step, next_picture in zip(ratios[1:], pictures[1:], strict=True):
            # The picture of an earlier pass shows its smaller area in more detail than the later picture.
            whole = composite(whole or picture, next_picture, step)
        encode(composite(photo, whole or picture, ratios), target, format, quality)
    except PictureMismatch as error:
        sys.stdout.write(f"PictureMismatch: {error.message}")
        sys.exit(1)
    except ImageError as error:
        sys.stdout.write(f"ImageError: {error.limit}")
        sys.exit(1)
