"""The rate limit and its Retry-After header."""

import math
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from support.raw_client import EDITING, calling

NOW = 1_800_000_000.25
FROZEN: dict[str, Any] = {"clock": lambda: NOW}


async def test_the_rate_limit_slides() -> None:
    """The limit counts accepted requests in a sliding window."""
    async with calling(rate_limit=2, rate_limit_window=10, **FROZEN) as call:
        for _ in range(2):
            assert (await call("GET", EDITING))[0] == 200
        for _ in range(3):
            assert (await call("GET", EDITING))[1]["code"] == 1302
        call.emulator.advance(10)
        assert (await call("GET", EDITING))[0] == 200


@pytest.mark.parametrize("form", ["seconds", "date", "none"])
async def test_retry_after_has_two_formats_or_none(form: str) -> None:
    """A request is accepted after a wait for the time in the header."""
    async with calling(rate_limit=1, rate_limit_window=3.5, retry_after_format=form, **FROZEN) as call:
        await call("GET", EDITING)
        headers = {"Authorization": f"Bearer {call.emulator.api_key}"}
        async with call.session.get(call.emulator.url + EDITING, headers=headers) as response:
            header = response.headers.get("Retry-After")
        if form == "none":
            assert header is None
            return
        wait = (
            float(header or 0) if form == "seconds" else parsedate_to_datetime(header or "").timestamp() - NOW
        )
        assert 3.5 <= wait <= math.ceil(3.5) + 1
        call.emulator.advance(wait)
        assert (await call("GET", EDITING))[0] == 200
