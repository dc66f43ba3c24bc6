"""The same, without waiting? A loop whose time jumps, and fixtures of a client with its emulator.

In a `conftest.py` of your own (with the extra ``kling-expand[test]``)::

    pytest_plugins = ["kling_expand.testing"]

gives the fixtures `kling_emulator` and `kling_client`. A test under `virtual_time` takes no time::

    @virtual_time
    async def test_a_wide_dog():
        async with emulated(work_seconds=3600) as (emulator, kling):
            await kling.expand("dog.png", Ratios(right=0.5))
"""

import asyncio
import functools
import math
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from random import Random
from typing import Any, ParamSpec, TypeVar, TypeVarTuple, Unpack

import pytest_asyncio

from .client import KlingClient
from .emulator import Emulator
from .jobs.poll_schedule import ExponentialSchedule

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH = 1_750_000_000.0  # Unix seconds at which virtual time begins


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for the next timer it moves the clock there, unless a thread is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.working = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or self.working:
            return super().select(None if timeout != 0 else 0)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.now += timeout
            if self.now + 1e-9 == self.now:  # after months asyncio's own tolerance is lost in rounding
                self.now = math.nextafter(self.now, math.inf)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which sleeping takes no time.

    When all are idle its clock moves to the next timer. Loopback sockets within one loop and work in
    executors are waited for in real time; other threads and other processes it cannot see.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        return self._jumping.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        """Run *func* in a thread or process; no time passes meanwhile."""
        future = super().run_in_executor(executor, func, *args)
        self._jumping.working += 1
        future.add_done_callback(self._worked)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncio's
        """Wait for the executor's threads in real time."""
        del timeout  # it would pass at once
        self._jumping.working += 1
        await super().shutdown_default_executor()

    def _worked(self, _future: "asyncio.Future[Any]") -> None:
        self._jumping.working -= 1


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make an async test one that takes no time. It can use fixtures that are not async themselves."""

    @functools.wraps(test)
    def at_once(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(test(*args, **kwargs))

    return at_once


def loop_clock() -> float:
    """Unix seconds by the running loop's own clock: the same for an emulator and its clients."""
    return EPOCH + asyncio.get_running_loop().time()


@asynccontextmanager
async def emulated(
    client: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Emulator, KlingClient]]:
    """An emulator with the *options* of its settings, and a client of it with those of *client*.

    Both follow the running loop's clock and the same seed. Pictures are painted flat unless
    `engine` says otherwise.
    """
    settings: dict[str, Any] = {"engine": "flat", "clock": loop_clock} | options
    async with Emulator(**settings) as emulator:
        given: dict[str, Any] = {"api_key": emulator.api_key, "base_url": emulator.url}
        given |= {"clock": loop_clock, "rng": Random(1)}
        async with KlingClient(**given | (client or {})) as kling:
            yield emulator, kling


@pytest_asyncio.fixture
async def kling_emulator() -> AsyncIterator[Emulator]:
    """A local emulator of the service that answers quickly."""
    async with Emulator(engine="flat", queue_seconds=0.02, work_seconds=0.05) as emulator:
        yield emulator


@pytest_asyncio.fixture
async def kling_client(kling_emulator: Emulator) -> AsyncIterator[KlingClient]:
    """A client of `kling_emulator` that looks often."""
    schedule = ExponentialSchedule(Random(1), first=0.03, longest=0.3)
    async with KlingClient(
        api_key=kling_emulator.api_key, base_url=kling_emulator.url, schedule=schedule
    ) as kling:
        yield kling
