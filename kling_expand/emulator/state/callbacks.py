"""Callbacks: one signed POST to a task's `callback_url` for each of its statuses.

As with images, private addresses are used only with `allow_private`. No redirect is followed. The signature
follows Standard Webhooks: HMAC-SHA256 over `{id}.{timestamp}.{body}`, in Base64.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator

import aiohttp
from attrs import frozen
from yarl import URL

from kling_expand.emulator.http.task_json import TaskJson
from kling_expand.emulator.painting.image_fetch import FetchError, check_url, public_connector
from kling_expand.emulator.service import Service
from kling_expand.emulator.settings import signing_key

from .background import BackgroundTasks
from .tasks import Task

_log = logging.getLogger(__name__)

RESPONSE_TIMEOUT = 10.0  # seconds


@frozen
class Message:
    """The callback for one status of a task. All its deliveries have the same id."""

    url: str
    message_id: str
    body: bytes


class Callbacks:
    """The sender of callbacks. `aclose` drops callbacks that are not delivered yet."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._session = aiohttp.ClientSession(
            connector=public_connector(lambda: service.settings.allow_private),
            timeout=aiohttp.ClientTimeout(total=RESPONSE_TIMEOUT),
        )
        self._background = BackgroundTasks()

    def follow(self, task: Task) -> None:
        """Send a callback for every status of a task that has a `callback_url`."""
        if task.callback_url:
            self._background.start(self._follow(task))

    async def _follow(self, task: Task) -> None:
        messages = []
        async for message in self._messages(task):
            if self._service.settings.callback_order == "sent":
                await self._send([message])
            else:
                messages.append(message)
        await self._send(messages)

    async def _messages(self, task: Task) -> AsyncIterator[Message]:
        """Yield the message of each status when the status begins. A status without duration has none."""
        clock = self._service.clock
        if task.starts_at > task.created_at:
            yield self._message(task, task.created_at)
        await clock.sleep_until(task.starts_at)
        task = self._service.account.tasks.get(task.task_id, task)
        if task.status_at(task.starts_at) == "processing":
            yield self._message(task, task.starts_at)
        task = await self._service.renderer.rendered(task)
        ended_at = task.due_at if task.ended_at is None else task.ended_at
        await clock.sleep_until(ended_at)
        yield self._message(task, ended_at)

    def _message(self, task: Task, moment: float) -> Message:
        settings = self._service.settings
        body = TaskJson(settings, settings.public_url or self._service.origin).task(task, moment)
        message_id = f"msg_{task.task_id}_{task.status_at(moment)}"
        return Message(task.callback_url, message_id, json.dumps(body).encode())

    async def _send(self, messages: list[Message]) -> None:
        deliveries = messages * self._service.settings.callback_repeats
        if self._service.settings.callback_order == "shuffled":
            self._service.rng.shuffle(deliveries)
        for message in deliveries:
            await self._deliver(message)

    async def _deliver(self, message: Message) -> None:
        settings, counts = self._service.settings, self._service.account.callbacks
        for attempt in range(settings.callback_attempts):
            if attempt:
                await asyncio.sleep(settings.callback_backoff * 2 ** (attempt - 1))
            if await self._post(message):
                counts["delivered"] += 1
                return
        counts["undelivered"] += 1

    async def _post(self, message: Message) -> bool:
        headers = {"Content-Type": "application/json"}
        secret = self._service.settings.webhook_secret
        if secret:
            timestamp = int(self._service.clock.source_now())
            headers |= signature_headers(
                secret, message_id=message.message_id, timestamp=timestamp, body=message.body
            )
        try:
            check_url(URL(message.url), allow_private=self._service.settings.allow_private)
            async with self._session.post(
                message.url, data=message.body, headers=headers, allow_redirects=False
            ) as response:
                return 200 <= response.status < 300
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, FetchError) as error:
            _log.warning("a callback to %s failed: %s", message.url.partition("?")[0], error)
            return False

    async def aclose(self) -> None:
        """Stop sending."""
        await self._background.aclose()
        await self._session.close()


def signature_headers(secret: str, *, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the three headers of a signed callback.

    Raises:
        ValueError: if the secret is not `whsec_` followed by Base64.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(signing_key(secret), signed, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }
