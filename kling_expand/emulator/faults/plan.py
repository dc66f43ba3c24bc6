"""What goes wrong next? Faults by script or by chance, one list a route; carrying them out is `breaking`'s
business."""

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

from attrs import asdict, field, fields, frozen
from attrs.validators import ge, in_, instance_of, le

from kling_expand.emulator.http.codes import CODES

ROUTES = ("create", "query", "list", "file")
KINDS: Mapping[str, str] = {
    "ok": "nothing: a place in a script",
    "refused": "the connection is reset before the body is read",
    "reset": "the body is read, nothing is done, the connection is reset",
    "reset_after": "the call takes effect, then the connection is reset without an answer",
    "late": "the connection is reset at once, the call takes effect `seconds` later",
    "error": "refused with `code`, and `retry_after` if given",
    "error_after": "the call takes effect, but is answered with `code`",
    "html": "a page of HTML under 200, without effect",
    "html_after": "the call takes effect, but is answered with HTML under 200",
    "envelope_200": "refused with `code`, but under status 200",
    "empty": "an empty body under 200, without effect",
    "truncated_json": "the answer stops half way, with a Content-Length to match",
    "wrong_length": "the answer stops before its Content-Length is reached",
    "slow_headers": "the call takes effect, its answer comes `seconds` later",
    "slow_body": "the headers come at once, the body within `seconds`",
    "expired": "403, as for a result URL that is too old (file only)",
    "truncated_picture": "half of the picture as if it were the whole (file only)",
}
FILE_ONLY = frozenset({"expired", "truncated_picture"})


@frozen
class Fault:
    """One thing that goes wrong, `times` in a row; ValueError or TypeError for what makes no sense."""

    kind: str = field(validator=in_(KINDS))
    code: int = field(default=5000, validator=in_(CODES))
    message: str = field(default="", validator=instance_of(str))
    seconds: float = field(default=1.0, validator=[instance_of((int, float)), ge(0), le(86400)])
    retry_after: str | None = field(default=None, validator=instance_of((str, type(None))))
    times: int = field(default=1, validator=[instance_of(int), ge(1), le(10_000)])


class Faults:
    """For each route a script, played first and once, and chances, drawn for every call after it."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._scripts: dict[str, deque[Fault]] = {route: deque() for route in ROUTES}
        self._odds: dict[str, list[tuple[float, Fault]]] = {route: [] for route in ROUTES}

    def script(self, route: str, *faults: Fault | str) -> None:
        """Let the next calls of `route` ("create" "query" "list" "file") meet these faults, in this order."""
        steps = [_fit(route, fault) for fault in faults]
        self._scripts[route].extend(step for step in steps for _ in range(step.times))

    def chance(self, route: str, fault: Fault | str, probability: float) -> None:
        """Let every call of `route` meet `fault` with this probability, unless a script has its turn."""
        if not 0 <= probability <= 1:
            raise ValueError(f"{probability} is no probability")
        step = _fit(route, fault)
        self._odds[route].append((probability, step))

    def clear(self) -> None:
        """From now on nothing goes wrong."""
        for route in ROUTES:
            self._scripts[route].clear()
            self._odds[route].clear()

    def pick(self, route: str) -> Fault | None:
        """What happens to this call; None for nothing."""
        fault = self._next(route)
        return None if fault is None or fault.kind == "ok" else fault

    def _next(self, route: str) -> Fault | None:
        if self._scripts[route]:
            return self._scripts[route].popleft()
        for probability, fault in self._odds[route]:
            if self._chance.random() < probability:
                return fault
        return None

    def waiting(self) -> dict[str, Any]:
        """What is still to come, by route, as JSON."""
        return {
            route: {
                "script": [asdict(fault) for fault in self._scripts[route]],
                "chances": [{"probability": odds, **asdict(fault)} for odds, fault in self._odds[route]],
            }
            for route in ROUTES
        }


def _fit(route: str, fault: Fault | str) -> Fault:
    """A Fault for a route that exists and on which it makes sense; raises ValueError."""
    if route not in ROUTES:
        raise ValueError(f"no route is called {route!r}; known: {', '.join(ROUTES)}")
    step = Fault(fault) if isinstance(fault, str) else fault
    if step.kind in FILE_ONLY and route != "file":
        raise ValueError(f"{step.kind} happens to files only")
    return step


def parse(step: Any) -> Fault:
    """A fault from JSON: its kind, or an object of Fault's fields; raises ValueError."""
    if isinstance(step, str):
        return Fault(step)
    known = {option.name for option in fields(Fault)}
    if not isinstance(step, dict) or "kind" not in step or not set(step) <= known:
        raise ValueError(f"a fault is a kind, or an object of {', '.join(sorted(known))}")
    try:
        return Fault(**step)
    except TypeError as error:
        raise ValueError(str(error.args[0])) from None
