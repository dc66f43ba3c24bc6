"""How does a web service widen its visitors' photos? Upload, live progress, and the service calls back.

In a project of your own `make_app` is all there is: `web.run_app(make_app())`, keys in the environment.
"""

import asyncio
from pathlib import Path

from aiohttp import ClientSession, test_utils, web

from kling_expand import KlingError, TaskFuture, ToAspect
from kling_expand.contrib.aiohttp import get_client, setup, webhook
from kling_expand.emulator import Emulator

PHOTOS = Path(__file__).parent / "photos"
SECRET = "whsec_ZXhhbXBsZXMgc2hvdyB0aGVpciBzZWNyZXRz"  # the console's; only signed calls are news
JOBS = web.AppKey("jobs", dict[str, TaskFuture])


async def upload(request: web.Request) -> web.Response:
    callback_url = str(request.url.with_path("/kling"))
    future = get_client(request).submit(await request.read(), ToAspect("16:9"), callback_url=callback_url)
    try:
        task = await future.accepted()
    except KlingError as error:  # no photo, too small, moderated, out of units …
        raise web.HTTPUnprocessableEntity(text=str(error)) from error
    request.app[JOBS][task.task_id] = future
    return web.Response(text=task.task_id, status=202)


async def progress(request: web.Request) -> web.StreamResponse:
    """Server-sent events: each status as soon as the service tells it, the picture's address last."""
    future = request.app[JOBS][request.match_info["task_id"]]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async for task in future:
        words = [task.task_status, *(image.url for image in task.images)]
        await response.write(f"data: {' '.join(words)}\n\n".encode())
    return response


def make_app(**options: object) -> web.Application:
    app = web.Application(client_max_size=10 << 20)
    app[JOBS] = {}
    setup(app, **options)
    app.add_routes([web.post("/photos", upload), web.get("/photos/{task_id}", progress), webhook("/kling")])
    return app


async def main() -> None:
    async with Emulator(engine="flat", queue_seconds=1.0, webhook_secret=SECRET) as emulator:
        app = make_app(api_key=emulator.api_key, base_url=emulator.url, webhook_secret=SECRET)
        async with test_utils.TestServer(app) as server, ClientSession(server.make_url("/")) as visitor:
            async with visitor.post("/photos", data=PHOTOS.joinpath("coffee.jpg").open("rb")) as answer:
                task_id = await answer.text()
            async with visitor.get(f"/photos/{task_id}") as events:
                async for line in events.content:
                    if line.strip():
                        print(line.decode().strip())
            async with visitor.post("/photos", data=b"no photo") as answer:
                print(answer.status, answer.reason)


asyncio.run(main())

# Output:
# data: submitted
# data: processing
# data: succeed http://127.0.0.1:37649/files/279515741382100000/0.png
# 422 Unprocessable Entity
