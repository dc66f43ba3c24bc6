"""The types that a user of the public API sees; checked by mypy and pyright, and never run."""

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import assert_type

from kling_expand import (
    Event,
    ExpandRequest,
    ExpandResult,
    Image,
    KlingClient,
    KlingError,
    Outcome,
    Padding,
    Ratios,
    Settings,
    Slots,
    Stats,
    Status,
    Task,
    TaskFuture,
    ToAspect,
    ToSize,
    Towards,
    blocking,
)


async def one(kling: KlingClient) -> None:
    """A single job, by every way in."""
    result = await kling.expand("dog.png", ToAspect("16:9"), prompt="a park", n=2, deadline=90)
    assert_type(result, ExpandResult)
    assert_type(result.images, tuple[Image, ...])
    assert_type(await result.save("out/"), tuple[Path, ...])
    future = kling.submit(Path("dog.png"), Ratios(right=0.5), key="dog", priority=1)
    assert_type(future, TaskFuture)
    assert_type(await future, ExpandResult)
    assert_type(await future.accepted(), Task)
    assert_type(future.done(), bool)
    assert_type(future.task, Task | None)
    assert_type(future.error, KlingError | None)
    async for task in future:
        assert_type(task.status, Status)
        assert_type(task.units, Decimal | None)
    assert_type(kling.attach("1"), TaskFuture)
    assert_type(await kling.create(b"...", Padding(up=10)), Task)
    assert_type(await kling.get("1"), Task)
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
    async for outcome in kling.map(source()):
        assert_type(outcome.index, int)
    async for future in kling.resume():
        assert_type(future, TaskFuture)
    async for task in kling.tasks():
        assert_type(task, Task)
    assert_type(kling.stats, Stats)
    assert_type(kling.settings, Settings)


async def opened() -> None:
    """What a client is made of."""
    events: list[Event] = []
    async with KlingClient(
        access_key="a", secret_key="s", slots=Slots(9), listener=events.append, journal="run.db"
    ) as kling:
        assert_type(kling, KlingClient)
        assert_type(await kling.aclose(wait=True), tuple[TaskFuture, ...])


def without_asyncio() -> None:
    """The same verbs in a script without a loop."""
    with blocking.KlingClient(api_key="k") as kling:
        assert_type(kling, blocking.KlingClient)
        result = kling.expand("dog.png", ToAspect("16:9"))
        assert_type(result.save("out/"), tuple[Path, ...])
        for outcome in kling.map([ExpandRequest("a.png", ToAspect("1:1"))]):
            assert_type(outcome.index, int)
