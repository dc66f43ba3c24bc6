"""The renderer: from a task to its pictures or its failure."""

import base64
import errno
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.raw_client import NARROW, calling
from support.sample_pictures import BROKEN, saved

from kling_expand.emulator.painting.worker import Worker
from kling_expand.emulator.painting.worker_pool import WorkerPool

PHOTO = Path(__file__).parents[3] / "examples" / "photos" / "coffee.jpg"


async def test_the_real_engine_paints() -> None:
    """The default engine paints a photo, and the task does not end before that."""
    async with calling(engine="patchmatch", queue_seconds=0, work_seconds=0) as call:
        photo = base64.b64encode(PHOTO.read_bytes()).decode()
        task_id = await call.create(image=photo, **NARROW)
        await call.emulator.painted()
        task = await call.task(task_id)
        assert task["task_status"] == "succeed"
        async with call.session.get(task["task_result"]["images"][0]["url"]) as response:
            assert response.headers["X-Engine"] == "patchmatch"
            with Image.open(io.BytesIO(await response.read())) as picture:
                picture.load()


async def test_a_lost_worker_fails_the_task() -> None:
    """When worker processes die repeatedly, the task fails and does not hang."""
    async with calling(engine="patchmatch", queue_seconds=0, work_seconds=0) as call:
        call.emulator.service.renderer._pool._closing = True
        task_id = await call.create()
        await call.emulator.painted()
        task = await call.task(task_id)
        assert (task["task_status"], task["task_status_msg"]) == ("failed", "Internal generation error")


async def test_without_file_descriptors_a_task_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot be started fails the task, and the next task is painted."""
    start = WorkerPool._start_worker

    def refuse(_: WorkerPool) -> Worker:
        raise OSError(errno.EMFILE, "Too many open files")

    async with calling(engine="patchmatch", queue_seconds=0, work_seconds=0) as call:
        monkeypatch.setattr(WorkerPool, "_start_worker", refuse)
        failed = await call.create()
        await call.emulator.painted()
        monkeypatch.setattr(WorkerPool, "_start_worker", start)
        painted = await call.create(prompt="another", **NARROW)
        await call.emulator.painted()
        assert (await call.task(failed))["task_status_msg"] == "Internal generation error"
        assert (await call.task(painted))["task_status"] == "succeed"


async def test_a_picture_that_cannot_be_painted_fails_its_task() -> None:
    """A broken image fails the task, or with the flat engine only the download."""
    for engine, status in (("patchmatch", "failed"), ("flat", "succeed")):
        async with calling(engine=engine, queue_seconds=0, work_seconds=0) as call:
            task_id = await call.create(image=base64.b64encode(BROKEN).decode())
            await call.emulator.painted()
            task = await call.task(task_id)
            assert task["task_status"] == status
            if status == "failed":
                assert task["task_status_msg"].startswith("Image pixel is invalid: broken png")
                continue
            async with call.session.get(task["task_result"]["images"][0]["url"]) as response:
                assert response.status == 404


async def test_a_task_keeps_the_misregistration_of_its_create() -> None:
    """New tasks follow the setting, and the pictures of earlier tasks do not change."""
    async with calling(engine="flat", queue_seconds=0, work_seconds=0) as call:

        async def picture(task_id: str) -> bytes:
            await call.emulator.painted()
            task = await call.task(task_id)
            async with call.session.get(task["task_result"]["images"][0]["url"]) as response:
                return bytes(await response.read())

        noise = np.random.default_rng(1).integers(0, 255, (300, 300, 3), np.uint8)
        photo = base64.b64encode(saved(Image.fromarray(noise))).decode()
        earlier = await call.create(image=photo)
        before = await picture(earlier)
        call.emulator.misregister = "3,0,1"
        later = await call.create(image=photo)
        assert await picture(earlier) == before
        assert await picture(later) != before
