"""The session with the service: tokens, timeouts, rate limits, retries and the conversion of network errors.

It knows nothing about tasks, and leaves the retries of creates to `kling_expand.jobs.submission`.

Until the service has responded once, an unreachable host is assumed to be a mistake in the settings. So
connections are retried for only `connect_timeout` seconds, and an untrusted certificate is not retried at
all. Once the service has responded, both failures are retried like any other.
"""

import asyncio
import math
import platform
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, TypeVar, cast
from urllib.parse import urljoin, urlsplit
from uuid import uuid4

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from kling_expand._version import __version__
from kling_expand.config import Auth, Settings, environment_proxy
from kling_expand.errors import (
    AuthenticationError,
    ClientClosed,
    ConfigurationError,
    DeadlineExceeded,
    KlingError,
    NotFound,
    ProtocolError,
    RateLimited,
    TransportError,
    requirement,
)
from kling_expand.events import CALLER, Event, EventKind, Listener
from kling_expand.models import shown

from .codec import LONG_RESPONSE, PATHS, Response
from .photo import Photo

T = TypeVar("T")

USER_AGENT = f"kling-expand/{__version__} python/{platform.python_version()}"
MAX_TASK, MAX_LIST = 4 << 20, 32 << 20  # bytes of a response; a full page of nine-picture tasks has 5 MB
_JOIN_BYTES = 64 << 10  # bytes; up to this size a copy is cheaper than another system call
# The errors that mean that no connection to the service was made.
UNREACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
_URL_SECRETS = re.compile(r"(\w://)(?:[^\s/?#@]*@)?([^\s?#]*)[?#]?\S*")
FOREIGN = (aiohttp.ClientError, TimeoutError, OSError, EOFError, ValueError)  # errors that aiohttp raises


class Body(aiohttp.Payload):
    """The body of a create, which is JSON with the Base64 text of a photo.

    Its length is known in advance, and it is written in slices. `sent` says whether the service may have
    received all of it.
    """

    def __init__(self, head: bytes, photo: Photo | None = None, tail: bytes = b"") -> None:
        super().__init__(None, content_type="application/json")
        self._head, self._photo, self._tail = head, photo, tail
        self._size = len(head) + (photo.encoded_length if photo else 0) + len(tail)
        self.sent: bool = False
        self.error: KlingError | None = None

    async def slices(self) -> AsyncIterator[bytes]:
        """Yield the whole body in pieces. Small pieces are joined."""
        pending = self._head
        async for piece in self._rest():
            if len(pending) + len(piece) <= _JOIN_BYTES:
                pending += piece
            else:
                yield pending
                pending = piece
        # Until the last piece is sent, the request is incomplete, and the service cannot act on it.
        self.sent = True
        yield pending

    async def _rest(self) -> AsyncIterator[bytes]:
        """Yield the pieces after the head."""
        if self._photo is not None:
            async for piece in self._photo.slices():
                yield piece
        if self._tail:
            yield self._tail

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the whole body."""
        try:
            async for piece in self.slices():
                await writer.write(piece)
        except KlingError as error:  # the photo changed; aiohttp would wrap the error
            self.error = error
            raise

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write the whole body. The request's headers already have its exact length."""
        del content_length
        await self.write(writer)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Raise TypeError, because the body is not held in memory."""
        raise TypeError(f"a streamed body cannot be decoded as {encoding} ({errors})")


class Retry:
    """The retry policy of one call, which gives the wait after each failure, or None to give up.

    Transient failures are retried for *timeout* seconds, after waits that double. A wait that the service
    requests is neither shortened nor extended. If it exceeds *max_retry_after* seconds, the call is not
    retried.
    """

    def __init__(self, rng: Random, *, timeout: float, max_retry_after: float) -> None:
        self._give_up_at = asyncio.get_running_loop().time() + timeout
        self._max_retry_after = max_retry_after
        self._waits = retry_waits(rng)

    def after(self, error: KlingError) -> float | None:
        """Return the seconds to wait before retrying a call that failed with *error*, or None to give up."""
        wait = self.wait(getattr(error, "retry_after", None)) if error.retryable else None
        if wait is None or not isinstance(error, TransportError) or error.retried_until is None:
            return wait
        return min(wait, max(0.0, error.retried_until - asyncio.get_running_loop().time()))

    def wait(self, retry_after: float | None) -> float | None:
        """Return the seconds to wait after a transient failure, or None to give up.

        *retry_after* is the wait that the service requests, in seconds, or None. This wait may extend past
        *timeout*, because a service that asks for it is reachable.
        """
        now = asyncio.get_running_loop().time()
        if retry_after:
            return retry_after if now <= self._give_up_at and retry_after <= self._max_retry_after else None
        wait = next(self._waits)
        return wait if now + wait <= self._give_up_at else None


def retry_waits(rng: Random, *, first: float = 0.5, longest: float = 20.0) -> Iterator[float]:
    """Yield the seconds to wait before each retry.

    The waits double, and each is shortened at random by up to a half. `backoff.full_jitter` would use the
    global random generator, and could return a wait near zero.
    """
    for wait in growing(2, first, longest):
        yield wait * rng.uniform(0.5, 1.0)


def growing(factor: float, first: float, longest: float) -> Iterator[float]:
    """Return waits that grow by *factor* from *first* up to *longest* seconds."""
    import backoff  # imported here, because many clients never wait

    waits = backoff.expo(base=factor, factor=first, max_value=longest)
    next(waits)  # the first value of a backoff generator is always None
    return waits


class RateLimitGate:
    """The pauses of one route after the service has refused a request with 1302 (too many requests).

    The service may specify the length of a pause. Otherwise, consecutive refusals lead to pauses of 1, 2, 4 …
    60 s. After a success, the next refusal leads to a pause of 1 s again. Refusals of requests that were in
    progress together count as one. `opens_at` is the loop time at which the pause ends.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.opens_at: float = 0.0
        self._refused_at = -math.inf
        self._pauses: Iterator[float] | None = None

    def refuse(self, sent_at: float, retry_after: float | None = None) -> None:
        """Start a pause after the refusal of a request that was sent at *sent_at* (loop time)."""
        if retry_after:
            self.close(retry_after)
        elif sent_at > self._refused_at:
            self._pauses = self._pauses or growing(2, 1.0, 60.0)
            self.close(next(self._pauses))
        self._refused_at = asyncio.get_running_loop().time()

    def accept(self, sent_at: float) -> None:
        """Reset the length of the next pause after the success of a request sent since the last refusal."""
        if sent_at > self._refused_at:
            self._pauses = None

    def close(self, seconds: float) -> None:
        """Block every caller for *seconds*, unless a longer pause is already in force."""
        self.opens_at = max(self.opens_at, asyncio.get_running_loop().time() + seconds)

    @property
    def remaining(self) -> float:
        """The seconds until the pause is over, or 0 if there is none."""
        return max(0.0, self.opens_at - asyncio.get_running_loop().time())

    async def wait(self, deadline_at: float | None = None) -> None:
        """Wait until the pause is over, and then a little longer.

        The additional time is random, so that the callers do not all send at once. A waiting caller has not
        sent anything yet, so it may be cancelled.

        Raises:
            DeadlineExceeded: if the wait would end after *deadline_at* (loop time).
        """
        loop = asyncio.get_running_loop()
        while (pause := self.opens_at - loop.time()) > 0:
            await _sleep(pause + self._rng.uniform(0.0, 0.1 * pause), deadline_at)


SessionSource = aiohttp.ClientSession | Callable[[], aiohttp.ClientSession]


class Session:
    """A session with one service, for one set of credentials and one event loop.

    *http* may be an `aiohttp.ClientSession`, which is used unchanged and never closed here. It may also be a
    function that returns one, which is closed with this session. `gates` has the pauses of each route:
    CREATE, READ and LIST. *clock* returns Unix seconds.

    Raises:
        ConfigurationError: if *http* or *trace_configs* is invalid, or if another argument or setting
            conflicts with *http*.
    """

    def __init__(
        self,
        settings: Settings,
        auth: Auth,
        *,
        http: SessionSource | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] | None = None,
        rng: Random,
        emit: Listener | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._emit = emit
        self._auth = auth
        _check_network(settings, http, trace_configs)
        self._source = http
        self._traces = trace_configs
        self._http: aiohttp.ClientSession | None = None
        self._proxy: str | None = None  # for requests to the service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rng = rng
        self._clock = clock
        self._responded = False  # whether the service has ever responded
        self._first_tried_at: float | None = None
        self._usual_timeout = aiohttp.ClientTimeout(
            total=settings.read_timeout, sock_connect=settings.connect_timeout
        )
        self.gates: dict[EventKind, RateLimitGate] = {
            kind: RateLimitGate(rng) for kind in (EventKind.CREATE, EventKind.READ, EventKind.LIST)
        }

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._proxy = self.proxy_of(self._settings.base_url)
        self._http = self._session()
        return self

    def _session(self) -> aiohttp.ClientSession:
        """Return the aiohttp session to use from now on."""
        if isinstance(self._source, aiohttp.ClientSession):
            if getattr(self._source, "_loop", self._loop) is not self._loop:
                hint = "pass a function that returns one"
                raise ConfigurationError(f"http must be a session of the client's event loop; {hint}")
            return self._source
        if self._source is not None:
            session = self._source()
            if not isinstance(session, aiohttp.ClientSession):
                limit = f"http must be a function that returns an aiohttp.ClientSession, got {shown(session)}"
                raise ConfigurationError(limit)
            return session
        return aiohttp.ClientSession(
            headers={"User-Agent": USER_AGENT},
            trace_configs=list(self._traces or ()),
            cookie_jar=aiohttp.DummyCookieJar(),
            # The scheduler and the poller limit the number of requests in progress, so the pool does not.
            connector=aiohttp.TCPConnector(limit=0, ssl=self._settings.ssl),
        )

    def proxy_of(self, url: str) -> str | None:
        """Return the proxy for *url*, or None. A session given as *http* uses its own proxy instead.

        Raises:
            ConfigurationError: if the environment names a proxy that cannot be used.
        """
        if self._source is not None:
            return None
        if self._settings.proxy is not None or not self._settings.trust_env:
            return self._settings.proxy
        return environment_proxy(url)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None and self._http is not self._source:
            await self._http.close()
        self._loop = None

    @property
    def http(self) -> aiohttp.ClientSession:
        """The open aiohttp session. Raises `ClientClosed` or `ConfigurationError`."""
        if self._http is None or self._loop is None or self._http.closed:
            raise ClientClosed("the client is not open: use it inside `async with`")
        if self._loop is not asyncio.get_running_loop():
            raise ConfigurationError("a client belongs to the event loop that opened it; open one per loop")
        return self._http

    def retry(self) -> Retry:
        """Return a retry policy for one call, with the limits of the settings."""
        settings = self._settings
        return Retry(self._rng, timeout=settings.retry_timeout, max_retry_after=settings.max_retry_after)

    async def call(
        self,
        method: str,
        path: str,
        decode: Callable[[Response], T],
        *,
        params: Mapping[str, Any] | None = None,
        body: Callable[[], Body] | None = None,
        fresh: bool = False,
        attempt: int = 1,
        deadline_at: float | None = None,
    ) -> T:
        """Make one request, and return its response as decoded by *decode*.

        If the service refuses the token, the request is repeated once, with a new token and a new *body*.
        With *fresh* it uses a new connection, never a pooled one. *attempt* is recorded in the event.

        Raises:
            APIError: if the service refuses. `retryable` is False if it requests too long a wait.
            TransportError: if there is no response. `sent` says whether the request may have arrived.
            DeadlineExceeded: if *deadline_at* (loop time) has passed.
            ConfigurationError: if the response is a redirect, so `base_url` is not the address of the API.
        """
        loop = asyncio.get_running_loop()
        kind = EventKind.CREATE if method == "POST" else EventKind.LIST if params else EventKind.READ
        gate = self.gates[kind]
        started_at, failure, renewed, waited = loop.time(), None, False, 0.0
        try:
            while True:
                sent_at = loop.time()
                if gate.opens_at > sent_at:
                    await gate.wait(deadline_at)
                    waited += loop.time() - sent_at
                    sent_at = loop.time()
                token = self._auth.token()
                request = _Request(method, path, token, params, body and body(), fresh)
                response = await self._exchange(request, deadline_at)
                try:
                    return await self._open(response, decode, path, kind, sent_at)
                except AuthenticationError as error:
                    if renewed or not self._auth.renew(token, response.server_time):
                        raise
                    renewed = True
                    self.report_retry(kind, error, attempt, 0.0)
        except KlingError as error:
            failure = error
            raise
        finally:
            seconds = loop.time() - started_at
            self._report(kind, kind, failure, attempt=attempt, wait=waited or None, seconds=seconds)

    def report_retry(
        self, route: EventKind, error: KlingError, attempt: int, wait: float | None = None
    ) -> None:
        """Emit a retry event for a call on *route* that has failed *attempt* times.

        *wait* is the time in seconds until the retry, or None if it is not known.
        """
        self._report(EventKind.RETRY, route, error, attempt=attempt, wait=wait)

    def _report(
        self,
        kind: EventKind,
        route: EventKind,
        error: KlingError | None,
        *,
        attempt: int | None = None,
        wait: float | None = None,
        seconds: float | None = None,
    ) -> None:
        """Emit an event with the number and the ids of the job that the call is made for."""
        if self._emit is not None:
            number, external_task_id, task_id = CALLER.get()
            # Positional arguments, in the order of the fields, are faster, and each call emits an event.
            self._emit(
                Event(
                    kind, external_task_id, None, error, seconds, None, number, task_id, route, attempt, wait
                )
            )

    async def _open(
        self, response: Response, decode: Callable[[Response], T], path: str, kind: EventKind, sent_at: float
    ) -> T:
        """Decode a response, and update the rate limit of its route."""
        gate = self.gates[kind]
        try:
            is_long = len(response.body) > LONG_RESPONSE
            value = await asyncio.to_thread(decode, response) if is_long else decode(response)
        except RateLimited as error:
            retry_after, longest = error.retry_after or 0.0, self._settings.max_retry_after
            # One absurd header must not pause the route for a day, so it only ends the retries of this call.
            error.retryable = retry_after <= longest
            gate.refuse(sent_at, min(retry_after, longest))
            self._report(EventKind.PAUSE, kind, error, wait=gate.remaining)
            raise
        except NotFound as error:
            if error.code is None and path in PATHS.values():
                where = f"base_url must be the address of the API: {self._settings.base_url} has no {path}"
                error.message = f"{where} ({error.message})"
            raise
        gate.accept(sent_at)
        return value

    async def read(
        self,
        path: str,
        decode: Callable[[Response], T],
        *,
        params: Mapping[str, Any] | None = None,
        deadline_at: float | None = None,
    ) -> T:
        """Make a GET request, and retry transient failures within `retry_timeout` and *deadline_at*.

        Raises:
            KlingError: if every attempt fails. It is the error of the last one, as raised by `call`.
        """
        retry, attempt = self.retry(), 0
        while True:
            attempt += 1
            try:
                return await self.call(
                    "GET", path, decode, params=params, attempt=attempt, deadline_at=deadline_at
                )
            except KlingError as error:
                if (wait := retry.after(error)) is None:
                    raise
                self.report_retry(EventKind.LIST if params else EventKind.READ, error, attempt, wait)
            await _sleep(wait, deadline_at)

    async def _exchange(self, request: "_Request", deadline_at: float | None) -> Response:
        """Send one request, and return its response."""
        http, timeout = self.http, self._timeout(request.body, deadline_at)
        if self._first_tried_at is None:
            self._first_tried_at = asyncio.get_running_loop().time()
        try:
            async with http.request(
                request.method,
                self._settings.base_url + request.path,
                params=request.params,
                data=request.body,
                headers={
                    **self._settings.headers,
                    "Authorization": f"Bearer {request.token}",
                    "Content-Type": "application/json",
                },
                proxy=self._proxy,
                timeout=timeout,
                allow_redirects=False,  # credentials are sent only to the API's origin
                raise_for_status=False,  # even if an injected session has another default
                middlewares=_fresh_connection(http) if request.fresh else None,
            ) as response:
                _refuse_redirect(response)
                if response.status == 407:
                    hint = "asks for credentials: give http://user:password@host:port"
                    raise TransportError(f"the proxy {hint}", sent=False, retryable=False)
                self._responded = True
                body = await _read_body(response, MAX_LIST if request.params else MAX_TASK)
                return Response(response.status, response.headers, body, self._clock())
        except FOREIGN as error:
            self._translate(error, request.body)
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            self._translate(error, request.body)

    def _translate(self, error: BaseException, body: Body | None) -> NoReturn:
        """Convert a foreign error to an error of this package, and raise it."""
        if body is not None and body.error is not None:
            raise body.error from None
        sent = body is None or body.sent
        if isinstance(error, UNREACHED):
            retryable = self._is_worth_retrying(error)
            unreached = TransportError(self._unreached(error), sent=False, retryable=retryable)
            if not self._responded and self._first_tried_at is not None:
                unreached.retried_until = self._first_tried_at + self._settings.connect_timeout
            raise unreached from without_secrets(error)
        detail, timed_out = str(error) or type(error).__name__, isinstance(error, TimeoutError)
        raise TransportError(
            f"no response in time: {detail}" if timed_out else f"no response: {detail}", sent=sent
        ) from without_secrets(error)

    def _unreached(self, error: BaseException) -> str:
        """Return a message with the cause of a failed connection."""
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return f"the certificate of {error.host} is not trusted: {error.certificate_error}"
        where = f"{self._settings.base_url} cannot be reached"
        if self._proxy is not None:
            where += f" through the proxy {_without_user(self._proxy)}"
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return f"{where}, which responded {error.status} {error.message}"
        return f"{where}: {error}"

    def _is_worth_retrying(self, error: BaseException) -> bool:
        """Return whether to retry a failed connection, by the rules in this module's docstring."""
        if self._responded or self._first_tried_at is None:
            return True
        refused = isinstance(error, aiohttp.ClientHttpProxyError) and error.status < 500
        if refused or isinstance(error, aiohttp.ClientConnectorCertificateError):
            return False
        tried = asyncio.get_running_loop().time() - self._first_tried_at
        return tried < self._settings.connect_timeout

    def _timeout(self, body: Body | None, deadline_at: float | None) -> aiohttp.ClientTimeout:
        """Return the time limits of one request. Most reads share one object."""
        settings = self._settings
        if body is None and deadline_at is None:
            return self._usual_timeout
        seconds = settings.read_timeout
        if body is not None:
            seconds = settings.create_timeout + (body.size or 0) / settings.upload_speed
        return aiohttp.ClientTimeout(
            total=_within(seconds, deadline_at), sock_connect=settings.connect_timeout
        )


class _Request(NamedTuple):
    method: str
    path: str
    token: str
    params: Mapping[str, Any] | None
    body: Body | None
    fresh: bool


def _check_network(
    settings: Settings, http: object, trace_configs: Sequence[aiohttp.TraceConfig] | None
) -> None:
    """Raise `ConfigurationError` for an invalid argument, or for one that conflicts with *http*."""
    if not (http is None or isinstance(http, aiohttp.ClientSession) or callable(http)):
        limit = "must be an aiohttp.ClientSession, or a function that returns one"
        raise ConfigurationError(requirement("http", shown(http), limit))
    traces = trace_configs if isinstance(trace_configs, Sequence | None) else [trace_configs]
    if not all(isinstance(each, aiohttp.TraceConfig) for each in traces or ()):
        limit = "must be a list of aiohttp.TraceConfig"
        raise ConfigurationError(requirement("trace_configs", shown(trace_configs), limit))
    network_options = {"proxy": settings.proxy, "trace_configs": traces, "ssl": settings.ssl is not True}
    for name, given in network_options.items():
        if http is not None and given:
            raise ConfigurationError(f"{name} must not be given with http: configure that session instead")


def without_secrets(error: BaseException) -> BaseException:
    """Return *error* without secrets: the request's headers, and a URL's user, password and query."""
    if isinstance(error, aiohttp.ClientResponseError):
        where, no_headers = error.request_info.url.with_user(None).with_query(None), cast(Any, {})
        error.request_info = error.request_info._replace(url=where, real_url=where, headers=no_headers)
    # The error of a connection that timed out contains its whole URL.
    error.args = (_URL_SECRETS.sub(r"\1\2", str(error)),)
    return error


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _refuse_redirect(response: aiohttp.ClientResponse) -> None:
    """Raise `ConfigurationError` for a redirect, as following it would send the credentials elsewhere."""
    if response.status not in {301, 302, 303, 307, 308}:
        return
    location = response.headers.get("Location")
    if location is None:
        return
    try:
        parts = urlsplit(urljoin(str(response.url), location))
        # A user or a query may hold secrets, so neither is shown.
        target = ascii(_without_user(parts._replace(query="", fragment="").geturl())[:200])
    except ValueError:
        target = "an invalid address"
    raise ConfigurationError(
        f"base_url must be the address of the API itself, got a redirect ({response.status}) to {target}"
    )


def _fresh_connection(http: aiohttp.ClientSession) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    """Return the session's own middlewares, and one that prevents the use of pooled connections.

    A pooled connection may be dead, which would leave a create without a response.
    """
    return (*getattr(http, "_middlewares", ()), _fresh)


async def _fresh(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Send *request* on a new connection.

    The pool keeps connections with different proxy headers apart, so a unique header matches none of them.
    """
    request.proxy_headers = type(request.headers)(
        request.proxy_headers or {}, **{"X-Request-Id": uuid4().hex}
    )
    request.headers["Connection"] = "close"
    return await handler(request)


async def _read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the body. Raise `ProtocolError` if it has more than *limit* bytes."""
    pieces, size = [], 0
    while piece := await response.content.readany():
        size += len(piece)
        if size > limit:
            raise ProtocolError(f"the response must have at most {limit} bytes", status=response.status)
        pieces.append(piece)
    return b"".join(pieces)


def is_cancelled() -> bool:
    """Return whether the current asyncio task is being cancelled.

    If it is not, a `CancelledError` comes from the caller's code, which awaited another task that was
    cancelled. It is then a failure like any other.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _within(timeout: float, deadline_at: float | None) -> float:
    if deadline_at is None:
        return timeout
    left = deadline_at - asyncio.get_running_loop().time()
    if left <= 0:
        raise DeadlineExceeded("the deadline passed before the request was made")
    return min(timeout, left)


async def _sleep(seconds: float, deadline_at: float | None) -> None:
    """Sleep, or raise `DeadlineExceeded` at once if the sleep would end after *deadline_at*."""
    if deadline_at is not None and asyncio.get_running_loop().time() + seconds > deadline_at:
        raise DeadlineExceeded("the deadline passed before the call could be retried")
    await asyncio.sleep(seconds)
