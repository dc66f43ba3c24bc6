"""A web service on FastAPI with two workers: uploads, immediate job ids, callbacks, restarts and shutdown."""

import asyncio
import logging
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import ClientSession, FormData
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.responses import JSONResponse

from kling_expand import InvalidRequest, KlingError, TaskFuture, ToAspect
from kling_expand.contrib.starlette import get_client, setup, webhook
from kling_expand.emulator import Emulator

HERE = Path(__file__).resolve()
logger = logging.getLogger(__name__)
saving: set[asyncio.Task[None]] = set()  # asyncio itself keeps only weak references to tasks


async def save(future: TaskFuture) -> None:
    """Save the pictures of a job, which may end long after its request."""
    try:
        await (await future).save("pictures/{external_task_id}-{index}{ext}")
    except KlingError as error:  # such as a closed client, whose jobs the next worker resumes
        logger.warning("job %s: %s", future.external_task_id, error)


def save_later(future: TaskFuture) -> None:
    task = asyncio.create_task(save(future))
    saving.add(task)
    task.add_done_callback(saving.discard)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async for future in get_client(app).resume():  # the jobs that an earlier worker left open
        save_later(future)
    print(f"a worker is ready, {len(saving)} jobs resumed", flush=True)
    yield  # then the client closes: open jobs stay in the journal, and each `save` ends


app = FastAPI(lifespan=lifespan)
app.router.routes.append(webhook("/kling"))
setup(app, journal="jobs-{worker}.db")  # each worker takes the first file that no other process has open


@app.exception_handler(InvalidRequest)
async def refuse(_request: Request, error: InvalidRequest) -> JSONResponse:
    return JSONResponse({"field": error.field, "limit": error.limit}, 422)  # the message may contain a path


@app.post("/jobs", status_code=202)
async def submit(photo: UploadFile, request: Request) -> dict[str, str]:
    path = Path("uploads", uuid4().hex)  # not the caller's file name; a file survives a crash
    path.parent.mkdir(exist_ok=True)
    await asyncio.to_thread(path.write_bytes, await photo.read())
    callback_url = os.environ["PUBLIC_URL"] + "/kling"
    future = get_client(request).submit(path, ToAspect("16:9"), callback_url=callback_url)
    job_id = await future.recorded()  # from here on no crash loses the job
    save_later(future)
    return {"id": job_id}  # the same photo again is the same job, unless each has its own `key`


@app.get("/jobs/{job_id}")
async def status(job_id: str, request: Request) -> dict[str, Any]:
    job = await get_client(request).job(job_id)  # from the journal of this worker or of another one
    if job is None:
        raise HTTPException(404)
    return {"state": job.state, "files": [Path(file).name for file in job.files], "error": job.error}


async def use(http: ClientSession) -> None:
    """Upload some text and then a photo, and wait until the expanded picture is saved."""
    for content in (b"not a photo", (HERE.parent / "photos" / "coffee.jpg").read_bytes()):
        form = FormData()
        form.add_field("photo", content, filename="photo.jpg")
        async with http.post("/jobs", data=form) as response:
            print(response.status, job := await response.json())
    state: dict[str, Any] = {}
    while state.get("state") not in {"done", "failed", "rejected"}:
        await asyncio.sleep(0.1)
        async with http.get(f"/jobs/{job['id']}") as response:
            state = await response.json()
    print(response.status, state)


async def main(folder: str) -> None:
    os.chdir(folder)  # for the journals, the uploads and the pictures
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = f"{HERE.stem}:app --workers 2 --port {port} --timeout-graceful-shutdown 5 --log-level warning"
    command = [sys.executable, "-m", "uvicorn", *options.split(), "--app-dir", str(HERE.parent)]
    async with Emulator(engine="flat", work_seconds=0.2, allow_private=True) as emulator:
        os.environ |= {"KLING_BASE_URL": emulator.url, "KLING_API_KEY": emulator.api_key}
        os.environ["PUBLIC_URL"] = url = f"http://127.0.0.1:{port}"
        server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert server.stdout is not None
        print((await server.stdout.readline() + await server.stdout.readline()).decode(), end="")
        async with ClientSession(url, headers={"Connection": "close"}) as http:  # any worker may answer
            await use(http)
        server.terminate()
        await server.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))

# Output:
# a worker is ready, 0 jobs resumed
# a worker is ready, 0 jobs resumed
# 422 {'field': 'image', 'limit': 'must be PNG or JPEG data'}
# 202 {'id': 'kx-2e5ae731ec4ae9bcab77b9262b3ba9b1'}
# 200 {'state': 'done', 'files': ['kx-2e5ae731ec4ae9bcab77b9262b3ba9b1-0.png'], 'error': None}
