"""Callbacks: the headers and the body of a call to `callback_url`, checked and read as a `WebhookEvent`.

The service posts to `callback_url` on every change of a task's status. With a Webhook Secret set in its
console the calls are signed by the Standard Webhooks specification; without one they are not.
`Webhooks.parse` treats a call like this:

===================  ================================  ==============================
call                 reader with secrets               reader without secrets
===================  ================================  ==============================
signed with a known  verified: its snapshot is         unverified: it triggers a poll
secret               delivered
signed otherwise     `WebhookError`                    unverified: it triggers a poll
unsigned             `WebhookError`                    unverified: it triggers a poll
unreadable           `WebhookError`                    `WebhookError`
===================  ================================  ==============================

So an unsigned call never delivers a result. At most it makes the client read the task from the service.
Where the console has a secret the client must have it as well, or forged calls would cost reads. After the
last secret is deleted in the console its calls are unsigned (documented): remove the secret here, too. Until
then the calls are refused, and polling finds the results.

A body may have the older shape (``task_id``, ``task_status``, ``task_result``), the newer one (``id``,
``status``, ``outputs``, ``billing``), or either of them in the envelope that answers have.
"""

import hmac
import re
import time
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from attrs import frozen

from .api import codec
from .errors import ConfigurationError, WebhookError
from .models import Status, Task

MAX_BODY = 1 << 20  # bytes; a task with nine pictures and all its fields is under 20 KB
MAX_ID = 256  # characters of a `webhook-id`; it bounds what remembering one costs
TOLERANCE = 300.0  # seconds a timestamp may be off, either way (Standard Webhooks)

_PREFIX = "whsec_"
_ID, _TIMESTAMP, _SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
_AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")


@frozen
class WebhookEvent:
    """One callback.

    `verified` is true where the call was signed with a known secret. `webhook_id` is the signed id, or
    None where no signature covers it. `repeated` marks a verified id that was parsed before: the sender
    repeats itself, or a third party replays the call. A snapshot may be delivered again without harm.
    """

    task: Task
    verified: bool
    webhook_id: str | None = None
    repeated: bool = False

    @property
    def needs_poll(self) -> bool:
        """Whether the task must be read from the service, because this call proves too little.

        That is every unverified call, and a success without its images.
        """
        return not self.verified or (self.task.status is Status.SUCCEED and not self.task.images)


class Webhooks:
    """A reader of callbacks, which verifies them if it has secrets.

    Each of *secrets* is a ``whsec_…`` of the console. With several, each of them may have signed, so a
    secret can be replaced without losing a call. *tolerance* is how many seconds a call's timestamp may
    differ from *clock* (Unix seconds). The newest *remember* verified ids are kept to mark repeated calls;
    of other calls nothing is kept.

    Raises:
        ConfigurationError: a secret is not Base64 after ``whsec_``, or a number is out of range.
    """

    def __init__(
        self,
        *secrets: str,
        tolerance: float = TOLERANCE,
        clock: Callable[[], float] = time.time,
        remember: int = 10_000,
    ) -> None:
        if not tolerance > 0:
            raise ConfigurationError(f"tolerance must be above zero seconds, got {tolerance}")
        if remember < 0:
            raise ConfigurationError(f"remember must be zero or more, got {remember}")
        self._keys = tuple(map(_hmac_key, secrets))
        self._tolerance = tolerance
        self._clock = clock
        self._remember = remember
        self._seen: OrderedDict[str, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self._keys)} secrets>"

    def parse(self, headers: Mapping[str, str], body: bytes) -> WebhookEvent:
        """Return the event of a call with these *headers* (names in any case) and this raw *body*.

        A server should stop reading a body after `MAX_BODY` bytes.

        Raises:
            WebhookError: the call cannot be trusted or read. No other exception is raised.
        """
        raw = _raw_bytes(body)
        if not self._keys:
            return WebhookEvent(_read_task(raw), verified=False)
        webhook_id = self._verified_id(headers, raw)
        task = _read_task(raw)  # first, because the id of an unreadable call is not remembered
        repeated = self._is_repeated(webhook_id)
        return WebhookEvent(task, verified=True, webhook_id=webhook_id, repeated=repeated)

    def _verified_id(self, headers: Mapping[str, str], body: bytes) -> str:
        """Return the id of the call if a signature covers it, the timestamp and the body."""
        webhook_id, timestamp, signatures = _signature_headers(headers)
        if not abs(self._clock() - _unix_seconds(timestamp)) <= self._tolerance:
            raise WebhookError(f"{_TIMESTAMP} must be within {self._tolerance:g} s of now")
        if not (webhook_id.isascii() and webhook_id.isprintable() and len(webhook_id) <= MAX_ID):
            raise WebhookError(f"{_ID} must be at most {MAX_ID} printable ASCII characters")
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        expected = [b64encode(hmac.digest(key, signed, "sha256")) for key in self._keys]
        given = list(_version_1(signatures))
        if not any(hmac.compare_digest(ours, theirs) for ours in expected for theirs in given):
            raise WebhookError(f"no signature in {_SIGNATURE} matches")
        return webhook_id

    def _is_repeated(self, webhook_id: str) -> bool:
        """Return whether this id was seen before, and remember it."""
        repeated = webhook_id in self._seen
        self._seen[webhook_id] = None
        self._seen.move_to_end(webhook_id)
        if len(self._seen) > self._remember:
            self._seen.popitem(last=False)
        return repeated


def _hmac_key(secret: str) -> bytes:
    """Return the key inside a ``whsec_…``. No error message shows the secret."""
    text = secret.strip().removeprefix(_PREFIX) if isinstance(secret, str) else ""
    try:
        # The error about characters outside ASCII would carry the text itself.
        key = b64decode(text + "=" * (-len(text) % 4), validate=True) if text.isascii() else b""
    except BadBase64:
        key = b""
    if not key:
        raise ConfigurationError(f"a webhook secret must be {_PREFIX} followed by Base64, and not empty")
    return key


def _raw_bytes(body: object) -> bytes:
    if not isinstance(body, bytes | bytearray | memoryview):
        raise WebhookError(f"the body must be the raw bytes, got {type(body).__name__}")
    raw = bytes(body)
    if len(raw) > MAX_BODY:
        raise WebhookError(f"the body must be at most {MAX_BODY} bytes, got {len(raw)}")
    return raw


def _signature_headers(headers: Mapping[str, str]) -> list[str]:
    """Return id, timestamp and signatures. Each must occur once, or it is unclear which was signed."""
    found: dict[str, list[str]] = {_ID: [], _TIMESTAMP: [], _SIGNATURE: []}
    try:
        for name, value in headers.items():
            found.get(name.lower(), []).append(value)
    except (AttributeError, TypeError, ValueError):
        raise WebhookError("the headers must be a mapping of names to values") from None
    for name, values in found.items():
        if len(values) > 1:
            raise WebhookError(f"{name} is sent more than once")
        if not values or not values[0]:
            raise WebhookError(f"{name} is missing")
        if not isinstance(values[0], str):
            raise WebhookError(f"{name} must be text, got {type(values[0]).__name__}")
    return [values[0] for values in found.values()]


def _unix_seconds(timestamp: str) -> int:
    # float() and int() would accept "nan", "1_0" and digits of other scripts, at any length.
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 15):
        raise WebhookError(f"{_TIMESTAMP} must be a whole number of Unix seconds")
    return int(timestamp)


def _version_1(signatures: str) -> Iterable[bytes]:
    """Yield the Base64 of every ``v1,…``; other versions are ignored."""
    for signature in signatures.split(" "):
        version, _, text = signature.partition(",")
        if version == "v1":
            yield text.encode(errors="replace")


# ---------------------------------------------------------------------------- the shapes of a body


def _read_task(body: bytes) -> Task:
    """Return the task in a body of any known shape."""
    try:
        data = codec.parse_json(body)
        body.decode()  # Python reads JSON in UTF-16 and UTF-32 as well, which the service does not send
        if isinstance(data, dict) and data.get("code") == 0 and "data" in data:
            data = data["data"]
        if isinstance(data, dict) and "task_id" not in data and "id" in data:
            data = _older_shape(data)
        return codec.parse_task(_identified(data))
    except ValueError as error:
        raise WebhookError(f"the body does not describe a task: {error}") from None


def _identified(data: Any) -> dict[str, Any]:
    """Return *data* if its id and status are text; the codec would convert numbers."""
    fields = data if isinstance(data, dict) else {}
    for name in ("task_id", "task_status"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise ValueError(f"{name} must be text and not empty")
    return fields


def _older_shape(data: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a body of the newer shape to the older one, which the codec reads."""
    external_id = data.get("external_id")
    return {
        "task_id": data["id"],
        "task_status": data.get("status"),
        "task_status_msg": data.get("message"),
        "task_info": {"external_task_id": external_id if isinstance(external_id, str) else None},
        "created_at": data.get("create_time"),
        "updated_at": data.get("update_time"),
        "task_result": {"images": _images(data.get("outputs"))},
        **_deductions(data.get("billing")),
    }


def _images(outputs: Any) -> list[dict[str, Any]]:
    """Return the pictures among *outputs*, whose shape is not documented.

    If an output that may be a picture has no URL, the list is empty, so that the task is polled. An
    incomplete list would be taken for the whole result.
    """
    pictures = [item for item in outputs if _may_be_picture(item)] if isinstance(outputs, list) else []
    if not all(_url(item.get("url")) for item in pictures):
        return []
    indexes = [item.get("index") for item in pictures]
    if not all(type(index) is int and index >= 0 for index in indexes) or len({*indexes}) < len(indexes):
        indexes = list(range(len(pictures)))
    return [
        {"index": index, "url": item["url"], "watermark_url": _url(item.get("watermark_url"))}
        for index, item in zip(indexes, pictures, strict=True)
    ]


def _may_be_picture(item: Any) -> bool:
    kind = item.get("type") if isinstance(item, dict) else "nothing"
    return not isinstance(kind, str) or not kind or kind.lower().startswith("image")


def _url(value: Any) -> str | None:
    return value if isinstance(value, str) and value.startswith(("https://", "http://")) else None


def _deductions(billing: Any) -> dict[str, Any]:
    """Return what was billed, if all of it can be read: the sum of the units, and the one cash charge."""
    charges = [item for item in billing if isinstance(item, dict)] if isinstance(billing, list) else []
    units = [_amount(item.get("amount")) for item in charges if item.get("charge_type") == "unit"]
    cash = [item for item in charges if item.get("charge_type") == "cash"]
    found: dict[str, Any] = {}
    if units and all(units):
        found["final_unit_deduction"] = str(sum(map(Decimal, filter(None, units))))
    if len(cash) == 1:
        quota, list_price = (_amount(cash[0].get(name)) for name in ("amount", "list_price"))
        found["final_balance_deduction"] = {"quota": quota, "list_price": list_price}
    return found


def _amount(value: Any) -> str | None:
    """Return *value* as a decimal string, or None where it is not a plain amount."""
    text = str(value) if isinstance(value, str | int | float) else ""
    return text if _AMOUNT.fullmatch(text) else None
