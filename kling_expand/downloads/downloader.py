"""Downloads of the pictures of a task, which are verified and, if interrupted, resumed where possible.

Pictures are on other hosts than the API, so the session's own headers (``Authorization``, cookies, other
defaults) are never sent with a download or after a redirect. No error message contains a query string,
because the signature in it grants access.
"""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import aiohttp
from attrs import evolve, frozen
from yarl import URL  # part of aiohttp's interface, and the only way to send a signed URL unchanged

from kling_expand.api.codec import Response
from kling_expand.api.session import retry_waits, without_secrets
from kling_expand.config import Settings
from kling_expand.errors import (
    ClientClosed,
    DeadlineExceeded,
    DownloadError,
    InvalidRequest,
    KlingError,
    NotFound,
    ResultExpired,
    TaskNotFound,
    require,
)
from kling_expand.events import Event, EventKind, Listener
from kling_expand.models import Image, Status, Task

from .files import (
    DEFAULTS,
    FORMATS,
    Destination,
    OutputPaths,
    PartialFile,
    RetryLater,
    SaveOptions,
    all_ended,
    output_paths,
    publish,
)

if TYPE_CHECKING:
    from kling_expand.pictures.convert import Metadata

MAX_OPEN_FILES = 16  # downloads in progress at once, over all tasks of a client
MAX_FILE_BYTES = 200 << 20
MAX_REDIRECTS = 5
FLUSH_BYTES = 1 << 20  # buffered before a thread writes them

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 416, 425, 429})  # statuses below 500 that are retried
_EXPIRED = frozenset({401, 403, 404, 410})
STALE_PAUSES = (1.0, 2.0, 4.0)  # seconds before the task is read again after an out-of-date response
RESUBMIT_ADVICE = "submit the job again with fresh=True; it is billed again"
_HEADERS = frozenset({"host", "accept", "accept-encoding", "user-agent", "range", "if-range", "connection"})
_URL_CHARACTERS = re.compile(r"[!-~]+")

Refresh = Callable[[str], Awaitable[Task]]


def no_proxy(_url: str) -> None:
    """Return None, so that the session's own proxy is used, if it has one."""


class Downloads:
    """The downloads of one client, for any number of tasks at once.

    An attempt ends after `read_timeout` seconds without a byte. The download of a picture is not retried
    later than `retry_timeout` seconds after it started, and `download_timeout` limits the whole download.
    *refresh* returns the task with a given id, for new URLs. *proxy_of* returns the proxy for a URL, and
    *emit* receives an event for each retry. The session is never closed here.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        settings: Settings,
        *,
        refresh: Refresh,
        rng: Random,
        proxy_of: Callable[[str], str | None] = no_proxy,
        emit: Listener | None = None,
    ) -> None:
        self._http = http
        self._emit = emit
        self._proxy_of = proxy_of
        self._settings = settings
        self._refresh = refresh
        self._rng = rng
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=settings.connect_timeout, sock_read=settings.read_timeout
        )
        self._open_files = asyncio.Semaphore(MAX_OPEN_FILES)
        self._names: dict[Path, str] = {}  # the names being saved, each with the id of its task

    async def save(
        self,
        task: Task,
        target: str | os.PathLike[str] = ".",
        options: SaveOptions = DEFAULTS,
        *,
        deadline_at: float | None = None,
    ) -> tuple[Path, ...]:
        """Save every image of a succeeded task, and return one path for each image, by index.

        *target* is a directory (created if missing), the path of a single picture, or a template with the
        fields ``name index task_id external_task_id ext key folder shape``. In a directory the files are
        named ``{name}-{index}{ext}``. A watermarked picture is saved next to the plain one as
        ``NAME-watermark.EXT``. *deadline_at* is a loop time.

        If one of the names is taken by a file that is not this task's, the task's id is appended to all of
        them. A picture that an earlier save of this task left there is not downloaded again.

        A failed image does not stop the others. A final path never holds an incomplete picture. Partial files
        that a crashed process left in the directory are removed.

        Raises:
            InvalidRequest: if the task has not succeeded, or *target* is invalid. Nothing was
                downloaded, unless the suffix of *target* does not match a picture's format.
            MissingExtra: if a conversion needs Pillow.
            ResultExpired: if the service no longer has a picture.
            DownloadError: if a picture could not be downloaded or written.
            DeadlineExceeded: if the deadline passes. The result can be saved again.
            ClientClosed: if the session was closed in the meantime.
            KlingError: if *refresh* fails. Like the other errors, it has the ids of the task.
        """
        with _with_task_ids(task):
            task = _succeeded(task)
            paths = output_paths(task, target, options)
            if options.format is not None:
                require("images", "PIL")
            try:
                async with asyncio.timeout_at(deadline_at):
                    return await self._save(task, paths, options)
            except TimeoutError:
                raise DeadlineExceeded("the deadline passed while results were being saved") from None

    async def stream(
        self, task: Task, position: int, *, deadline_at: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield an image in chunks, after it has been downloaded completely.

        *position* is the image's place, from 0, among the images sorted by index.

        Raises:
            KlingError: for the same reasons as `save`.
        """
        from .spooled import CHUNK_BYTES, SpooledPicture  # imported here, as most pictures are saved

        part = SpooledPicture()
        try:
            with _with_task_ids(task):
                urls = ResultUrls(_succeeded(task), self._refresh)
                await part.in_thread(part.create)
                try:
                    async with asyncio.timeout_at(deadline_at), self._open_files:
                        await self._download(part, urls, ResultFile(position, watermark=False))
                except TimeoutError:
                    raise DeadlineExceeded("the deadline passed while a result was being read") from None
                await part.in_thread(part.rewind)
            while chunk := await part.in_thread(part.read, CHUNK_BYTES):
                yield chunk
        finally:
            await part.in_thread(part.discard)

    async def _save(self, task: Task, paths: OutputPaths, options: SaveOptions) -> tuple[Path, ...]:
        """Save every file of *task*, under plain names unless another task has taken or reserved them."""
        names = paths.path(0, "")
        owner = self._names.setdefault(names, task.task_id)
        try:
            tagged = not options.overwrite and (
                owner != task.task_id or await asyncio.to_thread(paths.is_taken)
            )
            urls = ResultUrls(task, self._refresh)
            files = urls.files(watermark=options.watermark)
            destination = Destination(paths, tagged, options.overwrite)
            jobs = [self._save_file(urls, file, destination, options) for file in files]
            saved = await all_ended(*jobs)
        finally:
            if owner == task.task_id:
                self._names.pop(names, None)
        return tuple(saved[: len(task.images)])

    async def _save_file(
        self, urls: "ResultUrls", file: "ResultFile", destination: Destination, options: SaveOptions
    ) -> Path:
        async def download(part: PartialFile) -> None:
            await self._download(part, urls, file)
            if options.metadata is not None:
                await part.in_thread(_add_metadata, part, options.metadata)
            if options.converts(part.ext):
                await part.in_thread(_convert, part, options)

        async with self._open_files:
            return await publish(destination, file.position, download, watermark=file.watermark)

    async def _download(self, part: PartialFile, urls: "ResultUrls", file: "ResultFile") -> None:
        limit = asyncio.timeout(self._settings.download_timeout)
        try:
            async with limit:
                await self._retry(part, urls, file)
        except TimeoutError:
            if not limit.expired():
                raise
            seconds = f"{self._settings.download_timeout:g} s"
            raise DownloadError(
                f"the picture was not downloaded within download_timeout, {seconds}"
            ) from None

    async def _retry(self, part: PartialFile, urls: "ResultUrls", file: "ResultFile") -> None:
        """Download a picture, retrying until `retry_timeout` has passed or a fresh URL is refused too.

        An unreachable host may have been replaced, so the task is read once for a fresh URL.
        """
        now = asyncio.get_running_loop().time
        retry_until = now() + self._settings.retry_timeout
        waits = retry_waits(self._rng)
        url, refreshed, unreached, tries = urls.url(file), False, False, 0
        while True:
            tries += 1
            try:
                return await self._attempt(parse_url(url), part)
            except _UrlRefused as refusal:
                if refreshed:
                    raise refusal.final() from None
                self._report(urls.task, f"the server refused the URL with HTTP {refusal.status}", tries, 0.0)
                url, refreshed = await urls.refresh(file), True
            except RetryLater as failure:
                if _is_refusal(failure.__cause__) and not unreached:
                    unreached = True
                    known, url = url, await urls.try_refresh(file)
                    if url != known:
                        self._report(urls.task, str(failure), tries, 0.0)
                        continue
                wait = max(next(waits), failure.wait)
                if now() + wait > retry_until:
                    raise DownloadError(f"the download was given up: {failure}") from failure.__cause__
                self._report(urls.task, str(failure), tries, wait)
                await asyncio.sleep(wait)

    def _report(self, task: Task, reason: str, tries: int, wait: float) -> None:
        """Emit a retry event for a picture that is downloaded again in *wait* seconds."""
        if self._emit is not None:
            event = Event(EventKind.RETRY, task.external_task_id, task, DownloadError(reason))
            self._emit(event._replace(route="download", attempt=tries, wait=wait))

    async def _attempt(self, url: URL, part: PartialFile) -> None:
        try:
            async with await self._get(url, part.headers()) as response:
                _check_status(response)
                await part.start(response.status, response.headers, response.content_length)
                await self._receive(response, part)
        except aiohttp.ClientConnectorCertificateError as error:
            raise DownloadError(
                f"the certificate of {error.host} is not trusted: {error.certificate_error}"
            ) from without_secrets(error)
        except ValueError as error:  # such as a host name that cannot be encoded for DNS
            raise DownloadError(f"a result's URL cannot be downloaded: {_reason(error)}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            await part.in_thread(part.flush)
            raise RetryLater(f"the connection failed: {_reason(error)}") from without_secrets(error)
        await part.in_thread(part.flush)
        part.verify()

    async def _get(self, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Return the first response that is not a redirect. The URL of each redirect is checked, too."""
        for _ in range(MAX_REDIRECTS + 1):
            if self._http.closed:
                raise ClientClosed("the session was closed before every result was saved")
            response = await self._http.get(
                url,
                headers=headers,
                allow_redirects=False,
                middlewares=(_anonymous,),
                proxy=self._proxy_of(str(url)),
                timeout=self._timeout,
                raise_for_status=False,
                auto_decompress=True,
            )
            if response.status not in _REDIRECTS:
                return response
            response.close()
            location = response.headers.get("Location")
            if not location:
                raise RetryLater("the server sent a redirect without a Location")
            url = redirect_url(url, location)
        raise DownloadError(f"more than {MAX_REDIRECTS} redirects")

    async def _receive(self, response: aiohttp.ClientResponse, part: PartialFile) -> None:
        _check_size(part.total or 0)
        async for chunk in response.content.iter_any():
            part.write(chunk)
            _check_size(part.size)
            if part.buffered >= FLUSH_BYTES:
                await part.in_thread(part.flush)


@contextmanager
def _with_task_ids(task: Task) -> Iterator[None]:
    """Add the ids of *task* to the errors that are raised within the block."""
    try:
        yield
    except KlingError as error:
        error.task_id = error.task_id or task.task_id
        error.external_task_id = error.external_task_id or task.external_task_id
        raise


def _succeeded(task: Task) -> Task:
    """Return *task* with its images sorted by index, or raise if it has no results."""
    if task.status is not Status.SUCCEED:
        raise InvalidRequest("task", task.task_status, "must have succeeded, as other tasks have no results")
    if not task.images:
        raise DownloadError("the task succeeded, but the service lists no image; save it again later")
    return evolve(task, images=by_index(task.images))


def _add_metadata(part: PartialFile, metadata: "Metadata") -> None:
    from kling_expand.pictures.convert import insert_metadata  # imported here, as few saves need it

    part.rewrite(partial(insert_metadata, metadata=metadata), part.ext)


def _convert(part: PartialFile, options: SaveOptions) -> None:
    from kling_expand.pictures.convert import convert  # imported here, as few saves convert

    wanted = options.format or ""
    part.rewrite(partial(convert, picture_format=wanted, quality=options.quality), FORMATS[wanted])


class _UrlRefused(Exception):
    """A refusal of a URL by the server. The URL may have expired."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    def final(self) -> DownloadError:
        kind = ResultExpired if self.status in _EXPIRED else DownloadError
        advice = f"; {RESUBMIT_ADVICE}" if kind is ResultExpired else ""
        return kind(f"the server refuses the picture with HTTP {self.status}, even with a fresh URL{advice}")


async def _anonymous(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Remove every header that the session added."""
    for header in {*request.headers}:
        if header.lower() not in _HEADERS:
            request.headers.popall(header, None)
    request.proxy_headers = None  # aiohttp would send the session's headers to a proxy
    return await handler(request)


def _is_refusal(cause: BaseException | None) -> bool:
    """Return whether the host's name was resolved, but no connection could be made."""
    unknown = isinstance(cause, aiohttp.ClientConnectorDNSError)
    return isinstance(cause, aiohttp.ClientConnectorError) and not unknown


def _check_status(response: aiohttp.ClientResponse) -> None:
    """Raise `_UrlRefused` for a permanent refusal, and `RetryLater` for any other error status."""
    if response.status in {200, 206}:
        return
    if 400 <= response.status < 500 and response.status not in _TRANSIENT:
        raise _UrlRefused(response.status)
    wait = Response(response.status, response.headers, b"").retry_after
    raise RetryLater(f"the server responded with HTTP {response.status}", wait or 0.0)


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DownloadError(f"a picture must be at most {MAX_FILE_BYTES} bytes, got at least {size}")


def _reason(error: Exception) -> str:
    """Return the reason for a failure, without aiohttp's own text if that contains a URL."""
    text, kind = str(error), type(error).__name__
    return f"{kind}: {text}" if text and "://" not in text else kind


# ---------------------------------------------------------------------------- the URLs of a task


def by_index(images: tuple[Image, ...]) -> tuple[Image, ...]:
    """Return the images sorted by their index."""
    return tuple(sorted(images, key=lambda image: image.index))


@frozen
class ResultFile:
    """One file of a task: the image at `position`, in index order, or its watermarked version."""

    position: int
    watermark: bool

    def url(self, task: Task) -> str:
        """Return the URL of this file in *task*.

        Raises:
            ResultExpired: if the task does not list it.
        """
        images = by_index(task.images)
        image = images[self.position] if self.position < len(images) else None
        url = image and (image.watermark_url if self.watermark else image.url)
        if not url:
            raise ResultExpired(f"the service no longer lists the image; {RESUBMIT_ADVICE}")
        return url


class ResultUrls:
    """The URLs of one task. A single read of the task renews all of them."""

    def __init__(self, task: Task, refresh: Refresh) -> None:
        self.task: Task = task
        self._refresh = refresh
        self._fresh: Task | None = None
        self._lock = asyncio.Lock()

    def files(self, *, watermark: bool = True) -> list[ResultFile]:
        """Return the files of the plain pictures by index, followed by those of the watermarked ones."""
        images = list(enumerate(by_index(self.task.images)))
        wanted = [position for position, image in images if watermark and image.watermark_url]
        marked = [ResultFile(position, watermark=True) for position in wanted]
        return [ResultFile(position, watermark=False) for position, _ in images] + marked

    def url(self, file: ResultFile) -> str:
        """Return the URL in the original snapshot of the task.

        Raises:
            ResultExpired: if the task does not list it.
        """
        return file.url(self.task)

    async def refresh(self, file: ResultFile) -> str:
        """Return a fresh URL from the service.

        Raises:
            ResultExpired: if the task is unknown, or does not list the file.
            DownloadError: if the service keeps returning the task as it was before its end.
            KlingError: if the read of the task fails.
        """
        async with self._lock:
            if self._fresh is None:
                try:
                    self._fresh = await self._read()
                except (TaskNotFound, NotFound) as error:
                    raise ResultExpired(f"the service no longer has the task; {RESUBMIT_ADVICE}") from error
        return file.url(self._fresh)

    async def _read(self) -> Task:
        """Read the task. An out-of-date response, as from a replica, may be followed by the current one."""
        for pause in (*STALE_PAUSES, 0.0):
            task = await self._refresh(self.task.task_id)
            if task.status.final and len(task.images) >= len(self.task.images):
                break
            await asyncio.sleep(pause)
        if not task.status.final:
            raise DownloadError("the service returns the task as it was before its end; save it again later")
        return task

    async def try_refresh(self, file: ResultFile) -> str:
        """Return a fresh URL from the service, or the original one if there is none."""
        with suppress(KlingError):
            return await self.refresh(file)
        return self.url(file)


def parse_url(text: str) -> URL:
    """Return the parsed URL. Its exact characters are kept if possible, as a signature may cover them.

    A user name and a password in it are removed, because they would be sent as credentials.

    Raises:
        DownloadError: if it is not an http or https URL with a host.
    """
    try:
        url = URL(text, encoded=_URL_CHARACTERS.fullmatch(text) is not None)
        valid = url.scheme in {"http", "https"} and url.host and url.port
        url = url.with_user(None) if valid else url
    except (ValueError, TypeError):
        raise DownloadError("a result's URL cannot be read") from None
    if not valid:
        scheme = url.scheme or "relative"
        raise DownloadError(f"a result's URL must be http or https and have a host, got: {scheme}")
    return url


def redirect_url(url: URL, location: str) -> URL:
    """Return the target of a redirect from *url*.

    Raises:
        DownloadError: if it is not an http or https URL, or leads from https to http.
    """
    try:
        joined = url.join(URL(location, encoded=_URL_CHARACTERS.fullmatch(location) is not None))
    except ValueError:
        raise DownloadError("the server redirected to a URL that cannot be read") from None
    if url.scheme == "https" and joined.scheme == "http":
        raise DownloadError("the server redirected from https to http")
    return parse_url(str(joined))
