"""How is the emulator run? `Emulator` switches on all that is in this folder, and off again."""

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from attrs import define, field

from .console.routes import Console
from .faults.plan import Faults
from .http import files
from .http.call_log import Exchanges
from .http.codes import Refusal
from .http.control import Control
from .http.envelope import Answers
from .http.handlers import Calls
from .http.openapi import PATHS, document
from .http.same_origin import guard, harden
from .service import Service
from .settings import Settings
from .state import signing
from .state.account import Account
from .state.background import Background
from .state.callbacks import Callbacks

_log = logging.getLogger(__name__)
_NOT_STARTED = "the emulator has not been started: use `async with`"


@define(kw_only=True, eq=False)
class Emulator(Settings):
    """A running service on `url`, between `async with` and its end; its `account` tell what happened."""

    url: str = field(default="", init=False)
    _service: Service | None = field(default=None, init=False, repr=False)
    _runner: web.AppRunner | None = field(default=None, init=False, repr=False)
    _site: web.TCPSite | None = field(default=None, init=False, repr=False)
    _callbacks: Callbacks | None = field(default=None, init=False, repr=False)
    _background: Background = field(factory=Background, init=False, repr=False)

    async def __aenter__(self) -> Self:
        _require_engine(self.engine)
        if self.webhook_secret:
            signing.key(self.webhook_secret)
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _start(self) -> None:
        self._service = service = Service(self)
        self._callbacks = Callbacks(service)
        service.on_task.append(self._callbacks.follow)
        self._runner = web.AppRunner(
            self._app(service),
            access_log=None,
            shutdown_timeout=1.0,
            auto_decompress=False,  # the service reads plain bodies; a broken one would cost the connection
        )
        await self._runner.setup()
        await self._listen(self._runner, self.port)
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"
        service.start(self.url)

    async def _listen(self, runner: web.AppRunner, port: int) -> None:
        self._site = web.TCPSite(runner, self.host, port, reuse_address=True)
        await self._site.start()

    @asynccontextmanager
    async def unreachable(self) -> AsyncIterator[None]:
        """Meanwhile connections are refused and open ones are cut; tasks go on."""
        if self._runner is None or self._site is None or self._runner.server is None:
            raise RuntimeError(_NOT_STARTED)
        port = self._runner.addresses[0][1]
        await self._site.stop()
        for connection in self._runner.server.connections:
            connection.force_close()
        try:
            yield
        finally:
            await self._listen(self._runner, port)

    async def _stop(self) -> None:
        if self._service:
            self._service.news.end()
        if self._runner:
            await self._runner.cleanup()
        await self._background.aclose()
        if self._callbacks:
            await self._callbacks.aclose()
        if self._service:
            await self._service.aclose()

    @property
    def service(self) -> Service:
        """What is behind the routes; raises RuntimeError before the start."""
        if self._service is None:
            raise RuntimeError(_NOT_STARTED)
        return self._service

    @property
    def account(self) -> Account:
        """Every task and every count, up to date."""
        self.service.account.settle(self.service.clock.now())
        return self.service.account

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock forwards; tokens keep being judged by the unmoved one."""
        self.service.advance(seconds)

    async def painted(self) -> None:
        """Return when nothing is being fetched or painted: from then on the clock alone decides."""
        await self.service.studio.finished()

    @property
    def faults(self) -> Faults:
        """What goes wrong next, for a script to be written into."""
        return self.service.faults

    def _app(self, service: Service) -> web.Application:
        answers = Answers(random.Random(self.seed), service.account.refusals)
        app = web.Application(middlewares=[guard(self.host), _envelopes(answers)])
        app.on_response_prepare.extend((self._sign, harden))
        exchanges = Exchanges(service.news)
        calls = Calls(service, answers, self._background, exchanges)
        for dialect, path in PATHS.items():
            app.router.add_post(path, calls.handler("create", partial(calls.create, dialect)))
            app.router.add_get(path, calls.handler("list", partial(calls.list, dialect)))
            app.router.add_get(path + "/{name:[^/]+}", calls.handler("query", partial(calls.query, dialect)))
        app.router.add_get("/files/{task_id}/{name}", calls.handler("file", partial(files.picture, service)))
        app.router.add_get("/openapi.json", self._describe)
        app.router.add_routes(Control(service, answers, service.faults).routes())
        app.router.add_routes(Console(service, answers, exchanges).routes())
        return app

    async def _describe(self, _: web.Request) -> web.Response:
        return web.json_response(document(self, self.url))

    async def _sign(self, _: web.Request, response: web.StreamResponse) -> None:
        """Say what this is: no answer may pass for the vendor's."""
        response.headers["Server"] = "kling-expand-emulator"
        response.headers.setdefault("X-Engine", self.engine)


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


def _require_engine(name: str) -> None:
    """Raise RuntimeError for missing libraries and UnknownEngine for a wrong name, before any picture."""
    try:
        from .painting.engines import find
    except ImportError as missing:
        message = f"the emulator needs {missing.name} to paint: pip install 'kling-expand[emulator]'"
        raise RuntimeError(message) from None
    find(name)
