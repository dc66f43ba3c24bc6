"""How does the service sound over HTTP? Routes and headers; `Emulator` is all of it, on and off."""

import logging
import re
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from attrs import define, field

from kling_expand.emulator import files, lists, tokens
from kling_expand.emulator.answers import Answers, read_body
from kling_expand.emulator.books import Books
from kling_expand.emulator.codes import Refusal
from kling_expand.emulator.service import Service
from kling_expand.emulator.settings import Settings
from kling_expand.emulator.tasks import Shapes

PATHS = {"editing": "/v1/images/editing/expand", "direction": "/v1/images/expand"}
_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?")
_log = logging.getLogger(__name__)


@define(kw_only=True, eq=False)
class Emulator(Settings):
    """A running service on `url`, between `async with` and its end; its `books` tell what happened."""

    url: str = field(default="", init=False)
    _service: Service | None = field(default=None, init=False, repr=False)
    _runner: web.AppRunner | None = field(default=None, init=False, repr=False)

    async def __aenter__(self) -> Self:
        _require_pictures()
        self._service = Service(self)
        self._runner = web.AppRunner(self._app(self._service), access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{port}"
        self._service.start(self.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner:
            await self._runner.cleanup()
        if self._service:
            await self._service.aclose()

    @property
    def service(self) -> Service:
        """What is behind the routes; raises RuntimeError before the start."""
        if self._service is None:
            raise RuntimeError("the emulator has not been started: use `async with`")
        return self._service

    @property
    def books(self) -> Books:
        """Every task and every count, up to date."""
        self.service.books.settle(self.service.clock.now())
        return self.service.books

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock forwards; tokens keep being judged by the unmoved one."""
        self.service.advance(seconds)

    async def painted(self) -> None:
        """Return when nothing is being painted: from then on the clock alone decides."""
        await self.service.painted()

    def _app(self, service: Service) -> web.Application:
        answers = Answers(service.chance)
        app = web.Application(middlewares=[_envelopes(answers)])
        app.on_response_prepare.append(self._sign)
        for dialect, path in PATHS.items():
            calls = _Calls(service, answers, dialect)
            app.router.add_post(path, calls.create)
            app.router.add_get(path, calls.list)
            app.router.add_get(path + "/{name}", calls.query)
        app.router.add_get("/files/{task_id}/{name}", self._file)
        return app

    async def _sign(self, _: web.Request, response: web.StreamResponse) -> None:
        """Say what this is: no answer may pass for the vendor's."""
        response.headers["Server"] = "kling-expand-emulator"
        response.headers.setdefault("X-Engine", self.engine)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        self.service.books.requests["file"] += 1
        return await files.picture(self.service, request)


@define
class _Calls:
    """The three calls of one dialect."""

    service: Service
    answers: Answers
    dialect: str

    async def create(self, request: web.Request) -> web.StreamResponse:
        self._enter(request, "create")
        raw = await read_body(request, self.service.settings.body_bytes)
        task = await self.service.create(self.dialect, raw)
        return self.answers.data(self._shapes(request).created(task, self.service.clock.now()))

    async def query(self, request: web.Request) -> web.StreamResponse:
        self._enter(request, "query")
        task = await self.service.query(self.dialect, request.match_info["name"])
        view = self._shapes(request).task(task, self.service.clock.now())
        return self.answers.data([view] if self.service.settings.seed_shapes else view)

    async def list(self, request: web.Request) -> web.StreamResponse:
        self._enter(request, "list")
        page = lists.Page.parse(request.query)
        found = await self.service.list(self.dialect, page)
        shapes = self._shapes(request)
        now = self.service.clock.now() - self.service.settings.list_lag
        return self.answers.data([shapes.task(task, now) for task in found])

    def _enter(self, request: web.Request, route: str) -> None:
        """Count the call and see who makes it."""
        service = self.service
        service.books.requests[route] += 1
        tokens.check(
            request.headers.get("Authorization"),
            access_key=service.settings.access_key,
            secret_key=service.settings.secret_key,
            api_key=service.settings.api_key,
            now=service.clock.real(),
        )

    def _shapes(self, request: web.Request) -> Shapes:
        settings = self.service.settings
        host = request.headers.get("Host", "")
        origin = f"http://{host}" if _HOST.fullmatch(host) else self.service.origin
        return Shapes(origin, seed=settings.seed_shapes, succeeded=settings.succeeded)


def _envelopes(answers: Answers) -> Middleware:
    """Tell in the documented form whatever goes wrong."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            return answers.refused(refusal)
        except web.HTTPMethodNotAllowed:
            return answers.refused(Refusal(1202))
        except web.HTTPNotFound:
            return answers.refused(Refusal(1203))
        except Exception:  # noqa: BLE001 - whoever called gets an answer, whoever runs this gets the log
            _log.exception("the emulator failed")
            return answers.refused(Refusal(5000))

    return middleware


def _require_pictures() -> None:
    try:
        import numpy as np  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as missing:
        message = f"the emulator needs {missing.name} to paint: pip install 'kling-expand[emulator]'"
        raise RuntimeError(message) from None
