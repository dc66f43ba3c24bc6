"""What was said lately? The last calls of each route, with both bodies, for people to read.

Bounded: so many calls a route, so many bytes a body. Pictures are left out and the credentials blackened.
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
from kling_expand.emulator.state.change_signal import News

KEPT = 100  # calls of each route
LONGEST = 8192  # bytes of a body
_IMAGE = re.compile(rb'"image"\s*:\s*"')
_BEGINNING = 24  # characters of a picture that are left: enough to tell a JPEG from a PNG
_TASK = re.compile(rb'"task_id": "(\d{18})"')


@frozen
class Exchange:
    """A call and its answer; `status` is None where the connection was cut, `started` is Unix seconds."""

    number: int
    route: str
    method: str
    path: str
    started: float
    seconds: float
    status: int | None
    fault: str
    asked: Mapping[str, str] = field(repr=False)
    request: bytes = field(repr=False)
    answered: Mapping[str, str] = field(repr=False)
    response: bytes = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """All but headers and bodies, as JSON."""
        names = ("number", "route", "method", "path", "started", "seconds", "status", "fault")
        return {name: getattr(self, name) for name in names} | {"task_id": self._task_id()}

    def whole(self) -> dict[str, Any]:
        """Headers and bodies too."""
        headers = {
            name: "Bearer …" if name.lower() == "authorization" else value
            for name, value in self.asked.items()
        }
        return self.summary() | {
            "request": {"headers": headers, "body": _pretty(self.request)},
            "response": {"headers": dict(self.answered), "body": _pretty(self.response)},
        }

    def _task_id(self) -> str:
        named = re.search(r"\d{18}", self.path)
        if named:
            return named[0]
        told = _TASK.search(self.response) if self.route != "list" else None
        return told[1].decode() if told else ""


class Exchanges:
    """The calls, each numbered in the order of their ends."""

    def __init__(self, news: News) -> None:
        self._news = news
        self._numbers = count(1)
        self._kept: dict[str, deque[Exchange]] = {route: deque(maxlen=KEPT) for route in ROUTES}

    def add(
        self,
        route: str,
        request: web.Request,
        response: web.StreamResponse,
        *,
        body: bytes,
        fault: Fault | None,
        started: float,
        seconds: float,
    ) -> None:
        """Remember one more, and forget the oldest of its route."""
        cut = request.transport is None or request.transport.is_closing()
        self._kept[route].append(
            Exchange(
                number=next(self._numbers),
                route=route,
                method=request.method,
                path=request.path_qs,
                started=started,
                seconds=seconds,
                status=None if cut else response.status,
                fault=fault.kind if fault else "",
                asked=request.headers,
                request=shortened(body),
                answered={} if cut else response.headers,
                response=b"" if cut else _body(response),
            )
        )
        self._news.tell()

    def since(self, number: int) -> list[Exchange]:
        """Those numbered higher, in order."""
        return sorted((each for each in self._all() if each.number > number), key=lambda each: each.number)

    def find(self, number: int) -> Exchange | None:
        """One of those that are kept."""
        return next((each for each in self._all() if each.number == number), None)

    def _all(self) -> Iterator[Exchange]:
        for kept in self._kept.values():
            yield from kept


def shortened(body: bytes) -> bytes:
    """A body without its picture, and cut at a length that can be shown."""
    begins = _IMAGE.search(body, 0, len(body))
    if begins:
        at = begins.end()
        ends = body.find(b'"', at)
        if ends - at > LONGEST // 4:
            left_out = f"… {ends - at - _BEGINNING} more characters".encode()
            body = body[: at + _BEGINNING] + left_out + body[ends:]
    return body if len(body) <= LONGEST else body[:LONGEST] + f"… {len(body) - LONGEST} more bytes".encode()


def _open(name: str, value: str) -> str:
    return "Bearer …" if name.lower() == "authorization" else value


def _body(response: web.StreamResponse) -> bytes:
    if not isinstance(response, web.Response):
        return b"(sent in pieces)"
    data = response.body if isinstance(response.body, bytes) else b""
    if response.content_type.startswith("image/"):
        return f"({len(data)} bytes of {response.content_type})".encode()
    return shortened(data)


def _pretty(body: bytes) -> str:
    """JSON with line breaks where it is JSON, as it is otherwise."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body.decode("utf-8", "replace")
