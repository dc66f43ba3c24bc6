"""The emulator as a context manager, which runs an HTTP server and the service behind it."""

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import cleandoc
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from attrs import define, field

from .console.routes import Console
from .faults.plan import FaultPlan
from .http.call_log import CallLog
from .http.codes import Refusal
from .http.control import Control
from .http.envelope import REQUEST_TIMEOUT, Responses
from .http.handlers import Handlers
from .http.openapi import document
from .http.same_origin import add_security_headers, same_origin_only
from .service import Service
from .settings import Settings, options
from .state.account import Account
from .state.background import BackgroundTasks
from .state.callbacks import Callbacks

_log = logging.getLogger(__name__)
_NOT_STARTED = "the emulator must be started first: use `async with`"


@define(kw_only=True, eq=False)
class Emulator(Settings):
    """A service that runs at `url` inside `async with`.

    Args:
        clock: returns Unix seconds.

    Raises:
        RuntimeError: if, at the start, another emulator is using the state file.
        ValueError: if a setting is not valid, or no engine has the given name.
        OSError: if, at the start, it cannot listen on its address.
        sqlite3.Error: if, at the start, the state file cannot be used.
    """

    url: str = field(default="", init=False)
    _service: Service | None = field(default=None, init=False, repr=False)
    _runner: web.AppRunner | None = field(default=None, init=False, repr=False)
    _site: web.TCPSite | None = field(default=None, init=False, repr=False)
    _callbacks: Callbacks | None = field(default=None, init=False, repr=False)
    _background: BackgroundTasks = field(factory=BackgroundTasks, init=False, repr=False)

    async def __aenter__(self) -> Self:
        """Start the service."""
        _check_engine(self.engine)
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the service. Running requests get a second to finish."""
        await self._stop()

    async def _start(self) -> None:
        self._service = service = Service(self)
        self._callbacks = Callbacks(service)
        service.on_task.append(self._callbacks.follow)
        self._runner = web.AppRunner(
            self._app(service),
            access_log=None,
            shutdown_timeout=1.0,
            keepalive_timeout=REQUEST_TIMEOUT,  # from aiohttp 3.14 on, also for the first request
            auto_decompress=False,  # a body that is not valid gzip would break the connection
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
        """Cut all connections and refuse new ones inside the block, while tasks continue.

        Raises:
            RuntimeError: if the emulator is not running.
        """
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
            self._service.changes.close()
        if self._runner:
            await self._runner.cleanup()
        await self._background.aclose()
        if self._callbacks:
            await self._callbacks.aclose()
        if self._service:
            await self._service.aclose()

    @property
    def service(self) -> Service:
        """The service behind the routes. Before the start, this raises RuntimeError."""
        if self._service is None:
            raise RuntimeError(_NOT_STARTED)
        return self._service

    @property
    def account(self) -> Account:
        """The account with its tasks and counts, up to date."""
        self.service.settle()
        return self.service.account

    @property
    def faults(self) -> FaultPlan:
        """The planned faults."""
        return self.service.faults

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock forward. The validity of tokens does not change.

        Raises:
            ValueError: if *seconds* is negative or not finite.
            RuntimeError: if the emulator is not running.
        """
        self.service.advance(seconds)

    async def painted(self) -> None:
        """Wait until no picture is being fetched or painted. After that, tasks end as the clock advances."""
        await self.service.renderer.idle()

    def _app(self, service: Service) -> web.Application:
        responses = Responses(random.Random(self.seed), service.account.refusals)
        app = web.Application(middlewares=[same_origin_only(self), _envelope_errors(responses)])
        app.on_response_prepare.extend((self._add_headers, add_security_headers))
        call_log = CallLog(service.changes)
        app.router.add_routes(Handlers(service, responses, self._background, call_log).routes())
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_routes(Control(service, responses).routes())
        app.router.add_routes(Console(service, responses, call_log).routes())
        return app

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.json_response(document(self, self.url))

    async def _add_headers(self, _: web.Request, response: web.StreamResponse) -> None:
        """Mark every response as the emulator's, so that it cannot be mistaken for the vendor's."""
        response.headers["Server"] = "kling-expand-emulator"
        response.headers.setdefault("X-Engine", self.engine)


def _envelope_errors(responses: Responses) -> Middleware:
    """Return a middleware that turns every error into a documented response."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            return responses.refusal(refusal)
        except web.HTTPMethodNotAllowed:
            return responses.refusal(Refusal(1202))
        except web.HTTPNotFound:
            return responses.refusal(Refusal(1203))
        except Exception:  # noqa: BLE001 - the client gets a documented response, the log gets the traceback
            _log.exception("unexpected error in the emulator")
            return responses.refusal(Refusal(5000))

    return middleware


def _check_engine(name: str) -> None:
    """Raise UnknownEngine for a wrong name."""
    from .painting.pictures import find_engine  # imported here, because the server needs no numpy

    find_engine(name)


# The settings are described once, where they are declared.
_DESCRIBED = "".join(f"    {each.name}: {each.metadata['help']}\n" for each in options())
Emulator.__doc__ = cleandoc(Emulator.__doc__ or "").replace("Args:\n", f"Args:\n{_DESCRIBED}")
