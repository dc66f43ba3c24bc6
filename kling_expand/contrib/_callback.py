"""The response to a callback, shared by the adapters of all frameworks."""

import asyncio
import logging
from collections.abc import AsyncIterable, Mapping

from kling_expand.client import KlingClient
from kling_expand.errors import WebhookError
from kling_expand.webhooks import MAX_BODY

logger: logging.Logger = logging.getLogger(__name__)

READ_TIMEOUT = 30.0  # seconds for a whole body; the service sends its few KB at once


async def handle_callback(
    client: KlingClient,
    headers: Mapping[str, str],
    chunks: AsyncIterable[bytes],
    disconnect_errors: tuple[type[Exception], ...] = (),
) -> tuple[int, str]:
    """Deliver a callback from the *chunks* of its raw body, and return the HTTP status and text to send.

    The status is 204 for a delivered callback, and 400 for one that cannot be trusted or read. It is also 400
    if one of *disconnect_errors* is raised because the connection ended early. It is 408 if the body does not
    arrive within `READ_TIMEOUT`, and 413 if it exceeds `MAX_BODY` bytes. Reading stops at that size.
    """
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            body = await _read(chunks)
        if body is None:
            return 413, f"the body must be at most {MAX_BODY} bytes"
        client.receive(headers, body)
    except TimeoutError:
        return 408, f"the body must arrive within {READ_TIMEOUT:g} s"
    except disconnect_errors:
        return 400, "the connection ended before the body was complete"
    except WebhookError as error:
        logger.warning("a callback was refused: %s", error.message)
        return 400, error.message
    return 204, ""


async def _read(chunks: AsyncIterable[bytes]) -> bytes | None:
    """Return the whole body, or None as soon as it exceeds `MAX_BODY`."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return bytes(body)
