"""Faults, and the plan that assigns them to calls. `inject` applies them."""

import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from attrs import Attribute, asdict, field, fields, frozen
from attrs.validators import ge, in_, instance_of, le

from kling_expand.emulator.http.codes import CODES

ROUTES = ("create", "query", "list", "file")
KINDS: Mapping[str, str] = {
    "ok": "no fault: a placeholder in a script",
    "refused": "the connection is reset before the body is read",
    "reset": "the body is read, then the connection is reset; the call has no effect",
    "reset_after": "the call takes effect, then the connection is reset without a response",
    "late": "the connection is reset at once, and the call takes effect some seconds later",
    "error": "an error response, with Retry-After if given",
    "error_after": "the call takes effect, but the response is an error with an error code",
    "html": "an HTML page with status 200; the call has no effect",
    "html_after": "the call takes effect, but the response is an HTML page with status 200",
    "envelope_200": "an error response, but with status 200",
    "empty": "an empty body with status 200; the call has no effect",
    "truncated_json": "the response ends halfway, with a matching Content-Length",
    "wrong_length": "the response ends before its Content-Length is reached",
    "odd_types": "the response has unexpected types in informational fields, such as times in words",
    "slow_headers": "the call takes effect, and the response arrives some seconds later",
    "slow_body": "the headers arrive at once, and the body within some seconds",
    "expired": "status 403, as for the URL of an expired picture (downloads only)",
    "truncated_picture": "half of the picture, as if it were complete (downloads only)",
}
FILE_KINDS = frozenset({"expired", "truncated_picture"})
CODE_KINDS = frozenset({"error", "error_after", "envelope_200"})
_FIELDS: Mapping[str, frozenset[str]] = {
    "code": CODE_KINDS,
    "seconds": frozenset({"late", "slow_headers", "slow_body"}),
    "retry_after": frozenset({"error", "error_after"}),
}


def _check_kind(kind: object) -> None:
    if kind not in KINDS:
        code = "; for an error code use Fault('error', code=1301)" if str(kind).isdigit() else ""
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}{code}")


def _check_header(_fault: object, attribute: "Attribute[Any]", text: str | None) -> None:
    if text is not None and not text.isprintable():
        raise ValueError(f"{attribute.name} must be text without control characters, got {text!r}")


@frozen
class Fault:
    """A fault of one `kind` (see `KINDS`). A script applies it to `times` calls in a row.

    Errors have a `code` and a `message` of the service, and `retry_after` is the text of the header
    ``Retry-After``. A fault that takes time lasts `seconds`.

    Raises:
        ValueError: if a value is out of range.
        TypeError: if a value has the wrong type.
    """

    kind: str = field(validator=lambda _fault, _field, kind: _check_kind(kind))
    code: int = field(default=5000, validator=in_(CODES))
    message: str = field(default="", validator=instance_of(str))
    seconds: float = field(default=1.0, validator=[instance_of((int, float)), ge(0), le(86400)])
    retry_after: str | None = field(default=None, validator=[instance_of((str, type(None))), _check_header])
    times: int = field(default=1, validator=[instance_of(int), ge(1), le(10_000)])


class FaultPlan:
    """The planned faults of each route: a script first, then timed faults, then probabilities."""

    def __init__(self, rng: random.Random, now: Callable[[], float]) -> None:
        self._rng = rng
        self._now = now
        self._scripts: dict[str, deque[Fault]] = {route: deque() for route in ROUTES}
        self._timed: dict[str, list[tuple[float, Fault]]] = {route: [] for route in ROUTES}
        self._chances: dict[str, list[tuple[float, Fault]]] = {route: [] for route in ROUTES}

    def script(self, route: str, *faults: Fault | str) -> None:
        """Apply these faults to the next calls of *route* (create, query, list, file), in this order.

        Raises:
            ValueError: if the route is unknown, or a fault does not fit it.
        """
        steps = [_checked(route, fault) for fault in faults]
        self._scripts[route].extend(step for step in steps for _ in range(step.times))

    def for_seconds(self, route: str, fault: Fault | str, duration: float) -> None:
        """Apply *fault* to every call of *route* for *duration* seconds of the emulator's clock.

        Raises:
            ValueError: if the route is unknown, the fault does not fit it, or *duration* is negative.
        """
        if not 0 <= duration < float("inf"):
            raise ValueError(f"duration must be a finite number of at least 0, got {duration!r}")
        step = _checked(route, fault)
        self._timed[route].append((self._now() + duration, step))

    def chance(self, route: str, fault: Fault | str, probability: float) -> None:
        """Apply *fault* to each call of *route* with this probability.

        Raises:
            ValueError: if the route is unknown, the fault does not fit it, or *probability* is out of range.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be between 0 and 1, got {probability!r}")
        step = _checked(route, fault)
        self._chances[route].append((probability, step))

    def clear(self) -> None:
        """Remove all planned faults."""
        for route in ROUTES:
            self._scripts[route].clear()
            self._timed[route].clear()
            self._chances[route].clear()

    def pick(self, route: str) -> Fault | None:
        """Return the fault of the next call of *route*, or None."""
        fault = self._next(route)
        return None if fault is None or fault.kind == "ok" else fault

    def _next(self, route: str) -> Fault | None:
        if self._scripts[route]:
            return self._scripts[route].popleft()
        self._drop_past(route)
        for _, fault in self._timed[route]:
            return fault
        for probability, fault in self._chances[route]:
            if self._rng.random() < probability:
                return fault
        return None

    def _drop_past(self, route: str) -> None:
        now = self._now()
        self._timed[route] = [(ends_at, fault) for ends_at, fault in self._timed[route] if now < ends_at]

    def planned(self) -> dict[str, Any]:
        """Return the planned faults by route, as JSON."""
        now = self._now()
        for route in ROUTES:
            self._drop_past(route)
        return {
            route: {
                "script": [asdict(fault) for fault in self._scripts[route]],
                "timed": [
                    {"seconds_left": ends_at - now, **asdict(fault)} for ends_at, fault in self._timed[route]
                ],
                "chances": [
                    {"probability": probability, **asdict(fault)}
                    for probability, fault in self._chances[route]
                ],
            }
            for route in ROUTES
        }


def _checked(route: str, fault: Fault | str) -> Fault:
    if route not in ROUTES:
        raise ValueError(f"route must be one of {', '.join(ROUTES)}, got {route!r}")
    step = Fault(fault) if isinstance(fault, str) else fault
    if step.kind in FILE_KINDS and route != "file":
        raise ValueError(f"{step.kind} is only for downloads (route file), got route {route}")
    return step


def parse_fault(step: Any) -> Fault:
    """Return a fault from JSON: its kind, or an object with the fields of `Fault`.

    Raises:
        ValueError: if it is neither, or a field is not valid.
    """
    if isinstance(step, str):
        return Fault(step)
    names = {option.name for option in fields(Fault)}
    if not isinstance(step, dict) or "kind" not in step or not set(step) <= names:
        raise ValueError(
            f"a fault must be a kind, or an object with kind and some of {', '.join(sorted(names))}"
        )
    try:
        return Fault(**step)
    except TypeError as error:
        raise ValueError(str(error.args[0])) from None


def describe_kinds() -> list[dict[str, Any]]:
    """Return every kind with its help text, routes and fields, as JSON."""
    defaults = {option.name: option.default for option in fields(Fault)}
    return [
        {
            "kind": kind,
            "help": text,
            "routes": ["file"] if kind in FILE_KINDS else ROUTES,
            "fields": [
                {"name": name, "default": defaults[name]} for name, kinds in _FIELDS.items() if kind in kinds
            ],
        }
        for kind, text in KINDS.items()
    ]
