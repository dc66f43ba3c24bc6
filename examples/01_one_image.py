"""How is one photo made wider? Say which shape it should have; the rest is waiting.

For the real service leave the emulator out: `KlingClient()` reads its keys from the environment.
"""

import asyncio
from pathlib import Path

from kling_expand import KlingClient, ToAspect
from kling_expand.emulator import Emulator

PHOTOS = Path(__file__).parent / "photos"


async def main() -> None:
    async with (
        Emulator(queue_seconds=0.2, work_seconds=0.5) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url) as kling,
    ):
        result = await kling.expand(PHOTOS / "coffee.jpg", ToAspect("16:9"), prompt="a wooden table", n=2)
        for path in await result.save("out/"):
            print("saved", path)
        print("billed", result.task.units, "units")


asyncio.run(main())

# Output:
# saved out/coffee-0.png
# saved out/coffee-1.png
# billed 16 units
