"""The chaos benchmark: no job is paid for twice or lost, and its proxy injects the described faults."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.raw_server import Loopback, loopback, responds

from benchmarks import proxy
from benchmarks.proxy import Proxy
from kling_expand.testing import virtual_time

ROOT = Path(__file__).parent.parent
FORWARDED = {*proxy.KINDS, proxy.SLOW} - {proxy.RESET, proxy.UNAVAILABLE, proxy.HTML, proxy.RATE_LIMIT}


def runs(*options: object) -> list[dict[str, Any]]:
    """Return the figures of the runs of one command, in new processes."""
    command = [sys.executable, "-m", "benchmarks.chaos", "--json", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() or [done.stderr]]
    bad = [each["duplicates"] - each["repeated"] + each["lost"] for each in found]
    assert done.returncode == any(bad)
    return found


def chaos(*options: object) -> dict[str, Any]:
    """Return the figures of one run."""
    (numbers,) = runs(*options)
    return numbers


def test_no_job_is_paid_twice_or_lost(tmp_path: Path) -> None:
    """After five SIGKILLs of the script and one of the service, 60 jobs have 60 tasks and correct files."""
    conditions = ("--jobs", 60, "--kills", 5, "--seed", 7, "--unique", "off", "--work-seconds", 0.2)
    found = chaos(*conditions, "--folder", tmp_path)
    assert (found["duplicates"], found["lost"]) == (0, 0)
    assert (found["created"], found["verified"], found["billed"], found["due"]) == (60, 60, 480, 480)
    assert (found["kills"], found["emulator_kills"], found["finished"]) == (5, 1, True)
    assert found["faults"]["total"] > 5


def test_no_job_is_paid_twice_or_lost_under_harsh_conditions() -> None:
    """Slow creates, late lookups, a clock set back and a deleted journal cause no double payment or loss.

    This holds even if the service accepts an id twice, because a new journal first lists the account.
    """
    kept, unique, deleted = runs(
        *("--harsh", "--jobs", 24, "--kills", 2, "--seed", 7, "--faults", 0.3),
        *("--scale", 30, "--work-seconds", 0.2),
    )
    assert [each["unique"] for each in (kept, unique, deleted)] == [False, True, False]
    for each in (kept, unique, deleted):
        assert (each["created"], each["duplicates"], each["lost"], each["finished"]) == (24, 0, 0, True)
        assert each["kills"] == 2
        assert each["faults"]["slow"] > 0


def test_a_naive_script_pays_twice_or_loses_jobs() -> None:
    """A script without the SDK fails under the same conditions, so the conditions are hard enough."""
    found = chaos("--jobs", 40, "--kills", 2, "--emulator-kills", 0, "--seed", 7, "--baseline", "naive")
    assert found["duplicates"] + found["lost"] > 0
    assert found["created"] > 40


async def send_with_fault(kind: str, service: Loopback, method: str = "GET") -> tuple[int, bytes] | None:
    """Return the status and body after a fault of this *kind*, or None without a complete response."""
    service.requests.clear()
    async with (
        Proxy(service.url, probability=1, seed=1, kinds=[kind], delays=(0, 0)) as chaos_proxy,
        aiohttp.ClientSession() as http,
    ):
        try:
            async with http.request(method, chaos_proxy.url + "/path?a=b", data=b"body") as response:
                received = response.status, await response.read()
        except aiohttp.ClientError:
            received = None
    assert {kind: 1} == chaos_proxy.faults
    return received


@pytest.mark.parametrize("kind", [*proxy.KINDS, proxy.SLOW])
async def test_a_fault_forwards_the_request_or_not(kind: str) -> None:
    """A fault that forwards sends the complete request once, and any other fault does not send it."""
    async with loopback(responds(b"0123456789")) as service:
        received = await send_with_fault(kind, service, "POST")
        assert [b"body"] * (kind in FORWARDED) == [each.body for each in service.requests]
    if kind in {proxy.DELAY, proxy.SLOW}:
        assert received == (200, b"0123456789")
    elif kind in {proxy.RESET, proxy.RESET_EARLY, proxy.RESET_AFTER, proxy.TRUNCATE}:
        assert received is None
    else:
        assert received is not None
        assert b"0123456789" not in received[1]


async def test_a_good_request_passes_unchanged() -> None:
    """Without a fault, path, end-to-end headers, body and response arrive unchanged."""
    async with (
        loopback(responds(b"response", 206, ETag='"tag"')) as service,
        Proxy(service.url, probability=0, seed=1) as chaos_proxy,
        aiohttp.ClientSession() as http,
    ):
        for _ in range(3):
            headers = {"Authorization": "Bearer t", "Range": "bytes=1-"}
            async with http.post(chaos_proxy.url + "/p?q=1", data=b"body", headers=headers) as response:
                assert (
                    response.status,
                    response.headers["ETag"],
                    await response.read(),
                ) == (206, '"tag"', b"response")
        await chaos_proxy.reached(3)
    assert {"POST /p?q=1 HTTP/1.1"} == {each.line for each in service.requests}
    assert {("Bearer t", "bytes=1-")} == {
        (each.headers["authorization"], each.headers["range"]) for each in service.requests
    }


async def test_a_service_that_is_down_is_a_bad_gateway() -> None:
    """While the service is down the proxy answers 502, as a gateway would."""
    async with loopback(responds(b"")) as service:
        pass
    async with (
        Proxy(service.url, probability=0, seed=1) as chaos_proxy,
        aiohttp.ClientSession() as http,
        http.get(chaos_proxy.url) as response,
    ):
        assert response.status == 502


async def test_a_slow_response_comes_after_its_effect() -> None:
    """The service gets the request at once, but the client gets the response only after the given time."""
    async with (
        loopback(responds(b"response")) as service,
        Proxy(service.url, probability=1, seed=1, kinds=[proxy.SLOW], slow=60) as chaos_proxy,
        aiohttp.ClientSession() as http,
    ):
        waiting = asyncio.create_task(http.post(chaos_proxy.url, data=b"body"))
        await chaos_proxy.reached(1)
        assert [each.body for each in service.requests] == [b"body"]
        assert not waiting.done()
        waiting.cancel()


@virtual_time
async def test_a_lookup_lags_behind_its_create() -> None:
    """A new task cannot be found by its external id for a while, but its task id and older ids work."""
    create = b'{"external_task_id": "new"}'
    async with (
        loopback(responds(b"{}")) as service,
        Proxy(service.url, probability=0, seed=1, lookup_lag=30) as chaos_proxy,
        aiohttp.ClientSession(chaos_proxy.url) as http,
    ):

        async def status(name: str) -> int:
            async with http.get(f"/tasks/{name}") as response:
                return response.status

        async with http.post("/tasks", data=create):
            pass
        assert [await status(name) for name in ("new", "other", "17")] == [400, 200, 200]
        await asyncio.sleep(29)
        assert await status("new") == 400
        await asyncio.sleep(1.5)
        assert await status("new") == 200


async def test_the_same_seed_injects_the_same_faults() -> None:
    """Each route has its own sequence, so the number of polls does not change the faults of creates."""

    async def statuses(polls: int) -> list[int]:
        kinds = [proxy.HTML, proxy.UNAVAILABLE, proxy.RATE_LIMIT]
        async with (
            loopback(responds(b"")) as service,
            Proxy(service.url, probability=0.5, seed=3, kinds=kinds) as chaos_proxy,
            aiohttp.ClientSession() as http,
        ):
            found = []
            for _ in range(12):
                for _ in range(polls):
                    await http.get(chaos_proxy.url)
                async with http.post(chaos_proxy.url) as response:
                    found.append(response.status)
            return found

    assert await statuses(0) == await statuses(3)
