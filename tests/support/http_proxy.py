"""An HTTP proxy on raw sockets that forwards requests, tunnels CONNECT and records request heads."""

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from attrs import define, field


@define(eq=False)
class Head:
    """The request line and headers of one request, and the port of the client's connection."""

    line: str
    headers: dict[str, str]
    port: int


@define(eq=False)
class HTTPProxy:
    """A proxy that resolves the names in *hosts* itself, and every other name as usual.

    With *login* (``user:password``), requests without it get a 407. With *status*, every request gets that.
    """

    hosts: Mapping[str, str] = field(factory=dict)
    login: str | None = None
    status: int | None = None
    heads: list[Head] = field(factory=list)
    url: str = ""

    @property
    def lines(self) -> list[str]:
        """The request lines, in the order of arrival."""
        return [head.line for head in self.heads]

    def sent(self) -> str:
        """Return every head as text."""
        return "\n".join(f"{head.line} {head.headers}" for head in self.heads)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        try:
            while raw := await _head(reader):
                line, *rest = raw.strip().split("\r\n")
                headers = {name.lower(): text for name, _, text in (each.partition(": ") for each in rest)}
                self.heads.append(Head(line, headers, writer.get_extra_info("peername")[1]))
                refusal = self._refusal(headers)
                if refusal:
                    writer.write(f"HTTP/1.1 {refusal} Refused\r\nContent-Length: 0\r\n\r\n".encode())
                elif line.startswith("CONNECT "):
                    await self._tunnel(line.split()[1], reader, writer)
                    return
                else:
                    await self._forward(raw, headers, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # one end closed the connection
        finally:
            writer.close()

    def _refusal(self, headers: dict[str, str]) -> int | None:
        wanted = self.login and f"Basic {b64encode(self.login.encode()).decode()}"
        return 407 if wanted and headers.get("proxy-authorization") != wanted else self.status

    async def _open(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.hosts.get(address, address).rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _tunnel(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back = await self._open(address)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_copy(reader, back), _copy(back_reader, writer))

    async def _forward(
        self,
        raw: str,
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Forward one request with a path in place of its URL, and return the whole response."""
        method, url, rest = raw.split(" ", 2)
        address, _, path = url.partition("://")[2].partition("/")
        back_reader, back = await self._open(address if ":" in address else f"{address}:80")
        rest = rest.replace("\r\n", "\r\nConnection: close\r\n", 1)
        back.write(f"{method} /{path} {rest}".encode())
        back.write(await reader.readexactly(int(headers.get("content-length", 0))))
        answer = await _head(back_reader)
        writer.write(answer.replace("\r\nConnection: close", "").encode("latin-1"))
        length = re.search(r"\r\ncontent-length: (\d+)", answer.lower())
        writer.write(await (back_reader.readexactly(int(length[1])) if length else back_reader.read()))
        await writer.drain()
        back.close()


async def _head(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return ""


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def http_proxy(
    hosts: Mapping[str, str] | None = None, *, login: str | None = None, status: int | None = None
) -> AsyncIterator[HTTPProxy]:
    """Yield a running proxy."""
    proxy = HTTPProxy(hosts or {}, login, status)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await asyncio.sleep(0.01)
