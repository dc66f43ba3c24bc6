"""The routes of the console: its page at `/`, its static files, and the page's own API.

GET /_emulator/console                constant data: API key, engine, faults, samples
GET /_emulator/events                 changes as they happen (server-sent events)
GET /_emulator/calls/{number}         one call with headers and bodies
GET /_emulator/before/{task_id}       the uploaded picture
GET /_emulator/after/{task_id}/{i}    an expanded picture, not counted and without faults
"""

import asyncio
import mimetypes
from contextlib import suppress
from functools import cache
from importlib import resources

from aiohttp import web
from attrs import frozen

from kling_expand.emulator.faults.plan import describe_kinds
from kling_expand.emulator.http.call_log import CallLog
from kling_expand.emulator.http.codes import CODES, Refusal
from kling_expand.emulator.http.control import ROOT
from kling_expand.emulator.http.envelope import Responses
from kling_expand.emulator.painting.image_headers import inspect
from kling_expand.emulator.service import Service

from .feed import Feed

HEARTBEAT = 15.0  # longest time between two updates, in seconds
MIN_PAUSE = 0.05  # shortest time between two updates, in seconds
_CACHED = {"Cache-Control": "private, max-age=3600, immutable"}  # the pictures of a task never change


@frozen
class Console:
    """The handlers of the console's routes."""

    service: Service
    responses: Responses
    call_log: CallLog

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for a router."""
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
        """Return the page."""
        return _serve("index.html")

    async def file(self, request: web.Request) -> web.Response:
        """Return a style sheet, a script or a sample photo."""
        if request.match_info["name"] not in static_files():
            raise Refusal(1203)
        return _serve(request.match_info["name"])

    async def about(self, _: web.Request) -> web.Response:
        """Return the constant data, with the API key, which is valid for this emulator only."""
        settings = self.service.settings
        return self.responses.success(
            {
                "api_key": settings.api_key,
                "engine": settings.engine.partition(":")[0],
                "samples": sorted(name for name in static_files() if name.endswith(".jpg")),
                "faults": describe_kinds(),
                "codes": [{"code": code, "text": text} for code, (_, text) in CODES.items()],
            }
        )

    async def call(self, request: web.Request) -> web.Response:
        """Return one call of the log, or refuse with 1203 if it is no longer there."""
        found = self.call_log.get(int(request.match_info["number"]))
        if found is None:
            raise Refusal(1203)
        return self.responses.success(found.details())

    async def before(self, request: web.Request) -> web.Response:
        """Return the picture that was uploaded for a task."""
        task = self.service.account.tasks.get(request.match_info["task_id"])
        if task is None or not task.digest:
            raise Refusal(1203)
        image = await self.service.store.image(task.digest)
        return web.Response(body=image, content_type=f"image/{inspect(image).format}", headers=_CACHED)

    async def after(self, request: web.Request) -> web.Response:
        """Return one picture of a successful task."""
        index = int(request.match_info["index"])
        found = await self.service.picture(request.match_info["task_id"], index, watermark=False)
        if found is None:
            raise Refusal(1203)
        headers = _CACHED | {"X-Engine": found[1]}
        return web.Response(body=found[0], content_type="image/png", headers=headers)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Send updates until either side closes the stream."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 500\n\n")  # milliseconds before a browser reconnects
        feed = Feed(self.service, self.call_log)
        with suppress(ConnectionError):  # the page was closed
            while not self.service.changes.closed:
                changed = self.service.changes.next
                await response.write(b"".join(feed.updates()))
                await asyncio.sleep(MIN_PAUSE)
                left = feed.next_change()
                await _wait(changed, HEARTBEAT if left is None else min(left, HEARTBEAT))
        return response


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, for at most *seconds*."""
    waiting = asyncio.ensure_future(changed.wait())
    try:
        await asyncio.wait([waiting], timeout=seconds)
    finally:
        waiting.cancel()


@cache
def static_files() -> dict[str, bytes]:
    """Return the files of the page, by their paths below `console/`."""
    folder = resources.files(__package__) / "static"
    found = {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}
    samples = {f"samples/{each.name}": each.read_bytes() for each in (folder / "samples").iterdir()}
    return found | samples


def _serve(name: str) -> web.Response:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    kind = "text/javascript" if name.endswith(".js") else kind  # some systems map .js to another type
    charset = "utf-8" if kind.startswith("text/") else None
    return web.Response(body=static_files()[name], content_type=kind, charset=charset)
