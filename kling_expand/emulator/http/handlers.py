"""The handlers of the service: create, query and list for each dialect, and downloads of pictures."""

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler
from attrs import frozen

from kling_expand.emulator.faults.inject import FaultyCall, inject
from kling_expand.emulator.faults.plan import Fault
from kling_expand.emulator.service import Service
from kling_expand.emulator.state.background import BackgroundTasks
from kling_expand.emulator.state.listing import Page

from .auth import authenticate
from .call_log import CallLog
from .codes import Refusal
from .envelope import Body, Responses
from .openapi import PATHS
from .task_json import TaskJson

Responder = Callable[[web.Request, Body], Awaitable[web.Response]]
_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?")
_FILE_NAME = re.compile(r"([0-8])(-watermark)?\.png")


@frozen
class Handlers:
    """The handlers of the routes. Each request is counted and logged, and may get a planned fault."""

    service: Service
    responses: Responses
    background: BackgroundTasks
    call_log: CallLog

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for a router."""
        routes = [
            web.get("/health", self.health),
            web.get("/files/{task_id}/{name}", self._handler("file", self.download)),
        ]
        for dialect, path in PATHS.items():
            routes += [
                web.post(path, self._handler("create", partial(self.create, dialect))),
                web.get(path, self._handler("list", partial(self.list, dialect))),
                web.get(path + "/{name:[^/]+}", self._handler("query", partial(self.query, dialect))),
            ]
        return routes

    def _handler(self, route: str, respond: Responder) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.service.account.requests[route] += 1
            body = Body(request, self.service.settings.max_body_bytes)
            fault = self.service.faults.pick(route)
            started_at, loop_started_at = self.service.clock.now(), asyncio.get_running_loop().time()
            try:
                response = await self._respond(respond, request, body, fault)
            except Refusal as refusal:
                response = self.responses.refusal(refusal)
            seconds = asyncio.get_running_loop().time() - loop_started_at
            self.call_log.add(
                route,
                request,
                response,
                body=body.received,
                fault=fault,
                started_at=started_at,
                seconds=seconds,
            )
            return response

        return handle

    async def _respond(
        self, respond: Responder, request: web.Request, body: Body, fault: Fault | None
    ) -> web.StreamResponse:
        if fault is None:
            return await respond(request, body)
        self.service.account.faults[fault.kind] += 1
        return await inject(
            FaultyCall(
                request=request,
                body=body,
                respond=lambda: self._with_refusals(respond, request, body),
                responses=self.responses,
                fault=fault,
                run_later=self.background.start,
            )
        )

    async def _with_refusals(self, respond: Responder, request: web.Request, body: Body) -> web.Response:
        try:
            return await respond(request, body)
        except Refusal as refusal:
            return self.responses.refusal(refusal)

    async def health(self, _: web.Request) -> web.Response:
        """Report that the emulator is ready. This needs no credentials and is not counted."""
        return web.json_response({"status": "ok", "open_tasks": self.service.account.open_tasks})

    async def create(self, dialect: str, request: web.Request, body: Body) -> web.Response:
        """Create a task."""
        self._admit(request)
        task = await self.service.create(dialect, await body.read())
        return self.responses.success(self._json(request).created(task, self.service.clock.now()))

    async def query(self, dialect: str, request: web.Request, _: Body) -> web.Response:
        """Return one task by either of its ids."""
        self._admit(request)
        task = await self.service.query(dialect, request.match_info["name"])
        return self.responses.success(self._json(request).queried(task, self.service.clock.now()))

    async def list(self, dialect: str, request: web.Request, _: Body) -> web.Response:
        """Return one page of tasks."""
        self._admit(request)
        found = await self.service.list(dialect, Page.parse(request.query))
        task_json = self._json(request)
        settings = self.service.settings
        seen_at = self.service.clock.now() - max(settings.list_lag, settings.list_status_lag)
        return self.responses.success([task_json.task(task, seen_at) for task in found])

    async def download(self, request: web.Request, _: Body) -> web.Response:
        """Return a picture or a range of it. No credentials are needed."""
        name = _FILE_NAME.fullmatch(request.match_info["name"])
        task_id = request.match_info["task_id"]
        found = await self.service.picture(task_id, int(name[1]), watermark=bool(name[2])) if name else None
        if found is None:
            return web.Response(status=404, text="no such picture, or it has expired\n")
        data, engine = found
        response = _ranged(request, data)
        response.headers["X-Engine"] = engine
        return response

    def _admit(self, request: web.Request) -> None:
        """Check the credentials, the state of the account and the rate limit."""
        settings = self.service.settings
        authenticate(
            request.headers.get("Authorization"),
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            api_key=settings.api_key,
            now=self.service.clock.source_now(),
        )
        if settings.account_code:
            raise Refusal(settings.account_code)
        self.service.rate_limit.check(self.service.clock.now())

    def _json(self, request: web.Request) -> TaskJson:
        return TaskJson(self.service.settings, self.service.settings.public_url or self._origin(request))

    def _origin(self, request: web.Request) -> str:
        """Return the origin that the client called, according to the headers of a trusted proxy, if any."""
        host, scheme = request.headers.get("Host", ""), "http"
        if self.service.settings.forwarded:
            host = request.headers.get("X-Forwarded-Host", host).partition(",")[0].strip()
            scheme = request.headers.get("X-Forwarded-Proto", scheme).partition(",")[0].strip().lower()
        known = _HOST.fullmatch(host) and scheme in {"http", "https"}
        return f"{scheme}://{host}" if known else self.service.origin


def _ranged(request: web.Request, data: bytes) -> web.Response:
    """Return a 200 response, or 206 or 416 for a single range. Any other range may be ignored."""
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{zlib.crc32(data):08x}-{len(data)}"'}
    wanted = slice(None)
    if request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
        try:
            wanted = request.http_range
        except ValueError:  # another unit, or several ranges
            wanted = slice(None)
    if wanted.start is None and wanted.stop is None:
        return web.Response(body=data, content_type="image/png", headers=headers)
    start, stop, _ = wanted.indices(len(data))
    if start >= stop:
        headers["Content-Range"] = f"bytes */{len(data)}"
        return web.Response(status=416, headers=headers)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return web.Response(status=206, body=data[start:stop], content_type="image/png", headers=headers)
