"""The start and stop of the emulator, and its responses when something fails."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from support.raw_client import EDITING, Caller, calling, order
from yarl import URL

import kling_expand.emulator
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.testing import virtual_time

AIOHTTP = tuple(int(number) for number in aiohttp.__version__.split(".")[:2])


async def test_an_unreachable_emulator_keeps_its_tasks() -> None:
    """Inside `unreachable`, connections are cut and refused. Afterwards, the same tasks exist."""
    async with calling() as call:
        task_id = await call.create()
        async with call.emulator.unreachable():
            for _ in range(2):
                with pytest.raises(aiohttp.ClientError):
                    await call.task(task_id)
        assert (await call.task(task_id))["task_id"] == task_id


async def test_a_request_in_progress_gets_its_response() -> None:
    """A request that is in progress when the emulator stops still gets its response."""
    async with aiohttp.ClientSession() as session:
        async with Emulator(engine="flat") as emulator:
            call = Caller(emulator, session)
            emulator.faults.script("create", Fault("slow_headers", seconds=0.05))
            under_way = asyncio.ensure_future(call.create())
            while not emulator.account.tasks:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0)
        assert len(await under_way) == 18


HALF_A_BODY = (
    b"POST /v1/images/editing/expand HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Authorization: Bearer api-key-kling-emulator\r\nContent-Length: 9\r\n\r\n{"
)


@pytest.mark.skipif(AIOHTTP < (3, 14), reason="aiohttp waits for the first headers without a limit")
@pytest.mark.parametrize("sent", [b"", b"GET / HT", HALF_A_BODY[:60], HALF_A_BODY])
@virtual_time
async def test_an_unfinished_request_is_dropped(sent: bytes) -> None:
    """Clients that never finish their requests do not use up the emulator's connections."""
    async with Emulator(engine="flat") as emulator:
        url = URL(emulator.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(sent)
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.timeout(90):
            response = await reader.read()
        assert 29 <= loop.time() - start <= 62, loop.time() - start
        assert response[:12] == (b"HTTP/1.1 400" if sent is HALF_A_BODY else b"")
        writer.close()


async def test_use_before_the_start_is_an_error() -> None:
    """Without `async with` the emulator raises RuntimeError."""
    emulator = Emulator()
    with pytest.raises(RuntimeError, match="async with"):
        emulator.advance(1)
    with pytest.raises(RuntimeError, match="async with"):
        async with emulator.unreachable():
            raise AssertionError("it was reachable")


async def test_an_unknown_engine_stops_the_start() -> None:
    """An unknown engine fails at the start and not at the first picture."""
    with pytest.raises(ValueError, match="got 'oils'"):
        async with Emulator(engine="oils"):
            raise AssertionError("it started")


@pytest.mark.parametrize("secret", ["secret", "whsec_***", "whsec_abc"])
async def test_a_bad_secret_stops_the_start(secret: str) -> None:
    """An invalid webhook secret fails at the start and not at the first callback."""
    with pytest.raises(ValueError, match="webhook_secret must be whsec_ followed by Base64"):
        async with calling(webhook_secret=secret):
            raise AssertionError("it started")


async def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy import of the package raises AttributeError for unknown names."""
    with pytest.raises(AttributeError, match="Emulatr"):
        kling_expand.emulator.Emulatr  # noqa: B018


async def test_unknown_paths_and_methods_get_an_envelope() -> None:
    """An unknown path gets 1203, and an unknown method gets 1202. Both have status 404."""
    async with calling() as call:
        for method, path, code in (
            ("GET", "/v1/nothing", 1203),
            ("GET", EDITING + "/a/b", 1203),
            ("DELETE", EDITING, 1202),
            ("PUT", EDITING + "/1", 1202),
        ):
            status, body = await call(method, path)
            assert (404, code) == (status, body["code"])
            assert {"code", "message", "request_id"} == set(body)


async def test_an_unwritable_state_file_causes_code_5000(tmp_path: Path) -> None:
    """A create that cannot be written to the state file gets 5000 and no task id."""
    async with calling(state=str(tmp_path / "state.db")) as call:
        call.emulator.service.store._database.execute("DROP TABLE tasks")
        status, body = await call("POST", EDITING, json=order())
        assert (status, body["code"], set(body)) == (500, 5000, {"code", "message", "request_id"})
