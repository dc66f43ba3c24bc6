"""A server of scripted steps on raw sockets, which can break HTTP in ways that no library would."""

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from attrs import define, field


@define(eq=False)
class Exchange:
    """One request, the time at which its head arrived, and its connection."""

    line: str
    headers: dict[str, str]
    at: float
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    body: bytes = b""

    async def read(self, size: int | None = None) -> None:
        """Read the body, or *size* bytes of it."""
        length = int(self.headers.get("content-length", 0)) if size is None else size
        self.body += await self.reader.readexactly(length - len(self.body))

    def reset(self) -> None:
        """Reset the connection."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Step = Callable[[Exchange], Awaitable[None]]


@define(eq=False)
class Loopback:
    """A server that runs one step for each request, and repeats the last step."""

    steps: deque[Step]
    requests: list[Exchange] = field(factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        try:
            while (exchange := await self._next(reader, writer)) is not None:
                self.requests.append(exchange)
                step = self.steps.popleft() if len(self.steps) > 1 else self.steps[0]
                await step(exchange)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client closed the connection
        finally:
            writer.close()

    async def _next(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return None
        line, *rest = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
        return Exchange(line, headers, asyncio.get_running_loop().time(), reader, writer)

    def times(self) -> list[float]:
        """Return the time of each request."""
        return [each.at for each in self.requests]

    def tokens(self) -> list[str]:
        """Return the bearer token of each request."""
        return [each.headers["authorization"].removeprefix("Bearer ") for each in self.requests]


@asynccontextmanager
async def loopback(*steps: Step) -> AsyncIterator[Loopback]:
    """Yield a server of these steps on a free port."""
    served = Loopback(deque(steps))
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        server.close()
        for exchange in served.requests:
            exchange.writer.close()
        await asyncio.sleep(0.01)  # by the loop's clock


def sends(raw: bytes, *, wait: float = 0.0, close: bool = False) -> Step:
    """Return a step that reads the body, waits, and sends these bytes."""

    async def step(exchange: Exchange) -> None:
        await exchange.read()
        await asyncio.sleep(wait)
        exchange.writer.write(raw)
        await exchange.writer.drain()
        if close:
            exchange.writer.close()

    return step


def responds(body: Any, status: int = 200, *, wait: float = 0.0, **headers: Any) -> Step:
    """Return a step that responds with *body* (bytes, or a value to encode as JSON) and these headers."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(raw)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return sends("\r\n".join(lines).encode() + b"\r\n\r\n" + raw, wait=wait)


def task(task_id: str = "1", task_status: str = "processing", **headers: Any) -> Step:
    """Return a step that responds with a task."""
    data = {"task_id": task_id, "task_status": task_status}
    return responds({"code": 0, "message": "SUCCEED", "request_id": "r", "data": data}, **headers)


def refuses(code: int, status: int, message: str = "no", **headers: Any) -> Step:
    """Return a step that responds with a refusal."""
    return responds({"code": code, "message": message, "request_id": "r"}, status, **headers)


async def resets_early(exchange: Exchange) -> None:
    """Reset the connection before any of the body is read."""
    exchange.reset()


async def resets_half_way(exchange: Exchange) -> None:
    """Reset the connection after half of the body."""
    await exchange.read(int(exchange.headers["content-length"]) // 2)
    exchange.reset()


async def resets(exchange: Exchange) -> None:
    """Reset the connection after the whole request."""
    await exchange.read()
    exchange.reset()


async def closes(exchange: Exchange) -> None:
    """Close the connection without a response, after the whole request."""
    await exchange.read()
    exchange.writer.close()


async def hangs(exchange: Exchange) -> None:
    """Read the whole request and never respond."""
    await exchange.read()
    await exchange.reader.read()
