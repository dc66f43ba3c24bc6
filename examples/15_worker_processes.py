"""Expand photos in worker processes that are forked before any work starts, as in Celery.

A client does not survive a fork, so each process opens its own client for its first job. A job returns JSON
types, which a result backend can store.
"""

import asyncio
import os
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kling_expand import Ratios, blocking
from kling_expand.emulator import Emulator

PHOTOS = Path(__file__).parent / "photos"
NAMES = ("chelsea.jpg", "coffee.jpg", "rocket.jpg")


@cache
def client(url: str, api_key: str) -> blocking.KlingClient:
    """Return the client of this process. It is closed when the process ends."""
    return blocking.KlingClient(base_url=url, api_key=api_key).open()


def expand(url: str, api_key: str, photo: str) -> dict[str, Any]:
    """Expand a photo in a worker process, and return the result and the process id."""
    result = client(url, api_key).expand(photo, Ratios(right=0.5))
    return {**result.to_dict(), "process": os.getpid()}


async def main() -> None:
    with get_context("fork").Pool(2) as pool:  # before the event loop starts a thread
        async with Emulator(engine="flat", queue_seconds=0.1, work_seconds=0.2) as emulator:
            orders = [(emulator.url, emulator.api_key, str(PHOTOS / name)) for name in NAMES]
            results = await asyncio.to_thread(pool.starmap, expand, orders, 1)
            print("billed images:", emulator.account.images_billed)
        pool.close()
        pool.join()
    for result in results:
        print(result["name"], result["task"]["task_status"], len(result["images"]))
    print("in this process:", os.getpid() in {result["process"] for result in results})


if __name__ == "__main__":
    asyncio.run(main())

# Output:
# billed images: 3
# chelsea succeed 1
# coffee succeed 1
# rocket succeed 1
# in this process: False
