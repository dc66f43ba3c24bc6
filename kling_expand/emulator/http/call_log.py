"""A log of the latest API calls, with the bodies of requests and responses, for the console.

The log keeps a limited number of calls for each route, and of bytes for each body. Pictures are removed, and
credentials are masked.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from aiohttp import web
from attrs import field, frozen

from kling_expand.emulator.faults.plan import ROUTES, Fault
from kling_expand.emulator.state.change_signal import ChangeSignal
from kling_expand.emulator.state.tasks import TASK_ID_PATTERN

MAX_CALLS = 100  # calls of each route
MAX_BODY = 8192  # bytes
_IMAGE_FIELD = re.compile(rb'"image"\s*:\s*"')
_IMAGE_START = 24  # characters of an image that are kept: a JPEG and a PNG differ in them
_ID_IN_BODY = re.compile(rb'"(?:task_)?id": "([^"]+)"')


@frozen
class LoggedCall:
    """A request and its response. `status` is None if the connection was cut. `started_at` is Unix time."""

    number: int
    route: str
    method: str
    path: str
    task_id: str
    started_at: float
    seconds: float
    status: int | None
    fault: str
    request_headers: Mapping[str, str] = field(repr=False)
    request_body: bytes = field(repr=False)
    response_headers: Mapping[str, str] = field(repr=False)
    response_body: bytes = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """Return the call without headers and bodies, as JSON."""
        names = ("number", "route", "method", "path", "task_id", "started_at", "seconds", "status", "fault")
        return {name: getattr(self, name) for name in names}

    def details(self) -> dict[str, Any]:
        """Return the summary with headers and bodies, without credentials."""
        headers = {
            name: "Bearer …" if name.lower() == "authorization" else value
            for name, value in self.request_headers.items()
        }
        return self.summary() | {
            "request": {"headers": headers, "body": _pretty(self.request_body)},
            "response": {"headers": dict(self.response_headers), "body": _pretty(self.response_body)},
        }


class CallLog:
    """The latest calls, numbered in the order in which they ended."""

    def __init__(self, changes: ChangeSignal) -> None:
        self._changes = changes
        self._numbers = count(1)
        self._calls: dict[str, deque[LoggedCall]] = {route: deque(maxlen=MAX_CALLS) for route in ROUTES}

    def add(
        self,
        route: str,
        request: web.Request,
        response: web.StreamResponse,
        *,
        body: bytes,
        fault: Fault | None,
        started_at: float,
        seconds: float,
    ) -> None:
        """Add a call, and drop the oldest of its route if there are too many."""
        cut = request.transport is None or request.transport.is_closing()
        shown = b"" if cut else _response_body(response)
        self._calls[route].append(
            LoggedCall(
                number=next(self._numbers),
                route=route,
                method=request.method,
                path=request.path_qs,
                task_id=_task_id(route, request, shown),
                started_at=started_at,
                seconds=seconds,
                status=None if cut else response.status,
                fault=fault.kind if fault else "",
                request_headers=request.headers,
                request_body=shortened(body),
                response_headers={} if cut else response.headers,
                response_body=shown,
            )
        )
        self._changes.notify()

    def since(self, number: int) -> list[LoggedCall]:
        """Return the calls with numbers above *number*, in order."""
        return sorted((call for call in self._all() if call.number > number), key=lambda call: call.number)

    def get(self, number: int) -> LoggedCall | None:
        """Return the call with this number, or None if it is no longer in the log."""
        return next((call for call in self._all() if call.number == number), None)

    def _all(self) -> Iterator[LoggedCall]:
        for calls in self._calls.values():
            yield from calls


def shortened(body: bytes) -> bytes:
    """Return a body without its picture, truncated to MAX_BODY bytes."""
    found = _IMAGE_FIELD.search(body)
    if found:
        start = found.end()
        end = body.find(b'"', start)
        if end - start > MAX_BODY // 4:
            left_out = f"… {end - start - _IMAGE_START} more characters".encode()
            body = body[: start + _IMAGE_START] + left_out + body[end:]
    return (
        body if len(body) <= MAX_BODY else body[:MAX_BODY] + f"… {len(body) - MAX_BODY} more bytes".encode()
    )


def _task_id(route: str, request: web.Request, body: bytes) -> str:
    """Return the task id in the response, else the one in the path, else an empty string."""
    in_body = _ID_IN_BODY.search(body) if route != "list" else None
    if in_body:
        return in_body[1].decode(errors="replace")
    in_path = request.match_info.get("task_id") or request.match_info.get("name", "")
    return in_path if re.fullmatch(TASK_ID_PATTERN, in_path) else ""


def _response_body(response: web.StreamResponse) -> bytes:
    if not isinstance(response, web.Response):
        return b"(sent in pieces)"
    data = response.body if isinstance(response.body, bytes) else b""
    if response.content_type.startswith("image/"):
        return f"({len(data)} bytes of {response.content_type})".encode()
    return shortened(data)


def _pretty(body: bytes) -> str:
    """Return JSON indented, and other text unchanged."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")
