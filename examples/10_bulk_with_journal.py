"""What if a bulk job is killed half way? With a journal it is simply run again, and nothing is paid twice.

The journal is one SQLite file. Every job is in it before it is sent, so whatever happens is found again.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from kling_expand import ExpandRequest, KlingClient, ToAspect
from kling_expand.emulator import Emulator

PHOTOS = Path(__file__).parent / "photos"


async def bulk(url: str, api_key: str, fate: str) -> None:
    """The script itself; run by hand as often as needed."""
    requests = (ExpandRequest(path, ToAspect("16:9"), key=path.name) for path in sorted(PHOTOS.glob("*.jpg")))
    async with KlingClient(api_key=api_key, base_url=url, journal="holiday.db") as kling:
        async for outcome in kling.map(requests, ordered=True):
            if outcome.result:
                paths = outcome.result.files or await outcome.result.save("out/{name}{ext}")
                print("was there" if outcome.result.files else "saved", paths[0].name, flush=True)
            if fate == "killed":
                os.kill(os.getpid(), signal.SIGKILL)


async def main() -> None:
    async with Emulator(engine="flat", queue_seconds=0.2, work_seconds=0.5) as emulator:
        for fate in ("killed", "left alone"):
            words = [sys.executable, __file__, emulator.url, emulator.api_key, fate]
            run = await asyncio.create_subprocess_exec(*words)
            print("exit code", await run.wait(), flush=True)
        print("paid for", emulator.account.images_billed, "pictures")


asyncio.run(bulk(*sys.argv[1:]) if sys.argv[1:] else main())

# Output:
# saved chelsea.png
# exit code -9
# was there chelsea.png
# saved coffee.png
# saved rocket.png
# exit code 0
# paid for 3 pictures
