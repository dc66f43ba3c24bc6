"""Background tasks that end with the emulator."""

import asyncio

from kling_expand.emulator.state.background import BackgroundTasks


async def test_closing_cancels_running_tasks() -> None:
    """`aclose` cancels running tasks and waits for them. Tasks that have ended are not kept."""
    background, ended = BackgroundTasks(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    background.start(work())
    await asyncio.sleep(0)
    await background.aclose()
    assert ended.is_set()
    await background.aclose()
