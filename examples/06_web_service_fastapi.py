"""The same with FastAPI: how does a web service widen its visitors' photos?

In a project of your own `make_app` is all there is: served by any ASGI server, keys in the environment.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import uvicorn
from aiohttp import ClientSession
from fastapi import Depends, FastAPI, HTTPException, Request, UploadFile
from fastapi.responses import StreamingResponse

from kling_expand import KlingClient, KlingError, TaskFuture, ToAspect
from kling_expand.contrib.starlette import get_client, setup, webhook
from kling_expand.emulator import Emulator

PHOTOS = Path(__file__).parent / "photos"
SECRET = "whsec_ZXhhbXBsZXMgc2hvdyB0aGVpciBzZWNyZXRz"  # the console's; only signed calls are news
Kling = Annotated[KlingClient, Depends(get_client)]


def make_app(**options: object) -> FastAPI:
    app, jobs = FastAPI(), dict[str, TaskFuture]()
    setup(app, **options)
    app.router.routes.append(webhook("/kling"))

    @app.post("/photos", status_code=202)
    async def upload(photo: UploadFile, request: Request, kling: Kling) -> str:
        callback_url = str(request.base_url) + "kling"
        future = kling.submit(await photo.read(), ToAspect("16:9"), callback_url=callback_url)
        try:
            task = await future.accepted()
        except KlingError as error:  # no photo, too small, moderated, out of units …
            raise HTTPException(422, str(error)) from error
        jobs[task.task_id] = future
        return task.task_id

    @app.get("/photos/{task_id}")
    async def progress(task_id: str) -> StreamingResponse:
        """Server-sent events: each status as soon as the service tells it, the picture's address last."""

        async def events(future: TaskFuture) -> AsyncIterator[str]:
            async for task in future:
                words = [task.task_status, *(image.url for image in task.images)]
                yield f"data: {' '.join(words)}\n\n"

        return StreamingResponse(events(jobs[task_id]), media_type="text/event-stream")

    return app


async def visit(origin: str) -> None:
    async with ClientSession(origin) as visitor:
        with PHOTOS.joinpath("coffee.jpg").open("rb") as photo:
            async with visitor.post("/photos", data={"photo": photo}) as answer:
                task_id = await answer.json()
        async with visitor.get(f"/photos/{task_id}") as events:
            async for line in events.content:
                if line.strip():
                    print(line.decode().strip())


async def main() -> None:
    async with Emulator(engine="flat", queue_seconds=1.0, webhook_secret=SECRET) as emulator:
        app = make_app(api_key=emulator.api_key, base_url=emulator.url, webhook_secret=SECRET)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            await visit(f"http://127.0.0.1:{listening.getsockname()[1]}")
            server.should_exit = True
            await serving


asyncio.run(main())

# Output:
# data: submitted
# data: processing
# data: succeed http://127.0.0.1:37649/files/279515741382100000/0.png
