"""The renderer, which fetches the image of a task if needed, paints its pictures and records the result."""

import asyncio
import hashlib
import logging
from functools import partial

from attrs import evolve

from kling_expand.emulator.http.codes import Refusal
from kling_expand.emulator.http.validation import INVALID_PIXELS, check_image
from kling_expand.emulator.settings import FLAT_ENGINE, Settings
from kling_expand.emulator.state.account import Account
from kling_expand.emulator.state.clock import Clock
from kling_expand.emulator.state.store import Store
from kling_expand.emulator.state.tasks import Task

from .image_fetch import FetchError, fetch
from .image_headers import PictureError
from .worker import Painted, WorkerLost
from .worker_pool import PictureKey, WorkerPool

_log = logging.getLogger(__name__)
INTERNAL_ERROR = "Internal generation error"  # the message of a failed task on the live service


class Renderer:
    """A renderer of any number of tasks at once, in the background."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, account: Account) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._account = account
        self._pool = WorkerPool(workers=settings.workers)
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, task: Task) -> None:
        """Start to render a task that is not ready."""
        self._running[task.task_id] = running = asyncio.ensure_future(self._render(task))
        running.add_done_callback(lambda _: self._running.pop(task.task_id))

    async def _render(self, task: Task) -> None:
        """Paint the pictures and record the end. The next query waits until the record is on disk."""
        failure = ""
        try:
            if not task.digest:
                task = await self._fetch(task)
            if task.engine != FLAT_ENGINE:
                await asyncio.gather(*(self._paint(task, index) for index in range(task.n)))
        except PictureError as error:
            failure = f"{INVALID_PIXELS}: {error}"
        except WorkerLost:
            failure = INTERNAL_ERROR
        except FetchError as error:
            failure = f"Failed to fetch the image: {error}"
        except Refusal as refusal:
            failure = refusal.message
        except Exception:  # noqa: BLE001 - for example, no free file descriptor: the task must still end
            _log.exception("task %s could not be painted", task.task_id)
            failure = INTERNAL_ERROR
        done = task.painted(self._clock.now(), failure)
        self._store.put_task(done)
        self._account.update(done)

    async def _fetch(self, task: Task) -> Task:
        settings = self._settings
        image = await fetch(
            task.image_url, timeout=settings.fetch_timeout, allow_private=settings.allow_private
        )
        check_image(image)
        digest = hashlib.sha256(image).hexdigest()
        self._store.put_image(digest, image)
        return evolve(task, digest=digest)

    async def _paint(self, task: Task, index: int) -> Painted:
        key = PictureKey(
            task.digest, task.ratios, task.seed + index, task.engine, task.watermark, task.misregister
        )
        return await self._pool.paint(key, partial(self._store.image, task.digest))

    async def picture(self, task: Task, index: int, *, watermark: bool) -> bytes | None:
        """Return PNG bytes of a ready task, or None if it has no such picture."""
        try:
            picture, copy = await self._paint(task, index)
        except PictureError:  # the flat engine paints on download, so it finds a broken image only then
            return None
        return copy if watermark else picture

    async def rendered(self, task: Task) -> Task:
        """Wait until a task is ready, and return its newest version."""
        if task.task_id in self._running:
            await asyncio.wait([self._running[task.task_id]])
        return self._account.tasks.get(task.task_id, task)

    async def idle(self) -> None:
        """Wait until no task is being fetched or painted."""
        while self._running:
            await asyncio.wait(self._running.values())

    async def aclose(self) -> None:
        """Stop at once."""
        for running in self._running.values():
            running.cancel()
        await self._pool.aclose()
