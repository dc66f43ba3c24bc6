"""Photos that are converted before they are sent (`--fit`), each in a temporary file while it is needed."""

import asyncio
import hashlib
import os
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from attrs import evolve, frozen

from kling_expand.api import codec
from kling_expand.api.photo import read_header
from kling_expand.errors import ImageError
from kling_expand.models import Dialect, ExpandRequest, resolve_geometry
from kling_expand.pictures.fit import Fitted, fit, upright_size
from kling_expand.store.base import JobRecord, JobState, JobStore

_KNOWN = (JobState.SUBMITTED, JobState.SUCCEEDED, JobState.DONE)


class FittedPath(os.PathLike[str]):
    """The path of a converted photo, with the `origin` it was made of, which a journal keeps instead."""

    def __init__(self, path: str, origin: str) -> None:
        self.path: str = path
        self.origin: str = origin

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.origin


@frozen
class FittedRequest:
    """A request with a photo that can be sent, or the `known` job of the journal that asked for the same."""

    request: ExpandRequest
    changes: tuple[str, ...] = ()
    known: JobRecord | None = None

    def discard(self) -> None:
        """Remove the converted photo."""
        if isinstance(self.request.image, FittedPath):
            Path(self.request.image).unlink(missing_ok=True)


class Fitter:
    """Converts photos in a temporary directory.

    The key of a job is derived from the user's own photo. So the journal finds the job again without a
    conversion, also when another version of Pillow would write other bytes.
    """

    def __init__(self, journal: JobStore | None, dialect: Dialect, *, fresh: bool) -> None:
        self._journal = journal
        self._dialect = dialect
        self._fresh = fresh
        self._stack = ExitStack()
        self._numbers = count()  # two photos may have the same name
        self._folder = Path()

    def __enter__(self) -> Self:
        folder = TemporaryDirectory(prefix="kling-expand-", ignore_cleanup_errors=True)
        self._folder = Path(self._stack.enter_context(folder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    async def prepare(self, request: ExpandRequest) -> FittedRequest:
        """Return the request with its photo converted where needed.

        Raises:
            ImageError: the photo cannot be read or converted.
        """
        source = str(request.image)
        if "://" in source:
            return FittedRequest(request)
        acceptable, upright = await asyncio.to_thread(_state, source)
        if acceptable and upright:
            return FittedRequest(request)
        key = await asyncio.to_thread(self._key, request, source)
        known = None
        if self._journal is not None:
            known = await self._journal.find(key)
            request = evolve(request, key=key)
        if known is not None and known.state in _KNOWN and not self._fresh:
            return FittedRequest(request, known=known)
        folder = self._folder / str(next(self._numbers))
        fitted = await asyncio.to_thread(_fit, source, folder, acceptable=acceptable)
        return FittedRequest(evolve(request, image=FittedPath(fitted.path, source)), fitted.changes)

    def _key(self, request: ExpandRequest, source: str) -> str:
        """Return the key of the job: a digest of the user's photo and of what is asked for."""
        with open(source, "rb") as file:  # noqa: PTH123
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        expansion = resolve_geometry(request, self._dialect, upright_size(source))
        own = f"{request.key}:" if request.key else ""
        return f"{own}fit-{codec.fingerprint(request, expansion, digest)}"


def _fit(source: str, folder: Path, *, acceptable: bool) -> Fitted:
    folder.mkdir()
    return fit(source, folder, acceptable=acceptable)


def _state(source: str) -> tuple[bool, bool]:
    """Return whether the service accepts a file as it is, and whether it is upright."""
    try:
        header = read_header(source)
    except ImageError:
        return False, False
    return True, header is None or header.orientation == 1
