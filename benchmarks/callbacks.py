"""Callbacks as the service sends them, and the ways in which they fail.

The kinds say when the callback of an end arrives. A local server finds the kind at the end of `callback_url`.

    arriving   `DELAY` seconds after the end
    late       30 s after the end
    tenth      as arriving, but every tenth is lost
    stopping   as arriving, until all are lost from one moment on: a proxy is down
    lost       never

That moment is minute 2 in `benchmarks.virtual`, and in `benchmarks.compare` the first job that is counted.
"""

import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

SECRET = b64encode(b"a secret of this benchmark").decode()
DELAY = 0.02  # seconds

# Seconds from the end of a job with a number to its callback, or None; the flag says that it is not counted.
KINDS: dict[str, Callable[[int, bool], float | None]] = {
    "arriving": lambda _number, _warm: DELAY,
    "late": lambda _number, _warm: 30.0,
    "tenth": lambda number, _warm: None if number % 10 == 9 else DELAY,
    "stopping": lambda _number, warm: DELAY if warm else None,
    "lost": lambda _number, _warm: None,
}


def signed(task: dict[str, Any], webhook_id: str, now: float) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a signed callback about *task* at *now* in Unix seconds."""
    body = json.dumps(task).encode()
    covered = f"{webhook_id}.{now:.0f}.".encode() + body
    signature = b64encode(hmac.digest(b64decode(SECRET), covered, "sha256")).decode()
    headers = {"webhook-id": webhook_id, "webhook-timestamp": f"{now:.0f}"}
    return headers | {"webhook-signature": f"v1,{signature}"}, body
