"""The response to a callback, without any framework."""

import asyncio
from collections.abc import AsyncIterator

from kling_expand import KlingClient
from kling_expand.contrib._callback import READ_TIMEOUT, handle_callback
from kling_expand.testing import virtual_time
from kling_expand.webhooks import MAX_BODY


async def pieces(*parts: bytes | Exception) -> AsyncIterator[bytes]:
    """Yield a body in pieces, as a server does."""
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part


async def status_of(*parts: bytes | Exception) -> int:
    """Return the status for a body in these pieces, which may end with an `EOFError`."""
    async with KlingClient(api_key="k", base_url="http://127.0.0.1:9") as client:
        status, text = await handle_callback(client, {}, pieces(*parts), disconnect_errors=(EOFError,))
        assert bool(text) == (status != 204)
        return status


async def test_a_body_may_come_in_pieces() -> None:
    """A body may be divided into any number of pieces."""
    assert await status_of(b'{"task_id":"1",', b"", b'"task_status":"processing"}') == 204


async def test_each_refusal_has_its_status() -> None:
    """An unreadable, incomplete or too long body gets its own 4xx status."""
    assert await status_of(b"{") == 400
    assert await status_of(b"{", EOFError()) == 400
    assert await status_of(b" " * MAX_BODY, b" ") == 413


async def test_reading_stops_at_the_limit() -> None:
    """Nothing is read beyond the limit."""
    assert await status_of(b" " * MAX_BODY, b" ", AssertionError("read on")) == 413


@virtual_time
async def test_a_stalled_body_times_out() -> None:
    """A caller that stops sending gets a response after `READ_TIMEOUT`."""

    async def silent() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    async with KlingClient(api_key="k", base_url="http://127.0.0.1:9") as client:
        began = loop.time()
        assert (await handle_callback(client, {}, silent()))[0] == 408
        assert loop.time() - began == READ_TIMEOUT
