"""A sliding-window rate limit, with `Retry-After` in either HTTP format."""

import math
from collections import deque
from email.utils import formatdate

from kling_expand.emulator.settings import Settings

from .codes import Refusal


class RateLimit:
    """A limit of `rate_limit` requests in `rate_limit_window` seconds. Refused requests do not count."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._accepted: deque[float] = deque()

    def check(self, now: float) -> None:
        """Count a request at *now* (Unix seconds).

        Raises:
            Refusal: if the limit is reached (code 1302).
        """
        settings = self._settings
        if not settings.rate_limit:
            return
        while self._accepted and self._accepted[0] <= now - settings.rate_limit_window:
            self._accepted.popleft()
        if len(self._accepted) >= settings.rate_limit:
            free_at = self._accepted[-settings.rate_limit] + settings.rate_limit_window
            raise Refusal(1302, retry_after=self._retry_after(now, free_at))
        self._accepted.append(now)

    def _retry_after(self, now: float, free_at: float) -> str | None:
        header_format = self._settings.retry_after_format
        if header_format == "date":
            return formatdate(math.ceil(free_at), usegmt=True)
        return str(max(1, math.ceil(free_at - now))) if header_format == "seconds" else None
