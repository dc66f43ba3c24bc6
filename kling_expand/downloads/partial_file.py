"""What is on disk while a picture still arrives? A hidden file beside its target, and what it may become.

It knows which answers continue it and whether it is a whole picture. It makes no request.
"""

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from kling_expand.errors import DownloadError, MissingExtra

HEAD = 12  # bytes `extension` needs to see
TAIL = 1024  # bytes at the end `whole` looks at: some encoders pad behind the end mark
OLD = timedelta(seconds=60)  # a Last-Modified this much before its answer's Date is a strong validator

_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_TAG = re.compile(r'"[!#-~]*"')
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)")


class Again(Exception):
    """This try failed, the next one may not; *wait* is what the server asked for, in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def extension(head: bytes) -> str:
    """The ending for a picture that begins with *head* (`HEAD` bytes); empty for anything else."""
    if head.startswith(_PNG):
        return ".png"
    if head.startswith(_JPEG):
        return ".jpg"
    return ".webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else ""


def whole(head: bytes, tail: bytes, size: int) -> bool:
    """Whether *size* bytes with this beginning and end (the last `TAIL` bytes) are an uncut picture."""
    match extension(head):
        case ".png":
            return _PNG_END in tail
        case ".jpg":
            return _JPEG_END in tail
        case ".webp":
            return size >= int.from_bytes(head[4:8], "little") + 8
    return False


def require_pillow() -> None:
    """Raises `MissingExtra`, before there is a picture to decode."""
    try:
        import PIL.Image  # noqa: F401 - whether it can be imported is the question
    except ImportError as error:
        raise MissingExtra("decoding needs Pillow: pip install 'kling-expand[images]'") from error


class PartialFile:
    """A picture in the making. Methods given to `disk` run in a thread; the others never wait."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f".{secrets.token_hex(8)}.part"
        self._file: Any = None
        self._batch: list[bytes] = []
        self._head = self._tail = b""
        self._validator: str | None = None
        self.waiting = 0  # bytes fed, not yet written
        self.size = 0
        self.total: int | None = None
        self.ext = ""

    async def disk(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run *work* off the loop, and to its end: a caller who is cancelled must not close its file.

        Raises `DownloadError` for whatever the file system says.
        """
        job = asyncio.ensure_future(asyncio.to_thread(work, *args))
        cancelled: asyncio.CancelledError | None = None
        while not job.done():
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            job.exception()  # seen, and of no more interest
            raise cancelled
        try:
            return job.result()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DownloadError(f"a file in {self._path.parent} cannot be written: {reason}") from error

    def create(self) -> None:
        """Make the file, and its directories."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("xb", buffering=0)

    def flush(self) -> None:
        """Write what was fed."""
        rest = memoryview(b"".join(self._batch))
        while rest:
            rest = rest[self._file.write(rest) :]
        self._batch, self.waiting = [], 0

    def restart(self) -> None:
        """Forget what came."""
        self._file.seek(0)
        self._file.truncate()
        self._batch, self.waiting, self.size = [], 0, 0
        self._head = self._tail = b""

    def decodes(self) -> bool:
        """Whether Pillow can read every pixel."""
        import PIL.Image

        try:
            with PIL.Image.open(self._path) as picture:
                picture.load()
        except Exception:  # noqa: BLE001 - decoders of broken bytes raise anything
            return False
        return True

    def publish(self, target: Path) -> None:
        """Move the file to *target*, whole and durable: at no moment is less than a picture there."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(target)
        # The picture is in place; not every file system can be told to write its directory out.
        with contextlib.suppress(OSError):
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """Leave nothing behind; what was published stays."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def headers(self) -> dict[str, str]:
        """What to ask for: the rest where it is sure to be of the same file, else all of it."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if self.size and self._validator is not None:
            headers |= {"Range": f"bytes={self.size}-", "If-Range": self._validator}
        return headers

    async def begin(self, status: int, headers: Mapping[str, str], length: int | None) -> None:
        """Get ready for a body: with 200 the whole file, with 206 the rest. Raises `Again`."""
        plain = headers.get("Content-Encoding", "identity").lower() == "identity"
        if status == 206:
            if not (plain and self._continues(headers)):
                self.spoil("the server sent another part of the file than the one asked for")
            return
        await self.disk(self.restart)
        self._validator = validator(headers) if plain else None
        self.total = length if plain else None

    def _continues(self, headers: Mapping[str, str]) -> bool:
        found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if found is None or self._validator is None or int(found[1]) != self.size:
            return False
        if validator(headers) not in {None, self._validator}:
            return False
        known = self.total
        if found[2] != "*":
            self.total = int(found[2])
        return known in {None, self.total}

    def feed(self, chunk: bytes) -> None:
        """Take what came next. Raises `Again` as soon as it is seen to be no picture."""
        self._tail = (self._tail + chunk[-TAIL:])[-TAIL:]
        self._batch.append(chunk)
        self.waiting += len(chunk)
        self.size += len(chunk)
        if len(self._head) < HEAD:
            self._head = (self._head + chunk)[:HEAD]
            self.ext = extension(self._head)
            if len(self._head) == HEAD and not self.ext:
                self.spoil("what came is not a picture")

    def check(self) -> None:
        """The body has ended; so should the picture. Raises `Again`."""
        if self.total is not None and self.size < self.total:
            raise Again(f"{self.size} of {self.total} bytes came")
        if self.total is not None and self.size > self.total:
            self.spoil(f"{self.size} bytes came for a file of {self.total}")
        if not whole(self._head, self._tail, self.size):
            self.spoil("the picture is cut short")

    def spoil(self, reason: str) -> None:
        """Nothing of what is here may be built upon. Raises `Again`."""
        self._validator = None
        raise Again(reason)


def validator(headers: Mapping[str, str]) -> str | None:
    """What proves that two answers carry the same bytes (RFC 9110, 8.8): a strong tag or an old date."""
    tag = headers.get("ETag", "")
    if _TAG.fullmatch(tag):
        return tag
    changed, now = date(headers.get("Last-Modified")), date(headers.get("Date"))
    return headers["Last-Modified"] if changed and now and now - changed >= OLD else None


def date(text: str | None) -> datetime | None:
    """A date as HTTP writes it; None where it is not one."""
    try:
        return parsedate_to_datetime(text).astimezone() if text else None
    except (ValueError, OverflowError):
        return None
