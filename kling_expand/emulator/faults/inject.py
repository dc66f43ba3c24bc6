"""Fault injection: cut the connection of a call, or replace or delay its response."""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from aiohttp import web
from attrs import frozen

from kling_expand.emulator.http.codes import Refusal
from kling_expand.emulator.http.envelope import Body, Responses

from .plan import Fault

_HTML = "<!DOCTYPE html><html><head><title>502</title></head><body><h1>Bad Gateway</h1></body></html>"
_PIECES = 10  # pieces in which a slow body is sent
_ODD_VALUES: Mapping[str, Any] = {
    "created_at": "a minute ago",
    "updated_at": None,
    "create_time": "a minute ago",
    "update_time": None,
    "task_status_msg": 0,
    "message": [],
    "watermark_info": False,
    "index": None,
    "final_unit_deduction": {"amount": "eight"},
    "final_balance_deduction": "0.028",
    "billing": "0.028",
    "request_id": 7,
}


@frozen
class FaultyCall:
    """A call with a fault. `respond` executes the call, including its effect, and returns the response."""

    request: web.Request
    body: Body
    respond: Callable[[], Awaitable[web.Response]]
    responses: Responses
    fault: Fault
    run_later: Callable[[Coroutine[Any, Any, object]], None]

    def refusal(self) -> Refusal:
        """Return the error that the fault specifies."""
        return Refusal(self.fault.code, self.fault.message, retry_after=self.fault.retry_after)


async def inject(call: FaultyCall) -> web.StreamResponse:
    """Apply the fault of a call.

    Raises:
        Refusal: if the fault is an error response.
    """
    return await _INJECTORS[call.fault.kind](call)


async def _refused(call: FaultyCall) -> web.StreamResponse:
    return _reset_connection(call.request)


async def _reset(call: FaultyCall) -> web.StreamResponse:
    await call.body.read()
    return _reset_connection(call.request)


async def _reset_after(call: FaultyCall) -> web.StreamResponse:
    await call.respond()
    return _reset_connection(call.request)


async def _late(call: FaultyCall) -> web.StreamResponse:
    await call.body.read()

    async def take_effect() -> None:
        await asyncio.sleep(call.fault.seconds)
        await call.respond()

    call.run_later(take_effect())
    return _reset_connection(call.request)


def _reset_connection(request: web.Request) -> web.Response:
    """Close the connection with a reset instead of an orderly shutdown."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()  # a handler must return a response, but this one is never sent


async def _error(call: FaultyCall) -> web.StreamResponse:
    await call.body.read()
    raise call.refusal()


async def _error_after(call: FaultyCall) -> web.StreamResponse:
    await call.respond()
    raise call.refusal()


async def _envelope_200(call: FaultyCall) -> web.StreamResponse:
    await call.body.read()
    response = call.responses.refusal(call.refusal())
    response.set_status(200)
    return response


async def _html(call: FaultyCall) -> web.StreamResponse:
    await call.body.read()
    return web.Response(text=_HTML, content_type="text/html")


async def _html_after(call: FaultyCall) -> web.StreamResponse:
    await call.respond()
    return await _html(call)


async def _empty(call: FaultyCall) -> web.StreamResponse:
    await call.body.read()
    return web.Response(content_type="application/json")


async def _truncated(call: FaultyCall) -> web.StreamResponse:
    response = await call.respond()
    response.body = _bytes(response)[: len(_bytes(response)) // 2]
    return response


async def _wrong_length(call: FaultyCall) -> web.StreamResponse:
    whole = await call.respond()
    response = await _start_response(call, whole, length=len(_bytes(whole)) + 100)
    await response.write(_bytes(whole))
    if call.request.transport is not None:
        call.request.transport.close()
    return response


async def _odd_types(call: FaultyCall) -> web.StreamResponse:
    response = await call.respond()
    if response.content_type == "application/json":
        envelope = json.loads(_bytes(response))
        odd = _with_odd_values(envelope) | {"code": str(envelope["code"])}
        response.body = json.dumps(odd).encode()
    return response


def _with_odd_values(value: Any) -> Any:
    """Return JSON with unexpected values in informational fields, at any depth."""
    if isinstance(value, list):
        return [_with_odd_values(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _ODD_VALUES.get(name, _with_odd_values(item)) for name, item in value.items()}


async def _slow_headers(call: FaultyCall) -> web.StreamResponse:
    response = await call.respond()
    await asyncio.sleep(call.fault.seconds)
    return response


async def _slow_body(call: FaultyCall) -> web.StreamResponse:
    whole = await call.respond()
    data = _bytes(whole)
    response = await _start_response(call, whole, length=len(data))
    step = -(-len(data) // _PIECES)
    for start in range(0, len(data), step):
        await asyncio.sleep(call.fault.seconds / _PIECES)
        await response.write(data[start : start + step])
    return response


async def _start_response(call: FaultyCall, whole: web.Response, *, length: int) -> web.StreamResponse:
    """Send the headers of *whole* with this Content-Length."""
    response = web.StreamResponse(status=whole.status, headers=whole.headers)
    response.content_length = length
    await response.prepare(call.request)
    return response


async def _expired(_: FaultyCall) -> web.StreamResponse:
    return web.Response(status=403, text="this URL has expired\n")


def _bytes(response: web.Response) -> bytes:
    return response.body if isinstance(response.body, bytes) else b""


_INJECTORS: Mapping[str, Callable[[FaultyCall], Awaitable[web.StreamResponse]]] = {
    "refused": _refused,
    "reset": _reset,
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
    "odd_types": _odd_types,
    "slow_headers": _slow_headers,
    "slow_body": _slow_body,
    "expired": _expired,
    "truncated_picture": _truncated,
}
