"""Conversion between bytes and models, for both dialects and without I/O.

The service differs from the documents of the two dialects. So every observed form is accepted: `data` as an
object or a one-element array, ``succeed`` or ``succeeded``, and an error code with HTTP 200 or as text. Only
a task's `task_id` and `task_status` and a picture's `url` are required. Any other field of an unexpected type
is treated as absent, so that a paid task is not lost because of it.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote
from uuid import uuid4

from attrs import asdict, evolve, fields

from kling_expand.errors import APIError, ProtocolError, TaskNotFound, refusal
from kling_expand.geometry import Expansion, Ratios, Towards
from kling_expand.models import (
    MAX_IMAGES,
    PAGE_SIZE,
    STATUS_WORDS,
    BalanceDeduction,
    Dialect,
    ExpandRequest,
    Image,
    Task,
    check,
    request_fields,
)

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")

PATHS = {Dialect.EDITING: "/v1/images/editing/expand", Dialect.DIRECTION: "/v1/images/expand"}

LONG_RESPONSE = 256 << 10  # bytes; a longer response is parsed in a thread
MAX_VALUES = 50_000  # in one response; a full list page of nine-picture tasks has about 25,000

MAX_ESCAPES = 1_000_000  # in one response
MAX_DIGITS = 4300  # of a number; Python sets the same limit for an int
_ID_PREFIX = "kx-"  # prefix of each generated id
MAX_NUMBER = 1 << 63  # for a time in milliseconds or an index; larger values break arithmetic and file names
MAX_MESSAGE = 1000  # characters in the message of a refusal or of a failed task
MAX_ID = 500  # characters in an id; real ids have at most 36

_logger = logging.getLogger(__name__)


class Response(NamedTuple):
    """An HTTP response: status, headers (with lower-case names), the whole body, and the time of arrival.

    `received_at` is the time of arrival in Unix seconds by the local clock. It is used if there is no `Date`
    header.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    received_at: float | None = None

    @property
    def server_time(self) -> float | None:
        """The service's time in Unix seconds, or None without a valid `Date` header."""
        return http_date(self.headers.get("date"))

    @property
    def retry_after(self) -> float | None:
        """The wait in seconds that a ``Retry-After`` header requests, or None if there is no valid one."""
        text = self.headers.get("retry-after", "").strip()
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", text):  # more than 31 years is a mistake
            return float(text)
        retry_at, now = http_date(text), self.server_time
        now = self.received_at if now is None else now
        return None if retry_at is None or now is None else max(0.0, retry_at - now)


def http_date(text: str | None) -> float | None:
    """Return an HTTP date in Unix seconds, or None if *text* is not one."""
    try:
        date = parsedate_to_datetime(text or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None


# ---------------------------------------------------------------------------- requests


def create_path(dialect: Dialect) -> str:
    """Return the path for creating and listing tasks."""
    return PATHS[dialect]


def task_path(dialect: Dialect, any_id: str) -> str:
    """Return the path for reading one task by its `task_id` or `external_task_id`.

    Raises:
        InvalidRequest: if *any_id* is not a valid id. Its path could lead to another resource.
    """
    if not (isinstance(any_id, str) and any_id.isdecimal() and any_id.isascii()):
        check(any_id=any_id)
        any_id = quote(any_id, safe="")
    return f"{PATHS[dialect]}/{any_id}"


def encode(request: ExpandRequest, expansion: Expansion, external_task_id: str) -> tuple[bytes, bytes]:
    """Return the body of a create in two parts: before and after the value of `image`."""
    body = _encode_expansion(expansion)
    for each in request_fields():
        named = each.name == "external_task_id"
        each.write(body, external_task_id if named else getattr(request, each.name))
    return b'{"image":"', b'",' + _dumps(body)[1:]


def _encode_expansion(expansion: Expansion) -> dict[str, Any]:
    if isinstance(expansion, Towards):
        return {"direction": expansion.direction, "expansion_ratio": expansion.ratio}
    return {f"{side}_expansion_ratio": getattr(expansion, side) for side in ("up", "down", "left", "right")}


def _decode_expansion(body: dict[str, Any]) -> Expansion:
    if "direction" in body:
        return Towards(body["direction"], body["expansion_ratio"])
    return Ratios(*(body[f"{side}_expansion_ratio"] for side in ("up", "down", "left", "right")))


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def fingerprint(request: ExpandRequest, expansion: Expansion, photo_digest: str) -> str:
    """Return a digest of the photo and of all parameters that affect the result or its price."""
    defaults = {each.name: each.default for each in request_fields() if not each.changes_result}
    head, tail = encode(evolve(request, **defaults), expansion, "")
    return sha256(photo_digest.join((head.decode(), tail.decode())).encode()).hexdigest()


def external_id(run: str, key: str, fingerprint: str, attempt: int = 1) -> str:
    """Return the `external_task_id` of a job, which is the same in every process.

    A failed task keeps its id, so each later *attempt* needs a new one.
    """
    content = json.dumps([run, key, fingerprint, attempt]).encode()
    return f"{_ID_PREFIX}{sha256(content).hexdigest()[:32]}"


def random_id() -> str:
    """Return a new random id, for a job that has no id of its own or before its id is known."""
    return f"{_ID_PREFIX}{uuid4().hex}"


def is_derived_id(external_task_id: str | None) -> bool:
    """Return whether an id has the prefix of the ids that this module generates."""
    return external_task_id is not None and external_task_id.startswith(_ID_PREFIX)


# ---------------------------------------------------------------------------- responses


def decode_task(response: Response) -> Task:
    """Return the task in the response to a create or to the read of one task.

    Raises:
        APIError: if the response is a refusal, or is not as documented.
    """
    return _decode(response, _one_task)


def decode_lookup(response: Response) -> Task | None:
    """Return the task in the response to a lookup, or None if no task has the id.

    Raises:
        APIError: if the response is another refusal, or is not as documented.
    """
    try:
        return decode_task(response)
    except TaskNotFound:
        return None


def decode_tasks(response: Response) -> tuple[Task, ...]:
    """Return the tasks of a list page, in the order of the page.

    Raises:
        APIError: if the response is a refusal, or is not as documented.
    """
    return _decode(response, _many_tasks)


def decode_page(
    response: Response, known_status: Callable[[str], str | None]
) -> tuple[dict[str, Task | None], int]:
    """Return the client's own tasks on a list page, by id, and the number of all tasks on the page.

    *known_status* returns the last known status of one of the client's own tasks, or None for any other task.
    A page may hold 500 tasks, so other tasks are skipped without being decoded. The value for one of the
    client's own tasks is None if its status has not changed.

    Raises:
        APIError: if the response is a refusal, or is not as documented.
    """
    return _decode(response, lambda data: _changed_tasks(data, known_status))


def parse_json(body: bytes) -> Any:
    """Return *body* decoded as JSON.

    A long body is decoded with a Python call for each object, so that other threads can run in the meantime.

    Raises:
        ValueError: if *body* is not JSON in UTF-8, is nested too deeply, or exceeds `MAX_VALUES`,
            `MAX_ESCAPES` or `MAX_DIGITS`.
    """
    # The decoder in C blocks all other threads, so a body that would take it long is refused first.
    if body.count(b",") > MAX_VALUES or body.count(b"\\") > MAX_ESCAPES:
        raise ValueError(f"it holds more than {MAX_VALUES} values or {MAX_ESCAPES} escapes")
    hooks: dict[str, Any] = {}
    if len(body) > LONG_RESPONSE:
        hooks = {"object_hook": _unchanged, "parse_float": _float}
    try:
        # Decode the bytes here, because `json` would call an error handler for each byte that is not UTF-8.
        return json.loads(body.decode().removeprefix("\ufeff"), **hooks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unchanged(found: dict[str, Any]) -> dict[str, Any]:
    return found


def _float(text: str) -> float:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return float(text)


def _one_task(data: Any) -> Task:
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    return parse_task(data)


def _many_tasks(data: Any) -> tuple[Task, ...]:
    return tuple(_readable_tasks(_items(data)))


def _items(data: Any) -> Sequence[Any]:
    """Return the undecoded tasks of a page, up to the documented maximum."""
    if data is not None and not isinstance(data, list):
        raise ValueError(f"data must be an array, got {type(data).__name__}")
    return data[:PAGE_SIZE] if data else ()


def _readable_tasks(items: Sequence[Any]) -> Iterator[Task]:
    """Yield the tasks of a page, except those that cannot be decoded."""
    for item in items:
        try:
            yield parse_task(item)
        except ValueError as error:
            _logger.debug("a task on a list page is skipped: %s", error)


def _changed_tasks(
    data: Any, known_status: Callable[[str], str | None]
) -> tuple[dict[str, Task | None], int]:
    items = _items(data)
    found: dict[str, Task | None] = {}
    changed = []
    for item in items:
        task_id = item.get("task_id", item.get("id")) if isinstance(item, dict) else None
        if isinstance(task_id, str | int) and (status := known_status(str(task_id))) is not None:
            if item.get("task_status", item.get("status")) == status:
                found[str(task_id)] = None
            else:
                changed.append(item)
    return found | {task.task_id: task for task in _readable_tasks(changed)}, len(items)


def _decode(response: Response, read: Callable[[Any], T]) -> T:
    data, request_id = _open(response)
    try:
        return read(data)
    except ValueError as error:
        raise ProtocolError(
            f"the response is not as documented: {error}", status=response.status, request_id=request_id
        ) from None


def _open(response: Response) -> tuple[Any, str | None]:
    """Return the envelope's `data` and `request_id`, or raise the refusal that it contains."""
    try:
        envelope = parse_json(response.body)
    except ValueError:
        envelope = None
    if not isinstance(envelope, dict):
        raise _refused(response)
    code, request_id = _code(envelope.get("code")), envelope.get("request_id")
    request_id = request_id[:MAX_ID] if isinstance(request_id, str) else None
    if code == 0 and response.status < 400 and "data" in envelope:
        return envelope["data"], request_id
    message = str(envelope.get("message") or "the service gave no message")[:MAX_MESSAGE] if code else None
    raise _refused(response, code or None, message, request_id)


def _code(value: Any) -> int | None:
    """Return a `code` as a number, even if it came as text, or None if it is not a number."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _refused(
    response: Response, code: int | None = None, message: str | None = None, request_id: str | None = None
) -> APIError:
    """Return the error for a refusal, or (without *message*) for a response without an envelope."""
    if message is None:
        shown = response.body[:80].decode(errors="replace").strip() or "an empty body"
        message = f"the response is not the documented envelope: {shown!r}"
    return refusal(code, message, response.status)(
        message, code=code, status=response.status, request_id=request_id, retry_after=response.retry_after
    )


# ---------------------------------------------------------------------------- tasks


# The documented fields of a task and of its parts.
_OUTER = frozenset({each.name for each in fields(Task)} - {"external_task_id", "images", "watermark", "raw"})
_OUTER |= {"task_info", "task_result", "watermark_info"}
_INFO, _RESULT, _WATERMARK = frozenset({"external_task_id"}), frozenset({"images"}), frozenset({"enabled"})
_BALANCE = frozenset(each.name for each in fields(BalanceDeduction))
_IMAGE = frozenset(each.name for each in fields(Image))
_ABSENT: dict[str, Any] = {}
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
# Tasks with the same status share one string. `sys.intern` might never free text that the service sends.
_WORDS = {word: word for word in STATUS_WORDS}


def parse_task(data: Any) -> Task:
    """Return the task in a bare task object, as found in lists and callbacks.

    Raises:
        ValueError: if `task_id` or `task_status` is missing or unusable.
    """
    if not isinstance(data, dict):
        raise ValueError(f"a task must be an object, got {type(data).__name__}")  # noqa: TRY004 - a bad value
    if "task_id" in data or "id" not in data:
        return _read_task(data)
    from . import outputs  # imported here, because documented responses do not need it

    task = _read_task(outputs.older_form(data))
    return task if outputs.is_known(data) else evolve(task, raw=data)


def _read_task(data: dict[str, Any]) -> Task:
    """Return the task in an object of the older form."""
    task_id, status = _text(data, "task_id"), _text(data, "task_status")
    if task_id is None or status is None:
        raise ValueError(f"{'task_id' if task_id is None else 'task_status'} must be text")
    if not task_id.strip() or not task_id.isprintable() or len(task_id) > MAX_ID:
        limit = f"printable text of at most {MAX_ID} characters"
        raise ValueError(f"task_id must be {limit}, got {task_id!a:.80}")
    info, result = _part(data, "task_info"), _part(data, "task_result")
    watermark, balance = _part(data, "watermark_info"), _part(data, "final_balance_deduction")
    images = result.get("images") or ()
    if type(images) is not list and images != ():
        _ignore("images", images)
        images = ()
    elif len(images) > MAX_IMAGES:  # more than a create can ask for
        images = images[:MAX_IMAGES]
        data = data | {"task_result": {"images": images}}
    known = (
        _OUTER.issuperset(data)
        and (not info or _INFO.issuperset(info))
        and (not result or _RESULT.issuperset(result))
        and (not watermark or _WATERMARK.issuperset(watermark))
        and (not balance or _BALANCE.issuperset(balance))
        and _are_known(images)
    )
    external_task_id = _text(info, "external_task_id")
    return Task(  # positional, in the order of the fields, as keyword arguments take 50 % longer
        task_id,
        _WORDS.get(status, status),
        (_text(data, "task_status_msg") or "")[:MAX_MESSAGE] or None,
        external_task_id if external_task_id and external_task_id.isprintable() else None,
        _read_images(images),
        _text(data, "final_unit_deduction") or None,
        None if balance is _ABSENT else _read_balance(balance),
        _flag(watermark, "enabled"),
        _number(data, "created_at"),
        _number(data, "updated_at"),
        None if known else data,
    )


def _read_balance(data: dict[str, Any]) -> BalanceDeduction:
    return BalanceDeduction(_text(data, "quota"), _text(data, "list_price"))


def _are_known(images: Sequence[Any]) -> bool:
    """Return whether every field of these pictures is known."""
    for image in images:  # noqa: SIM110 - a generator takes twice as long
        if type(image) is dict and not _IMAGE.issuperset(image):
            return False
    return True


def _read_images(images: Sequence[Any]) -> tuple[Image, ...]:
    """Return the pictures that have a URL. A missing index is replaced by the picture's position."""
    found = []
    for position, image in enumerate(images):
        if type(image) is dict and (url := _text(image, "url")):
            index = _number(image, "index")
            found.append(Image(position if index is None else index, url, _text(image, "watermark_url")))
        else:
            _logger.debug("picture %d is ignored, as it has no url", position)
    return tuple(found)


def _part(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a nested object of a task, or `_ABSENT`."""
    value = data.get(name)
    if type(value) is dict:
        return value
    if value is not None:
        _ignore(name, value)
    return _ABSENT


def _text(data: dict[str, Any], name: str) -> str | None:
    """Return a field as text, or None. An id or an amount may come as a number, which is converted."""
    value = data.get(name)
    if value is None or type(value) is str:
        return value
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    _ignore(name, value)
    return None


def _number(data: dict[str, Any], name: str) -> int | None:
    """Return a field as a whole number, or None. The number may come as text, which is converted."""
    value = data.get(name)
    if value is None or (type(value) is int and -MAX_NUMBER < value < MAX_NUMBER):
        return value
    try:
        if not isinstance(value, bool) and -MAX_NUMBER < (number := int(value)) < MAX_NUMBER:
            return number
    except (ValueError, OverflowError, TypeError):
        pass
    _ignore(name, value)
    return None


def _flag(data: dict[str, Any], name: str) -> bool | None:
    """Return a field as a bool, or None. The flag may come as text or as 0 or 1."""
    value = data.get(name)
    if value is None or type(value) is bool:
        return value
    found = _FLAGS.get(str(value).lower())
    if found is None:
        _ignore(name, value)
    return found


def _ignore(name: str, value: object) -> None:
    """Log that a field of the wrong type is treated as absent."""
    _logger.debug("%s is ignored, as it is of type %s", name, type(value).__name__)


# ---------------------------------------------------------------------------- lines of a job store


def pack(task: Task) -> str:
    """Return a task as one line of JSON, for a job store."""
    known = asdict(task, filter=lambda attribute, _: attribute.name != "raw")
    try:
        return json.dumps(known | ({"raw": task.raw} if task.raw else {}), separators=(",", ":"))
    except RecursionError:  # the unknown fields in `raw` are nested too deeply
        return json.dumps(known, separators=(",", ":"))


def unpack(line: str) -> Task:
    """Return the task in a line written by `pack`."""
    return _converter().structure(json.loads(line), Task)


@cache
def _converter() -> "Converter":
    """Return the converter for lines, which is created on first use."""
    from cattrs import Converter  # imported here, because the import is slow and often not needed

    return Converter(detailed_validation=False)


def pack_request(request: ExpandRequest, expansion: Expansion, note: Mapping[str, Any] | None = None) -> str:
    """Return a request as a line of JSON, without its photo and key, and a *note* as a second line."""
    head, tail = encode(request, expansion, request.external_task_id or "")
    line = (head + tail).decode()
    return f"{line}\n{json.dumps(note)}" if note else line


def unpack_note(packed: str) -> dict[str, Any]:
    """Return the note in a string written by `pack_request`, or an empty dictionary."""
    found: dict[str, Any] = json.loads(packed.partition("\n")[2] or "{}")
    return found


def unpack_request(packed: str, image: str, key: str | None) -> ExpandRequest:
    """Return the request in a string written by `pack_request`, with the photo at *image* and the *key*."""
    body = json.loads(packed.partition("\n")[0])
    body["external_task_id"] = body["external_task_id"] or None
    values = {each.name: each.read(body) for each in request_fields()}
    return ExpandRequest(image, _decode_expansion(body), **(values | {"key": key}))
