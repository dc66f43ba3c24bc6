"""Expand many photos with `map`, which keeps the account's slots full and isolates failures.

Requests may come from an iterable of any length: `map` reads only a few ahead.
"""

import asyncio
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from kling_expand import ExpandRequest, KlingClient, Padding
from kling_expand.emulator import Emulator

PHOTOS = Path(__file__).parent / "photos"


def requests() -> Iterator[ExpandRequest]:
    for name in ("chelsea.jpg", "coffee.jpg", "CREDITS.md", "rocket.jpg"):  # CREDITS.md is not a photo
        yield ExpandRequest(PHOTOS / name, Padding(left=100, right=100), key=name)


async def main() -> None:
    async with (
        Emulator(engine="flat", queue_seconds=0.2, work_seconds=0.5) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url, max_in_flight=2) as kling,
    ):
        async for outcome in kling.map(requests(), ordered=True):
            if outcome.result:
                paths = await outcome.result.save("out/{name}{ext}")
                print(outcome.index, *paths)
            else:
                print(outcome.index, outcome.request.key, type(outcome.error).__name__)
        print("peak slots", emulator.account.peak_slots)


with TemporaryDirectory() as folder, chdir(folder):  # so that the example leaves no files
    asyncio.run(main())

# Output:
# 0 out/chelsea.png
# 1 out/coffee.png
# 2 CREDITS.md ImageError
# 3 out/rocket.png
# peak slots 2
