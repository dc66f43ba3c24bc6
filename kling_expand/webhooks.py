"""Verification and parsing of callbacks, the requests of the service to `callback_url`.

The service sends a callback whenever the status of a task changes. If the console has a Webhook Secret, the
service signs its callbacks according to the Standard Webhooks specification. Otherwise they are unsigned.
`Webhooks.parse` treats a callback as follows:

===================  ================================  ==============================
callback             with secrets                      without secrets
===================  ================================  ==============================
signed with a known  verified: its snapshot is         unverified: it triggers a poll
secret               delivered
signed otherwise     `WebhookError`                    unverified: it triggers a poll
unsigned             `WebhookError`                    unverified: it triggers a poll
unreadable           `WebhookError`                    `WebhookError`
===================  ================================  ==============================

So an unsigned callback never delivers a result. At most it makes the client read the task from the service.
If the console has a secret, pass it to the client as well. Otherwise forged callbacks would cost reads.

After the last secret is deleted in the console, callbacks are unsigned (documented), so remove the secret
from the client, too. Until then the client refuses the callbacks and finds the results by polling.

A body may have the older form (``task_id``, ``task_status``, ``task_result``) or the newer one (``id``,
``status``, ``outputs``, ``billing``). Either may be inside the envelope of an API response.
"""

import hmac
import time
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from .api import codec
from .config import NUMBER, OPTIONS, check_option
from .errors import ConfigurationError, WebhookError
from .models import WHOLE, Rule, Status, Task

MAX_BODY = 1 << 20  # bytes; a task with nine pictures and all its fields is under 20 KB
MAX_ID = 256  # characters of a `webhook-id`, so that the memory for ids is bounded
TOLERANCE = 300.0  # seconds by which a timestamp may differ from the clock (Standard Webhooks)

_PREFIX = "whsec_"
_ID, _TIMESTAMP, _SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
_NOT_NEGATIVE = Rule("must be zero or more", lambda value: value >= 0)

# Headers as frameworks and serverless functions provide them: text or bytes, one value or a list of values.
Headers = (
    Mapping[str, str]
    | Mapping[str, Sequence[str]]
    | Mapping[bytes, bytes]
    | Iterable[tuple[str, str]]
    | Iterable[tuple[bytes, bytes]]
)
# The raw body. Without secrets, a body that was already decoded is accepted, too.
Body = bytes | bytearray | memoryview | str | Mapping[str, Any] | Sequence[Any]


@frozen
class WebhookEvent:
    """A parsed callback, with its snapshot `task`.

    `verified` is True if the callback was signed with a known secret. `webhook_id` is the signed id, or None
    if the callback is not verified. `repeated` is True if the same verified id was parsed before, because of
    a repeated delivery or a replay by a third party. Delivering a snapshot again is harmless.
    """

    task: Task
    verified: bool
    webhook_id: str | None = None
    repeated: bool = False

    @property
    def needs_poll(self) -> bool:
        """Whether the task must be read from the service, because this callback is not sufficient.

        This is so for every unverified callback, and for a success without images.
        """
        return not self.verified or (self.task.status is Status.SUCCEED and not self.task.images)


class Webhooks:
    """A parser of callbacks, which verifies them if it has secrets.

    Each of *secrets* is a Webhook Secret (``whsec_…``) from the console. With several secrets, a callback may
    be signed with any of them, so a secret can be rotated without losing a callback. The timestamp of a
    callback may differ from *clock* (Unix seconds) by at most *tolerance* seconds. The newest *remember*
    verified ids are kept, to recognize repeated callbacks. Nothing is kept of other callbacks.

    Raises:
        ConfigurationError: if a secret is not Base64 after ``whsec_``, or a number is out of range.
    """

    def __init__(
        self,
        *secrets: str,
        tolerance: float = TOLERANCE,
        clock: Callable[[], float] = time.time,
        remember: int = 10_000,
    ) -> None:
        check_option(NUMBER, tolerance=tolerance)
        check_option((WHOLE, _NOT_NEGATIVE), remember=remember)
        check_option(OPTIONS["clock"], clock=clock)
        self._keys = tuple(map(_hmac_key, secrets))
        self._tolerance = tolerance
        self._clock = clock
        self._remember = remember
        self._seen: OrderedDict[str, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self._keys)} secrets>"

    def parse(self, headers: Headers, body: Body) -> WebhookEvent:
        """Return the event of a callback with these *headers* and this raw *body*.

        *headers* may be a mapping or pairs, of text or bytes, with names in any case. A value may be a list,
        as in ``multiValueHeaders`` of AWS Lambda. *body* may be bytes or text. A decoded body (a mapping or a
        list) is accepted only without secrets, because a signature covers the raw bytes. A server should stop
        reading a body after `MAX_BODY` bytes.

        Raises:
            WebhookError: if the callback cannot be trusted or read. No other exception is raised.
        """
        found = _signature_headers(headers)
        if not self._keys:
            return WebhookEvent(_read_task(body), verified=False)
        raw = _raw_bytes(body)
        webhook_id = self._verified_id(found, raw)
        task = _read_task(raw)  # first, so that the id of an unreadable callback is not remembered
        repeated = self._is_repeated(webhook_id)
        return WebhookEvent(task, verified=True, webhook_id=webhook_id, repeated=repeated)

    def _verified_id(self, found: Mapping[str, list[str]], body: bytes) -> str:
        """Return the id of the callback, if a signature covers the id, the timestamp and the body.

        Raises:
            WebhookError: if there is no such signature.
        """
        webhook_id, timestamp, signatures = (_single_value(name, values) for name, values in found.items())
        if not abs(self._clock() - _unix_seconds(timestamp)) <= self._tolerance:
            raise WebhookError(f"{_TIMESTAMP} must be within {self._tolerance:g} s of now")
        if not (webhook_id.isascii() and webhook_id.isprintable() and len(webhook_id) <= MAX_ID):
            raise WebhookError(f"{_ID} must be at most {MAX_ID} printable ASCII characters")
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        expected = [b64encode(hmac.digest(key, signed, "sha256")) for key in self._keys]
        given = list(_version_1(signatures))
        if not any(hmac.compare_digest(computed, received) for computed in expected for received in given):
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
    """Return the key in a secret (``whsec_…``). No error message shows the secret."""
    text = secret.strip().removeprefix(_PREFIX) if isinstance(secret, str) else ""
    try:
        # For characters outside ASCII, `b64decode` would raise an error that contains the text itself.
        key = b64decode(text + "=" * (-len(text) % 4), validate=True) if text.isascii() else b""
    except BadBase64:
        key = b""
    if not key:
        raise ConfigurationError(f"a webhook secret must be {_PREFIX} followed by Base64")
    return key


def _raw_bytes(body: object) -> bytes:
    if isinstance(body, str):
        body = body.encode(errors="surrogatepass")  # lone surrogates match no signature, and are not JSON
    if not isinstance(body, bytes | bytearray | memoryview):
        raise WebhookError(
            f"the body must be the raw bytes or text that was signed, got {type(body).__name__}"
        )
    raw = bytes(body)
    if len(raw) > MAX_BODY:
        raise WebhookError(f"the body must be at most {MAX_BODY} bytes, got {len(raw)}")
    return raw


def _signature_headers(headers: object) -> dict[str, list[str]]:
    """Return the values of the id, timestamp and signature headers, in this order."""
    found: dict[str, list[str]] = {_ID: [], _TIMESTAMP: [], _SIGNATURE: []}
    try:
        for name, value in _pairs(headers):
            if (values := found.get(_text("a name", name).lower())) is not None:
                several = isinstance(value, list | tuple)
                values.extend(_text(str(name), each) for each in (value if several else (value,)))
    except (AttributeError, TypeError, ValueError):
        raise WebhookError("the headers must be a mapping, or pairs, of names to values") from None
    return found


def _pairs(headers: Any) -> Iterable[tuple[Any, Any]]:
    items = getattr(headers, "items", None)
    pairs: Iterable[tuple[Any, Any]] = headers if items is None else items()
    return pairs


def _text(name: str, value: object) -> str:
    """Return a header's name or value, which some servers pass as bytes, as text."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise WebhookError(f"headers must be text, but {name} is of type {type(value).__name__}")
    return value


def _single_value(name: str, values: list[str]) -> str:
    """Return the value of a header that must occur exactly once, so that it is clear what was signed."""
    if len(values) > 1:
        raise WebhookError(f"{name} was sent more than once")
    if not values or not values[0]:
        raise WebhookError(f"{name} is missing")
    return values[0]


def _unix_seconds(timestamp: str) -> int:
    # `float` or `int` would also accept "nan", "1_0" and digits of other scripts, at any length.
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 15):
        raise WebhookError(f"{_TIMESTAMP} must be a whole number of Unix seconds")
    return int(timestamp)


def _version_1(signatures: str) -> Iterable[bytes]:
    """Yield the Base64 of every ``v1,…``, and ignore other versions."""
    for signature in signatures.split(" "):
        version, _, text = signature.partition(",")
        if version == "v1":
            yield text.encode(errors="replace")


def _read_task(body: object) -> Task:
    """Return the task in a body of any known form, decoded or raw."""
    try:
        data = body if isinstance(body, Mapping | list | tuple) else _decoded(_raw_bytes(body))
        if isinstance(data, Mapping) and data.get("code") == 0 and "data" in data:
            data = data["data"]
        return codec.parse_task(_identified(data))
    except (ValueError, RecursionError) as error:
        raise WebhookError(f"the body does not describe a task: {error}") from None


def _decoded(raw: bytes) -> Any:
    data = codec.parse_json(raw)
    raw.decode()  # raises for UTF-16 and UTF-32, which `json` accepts but the service does not send
    return data


def _identified(data: Any) -> dict[str, Any]:
    """Return the fields of *data*, whose id and status must be text. The codec would convert numbers."""
    fields = dict(data) if isinstance(data, Mapping) else {}
    older = "task_id" in fields or "id" not in fields
    for name in ("task_id", "task_status") if older else ("id", "status"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise ValueError(f"{name} must be text and not empty")
    return fields
