"""What is answered to a callback? A status and a sentence, the same in every framework."""

import asyncio
from collections.abc import AsyncIterable, Mapping

from kling_expand.client import KlingClient
from kling_expand.errors import WebhookError
from kling_expand.webhooks import MAX_BODY

READ_SECONDS = 30.0  # that a body may take; the service sends its few KB at once


async def answer(
    client: KlingClient,
    headers: Mapping[str, str],
    pieces: AsyncIterable[bytes],
    broken: tuple[type[Exception], ...] = (),
) -> tuple[int, str]:
    """Take a callback whose raw body comes in *pieces*; the HTTP status and text to answer.

    204 for what was taken, 400 for what cannot be trusted or read or breaks off with one of the
    *broken* errors, 408 for a body that does not come, 413 for one of more than `MAX_BODY` bytes,
    of which not much more are ever held.
    """
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = await _read(pieces)
        if body is None:
            return 413, f"at most {MAX_BODY} bytes are read"
        client.receive(headers, body)
    except TimeoutError:
        return 408, "the body did not come"
    except broken:
        return 400, "the body broke off"
    except WebhookError as error:
        return 400, error.message
    return 204, ""


async def _read(pieces: AsyncIterable[bytes]) -> bytes | None:
    """The whole body, or None as soon as it is too long."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > MAX_BODY:
            return None
    return bytes(body)
