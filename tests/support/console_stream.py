"""A reader of the console's event stream."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from support.raw_client import Caller


class Stream:
    """The events of one console."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self) -> tuple[str, Any]:
        """Return the name and data of the next event, or ("", None) at the end."""
        name = ""
        async for line in self._response.content:
            kind, _, rest = line.decode().rstrip("\n").partition(": ")
            if kind == "event":
                name = rest
            elif kind == "data":
                return name, json.loads(rest)
        return "", None

    async def until(self, wanted: str) -> Any:
        """Skip to the next event with the name *wanted*, and return its data."""
        while True:
            name, data = await self.next()
            assert name, f"the stream ended before {wanted}"
            if name == wanted:
                return data


@asynccontextmanager
async def open_stream(call: Caller) -> AsyncIterator[Stream]:
    """Open the stream of a console."""
    async with call.session.get(call.emulator.url + "/_emulator/events") as response:
        assert response.content_type == "text/event-stream"
        yield Stream(response)
