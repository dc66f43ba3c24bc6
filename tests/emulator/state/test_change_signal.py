"""The signal of changes."""

import asyncio

from kling_expand.emulator.state.change_signal import ChangeSignal


async def test_no_change_is_missed_by_a_reader() -> None:
    """A change after `next` was taken ends the wait for it, and an earlier change does not."""
    signal = ChangeSignal()
    signal.notify()
    upcoming = signal.next
    assert not upcoming.is_set()
    signal.notify()
    async with asyncio.timeout(5):
        await upcoming.wait()
    assert not signal.next.is_set()


async def test_closing_wakes_all_readers() -> None:
    """All waiting readers wake up and find the signal closed."""
    signal = ChangeSignal()
    waiters = [asyncio.ensure_future(signal.next.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    signal.close()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiters) == [True] * 3
    assert signal.closed
