"""The clients that `benchmarks.compare` measures: this package, a raw aiohttp script, and other SDKs.

Each is opened on one server and yields a function that runs one job to its end and returns the job's id.
Of the other SDKs only the server's address is set; all other settings are their defaults.
"""

import asyncio
import importlib
import importlib.util
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
from aiohttp import web
from attrs import frozen

from benchmarks.callbacks import KINDS, SECRET
from benchmarks.reporting import picture
from benchmarks.server import KLING
from kling_expand import AdaptiveSchedule, KlingClient, Ratios
from kling_expand.contrib.aiohttp import get_client, setup, webhook
from kling_expand.jobs.poll_schedule import TARGET_LATENCY

PHOTO = picture()
TEXT = b64encode(PHOTO).decode()
LATENCIES = (0.04, 0.2, 0.4, 2.0)  # further target latencies of this package, in seconds
INTERVAL = 2.0  # seconds between two polls of the script
Run = Callable[[], Awaitable[str]]


@frozen
class Client:
    """A client; `open` takes the server's address and the number of concurrent jobs."""

    open: Callable[[str, int], AbstractAsyncContextManager[Run]]
    module: str | None = None  # the module that must be installed

    @property
    def installed(self) -> bool:
        """Whether the client can be measured here."""
        return self.module is None or importlib.util.find_spec(self.module) is not None


@asynccontextmanager
async def ours(url: str, concurrent: int, latency: float = TARGET_LATENCY) -> AsyncIterator[Run]:
    """Open this package's client with a target latency."""
    schedule = AdaptiveSchedule(target_latency=latency)
    options: dict[str, Any] = {"max_in_flight": concurrent, "schedule": schedule}
    async with KlingClient(api_key="key", base_url=url, **options) as kling:

        async def run() -> str:
            return (await kling.expand(PHOTO, Ratios(right=0.5))).task_id

        yield run


@asynccontextmanager
async def with_callbacks(url: str, concurrent: int, kind: str) -> AsyncIterator[Run]:
    """Open this package's client in a web application that receives callbacks of a *kind*."""
    app = web.Application()
    secret = f"whsec_{SECRET}"
    setup(app, api_key="key", base_url=url, max_in_flight=concurrent, webhook_secret=secret)
    app.add_routes([webhook(f"/{kind}")])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    callback_url = f"http://127.0.0.1:{runner.addresses[0][1]}/{kind}"

    async def run() -> str:
        kling = get_client(app)
        return (await kling.expand(PHOTO, Ratios(right=0.5), callback_url=callback_url)).task_id

    yield run
    await runner.cleanup()


@asynccontextmanager
async def script(url: str, _concurrent: int) -> AsyncIterator[Run]:
    """Open a session for a short script that polls every two seconds."""
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": "Bearer key"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:

        async def run() -> str:
            return await raw_job(http, url, INTERVAL)

        yield run


async def raw_job(http: aiohttp.ClientSession, url: str, interval: float) -> str:
    """Create a task, poll it every *interval* seconds until it ends, and return its id."""
    body: dict[str, Any] = {f"{side}_expansion_ratio": 0.0 for side in ("up", "down", "left")}
    body |= {"image": TEXT, "right_expansion_ratio": 0.5, "n": 1}
    async with http.post(url + KLING, json=body) as response:
        task = (await response.json())["data"]
    while task["task_status"] != "succeed":
        await asyncio.sleep(interval)
        async with http.get(f"{url}{KLING}/{task['task_id']}") as response:
            task = (await response.json())["data"]
    return str(task["task_id"])


@asynccontextmanager
async def fal(url: str, _concurrent: int) -> AsyncIterator[Run]:
    """Open `fal_client` and use its `subscribe`."""
    library: Any = importlib.import_module("fal_client.client")
    library.QUEUE_URL_FORMAT = f"{url}/fal/"  # no option accepts an http address
    client = library.AsyncClient(key="key")

    async def run() -> str:
        result = await client.subscribe("owner/model", {"image_url": f"data:image/png;base64,{TEXT}"})
        return str(result["request_id"])

    yield run


@asynccontextmanager
async def runway(url: str, _concurrent: int) -> AsyncIterator[Run]:
    """Open `runwayml` and use its `create` and `wait_for_task_output`."""
    library = importlib.import_module("runwayml")
    async with library.AsyncRunwayML(api_key="key", base_url=url) as client:

        async def run() -> str:
            image = f"data:image/png;base64,{TEXT}"
            task = await client.image_to_video.create(
                model="gen4_turbo", prompt_image=image, ratio="1280:720"
            )
            return str((await task.wait_for_task_output()).id)

        yield run


@asynccontextmanager
async def replicate(url: str, _concurrent: int) -> AsyncIterator[Run]:
    """Open `replicate` and use its `async_create` and `async_wait`."""
    library = importlib.import_module("replicate")
    client = library.Client(api_token="key", base_url=url)

    async def run() -> str:
        inputs = {"image": f"data:image/png;base64,{TEXT}"}
        prediction = await client.predictions.async_create(version="0" * 64, input=inputs)
        await prediction.async_wait()
        return str(prediction.id)

    yield run


@asynccontextmanager
async def comfy(url: str, _concurrent: int) -> AsyncIterator[Run]:
    """Open `comfy_sdk` and use its `run`."""
    os.environ["COMFY_BASE_URL"] = url
    library = importlib.import_module("comfy_sdk")
    async with library.AsyncComfy(api_key="key") as client:

        async def run() -> str:
            node = {"class_type": "LoadImage", "inputs": {"image": TEXT}}
            return str((await client.run(client.workflows.from_json({"1": node}))).id)

        yield run


@asynccontextmanager
async def bria(url: str, _concurrent: int) -> AsyncIterator[Run]:
    """Open `bria_client` and use its `submit` and `poll`."""
    library = importlib.import_module("bria_client")
    async with library.BriaAsyncClient(base_url=url, api_token="key") as client:

        async def run() -> str:
            payload = {"image": TEXT, "canvas_size": [1000, 1000]}
            response: Any = await client.submit("image/edit/expand", payload)
            return str((await client.poll(response)).request_id)

        yield run


CLIENTS = {
    "kling_expand": Client(ours),
    **{f"kling_expand@{latency:g}": Client(partial(ours, latency=latency)) for latency in LATENCIES},
    **{
        "kling_expand+callbacks" + (f":{kind}" if kind != "arriving" else ""): Client(
            partial(with_callbacks, kind=kind)
        )
        for kind in KINDS
    },
    "script": Client(script),
    "fal-client": Client(fal, "fal_client"),
    "runwayml": Client(runway, "runwayml"),
    "replicate": Client(replicate, "replicate"),
    "comfy-sdk": Client(comfy, "comfy_sdk"),
    "bria-client": Client(bria, "bria_client"),
}
