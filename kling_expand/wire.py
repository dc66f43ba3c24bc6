"""How does it look on the wire? Bytes ↔ models for both dialects; no I/O.

Where the two documents and the service itself differ, everything seen is accepted: `data` as an
object or a one-element array, both spellings of success, an error code under HTTP 200.
"""

import json
from collections.abc import Callable, Container, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from hashlib import sha256
from sys import intern
from types import NoneType
from typing import Any, TypeVar, cast, get_args
from urllib.parse import quote

from attrs import asdict, define, evolve, frozen

from .errors import APIError, InvalidRequest, ProtocolError, ServerError, refusal
from .geometry import Ratios, Towards
from .models import BalanceDeduction, Dialect, ExpandRequest, Image, Task

T = TypeVar("T")

PATHS = {Dialect.EDITING: "/v1/images/editing/expand", Dialect.DIRECTION: "/v1/images/expand"}
PAGE_SIZE = 500  # the largest a list page may be (doc)
LAST_PAGE = 1000  # (doc)


@frozen
class Answer:
    """What came back: HTTP status, headers (asked for by lower-case names), and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def server_time(self) -> float | None:
        """The service's clock in Unix seconds, if it told."""
        return _http_date(self.headers.get("date"))

    @property
    def retry_after(self) -> float | None:
        """The seconds a ``Retry-After`` header asks for, given as a number or as a date."""
        word = self.headers.get("retry-after", "").strip()
        if word.isdecimal() and len(word) <= 9:  # more than 31 years is a mistake
            return float(word)
        until, now = _http_date(word), self.server_time
        return None if until is None or now is None else max(0.0, until - now)


def _http_date(word: str | None) -> float | None:
    try:
        date = parsedate_to_datetime(word or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None


# ---------------------------------------------------------------------------- what goes out


def create_path(dialect: Dialect) -> str:
    """Where tasks are created and listed."""
    return PATHS[dialect]


def task_path(dialect: Dialect, any_id: str) -> str:
    """Where one task is read, by `task_id` or `external_task_id`. Raises `InvalidRequest`."""
    if any_id in {"", ".", ".."} or not any_id.isprintable():  # the path would be another's
        raise InvalidRequest("id", repr(any_id), "the id of one task is needed")
    return f"{PATHS[dialect]}/{quote(any_id, safe='')}"


def encode(request: ExpandRequest, expansion: Ratios | Towards, external_task_id: str) -> tuple[bytes, bytes]:
    """The body of a create, as what stands before the value of `image` and what after it."""
    fields = _expansion_fields(expansion)
    optional = {
        "prompt": request.prompt,
        "n": request.n,
        "watermark_info": {"enabled": True} if request.watermark else None,
        "callback_url": request.callback_url,
        "external_task_id": external_task_id,
    }
    fields |= {name: value for name, value in optional.items() if value is not None}
    return b'{"image":"', b'",' + _dumps(fields)[1:]


def _expansion_fields(expansion: Ratios | Towards) -> dict[str, Any]:
    if isinstance(expansion, Towards):
        return {"direction": expansion.direction, "expansion_ratio": expansion.ratio}
    return {f"{side}_expansion_ratio": getattr(expansion, side) for side in ("up", "down", "left", "right")}


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def fingerprint(request: ExpandRequest, expansion: Ratios | Towards, photo_digest: str) -> str:
    """A digest of what is asked for: the photo and every parameter that changes the result or its price."""
    silent = evolve(request, callback_url=None)
    return sha256(photo_digest.join(map(bytes.decode, encode(silent, expansion, ""))).encode()).hexdigest()


def external_id(run: str, key: str, fingerprint: str, attempt: int = 1) -> str:
    """The `external_task_id` of a job: the same in every process that makes it from the same words.

    Each *attempt* after a failed task has an id of its own, as a failed task keeps its.
    """
    words = json.dumps([run, key, fingerprint, attempt]).encode()
    return f"kx-{sha256(words).hexdigest()[:32]}"


# ---------------------------------------------------------------------------- what comes in


@define(eq=False, repr=False)
class _Info:
    external_task_id: str | None = None


@define(eq=False, repr=False)
class _Images:
    images: list[Image] | None = None


@define(eq=False, repr=False)
class _Watermark:
    enabled: bool | None = None


@define(eq=False, repr=False)
class _TaskData:
    """A task as the service spells it."""

    task_id: str
    task_status: str
    task_status_msg: str | None = None
    task_info: _Info | None = None
    task_result: _Images | None = None
    watermark_info: _Watermark | None = None
    final_unit_deduction: str | None = None
    final_balance_deduction: BalanceDeduction | None = None
    created_at: int | None = None
    updated_at: int | None = None


def _text(value: Any, _kind: Any) -> str:
    """Ids and amounts may come as numbers; whatever else is no text must not be made into one."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"text expected, not {type(value).__name__}")


def _flag(value: Any, _kind: Any) -> bool:
    """By itself cattrs would take the word "false" for True."""
    return str(value).lower() in {"true", "1"}


def _optional(kind: Any, converter: Any) -> Callable[[Any, Any], Any]:
    """A hook for `X | None` that already knows the one for X; cattrs' own would look it up each time."""
    (inner,) = (each for each in get_args(kind) if each is not NoneType)
    structure = converter.get_structure_hook(inner)
    return lambda value, _kind: None if value is None else structure(value, inner)


@cache
def _converter(*, detailed: bool = False) -> Any:
    """Made when the first answer comes: importing cattrs costs a tenth of what aiohttp does."""
    import cattrs

    converter = cattrs.Converter(detailed_validation=detailed)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(bool, _flag)
    converter.register_structure_hook_factory(lambda kind: NoneType in get_args(kind), _optional)
    return converter


@cache
def _hook() -> Callable[[Any, Any], Any]:
    """How a task is read, found once: its code is generated when it is first asked for."""
    hook: Callable[[Any, Any], Any] = _converter().get_structure_hook(_TaskData)
    return hook


def decode_task(answer: Answer) -> Task:
    """The one task of a create or a query. Raises `APIError`."""
    return _decode(answer, _one_task)


def decode_tasks(answer: Answer) -> tuple[Task, ...]:
    """The tasks of a list page, in the order they came. Raises `APIError`."""
    return _decode(answer, _many_tasks)


def decode_page(answer: Answer, wanted: Container[str]) -> tuple[list[Task], int]:
    """The *wanted* tasks of a list page, and how many it holds in all. Raises `APIError`.

    The others are not looked at: a page may hold 500 tasks of which few are ours.
    """
    return _decode(answer, lambda data: _wanted_tasks(data, wanted))


def parse_task(data: Any) -> Task:
    """A bare task object (as a list holds it, or a callback). Raises ValueError saying where it is wrong."""
    raw = _structure(data)
    if not raw.task_id.strip() or not raw.task_id.isprintable():
        raise ValueError(f"{raw.task_id!a} is no id @ data.task_id")
    return Task(
        task_id=raw.task_id,
        task_status=intern(raw.task_status),  # few words for many tasks
        task_status_msg=raw.task_status_msg or None,
        external_task_id=(raw.task_info and raw.task_info.external_task_id) or None,
        images=tuple((raw.task_result and raw.task_result.images) or ()),
        final_unit_deduction=raw.final_unit_deduction or None,
        final_balance_deduction=raw.final_balance_deduction,
        watermark=raw.watermark_info.enabled if raw.watermark_info else None,
        created_at=raw.created_at,
        updated_at=raw.updated_at,
    )


def parse_json(body: bytes) -> Any:
    """JSON from a stranger. Raises ValueError, whatever is wrong with it."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _structure(data: Any) -> _TaskData:
    try:
        return cast(_TaskData, _hook()(data, _TaskData))
    except Exception:  # noqa: BLE001 - generated code raises whatever the wrong type makes it raise
        return _explain(data)


def _explain(data: Any) -> _TaskData:
    """Read it once more, by the slower code that knows where it is."""
    import cattrs

    try:
        return cast(_TaskData, _converter(detailed=True).structure(data, _TaskData))
    except Exception as error:  # noqa: BLE001 - the same
        raise ValueError("; ".join(cattrs.transform_error(error, path="data"))) from None


def _one_task(data: Any) -> Task:
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    return parse_task(data)


def _many_tasks(data: Any) -> tuple[Task, ...]:
    if data is None:
        return ()
    if not isinstance(data, list):
        raise ValueError(f"data should be an array, not {type(data).__name__}")  # noqa: TRY004 - a bad value
    return tuple(map(parse_task, data))


def _wanted_tasks(data: Any, wanted: Container[str]) -> tuple[list[Task], int]:
    items = data if isinstance(data, list) else _many_tasks(data)
    named = [item for item in items if isinstance(item, dict) and isinstance(item.get("task_id"), str | int)]
    return [parse_task(item) for item in named if str(item["task_id"]) in wanted], len(items)


def _decode(answer: Answer, shape: Callable[[Any], T]) -> T:
    data, request_id = _open(answer)
    try:
        return shape(data)
    except ValueError as error:
        raise ProtocolError(
            f"the answer is not as documented: {error}", status=answer.status, request_id=request_id
        ) from None


def _open(answer: Answer) -> tuple[Any, str | None]:
    """The envelope's `data` and `request_id`, or the refusal it holds."""
    try:
        envelope = parse_json(answer.body)
    except ValueError:
        envelope = None
    if not isinstance(envelope, dict):
        raise _stranger(answer)
    code, request_id = envelope.get("code"), envelope.get("request_id")
    request_id = request_id if isinstance(request_id, str) else None
    if code == 0 and not isinstance(code, bool) and answer.status < 400 and "data" in envelope:
        return envelope["data"], request_id
    raise _refused(answer, code, str(envelope.get("message") or ""), request_id)


def _refused(answer: Answer, code: Any, message: str, request_id: str | None) -> APIError:
    if not isinstance(code, int) or isinstance(code, bool) or code == 0:
        return _stranger(answer, request_id)
    return refusal(code, message, answer.status)(
        message or "the service gave no message",
        code=code,
        status=answer.status,
        request_id=request_id,
        retry_after=answer.retry_after,
    )


def _stranger(answer: Answer, request_id: str | None = None) -> APIError:
    """An answer without a usable envelope: a proxy's page, half a body, nothing at all."""
    kind: type[APIError] = ServerError if answer.status >= 500 else ProtocolError
    if answer.status in (401, 403, 429):  # said by something in front of the service
        kind = refusal(-1, "", answer.status)
    shown = answer.body[:80].decode(errors="replace").strip() or "an empty body"
    return kind(
        f"not the documented envelope: {shown!r}",
        status=answer.status,
        request_id=request_id,
        retry_after=answer.retry_after,
    )


# ---------------------------------------------------------------------------- for the journal


def pack(task: Task) -> str:
    """A task as one line of JSON, for keeping."""
    return json.dumps(asdict(task), separators=(",", ":"))


def pack_request(request: ExpandRequest, expansion: Ratios | Towards) -> str:
    """What a request asks for, without its photo, as one line of JSON."""
    head, tail = encode(request, expansion, request.external_task_id or "")
    return (head + tail).decode()


def unpack_request(line: str, image: str, key: str) -> ExpandRequest:
    """The request that `pack_request` made a line of, for the photo at *image*."""
    fields = json.loads(line)
    expansion: Ratios | Towards
    if "direction" in fields:
        expansion = Towards(fields["direction"], fields["expansion_ratio"])
    else:
        expansion = Ratios(*(fields[f"{side}_expansion_ratio"] for side in ("up", "down", "left", "right")))
    return ExpandRequest(
        image,
        expansion,
        fields.get("prompt"),
        n=fields["n"],
        watermark="watermark_info" in fields,
        callback_url=fields.get("callback_url"),
        external_task_id=fields["external_task_id"] or None,
        key=key,
    )


def unpack(line: str) -> Task:
    """The task that `pack` made a line of."""
    return cast(Task, _converter().structure(json.loads(line), Task))
