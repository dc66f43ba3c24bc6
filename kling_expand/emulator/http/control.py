"""The control routes, through which another process controls an emulator. The real service has none.

They accept and return JSON and need no credentials:

    GET    /_emulator                 settings, account, time, planned faults
    GET    /_emulator/tasks           every task with its request
    POST   /_emulator/advance         {"seconds": 86400}
    POST   /_emulator/settings        {"account_code": 1101, "slots": 3, ...}
    POST   /_emulator/faults          {"route": "create", "script": ["ok", {"kind": "error", "code": 1302}]}
                                      {"route": "query", "kind": "html", "probability": 0.1}
                                      {"route": "query", "kind": "error", "code": 1103, "duration": 10}
    DELETE /_emulator/faults          remove all planned faults
"""

from typing import Any

from aiohttp import web
from attrs import asdict, frozen

from kling_expand.emulator.faults.plan import parse_fault
from kling_expand.emulator.service import Service
from kling_expand.emulator.settings import change, options
from kling_expand.emulator.state.tasks import Task

from .codes import Refusal
from .envelope import Body, Responses
from .validation import parse_json

ROOT = "/_emulator"


@frozen
class Control:
    """The handlers of the control routes. An invalid request is refused with 1201."""

    service: Service
    responses: Responses

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for a router."""
        return [
            web.get(ROOT, self.state),
            web.get(ROOT + "/tasks", self.tasks),
            web.post(ROOT + "/advance", self.advance),
            web.post(ROOT + "/settings", self.settings),
            web.post(ROOT + "/faults", self.add_faults),
            web.delete(ROOT + "/faults", self.clear_faults),
        ]

    async def state(self, _: web.Request) -> web.Response:
        """Return the time, the settings without secrets, the account and the planned faults."""
        service = self.service
        service.settle()
        shown = {option.name: getattr(service.settings, option.name) for option in options() if option.repr}
        return self.responses.success(
            {
                "now": service.clock.now(),
                "settings": shown,
                "account": service.account.counts(),
                "faults": service.faults.planned(),
            }
        )

    async def tasks(self, _: web.Request) -> web.Response:
        """Return every task that has not expired, oldest first."""
        self.service.settle()
        return self.responses.success([self._task(task) for task in self.service.account.tasks.values()])

    def _task(self, task: Task) -> dict[str, Any]:
        return {"task_status": task.status_at(self.service.clock.now())} | asdict(task)

    async def advance(self, request: web.Request) -> web.Response:
        """Move the clock forward."""
        seconds = (await self._body(request)).get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise Refusal(1201, f"seconds must be a number, got {seconds!r}")
        try:
            self.service.advance(float(seconds))
        except (ValueError, OverflowError) as error:
            raise Refusal(1201, str(error)) from None
        await self.service.store.flush()
        return await self.state(request)

    async def settings(self, request: web.Request) -> web.Response:
        """Change settings that are not fixed. If one change is invalid, none is made."""
        body = await self._body(request)
        try:
            change(self.service.settings, body)
        except ValueError as error:
            raise Refusal(1201, str(error)) from None
        self.service.changes.notify()
        return await self.state(request)

    async def add_faults(self, request: web.Request) -> web.Response:
        """Plan faults of a route: a script, a probability, or a duration."""
        body = await self._body(request)
        try:
            self._add(body)
        except (ValueError, TypeError) as error:
            raise Refusal(1201, str(error.args[0] if error.args else error)) from None
        self.service.changes.notify()
        return await self.state(request)

    def _add(self, body: dict[str, Any]) -> None:
        faults = self.service.faults
        route, script = body.pop("route", None), body.pop("script", None)
        probability, duration = body.pop("probability", None), body.pop("duration", None)
        if script is not None:
            if body or probability is not None or duration is not None or not isinstance(script, list):
                raise ValueError("script must be a list, with route as the only other field")
            faults.script(route, *(parse_fault(step) for step in script))
        elif probability is not None and duration is not None:
            raise ValueError("give either probability or duration, got both")
        elif probability is not None:
            faults.chance(route, parse_fault(body), probability)
        elif duration is not None:
            faults.for_seconds(route, parse_fault(body), duration)
        else:
            faults.script(route, parse_fault(body))

    async def clear_faults(self, request: web.Request) -> web.Response:
        """Remove all planned faults."""
        self.service.faults.clear()
        self.service.changes.notify()
        return await self.state(request)

    async def _body(self, request: web.Request) -> dict[str, Any]:
        return parse_json(await Body(request, self.service.settings.max_body_bytes).read())
