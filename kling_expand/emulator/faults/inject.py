"""How is a fault carried out? On the request at hand: by cutting its connection, or spoiling its answer."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from aiohttp import web
from attrs import frozen

from kling_expand.emulator.http.bodies import Body
from kling_expand.emulator.http.codes import Refusal
from kling_expand.emulator.http.envelope import Answers

from .plan import Fault

PAGE = "<!DOCTYPE html><html><head><title>502</title></head><body><h1>Bad Gateway</h1></body></html>"
PIECES = 10  # of a slow body


@frozen
class Call:
    """A request, how it would be answered (with its effect), and what goes wrong with it."""

    request: web.Request
    body: Body
    answer: Callable[[], Awaitable[web.Response]]
    answers: Answers
    fault: Fault
    later: Callable[[Coroutine[Any, Any, object]], None]  # does something after the answer

    def refusal(self) -> Refusal:
        """What the fault says."""
        return Refusal(self.fault.code, self.fault.message, retry_after=self.fault.retry_after)


async def carry_out(call: Call) -> web.StreamResponse:
    """Do to the call what its fault says."""
    return await _HOW[call.fault.kind](call)


async def _refused(call: Call) -> web.StreamResponse:
    return _reset(call.request)


async def _read_and_reset(call: Call) -> web.StreamResponse:
    await call.body.read()
    return _reset(call.request)


async def _reset_after(call: Call) -> web.StreamResponse:
    await call.answer()
    return _reset(call.request)


async def _late(call: Call) -> web.StreamResponse:
    await call.body.read()

    async def afterwards() -> None:
        await asyncio.sleep(call.fault.seconds)
        await call.answer()

    call.later(afterwards())
    return _reset(call.request)


def _reset(request: web.Request) -> web.Response:
    """Cut the connection so that the other side sees a reset, not an orderly end."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()  # goes nowhere


async def _error(call: Call) -> web.StreamResponse:
    await call.body.read()
    raise call.refusal()


async def _error_after(call: Call) -> web.StreamResponse:
    await call.answer()
    raise call.refusal()


async def _envelope_200(call: Call) -> web.StreamResponse:
    await call.body.read()
    response = call.answers.refused(call.refusal())
    response.set_status(200)
    return response


async def _html(call: Call) -> web.StreamResponse:
    await call.body.read()
    return web.Response(text=PAGE, content_type="text/html")


async def _html_after(call: Call) -> web.StreamResponse:
    await call.answer()
    return await _html(call)


async def _empty(call: Call) -> web.StreamResponse:
    await call.body.read()
    return web.Response(content_type="application/json")


async def _truncated(call: Call) -> web.StreamResponse:
    response = await call.answer()
    response.body = _bytes(response)[: len(_bytes(response)) // 2]
    return response


async def _wrong_length(call: Call) -> web.StreamResponse:
    whole = await call.answer()
    response = await _begin(call, whole, length=len(_bytes(whole)) + 100)
    await response.write(_bytes(whole))
    if call.request.transport is not None:
        call.request.transport.close()
    return response


async def _slow_headers(call: Call) -> web.StreamResponse:
    response = await call.answer()
    await asyncio.sleep(call.fault.seconds)
    return response


async def _slow_body(call: Call) -> web.StreamResponse:
    whole = await call.answer()
    data = _bytes(whole)
    response = await _begin(call, whole, length=len(data))
    step = -(-len(data) // PIECES)
    for at in range(0, len(data), step):
        await asyncio.sleep(call.fault.seconds / PIECES)
        await response.write(data[at : at + step])
    return response


async def _begin(call: Call, whole: web.Response, *, length: int) -> web.StreamResponse:
    """Send the headers of `whole`, but for its length."""
    response = web.StreamResponse(status=whole.status, headers=whole.headers)
    response.content_length = length
    await response.prepare(call.request)
    return response


async def _expired(_: Call) -> web.StreamResponse:
    return web.Response(status=403, text="this link has expired\n")


def _bytes(response: web.Response) -> bytes:
    return response.body if isinstance(response.body, bytes) else b""


_HOW: Mapping[str, Callable[[Call], Awaitable[web.StreamResponse]]] = {
    "refused": _refused,
    "reset": _read_and_reset,
    "reset_after": _reset_after,
    "late": _late,
    "error": _error,
    "error_after": _error_after,
    "html": _html,
    "html_after": _html_after,
    "envelope_200": _envelope_200,
    "empty": _empty,
    "truncated_json": _truncated,
    "wrong_length": _wrong_length,
    "slow_headers": _slow_headers,
    "slow_body": _slow_body,
    "expired": _expired,
    "truncated_picture": _truncated,
}
