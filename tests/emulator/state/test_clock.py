"""The clock that can be moved forward."""

import asyncio

import pytest

from kling_expand.emulator.state.clock import Clock


async def test_a_wait_ends_at_its_time() -> None:
    """A wait ends when the source reaches its time."""
    times = iter([10.0, 10.0005, 10.001])
    await Clock(lambda: next(times)).sleep_until(10.001)
    assert list(times) == []


async def test_an_advance_ends_the_waits_it_passes() -> None:
    """An advance of the clock ends exactly the waits for times that have passed."""
    clock = Clock(lambda: 0.0)
    near, far = (asyncio.ensure_future(clock.sleep_until(moment)) for moment in (1000, 3000))
    await asyncio.sleep(0)
    clock.advance(2000)
    await near
    assert not far.done()
    clock.advance(2000)
    await far
    assert (clock.now(), clock.source_now()) == (4000, 0)


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_an_invalid_advance_is_an_error(seconds: float) -> None:
    """Negative and infinite steps raise ValueError."""
    with pytest.raises(ValueError, match="at least 0"):
        Clock(lambda: 0.0).advance(seconds)
