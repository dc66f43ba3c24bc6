"""What can a network do to a request? A proxy that does all of it, by chance, each time by the same seed.

It speaks HTTP/1.1 on loopback to both sides and understands nothing it passes on. Which request of a
route meets which fault depends on the seed and on the request's number within its route alone.
"""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Self

import aiohttp
from attrs import frozen

# What may happen, and whether the service hears of the request all the same.
RESET = "reset"  # cut before the request is passed on
UNAVAILABLE = "unavailable"  # 503 without having asked
HTML = "html"  # 502 and a page of a gateway, without having asked
RATE_LIMIT = "rate_limit"  # 429/1302 without having asked
LATE = "late"  # cut, and passed on some time later
DELAY = "delay"  # passed on some time later, answered then
RESET_AFTER = "reset_after"  # passed on, and cut instead of the answer
ERROR_AFTER = "error_after"  # passed on, and 500 instead of the answer
HTML_AFTER = "html_after"  # passed on, and a page under 200 instead of the answer
TRUNCATE = "truncate"  # passed on, and cut in the middle of the answer
KINDS = (
    RESET, UNAVAILABLE, HTML, RATE_LIMIT, LATE, DELAY, RESET_AFTER, ERROR_AFTER, HTML_AFTER, TRUNCATE
)  # fmt: skip

SLOW = (0.1, 2.0)  # seconds a late or delayed request takes; far under what the SDK lets a create settle
_PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade"})


@frozen
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def route(self) -> str:
        """Which sequence of faults it takes part in."""
        if self.method == "POST":
            return "create"
        return "file" if self.path.startswith("/files/") else "read"


@frozen
class Answer:
    """What is sent back."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def encoded(self) -> bytes:
        """As bytes on the wire."""
        lines = [f"HTTP/1.1 {self.status} Whatever", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Proxy:
    """Between clients on `url` and the service on `upstream`; each request is spoilt with `probability`.

    *slow*: the least and the most seconds a late or delayed request takes.
    """

    def __init__(
        self,
        upstream: str,
        *,
        probability: float,
        seed: int,
        kinds: Sequence[str] = KINDS,
        slow: tuple[float, float] = SLOW,
    ) -> None:
        self.upstream = upstream
        self.url = ""
        self.faults: Counter[str] = Counter()
        self._done = 0  # tasks made and pictures served, whatever the client was told of it
        self._moved = asyncio.Condition()
        self._probability = probability
        self._seed = seed
        self._kinds = kinds
        self._slow = slow
        self._rngs: dict[str, Random] = {}
        self._late: set[asyncio.Task[Answer]] = set()
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
        while self._late:  # what is on its way arrives
            await asyncio.wait(self._late)
        for writer in self._connections:
            writer.close()
        await self._http.close()

    async def reached(self, count: float) -> None:
        """Wait until the service has made tasks and served pictures, so many together."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._done >= count)

    # ------------------------------------------------------------------ one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while (request := await _read(reader)) is not None:
                if not await self._handle(request, writer):
                    return
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the client was killed, or we are closing
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _handle(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer one request, or spoil it; whether the connection is still good."""
        rng = self._rngs.setdefault(request.route, Random(f"{self._seed} {request.route}"))
        chance, kind, slow = rng.random(), rng.choice(self._kinds), rng.uniform(*self._slow)
        if chance >= self._probability:
            writer.write((await self._forward(request)).encoded())
            await writer.drain()
            return True
        self.faults[kind] += 1
        answer = await self._spoilt(kind, slow, request)
        if answer is None:
            _reset(writer)
            return False
        raw = answer.encoded()
        whole = kind != TRUNCATE
        writer.write(raw if whole else raw[: len(raw) - len(answer.body) // 2 - 1])
        await writer.drain()
        return whole

    async def _spoilt(self, kind: str, slow: float, request: Request) -> Answer | None:
        """What is answered instead; None: nothing."""
        instead = _INSTEAD.get(kind)
        if kind in {LATE, DELAY}:
            late = asyncio.create_task(self._later(slow, request))
            self._late.add(late)  # it arrives even where nobody waits for its answer
            late.add_done_callback(self._late.discard)
            return await late if kind == DELAY else None
        if kind in {RESET_AFTER, ERROR_AFTER, HTML_AFTER, TRUNCATE}:
            answer = await self._forward(request)
            return answer if kind == TRUNCATE else instead
        return instead

    async def _later(self, seconds: float, request: Request) -> Answer:
        await asyncio.sleep(seconds)
        return await self._forward(request)

    async def _forward(self, request: Request) -> Answer:
        """The service's answer, or a gateway's that cannot reach it."""
        try:
            async with self._http.request(
                request.method,
                self.upstream + request.path,
                data=request.body or None,
                headers={name: value for name, value in request.headers.items() if name not in _HOP},
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            ) as response:
                body = await response.read()
                headers = {k: v for k, v in response.headers.items() if k.lower() not in _HOP}
        except (aiohttp.ClientError, OSError):  # a killed service, or one not yet up again
            return _INSTEAD[HTML]
        if response.status in {200, 206} and request.route != "read":
            async with self._moved:
                self._done += 1
                self._moved.notify_all()
        return Answer(response.status, body, headers)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    """The next whole request; None where there is none, or only a part."""
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
    """Cut the connection so that the other side sees a reset."""
    with contextlib.suppress(OSError):  # the other side was quicker
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _envelope(status: int, code: int, message: str) -> Answer:
    body = f'{{"code": {code}, "message": "{message}", "request_id": "proxy"}}'.encode()
    return Answer(status, body, {"Content-Type": "application/json"})


_INSTEAD = {
    UNAVAILABLE: _envelope(503, 5001, "the service is being maintained"),
    HTML: Answer(502, _PAGE, {"Content-Type": "text/html"}),
    RATE_LIMIT: _envelope(429, 1302, "too many requests"),
    ERROR_AFTER: _envelope(500, 5000, "internal error"),
    HTML_AFTER: Answer(200, _PAGE, {"Content-Type": "text/html"}),
}
