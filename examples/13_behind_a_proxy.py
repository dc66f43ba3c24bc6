"""Reach the service through a company's proxy, set by `proxy=` or by HTTPS_PROXY in the environment.

Calls and downloads go through the proxy. The key and your own headers (`headers=`) are sent only to the API.
"""

import asyncio
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from aiohttp import web

from kling_expand import KlingClient, ToAspect
from kling_expand.emulator import Emulator

PHOTO = Path(__file__).parent / "photos" / "chelsea.jpg"


async def main() -> None:
    seen = []

    async def forward(request: web.BaseRequest) -> web.Response:
        headers = {name: text for name, text in request.headers.items() if name != "Host"}
        seen.append(f"{request.method} {'with' if 'Authorization' in headers else 'without'} the key")
        data = await request.read()
        async with aiohttp.request(request.method, request.url, headers=headers, data=data) as answer:
            body = await answer.read()
            return web.Response(status=answer.status, body=body, content_type=answer.content_type)

    proxy = await asyncio.get_running_loop().create_server(web.Server(forward), "127.0.0.1", 0)
    address = "http://{}:{}".format(*proxy.sockets[0].getsockname())
    async with (
        proxy,
        Emulator(engine="flat", queue_seconds=0.1, work_seconds=0.2) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url, proxy=address) as kling,
    ):
        result = await kling.expand(PHOTO, ToAspect("16:9"))
        print("saved", *await result.save("out/"))
    print("the proxy has seen", *dict.fromkeys(seen), sep="\n- ")


with TemporaryDirectory() as folder, chdir(folder):  # so that the example leaves no files
    asyncio.run(main())

# Output:
# saved out/chelsea-0.png
# the proxy has seen
# - POST with the key
# - GET with the key
# - GET without the key
