"""How do bytes travel? The one door to the API: tokens, time-outs, retries of reads, foreign errors.

It does not know what a task is, and never repeats a create: that is `kling_expand.jobs.submission`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from random import Random
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from kling_expand.api.retry import retry_waits
from kling_expand.auth import Auth
from kling_expand.config import Settings
from kling_expand.errors import (
    AuthenticationError,
    ClientClosed,
    ConfigurationError,
    DeadlineExceeded,
    KlingError,
    ProtocolError,
    RateLimited,
    TransportError,
)
from kling_expand.events import Event, EventKind, Listener

from .codec import Response
from .photo import Photo

T = TypeVar("T")

MAX_ANSWER = 32 << 20  # bytes; a full list page of nine-picture tasks stays under 5 MB
_JOIN = 64 << 10  # bytes up to which a copy is cheaper than one more call of the system
FOREIGN = (aiohttp.ClientError, TimeoutError, OSError, EOFError, ValueError)  # what aiohttp may raise


class Body(aiohttp.Payload):
    """The body of a create: JSON around a photo's Base64, of known length, written in slices."""

    def __init__(self, head: bytes, photo: Photo | None = None, tail: bytes = b"") -> None:
        super().__init__(None, content_type="application/json")
        self._head, self._photo, self._tail = head, photo, tail
        self._size = len(head) + (photo.encoded_length if photo else 0) + len(tail)
        self.sent = False
        self.error: KlingError | None = None

    async def slices(self) -> AsyncIterator[bytes]:
        """The body from its beginning, as often as asked; what is small goes out in one piece."""
        waiting = self._head
        async for piece in self._rest():
            if len(waiting) + len(piece) <= _JOIN:
                waiting += piece
            else:
                yield waiting
                waiting = piece
        # Everything before this piece is not yet a whole request, so no service can act on it.
        self.sent = True
        yield waiting

    async def _rest(self) -> AsyncIterator[bytes]:
        """What follows the head."""
        if self._photo is not None:
            async for piece in self._photo.slices():
                yield piece
        if self._tail:
            yield self._tail

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the whole of it."""
        try:
            async for piece in self.slices():
                await writer.write(piece)
        except KlingError as error:  # the photo changed; aiohttp would wrap this in an error of its own
            self.error = error
            raise

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write the whole of it; the length that was announced is its own."""
        del content_length
        await self.write(writer)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Not held in memory, so there is nothing to show."""
        raise TypeError(f"a streamed body cannot be decoded as {encoding} ({errors})")


class RateLimitGate:
    """One pause for every caller, when the service says there are too many requests."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._opens = 0.0

    def close(self, seconds: float) -> None:
        """Let nobody pass for *seconds*; a longer pause already asked for stands."""
        self._opens = max(self._opens, asyncio.get_running_loop().time() + seconds)

    @property
    def closed(self) -> bool:
        """Whether there is anything to wait for."""
        return self._opens > asyncio.get_running_loop().time()

    async def wait(self, deadline_at: float | None = None) -> None:
        """Wait until open, then a little, so that not all who waited leave at once."""
        loop = asyncio.get_running_loop()
        while (pause := self._opens - loop.time()) > 0:
            await _sleep(pause + self._rng.uniform(0.0, 0.1 * pause), deadline_at)


class Session:
    """Calls to one service with one set of credentials, in one event loop.

    An `aiohttp.ClientSession` given as *http* is used as it is and never closed here.
    """

    def __init__(
        self,
        settings: Settings,
        auth: Auth,
        *,
        http: aiohttp.ClientSession | None = None,
        trace_configs: list[aiohttp.TraceConfig] | None = None,
        rng: Random,
        emit: Listener | None = None,
    ) -> None:
        self._settings = settings
        self._emit = emit
        self._auth = auth
        self._own = http is None
        self._http = http
        self._traces = trace_configs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rng = rng
        self._usual_timeout = aiohttp.ClientTimeout(
            total=settings.read_timeout, sock_connect=settings.connect_timeout
        )
        self.gate = RateLimitGate(rng)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if self._own:
            self._http = aiohttp.ClientSession(
                trace_configs=self._traces,
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=0),  # the scheduler and the poll loop are the limits
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own and self._http is not None:
            await self._http.close()
        self._loop = None

    @property
    def http(self) -> aiohttp.ClientSession:
        """The open aiohttp session. Raises `ClientClosed` or `ConfigurationError`."""
        if self._http is None or self._loop is None or self._http.closed:
            raise ClientClosed("the client is not open: use it inside `async with`")
        if self._loop is not asyncio.get_running_loop():
            raise ConfigurationError("a client belongs to the event loop it was opened in; open one in each")
        return self._http

    async def call(
        self,
        method: str,
        path: str,
        decode: Callable[[Response], T],
        *,
        params: Mapping[str, Any] | None = None,
        body: Callable[[], Body] | None = None,
        deadline_at: float | None = None,
    ) -> T:
        """One request and what *decode* makes of its answer.

        It is repeated only where the service says the token is not good, and once; *body* makes
        the body anew for it. Raises `APIError`, `TransportError` (whose `sent` says whether the
        service can have got the whole request), or `DeadlineExceeded` once *deadline_at* (loop time) has
        passed.
        """
        loop = asyncio.get_running_loop()
        began, failure, renewed = loop.time(), None, False
        try:
            while True:
                token, answer = await self._exchange(method, path, params, body and body(), deadline_at)
                try:
                    return self._open(answer, decode)
                except AuthenticationError:
                    if renewed or not self._auth.renew(token, answer.server_time):
                        raise
                    renewed = True
        except KlingError as error:
            failure = error
            raise
        finally:
            if self._emit is not None:
                kind = EventKind.CREATE if method == "POST" else EventKind.LIST if params else EventKind.READ
                self._emit(Event(kind, error=failure, seconds=loop.time() - began))

    def _open(self, answer: Response, decode: Callable[[Response], T]) -> T:
        """Decode; after "too many requests" every caller waits as long as the service asks.

        It waits a little even where the service asks for nothing, or there would be no pause at all.
        """
        try:
            return decode(answer)
        except RateLimited as error:
            self.gate.close(max(error.retry_after or 0.0, next(retry_waits(self._rng))))
            raise

    async def read(
        self,
        path: str,
        decode: Callable[[Response], T],
        *,
        params: Mapping[str, Any] | None = None,
        deadline_at: float | None = None,
    ) -> T:
        """A GET, repeated while its failures may pass, within `retry_timeout` and *deadline_at*."""
        loop = asyncio.get_running_loop()
        began, waits = loop.time(), None
        while True:
            try:
                return await self.call("GET", path, decode, params=params, deadline_at=deadline_at)
            except KlingError as error:
                waits = waits or retry_waits(self._rng)
                wait = getattr(error, "retry_after", None) or next(waits)
                if not error.retryable or loop.time() + wait > began + self._settings.retry_timeout:
                    raise
            await _sleep(wait, deadline_at)

    async def _exchange(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None,
        body: Body | None,
        deadline_at: float | None,
    ) -> tuple[str, Response]:
        """One request: the token it was made with, and its answer."""
        if self.gate.closed:
            await self.gate.wait(deadline_at)
        token = self._auth.token()
        http, timeout = self.http, self._timeout(body, deadline_at)
        try:
            async with http.request(
                method,
                self._settings.base_url + path,
                params=params,
                data=body,
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                timeout=timeout,
                allow_redirects=False,  # credentials go to the API's origin and nowhere else
                raise_for_status=False,  # whatever an injected session does otherwise
            ) as response:
                return token, Response(response.status, response.headers, await _whole(response))
        except FOREIGN as error:
            _translate(error, body)

    def _timeout(self, body: Body | None, deadline_at: float | None) -> aiohttp.ClientTimeout:
        """What one request may take; a read without a deadline, by far the most frequent, makes none anew."""
        settings = self._settings
        if body is None and deadline_at is None:
            return self._usual_timeout
        own = settings.read_timeout
        if body is not None:
            own = settings.create_timeout + (body.size or 0) / settings.upload_speed
        return aiohttp.ClientTimeout(total=_within(own, deadline_at), sock_connect=settings.connect_timeout)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    pieces, size = [], 0
    while piece := await response.content.readany():
        size += len(piece)
        if size > MAX_ANSWER:
            raise ProtocolError(f"the answer is longer than {MAX_ANSWER} bytes", status=response.status)
        pieces.append(piece)
    return b"".join(pieces)


def _translate(error: Exception, body: Body | None) -> NoReturn:
    """Raise what is ours instead: nothing else may be let out."""
    if body is not None and body.error is not None:
        raise body.error from None
    what = str(error) or type(error).__name__
    late = isinstance(error, TimeoutError)
    raise TransportError(
        f"no answer in time: {what}" if late else f"no answer: {what}", sent=body is None or body.sent
    ) from error


def _within(own: float, deadline_at: float | None) -> float:
    if deadline_at is None:
        return own
    left = deadline_at - asyncio.get_running_loop().time()
    if left <= 0:
        raise DeadlineExceeded("time is up before the request was made")
    return min(own, left)


async def _sleep(seconds: float, deadline_at: float | None) -> None:
    """Sleep, unless it would end after *deadline_at*: then there is no point in waiting for it."""
    if deadline_at is not None and asyncio.get_running_loop().time() + seconds > deadline_at:
        raise DeadlineExceeded("time is up before the service could be asked again")
    await asyncio.sleep(seconds)
