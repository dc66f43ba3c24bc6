"""Upload pictures to an S3-like store from memory, without writing a file.

`image.stream()` yields a picture in chunks once it is complete. `await image.read()` returns it as a whole.
"""

import asyncio
from pathlib import Path

from aiohttp import ClientSession, web

from kling_expand import KlingClient, Ratios
from kling_expand.emulator import Emulator

PHOTO = Path(__file__).parent / "photos" / "coffee.jpg"
bucket: dict[str, bytes] = {}


async def put(request: web.Request) -> web.Response:
    """Store an object, as the store's server does."""
    bucket[request.path] = await request.read()
    return web.Response()


async def main() -> None:
    app = web.Application(client_max_size=16 << 20)
    app.router.add_put("/{key:.*}", put)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    store = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with (
        Emulator(engine="flat", queue_seconds=0.1, work_seconds=0.2) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url) as kling,
        ClientSession() as http,
    ):
        result = await kling.expand(PHOTO, Ratios(right=0.5), n=2)
        for image in result.images:
            key = f"/pictures/{result.name}-{image.index}.png"
            await http.put(store + key, data=image.stream())
    await runner.cleanup()
    for key, content in bucket.items():
        print(key, "is a PNG:", content.startswith(b"\x89PNG"))


asyncio.run(main())

# Output:
# /pictures/coffee-0.png is a PNG: True
# /pictures/coffee-1.png is a PNG: True
