"""The event loop in a thread: work from other threads, interruption and shutdown."""

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kling_expand._portal import LoopThread, pull
from kling_expand.errors import ClientClosed


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """Yield a running thread."""
    thread = LoopThread()
    thread.start()
    yield thread
    thread.stop()


async def counting(closed: list[int], last: int = 3) -> AsyncGenerator[int, None]:
    """Count from 1 to *last*, and append the last number to *closed* at the end."""
    number = 0
    try:
        while number < last:
            number += 1
            yield number
            await asyncio.sleep(0)
    finally:
        closed.append(number)


async def interrupt(ended: threading.Event, begun: threading.Event | None = None) -> None:
    """Send SIGINT to this process, or set *begun*, and then wait forever."""
    main = threading.main_thread().ident
    assert main is not None
    try:
        if begun is None:
            signal.pthread_kill(main, signal.SIGINT)
        else:
            begun.set()
        await asyncio.Event().wait()
    finally:
        ended.set()


def test_run_returns_values_and_raises_errors(thread: LoopThread) -> None:
    """Values and errors arrive in the thread that called `run`."""

    async def where() -> int:
        return threading.get_ident()

    async def fail() -> None:
        raise ZeroDivisionError

    assert thread.run(where()) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        thread.run(fail())


def test_starting_again_keeps_the_same_loop(thread: LoopThread) -> None:
    """Starting the thread again keeps the same loop."""

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    first = thread.run(loop())
    assert not thread.start()
    assert thread.run(loop()) is first


def test_an_interrupted_wait_cancels_the_work(thread: LoopThread) -> None:
    """After Ctrl-C the work in the loop is cancelled."""
    ended = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        thread.run(interrupt(ended))
    assert ended.wait(10)


def test_an_interrupted_iteration_is_closed(thread: LoopThread) -> None:
    """After Ctrl-C in a ``for`` loop, the source is closed before the exception leaves the loop."""
    ended = threading.Event()

    async def source() -> AsyncGenerator[int, None]:
        try:
            await interrupt(threading.Event())
            yield 1
        finally:
            await asyncio.sleep(0)
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        next(thread.iterate(source()))
    assert ended.is_set()


def test_stopping_ends_the_waits_of_other_threads() -> None:
    """A wait in another thread raises `ClientClosed`, and its work is cancelled."""
    thread, ended, begun = LoopThread(), threading.Event(), threading.Event()
    thread.start()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: thread.run(interrupt(ended, begun)))
        assert begun.wait(10)
        thread.stop()
        with pytest.raises(ClientClosed, match="another thread"):
            waiting.result(10)
    assert ended.is_set()


def test_work_that_cannot_run_raises_client_closed() -> None:
    """Before the start, after the end and within the loop, work raises `ClientClosed` instead of waiting."""
    thread = LoopThread()
    thread.stop()
    with pytest.raises(ClientClosed):
        thread.run(asyncio.sleep(0))
    thread.start()

    async def within() -> None:
        thread.run(asyncio.sleep(0))

    with pytest.raises(ClientClosed):
        thread.run(within())
    thread.stop()
    with pytest.raises(ClientClosed):
        thread.run(asyncio.sleep(0))


def test_items_arrive_in_order(thread: LoopThread) -> None:
    """All items arrive in order, and the source is closed at its end."""
    closed: list[int] = []
    assert list(thread.iterate(counting(closed))) == [1, 2, 3]
    assert closed == [3]


def test_leaving_early_closes_the_source(thread: LoopThread) -> None:
    """A `break` closes the source before the next statement runs."""
    closed: list[int] = []
    for number in thread.iterate(counting(closed)):
        assert number == 1
        break
    assert closed == [1]


def test_stop_closes_an_open_iteration() -> None:
    """`stop` closes an iteration that was left open, and the next step raises `ClientClosed`."""
    closed: list[int] = []
    thread = LoopThread()
    thread.start()
    left = thread.iterate(counting(closed))
    assert next(left) == 1
    thread.stop()
    assert closed == [1]
    with pytest.raises(ClientClosed):
        next(left)


def test_items_are_pulled_outside_the_loop(thread: LoopThread) -> None:
    """The iterable runs outside the loop, so it may wait for work in the loop."""

    def items() -> Iterator[int]:
        for number in range(3):
            yield thread.run(asyncio.sleep(0, number))

    assert list(thread.iterate(pull(items()))) == [0, 1, 2]
