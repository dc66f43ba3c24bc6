"""How are many photos expanded? `map` keeps the account's slots full, and one failure stops nobody else.

Requests may come from any iterable, of any length: only a few are held at a time.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from kling_expand import ExpandRequest, KlingClient, Padding
from kling_expand.emulator import Emulator

PHOTOS = Path(__file__).parent / "photos"


def requests() -> Iterator[ExpandRequest]:
    for name in ("chelsea.jpg", "coffee.jpg", "CREDITS.md", "rocket.jpg"):  # one of them is no photo
        yield ExpandRequest(PHOTOS / name, Padding(left=100, right=100), key=name)


async def main() -> None:
    async with (
        Emulator(queue_seconds=0.2, work_seconds=0.5) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url, max_in_flight=2) as kling,
    ):
        async for outcome in kling.map(requests(), ordered=True):
            if outcome.result:
                paths = await outcome.result.save("out/{name}{ext}")
                print(outcome.index, *paths)
            else:
                print(outcome.index, outcome.request.key, type(outcome.error).__name__)
        print("at most", emulator.account.peak_slots, "at once")


asyncio.run(main())

# Output:
# 0 out/chelsea.png
# 1 out/coffee.png
# 2 CREDITS.md ImageError
# 3 out/rocket.png
# at most 2 at once
