"""Who takes part? Ours, a script by hand, and what users would pick instead, each at its defaults.

Each is opened on one server and gives a function that brings one job to its end and tells its id.
Nothing of a peer is changed but the address it speaks to.
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
from attrs import frozen

from benchmarks.reporting import picture
from benchmarks.server import KLING
from kling_expand import AdaptiveSchedule, KlingClient, Ratios
from kling_expand.jobs.poll_schedule import LATENESS

PHOTO = picture()
TEXT = b64encode(PHOTO).decode()
DIAL = (0.04, 0.2, 0.4, 2.0)  # seconds of lateness that we are also asked for
STEP = 2.0  # seconds between the script's looks
Run = Callable[[], Awaitable[str]]


@frozen
class Contestant:
    """`opened` takes the server's address and how many jobs will be under way at once."""

    opened: Callable[[str, int], AbstractAsyncContextManager[Run]]
    module: str | None = None  # what has to be installed

    @property
    def present(self) -> bool:
        """Whether it can take part here."""
        return self.module is None or importlib.util.find_spec(self.module) is not None


@asynccontextmanager
async def ours(url: str, at_once: int, latency: float = LATENESS) -> AsyncIterator[Run]:
    """This package, told how late it may be."""
    schedule = AdaptiveSchedule(latency=latency)
    async with KlingClient(api_key="key", base_url=url, max_in_flight=at_once, schedule=schedule) as kling:

        async def run() -> str:
            return (await kling.expand(PHOTO, Ratios(right=0.5))).task_id

        yield run


@asynccontextmanager
async def script(url: str, _at_once: int) -> AsyncIterator[Run]:
    """What one writes in ten minutes: create, then look every two seconds."""
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": "Bearer key"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:

        async def run() -> str:
            return await by_hand(http, url, STEP)

        yield run


async def by_hand(http: aiohttp.ClientSession, url: str, step: float) -> str:
    """One job without any SDK, looked at every *step* seconds; its task's id."""
    body: dict[str, Any] = {f"{side}_expansion_ratio": 0.0 for side in ("up", "down", "left")}
    body |= {"image": TEXT, "right_expansion_ratio": 0.5, "n": 1}
    async with http.post(url + KLING, json=body) as answer:
        task = (await answer.json())["data"]
    while task["task_status"] != "succeed":
        await asyncio.sleep(step)
        async with http.get(f"{url}{KLING}/{task['task_id']}") as answer:
            task = (await answer.json())["data"]
    return str(task["task_id"])


@asynccontextmanager
async def fal(url: str, _at_once: int) -> AsyncIterator[Run]:
    """`fal_client`: subscribe."""
    client: Any = importlib.import_module("fal_client.client")
    client.QUEUE_URL_FORMAT = f"{url}/fal/"  # it knows only https otherwise
    peer = client.AsyncClient(key="key")

    async def run() -> str:
        result = await peer.subscribe("owner/model", {"image_url": f"data:image/png;base64,{TEXT}"})
        return str(result["request_id"])

    yield run


@asynccontextmanager
async def runway(url: str, _at_once: int) -> AsyncIterator[Run]:
    """`runwayml`: create, wait_for_task_output."""
    library = importlib.import_module("runwayml")
    async with library.AsyncRunwayML(api_key="key", base_url=url) as peer:

        async def run() -> str:
            image = f"data:image/png;base64,{TEXT}"
            task = await peer.image_to_video.create(model="gen4_turbo", prompt_image=image, ratio="1280:720")
            return str((await task.wait_for_task_output()).id)

        yield run


@asynccontextmanager
async def replicate(url: str, _at_once: int) -> AsyncIterator[Run]:
    """`replicate`: create, wait."""
    library = importlib.import_module("replicate")
    peer = library.Client(api_token="key", base_url=url)

    async def run() -> str:
        given = {"image": f"data:image/png;base64,{TEXT}"}
        prediction = await peer.predictions.async_create(version="0" * 64, input=given)
        await prediction.async_wait()
        return str(prediction.id)

    yield run


@asynccontextmanager
async def comfy(url: str, _at_once: int) -> AsyncIterator[Run]:
    """`comfy_sdk`: run."""
    os.environ["COMFY_BASE_URL"] = url
    library = importlib.import_module("comfy_sdk")
    async with library.AsyncComfy(api_key="key") as peer:

        async def run() -> str:
            node = {"class_type": "LoadImage", "inputs": {"image": TEXT}}
            return str((await peer.run(peer.workflows.from_json({"1": node}))).id)

        yield run


@asynccontextmanager
async def bria(url: str, _at_once: int) -> AsyncIterator[Run]:
    """`bria_client`: submit, poll."""
    library = importlib.import_module("bria_client")
    async with library.BriaAsyncClient(base_url=url, api_token="key") as peer:

        async def run() -> str:
            payload = {"image": TEXT, "canvas_size": [1000, 1000]}
            response: Any = await peer.submit("image/edit/expand", payload)
            return str((await peer.poll(response)).request_id)

        yield run


OURS = {f"kling_expand@{late:g}": Contestant(partial(ours, latency=late)) for late in DIAL}
CONTESTANTS = {
    "kling_expand": Contestant(ours),
    **OURS,
    "script": Contestant(script),
    "fal-client": Contestant(fal, "fal_client"),
    "runwayml": Contestant(runway, "runwayml"),
    "replicate": Contestant(replicate, "replicate"),
    "comfy-sdk": Contestant(comfy, "comfy_sdk"),
    "bria-client": Contestant(bria, "bria_client"),
}
