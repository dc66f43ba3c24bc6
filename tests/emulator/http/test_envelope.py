"""Request bodies of any kind, and the envelope of every response."""

import asyncio

import pytest
from support.raw_client import DIRECTION, EDITING, calling


async def test_an_incomplete_body_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    """A client that disconnects, or sends broken chunks, creates no task and logs no error."""
    async with calling() as call:
        host, port = call.emulator.url.removeprefix("http://").split(":")
        head = (
            f"POST {EDITING} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {call.emulator.api_key}\r\n"
        )
        for rest in ("Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\nzz\r\n"):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write((head + rest).encode())
            await writer.drain()
            while call.emulator.account.requests["create"] == 0 and "Length" in rest:  # noqa: ASYNC110
                await asyncio.sleep(0)
            writer.close()
            await writer.wait_closed()
        assert (await call("GET", EDITING))[0] == 200
        assert call.emulator.account.tasks == {}
    assert "unexpected error" not in caplog.text


async def test_any_body_gets_an_envelope_over_http() -> None:
    """Any body gets a documented code and never a 500."""
    async with calling(max_body_bytes=2000) as call:
        for path in (EDITING, DIRECTION):
            for raw, headers in (
                (b"\0\xff", {}),
                (b"{}", {}),
                (b"x" * 2001, {}),
                (b"x" * 100_000, {}),
                (b"not gzip", {"Content-Encoding": "gzip"}),
                (b"[]", {"Content-Type": "text/plain; charset=nonsense"}),
            ):
                status, body = await call("POST", path, data=raw, headers=headers)
                assert (status, body["code"]) in {(400, 1200), (400, 1201)}
                assert set(body) == {"code", "message", "request_id"}
