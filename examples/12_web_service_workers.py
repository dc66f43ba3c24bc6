"""A web service on FastAPI with two worker processes, each with its own journal, resumed when it starts."""

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientSession
from fastapi import FastAPI, Request, UploadFile

from kling_expand import ToAspect
from kling_expand.contrib.starlette import get_client, setup
from kling_expand.emulator import Emulator

HERE = Path(__file__).resolve()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    left = [future async for future in get_client(app).resume()]  # the open jobs of a process that ended
    print(f"a worker is ready, {len(left)} jobs resumed", flush=True)
    yield


app = FastAPI(lifespan=lifespan)
setup(app, journal="jobs-{worker}.db")  # each worker takes the first file that no other process has open


@app.post("/photos")
async def expand(photo: UploadFile, request: Request) -> str:
    return (await get_client(request).expand(await photo.read(), ToAspect("16:9"))).images[0].url


async def main(folder: str) -> None:
    os.chdir(folder)  # for the journals
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = f"{HERE.stem}:app --workers 2 --port {port} --timeout-graceful-shutdown 5 --log-level warning"
    command = [sys.executable, "-m", "uvicorn", *options.split(), "--app-dir", str(HERE.parent)]
    async with Emulator(engine="flat", work_seconds=0.2) as emulator, ClientSession() as http:
        os.environ |= {"KLING_BASE_URL": emulator.url, "KLING_API_KEY": emulator.api_key}
        server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert server.stdout is not None
        print((await server.stdout.readline() + await server.stdout.readline()).decode(), end="")
        photo = (HERE.parent / "photos" / "coffee.jpg").open("rb")
        async with http.post(f"http://127.0.0.1:{port}/photos", data={"photo": photo}) as response:
            print(response.status, await response.json())
        server.terminate()
        await server.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))

# Output:
# a worker is ready, 0 jobs resumed
# a worker is ready, 0 jobs resumed
# 200 http://127.0.0.1:37649/files/279515741382100000/0.png
