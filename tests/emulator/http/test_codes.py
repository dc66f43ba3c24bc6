"""The table of error codes."""

import pytest
from support.raw_client import EDITING, calling

from kling_expand.emulator.faults.plan import Fault
from kling_expand.emulator.http.codes import CODES


@pytest.mark.parametrize("code", list(CODES))
async def test_every_code_can_be_returned(code: int) -> None:
    """Each code can be returned with its documented status, and with Retry-After if it is given."""
    async with calling() as call:
        call.emulator.faults.script("query", Fault("error", code=code, message="custom", retry_after="7"))
        async with call.session.get(f"{call.emulator.url}{EDITING}/1") as response:
            body = await response.json()
        assert (response.status, body["code"], body["message"]) == (CODES[code][0], code, "custom")
        assert response.headers["Retry-After"] == "7"
