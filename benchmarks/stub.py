"""A stub of `aiohttp.ClientSession` without a network, so that only the client's own cost is measured.

It opens no socket and does not read request bodies. A task is deleted once its end has been returned.
"""

import asyncio
import sys
from itertools import count, islice
from random import Random
from types import TracebackType
from typing import Any, Self, cast

import aiohttp
from attrs import define, field

SIGMA = 0.35  # of the log-normal durations


@define(eq=False)
class Response:
    """The part of an `aiohttp.ClientResponse` that the session layer uses."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(factory=dict)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @property
    def content(self) -> Self:
        """The reader of the body."""
        return self

    async def readany(self) -> bytes:
        """Return the whole body, and nothing on the next call."""
        body, self.body = self.body, b""
        return body


@define(eq=False)
class Service:
    """A service whose tasks have this *median* duration, in seconds of the event loop's clock."""

    median: float
    rng: Random = field(factory=lambda: Random(1))
    closed: bool = False
    _ends: dict[str, float] = field(factory=dict)
    _number: Any = field(factory=lambda: count(10**17))

    @property  # type: ignore[misc]  # a client accepts only sessions of aiohttp
    def __class__(self) -> type:
        return aiohttp.ClientSession

    def request(
        self, method: str, url: str, *, params: dict[str, int] | None = None, **_given: object
    ) -> Response:
        """Answer a create, a list page or a query."""
        now = asyncio.get_running_loop().time()
        if method == "POST":
            name = str(next(self._number))
            self._ends[name] = now + self.rng.lognormvariate(0.0, SIGMA) * self.median
            data = self._task(name, now)
        elif params:
            first, size = (params["pageNum"] - 1) * params["pageSize"], params["pageSize"]
            names = tuple(islice(self._ends, first, first + size))
            data = "[" + ",".join([self._task(name, now) for name in names]) + "]"
        else:
            data = self._task(url.rpartition("/")[2], now)
        return Response(f'{{"code":0,"message":"SUCCEED","request_id":"0","data":{data}}}'.encode())

    @property
    def size(self) -> int:
        """The bytes that the stub itself, and not the client, keeps for all open tasks."""
        tasks = sum(sys.getsizeof(name) + sys.getsizeof(end) for name, end in self._ends.items())
        return sys.getsizeof(self._ends) + tasks

    def _task(self, name: str, now: float) -> str:
        if self._ends[name] > now:
            return f'{{"task_id":"{name}","task_status":"processing","task_status_msg":""}}'
        del self._ends[name]
        images = f'{{"images":[{{"index":0,"url":"https://cdn.example.com/{name}.png"}}]}}'
        return f'{{"task_id":"{name}","task_status":"succeed","task_status_msg":"","task_result":{images}}}'

    def as_session(self) -> aiohttp.ClientSession:
        """Return the stub for `KlingClient(http=...)`."""
        return cast(aiohttp.ClientSession, self)
