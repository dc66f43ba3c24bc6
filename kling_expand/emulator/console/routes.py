"""What do people see of it? A page at `/`, the files it is made of, and the routes only it uses.

GET /_emulator/console                what the page needs to know once: address, key, faults, samples
GET /_emulator/events                 what happens, as it happens (server-sent events)
GET /_emulator/calls/{number}         one call with headers and bodies
GET /_emulator/before/{task_id}       the picture that came in
GET /_emulator/after/{task_id}/{i}    a picture that came out, uncounted and without faults
"""

import asyncio
import mimetypes
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import Any

from aiohttp import web
from attrs import fields_dict, frozen

from kling_expand.emulator.faults import plan as faults
from kling_expand.emulator.http.call_log import Exchanges
from kling_expand.emulator.http.codes import CODES, Refusal
from kling_expand.emulator.http.control import ROOT
from kling_expand.emulator.http.envelope import Answers
from kling_expand.emulator.painting.image_headers import inspect
from kling_expand.emulator.service import Service

from .feed import Feed

HEARTBEAT = 15.0  # seconds of silence after which a console hears that we are still here
PAUSE = 0.05  # seconds between two turns, however much happens
_KEPT = {"Cache-Control": "private, max-age=3600, immutable"}  # a task and its pictures do not change
_BY_CODE = frozenset({"error", "error_after", "envelope_200"})
_BY_SECONDS = frozenset({"late", "slow_headers", "slow_body"})


@frozen
class Console:
    """The handlers."""

    service: Service
    answers: Answers
    exchanges: Exchanges

    def routes(self) -> list[web.RouteDef]:
        """All of them, for a router."""
        return [
            web.get("/", self.page),
            web.get("/console/{name:.+}", self.file),
            web.get(ROOT + "/console", self.about),
            web.get(ROOT + "/events", self.events),
            web.get(ROOT + "/calls/{number:[0-9]{1,15}}", self.call),
            web.get(ROOT + "/before/{task_id}", self.before),
            web.get(ROOT + "/after/{task_id}/{index:[0-8]}", self.after),
        ]

    async def page(self, _: web.Request) -> web.Response:
        """The page itself."""
        return _serve("index.html")

    async def file(self, request: web.Request) -> web.Response:
        """Style, scripts, and sample photos."""
        if request.match_info["name"] not in files():
            raise Refusal(1203)
        return _serve(request.match_info["name"])

    async def about(self, _: web.Request) -> web.Response:
        """What does not change; the key too, which opens nothing but this emulator."""
        settings = self.service.settings
        kinds = [
            {
                "kind": kind,
                "help": text,
                "routes": ["file"] if kind in faults.FILE_ONLY else faults.ROUTES,
                "fields": [*_fields(kind)],
            }
            for kind, text in faults.KINDS.items()
        ]
        return self.answers.data(
            {
                "api_key": settings.api_key,
                "engine": settings.engine.partition(":")[0],
                "samples": sorted(name for name in files() if name.endswith(".jpg")),
                "faults": kinds,
                "codes": [{"code": code, "text": text} for code, (_, text) in CODES.items()],
            }
        )

    async def call(self, request: web.Request) -> web.Response:
        """One of the last calls; 1203 when it is no longer kept."""
        found = self.exchanges.find(int(request.match_info["number"]))
        if found is None:
            raise Refusal(1203)
        return self.answers.data(found.whole())

    async def before(self, request: web.Request) -> web.Response:
        """The picture a task was made for, as it was sent."""
        task = self.service.account.tasks.get(request.match_info["task_id"])
        if task is None or not task.digest:
            raise Refusal(1203)
        image = await self.service.store.image(task.digest)
        return web.Response(body=image, content_type=f"image/{inspect(image).format}", headers=_KEPT)

    async def after(self, request: web.Request) -> web.Response:
        """One picture of a finished task."""
        index = int(request.match_info["index"])
        found = await self.service.picture(request.match_info["task_id"], index, watermark=False)
        if found is None:
            raise Refusal(1203)
        return web.Response(body=found[0], content_type="image/png", headers=_KEPT | {"X-Engine": found[1]})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """What happens, until either side ends it."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 500\n\n")  # milliseconds until a browser that lost us tries again
        feed = Feed(self.service, self.exchanges)
        with suppress(ConnectionError):  # the page was closed
            while not self.service.news.over:
                coming = self.service.news.coming
                await response.write(b"".join(feed.news()))
                await asyncio.sleep(PAUSE)
                left = feed.next_change()
                await _wait(coming, HEARTBEAT if left is None else min(left, HEARTBEAT))
        return response


async def _wait(coming: asyncio.Event, seconds: float) -> None:
    """Until it is set, or the time is over."""
    waiting = asyncio.ensure_future(coming.wait())
    try:
        await asyncio.wait([waiting], timeout=seconds)
    finally:
        waiting.cancel()


@cache
def files() -> dict[str, bytes]:
    """Everything the page is made of, by its path below `console/`."""
    folder = resources.files(__package__) / "static"
    found = {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}
    samples = {f"samples/{each.name}": each.read_bytes() for each in (folder / "samples").iterdir()}
    return found | samples


def _serve(name: str) -> web.Response:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    kind = "text/javascript" if name.endswith(".js") else kind
    charset = "utf-8" if kind.startswith("text/") else None
    return web.Response(body=files()[name], content_type=kind, charset=charset)


def _fields(kind: str) -> list[dict[str, Any]]:
    """Which numbers a fault of this kind reads, with their defaults."""
    names = ["code"] * (kind in _BY_CODE) + ["seconds"] * (kind in _BY_SECONDS)
    names += ["retry_after"] * (kind in {"error", "error_after"})
    return [{"name": name, "default": fields_dict(faults.Fault)[name].default} for name in names]
