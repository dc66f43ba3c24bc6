"""How do results reach the disk? Streamed, checked, moved into place whole, and without credentials.

A result lies on a host that is not the API's. So nothing the session adds by itself
(``Authorization``, cookies, other default headers) goes with the request, on no hop of it, and
no error's message shows a query string: the signature in it is a bearer's ticket.
"""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from random import Random

import aiohttp
from attrs import evolve
from yarl import URL

from kling_expand.api.retry import retry_waits
from kling_expand.errors import (
    ClientClosed,
    DeadlineExceeded,
    DownloadError,
    InvalidRequest,
    KlingError,
    ResultExpired,
)
from kling_expand.models import Status, Task

from .filenames import OutputPaths, names
from .links import Refresh, ResultUrls, Wanted, in_order, readable, redirected
from .partial_file import Again, PartialFile, date, require_pillow

AT_ONCE = 4  # files of one task
MAX_REDIRECTS = 5
BATCH = 1 << 20  # bytes gathered before a thread writes them

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 416, 425, 429})  # refusals another try may not meet
_EXPIRED = frozenset({401, 403, 404, 410})
_HEADERS = frozenset({"host", "accept", "accept-encoding", "user-agent", "range", "if-range", "connection"})


class Downloads:
    """Saves results, in any number of tasks at once.

    *refresh* looks a task up, for fresh URLs. After *budget* seconds a file is not tried again;
    *stall* seconds without a byte end a try. Larger files than *max_bytes* are not taken.
    *decode* also decodes each picture (extra ``images``). The session stays its owner's.
    Raises `MissingExtra`.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        *,
        refresh: Refresh,
        rng: Random,
        budget: float = 120.0,
        stall: float = 30.0,
        max_bytes: int = 200 << 20,
        decode: bool = False,
    ) -> None:
        if decode:
            require_pillow()
        self._http = http
        self._refresh = refresh
        self._rng = rng
        self._budget = budget
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall)
        self._max_bytes = max_bytes
        self._decode = decode

    async def save(
        self,
        task: Task,
        target: str | os.PathLike[str] = ".",
        *,
        name: str | None = None,
        deadline_at: float | None = None,
    ) -> tuple[Path, ...]:
        """Save every image of a succeeded task; one path for each image, by index.

        *target* is a directory (made if missing; its files are ``{name}-{index}{ext}``, *name*
        being the task's id unless given), the path of a single picture, or a template with the
        fields ``name index task_id external_task_id ext``. A watermarked picture goes beside the
        plain one as ``NAME-watermark.EXT``. *deadline_at* is a moment of the loop's clock. An image that
        fails does not stop the others; what stands at a final path is always a whole picture.

        Raises `InvalidRequest` before anything is fetched, `ResultExpired`, `DownloadError`,
        `DeadlineExceeded` (nothing is lost: save again), `ClientClosed`, or what looking the
        task up raised; each carries the ids.
        """
        try:
            if task.status is not Status.SUCCEED:
                raise InvalidRequest("task", task.task_status, "only a task that succeeded has results")
            if not task.images:
                raise DownloadError("the task succeeded, but the service lists no image")
            ordered = evolve(task, images=in_order(task.images))
            return await self._save(ordered, names(ordered, target, name), deadline_at)
        except KlingError as error:
            error.task_id = error.task_id or task.task_id
            error.external_task_id = error.external_task_id or task.external_task_id
            raise

    async def _save(self, task: Task, where: OutputPaths, deadline_at: float | None) -> tuple[Path, ...]:
        links = ResultUrls(task, self._refresh)
        gate = asyncio.Semaphore(AT_ONCE)
        jobs = [self._file(links, where, wanted, gate) for wanted in links.wanted()]
        try:
            async with asyncio.timeout_at(deadline_at):
                outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while results were being saved") from None
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return tuple(path for path in outcomes if isinstance(path, Path))[: len(task.images)]

    async def _file(
        self, links: ResultUrls, where: OutputPaths, wanted: Wanted, gate: asyncio.Semaphore
    ) -> Path:
        async with gate:
            part = PartialFile(where.folder(wanted.place))
            try:
                await part.disk(part.create)
                await self._bring(part, links, wanted)
                target = where.path(wanted.place, part.ext, watermark=wanted.watermark)
                await part.disk(part.publish, target)
            finally:
                await part.disk(part.discard)
            return target

    async def _bring(self, part: PartialFile, links: ResultUrls, wanted: Wanted) -> None:
        """Try until the picture is there, the budget is spent, or a fresh URL is refused as well."""
        now = asyncio.get_running_loop().time
        give_up = now() + self._budget
        waits = retry_waits(self._rng)
        url, renewed = links.url(wanted), False
        while True:
            try:
                return await self._attempt(readable(url), part)
            except _Refused as refusal:
                if renewed:
                    raise refusal.final() from None
                url, renewed = await links.renewed(wanted), True
            except Again as trouble:
                wait = max(next(waits), trouble.wait)
                if now() + wait > give_up:
                    raise DownloadError(f"given up: {trouble}") from trouble.__cause__
                await asyncio.sleep(wait)

    async def _attempt(self, url: URL, part: PartialFile) -> None:
        try:
            async with await self._answer(url, part.headers()) as answer:
                _judge(answer)
                await part.begin(answer.status, answer.headers, answer.content_length)
                await self._take(answer, part)
        except aiohttp.ClientConnectorCertificateError as error:
            raise DownloadError(f"{error.host} is not trusted: {error.certificate_error}") from error
        except ValueError as error:  # such as a host's name that cannot be encoded for DNS
            raise DownloadError(f"a result's URL leads nowhere: {_reason(error)}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            await part.disk(part.flush)
            raise Again(f"the connection failed: {_reason(error)}") from error
        await part.disk(part.flush)
        part.check()
        if self._decode and not await part.disk(part.decodes):
            part.spoil("the picture cannot be decoded")

    async def _answer(self, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """The first answer that is not a redirect; each hop is checked as the URL was."""
        for _ in range(MAX_REDIRECTS + 1):
            if self._http.closed:
                raise ClientClosed("the session was closed before every result was saved")
            answer = await self._http.get(
                url,
                headers=headers,
                allow_redirects=False,
                middlewares=(_anonymous,),
                timeout=self._timeout,
                raise_for_status=False,
                auto_decompress=True,
            )
            if answer.status not in _REDIRECTS:
                return answer
            answer.close()
            location = answer.headers.get("Location")
            if not location:
                raise Again("the server redirected to nowhere")
            url = redirected(url, location)
        raise DownloadError(f"more than {MAX_REDIRECTS} redirects")

    async def _take(self, answer: aiohttp.ClientResponse, part: PartialFile) -> None:
        self._bound(part.total or 0)
        async for chunk in answer.content.iter_any():
            part.feed(chunk)
            self._bound(part.size)
            if part.waiting >= BATCH:
                await part.disk(part.flush)

    def _bound(self, size: int) -> None:
        if size > self._max_bytes:
            raise DownloadError(f"the file is larger than the {self._max_bytes} bytes allowed")


class _Refused(Exception):
    """The server will not give this URL's file: it may have expired."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    def final(self) -> DownloadError:
        kind = ResultExpired if self.status in _EXPIRED else DownloadError
        return kind(f"the server refuses the picture with HTTP {self.status}, also at a fresh URL")


async def _anonymous(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Send what a download needs, and nothing else the session would add by itself."""
    for header in {*request.headers}:
        if header.lower() not in _HEADERS:
            request.headers.popall(header, None)
    request.proxy_headers = None  # aiohttp would show the session's headers to a proxy, too
    return await handler(request)


def _judge(answer: aiohttp.ClientResponse) -> None:
    """Whether the answer's body can be taken, another try may help, or the URL is no good."""
    if answer.status in {200, 206}:
        return
    if 400 <= answer.status < 500 and answer.status not in _PASSING:
        raise _Refused(answer.status)
    raise Again(f"the server answered HTTP {answer.status}", _retry_after(answer.headers))


def _reason(error: Exception) -> str:
    """What happened; aiohttp puts whole URLs into some of its messages, which stay out."""
    text, kind = str(error), type(error).__name__
    return f"{kind}: {text}" if text and "://" not in text else kind


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds the server asks to wait, 0 for none; a date is measured by the server's own clock."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdigit():
        return float(asked)
    moment, now = date(asked), date(headers.get("Date"))
    return max((moment - now).total_seconds(), 0.0) if moment and now else 0.0
