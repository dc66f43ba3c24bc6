"""Attach to a running task from another process by its id.

Closing the client does not cancel a task. The service cannot cancel tasks, so a running task is billed.
"""

import asyncio
import sys
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from kling_expand import KlingClient, Ratios
from kling_expand.emulator import Emulator

PHOTO = Path(__file__).parent / "photos" / "coffee.jpg"


async def create(emulator: Emulator) -> str:
    """Create a task and close the client while the task runs."""
    async with KlingClient(api_key=emulator.api_key, base_url=emulator.url) as kling:
        task = await kling.create(PHOTO, Ratios(left=0.5), external_task_id="order-1138")
        running = await kling.aclose()
        print("closed the client, still running:", *(future.any_id for future in running), flush=True)
    return task.external_task_id or task.task_id


async def attach(task_id: str, url: str, api_key: str) -> None:
    """Wait for the task with either id, and save its result."""
    async with KlingClient(api_key=api_key, base_url=url) as kling:
        result = await kling.attach(task_id)
        print("saved", *await result.save("out/{external_task_id}{ext}"))


async def main() -> None:
    async with Emulator(engine="flat", queue_seconds=0.5, work_seconds=1.0) as emulator:
        task_id = await create(emulator)
        command = [sys.executable, __file__, task_id, emulator.url, emulator.api_key]
        process = await asyncio.create_subprocess_exec(*command)
        await process.wait()
        print("billed images:", emulator.account.images_billed)


if sys.argv[1:]:
    asyncio.run(attach(*sys.argv[1:]))
else:
    with TemporaryDirectory() as folder, chdir(folder):  # so that the example leaves no files
        asyncio.run(main())

# Output:
# closed the client, still running: 176362137720200000
# saved out/order-1138.png
# billed images: 1
