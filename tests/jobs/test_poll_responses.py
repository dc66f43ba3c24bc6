"""Bad responses to polls: each code and each broken response, on both routes, for three durations.

A bad response that comes once or for 10 s never ends the wait for a task that is known to exist. A bad
response that persists ends it only on single reads, after `refusal_timeout` or `poll_timeout`. Bad list pages
never end it, because single reads replace them.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kling_expand import KlingError, RateLimited, Ratios, TransportError
from kling_expand.emulator import Fault
from kling_expand.emulator.http.codes import CODES
from kling_expand.testing import emulated, virtual_time

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"
POLL_TIMEOUT, REFUSAL_TIMEOUT = 150.0, 60.0
WORK = 40.0  # seconds a task takes
BROKEN = ["refused", "reset", "html", "empty", "truncated_json", "wrong_length"]
BAD_RESPONSES = [
    *(
        pytest.param(Fault(kind, code=code), id=f"{kind}-{code}")
        for code in CODES
        for kind in ("error", "envelope_200")
    ),
    *(pytest.param(Fault(kind), id=kind) for kind in BROKEN),
]
CLIENT: dict[str, Any] = {"poll_timeout": POLL_TIMEOUT, "refusal_timeout": REFUSAL_TIMEOUT}


@pytest.mark.parametrize("duration", [0.0, 10.0], ids=["once", "for 10 s"])
@pytest.mark.parametrize("route", ["query", "list"])
@pytest.mark.parametrize("fault", BAD_RESPONSES)
@virtual_time
async def test_transient_bad_responses_end_no_wait(fault: Fault, route: str, duration: float) -> None:
    """The results arrive soon after the bad responses end."""
    async with emulated(CLIENT, work_seconds=WORK) as (emulator, kling):
        futures = [kling.submit(PHOTO, Ratios(right=0.1 * (n + 1))) for n in range(1 + (route == "list"))]
        await asyncio.gather(*(future.accepted() for future in futures))
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        await asyncio.sleep(WORK - 5)
        if duration:
            emulator.faults.for_seconds(route, fault, duration)
        else:
            emulator.faults.script(route, fault)
        results = await asyncio.gather(*futures)
        assert {len(result.images) for result in results} == {1}
        assert loop.time() - began < WORK + 60  # a 1302 makes the route pause


@pytest.mark.parametrize("fault", BAD_RESPONSES)
@virtual_time
async def test_lasting_bad_responses_end_the_wait_in_bounded_time(fault: Fault) -> None:
    """A refusal ends the wait after 60 s, and another failure after `poll_timeout`. The error has the ids."""
    async with emulated(CLIENT, work_seconds=3600.0) as (emulator, kling):
        future = kling.submit(PHOTO, Ratios(right=0.5))
        task = await future.accepted()
        emulator.faults.for_seconds("query", fault, 1e6)
        began = asyncio.get_running_loop().time()
        with pytest.raises(KlingError) as caught:
            await future
        lasted, error = asyncio.get_running_loop().time() - began, caught.value
        passing = error.retryable or isinstance(error, RateLimited | TransportError)
        limit = POLL_TIMEOUT if passing else REFUSAL_TIMEOUT
        assert limit <= lasted <= limit + 100
        assert (error.task_id, error.external_task_id) == (task.task_id, future.external_task_id)


@pytest.mark.parametrize("fault", BAD_RESPONSES)
@virtual_time
async def test_lasting_bad_list_pages_end_no_wait(fault: Fault) -> None:
    """While list pages are bad, single reads notice the ends without a delay."""
    async with emulated(CLIENT, work_seconds=WORK) as (emulator, kling):
        emulator.faults.for_seconds("list", fault, 1e6)
        futures = [kling.submit(PHOTO, Ratios(right=0.1 * (n + 1))) for n in range(3)]
        await asyncio.gather(*(future.accepted() for future in futures))
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*futures)
        assert asyncio.get_running_loop().time() - began < WORK + 15
