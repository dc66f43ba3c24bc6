"""What does the service do when it is called? Orders become tasks; HTTP is somebody else's.

Everything here returns tasks or pictures, or raises Refusal.
"""

import asyncio
import hashlib
import math
import random
import zlib
from collections.abc import Callable
from functools import partial
from itertools import islice

from yarl import URL

from .faults import prompt_triggers as triggers
from .faults.plan import Faults
from .http import validation as rules
from .http.codes import Refusal
from .http.fields import is_url, parse
from .http.rate_limit import RateLimit
from .http.uploads import decode
from .painting.image_fetch import FetchError, check_host
from .painting.queue import LAZY
from .painting.render import Studio
from .settings import Settings
from .state import listing as lists
from .state.account import Account
from .state.change_signal import News
from .state.clock import Clock
from .state.store import Store
from .state.tasks import Task

LARGE = 1_000_000  # bytes of a body beyond which reading it would hold up the loop


class Service:
    """The account: its tasks, its pictures and its limits."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.state)
        self.clock = Clock(settings.clock, moved=self.store.fact("moved"))
        self.news = News()
        self.account = Account(settings.life_seconds, self.news)
        self.origin = ""
        self.chance = random.Random(settings.seed)
        self.faults = Faults(random.Random(settings.seed))
        self.rate = RateLimit(settings)
        self.on_task: list[Callable[[Task], None]] = []  # told of each task made, or found unfinished
        self.studio = Studio(settings, self.store, self.clock, self.account)

    def start(self, origin: str) -> None:
        """Take up the tasks of the state file; `origin` is where pictures are found."""
        self.origin = origin
        now = self.clock.now()
        for task in self.store.tasks():
            self.account.add(task)
        everything = set(self.account.tasks)
        self.account.settle(now)
        self.store.drop(everything - set(self.account.tasks))
        for task in self.account.tasks.values():
            if task.status_at(now) in {"submitted", "processing"}:
                self._take_up(task)

    async def create(self, dialect: str, raw: bytes) -> Task:
        """A new task from a request's body."""
        if len(raw) > LARGE:
            read = partial(_read, dialect, raw)
            order, image = await asyncio.get_running_loop().run_in_executor(None, read)
        else:
            order, image = _read(dialect, raw)
        if not image:
            self._check_address(order.image)
        self._admit(order)
        digest = hashlib.sha256(image).hexdigest() if image else ""
        task = self._new(dialect, order, digest)
        self.account.add(task)
        if image:
            self.store.put_image(digest, image)
        self.store.put_task(task)
        await self.store.flush()
        self._take_up(task)
        return task

    def _check_address(self, address: str) -> None:
        try:
            check_host(URL(address), allow_private=self.settings.allow_private)
        except (FetchError, ValueError) as error:
            raise Refusal(1201, f"image can not be fetched: {error}") from None

    def _admit(self, order: rules.Order) -> None:
        triggers.check(order.prompt)
        self.account.settle(self.clock.now())
        known = order.external_task_id and self.account.has_external(order.external_task_id)
        if known and not self.settings.allow_duplicates:
            raise Refusal(1201, f"external_task_id {order.external_task_id} already exists")
        if self.account.used_slots + order.n > self.settings.slots:
            raise Refusal(1303)
        if self.account.open_tasks >= self.settings.open_tasks:
            raise Refusal(1303)

    def _new(self, dialect: str, order: rules.Order, digest: str) -> Task:
        now = self.clock.now()
        failure = triggers.failure(order.prompt)
        factor = math.exp(self.settings.jitter * self.chance.gauss(0, 1)) if self.settings.jitter else 1.0
        starts = now + self.settings.queue_seconds * factor
        return Task(
            task_id=self.account.next_id(now),
            external_task_id=order.external_task_id,
            dialect=dialect,
            ratios=order.ratios,
            n=order.n,
            prompt=order.prompt,
            watermark=order.watermark,
            callback_url=order.callback_url,
            created=now,
            starts=starts,
            due=starts + self.settings.work_seconds * factor,
            seed=zlib.crc32(f"{self.settings.seed} {order.prompt!a}".encode()) & 0xFFFFFFF,
            engine=self.settings.engine,
            image_url="" if digest else order.image,
            digest=digest,
            ready=now if failure or (digest and self.settings.engine == LAZY) else None,
            failure=failure,
        )

    def _take_up(self, task: Task) -> None:
        if task.ready is None:
            self.studio.take(task)
        for listener in self.on_task:
            listener(task)

    async def query(self, dialect: str, name: str) -> Task:
        """One task by either of its ids."""
        self.account.settle(self.clock.now())
        task = self.account.find(name, dialect)
        await self.store.flush()  # nothing may be told that a crash could still undo
        if task is None:
            raise Refusal(1201, f"Task not found by id/external id: {name}")
        return task

    async def list(self, dialect: str, page: lists.Page) -> list[Task]:
        """One page of tasks, newest first unless the settings say otherwise."""
        now = self.clock.now()
        self.account.settle(now)
        tasks = lists.arrange(self.account.newest(dialect), self.settings, now, self.chance)
        found = list(islice(tasks, page.span.start, page.span.stop))
        await self.store.flush()
        return found

    async def picture(self, task_id: str, index: int, *, watermark: bool) -> tuple[bytes, str] | None:
        """PNG bytes and their engine's name; None where there is no such picture, not yet or no longer."""
        now = self.clock.now()
        self.account.settle(now)
        task = self.account.tasks.get(task_id)
        await self.store.flush()
        if task is None or index >= task.n or task.status_at(now) != "succeed":
            return None
        data = await self.studio.picture(task, index, watermark=watermark)
        return (data, task.engine) if data else None

    def advance(self, seconds: float) -> None:
        """Move the clock forwards, also for those who come after a restart."""
        self.clock.advance(seconds)
        self.store.put_fact("moved", self.clock.moved)
        self.news.tell()

    async def aclose(self) -> None:
        """Stop painting, write what waits."""
        await self.studio.aclose()
        await self.store.aclose()


def _read(dialect: str, raw: bytes) -> tuple[rules.Order, bytes]:
    order = rules.DIALECTS[dialect](parse(raw))
    return order, b"" if is_url(order.image) else decode(order.image)
