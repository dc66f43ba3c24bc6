"""Conversion of photos before they are sent (`--fit`), to temporary files."""

import asyncio
import hashlib
import os
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from attrs import evolve, frozen

from kling_expand.api import codec
from kling_expand.api.photo import SharedPhoto, read_header
from kling_expand.errors import ImageError
from kling_expand.models import Dialect, ExpandRequest, ImageSource, resolve_geometry
from kling_expand.pictures.fit import Fitted, fit, upright_size
from kling_expand.store.base import JobRecord, JobState, JobStore

from .plan import find_steps

_KNOWN = (JobState.SUBMITTED, JobState.SUCCEEDED, JobState.DONE)


class FittedPath(os.PathLike[str]):
    """The path of a converted photo. A journal records its `origin`, the user's own file, instead.

    The file is removed once it has no `users`, unless more are `expected`.
    """

    def __init__(self, path: str, origin: str, changes: tuple[str, ...] = ()) -> None:
        self.path: str = path
        self.origin: str = origin
        self.changes: tuple[str, ...] = changes
        self.users: int = 0
        self.expected: bool = True

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.origin

    def remove_unused(self) -> None:
        """Remove the file if it is no longer needed."""
        if not self.users and not self.expected and self.path != self.origin:
            Path(self.path).unlink(missing_ok=True)


@frozen
class FittedRequest:
    """A request with a photo that can be sent, or the `known` job of the journal for the same request."""

    request: ExpandRequest
    changes: tuple[str, ...] = ()
    known: JobRecord | None = None

    def discard(self) -> None:
        """Release the converted photo."""
        if isinstance(self.request.image, FittedPath):
            self.request.image.users -= 1
            self.request.image.remove_unused()


class Fitter:
    """A converter of photos, which writes to a temporary directory.

    The key of a job is derived from the user's own photo. Therefore the journal finds the job again without a
    conversion, even if another version of Pillow would write different bytes.
    """

    def __init__(self, journal: JobStore | None, dialect: Dialect, *, fresh: bool) -> None:
        self._journal = journal
        self._dialect = dialect
        self._fresh = fresh
        self._stack = ExitStack()
        self._numbers = count()  # two photos may have the same name
        self._folder = Path()
        self._last: tuple[ImageSource, FittedPath] | None = None
        self._digest: tuple[ImageSource, str] | None = None

    def __enter__(self) -> Self:
        folder = TemporaryDirectory(prefix="kling-expand-", ignore_cleanup_errors=True)
        self._folder = Path(self._stack.enter_context(folder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    async def prepare(self, request: ExpandRequest, passes: int = 1) -> FittedRequest:
        """Return the request, with its photo converted if necessary, for up to *passes* passes.

        All shapes of one photo share the converted file.

        Raises:
            ImageError: if the photo cannot be read or converted.
        """
        source = str(request.image)
        if "://" in source:
            return FittedRequest(request)
        acceptable, upright = await asyncio.to_thread(_state, request.image)
        if acceptable and upright:
            return FittedRequest(request)
        key, first = await asyncio.to_thread(self._keys, request, source, passes)
        known = None
        if self._journal is not None:
            known = await self._journal.find(first)
            request = evolve(request, key=key)
        if known is not None and known.state in _KNOWN and not self._fresh:
            return FittedRequest(request, known=known)
        photo = await self._converted(request.image, source, acceptable=acceptable)
        photo.users += 1
        return FittedRequest(evolve(request, image=photo), photo.changes)

    async def _converted(self, image: ImageSource, source: str, *, acceptable: bool) -> FittedPath:
        """Return the converted photo. Requests that share an image share its conversion."""
        if self._last is not None:
            if self._last[0] is image:
                return self._last[1]
            self._last[1].expected = False
            self._last[1].remove_unused()
        folder = self._folder / str(next(self._numbers))
        fitted = await asyncio.to_thread(_fit, source, folder, acceptable=acceptable)
        photo = FittedPath(fitted.path, source, fitted.changes)
        photo.expected = isinstance(image, SharedPhoto)
        self._last = (image, photo)
        return photo

    def _keys(self, request: ExpandRequest, source: str, passes: int) -> tuple[str, str]:
        """Return the key of the request, which contains a digest of the user's photo and the parameters.

        The second value is the key of its job, or of the job of its first pass.
        """
        if self._digest is None or self._digest[0] is not request.image:
            with open(source, "rb") as file:  # noqa: PTH123
                self._digest = request.image, hashlib.file_digest(file, "sha256").hexdigest()
        digest = self._digest[1]
        size = upright_size(source)
        steps = find_steps(request, self._dialect, size, passes)
        expansion = steps[0] if steps else resolve_geometry(request, self._dialect, size)
        own = f"{request.key}:" if request.key else ""
        key = f"{own}fit-{codec.fingerprint(request, expansion, digest)}"
        return key, f"{key}-pass1" if steps else key


def is_fitted(key: str) -> bool:
    """Return whether the key of a job shows that its photo was converted."""
    return key.startswith("fit-") or ":fit-" in key


def _fit(source: str, folder: Path, *, acceptable: bool) -> Fitted:
    folder.mkdir()
    return fit(source, folder, acceptable=acceptable)


def _state(image: Any) -> tuple[bool, bool]:
    """Return whether the service accepts a file unchanged, and whether it is upright."""
    try:
        header = read_header(image)
    except ImageError:
        return False, False
    return True, header is None or header.orientation == 1
