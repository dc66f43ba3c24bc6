"""A web service on aiohttp that expands uploaded photos, streams their progress and receives callbacks."""

import asyncio
from pathlib import Path

from aiohttp import ClientSession, test_utils, web

from kling_expand import KlingError, ToAspect
from kling_expand.contrib.aiohttp import get_client, setup, webhook
from kling_expand.emulator import Emulator

PHOTO = Path(__file__).parent / "photos" / "coffee.jpg"
SECRET = "whsec_ZXhhbXBsZXMgc2hvdyB0aGVpciBzZWNyZXRz"  # only callbacks signed with it are accepted


async def expand(request: web.Request) -> web.StreamResponse:
    """Expand the uploaded photo and stream each status, the last one with the URL of the picture."""
    callback_url = str(request.url.with_path("/kling"))
    future = get_client(request).submit(await request.read(), ToAspect("16:9"), callback_url=callback_url)
    try:
        await future.accepted()
    except KlingError as error:  # not a photo, rejected by moderation, no units left, ...
        raise web.HTTPUnprocessableEntity(text=str(error)) from error
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async for task in future:
        words = [task.task_status, *(image.url for image in task.images)]
        await response.write(f"data: {' '.join(words)}\n\n".encode())
    return response


def make_app(api_key: str | None = None, base_url: str | None = None) -> web.Application:
    """Make the application. If the credentials are in the environment, no arguments are needed."""
    app = web.Application(client_max_size=10 << 20)
    setup(app, api_key=api_key, base_url=base_url, webhook_secret=SECRET)
    app.add_routes([web.post("/photos", expand), webhook("/kling")])
    return app


async def main() -> None:
    async with Emulator(
        engine="flat", queue_seconds=1.0, webhook_secret=SECRET, allow_private=True
    ) as emulator:
        app = make_app(emulator.api_key, emulator.url)
        async with test_utils.TestServer(app) as server, ClientSession(server.make_url("/")) as http:
            for photo in (PHOTO.read_bytes(), b"not a photo"):
                async with http.post("/photos", data=photo) as response:
                    print(response.status, *(await response.text()).split("\n\n")[:-1], sep="\n")


asyncio.run(main())

# Output:
# 200
# data: submitted
# data: processing
# data: succeed http://127.0.0.1:37649/files/279515741382100000/0.png
# 422
