"""The virtual clock, which jumps only when nothing is ready to run, and the fixtures."""

import asyncio
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.raw_server import loopback, task

from kling_expand import KlingClient, Ratios, Status
from kling_expand.blocking import KlingClient as BlockingClient
from kling_expand.emulator import Emulator
from kling_expand.testing import EPOCH, VirtualLoop, emulated, loop_clock, run, virtual_time

pytest_plugins = ["kling_expand.testing"]

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "chelsea.jpg"


def now() -> float:
    """The current time of the event loop."""
    return asyncio.get_running_loop().time()


@virtual_time
async def test_sleeping_takes_no_time() -> None:
    """A sleep of a virtual year ends at once, and exactly one year later."""
    began = time.monotonic()
    await asyncio.sleep(365 * 86400)
    assert now() == pytest.approx(365 * 86400)
    assert time.monotonic() - began < 60


@virtual_time
async def test_sleepers_wake_in_order() -> None:
    """Many sleepers wake in the order of their times."""
    woken = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append((seconds, now()))

    await asyncio.gather(*map(sleeper, [5, 1, 3, 0.001, 3600]))
    assert [seconds for seconds, _ in woken] == [0.001, 1, 3, 5, 3600]
    assert all(at == pytest.approx(seconds) for seconds, at in woken)


@virtual_time
async def test_no_time_passes_while_a_thread_works() -> None:
    """Work in a thread takes no virtual time, so a timeout of one second does not expire."""
    release = threading.Event()
    asyncio.get_running_loop().call_soon(release.set)
    async with asyncio.timeout(1):
        assert await asyncio.to_thread(release.wait, 60) is True
    assert now() < 1


@virtual_time
async def test_no_time_passes_while_loopback_sockets_transfer() -> None:
    """A megabyte crosses a socket in no virtual time."""
    async with loopback(task()) as server:
        reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
        async with asyncio.timeout(0.001):
            writer.write(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000))
            await writer.drain()
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert len(server.requests[0].body) == 1_000_000


def test_each_run_has_its_own_time() -> None:
    """Each run has its own time, and returns or raises the result of its coroutine."""

    async def main() -> float:
        await asyncio.sleep(7)
        return now()

    async def broken() -> None:
        await asyncio.sleep(7)
        raise ZeroDivisionError

    assert run(main()) == run(main()) == pytest.approx(7)
    with pytest.raises(ZeroDivisionError):
        run(broken())


def test_closing_the_loop_waits_for_its_threads() -> None:
    """Closing the loop waits for its threads in real time."""
    done = []

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, lambda: done.append(threading.get_ident()))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert len(done) == 1


@virtual_time
async def test_the_wall_clock_follows_the_loop() -> None:
    """Tokens, dates and timers agree on a date of this century."""
    assert loop_clock() == pytest.approx(EPOCH)
    await asyncio.sleep(3600)
    assert loop_clock() == pytest.approx(EPOCH + 3600)
    assert datetime.fromtimestamp(EPOCH, UTC).year == 2025


@pytest.mark.parametrize("given", ["a", "b"])
@virtual_time
async def test_fixtures_and_parameters_reach_a_test(given: str, tmp_path: Path) -> None:
    """The decorator keeps the parameters of the function."""
    assert given in {"a", "b"}
    assert tmp_path.name


@virtual_time
async def test_a_task_of_an_hour_ends_at_once() -> None:
    """A task that takes an hour ends at once, because emulator and client share one clock."""
    async with emulated(work_seconds=3600) as (emulator, kling):
        future = kling.submit(PHOTO, Ratios(right=0.5))
        result = await future
        assert result.task.status is Status.SUCCEED
        assert 3600 <= now() < 3600 * 1.1
        assert emulator.account.units_billed == 8


@virtual_time
async def test_emulator_and_client_accept_settings() -> None:
    """`emulated` takes settings of the emulator and of the client."""
    client: dict[str, Any] = {"max_in_flight": 3, "dialect": "direction"}
    async with emulated(client, slots=3, seed=5) as (emulator, kling):
        assert (kling.settings.max_in_flight, kling.settings.dialect) == (3, "direction")
        assert (emulator.slots, emulator.seed, emulator.engine) == (3, 5, "flat")


async def test_the_fixtures_are_a_client_and_its_emulator(
    kling_emulator: Emulator, kling_client: KlingClient
) -> None:
    """The fixtures of the plugin are a client and its emulator, in real time."""
    result = await kling_client.expand(PHOTO, Ratios(right=0.5))
    assert result.task_id in kling_emulator.account.tasks


def test_a_synchronous_test_can_use_the_emulator(kling_emulator: Emulator) -> None:
    """The emulator responds while a test blocks its own thread, as with Starlette's test client."""
    with BlockingClient(
        api_key=kling_emulator.api_key, base_url=kling_emulator.url, trust_env=False
    ) as kling:
        assert kling.expand(PHOTO, Ratios(right=0.5)).task.status is Status.SUCCEED
    assert kling_emulator.account.units_billed == 8


def test_a_synchronous_test_with_the_wrong_client_gets_advice(request: pytest.FixtureRequest) -> None:
    """A synchronous test with the asynchronous client fails at once, and the error names the blocking one."""
    with pytest.raises(pytest.fail.Exception, match=r"needs an async test.*blocking\.KlingClient"):
        request.getfixturevalue("kling_client")
