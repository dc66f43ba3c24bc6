"""The types that a user of the public API sees; checked by mypy and pyright, and never run."""

import asyncio
import concurrent.futures
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, assert_type

import pytest
from aiohttp import ClientSession, web
from PIL.Image import Image as PILImage
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from kling_expand import (
    AdaptiveSchedule,
    APIError,
    BudgetExceeded,
    DeadlineExceeded,
    Dialect,
    Event,
    EventKind,
    ExpandRequest,
    ExpandResult,
    Image,
    InvalidRequest,
    JobRecord,
    JobState,
    KeyPair,
    KlingClient,
    KlingError,
    Outcome,
    Padding,
    PolicyRefusal,
    Quantiles,
    RateLimited,
    Ratios,
    ResultImage,
    Settings,
    Slots,
    StaticKey,
    Stats,
    Status,
    Task,
    TaskFuture,
    ToAspect,
    ToSize,
    Towards,
    TransportError,
    blocking,
    calculate_expansion_ratios,
    testing,
)
from kling_expand.config import SettingsOptions, credentials
from kling_expand.contrib import aiohttp, django, otel, starlette
from kling_expand.emulator import Emulator
from kling_expand.geometry import Anchor, Canvas, Expansion, Geometry
from kling_expand.models import BalanceDeduction, ImageSource, resolve_geometry
from kling_expand.store.base import JobStore, MemoryStore
from kling_expand.store.postgres import PostgresStore
from kling_expand.store.postgres_pool import ConnectionPool
from kling_expand.store.sqlite import SQLiteStore
from kling_expand.webhooks import WebhookEvent, Webhooks


async def one(kling: KlingClient) -> None:
    """A single job, by every way in."""
    result = await kling.expand("dog.png", ToAspect("16:9"), prompt="a park", n=2, deadline=90)
    assert_type(result, ExpandResult)
    assert_type(result.images, tuple[ResultImage, ...])
    assert_type(await result.images[0].read(), bytes)
    assert_type(await result.read(), tuple[bytes, ...])
    async for chunk in result.images[0].stream(deadline=5):
        assert_type(chunk, bytes)
    assert_type(await result.upload("s3://bucket/out/"), tuple[str, ...])
    assert_type(result.to_dict(), dict[str, Any])
    assert_type(result.task.images, tuple[Image, ...])
    assert_type(result.files, tuple[Path, ...])
    assert_type(result.task, Task)
    assert_type(result.request, ExpandRequest | None)
    saved = await result.save("out/", overwrite=True, format="jpeg", quality=90)
    assert_type(saved, tuple[Path, ...])
    future = kling.submit(Path("dog.png"), Ratios(right=0.5), key="dog", priority=1)
    assert_type(future, TaskFuture)
    assert_type(await future, ExpandResult)
    assert_type(await future.accepted(), Task)
    assert_type(await future.wait(timeout=5), bool)
    assert_type(future.done(), bool)
    assert_type(future.result(), ExpandResult)
    assert_type(await asyncio.gather(*[future]), list[ExpandResult])
    future.add_done_callback(lambda ended: assert_type(ended, TaskFuture))
    assert_type(future.cancel(), bool)
    assert_type(future.task, Task | None)
    assert_type(future.task_id, str | None)
    assert_type(future.error, KlingError | None)
    assert_type(future.exception(), KlingError | None)
    async for task in future:
        assert_type(task.status, Status)
        assert_type(task.units, Decimal | None)
        assert_type(task.final_balance_deduction, BalanceDeduction | None)
    assert_type(kling.attach("1"), TaskFuture)
    assert_type(await kling.create(b"...", Padding(up=10)), Task)
    assert_type(await kling.get("1"), Task)
    assert_type(await kling.job("kx-1"), JobRecord | None)
    assert_type(await kling.list(1, 30), tuple[Task, ...])


async def many(kling: KlingClient) -> None:
    """Many jobs, from an iterable and from an async iterable."""
    requests = [ExpandRequest("a.png", ToSize(1200, 630)), ExpandRequest("b.png", Towards("all", 1.2))]

    async def source() -> AsyncIterator[ExpandRequest]:
        for request in requests:
            yield request

    async for outcome in kling.map(requests, ordered=True, max_failures=3):
        assert_type(outcome, Outcome)
        assert_type(outcome.result, ExpandResult | None)
        assert_type(outcome.error, KlingError | None)
        assert_type(outcome.request.key, str | None | Any)
    rows = [{"image": "a.png", "geometry": ToSize(1200, 630)}, {"image": "b.png", "n": 2}]
    async for outcome in kling.map(rows, save_to="out/"):
        assert_type(outcome.files, tuple[Path, ...])
    async for outcome in kling.map([lambda: ExpandRequest("a.png", ToSize(1200, 630))]):
        assert_type(outcome.to_dict(), dict[str, Any])
    async for outcome in kling.map(source()):
        assert_type(outcome.index, int)
    async for future in kling.resume():
        assert_type(future, TaskFuture)
    async for task in kling.tasks():
        assert_type(task, Task)


async def opened() -> None:
    """What a client is made of."""
    events: list[Event] = []
    async with KlingClient(
        auth=KeyPair("a", "s"),
        slots=Slots(9),
        schedule=AdaptiveSchedule(),
        listener=events.append,
        journal="run.db",
        webhook_secret=["whsec_b2xk", "whsec_bmV3"],
        dialect=Dialect.EDITING,
        read_timeout=5,
    ) as kling:
        assert_type(kling, KlingClient)
        assert_type(await kling.aclose(wait=True), tuple[TaskFuture, ...])
    KlingClient(auth=StaticKey("k"), journal=MemoryStore())
    KlingClient(
        listener=[events.append, print],
        proxy="http://proxy.example:3128",
        headers={"X-Team": "photos"},
        ssl=ssl.create_default_context(),
        trust_env=False,
    )
    KlingClient(http=ClientSession)
    KlingClient(http=ClientSession(trust_env=True))


async def later_fields(kling: KlingClient, picture: PILImage) -> None:
    """Text as an aspect, a picture of Pillow, and what this version does not know."""
    result = await kling.expand("dog.png", "16:9", extra={"new_field": [1]})
    assert_type(result.task.raw, dict[str, Any] | None)
    assert_type(ExpandRequest(picture, "16:9").extra, Mapping[str, Any] | None)
    assert_type(kling.receive([("webhook-id", "1")], "{}"), WebhookEvent)
    kling.receive({"webhook-id": ["1"]}, {"task_id": "1", "task_status": "failed"})


def observed(event: Event, stats: Stats) -> None:
    """What a listener is called with, and the statistics made of it."""
    assert_type(event.kind, EventKind)
    assert_type(event.task, Task | None)
    assert_type(event.error, KlingError | None)
    assert_type(event.seconds, float | None)
    assert_type(event.route, str | None)
    assert_type(event.attempt, int | None)
    assert_type(event.wait, float | None)
    assert_type(event.task_id, str | None)
    assert_type(stats.errors, dict[str, int])
    assert_type(stats.units_billed, Decimal)
    assert_type(stats.units_found, Decimal)
    assert_type(stats.latency, Quantiles)
    assert_type(stats.latency.p95, float | None)


def configured(kling: KlingClient, fields: SettingsOptions) -> None:
    """The settings of a client, and where they come from."""
    assert_type(kling.stats, Stats)
    assert_type(kling.settings, Settings)
    settings = Settings.from_env({"KLING_BASE_URL": "https://kling.example"}, **fields)
    assert_type(settings, Settings)
    assert_type(settings.base_url, str)
    assert_type(settings.dialect, Dialect)
    assert_type(settings.max_in_flight, int)
    assert_type(settings.connect_timeout, float)
    assert_type(settings.read_timeout, float)
    assert_type(settings.create_timeout, float)
    assert_type(settings.upload_speed, float)
    assert_type(settings.retry_timeout, float)
    assert_type(settings.max_retry_after, float)
    assert_type(settings.poll_timeout, float)
    assert_type(settings.refusal_timeout, float)
    assert_type(settings.download_timeout, float)
    assert_type(settings.upload_bytes, int)
    assert_type(credentials(api_key="k").token(), str)


async def failed(kling: KlingClient) -> None:
    """What an error says, from the most special class to the base of all."""
    try:
        await kling.expand("dog.png", ToAspect("16:9"))
    except InvalidRequest as error:
        assert_type(error.field, str)
        assert_type(error.value, object)
        assert_type(error.limit, str)
        assert_type(error.advice, str)
    except TransportError as error:
        assert_type(error.sent, bool)
        assert_type(error.retryable, bool)
    except APIError as error:
        assert_type(error.code, int | None)
        assert_type(error.status, int | None)
        assert_type(error.request_id, str | None)
        assert_type(error.retry_after, float | None)
    except KlingError as error:
        assert_type(error.message, str)
        assert_type(error.task_id, str | None)
        assert_type(error.external_task_id, str | None)
    refusals: list[type[APIError]] = [RateLimited, PolicyRefusal]
    assert_type(refusals[0].retryable, bool)
    _builtin: tuple[type[ValueError], type[TimeoutError]] = (BudgetExceeded, DeadlineExceeded)


def expanded(source: ImageSource, anchor: Anchor) -> None:
    """Every geometry is a `Geometry`, and gives ratios for a size."""
    geometries: tuple[Geometry, ...] = (
        Ratios(0.1, 0.2, left=0.3),
        ToAspect((16, 9), area=2.5, anchor=anchor),
        ToAspect(1.78),
        ToSize(1200, 630, "top-left"),
        Padding(up=10, right=20),
        Towards("left,right", ratio=1.5),
    )
    for geometry in geometries:
        assert_type(geometry.needs_size, bool)
        assert_type(geometry.ratios(1024, 768), Ratios)
    ratios = Ratios(right=0.5)
    assert_type(ratios.area, float)
    canvas = ratios.canvas(1024, 768)
    assert_type(canvas, Canvas)
    assert_type(canvas.box, tuple[int, int, int, int])
    assert_type(canvas.scaled(512, 512).frame, tuple[float, float, float, float])
    assert_type(ToAspect("16:9").aspect, float)
    assert_type(ToAspect("16:9").area, float | None)
    assert_type(Padding(up=1).up, int)
    assert_type(Towards("all").direction, str)
    assert_type(calculate_expansion_ratios(100, 100, 3, 16 / 9), str)
    request = ExpandRequest(source, ratios, "a park", n=2, key="dog")
    assert_type(request.units, int)
    assert_type(resolve_geometry(request, Dialect.EDITING, (1024, 768)), Expansion)


def called_back(kling: KlingClient, headers: Mapping[str, str], body: bytes) -> None:
    """A callback, read by a client or without one."""
    event = kling.receive(headers, body)
    assert_type(event, WebhookEvent)
    assert_type(event.task, Task)
    assert_type(event.verified, bool)
    assert_type(event.repeated, bool)
    assert_type(event.webhook_id, str | None)
    assert_type(event.needs_poll, bool)
    assert_type(Webhooks("whsec_b2xk", tolerance=60).parse(headers, body), WebhookEvent)


async def stored(pool: ConnectionPool) -> None:
    """The job stores are `JobStore`s, which a client takes as its journal."""
    stores: list[JobStore] = [MemoryStore(), SQLiteStore("run.db", run="may"), PostgresStore(pool)]
    for store in stores:
        KlingClient(api_key="k", journal=store)
        assert_type(await store.counts(), dict[JobState, int])
        assert_type(await store.find("dog"), JobRecord | None)
        async for record in store.jobs(JobState.SUBMITTED):
            assert_type(record.external_task_id, str)
            assert_type(record.task_id, str | None)


def with_aiohttp(app: web.Application, request: web.Request) -> None:
    """The adapter for aiohttp.web."""
    aiohttp.setup(app, budget=800, webhook_secret="whsec_b2xk")
    assert_type(aiohttp.get_client(app), KlingClient)
    assert_type(aiohttp.get_client(request), KlingClient)
    assert_type(aiohttp.webhook("/kling"), web.RouteDef)


def with_starlette(app: Starlette, request: Request) -> None:
    """The adapter for Starlette and FastAPI."""
    starlette.setup(app, budget=800)
    assert_type(starlette.get_client(request), KlingClient)
    assert_type(starlette.webhook("/kling"), Route)


def with_django(app: django.Application, request: object) -> None:
    """The adapter for Django."""
    assert_type(django.setup(app, budget=800), django.KlingApplication)
    assert_type(django.get_client(request), KlingClient)


def misspelled(app: web.Application, star: Starlette, asgi: django.Application) -> None:
    """An option that no client has is an error wherever options go on to a client, or the comment is one."""
    aiohttp.setup(app, budgit=800)  # type: ignore[call-arg]
    starlette.setup(star, budget="800")  # type: ignore[arg-type]
    django.setup(asgi, budgit=800)  # type: ignore[call-arg]
    blocking.KlingClient(budgit=800)  # type: ignore[call-arg]
    KlingClient(budgit=800)  # type: ignore[call-arg]


def traced() -> None:
    """The listener for OpenTelemetry."""
    listener: Callable[[Event], object] = otel.Telemetry()
    KlingClient(api_key="k", listener=listener)


def without_asyncio() -> None:
    """The same verbs in a script without a loop."""
    with blocking.KlingClient(api_key="k", read_timeout=5) as kling:
        assert_type(kling, blocking.KlingClient)
        assert_type(kling.stats, Stats)
        result = kling.expand("dog.png", ToAspect("16:9"))
        assert_type(result, blocking.ExpandResult)
        assert_type(result.images, tuple[blocking.ResultImage, ...])
        assert_type(result.images[0].read(), bytes)
        assert_type(result.images[0].stream(), Iterator[bytes])
        assert_type(result.read(), tuple[bytes, ...])
        assert_type(result.save("out/"), tuple[Path, ...])
        future = kling.submit("dog.png", Ratios(right=0.5), priority=1)
        assert_type(future, blocking.TaskFuture)
        assert_type(future.result(timeout=5), blocking.ExpandResult)
        assert_type(future.exception(timeout=5), KlingError | None)
        waitable: concurrent.futures.Future[blocking.ExpandResult] = future
        concurrent.futures.wait([waitable])
        assert_type(kling.settings, Settings)
        assert_type(future.accepted(), Task)
        assert_type(future.wait(timeout=5), bool)
        assert_type(future.cancel(), bool)
        assert_type(iter(future), Iterator[Task])
        for outcome in kling.map([ExpandRequest("a.png", ToAspect("1:1"))], ordered=True):
            assert_type(outcome, blocking.Outcome)
            assert_type(outcome.result, blocking.ExpandResult | None)
        assert_type(kling.resume(), Iterator[blocking.TaskFuture])
        assert_type(kling.tasks(page_size=10), Iterator[Task])
        assert_type(kling.attach("1"), blocking.TaskFuture)
        assert_type(kling.receive({}, b""), WebhookEvent)
        assert_type(kling.list(1, 30), tuple[Task, ...])
        assert_type(kling.close(wait=True), tuple[blocking.TaskFuture, ...])


@testing.virtual_time
async def within_virtual_time(kling_emulator: Emulator, kling_client: KlingClient) -> int:
    """The tools for tests, such as fixtures and virtual time."""
    assert_type(await kling_client.get(kling_emulator.url), Task)
    async with testing.emulated({"budget": 80}, work_seconds=3600) as (emulator, kling):
        assert_type(emulator, Emulator)
        assert_type(emulator.api_key, str)
        assert_type(kling, KlingClient)
    return 1


def tested(emulator: Emulator, kling: KlingClient) -> None:
    """An async test becomes a plain function with the same parameters."""
    assert_type(within_virtual_time(emulator, kling), int)
    assert_type(testing.run(kling.get("1")), Task)


class OwnStore(testing.JobStoreContract):
    """The contract of a job store, for a store of one's own."""

    @pytest.fixture
    def make_store(self) -> testing.MakeStore:
        """Return what makes a store."""
        return lambda clock: MemoryStore(clock=clock)
