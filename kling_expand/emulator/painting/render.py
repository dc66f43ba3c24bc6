"""How does a task come by its pictures? Its image is fetched if need be and painted on."""

import asyncio
import hashlib
from functools import partial

from attrs import evolve

from kling_expand.emulator.http.codes import Refusal
from kling_expand.emulator.http.uploads import BAD_PIXELS, check_image
from kling_expand.emulator.settings import Settings
from kling_expand.emulator.state.account import Account
from kling_expand.emulator.state.clock import Clock
from kling_expand.emulator.state.store import Store
from kling_expand.emulator.state.tasks import Task

from .image_fetch import FetchError, fetch
from .image_headers import PictureError
from .queue import LAZY, Key, Painter
from .worker import Painted, WorkerLost


class Studio:
    """Works on any number of tasks at once, in the background."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, account: Account) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._books = account
        self._painter = Painter(workers=settings.workers)
        self._working: dict[str, asyncio.Task[None]] = {}

    def take(self, task: Task) -> None:
        """Begin with a task that is not ready."""
        self._working[task.task_id] = working = asyncio.ensure_future(self._work(task))
        working.add_done_callback(lambda _: self._working.pop(task.task_id))

    async def _work(self, task: Task) -> None:
        """Enter how it went; whoever asks afterwards waits until that is on the disk."""
        failure = ""
        try:
            if not task.digest:
                task = await self._fetch(task)
            if task.engine != LAZY:
                await asyncio.gather(*(self._paint(task, index) for index in range(task.n)))
        except PictureError as error:
            failure = f"{BAD_PIXELS}: {error}"
        except WorkerLost:
            failure = "Server internal error"
        except FetchError as error:
            failure = f"Failed to fetch the image: {error}"
        except Refusal as refusal:
            failure = refusal.message
        done = task.painted(self._clock.now(), failure)
        self._store.put_task(done)
        self._books.update(done)

    async def _fetch(self, task: Task) -> Task:
        """The task once its image is here; raises FetchError, or Refusal for a bad image."""
        settings = self._settings
        image = await fetch(
            task.image_url, seconds=settings.fetch_seconds, allow_private=settings.allow_private
        )
        check_image(image)
        digest = hashlib.sha256(image).hexdigest()
        self._store.put_image(digest, image)
        return evolve(task, digest=digest)

    async def _paint(self, task: Task, index: int) -> Painted:
        key = Key(task.digest, task.ratios, task.seed + index, task.engine, task.watermark)
        return await self._painter.paint(key, partial(self._store.image, task.digest))

    async def picture(self, task: Task, index: int, *, watermark: bool) -> bytes | None:
        """PNG bytes of a task that is ready, painted again if they were dropped; None if there are none."""
        try:
            picture, marked = await self._paint(task, index)
        except PictureError:  # found out late, by an engine that paints on demand
            return None
        return marked if watermark else picture

    async def prepared(self, task: Task) -> Task:
        """The task once its end is known."""
        if task.task_id in self._working:
            await asyncio.wait([self._working[task.task_id]])
        return self._books.tasks.get(task.task_id, task)

    async def finished(self) -> None:
        """Return when nothing is being worked on: from then on the clock alone decides."""
        while self._working:
            await asyncio.wait(self._working.values())

    async def aclose(self) -> None:
        """Stop at once."""
        for working in self._working.values():
            working.cancel()
        await self._painter.aclose()
