"""Callbacks as the service sends them, and the ways in which they fail.

A kind determines when the callback for the end of a job arrives. The local server reads the kind from the end
of `callback_url`.

    arriving   `DELAY` seconds after the end
    late       30 s after the end
    tenth      as for arriving, but every tenth is lost
    stopping   as for arriving, until one moment from which all are lost, as when a proxy fails
    lost       never

In `benchmarks.virtual` that moment is two minutes after the start. In `benchmarks.compare` it is the start of
the first job that is counted.
"""

import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

SECRET = b64encode(b"a secret of this benchmark").decode()
DELAY = 0.02  # seconds

# Each function takes the number of a job, and whether it is one of the jobs that are not counted. It returns
# the seconds from the end of the job to its callback, or None if the callback is lost.
KINDS: dict[str, Callable[[int, bool], float | None]] = {
    "arriving": lambda _number, _warm: DELAY,
    "late": lambda _number, _warm: 30.0,
    "tenth": lambda number, _warm: None if number % 10 == 9 else DELAY,
    "stopping": lambda _number, warm: DELAY if warm else None,
    "lost": lambda _number, _warm: None,
}


def signed(task: dict[str, Any], webhook_id: str, now: float) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a signed callback about *task* at *now* in Unix seconds."""
    body = json.dumps(task).encode()
    covered = f"{webhook_id}.{now:.0f}.".encode() + body
    signature = b64encode(hmac.digest(b64decode(SECRET), covered, "sha256")).decode()
    headers = {"webhook-id": webhook_id, "webhook-timestamp": f"{now:.0f}"}
    return headers | {"webhook-signature": f"v1,{signature}"}, body
