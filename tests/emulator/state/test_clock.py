"""Does the clock only move forwards, and do those who wait for it notice?"""

import asyncio

import pytest

from kling_expand.emulator.state.clock import Clock


async def test_a_wait_ends_with_the_time() -> None:
    """By waiting, as far as the source says, however often it has to look."""
    times = iter([10.0, 10.0005, 10.001])
    await Clock(lambda: next(times)).sleep_until(10.001)
    assert list(times) == []


async def test_a_wait_ends_with_a_move() -> None:
    """A frozen source and a leap: only those who wait for what is past go on."""
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
def test_no_other_moves(seconds: float) -> None:
    """Backwards would un-finish tasks, and for ever would end all."""
    with pytest.raises(ValueError, match="at least 0"):
        Clock(lambda: 0.0).advance(seconds)
