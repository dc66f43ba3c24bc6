"""How does it look on the wire? Bytes ↔ models for both dialects; no I/O.

Where the two documents and the service itself differ, everything seen is accepted: `data` as an
object or a one-element array, both spellings of success, an error code under HTTP 200.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from attrs import asdict, evolve

from kling_expand.errors import APIError, InvalidRequest, ProtocolError, ServerError, refusal
from kling_expand.geometry import Expansion, Ratios, Towards
from kling_expand.models import Dialect, ExpandRequest, Task, request_fields

T = TypeVar("T")

PATHS = {Dialect.EDITING: "/v1/images/editing/expand", Dialect.DIRECTION: "/v1/images/expand"}
PAGE_SIZE = 500  # the largest a list page may be (doc)
LAST_PAGE = 1000  # (doc)


class Response(NamedTuple):
    """What came back: HTTP status, headers (asked for by lower-case names), and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def server_time(self) -> float | None:
        """The service's clock in Unix seconds, if it told."""
        return http_date(self.headers.get("date"))

    @property
    def retry_after(self) -> float | None:
        """The seconds a ``Retry-After`` header asks for, given as a number or as a date."""
        word = self.headers.get("retry-after", "").strip()
        if word.isdecimal() and len(word) <= 9:  # more than 31 years is a mistake
            return float(word)
        deadline_at, now = http_date(word), self.server_time
        return None if deadline_at is None or now is None else max(0.0, deadline_at - now)


def http_date(word: str | None) -> float | None:
    """Return the Unix seconds of a date as HTTP writes it, or None for any other text."""
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
        raise InvalidRequest("id", repr(any_id), "must be the id of one task")
    return f"{PATHS[dialect]}/{quote(any_id, safe='')}"


def encode(request: ExpandRequest, expansion: Expansion, external_task_id: str) -> tuple[bytes, bytes]:
    """The body of a create, as what stands before the value of `image` and what after it."""
    body = _expansion_fields(expansion)
    for each in request_fields():
        named = each.name == "external_task_id"
        each.write(body, external_task_id if named else getattr(request, each.name))
    return b'{"image":"', b'",' + _dumps(body)[1:]


def _expansion_fields(expansion: Expansion) -> dict[str, Any]:
    if isinstance(expansion, Towards):
        return {"direction": expansion.direction, "expansion_ratio": expansion.ratio}
    return {f"{side}_expansion_ratio": getattr(expansion, side) for side in ("up", "down", "left", "right")}


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def fingerprint(request: ExpandRequest, expansion: Expansion, photo_digest: str) -> str:
    """A digest of what is asked for: the photo and every parameter that changes the result or its price."""
    usual = {each.name: each.default for each in request_fields() if not each.changes_result}
    silent = evolve(request, **usual)
    return sha256(photo_digest.join(map(bytes.decode, encode(silent, expansion, ""))).encode()).hexdigest()


def external_id(run: str, key: str, fingerprint: str, attempt: int = 1) -> str:
    """The `external_task_id` of a job: the same in every process that makes it from the same words.

    Each *attempt* after a failed task has an id of its own, as a failed task keeps its.
    """
    words = json.dumps([run, key, fingerprint, attempt]).encode()
    return f"kx-{sha256(words).hexdigest()[:32]}"


# ---------------------------------------------------------------------------- what comes in


def decode_task(answer: Response) -> Task:
    """The one task of a create or a query. Raises `APIError`."""
    return _decode(answer, _one_task)


def decode_tasks(answer: Response) -> tuple[Task, ...]:
    """The tasks of a list page, in the order they came. Raises `APIError`."""
    return _decode(answer, _many_tasks)


def decode_page(answer: Response, heard: Callable[[str], str | None]) -> tuple[dict[str, Task | None], int]:
    """Our tasks on a list page, and how many it holds in all. Raises `APIError`.

    *heard* gives the status of a task when last heard of, or None for one that is not ours. The others
    are not looked at, and one with no other status is not made a value: a page may hold 500 tasks.
    """
    return _decode(answer, lambda data: _shown_tasks(data, heard))


def parse_task(data: Any) -> Task:
    """A bare task object (as a list holds it, or a callback). Raises ValueError saying where it is wrong."""
    return _reader()(data)


@cache
def _reader() -> Callable[[Any], Task]:
    """Imported with the first answer, as it brings cattrs."""
    from .spelling import read_task

    return read_task


def parse_json(body: bytes) -> Any:
    """JSON from a stranger. Raises ValueError, whatever is wrong with it."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


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


def _shown_tasks(data: Any, heard: Callable[[str], str | None]) -> tuple[dict[str, Task | None], int]:
    items: Sequence[Any] = data if isinstance(data, list) else _many_tasks(data)
    shown: dict[str, Task | None] = {}
    for item in items:
        task_id = item.get("task_id") if isinstance(item, dict) else None
        if isinstance(task_id, str | int) and (status := heard(str(task_id))) is not None:
            shown[str(task_id)] = None if item.get("task_status") == status else parse_task(item)
    return shown, len(items)


def _decode(answer: Response, shape: Callable[[Any], T]) -> T:
    data, request_id = _open(answer)
    try:
        return shape(data)
    except ValueError as error:
        raise ProtocolError(
            f"the answer is not as documented: {error}", status=answer.status, request_id=request_id
        ) from None


def _open(answer: Response) -> tuple[Any, str | None]:
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


def _refused(answer: Response, code: Any, message: str, request_id: str | None) -> APIError:
    if not isinstance(code, int) or isinstance(code, bool) or code == 0:
        return _stranger(answer, request_id)
    return refusal(code, message, answer.status)(
        message or "the service gave no message",
        code=code,
        status=answer.status,
        request_id=request_id,
        retry_after=answer.retry_after,
    )


def _stranger(answer: Response, request_id: str | None = None) -> APIError:
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


def pack_request(request: ExpandRequest, expansion: Expansion) -> str:
    """What a request asks for, without its photo, as one line of JSON."""
    head, tail = encode(request, expansion, request.external_task_id or "")
    return (head + tail).decode()


def unpack_request(line: str, image: str, key: str) -> ExpandRequest:
    """The request that `pack_request` made a line of, for the photo at *image*."""
    body = json.loads(line)
    body["external_task_id"] = body["external_task_id"] or None
    values = {each.name: each.read(body) for each in request_fields()}
    return ExpandRequest(image, _read_expansion(body), **(values | {"key": key}))


def _read_expansion(body: dict[str, Any]) -> Expansion:
    if "direction" in body:
        return Towards(body["direction"], body["expansion_ratio"])
    return Ratios(*(body[f"{side}_expansion_ratio"] for side in ("up", "down", "left", "right")))


def unpack(line: str) -> Task:
    """The task that `pack` made a line of."""
    from .spelling import restore_task

    return restore_task(json.loads(line))
