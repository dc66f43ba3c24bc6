"""What if the program ends before the task does? An id is enough to go on, in any other process.

Closing the client ends no task: there is no remote cancel, and what runs will be paid for.
"""

import asyncio
import sys
from pathlib import Path

from kling_expand import KlingClient, Ratios
from kling_expand.emulator import Emulator

PHOTOS = Path(__file__).parent / "photos"


async def begin(emulator: Emulator) -> str:
    """Submit, and leave while the task is running."""
    async with KlingClient(api_key=emulator.api_key, base_url=emulator.url) as kling:
        task = await kling.create(PHOTOS / "coffee.jpg", Ratios(left=0.5), external_task_id="order-1138")
        print("left behind:", task.task_status, flush=True)
    return task.external_task_id or task.task_id


async def finish(any_id: str, url: str, api_key: str) -> None:
    """Know nothing but the id, and bring the picture home."""
    async with KlingClient(api_key=api_key, base_url=url) as kling:
        result = await kling.attach(any_id)
        print("saved", *await result.save("out/{external_task_id}{ext}"))


async def main() -> None:
    async with Emulator(engine="flat", queue_seconds=0.5, work_seconds=1.0) as emulator:
        any_id = await begin(emulator)
        words = [sys.executable, __file__, any_id, emulator.url, emulator.api_key]
        another = await asyncio.create_subprocess_exec(*words)
        await another.wait()
        print("paid for", emulator.account.images_billed, "picture")


asyncio.run(finish(*sys.argv[1:]) if sys.argv[1:] else main())

# Output:
# left behind: submitted
# saved out/order-1138.png
# paid for 1 picture
