"""What does a request say? Its body, up to a limit, read once however often it is asked for."""

from aiohttp import web

from .codes import Refusal

PATIENCE = 4  # times the limit that is still read, so that the sender hears the answer


class Body:
    """The body of one request, of at most `limit` bytes."""

    def __init__(self, request: web.Request, limit: int) -> None:
        self._request = request
        self._limit = limit
        self._whole: bytes | None = None

    async def read(self) -> bytes:
        """All of it; raises Refusal 1200 when it is too long, or breaks off."""
        if self._whole is None:
            try:
                self._whole = await self._receive()
            except (OSError, web.RequestPayloadError):  # hung up, or broken chunks
                raise Refusal(1200, "Invalid request parameters: the body cannot be read") from None
        return self._whole

    @property
    def seen(self) -> bytes:
        """What was read; empty where nobody asked, or it could not be."""
        return self._whole or b""

    async def _receive(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in self._request.content.iter_any():
            size += len(part)
            if size <= self._limit:
                parts.append(part)
            elif size > PATIENCE * self._limit:
                break
        if size > self._limit:
            raise Refusal(1200, f"Invalid request parameters: the body is longer than {self._limit} bytes")
        return b"".join(parts)
