"""An HTTP proxy that injects network faults at random, reproducibly for a given seed.

It uses HTTP/1.1 on loopback and does not interpret what it forwards. Which fault a request gets depends only
on the seed and on the number of the request within its route. The lookups of a task can also lag behind its
create, as at a service that answers lookups from a replica.
"""

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Self

import aiohttp
from attrs import frozen

# The faults. A request that is forwarded takes effect at the service.
RESET = "reset"  # connection reset, not forwarded
UNAVAILABLE = "unavailable"  # 503, not forwarded
HTML = "html"  # 502 with the HTML page of a gateway, not forwarded
RATE_LIMIT = "rate_limit"  # 429 with code 1302, not forwarded
RESET_EARLY = "reset_early"  # connection reset, forwarded after a delay
DELAY = "delay"  # forwarded after a delay, answered normally
RESET_AFTER = "reset_after"  # forwarded, connection reset instead of the response
ERROR_AFTER = "error_after"  # forwarded, 500 instead of the response
HTML_AFTER = "html_after"  # forwarded, an HTML page with status 200 instead of the response
TRUNCATE = "truncate"  # forwarded, connection closed in the middle of the response
SLOW = "slow"  # forwarded at once, answered normally after the seconds of `Proxy(slow=...)`
KINDS = (
    RESET, UNAVAILABLE, HTML, RATE_LIMIT, RESET_EARLY, DELAY, RESET_AFTER, ERROR_AFTER, HTML_AFTER, TRUNCATE
)  # fmt: skip
HARSH_KINDS = (*KINDS, *[SLOW] * len(KINDS))  # half of the faults are slow responses

DELAYS = (0.1, 2.0)  # shortest and longest, in seconds; the SDK waits longer before it repeats a create
_PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
_EXTERNAL_TASK_ID = re.compile(rb'"external_task_id":\s*"([^"]+)"')
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade"})


@frozen
class Request:
    """A request as it was received."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def route(self) -> str:
        """The route, which has its own sequence of faults."""
        if self.method == "POST":
            return "create"
        return "file" if self.path.startswith("/files/") else "read"


@frozen
class Response:
    """A response as it is sent."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def encoded(self) -> bytes:
        """Return the bytes of the response."""
        lines = [f"HTTP/1.1 {self.status} Status", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Proxy:
    """A proxy from `url` to `upstream` that injects a fault into each request with a *probability*.

    *delays* are the shortest and the longest delay of a request, and *slow* is the delay of a slow response,
    all in seconds. For *lookup_lag* seconds after its create a task cannot be found by its
    `external_task_id`.
    """

    def __init__(
        self,
        upstream: str,
        *,
        probability: float,
        seed: int,
        kinds: Sequence[str] = KINDS,
        delays: tuple[float, float] = DELAYS,
        slow: float = 0.0,
        lookup_lag: float = 0.0,
    ) -> None:
        self.upstream = upstream
        self.url = ""
        self.faults: Counter[str] = Counter()
        self.unanswered: list[tuple[float, str]] = []  # creates without a usable answer: Unix time and id
        self._done = 0  # creates and pictures that the service answered, with or without a fault
        self._progress = asyncio.Condition()
        self._probability = probability
        self._seed = seed
        self._kinds = kinds
        self._delays = delays
        self._slow = slow
        self._lookup_lag = lookup_lag
        self._created_at: dict[str, float] = {}  # by external_task_id, where lookups lag
        self._rngs: dict[str, Random] = {}
        self._delayed: set[asyncio.Task[Response]] = set()
        self._connections: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=60),
        )
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await self.idle()
        for writer in self._connections:
            writer.close()
        await self._http.close()

    async def reached(self, count: float) -> None:
        """Wait until the service has answered *count* creates and pictures."""
        async with self._progress:
            await self._progress.wait_for(lambda: self._done >= count)

    async def idle(self) -> None:
        """Wait until all delayed requests are forwarded."""
        while self._delayed:
            await asyncio.wait(self._delayed)

    # ------------------------------------------------------------------ one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while (request := await _read(reader)) is not None:
                if not await self._handle(request, writer):
                    return
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the client was killed, or the proxy closes
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _handle(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer one request, perhaps with a fault; return whether the connection can be used again."""
        rng = self._rngs.setdefault(request.route, Random(f"{self._seed} {request.route}"))
        chance, kind, delay = rng.random(), rng.choice(self._kinds), rng.uniform(*self._delays)
        if chance >= self._probability:
            writer.write((await self._forward(request)).encoded())
            await writer.drain()
            return True
        self.faults[kind] += 1
        response = await self._faulty(kind, delay, request)
        if response is None:
            _reset(writer)
            return False
        raw = response.encoded()
        whole = kind != TRUNCATE
        writer.write(raw if whole else raw[: len(raw) - len(response.body) // 2 - 1])
        await writer.drain()
        return whole

    async def _faulty(self, kind: str, delay: float, request: Request) -> Response | None:
        """Return the response to a request with a fault, or None for a reset."""
        instead = _INSTEAD.get(kind)
        if kind not in {DELAY, SLOW, RATE_LIMIT}:
            self._note_unanswered(request)
        if kind in {RESET_EARLY, DELAY}:
            delayed = asyncio.create_task(self._later(delay, request))
            self._delayed.add(delayed)  # it is forwarded even if no client waits for the response
            delayed.add_done_callback(self._delayed.discard)
            return await delayed if kind == DELAY else None
        if kind in {RESET_AFTER, ERROR_AFTER, HTML_AFTER, TRUNCATE}:
            response = await self._forward(request)
            return response if kind == TRUNCATE else instead
        if kind == SLOW:
            response = await self._forward(request)
            await asyncio.sleep(self._slow)
            return response
        return instead

    async def _later(self, seconds: float, request: Request) -> Response:
        await asyncio.sleep(seconds)
        return await self._forward(request)

    async def _forward(self, request: Request) -> Response:
        """Return the service's response, or that of a gateway that cannot reach the service."""
        if self._lags(request):
            return _NOT_FOUND
        try:
            async with self._http.request(
                request.method,
                self.upstream + request.path,
                data=request.body or None,
                headers={name: value for name, value in request.headers.items() if name not in _HOP},
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            ) as reply:
                body = await reply.read()
                headers = {k: v for k, v in reply.headers.items() if k.lower() not in _HOP}
        except (aiohttp.ClientError, OSError):  # the service was killed or has not restarted yet
            self._note_unanswered(request)
            return _INSTEAD[HTML]
        if reply.status in {200, 206} and request.route != "read":
            async with self._progress:
                self._done += 1
                self._progress.notify_all()
        if reply.status == 200 and request.method == "POST":
            self._created(request)
        return Response(reply.status, body, headers)

    def _created(self, request: Request) -> None:
        found = _EXTERNAL_TASK_ID.search(request.body) if self._lookup_lag else None
        if found:
            self._created_at.setdefault(found[1].decode(), asyncio.get_running_loop().time())

    def _note_unanswered(self, request: Request) -> None:
        found = _EXTERNAL_TASK_ID.search(request.body) if request.route == "create" else None
        if found:
            self.unanswered.append((time.time(), found[1].decode()))

    def _lags(self, request: Request) -> bool:
        """Return whether the request looks up a task that lookups do not show yet."""
        created_at = self._created_at.get(request.path.rpartition("/")[2])
        return created_at is not None and asyncio.get_running_loop().time() < created_at + self._lookup_lag


async def _read(reader: asyncio.StreamReader) -> Request | None:
    """Return the next request, or None if the connection ends before the request is complete."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    except asyncio.IncompleteReadError:
        return None
    method, path, _version = line.split(" ")
    return Request(method, path, headers, body)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close the connection so that the client receives a reset."""
    with contextlib.suppress(OSError):  # the client has closed it already
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _envelope(status: int, code: int, message: str) -> Response:
    body = f'{{"code": {code}, "message": "{message}", "request_id": "proxy"}}'.encode()
    return Response(status, body, {"Content-Type": "application/json"})


_NOT_FOUND = _envelope(400, 1201, "Task not found by id/external id")
_INSTEAD = {
    UNAVAILABLE: _envelope(503, 5001, "the service is being maintained"),
    HTML: Response(502, _PAGE, {"Content-Type": "text/html"}),
    RATE_LIMIT: _envelope(429, 1302, "too many requests"),
    ERROR_AFTER: _envelope(500, 5000, "internal error"),
    HTML_AFTER: Response(200, _PAGE, {"Content-Type": "text/html"}),
}
