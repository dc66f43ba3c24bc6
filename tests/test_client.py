"""The asynchronous client against the emulator, in virtual time."""

import asyncio
import base64
import json
import socket
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures
from standardwebhooks import Webhook
from support.raw_server import loopback, refuses, responds, sends, task
from support.schedules import NeverPolls, now

from kling_expand import ExpandRequest, KlingClient, Ratios, Status, Task, ToAspect, Towards
from kling_expand.api.codec import encode
from kling_expand.emulator import Emulator
from kling_expand.errors import (
    ClientClosed,
    ConfigurationError,
    DeadlineExceeded,
    InvalidRequest,
    JournalError,
    KlingError,
    ResultExpired,
    TaskNotFound,
    WebhookError,
)
from kling_expand.events import Event, EventKind
from kling_expand.jobs.scheduler import Slots
from kling_expand.testing import EPOCH, emulated, loop_clock, run, virtual_time

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
PHOTO = PHOTOS / "chelsea.jpg"
SAMPLES = Path(__file__).parent / "samples"
WIDER = Ratios(right=0.5)
SECRET = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="


def names_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def counted(emulator: Emulator, *routes: str) -> int:
    """Return the number of requests of these routes."""
    return sum(emulator.account.requests[route] for route in routes)


@virtual_time
async def test_expand_and_save_write_the_requested_pictures(tmp_path: Path) -> None:
    """`expand` and `save` write as many pictures as requested, and each is billed once."""
    async with emulated(work_seconds=40) as (emulator, kling):
        result = await kling.expand(PHOTOS / "coffee.jpg", ToAspect("16:9"), n=2)
        paths = await result.save(tmp_path)
        assert [path.name for path in paths] == ["coffee-0.png", "coffee-1.png"]
        assert emulator.account.units_billed == 16
        assert set(emulator.account.accepted.values()) == {1}


async def test_a_journal_belongs_to_one_service_and_account(tmp_path: Path) -> None:
    """A journal with a task refuses another address, dialect or key, and does not contain the key."""
    journal = tmp_path / "run.db"
    async with Emulator(engine="flat", work_seconds=0.05) as emulator:
        own: dict[str, Any] = {"api_key": emulator.api_key, "base_url": emulator.url, "journal": journal}
        async with KlingClient(**own) as kling:
            await kling.create(PHOTO, WIDER)
        for other in ({"api_key": "other"}, {"base_url": "http://127.0.0.1:1"}, {"dialect": "direction"}):
            with pytest.raises(JournalError, match=f"belongs to {emulator.url} .editing, key"):
                await KlingClient(**own | other).__aenter__()
        async with KlingClient(**own) as kling:
            assert [(await future.accepted()).task_id async for future in kling.resume()] == list(
                emulator.account.tasks
            )
    assert emulator.api_key.encode() not in journal.read_bytes()


@virtual_time
async def test_a_task_that_ended_within_its_create_has_its_pictures(tmp_path: Path) -> None:
    """If the response to a create says that the task has ended, the task is read for its pictures."""
    async with emulated(queue_seconds=0, work_seconds=0) as (_, kling):
        result = await kling.expand(PHOTOS / "coffee.jpg", Ratios(up=0.5))
        assert len(await result.save(tmp_path)) == 1


@virtual_time
async def test_tasks_never_exceed_the_slots_of_the_account() -> None:
    """A task of n pictures takes n slots, so the service never refuses a create."""
    async with emulated(work_seconds=10, slots=9) as (emulator, kling):
        requests = [ExpandRequest(PHOTO, Ratios(up=0.5), n=1 + i % 4) for i in range(30)]
        outcomes = [outcome async for outcome in kling.map(requests, ordered=True)]
        assert [outcome.index for outcome in outcomes] == list(range(30))
        assert not any(outcome.error for outcome in outcomes)
        assert emulator.account.refusals == {}
        assert emulator.account.peak_slots <= 9


# ------------------------------------------------------------------ both dialects


@pytest.mark.parametrize("dialect", ["editing", "direction"])
@pytest.mark.parametrize("shapes", [{}, {"task_format": "array"}, {"success_status": "succeeded"}], ids=str)
@virtual_time
async def test_both_dialects_give_the_same_models(
    tmp_path: Path, dialect: str, shapes: dict[str, Any]
) -> None:
    """Creating, waiting, reading, listing and saving give the same models in both dialects."""
    async with emulated({"dialect": dialect}, work_seconds=20, **shapes) as (emulator, kling):
        future = kling.submit(PHOTO, Towards("left,right", 1.5), prompt="a meadow", n=2)
        assert (await future.accepted()).status is Status.SUBMITTED
        result = await future
        assert result.task.status is Status.SUCCEED
        assert result.task.task_status == (shapes.get("success_status", "succeed"))
        assert result.task.external_task_id == future.external_task_id
        ids = [future.task_id or "", *([future.external_task_id or ""] if dialect == "editing" else [])]
        assert {await kling.get(any_id) for any_id in ids} == {result.task}
        assert await kling.list() == (result.task,)
        assert [each async for each in kling.tasks()] == [result.task]
        paths = await result.save(tmp_path)
        with Pictures.open(paths[0]) as picture, Pictures.open(PHOTO) as photo:
            aspect = picture.width / picture.height
            assert aspect == pytest.approx(1.5 * photo.width / photo.height, rel=0.02)
        (made,) = emulator.account.tasks.values()
        assert (made.dialect, made.ratios, made.prompt) == (dialect, (0, 0, 0.25, 0.25), "a meadow")


@pytest.mark.parametrize("towards", [Towards("all", 1.4), Towards("top"), Towards("bottom,left", 1.2)])
@virtual_time
async def test_a_direction_means_the_same_in_either_dialect(towards: Towards) -> None:
    """A direction is sent unchanged in one dialect and as four ratios in the other, with equal results."""
    async with emulated() as (emulator, kling):
        await kling.create(PHOTO, towards)
        options: dict[str, Any] = {"base_url": emulator.url, "clock": loop_clock, "dialect": "direction"}
        async with KlingClient(api_key=emulator.api_key, **options) as other:
            await other.create(PHOTO, towards)
        one, two = (made.ratios for made in emulator.account.tasks.values())
        assert one == pytest.approx(two)


@pytest.mark.parametrize("geometry", [WIDER, ToAspect("16:9"), ToAspect(2.5)])
@virtual_time
async def test_a_geometry_the_dialect_lacks_is_refused_before_sending(geometry: Any) -> None:
    """A geometry that the dialect cannot express raises an error with advice before anything is sent."""
    async with emulated({"dialect": "direction"}) as (emulator, kling):
        with pytest.raises(InvalidRequest, match=r"must be Towards\(…\)"):
            await kling.expand(PHOTO, geometry)
        with pytest.raises(InvalidRequest, match="watermark"):
            await kling.expand(PHOTO, Towards("all", 1.2), watermark=True)
        assert emulator.account.requests == {}


@virtual_time
async def test_tasks_of_one_dialect_are_invisible_to_the_other() -> None:
    """Tasks of one dialect cannot be read or listed in the other."""
    async with emulated() as (emulator, kling):
        mine = await kling.create(PHOTO, WIDER)
        options: dict[str, Any] = {"base_url": emulator.url, "clock": loop_clock, "dialect": "direction"}
        async with KlingClient(api_key=emulator.api_key, **options) as other:
            with pytest.raises(TaskNotFound):
                await other.get(mine.task_id)
            assert await other.list() == ()


def test_each_documented_request_is_what_the_sdk_sends() -> None:
    """The SDK sends the same fields as every sample, and the emulator accepts the samples."""
    editing = json.loads((SAMPLES / "editing-create.request.json").read_text())
    sides = {side: editing[f"{side}_expansion_ratio"] for side in ("up", "down", "left", "right")}
    given = {name: editing[name] for name in ("prompt", "n", "callback_url") if editing.get(name)}
    request = ExpandRequest("https://example.com/a.jpg", Ratios(**sides), **given)
    head, tail = encode(request, Ratios(**sides), editing.get("external_task_id", ""))
    sent = json.loads(head + tail)
    assert all(sent[f"{side}_expansion_ratio"] == value for side, value in sides.items())
    assert {name: sent[name] for name in given} == given


# ------------------------------------------------------------------ pictures and their price


@virtual_time
async def test_plain_and_watermarked_pictures_are_saved(tmp_path: Path) -> None:
    """The plain and the watermarked picture are saved, and the plain one is named after the photo."""
    async with emulated() as (emulator, kling):
        result = await kling.expand(PHOTO, WIDER, watermark=True)
        assert result.task.watermark is True
        assert result.images[0].watermark_url
        (path,) = await result.save(tmp_path)
        assert names_in(tmp_path) == ["chelsea-0-watermark.png", "chelsea-0.png"]
        assert path.read_bytes() != (tmp_path / "chelsea-0-watermark.png").read_bytes()
        plain = await kling.expand(PHOTO, WIDER)
        assert plain.images[0].watermark_url is None
        assert emulator.account.requests["file"] == 2


@pytest.mark.parametrize("task_format", ["object", "array"])
@virtual_time
async def test_estimated_and_billed_units_agree(task_format: str) -> None:
    """The local estimate, the billed units and the newer billing fields agree."""
    request = ExpandRequest(PHOTO, WIDER, n=3)
    assert request.units == 24
    async with emulated(task_format=task_format) as (emulator, kling):
        expanded = (await kling.expand(request)).task
        assert expanded.final_unit_deduction == "24"
        assert expanded.units == kling.stats.units_billed == Decimal(24)
        assert kling.stats.units_due == emulator.account.units_billed == 24
        assert (expanded.final_balance_deduction is None) is (task_format == "array")
        if expanded.final_balance_deduction:
            assert expanded.final_balance_deduction.quota


@virtual_time
async def test_a_result_expires_after_thirty_days(tmp_path: Path) -> None:
    """A result can be saved for 30 days. After that the error has both ids, and no file is left behind."""
    async with emulated() as (emulator, kling):
        future = kling.submit(PHOTO, WIDER)
        result = await future
        emulator.advance(29 * 86400)
        assert len(await result.save(tmp_path / "in-time")) == 1
        emulator.advance(2 * 86400)
        with pytest.raises(ResultExpired) as caught:
            await result.save(tmp_path / "late")
        assert (caught.value.task_id, caught.value.external_task_id) == (
            future.task_id,
            future.external_task_id,
        )
        assert not [path for path in (tmp_path / "late").rglob("*") if path.is_file()]
        with pytest.raises(TaskNotFound):
            await kling.get(result.task_id)


# ------------------------------------------------------------------ listing


@virtual_time
async def test_each_task_is_listed_once_while_others_are_added() -> None:
    """While pages shift, no task is yielded twice and no task that existed at the start is missed."""
    async with emulated(slots=1000) as (_, kling):
        before = [await kling.create(PHOTO, WIDER) for _ in range(12)]
        seen = []
        async for each in kling.tasks(page_size=4):
            seen.append(each.task_id)
            if len(seen) % 3 == 0 and len(seen) < 12:
                await kling.create(PHOTO, WIDER)
        assert len(seen) == len({*seen})
        assert {each.task_id for each in before} <= {*seen}


@pytest.mark.parametrize("mode", ["newest", "oldest", "shuffled"])
@virtual_time
async def test_list_pages_may_come_in_any_order(mode: str) -> None:
    """Whatever the order of a page, no task is yielded twice."""
    async with emulated(slots=1000, list_order=mode) as (emulator, kling):
        for _ in range(7):
            await kling.create(PHOTO, WIDER)
        seen = [each.task_id async for each in kling.tasks(page_size=3)]
        assert len(seen) == len({*seen})
        assert {*seen} <= {*emulator.account.tasks}
        assert mode == "shuffled" or len(seen) == 7


@virtual_time
async def test_page_number_and_size_are_checked_locally() -> None:
    """The page number and size are checked locally, and a page beyond the last is empty."""
    async with emulated(slots=100) as (emulator, kling):
        made = [await kling.create(PHOTO, WIDER) for _ in range(5)]
        assert [len(await kling.list(page, 2)) for page in (1, 2, 3, 4)] == [2, 2, 1, 0]
        assert {each.task_id for each in await kling.list()} == {each.task_id for each in made}
        lists = counted(emulator, "list")
        for page, size in ((0, 30), (1001, 30), (1, 0), (1, 501)):
            with pytest.raises(InvalidRequest):
                await kling.list(page, size)
        assert counted(emulator, "list") == lists


@pytest.mark.parametrize("any_id", ["", ".", "..", "a\nb"])
@virtual_time
async def test_an_invalid_id_causes_no_request(any_id: str) -> None:
    """An id that would change the path of the URL raises an error without a request."""
    async with emulated() as (emulator, kling):
        with pytest.raises(InvalidRequest):
            await kling.get(any_id)
        assert emulator.account.requests == {}


@virtual_time
async def test_listing_reads_at_most_a_thousand_pages() -> None:
    """Listing all tasks reads at most a thousand pages."""
    page = {"code": 0, "message": "", "request_id": "r", "data": [{"task_id": "1", "task_status": "failed"}]}
    raw = json.dumps(page).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
    async with loopback(sends(head + raw)) as server, KlingClient(api_key="k", base_url=server.url) as kling:
        assert [each.task_id async for each in kling.tasks()] == ["1"]
        assert len(server.requests) == 1000


# ------------------------------------------------------------------ callbacks


def signed(data: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """Return a callback that an independent implementation has signed at the event loop's time."""
    content, moment = json.dumps(data), int(loop_clock())
    when = datetime.fromtimestamp(moment, UTC).replace(tzinfo=None)
    signature = Webhook(SECRET).sign("msg_1", when, content)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(moment), "webhook-signature": signature}
    return headers, content.encode()


def success(task_id: str, url: str = "https://cdn.example/0.png") -> dict[str, Any]:
    """Return the body of a callback about a success."""
    images = [{"index": 0, "url": url}]
    return {"task_id": task_id, "task_status": "succeed", "task_result": {"images": images}}


@pytest.mark.parametrize("dialect", ["editing", "direction"])
@virtual_time
async def test_a_signed_callback_ends_the_wait_and_frees_the_slot_at_once(dialect: str) -> None:
    """A signed callback needs no read and frees the slot at once, and a replay changes nothing."""
    slots = Slots(1)
    client: dict[str, Any] = {
        "dialect": dialect,
        "slots": slots,
        "schedule": NeverPolls(),
        "webhook_secret": SECRET,
    }
    async with emulated(client, work_seconds=3600) as (emulator, kling):
        first = kling.submit(PHOTO, Towards("all", 1.2))
        task_id = (await first.accepted()).task_id
        second = kling.submit(PHOTO, Towards("all", 1.3))
        await asyncio.sleep(5)
        assert second.task is None
        call = signed(success(task_id))
        began = now()
        assert kling.receive(*call).verified
        assert (await first).images[0].url == "https://cdn.example/0.png"
        await second.accepted()
        assert now() - began < 1
        assert kling.receive(*call).repeated
        assert (slots.held, slots.running) == (1, 1)
        assert counted(emulator, "query", "list") == 0
        assert kling.stats.succeeded == 1


@virtual_time
async def test_a_forged_callback_costs_one_read_and_delivers_nothing() -> None:
    """An unsigned callback triggers one read, or none if its id is unknown."""
    async with emulated({"schedule": NeverPolls()}, work_seconds=3600) as (emulator, kling):
        future = kling.submit(PHOTO, WIDER)
        task_id = (await future.accepted()).task_id
        assert kling.receive({}, json.dumps(success("999")).encode()).needs_poll
        await asyncio.sleep(60)
        assert counted(emulator, "query", "list") == 0
        for forged in range(1, 4):
            kling.receive({}, json.dumps(success(task_id, "https://evil.example/")).encode())
            await asyncio.sleep(60)
            assert counted(emulator, "query", "list") == forged
            assert not future.done()


@virtual_time
async def test_with_a_secret_unsigned_callbacks_are_refused() -> None:
    """With a secret, an unsigned callback raises an error and triggers no read."""
    client: dict[str, Any] = {"schedule": NeverPolls(), "webhook_secret": [SECRET]}
    async with emulated(client, work_seconds=3600) as (emulator, kling):
        task_id = (await kling.create(PHOTO, WIDER)).task_id
        headers, body = signed(success(task_id))
        for wrong in ({}, headers | {"webhook-signature": "v1,AAAA"}, headers | {"webhook-timestamp": "1"}):
            with pytest.raises(WebhookError):
                kling.receive(wrong, body)
        await asyncio.sleep(60)
        assert counted(emulator, "query", "list") == 0


# ------------------------------------------------------------------ events and numbers


@virtual_time
async def test_the_statistics_add_up() -> None:
    """Every job is counted once at any moment, and all units and calls are correct in the end."""
    async with emulated({"max_in_flight": 3}, slots=3) as (emulator, kling):

        async def watch() -> None:
            while True:
                stats = kling.stats
                ended = stats.succeeded + stats.failed + stats.refused + stats.unknown
                # A job that ended in this step is counted in the next.
                assert 0 <= stats.submitted - stats.waiting - stats.running - ended <= 2
                await asyncio.sleep(0.05)

        watcher = asyncio.create_task(watch())
        words = [None, "emulate-risk-control", "emulate-1301", None, None, "emulate-1102"]
        requests = [ExpandRequest(PHOTO, WIDER, word, n=1 + i % 3) for i, word in enumerate(words * 3)]
        outcomes = [outcome async for outcome in kling.map(requests)]
        await asyncio.sleep(1)
        assert not watcher.done()
        watcher.cancel()
        stats = kling.stats
        assert (stats.submitted, stats.waiting, stats.running) == (18, 0, 0)
        assert (stats.succeeded, stats.failed, stats.refused, stats.unknown) == (9, 3, 6, 0)
        assert sum(outcome.result is not None for outcome in outcomes) == 9
        assert stats.errors == {"PolicyRefusal": 3, "AccountError": 3}
        assert stats.creates == emulator.account.requests["create"]
        assert (stats.reads, stats.lists) == (
            emulator.account.requests["query"],
            emulator.account.requests["list"],
        )
        assert stats.units_due == stats.units_billed == emulator.account.units_billed
        assert stats.duration.highest == pytest.approx(2.5, abs=0.1)
        assert stats.latency.median is not None


@virtual_time
async def test_a_listener_gets_every_event_and_affects_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Each exception of a listener is logged and does not affect the job."""
    received: list[Event] = []

    def listener(event: Event) -> None:
        received.append(event)
        raise ZeroDivisionError("the listener's own fault")

    async with emulated({"listener": listener}) as (_, kling):
        future = kling.submit(PHOTO, WIDER)
        await future
        with pytest.raises(KlingError):
            await kling.expand(PHOTO, WIDER, prompt="emulate-1301")
        await asyncio.sleep(0)
        calls = {EventKind.CREATE, EventKind.READ, EventKind.LIST}
        own = [event.kind for event in received if event.external_task_id == future.external_task_id]
        kinds = [kind for kind in own if kind not in calls]
        assert kinds == [EventKind.SUBMITTED, EventKind.ACCEPTED, EventKind.ENDED]
        assert {EventKind.CREATE, EventKind.FAILED} <= {event.kind for event in received}
        assert kling.stats.succeeded == 1
    assert caplog.text.count("a listener failed") == len(received)


# ------------------------------------------------------------------ wrong usage


@virtual_time
async def test_mistakes_in_submit_raise_before_anything_is_sent() -> None:
    """Each mistake raises an error at once, before anything is sent."""
    request = ExpandRequest(PHOTO, WIDER)
    async with emulated() as (emulator, kling):
        with pytest.raises(InvalidRequest, match=r"attrs\.evolve"):
            kling.submit(request, WIDER)
        with pytest.raises(InvalidRequest, match=r"attrs\.evolve"):
            kling.submit(request, n=2)
        with pytest.raises(InvalidRequest, match="how far to expand"):
            kling.submit(PHOTO)
        for deadline in (0, -1, float("nan")):
            with pytest.raises(InvalidRequest, match="above 0"):
                kling.submit(request, deadline=deadline)
        assert emulator.account.requests == {}
        assert kling.stats.submitted == 0


@virtual_time
async def test_a_client_that_is_not_open_raises() -> None:
    """Every method raises an error before `async with` and after it."""
    async with Emulator(engine="flat", clock=loop_clock) as emulator:
        kling = KlingClient(api_key=emulator.api_key, base_url=emulator.url)

        async def refuses_all() -> None:
            for call in (
                kling.get("1"),
                kling.list(),
                kling.create(PHOTO, WIDER),
                kling.expand(PHOTO, WIDER),
            ):
                with pytest.raises(ClientClosed):
                    await call
            with pytest.raises(ClientClosed):
                kling.submit(PHOTO, WIDER)
            with pytest.raises(ClientClosed):
                kling.attach("1")
            for walk in (kling.tasks(), kling.resume(), kling.map([])):
                with pytest.raises(ClientClosed):
                    await anext(walk)

        await refuses_all()
        assert await kling.aclose() == ()
        async with kling:
            assert await kling.list() == ()
        await refuses_all()
        assert emulator.account.requests == {"list": 1}


def test_a_client_belongs_to_its_loop() -> None:
    """A client that is used from another event loop raises an error and sends nothing."""
    kling = KlingClient(api_key="k", base_url="http://127.0.0.1:9")

    async def opened() -> None:
        async with kling:
            other = asyncio.new_event_loop()
            try:
                with pytest.raises(ConfigurationError, match="event loop"):
                    await asyncio.to_thread(other.run_until_complete, kling.get("1"))
            finally:
                other.close()

    asyncio.run(opened())


def test_a_client_can_be_opened_in_a_second_loop(tmp_path: Path) -> None:
    """A client at module level works in each `asyncio.run`, including waits, full slots and downloads."""
    kling: KlingClient | None = None

    async def main(folder: str) -> None:
        nonlocal kling
        async with Emulator(engine="flat", queue_seconds=0.01, work_seconds=0.01, port=port) as emulator:
            kling = kling or KlingClient(api_key=emulator.api_key, base_url=emulator.url, max_in_flight=2)
            async with kling:
                results = await asyncio.gather(*(kling.expand(PHOTO, Ratios(right=0.5)) for _ in range(5)))
                await asyncio.gather(*(each.save(tmp_path / folder / each.task_id) for each in results))

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for folder in ("first", "second"):
        asyncio.run(main(folder))
        assert len([*(tmp_path / folder).glob("*/*.png")]) == 5


def test_nothing_shows_a_secret() -> None:
    """No secret is in the repr of a client or of any object that it holds."""
    kling = KlingClient(
        access_key="the-access-key-of-ours", secret_key="s3cr3t-of-ours", webhook_secret=SECRET
    )
    shown = repr(kling) + "".join(map(repr, vars(kling).values()))
    assert "s3cr3t" not in shown
    assert SECRET[6:] not in shown
    assert "the-access-key" not in shown
    assert "api-key-kling-xyz" not in repr(KlingClient(api_key="api-key-kling-xyz"))


# ------------------------------------------------------------------ names, sessions, files


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (str(PHOTO), "chelsea-0.png"),
        (PHOTO, "chelsea-0.png"),
        (PHOTO.read_bytes(), None),
        ("data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode(), None),
    ],
    ids=["text", "path", "bytes", "data"],
)
@virtual_time
async def test_results_are_named_after_their_photo(tmp_path: Path, image: Any, name: str | None) -> None:
    """A result has the photo's name, or its task id if the photo has none."""
    async with emulated() as (_, kling):
        result = await kling.expand(image, WIDER)
        (path,) = await result.save(tmp_path)
        assert path.name == (name or f"{result.task_id}-0.png")


async def test_a_photo_at_a_url_names_its_result(tmp_path: Path) -> None:
    """The result of a URL is named after the last part of its path, without the query."""
    from aiohttp import web

    async def photo(_request: web.Request) -> web.Response:
        return web.Response(body=PHOTO.read_bytes(), content_type="image/jpeg")

    app = web.Application()
    app.add_routes([web.get("/albums/cat.jpg", photo)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/albums/cat.jpg?token=1"
    try:
        async with (
            Emulator(engine="flat", queue_seconds=0, work_seconds=0, allow_private=True) as emulator,
            KlingClient(api_key=emulator.api_key, base_url=emulator.url) as kling,
        ):
            result = await kling.expand(url, WIDER)
            assert [path.name for path in await result.save(tmp_path)] == ["cat-0.png"]
    finally:
        await runner.cleanup()


@virtual_time
async def test_an_injected_session_stays_open() -> None:
    """A given session is used, but neither changed nor closed."""
    async with Emulator(engine="flat", clock=loop_clock) as emulator, aiohttp.ClientSession() as http:
        async with KlingClient(
            api_key=emulator.api_key, base_url=emulator.url, http=http, clock=loop_clock
        ) as kling:
            assert (await kling.expand(PHOTO, WIDER)).task_id
        assert not http.closed


@virtual_time
async def test_a_task_is_attached_by_either_id_and_saved(tmp_path: Path) -> None:
    """A task that was submitted elsewhere can be awaited and counts as running until then."""
    async with emulated(work_seconds=100) as (emulator, kling):
        made = await kling.create(PHOTO, WIDER, external_task_id="mine")
        options: dict[str, Any] = {"base_url": emulator.url, "clock": loop_clock, "rng": Random(3)}
        async with KlingClient(api_key=emulator.api_key, **options) as other:
            futures = [other.attach(any_id) for any_id in (made.task_id, "mine")]
            assert other.stats.running == 2
            results = [await future for future in futures]
            assert {result.task_id for result in results} == {made.task_id}
            assert {future.external_task_id for future in futures} == {"mine"}
            (path,) = await results[0].save(tmp_path)
            assert path.name == f"{made.task_id}-0.png"
        with pytest.raises(TaskNotFound):
            await kling.attach("unknown-id", deadline=100)
        assert now() < 200


@virtual_time
async def test_an_open_journal_is_shared_and_stays_open(tmp_path: Path) -> None:
    """A store passed as `journal` is used and never closed, and `resume` finds its saved files."""
    from kling_expand.store.base import JobState
    from kling_expand.store.sqlite import SQLiteStore

    async with SQLiteStore(tmp_path / "run.db", clock=loop_clock) as journal:
        async with emulated({"journal": journal}) as (emulator, kling):
            paths = await (await kling.expand(PHOTO, WIDER)).save(tmp_path)
            again = await kling.expand(PHOTO, WIDER)
            assert again.files == paths
            paths[0].unlink()
            assert (await kling.expand(PHOTO, WIDER)).files == ()
            assert len(emulator.account.tasks) == 1
            task_id = (await kling.create(PHOTOS / "coffee.jpg", WIDER)).task_id
            attached_paths = await (await kling.attach(task_id)).save(tmp_path)
            assert len(attached_paths) == 1
        counts = await journal.counts()
        assert counts[JobState.DONE] == 2


@virtual_time
async def test_an_earlier_save_that_cannot_be_looked_up_hides_no_result(tmp_path: Path) -> None:
    """If the file system refuses a saved path, the result is returned and can be saved elsewhere."""
    from kling_expand.store.sqlite import SQLiteStore

    store = SQLiteStore(tmp_path / "run.db", clock=loop_clock)
    async with store as journal, emulated({"journal": journal}) as (_, kling):
        result = await kling.expand(PHOTO, WIDER)
        await journal.mark_saved(str(result.external_task_id), ["/" + "x" * 300])
        again = await kling.expand(PHOTO, WIDER)
        assert again.files == ()
        assert len(await again.save(tmp_path)) == 1


@virtual_time
async def test_map_saves_each_picture_at_the_path_in_its_row(tmp_path: Path) -> None:
    """A task that is already saved elsewhere is also saved at the new path, and an edited picture is kept."""
    targets = {name: str(tmp_path / name) for name in ("first", "second", "third")}
    async with emulated({"journal": tmp_path / "run.db"}) as (emulator, kling):

        async def run(*names: str) -> list[tuple[Path, ...]]:
            places = iter(names)
            rows = [ExpandRequest(PHOTO, WIDER) for _ in names]
            outcomes = kling.map(rows, save_to=lambda _: targets[next(places)], ordered=True)
            return [outcome.files async for outcome in outcomes]

        once = await run("first", "second")
        assert [path.parent.name for (path,) in once] == ["first", "second"]
        once[1][0].unlink()
        assert await run("first", "second") == once
        once[1][0].write_bytes(b"edited")
        assert await run("second") == [once[1]]
        assert (once[1][0].read_bytes(), names_in(tmp_path / "second")) == (b"edited", ["chelsea-0.png"])
        (third,) = await run("third")
        assert (third[0].parent.name, len(emulator.account.tasks)) == ("third", 1)


@virtual_time
async def test_equal_photos_share_a_task_but_not_their_files(tmp_path: Path) -> None:
    """Equal photos are paid for once. In a later run `units_found` has the cost, and the files remain."""
    photos = [tmp_path / name for name in ("a.jpg", "b.jpg", "in/a.jpg")]
    for photo in photos:
        photo.parent.mkdir(exist_ok=True)
        photo.write_bytes(PHOTO.read_bytes())
    requests = [ExpandRequest(photo, WIDER) for photo in (*photos, photos[0])]
    runs = []
    async with Emulator(engine="flat", clock=loop_clock) as emulator:
        own: dict[str, Any] = {"api_key": emulator.api_key, "base_url": emulator.url, "clock": loop_clock}
        for _ in range(2):
            async with KlingClient(journal=tmp_path / "run.db", trust_env=False, **own) as kling:
                outcomes = [
                    each async for each in kling.map(requests, save_to=tmp_path / "out", ordered=True)
                ]
                runs.append({outcome.files for outcome in outcomes})
                stats = kling.stats
        assert (len(emulator.account.tasks), emulator.account.requests["file"]) == (1, 4)
    names = {"a-0.png", "b-0.png", "a-2-0.png", "a-3-0.png"}
    assert runs[0] == runs[1] == {(tmp_path / "out" / name,) for name in names}
    assert [int(stats.units_billed), int(stats.units_found), stats.units_due] == [0, 8, 0]


@virtual_time
async def test_paths_are_the_same_before_and_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run and a later run return the same paths, which are relative if `save_to` is relative."""
    monkeypatch.chdir(tmp_path)
    async with Emulator(engine="flat", clock=loop_clock) as emulator:
        own: dict[str, Any] = {"api_key": emulator.api_key, "base_url": emulator.url, "clock": loop_clock}
        for _ in range(2):
            async with KlingClient(journal="run.db", trust_env=False, **own) as kling:
                (outcome,) = [each async for each in kling.map([ExpandRequest(PHOTO, WIDER)], save_to="out")]
                assert outcome.files == (Path("out") / f"{PHOTO.stem}-0.png",)


@virtual_time
async def test_map_saves_at_full_size_and_converted(tmp_path: Path) -> None:
    """`save_options` are checked before anything is sent, and a second run gives the same files."""
    photo = tmp_path / "dog.jpg"
    with Pictures.open(PHOTO) as small:
        small.resize((900, 600)).save(photo)
    rows = [ExpandRequest(photo, WIDER)]
    wrong: list[Any] = [{"fullsize": True}, {"format": "bmp"}, {"full_size": 1}, {"quality": 90}]
    options: Any = {"full_size": True, "format": "png"}
    async with emulated({"journal": tmp_path / "run.db"}) as (emulator, kling):
        for each in wrong:
            with pytest.raises(InvalidRequest):
                await anext(kling.map(rows, save_to=tmp_path / "out", save_options=each))
        assert emulator.account.requests["create"] == 0
        for _ in range(2):
            (outcome,) = [
                each async for each in kling.map(rows, save_to=tmp_path / "out", save_options=options)
            ]
            assert [path.name for path in outcome.files] == ["dog-0-full.png"]
            with Pictures.open(outcome.files[0]) as picture:
                assert picture.size == (1350, 600)
            assert names_in(tmp_path / "out") == ["dog-0-full.png", "dog-0.png"]


@virtual_time
async def test_closing_a_client_with_a_journal_logs_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing a client with a journal logs no warning, but one line with the number of open jobs."""
    caplog.set_level("INFO")
    async with emulated({"journal": tmp_path / "run.db", "max_in_flight": 1}, work_seconds=60) as (_, kling):
        first = kling.submit(PHOTO, WIDER)
        await first.accepted()
        waiting = kling.submit(PHOTO, WIDER, prompt="another")
        await waiting.recorded()
    client = [record for record in caplog.records if record.name == "kling_expand.client"]
    lines = [(record.levelname, record.message) for record in client]
    assert [level for level, _ in lines] == ["INFO"]
    assert "closed with 2 open jobs; nothing is lost" in lines[0][1]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


# ------------------------------------------------------------------ fields and forms of later versions


@virtual_time
async def test_extra_fields_are_sent_and_kept_by_the_journal(tmp_path: Path) -> None:
    """Extra fields are in the body of the create, make another job, and are sent again after a crash."""
    bodies: list[dict[str, Any]] = []

    async def noted(exchange: Any) -> None:
        await exchange.read()
        bodies.append(json.loads(exchange.body) if exchange.body else {})
        await (task("1", "processing") if exchange.body else refuses(1201, 400, "Task not found"))(exchange)

    async with loopback(noted) as server:
        options: dict[str, Any] = {
            "base_url": server.url,
            "clock": loop_clock,
            "journal": tmp_path / "run.db",
        }
        async with KlingClient(api_key="k", **options) as kling:
            await kling.create(PHOTO, WIDER, extra={"new_field": "rain", "style": {"b": 1, "a": [None]}})
            await kling.create(PHOTO, WIDER)
        creates = [body for body in bodies if body]
        assert [bool(body.get("new_field")) for body in creates] == [True, False]
        assert creates[0]["style"] == {"a": [None], "b": 1}
        from kling_expand.store.sqlite import SQLiteStore

        async with SQLiteStore(tmp_path / "run.db", clock=loop_clock) as journal:
            kept = [known.request async for known in journal.jobs()]
        assert [request.extra for request in kept if request] == [
            {"new_field": "rain", "style": {"a": [None], "b": 1}},
            None,
        ]


@virtual_time
async def test_the_newer_form_of_responses_works_everywhere(tmp_path: Path) -> None:
    """Creates, polls, lists and results work with `id`, `status`, `outputs` and `billing`."""
    async with emulated(work_seconds=20, task_format="outputs", slots=20) as (emulator, kling):
        requests = [ExpandRequest(PHOTO, Ratios(right=0.1 + n / 10)) for n in range(3)]
        outcomes = [outcome async for outcome in kling.map(requests)]
        assert not any(outcome.error for outcome in outcomes)
        assert kling.stats.units_billed == emulator.account.units_billed == 24
        assert kling.stats.lists > 0
        assert outcomes[0].result is not None
        assert len(await outcomes[0].result.save(tmp_path)) == 1
        assert outcomes[0].result.task.raw is not None


@virtual_time
async def test_surplus_pictures_are_ignored() -> None:
    """If the service returns nine pictures for a task of two, only two are used."""
    images = [{"index": index, "url": f"https://a/{index}.png"} for index in range(9)]
    data = {"task_id": "1", "task_status": "succeed", "task_result": {"images": images}}
    many = responds({"code": 0, "message": "", "request_id": "r", "data": data})
    async with loopback(many) as server, KlingClient(api_key="k", base_url=server.url) as kling:
        assert [image.index for image in (await kling.expand(PHOTO, WIDER, n=2)).images] == [0, 1]
        assert len((await kling.attach("1")).images) == 9


# ------------------------------------------------------------------ arbitrary answers


def responses() -> st.SearchStrategy[bytes]:
    """Draw an HTTP response with any status and body, or bytes that are not HTTP."""
    body = st.binary(max_size=200) | st.sampled_from(
        [b"", b"null", b"[]", b"{}", b'{"code":0,"data":null}', b'{"code":0,"data":{"task_id":1}}']
    )
    headers = st.sampled_from([b"", b"Retry-After: x\r\n", b"Content-Encoding: gzip\r\n", b"Date: 1\r\n"])

    def whole(status: int, body: bytes, header: bytes, more: int) -> bytes:
        return b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s" % (
            status,
            header,
            max(0, len(body) + more),
            body,
        )

    statuses = st.sampled_from([200, 400, 401, 403, 404, 429, 500, 503, 504]) | st.integers(200, 599)
    http = st.builds(whole, statuses, body, headers, st.sampled_from([0, 0, 0, 5]))
    return http | st.binary(max_size=60)


@settings(max_examples=80)
@given(raw=responses())
def test_any_response_gives_a_task_or_a_kling_error(raw: bytes) -> None:
    """Any response to a query, a list or a create gives a task or a `KlingError`."""

    async def asks() -> None:
        async with (
            loopback(sends(raw, close=True)) as server,
            KlingClient(api_key="k", base_url=server.url, retry_timeout=1.0, clock=loop_clock) as kling,
        ):
            created = kling.submit(PHOTO, WIDER, deadline=20).accepted()  # 429 is otherwise waited for
            for call in (kling.get("1"), kling.list(), created):
                with suppress(KlingError):
                    assert isinstance(await call, Task | tuple)
            assert server.requests

    run(asks())


@virtual_time
async def test_callback_timestamps_are_compared_with_the_loop_clock() -> None:
    """The timestamp of a callback is compared with the client's clock, here the event loop's."""
    async with loopback(task()) as server:
        options: dict[str, Any] = {"base_url": server.url, "webhook_secret": SECRET}
        async with KlingClient(api_key="k", clock=loop_clock, **options) as kling:
            assert kling.receive(*signed(success("1"))).verified
        async with KlingClient(api_key="k", clock=lambda: EPOCH + 1e6, **options) as kling:
            with pytest.raises(WebhookError, match="within 300 s of now"):
                kling.receive(*signed(success("1")))


@virtual_time
async def test_attached_tasks_count_as_running() -> None:
    """Each attached task holds one slot until its end, however many futures it has, and no 1303 occurs."""
    async with emulated(work_seconds=50, slots=9) as (emulator, other):
        ids = [(await other.create(PHOTO, Ratios(right=0.1 + n / 100))).task_id for n in range(8)]
        async with KlingClient(api_key=emulator.api_key, base_url=emulator.url, clock=loop_clock) as kling:
            futures = [kling.attach(each) for each in (*ids, *ids)]
            own = [kling.submit(PHOTO, Ratios(left=0.1 + n / 100)) for n in range(3)]
            await asyncio.gather(*futures, *own)
        assert emulator.account.refusals[1303] == 0
        assert emulator.account.peak_slots == 9


@virtual_time
async def test_futures_of_one_task_are_counted_once() -> None:
    """However many futures a task has, it succeeds once and is billed once."""
    async with emulated(work_seconds=5) as (_, kling):
        task = await kling.create(PHOTO, WIDER)
        again = [kling.attach(task.task_id) for _ in range(100)]
        again += [kling.attach(task.external_task_id or "") for _ in range(100)]
        await asyncio.gather(*again)
        assert (kling.stats.succeeded, int(kling.stats.units_billed)) == (1, 8)


@virtual_time
async def test_the_deadline_of_map_holds_for_each_job() -> None:
    """A job that is still running at its deadline becomes an outcome then, whatever the other jobs do."""
    async with emulated(work_seconds=3600) as (_, kling):
        began = asyncio.get_running_loop().time()
        requests = [ExpandRequest(PHOTO, Ratios(right=0.1 + n / 10)) for n in range(2)]
        async for outcome in kling.map(requests, deadline=5):
            assert isinstance(outcome.error, DeadlineExceeded)
        assert asyncio.get_running_loop().time() - began < 6
