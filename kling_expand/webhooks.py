"""What did they tell us? A callback's headers and body → a `WebhookEvent`; no I/O, and no trust in advance.

The service posts to `callback_url` on every change of a task's status. With a Webhook Secret set in
its console the call is signed after the Standard Webhooks specification; without one anybody who
knows the address can make it, so such a call is only worth asking the service about.
"""

import hmac
import time
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
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


@frozen
class WebhookEvent:
    """One callback.

    `verified` says that it was signed with a secret of ours. `webhook_id` is the signed id, None
    where nothing vouches for it. `repeated` marks a verified id that was parsed before: the sender
    tries again, or somebody replays; telling the same news twice changes nothing, so no call
    needs to be dropped for it.
    """

    task: Task
    verified: bool
    webhook_id: str | None = None
    repeated: bool = False

    @property
    def doorbell(self) -> bool:
        """Whether this is only a reason to ask the service, and not news by itself.

        So is every unverified call, and a success that does not hold its pictures: the newer body
        is documented without any.
        """
        return not self.verified or (self.task.status is Status.SUCCEED and not self.task.images)


class Webhooks:
    """Reads callbacks, and verifies them where it has secrets.

    Each of *secrets* is a ``whsec_…`` of the console; with several, any may have signed, so a secret
    can be replaced without losing a call. With none, every call is read as unverified.
    *tolerance* is how many seconds a call's timestamp may differ from *clock* (Unix seconds).
    The newest *remember* verified ids are kept to tell repeated calls. Raises `ConfigurationError`.
    """

    def __init__(
        self,
        *secrets: str,
        tolerance: float = TOLERANCE,
        clock: Callable[[], float] = time.time,
        remember: int = 10_000,
    ) -> None:
        if not tolerance > 0:
            raise ConfigurationError(f"tolerance must be above zero seconds, not {tolerance}")
        if remember < 0:
            raise ConfigurationError(f"remember must not be negative, and is {remember}")
        self._keys = tuple(map(_key, secrets))
        self._tolerance = tolerance
        self._clock = clock
        self._remember = remember
        self._seen: OrderedDict[str, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self._keys)} secrets>"

    def parse(self, headers: Mapping[str, str], body: bytes) -> WebhookEvent:
        """The call made with these *headers* (names in any case) and this raw *body*.

        A body is at most `MAX_BODY` bytes; an adapter should stop reading there. Raises
        `WebhookError` for a call that cannot be trusted or read, and nothing else.
        """
        if len(body) > MAX_BODY:
            raise WebhookError(f"the body has {len(body)} bytes; at most {MAX_BODY} are read")
        if not self._keys:
            return WebhookEvent(_task(body), verified=False)
        webhook_id = self._verified_id(headers, body)
        task = _task(body)  # before the id is kept: what could not be read was not received
        return WebhookEvent(task, verified=True, webhook_id=webhook_id, repeated=self._met(webhook_id))

    def _verified_id(self, headers: Mapping[str, str], body: bytes) -> str:
        """The call's id, once a signature covers it together with the timestamp and the body."""
        webhook_id, timestamp, signatures = _signature_headers(headers)
        if not abs(self._clock() - _seconds(timestamp)) <= self._tolerance:
            raise WebhookError(f"{_TIMESTAMP} is more than {self._tolerance:g} s away from now")
        if not (webhook_id.isascii() and webhook_id.isprintable() and len(webhook_id) <= MAX_ID):
            raise WebhookError(f"{_ID} is not up to {MAX_ID} printable ASCII characters")
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        expected = [b64encode(hmac.digest(key, signed, "sha256")) for key in self._keys]
        given = list(_version_1(signatures))
        if not any(hmac.compare_digest(ours, theirs) for ours in expected for theirs in given):
            raise WebhookError(f"no signature in {_SIGNATURE} matches")
        return webhook_id

    def _met(self, webhook_id: str) -> bool:
        """Whether this id was here before; it is remembered from now on."""
        met = webhook_id in self._seen
        self._seen[webhook_id] = None
        self._seen.move_to_end(webhook_id)
        if len(self._seen) > self._remember:
            self._seen.popitem(last=False)
        return met


def _key(secret: str) -> bytes:
    """The HMAC key inside a ``whsec_…``, which no message may show."""
    text = secret.strip().removeprefix(_PREFIX) if isinstance(secret, str) else ""
    try:
        # Asked first, for the error about characters outside ASCII carries the text it is about.
        key = b64decode(text + "=" * (-len(text) % 4), validate=True) if text.isascii() else b""
    except BadBase64:
        key = b""
    if not key:
        raise ConfigurationError(f"a webhook secret must be {_PREFIX} followed by Base64, and not empty")
    return key


def _signature_headers(headers: Mapping[str, str]) -> list[str]:
    """Id, timestamp and signatures. Each must be there once: of two nobody could say which was signed."""
    found: dict[str, list[str]] = {_ID: [], _TIMESTAMP: [], _SIGNATURE: []}
    for name, value in headers.items():
        found.get(name.lower(), []).append(value)
    for name, values in found.items():
        if len(values) != 1 or not values[0]:
            raise WebhookError(f"{name} is sent more than once" if len(values) > 1 else f"{name} is missing")
    return [values[0] for values in found.values()]


def _seconds(timestamp: str) -> int:
    # float() and int() would take "nan", "1_0" and other scripts' digits, without any limit.
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 15):
        raise WebhookError(f"{_TIMESTAMP} is not a whole number of Unix seconds")
    return int(timestamp)


def _version_1(signatures: str) -> Iterable[bytes]:
    """The Base64 of every ``v1,…``; other versions are for other readers."""
    for signature in signatures.split(" "):
        version, _, text = signature.partition(",")
        if version == "v1":
            yield text.encode(errors="replace")


# ---------------------------------------------------------------------------- the three bodies


def _task(body: bytes) -> Task:
    """The task a body tells of, whichever of the three known shapes it has."""
    try:
        told = codec.parse_json(body)
        if isinstance(told, dict) and told.get("code") == 0 and "data" in told:
            told = told["data"]  # in the envelope that answers have
        if isinstance(told, dict) and "task_id" not in told and "id" in told:
            told = _legacy(told)
        return codec.parse_task(_identified(told))
    except ValueError as error:
        raise WebhookError(f"the body tells of no task: {error}") from None


def _identified(told: Any) -> Any:
    """What was told, if id and status are text: the reader of answers would make text of anything."""
    fields = told if isinstance(told, dict) else {}
    for name in ("task_id", "task_status"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise ValueError(f"{name} is missing, or not text")
    return fields


def _legacy(told: Mapping[str, Any]) -> dict[str, Any]:
    """The vendor's newer body in the words of the older one, which `wire` reads."""
    return {
        "task_id": told["id"],
        "task_status": told.get("status"),
        "task_status_msg": told.get("message"),
        "created_at": told.get("create_time"),
        "updated_at": told.get("update_time"),
        "task_result": {"images": _images(told.get("outputs"))},
    }


def _images(outputs: Any) -> list[dict[str, Any]]:
    """The pictures among *outputs*, whose shape is not documented.

    Something that might be a picture and has no URL makes it none at all: the call is then a
    doorbell, where half of the pictures would pass for the whole result.
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
