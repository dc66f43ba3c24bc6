"""How often may one call? A sliding window; who is over it is told when to come back, in either form of
HTTP."""

import math
from collections import deque
from email.utils import formatdate

from kling_expand.emulator.settings import Settings

from .codes import Refusal


class RateLimit:
    """At most `rate_limit` calls within `rate_seconds`; refused ones do not count."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._calls: deque[float] = deque()

    def enter(self, now: float) -> None:
        """Count a call at `now`, or raise Refusal 1302."""
        settings = self._settings
        if not settings.rate_limit:
            return
        while self._calls and self._calls[0] <= now - settings.rate_seconds:
            self._calls.popleft()
        if len(self._calls) >= settings.rate_limit:
            free = self._calls[-settings.rate_limit] + settings.rate_seconds
            raise Refusal(1302, retry_after=self._retry_after(now, free))
        self._calls.append(now)

    def _retry_after(self, now: float, free: float) -> str | None:
        form = self._settings.retry_after
        if form == "date":
            return formatdate(math.ceil(free), usegmt=True)
        return str(max(1, math.ceil(free - now))) if form == "seconds" else None
