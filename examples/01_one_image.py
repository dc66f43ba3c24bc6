"""Expand one photo to an aspect ratio and save the results.

Against the real service no emulator is needed: `KlingClient()` reads its credentials from the environment.
"""

import asyncio
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from kling_expand import KlingClient, ToAspect
from kling_expand.emulator import Emulator

PHOTO = Path(__file__).parent / "photos" / "coffee.jpg"


async def main() -> None:
    async with (
        Emulator(queue_seconds=0.2, work_seconds=0.5) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url) as kling,
    ):
        result = await kling.expand(PHOTO, ToAspect("16:9"), prompt="a wooden table", n=2)
        for path in await result.save("out/"):
            print("saved", path)
        print("billed", result.task.units, "units")


with TemporaryDirectory() as folder, chdir(folder):  # so that the example leaves no files
    asyncio.run(main())

# Output:
# saved out/coffee-0.png
# saved out/coffee-1.png
# billed 16 units
