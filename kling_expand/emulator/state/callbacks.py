"""Who is told when a task changes? Its `callback_url`, once a status, in the background.

Any address is called, private ones too: whoever tries callbacks out does so at home.
"""

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
from attrs import frozen

from kling_expand.emulator.service import Service

from . import signing
from .background import Background
from .tasks import Shapes, Task

PATIENCE = 10.0  # for one answer


@frozen
class Message:
    """One status of one task, on its way to `url`; repeats of it bear the same id."""

    url: str
    message_id: str
    body: bytes


class Callbacks:
    """Follows every task that wants calls; `aclose` drops what was not delivered."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE))
        self._following = Background()

    def follow(self, task: Task) -> None:
        """Call for every status, if the task wants that."""
        if task.callback_url:
            self._following.start(self._follow(task))

    async def _follow(self, task: Task) -> None:
        messages = []
        async for message in self._messages(task):
            if self._service.settings.callback_order == "sent":
                await self._repeat([message])
            else:
                messages.append(message)
        await self._repeat(messages)

    async def _messages(self, task: Task) -> AsyncIterator[Message]:
        """Each status once, when its time has come; one that lasted no time is left out."""
        clock = self._service.clock
        if task.starts > task.created:
            yield self._message(task, task.created)
        await clock.until(task.starts)
        task = self._service.account.tasks.get(task.task_id, task)
        if task.status_at(task.starts) == "processing":
            yield self._message(task, task.starts)
        task = await self._service.studio.prepared(task)
        ended = task.due if task.ended is None else task.ended
        await clock.until(ended)
        yield self._message(task, ended)

    def _message(self, task: Task, moment: float) -> Message:
        settings = self._service.settings
        shapes = Shapes(self._service.origin, seed=settings.seed_shapes, succeeded=settings.succeeded)
        view = shapes.task(task, moment)
        return Message(
            task.callback_url, f"msg_{task.task_id}_{view['task_status']}", json.dumps(view).encode()
        )

    async def _repeat(self, messages: list[Message]) -> None:
        repeated = messages * self._service.settings.callback_repeats
        if self._service.settings.callback_order == "shuffled":
            self._service.chance.shuffle(repeated)
        for message in repeated:
            await self._deliver(message)

    async def _deliver(self, message: Message) -> None:
        account = self._service.account
        for attempt in range(self._service.settings.callback_attempts):
            if attempt:
                await asyncio.sleep(self._service.settings.callback_pause * 2 ** (attempt - 1))
            if await self._post(message):
                account.callbacks["delivered"] += 1
                return
        account.callbacks["given up"] += 1

    async def _post(self, message: Message) -> bool:
        secret = self._service.settings.webhook_secret
        headers = {"Content-Type": "application/json"}
        if secret:
            now = int(self._service.clock.real())
            headers |= signing.headers(
                secret, message_id=message.message_id, timestamp=now, body=message.body
            )
        try:
            async with self._session.post(message.url, data=message.body, headers=headers) as answer:
                return 200 <= answer.status < 300
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return False

    async def aclose(self) -> None:
        """Stop calling."""
        await self._following.aclose()
        await self._session.close()
