"""A client of the emulator that uses plain HTTP and JSON, without the SDK."""

import base64
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from kling_expand.emulator import Emulator

EDITING = "/v1/images/editing/expand"
DIRECTION = "/v1/images/expand"
SIDES = ("up", "down", "left", "right")
# An expansion that takes the default engine half a second.
NARROW = {f"{side}_expansion_ratio": 0.0 for side in SIDES} | {"right_expansion_ratio": 0.02}


def png(width: int = 300, height: int = 300) -> bytes:
    """Return a small gray PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def order(**changes: Any) -> dict[str, Any]:
    """Return a valid body of the editing dialect, with changes."""
    body: dict[str, Any] = {f"{side}_expansion_ratio": 0.25 for side in SIDES}
    return body | {"image": base64.b64encode(png()).decode()} | changes


class Caller:
    """A client with an emulator and an HTTP session."""

    def __init__(self, emulator: Emulator, session: aiohttp.ClientSession) -> None:
        self.emulator = emulator
        self.session = session

    async def __call__(
        self, method: str, path: str, *, json: Any = None, **more: Any
    ) -> tuple[int, dict[str, Any]]:
        """Send a request, and return the status and the decoded body."""
        headers = {"Authorization": f"Bearer {self.emulator.api_key}"} | more.pop("headers", {})
        async with self.session.request(
            method, self.emulator.url + path, json=json, headers=headers, **more
        ) as answer:
            body: dict[str, Any] = await answer.json()
            return answer.status, body

    async def create(self, **changes: Any) -> str:
        """Create a task and return its id."""
        status, body = await self("POST", EDITING, json=order(**changes))
        assert status == 200, body
        task_id: str = body["data"]["task_id"]
        return task_id

    async def task(self, task_id: str) -> dict[str, Any]:
        """Read a task, and return the `data` of the response."""
        _, body = await self("GET", f"{EDITING}/{task_id}")
        data: dict[str, Any] = body["data"]
        return data


@asynccontextmanager
async def calling(**options: Any) -> AsyncIterator[Caller]:
    """Run an emulator with the flat engine, and yield its client."""
    async with Emulator(**({"engine": "flat"} | options)) as emulator, aiohttp.ClientSession() as session:
        yield Caller(emulator, session)


async def create_code(call: Caller, **changes: Any) -> tuple[int, int]:
    """Send a create, and return the status and the code of the response."""
    status, body = await call("POST", EDITING, json=order(**changes))
    return status, body["code"]


async def get(call: Caller, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Send a GET without credentials, and return the status, headers and body."""
    async with call.session.get(call.emulator.url + path, headers=headers) as response:
        streamed = response.content_type == "text/event-stream"
        body = b"" if streamed else await response.read()
        return response.status, {name.lower(): value for name, value in response.headers.items()}, body
