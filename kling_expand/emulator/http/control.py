"""How is an emulator steered from another process? JSON under `/_emulator`, no credentials; not part of the
service.

    GET    /_emulator                 settings, counts, time, faults that wait
    GET    /_emulator/tasks           every task with all that was asked for
    POST   /_emulator/advance         {"seconds": 86400}
    POST   /_emulator/settings        {"account_code": 1101, "slots": 3, …}
    POST   /_emulator/faults          {"route": "create", "script": ["ok", {"kind": "error", "code": 1302}]}
                                      {"route": "query", "kind": "html", "probability": 0.1}
    DELETE /_emulator/faults          nothing goes wrong any more
"""

from typing import Any

from aiohttp import web
from attrs import asdict, frozen

from kling_expand.emulator.faults import plan as faults
from kling_expand.emulator.service import Service
from kling_expand.emulator.settings import change, options
from kling_expand.emulator.state.tasks import Task

from .bodies import Body
from .codes import Refusal
from .envelope import Answers
from .fields import parse

ROOT = "/_emulator"


@frozen
class Control:
    """The handlers; what cannot be done is refused with 1201, like a wrong parameter of the service."""

    service: Service
    answers: Answers
    faults: faults.Faults

    def routes(self) -> list[web.RouteDef]:
        """All of them, for a router."""
        return [
            web.get(ROOT, self.state),
            web.get(ROOT + "/tasks", self.tasks),
            web.post(ROOT + "/advance", self.advance),
            web.post(ROOT + "/settings", self.settings),
            web.post(ROOT + "/faults", self.add_faults),
            web.delete(ROOT + "/faults", self.clear_faults),
        ]

    async def state(self, _: web.Request) -> web.Response:
        """Settings without secrets, counts, the moved time, and the faults that wait."""
        service = self.service
        service.account.settle(service.clock.now())
        shown = {option.name: getattr(service.settings, option.name) for option in options() if option.repr}
        return self.answers.data(
            {
                "now": service.clock.now(),
                "settings": shown,
                "account": service.account.counts(),
                "faults": self.faults.waiting(),
            }
        )

    async def tasks(self, _: web.Request) -> web.Response:
        """Everything not yet expired, oldest first."""
        self.service.account.settle(self.service.clock.now())
        return self.answers.data([self._task(task) for task in self.service.account.tasks.values()])

    def _task(self, task: Task) -> dict[str, Any]:
        return {"task_status": task.status_at(self.service.clock.now())} | asdict(task)

    async def advance(self, request: web.Request) -> web.Response:
        """Move the clock forwards."""
        body = await self._body(request)
        seconds = body.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise Refusal(1201, "seconds must be a number")
        try:
            self.service.advance(float(seconds))
        except (ValueError, OverflowError) as error:
            raise Refusal(1201, str(error)) from None
        await self.service.store.flush()
        return await self.state(request)

    async def settings(self, request: web.Request) -> web.Response:
        """Change settings that are not fixed, all or none."""
        body = await self._body(request)
        try:
            change(self.service.settings, body)
        except ValueError as error:
            raise Refusal(1201, str(error)) from None
        self.service.news.tell()
        return await self.state(request)

    async def add_faults(self, request: web.Request) -> web.Response:
        """Append to a route's script, or to its chances."""
        body = await self._body(request)
        try:
            self._add(body)
        except (ValueError, TypeError) as error:
            raise Refusal(1201, str(error.args[0] if error.args else error)) from None
        self.service.news.tell()
        return await self.state(request)

    def _add(self, body: dict[str, Any]) -> None:
        route = body.pop("route", None)
        script = body.pop("script", None)
        if script is not None:
            if body or not isinstance(script, list):
                raise ValueError("a script is a list, and stands alone")
            self.faults.script(route, *(faults.parse(step) for step in script))
            return
        probability = body.pop("probability", None)
        if probability is None:
            self.faults.script(route, faults.parse(body))
        else:
            self.faults.chance(route, faults.parse(body), probability)

    async def clear_faults(self, request: web.Request) -> web.Response:
        """Forget all faults."""
        self.faults.clear()
        self.service.news.tell()
        return await self.state(request)

    async def _body(self, request: web.Request) -> dict[str, Any]:
        return parse(await Body(request, self.service.settings.body_bytes).read())
