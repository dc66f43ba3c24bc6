"""The same web service on FastAPI: upload a photo, stream its progress and receive callbacks."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from aiohttp import ClientSession
from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import StreamingResponse

from kling_expand import TaskFuture, ToAspect
from kling_expand.contrib.starlette import get_client, setup, webhook
from kling_expand.emulator import Emulator

PHOTO = Path(__file__).parent / "photos" / "coffee.jpg"
app = FastAPI()
app.router.routes.append(webhook("/kling"))


async def events(future: TaskFuture) -> AsyncIterator[str]:
    """Yield each status, the last one with the URL of the picture."""
    async for task in future:
        words = [task.task_status, *(image.url for image in task.images)]
        yield f"data: {' '.join(words)}\n\n"


@app.post("/photos")
async def expand(photo: UploadFile, request: Request) -> StreamingResponse:
    callback_url = str(request.base_url) + "kling"
    future = get_client(request).submit(await photo.read(), ToAspect("16:9"), callback_url=callback_url)
    return StreamingResponse(events(future), media_type="text/event-stream")


async def main() -> None:
    async with Emulator(engine="flat", queue_seconds=1.0, allow_private=True) as emulator:
        setup(app, api_key=emulator.api_key, base_url=emulator.url)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            url, photo = f"http://127.0.0.1:{listening.getsockname()[1]}/photos", {"photo": PHOTO.open("rb")}
            async with ClientSession() as http, http.post(url, data=photo) as response:
                print((await response.text()).replace("\n\n", "\n"), end="")
            server.should_exit = True
            await serving


asyncio.run(main())

# Output:
# data: submitted
# data: processing
# data: succeed http://127.0.0.1:37649/files/279515741382100000/0.png
