"""What does every answer look like? The envelope around data, and the one around a refusal."""

import json
import random
import uuid
from collections import Counter
from typing import Any

from aiohttp import web
from attrs import frozen

from .codes import Refusal


@frozen
class Answers:
    """Makes envelopes, each with a request id drawn by `chance`, and counts `refusals` by code."""

    chance: random.Random
    refusals: Counter[int]

    def data(self, data: Any) -> web.Response:
        """200, and what was asked for."""
        return self._json(
            200, {"code": 0, "message": "SUCCEED", "request_id": self._request_id(), "data": data}
        )

    def refused(self, refusal: Refusal) -> web.Response:
        """The refusal's status, code and message; no `data`, since some clients take that for success."""
        self.refusals[refusal.code] += 1
        body = {"code": refusal.code, "message": refusal.message, "request_id": self._request_id()}
        response = self._json(refusal.status, body)
        if refusal.retry_after is not None:
            response.headers["Retry-After"] = refusal.retry_after
        return response

    def _request_id(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    def _json(self, status: int, body: dict[str, Any]) -> web.Response:
        return web.Response(body=json.dumps(body).encode(), status=status, content_type="application/json")
