"""Request bodies and the JSON envelopes of responses."""

import asyncio
import json
import random
import uuid
from collections import Counter
from typing import Any

from aiohttp import web
from attrs import frozen

from .codes import Refusal

REQUEST_TIMEOUT = 30.0  # seconds for the headers of a request, and as many for its body
_DRAIN_FACTOR = (
    4  # multiple of the limit up to which a body is read: while a client sends, it reads no response
)


class Body:
    """The body of one request, of at most *limit* bytes."""

    def __init__(self, request: web.Request, limit: int) -> None:
        self._request = request
        self._limit = limit
        self._data: bytes | None = None

    async def read(self) -> bytes:
        """Return the whole body. A repeated call returns it again.

        Raises:
            Refusal: if the body is too long or incomplete (code 1200).
        """
        if self._data is None:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    self._data = await self._receive()
            except TimeoutError:
                message = f"Invalid request parameters: the body did not arrive within {REQUEST_TIMEOUT:g} s"
                raise Refusal(1200, message) from None
            except (OSError, web.RequestPayloadError):  # the client disconnected, or sent broken chunks
                raise Refusal(1200, "Invalid request parameters: the body cannot be read") from None
        return self._data

    @property
    def received(self) -> bytes:
        """The body if it was read, otherwise empty bytes."""
        return self._data or b""

    async def _receive(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in self._request.content.iter_any():
            size += len(part)
            if size <= self._limit:
                parts.append(part)
            elif size > _DRAIN_FACTOR * self._limit:
                break
        if size > self._limit:
            raise Refusal(1200, f"Invalid request parameters: the body is longer than {self._limit} bytes")
        return b"".join(parts)


@frozen
class Responses:
    """A factory of responses. `rng` draws the request ids, and `refusals` counts the errors by code."""

    rng: random.Random
    refusals: Counter[int]

    def success(self, data: Any) -> web.Response:
        """Return status 200 with *data* in an envelope."""
        return self._json(
            200, {"code": 0, "message": "SUCCEED", "request_id": self._request_id(), "data": data}
        )

    def refusal(self, refusal: Refusal) -> web.Response:
        """Return an error response. It has no `data`, which some clients would take as a sign of success."""
        self.refusals[refusal.code] += 1
        body = {"code": refusal.code, "message": refusal.message, "request_id": self._request_id()}
        response = self._json(refusal.status, body)
        if refusal.retry_after is not None:
            response.headers["Retry-After"] = refusal.retry_after
        return response

    def _request_id(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def _json(self, status: int, body: dict[str, Any]) -> web.Response:
        return web.Response(body=json.dumps(body).encode(), status=status, content_type="application/json")
