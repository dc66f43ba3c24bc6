"""The service behind the HTTP routes: creates, queries, lists and pictures.

Its methods return tasks or pictures, or raise `Refusal`.
"""

import asyncio
import hashlib
import math
import random
import sqlite3
import zlib
from collections.abc import Callable
from functools import partial
from itertools import islice

from yarl import URL

from .faults.plan import FaultPlan
from .faults.prompt_triggers import refuse_if_triggered, triggered_failure
from .http.codes import Refusal
from .http.rate_limit import RateLimit
from .http.validation import CreateRequest, parse_create
from .painting.image_fetch import FetchError, check_url
from .painting.render import Renderer
from .settings import FLAT_ENGINE, Settings
from .state.account import Account
from .state.change_signal import ChangeSignal
from .state.clock import Clock
from .state.listing import Page, arrange
from .state.store import Store
from .state.tasks import Task

_LARGE_BODY = 1_000_000  # bytes; parsing a larger body would block the event loop


class Service:
    """One account with its tasks, pictures and limits."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store: Store = Store(settings.state)
        self.clock: Clock = Clock(settings.clock, offset=self.store.number("clock_offset"))
        self.changes: ChangeSignal = ChangeSignal()
        self.account: Account = Account(settings.retention_seconds, self.changes)
        self.origin: str = ""
        self.rng: random.Random = random.Random(settings.seed)
        self.faults: FaultPlan = FaultPlan(random.Random(settings.seed), self.clock.now)
        self.rate_limit: RateLimit = RateLimit(settings)
        self.on_task: list[Callable[[Task], None]] = []  # called with each new or resumed task
        self.renderer: Renderer = Renderer(settings, self.store, self.clock, self.account)

    def start(self, origin: str) -> None:
        """Resume the tasks of the state file. *origin* is the base of picture URLs."""
        self.origin = origin
        now = self.clock.now()
        for task in self.store.tasks():
            self.account.add(task)
        self.settle()
        for task in self.account.tasks.values():
            if task.status_at(now) in {"submitted", "processing"}:
                self._activate(task)

    def settle(self) -> None:
        """Bring the account up to date, and delete expired tasks from the state file."""
        self.account.settle(self.clock.now())
        for task_id, digest in self.account.expired:
            self.store.delete(task_id, digest)
        self.account.expired.clear()

    async def create(self, dialect: str, raw: bytes) -> Task:
        """Create a task from the body of a create, and return it.

        Raises:
            Refusal: if the request is invalid, over a limit of the account, or cannot be stored.
        """
        if len(raw) > _LARGE_BODY:
            parse = partial(parse_create, dialect, raw)
            request, image = await asyncio.get_running_loop().run_in_executor(None, parse)
        else:
            request, image = parse_create(dialect, raw)
        if not image:
            self._check_url(request.image)
        self._admit(request)
        digest = hashlib.sha256(image).hexdigest() if image else ""
        task = self._new_task(dialect, request, digest)
        self.account.add(task)
        if image:
            self.store.put_image(digest, image)
        self.store.put_task(task)
        try:
            await self.store.flush()
        except sqlite3.Error as error:  # for example with a full disk: no task is left, and no slot is held
            self.account.remove(task)
            self.settle()
            raise Refusal(5000, f"Server internal error: the task cannot be stored: {error}") from None
        self._activate(task)
        return task

    def _check_url(self, url: str) -> None:
        try:
            check_url(URL(url), allow_private=self.settings.allow_private)
        except (FetchError, ValueError) as error:
            raise Refusal(1201, f"image can not be fetched: {error}") from None

    def _admit(self, request: CreateRequest) -> None:
        refuse_if_triggered(request.prompt)
        self.settle()
        external_id = request.external_task_id
        used = external_id and self.account.has_external_id(external_id)
        if used and not self.settings.allow_duplicates:
            raise Refusal(1201, f"external_task_id {external_id} already exists")
        if self.account.used_slots + request.n > self.settings.slots:
            raise Refusal(1303)
        if self.account.open_tasks >= self.settings.max_open_tasks:
            raise Refusal(1303)

    def _new_task(self, dialect: str, request: CreateRequest, digest: str) -> Task:
        now, settings = self.clock.now(), self.settings
        failure = triggered_failure(request.prompt)
        factor = math.exp(settings.jitter * self.rng.gauss(0, 1)) if settings.jitter else 1.0
        starts_at = now + settings.queue_seconds * factor
        return Task(
            task_id=self.account.new_id(now, text=settings.task_id_format == "text"),
            external_task_id=request.external_task_id,
            dialect=dialect,
            ratios=request.ratios,
            n=request.n,
            prompt=request.prompt,
            watermark=request.watermark,
            callback_url=request.callback_url,
            created_at=now,
            starts_at=starts_at,
            due_at=starts_at + settings.work_seconds * factor,
            seed=zlib.crc32(f"{settings.seed} {request.prompt!a}".encode()) & 0xFFFFFFF,
            engine=settings.engine,
            misregister=settings.misregister,
            image_url="" if digest else request.image,
            digest=digest,
            ready_at=now if failure or (digest and settings.engine == FLAT_ENGINE) else None,
            failure=failure,
        )

    def _activate(self, task: Task) -> None:
        if task.ready_at is None:
            self.renderer.start(task)
        for listener in self.on_task:
            listener(task)

    async def query(self, dialect: str, name: str) -> Task:
        """Return the task with this id or external id.

        Raises:
            Refusal: if there is none (code 1201).
        """
        self.settle()
        task = self.account.find(name, dialect)
        await self.store.flush()  # a response must not show what a crash could undo
        if task is None:
            raise Refusal(1201, f"Task not found by id/external id: {name}")
        return task

    async def list(self, dialect: str, page: Page) -> list[Task]:
        """Return one page of tasks, newest first by default.

        Raises:
            Refusal: if the setting `list_code` refuses lists.
        """
        now = self.clock.now()
        self.settle()
        tasks = arrange(self.account.newest(dialect), self.settings, now, self.rng)
        found = list(islice(tasks, page.span.start, page.span.stop))
        await self.store.flush()
        return found

    async def picture(self, task_id: str, index: int, *, watermark: bool) -> tuple[bytes, str] | None:
        """Return PNG bytes and the engine's name, or None if there is no such picture now."""
        now = self.clock.now()
        self.settle()
        task = self.account.tasks.get(task_id)
        await self.store.flush()
        if task is None or index >= task.n or task.status_at(now) != "succeed":
            return None
        data = await self.renderer.picture(task, index, watermark=watermark)
        return (data, task.engine) if data else None

    def advance(self, seconds: float) -> None:
        """Move the clock forward. The offset is kept in the state file.

        Raises:
            ValueError: if *seconds* is negative or not finite.
        """
        self.clock.advance(seconds)
        self.store.put_number("clock_offset", self.clock.offset)
        self.changes.notify()

    async def aclose(self) -> None:
        """Stop painting and write pending changes."""
        await self.renderer.aclose()
        await self.store.aclose()
