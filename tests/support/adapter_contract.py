"""The contract tests of framework adapters, which each test file of `contrib` runs on a real server."""

import asyncio
import io
import json
import time
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from attrs import frozen
from standardwebhooks import Webhook
from yarl import URL

from kling_expand import KlingClient, Ratios, Status, TaskFuture
from kling_expand.emulator import Emulator
from kling_expand.errors import ClientClosed
from kling_expand.jobs.poll_schedule import ExponentialSchedule
from kling_expand.webhooks import MAX_BODY

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"
SECRET = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="
GARBAGE = [
    b"",
    b"null",
    b"[]",
    b"{",
    b'"text"',
    b"{}",
    b"\xff\xfe\x00",
    b"[" * 200_000,
    b'{"task_id":7,"task_status":"succeed"}',
    b'{"task_id":"1","task_status":null}',
    b"9" * 10_000,
    b'{"id":"1","status":"succeeded","outputs":' + b'{"a":' * 50_000,
    Random(7).randbytes(5_000),
]


# The first poll is due in days, so a client gets snapshots only by callbacks.
NEVER_POLLS = ExponentialSchedule(Random(1), first=1e6, longest=1e6)


@frozen
class Site:
    """A served application: its webhook's URL, and the client that `get_client` returned in a request."""

    callback_url: str
    client: KlingClient

    def submit(self) -> TaskFuture:
        """Submit a job whose callbacks go to this site."""
        return self.client.submit(PHOTO, Ratios(right=0.5), callback_url=self.callback_url)

    async def call(self, body: bytes, headers: dict[str, str] | None = None) -> int:
        """Send a callback, as any program can, and return the status of the response."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(self.callback_url, data=io.BytesIO(body), headers=headers) as answer,
        ):
            await answer.read()
            return answer.status


def body(task_id: str, status: str, *urls: str) -> bytes:
    """Return the body of a callback."""
    images = [{"index": index, "url": url} for index, url in enumerate(urls)]
    task = {"task_id": task_id, "task_status": status, "task_result": {"images": images}}
    return json.dumps(task).encode()


def signed(content: bytes, webhook_id: str = "msg_1") -> dict[str, str]:
    """Return the headers that an independent implementation signs."""
    now = int(time.time())
    when = datetime.fromtimestamp(now, UTC).replace(tzinfo=None)
    signature = Webhook(SECRET).sign(webhook_id, when, content.decode())
    return {"webhook-id": webhook_id, "webhook-timestamp": str(now), "webhook-signature": signature}


def options(emulator: Emulator, **more: Any) -> dict[str, Any]:
    """Return the options of a client of *emulator* that never polls."""
    return {"api_key": emulator.api_key, "base_url": emulator.url, "schedule": NEVER_POLLS} | more


def emulated(**settings: Any) -> Emulator:
    """Return an emulator with short tasks."""
    quick: dict[str, Any] = {"engine": "flat", "queue_seconds": 0.2, "work_seconds": 0.2}
    return Emulator(**quick | {"allow_private": True} | settings)


class AdapterContract:
    """The tests of an adapter. A subclass implements `serve`."""

    def serve(self, **client_options: Any) -> AbstractAsyncContextManager[Site]:
        """Serve an application with a webhook and a client with these options on a free port."""
        raise NotImplementedError

    async def test_a_signed_callback_ends_the_wait(self) -> None:
        """A signed callback with a success completes the future without a read."""
        async with (
            emulated(webhook_secret=SECRET) as emulator,
            self.serve(**options(emulator, webhook_secret=SECRET)) as site,
        ):
            result = await site.submit()
            assert emulator.account.requests["query"] == 0
            assert [URL(image.url).origin() for image in result.images] == [URL(emulator.url)]

    async def test_an_unsigned_callback_triggers_a_poll(self) -> None:
        """Without a secret, a callback only triggers a poll, and the result comes from the service."""
        async with emulated() as emulator, self.serve(**options(emulator)) as site:
            result = await site.submit()
            assert len(result.images) == 1
            assert 1 <= emulator.account.requests["query"] <= 3

    async def test_callbacks_may_come_in_any_order(self) -> None:
        """Shuffled and repeated callbacks of several tasks end each task once, with its own pictures."""
        async with (
            emulated(
                webhook_secret=SECRET, callback_order="shuffled", callback_repeats=3, seed=5
            ) as emulator,
            self.serve(**options(emulator, webhook_secret=SECRET)) as site,
        ):
            results = await asyncio.gather(*(site.submit() for _ in range(4)))
            assert emulator.account.requests["query"] == 0
            assert all(result.task_id in result.images[0].url for result in results)

    async def test_a_forged_callback_delivers_nothing(self) -> None:
        """A forged callback costs at most one read, and the result comes from the service."""
        async with emulated(work_seconds=3600.0) as emulator, self.serve(**options(emulator)) as site:
            future = site.submit()
            task_id = (await future.accepted()).task_id
            forged = body(task_id, "succeed", "https://evil.example/0.png")
            assert await site.call(forged) == 204
            assert not future.done()
            emulator.advance(7200)
            await emulator.painted()
            assert await site.call(forged) == 204
            result = await future
            assert "evil" not in result.images[0].url
            assert [await site.call(forged) for _ in range(5)] == [204] * 5
            # One read for each of two forged and three genuine callbacks, and none for those after the end.
            assert 1 <= emulator.account.requests["query"] <= 2 + 3

    async def test_with_a_secret_unsigned_callbacks_are_refused(self) -> None:
        """With a secret, unsigned, wrongly signed and altered callbacks are refused without a read."""
        async with (
            emulated(work_seconds=3600.0, webhook_secret=SECRET) as emulator,
            self.serve(**options(emulator, webhook_secret=SECRET)) as site,
        ):
            future = site.submit()
            task_id = (await future.accepted()).task_id
            forged = body(task_id, "failed")
            true_headers = signed(body(task_id, "processing"))
            unsigned: dict[str, str] = {}
            for headers in (unsigned, true_headers, true_headers | {"webhook-signature": "v1,AAAA"}):
                assert await site.call(forged, headers) == 400
            assert not future.done()
            assert emulator.account.requests["query"] == 0

    async def test_late_and_repeated_callbacks_change_nothing(self) -> None:
        """After the end of a task, an earlier status, another end and a repeated callback change nothing."""
        async with (
            emulated(work_seconds=3600.0, webhook_secret=SECRET) as emulator,
            self.serve(**options(emulator, webhook_secret=SECRET)) as site,
        ):
            future = site.submit()
            task_id = (await future.accepted()).task_id
            url = "https://cdn.example/0.png"
            calls = [body(task_id, "succeed", url), body(task_id, "processing"), body(task_id, "failed")]
            for number, content in enumerate([*calls, *calls]):
                assert await site.call(content, signed(content, f"msg_{number % 4}")) == 204
            result = await future
            assert result.task.status is Status.SUCCEED
            assert [image.url for image in result.images] == [url]

    async def test_garbage_is_refused(self, caplog: pytest.LogCaptureFixture) -> None:
        """Whatever is sent, the response is a refusal, never an internal error."""
        async with emulated() as emulator:
            for more in ({}, {"webhook_secret": SECRET}):
                async with self.serve(**options(emulator, **more)) as site:
                    assert {await site.call(content) for content in GARBAGE} == {400}
            assert emulator.account.requests == {}
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []

    async def test_a_long_body_is_not_read(self) -> None:
        """A body above the limit is refused, with or without a Content-Length, but not one at the limit."""

        async def unannounced() -> Any:
            for _ in range(40):
                yield bytes(MAX_BODY // 20)

        async with emulated() as emulator, self.serve(**options(emulator)) as site:
            assert await site.call(b" " * MAX_BODY) == 400
            assert await site.call(b" " * (MAX_BODY + 1)) == 413
            async with (
                aiohttp.ClientSession() as http,
                http.post(site.callback_url, data=unannounced()) as answer,
            ):
                assert answer.status == 413

    async def test_a_broken_connection_is_harmless(self, caplog: pytest.LogCaptureFixture) -> None:
        """A connection that breaks off logs no error, and the next callback is received."""
        async with emulated() as emulator, self.serve(**options(emulator)) as site:
            url = URL(site.callback_url)
            _, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(f"POST {url.path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{".encode())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            assert await site.call(body("1", "processing")) == 204
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []

    async def test_a_get_request_is_refused(self) -> None:
        """The response to a GET request is 405."""
        async with (
            emulated() as emulator,
            self.serve(**options(emulator)) as site,
            aiohttp.ClientSession() as http,
            http.get(site.callback_url) as answer,
        ):
            assert answer.status == 405

    async def test_the_client_is_open_as_long_as_the_application(self) -> None:
        """The client is open during requests, and closed after the application has ended."""
        async with emulated() as emulator:
            async with self.serve(**options(emulator, budget=8)) as site:
                assert await site.client.list() == ()
            with pytest.raises(ClientClosed):
                site.submit()
