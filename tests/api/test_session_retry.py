"""Retry decisions: waits are bounded, `Retry-After` is obeyed, and retries end."""

import asyncio
from random import Random

import pytest

from kling_expand.api.session import Retry
from kling_expand.errors import APIError, ServerError, TransportError
from kling_expand.testing import virtual_time


def retry() -> Retry:
    """Return a retry policy with the default limits of a client."""
    return Retry(Random(1), timeout=120, max_retry_after=300)


@virtual_time
async def test_a_permanent_failure_is_not_retried() -> None:
    """A permanent refusal, and a service that was never reached, are not retried."""
    assert retry().after(APIError("no")) is None
    assert retry().after(TransportError("nowhere", sent=False, retryable=False)) is None


@virtual_time
async def test_waits_double_and_end_at_the_time_limit() -> None:
    """Each wait is at least half of its step, and none ends after the time limit."""
    tries, waits = retry(), []
    while (wait := tries.after(ServerError("busy"))) is not None:
        waits.append(wait)
        await asyncio.sleep(wait)
    assert all(step / 2 <= wait <= step for step, wait in zip([0.5, 1, 2, 4, 8, 16], waits, strict=False))
    assert 90 < sum(waits) <= 120


@pytest.mark.parametrize("asked", [0.5, 119.0, 300.0])
@virtual_time
async def test_a_retry_after_wait_is_kept_exactly(asked: float) -> None:
    """A `Retry-After` wait may end after the time limit, but none begins after it."""
    tries = retry()
    assert tries.after(ServerError("busy", retry_after=asked)) == asked
    await asyncio.sleep(121)
    assert tries.after(ServerError("busy", retry_after=asked)) is None


@virtual_time
async def test_a_retry_after_beyond_the_maximum_ends_the_retries() -> None:
    """A `Retry-After` beyond the maximum ends the retries."""
    assert retry().after(ServerError("busy", retry_after=300.5)) is None


@virtual_time
async def test_a_retry_after_of_zero_still_leads_to_a_pause() -> None:
    """`Retry-After: 0` still leads to a pause."""
    wait = retry().after(ServerError("busy", retry_after=0.0))
    assert wait is not None
    assert wait >= 0.25
