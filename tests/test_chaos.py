"""Is nothing paid twice and nothing lost, whatever is killed and however bad the network is?"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.raw_server import Loopback, loopback, says

from benchmarks import proxy
from benchmarks.proxy import Proxy

ROOT = Path(__file__).parent.parent
HEARD = {proxy.LATE, proxy.DELAY, proxy.RESET_AFTER, proxy.ERROR_AFTER, proxy.HTML_AFTER, proxy.TRUNCATE}


def chaos(*options: object) -> dict[str, Any]:
    """The numbers of a run in processes of its own."""
    command = [sys.executable, "-m", "benchmarks.chaos", "--json", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    (line,) = done.stdout.splitlines() or [done.stderr]
    numbers: dict[str, Any] = json.loads(line)
    assert done.returncode == bool(numbers["duplicates"] or numbers["lost"])
    return numbers


def test_nothing_is_paid_twice_and_nothing_lost(tmp_path: Path) -> None:
    """200 jobs, five SIGKILLs of the script, one of the service: 200 tasks, 200 right pictures."""
    conditions = ("--jobs", 200, "--kills", 5, "--seed", 7, "--unique", "off", "--work-seconds", 0.2)
    found = chaos(*conditions, "--folder", tmp_path)
    assert (found["duplicates"], found["lost"]) == (0, 0)
    assert (found["created"], found["verified"], found["billed"], found["due"]) == (200, 200, 1600, 1600)
    assert (found["kills"], found["emulator_kills"], found["finished"]) == (5, 1, True)
    assert found["faults"]["total"] > 20


def test_a_naive_script_pays_twice_or_loses() -> None:
    """The conditions are bad enough: the same without the SDK goes wrong."""
    found = chaos("--jobs", 60, "--kills", 2, "--emulator-kills", 0, "--seed", 7, "--baseline", "naive")
    assert found["duplicates"] + found["lost"] > 0
    assert found["created"] > 60


async def fate(kind: str, service: Loopback, method: str = "GET") -> tuple[int, bytes] | None:
    """What a client hears of one request that meets a fault; None: nothing whole."""
    service.requests.clear()
    async with (
        Proxy(service.url, probability=1, seed=1, kinds=[kind], slow=(0, 0)) as between,
        aiohttp.ClientSession() as http,
    ):
        try:
            async with http.request(method, between.url + "/path?a=b", data=b"body") as answer:
                heard = answer.status, await answer.read()
        except aiohttp.ClientError:
            heard = None
    assert {kind: 1} == between.faults
    return heard


@pytest.mark.parametrize("kind", proxy.KINDS)
async def test_a_fault_is_heard_of_by_the_service_or_not(kind: str) -> None:
    """The names keep what they promise: some requests arrive in spite of it, once and whole."""
    async with loopback(says(b"0123456789")) as service:
        heard = await fate(kind, service, "POST")
        assert [b"body"] * (kind in HEARD) == [each.body for each in service.requests]
    if kind == proxy.DELAY:
        assert heard == (200, b"0123456789")
    elif kind in {proxy.RESET, proxy.LATE, proxy.RESET_AFTER, proxy.TRUNCATE}:
        assert heard is None
    else:
        assert heard is not None
        assert b"0123456789" not in heard[1]


async def test_a_good_request_passes_unchanged() -> None:
    """Path, headers that matter, body and answer are what they were, and one connection serves many."""
    async with (
        loopback(says(b"answer", 206, ETag='"tag"')) as service,
        Proxy(service.url, probability=0, seed=1) as between,
        aiohttp.ClientSession() as http,
    ):
        for _ in range(3):
            headers = {"Authorization": "Bearer t", "Range": "bytes=1-"}
            async with http.post(between.url + "/p?q=1", data=b"body", headers=headers) as answer:
                assert (
                    answer.status,
                    answer.headers["ETag"],
                    await answer.read(),
                ) == (206, '"tag"', b"answer")
        await between.reached(3)
    assert {"POST /p?q=1 HTTP/1.1"} == {each.line for each in service.requests}
    assert {("Bearer t", "bytes=1-")} == {
        (each.headers["authorization"], each.headers["range"]) for each in service.requests
    }


async def test_a_service_that_is_down_is_a_bad_gateway() -> None:
    """A killed emulator is what a real one behind a gateway would be."""
    async with loopback(says(b"")) as service:
        pass
    async with (
        Proxy(service.url, probability=0, seed=1) as between,
        aiohttp.ClientSession() as http,
        http.get(between.url) as answer,
    ):
        assert answer.status == 502


async def test_the_same_seed_spoils_the_same_requests() -> None:
    """Each route has its own sequence, so the number of polls does not change what befalls creates."""

    async def statuses(polls: int) -> list[int]:
        kinds = [proxy.HTML, proxy.UNAVAILABLE, proxy.RATE_LIMIT]
        async with (
            loopback(says(b"")) as service,
            Proxy(service.url, probability=0.5, seed=3, kinds=kinds) as between,
            aiohttp.ClientSession() as http,
        ):
            found = []
            for _ in range(12):
                for _ in range(polls):
                    await http.get(between.url)
                async with http.post(between.url) as answer:
                    found.append(answer.status)
            return found

    assert await statuses(0) == await statuses(3)
