"""Resume a killed bulk run from its journal without paying twice.

The journal is an SQLite file. Each job is recorded before it is sent, so that the next run finds it.
"""

import asyncio
import os
import signal
import sys
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from kling_expand import ExpandRequest, KlingClient, ToAspect
from kling_expand.emulator import Emulator

PHOTOS = Path(__file__).parent / "photos"


async def bulk(url: str, api_key: str, mode: str) -> None:
    """Expand all photos; each run continues where the last one stopped."""
    requests = (ExpandRequest(path, ToAspect("16:9"), key=path.name) for path in sorted(PHOTOS.glob("*.jpg")))
    async with KlingClient(api_key=api_key, base_url=url, journal="holiday.db") as kling:
        async for outcome in kling.map(requests, ordered=True):
            if outcome.result:
                paths = outcome.result.files or await outcome.result.save("out/{name}{ext}")
                print("already saved" if outcome.result.files else "saved", paths[0].name, flush=True)
            if mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)


async def main() -> None:
    async with Emulator(engine="flat", queue_seconds=0.2, work_seconds=0.5) as emulator:
        for mode in ("kill", "complete"):
            command = [sys.executable, __file__, emulator.url, emulator.api_key, mode]
            process = await asyncio.create_subprocess_exec(*command)
            print("exit code", await process.wait(), flush=True)
        print("billed images:", emulator.account.images_billed)


if sys.argv[1:]:
    asyncio.run(bulk(*sys.argv[1:]))
else:
    with TemporaryDirectory() as folder, chdir(folder):  # so that the example leaves no files
        asyncio.run(main())

# Output:
# saved chelsea.png
# exit code -9
# already saved chelsea.png
# saved coffee.png
# saved rocket.png
# exit code 0
# billed images: 3
