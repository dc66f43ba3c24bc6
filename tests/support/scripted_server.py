"""An aiohttp server that follows a script, and responds late, wrongly, in pieces or not at all."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Server:
    """A server that records each request and passes it to its path's next handler, or else the last one."""

    def __init__(self) -> None:
        self.requests: list[web.BaseRequest] = []
        self.scripts: dict[str, list[Handler]] = {}
        self.url = ""

    def on(self, path: str, *handlers: Handler) -> str:
        self.scripts[path] = list(handlers)
        return f"{self.url}{path}"

    def heads(self, header: str) -> list[str | None]:
        return [request.headers.get(header) for request in self.requests]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        script = self.scripts.get(request.path) or self.scripts["*"]
        return await (script.pop(0) if len(script) > 1 else script[0])(request)

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext | None = None) -> AsyncIterator["Server"]:
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"{'https' if context else 'http'}://{host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()


def responds(body: bytes, status: int = 200, **headers: str) -> Handler:
    """Return a handler that responds with *body*. Underscores in names of *headers* become hyphens."""

    async def handler(_request: web.BaseRequest) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=body, status=status, headers=named)

    return handler


def sends_raw(head: str, body: bytes = b"") -> Handler:
    """Return a handler that sends these bytes, whether or not they are HTTP, and closes the connection."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        await asyncio.sleep(0.1)  # aiohttp drops what it has buffered when the connection ends
        request.transport.close()
        return web.Response()

    return handler


def cuts(body: bytes, at: int, **headers: str) -> Handler:
    """Return a handler that announces *body*, sends its first *at* bytes, and closes the connection."""
    lines = "".join(f"\n{name.replace('_', '-')}: {value}" for name, value in headers.items())
    return sends_raw(f"HTTP/1.1 200 OK\nContent-Length: {len(body)}{lines}", body[:at])


def serves_ranges(body: bytes, **headers: str) -> Handler:
    """Return a handler that responds with *body*, or with the requested range of it."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        start = request.http_range.start or 0
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if start == 0:
            return web.Response(body=body, headers=named)
        named["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return web.Response(body=body[start:], status=206, headers=named)

    return handler


def redirects(where: str, status: int = 302) -> Handler:
    return responds(b"", status, Location=where)


async def hangs(_request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()
