"""Callbacks: their order, repeats, signatures and retries."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook
from support.raw_client import Caller, calling

from kling_expand.emulator.state.callbacks import signature_headers

SECRET = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="


class Receiver:
    """A server that stores the callbacks it receives, and responds with the status from `next_status`."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()
        self.next_status: Callable[[], int] = lambda: 200
        self.headers: dict[str, str] = {}

    async def handle(self, request: web.Request) -> web.Response:
        """Store a callback and respond."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        status = self.next_status()
        self.calls.put_nowait((headers, await request.read()))
        return web.Response(status=status, headers=self.headers)

    async def next(self) -> dict[str, Any]:
        """Wait for the next body and return it."""
        body: dict[str, Any] = json.loads((await self.calls.get())[1])
        return body

    async def statuses(self, count: int) -> list[str]:
        """Wait for the next callbacks and return their statuses."""
        return [(await self.next())["task_status"] for _ in range(count)]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Run a receiver on a free port."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def test_each_status_is_sent_when_it_begins() -> None:
    """Each status is sent when it begins, and the body is the task as a query returns it."""
    async with receiving() as receiver, calling(allow_private=True, queue_seconds=5, work_seconds=5) as call:
        task_id = await call.create(callback_url=receiver.url, external_task_id="x")
        sent = await receiver.next()
        assert (sent["task_id"], sent["task_status"]) == (task_id, "submitted")
        call.emulator.advance(5)
        assert await receiver.statuses(1) == ["processing"]
        call.emulator.advance(5)
        assert await receiver.next() == await call.task(task_id)


async def test_a_status_without_duration_is_not_sent() -> None:
    """A task that ends at once has one callback, which has the message if the task failed."""
    async with receiving() as receiver, calling(allow_private=True, queue_seconds=0, work_seconds=0) as call:
        await call.create(callback_url=receiver.url)
        assert await receiver.statuses(1) == ["succeed"]
        await call.create(callback_url=receiver.url, prompt="emulate-risk-control")
        sent = await receiver.next()
        assert sent["task_status"] == "failed"
        assert sent["task_status_msg"] == "Failure to pass the risk control system"
        assert receiver.calls.empty()


async def test_advancing_the_clock_skips_no_status() -> None:
    """If the clock jumps over a status, the callback of that status is still sent."""
    async with receiving() as receiver, calling(allow_private=True, queue_seconds=5, work_seconds=5) as call:
        await call.create(callback_url=receiver.url)
        call.emulator.advance(100)
        assert await receiver.statuses(3) == ["submitted", "processing", "succeed"]


async def test_callbacks_can_be_repeated_and_out_of_order() -> None:
    """With `shuffled`, all callbacks are sent at the end, repeated and in any order."""
    options = {"callback_order": "shuffled", "callback_repeats": 3, "queue_seconds": 5, "work_seconds": 5}
    async with receiving() as receiver, calling(allow_private=True, **options) as call:
        await call.create(callback_url=receiver.url)
        call.emulator.advance(10)
        sent = await receiver.statuses(9)
        in_order = ["submitted"] * 3 + ["processing"] * 3 + ["succeed"] * 3
        assert (sorted(sent), sent != in_order) == (sorted(in_order), True)


async def test_an_independent_library_accepts_the_signature() -> None:
    """The library `standardwebhooks` accepts each callback, and only repeats share an id."""
    options = {"webhook_secret": SECRET, "callback_repeats": 2, "queue_seconds": 0, "work_seconds": 5}
    async with receiving() as receiver, calling(allow_private=True, **options) as call:
        await call.create(callback_url=receiver.url)
        call.emulator.advance(5)
        calls = [await receiver.calls.get() for _ in range(4)]
        for headers, body in calls:
            assert Webhook(SECRET).verify(body, headers) == json.loads(body)
        ids = [headers["webhook-id"] for headers, _ in calls]
        assert (ids[0], ids[2]) == (ids[1], ids[3])
        assert ids[0] != ids[2]


async def test_without_a_secret_no_signature_is_sent() -> None:
    """Without a secret, no signature header is sent."""
    async with receiving() as receiver, calling(allow_private=True) as call:
        await call.create(callback_url=receiver.url)
        headers, _ = await receiver.calls.get()
        assert not any(name.startswith("webhook-") for name in headers)


def test_the_published_example_is_reproduced() -> None:
    """The documentation's sample gets the documented signature."""
    body = (
        b'{"id":"1234567890","status":"succeeded","message":"",'
        b'"create_time":1781080778802,"update_time":1781080794151}'
    )
    headers = signature_headers(SECRET, message_id="9876543210", timestamp=1781080794, body=body)
    assert headers["webhook-signature"] == "v1,UsKlJP00XoQyOn410NM9xv34sP+Gl0jnOO9Lcpr7NJ4="


async def delivered(call: Caller, what: str, count: int = 1) -> None:
    """Wait until *count* callbacks are "delivered" or "undelivered", as *what* says."""
    while call.emulator.account.callbacks[what] < count:  # noqa: ASYNC110 - the counts are plain numbers
        await asyncio.sleep(0)


async def test_a_failing_receiver_is_retried() -> None:
    """After two responses with status 500, the third attempt delivers the callback."""
    statuses = iter([500, 500, 200])
    options = {"callback_backoff": 0, "queue_seconds": 0, "work_seconds": 0}
    async with receiving() as receiver, calling(allow_private=True, **options) as call:
        receiver.next_status = lambda: next(statuses)
        await call.create(callback_url=receiver.url)
        assert await receiver.statuses(3) == ["succeed"] * 3
        await delivered(call, "delivered")


async def test_a_missing_receiver_affects_no_task() -> None:
    """Callbacks that cannot be delivered affect neither tasks nor responses."""
    async with calling(allow_private=True, callback_backoff=0, queue_seconds=0, work_seconds=0) as call:
        task_id = await call.create(callback_url="http://127.0.0.1:1/hook")
        await delivered(call, "undelivered")
        assert (await call.task(task_id))["task_status"] == "succeed"
        assert call.emulator.account.callbacks["delivered"] == 0


async def test_private_addresses_are_called_only_when_allowed() -> None:
    """By default, no callback is sent to a loopback address, however its URL writes the address."""
    async with receiving() as receiver, calling(callback_attempts=1, queue_seconds=0, work_seconds=0) as call:
        port = receiver.url.partition("127.0.0.1:")[2]
        for host in ("127.0.0.1", "2130706433", "localhost"):
            await call.create(callback_url=f"http://{host}:{port}")
        await delivered(call, "undelivered", 3)
        assert receiver.calls.empty()


async def test_a_redirect_is_not_followed() -> None:
    """A receiver cannot redirect a callback to another address."""
    async with receiving() as receiver, receiving() as other:
        receiver.next_status = lambda: 307
        receiver.headers = {"Location": other.url}
        settings = {"allow_private": True, "callback_attempts": 1, "queue_seconds": 0, "work_seconds": 0}
        async with calling(**settings) as call:
            await call.create(callback_url=receiver.url)
            await delivered(call, "undelivered")
        assert receiver.calls.qsize() == 1
        assert other.calls.empty()
