"""How does the service sound over HTTP? The three calls of a dialect, each counted, let in, and perhaps
spoilt."""

import asyncio
import re
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler
from attrs import frozen

from kling_expand.emulator.faults import inject as breaking
from kling_expand.emulator.faults.plan import Fault
from kling_expand.emulator.service import Service
from kling_expand.emulator.state import listing as lists
from kling_expand.emulator.state.background import Background
from kling_expand.emulator.state.tasks import Shapes

from . import auth as tokens
from .bodies import Body
from .call_log import Exchanges
from .codes import Refusal
from .envelope import Answers

Answer = Callable[[web.Request, Body], Awaitable[web.Response]]
_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?")


@frozen
class Calls:
    """Handlers for a router."""

    service: Service
    answers: Answers
    background: Background
    exchanges: Exchanges

    def handler(self, route: str, answer: Answer) -> Handler:
        """`answer`, counted as `route` and exposed to its faults."""

        async def handle(request: web.Request) -> web.StreamResponse:
            self.service.account.requests[route] += 1
            body = Body(request, self.service.settings.body_bytes)
            fault = self.service.faults.pick(route)
            wall, begun = self.service.clock.now(), asyncio.get_running_loop().time()
            try:
                response = await self._answer(answer, request, body, fault)
            except Refusal as refusal:
                response = self.answers.refused(refusal)
            seconds = asyncio.get_running_loop().time() - begun
            self.exchanges.add(
                route, request, response, body=body.seen, fault=fault, started=wall, seconds=seconds
            )
            return response

        return handle

    async def _answer(
        self, answer: Answer, request: web.Request, body: Body, fault: Fault | None
    ) -> web.StreamResponse:
        if fault is None:
            return await answer(request, body)
        self.service.account.faults[fault.kind] += 1
        return await breaking.carry_out(
            breaking.Call(
                request=request,
                body=body,
                answer=lambda: self._with_refusals(answer, request, body),
                answers=self.answers,
                fault=fault,
                later=self.background.start,
            )
        )

    async def _with_refusals(self, answer: Answer, request: web.Request, body: Body) -> web.Response:
        try:
            return await answer(request, body)
        except Refusal as refusal:
            return self.answers.refused(refusal)

    async def create(self, dialect: str, request: web.Request, body: Body) -> web.Response:
        """POST of a new task."""
        self._let_in(request)
        task = await self.service.create(dialect, await body.read())
        return self.answers.data(self._shapes(request).created(task, self.service.clock.now()))

    async def query(self, dialect: str, request: web.Request, _: Body) -> web.Response:
        """GET of one task by either id."""
        self._let_in(request)
        task = await self.service.query(dialect, request.match_info["name"])
        view = self._shapes(request).task(task, self.service.clock.now())
        return self.answers.data([view] if self.service.settings.seed_shapes else view)

    async def list(self, dialect: str, request: web.Request, _: Body) -> web.Response:
        """GET of a page."""
        self._let_in(request)
        found = await self.service.list(dialect, lists.Page.parse(request.query))
        shapes = self._shapes(request)
        now = self.service.clock.now() - self.service.settings.list_lag
        return self.answers.data([shapes.task(task, now) for task in found])

    def _let_in(self, request: web.Request) -> None:
        """Refuse strangers, an account in a bad state, and who calls too often."""
        settings = self.service.settings
        tokens.check(
            request.headers.get("Authorization"),
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            api_key=settings.api_key,
            now=self.service.clock.real(),
        )
        if settings.account_code:
            raise Refusal(settings.account_code)
        self.service.rate.enter(self.service.clock.now())

    def _shapes(self, request: web.Request) -> Shapes:
        settings = self.service.settings
        host = request.headers.get("Host", "")
        origin = f"http://{host}" if _HOST.fullmatch(host) else self.service.origin
        return Shapes(origin, seed=settings.seed_shapes, succeeded=settings.succeeded)
