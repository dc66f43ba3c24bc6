"""Follow the progress of a task by iterating over its future.

Any number of coroutines may iterate over and await one future. They share its polls.
"""

import asyncio
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from kling_expand import KlingClient, Ratios
from kling_expand.emulator import Emulator

PHOTO = Path(__file__).parent / "photos" / "rocket.jpg"


async def main() -> None:
    async with (
        Emulator(engine="flat", queue_seconds=2.0, work_seconds=6.0) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url) as kling,
    ):
        future = kling.submit(PHOTO, Ratios(up=0.5))
        async for task in future:
            print(task.task_id, task.task_status)
        result = await future
        print("saved", *await result.save("out/"))


with TemporaryDirectory() as folder, chdir(folder):  # so that the example leaves no files
    asyncio.run(main())

# Output:
# 176362137720200000 submitted
# 176362137720200000 processing
# 176362137720200000 succeed
# saved out/rocket-0.png
