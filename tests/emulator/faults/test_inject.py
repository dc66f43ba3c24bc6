"""Does each fault do what it says, to the call it is meant for, and to the books what it says?"""

import asyncio
import io
import json
import random
from typing import Any

import aiohttp
import pytest
from PIL import Image
from support.raw_client import EDITING, Caller, calling, order

from kling_expand.emulator.faults.plan import KINDS, ROUTES, Fault, FaultPlan, parse_fault
from kling_expand.emulator.http.codes import CODES


async def create(call: Caller) -> tuple[int, str, bytes]:
    """(status, type, body) of a create, however spoilt."""
    headers = {"Authorization": f"Bearer {call.emulator.api_key}"}
    async with call.session.post(call.emulator.url + EDITING, json=order(), headers=headers) as answer:
        return answer.status, answer.content_type, await answer.read()


@pytest.mark.parametrize(
    ("kind", "tasks"), [("refused", 0), ("reset", 0), ("reset_after", 1), ("wrong_length", 1)]
)
async def test_connections_break(kind: str, tasks: int) -> None:
    """The client sees an error of the connection; a task exists exactly where the kind says so."""
    async with calling() as call:
        call.emulator.faults.script("create", kind)
        with pytest.raises(aiohttp.ClientError):
            await create(call)
        assert len(call.emulator.account.tasks) == tasks
        assert call.emulator.account.faults == {kind: 1}
        assert (await create(call))[0] == 200


@pytest.mark.parametrize(
    ("fault", "status", "content_type", "tasks"),
    [
        (Fault("error", code=5001), 503, "application/json", 0),
        (Fault("error_after", code=5002), 504, "application/json", 1),
        (Fault("envelope_200", code=1302), 200, "application/json", 0),
        (Fault("html"), 200, "text/html", 0),
        (Fault("html_after"), 200, "text/html", 1),
        (Fault("empty"), 200, "application/json", 0),
        (Fault("truncated_json"), 200, "application/json", 1),
        (Fault("slow_headers", seconds=0), 200, "application/json", 1),
        (Fault("slow_body", seconds=0), 200, "application/json", 1),
    ],
)
async def test_answers_are_spoilt(fault: Fault, status: int, content_type: str, tasks: int) -> None:
    """Status, type and effect are those the kind names."""
    async with calling() as call:
        call.emulator.faults.script("create", fault)
        assert (await create(call))[:2] == (status, content_type)
        assert len(call.emulator.account.tasks) == tasks


async def test_cut_json_is_no_json_and_slow_json_is_whole() -> None:
    """Half of an answer cannot be read, a slow one can."""
    async with calling() as call:
        call.emulator.faults.script("create", "truncated_json", Fault("slow_body", seconds=0.001))
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            json.loads((await create(call))[2])
        assert json.loads((await create(call))[2])["code"] == 0


async def test_a_spoilt_refusal_is_a_refusal_still() -> None:
    """What would have been refused without the fault has no effect with it."""
    async with calling() as call:
        call.emulator.faults.script("create", Fault("slow_headers", seconds=0), "html_after")
        async with call.session.post(call.emulator.url + EDITING, json=order()) as answer:
            assert (answer.status, (await answer.json())["code"]) == (401, 1001)
        async with call.session.post(call.emulator.url + EDITING, json=order()) as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
        assert call.emulator.account.refusals == {1001: 2}
        assert call.emulator.account.tasks == {}


async def test_a_late_create_takes_effect_after_the_reset() -> None:
    """For a while nobody finds the task, then it is there."""
    async with calling() as call:
        made = asyncio.Event()
        call.emulator.service.on_task.append(lambda _: made.set())
        call.emulator.faults.script("create", Fault("late", seconds=0.01))
        with pytest.raises(aiohttp.ClientError):
            await create(call)
        assert not call.emulator.account.tasks
        await made.wait()
        assert call.emulator.account.requests["create"] == 1


@pytest.mark.parametrize("code", list(CODES))
async def test_every_row_of_the_table_can_be_had(code: int) -> None:
    """Each documented code under its documented status, with Retry-After where asked."""
    async with calling() as call:
        call.emulator.faults.script("query", Fault("error", code=code, message="told", retry_after="7"))
        async with call.session.get(f"{call.emulator.url}{EDITING}/1") as answer:
            body = await answer.json()
        assert (answer.status, body["code"], body["message"]) == (CODES[code][0], code, "told")
        assert answer.headers["Retry-After"] == "7"


async def test_files_expire_or_stop_half_way() -> None:
    """An expired link is 403, a cut picture looks whole to HTTP and broken to Pillow."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task = await call.task(await call.create())
        url = task["task_result"]["images"][0]["url"]
        call.emulator.faults.script("file", "expired", "truncated_picture")
        async with call.session.get(url) as answer:
            assert answer.status == 403
        async with call.session.get(url) as answer:
            cut = await answer.read()
        with Image.open(io.BytesIO(cut)) as picture, pytest.raises(OSError, match="truncated"):
            picture.load()
        async with call.session.get(url) as answer:
            assert len(await answer.read()) // 2 == len(cut)


async def test_scripts_are_exact_and_per_route() -> None:
    """ok leaves a call alone, `times` repeats, other routes are not touched."""
    async with calling() as call:
        call.emulator.faults.script("list", "ok", Fault("error", code=1302, times=2), "ok")
        assert (await create(call))[0] == 200
        statuses = [(await call("GET", EDITING))[0] for _ in range(5)]
        assert statuses == [200, 429, 429, 200, 200]


def test_chances_are_drawn_from_the_seed() -> None:
    """The same seed spoils the same calls, about as many as asked for."""

    def drawn() -> list[bool]:
        faults = FaultPlan(random.Random(7), lambda: 0.0)
        faults.chance("query", "html", 0.1)
        return [faults.pick("query") is not None for _ in range(1000)]

    assert drawn() == drawn()
    assert 60 < sum(drawn()) < 140


def test_scripts_go_before_chances_and_both_can_be_cleared() -> None:
    """What waits is shown as it will happen."""
    faults = FaultPlan(random.Random(0), lambda: 0.0)
    faults.chance("create", Fault("html"), 1)
    faults.script("create", "reset")
    assert [step["kind"] for step in faults.planned()["create"]["script"]] == ["reset"]
    assert [faults.pick("create"), faults.pick("create")] == [Fault("reset"), Fault("html")]
    faults.clear()
    assert faults.pick("create") is None
    assert faults.planned() == {route: {"script": [], "timed": [], "chances": []} for route in ROUTES}


@pytest.mark.parametrize(
    "step",
    [
        "unheard-of",
        7,
        {},
        {"kind": ["html"]},
        {"kind": "error", "code": 7},
        {"kind": "error", "more": 1},
        {"kind": "late", "seconds": "1"},
        {"kind": "late", "seconds": -1},
        {"kind": "late", "seconds": float("nan")},
        {"kind": "html", "times": 0},
        {"kind": "html", "retry_after": 5},
    ],
)
def test_faults_that_make_no_sense_are_refused(step: Any) -> None:
    """A typing error in a script is told, not played."""
    with pytest.raises(ValueError, match=r"."):
        parse_fault(step)


def test_kinds_are_kept_to_their_routes() -> None:
    """A create has no picture to cut, and unknown routes do not exist."""
    faults = FaultPlan(random.Random(0), lambda: 0.0)
    with pytest.raises(ValueError, match="downloads only"):
        faults.script("create", "truncated_picture")
    with pytest.raises(ValueError, match="route must be"):
        faults.script("delete", "html")
    with pytest.raises(ValueError, match="probability"):
        faults.chance("create", "html", 2)


async def test_every_kind_is_carried_out_on_a_file() -> None:
    """No kind is known to the script and unknown to the server: there is an answer, or none at all."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task = await call.task(await call.create())
        url = task["task_result"]["images"][0]["url"]
        for kind in KINDS:
            call.emulator.faults.script("file", Fault(kind, seconds=0))
            try:
                async with call.session.get(url) as answer:
                    outcome = len(await answer.read())
            except aiohttp.ClientError:
                outcome = -1
            assert outcome >= 0 or kind in {"refused", "reset", "reset_after", "late", "wrong_length"}
        assert call.emulator.account.faults == dict.fromkeys(set(KINDS) - {"ok"}, 1)


async def test_faults_can_be_set_over_http() -> None:
    """The control route writes scripts and chances, shows and clears them, and refuses nonsense."""
    async with calling() as call:
        for body in (
            {"route": "list", "script": ["ok", {"kind": "error", "code": 5000}]},
            {"route": "list", "kind": "html"},
            {"route": "query", "kind": "error", "code": 1302, "probability": 1},
        ):
            status, answer = await call("POST", "/_emulator/faults", json=body)
            assert status == 200
        waiting = answer["data"]["faults"]
        assert [step["kind"] for step in waiting["list"]["script"]] == ["ok", "error", "html"]
        assert (await call("GET", EDITING + "/1"))[1]["code"] == 1302
        status, answer = await call("DELETE", "/_emulator/faults")
        assert answer["data"]["faults"]["query"] == {"script": [], "timed": [], "chances": []}
        nonsense: list[dict[str, Any]] = [
            {},
            {"route": []},
            {"route": "list"},
            {"route": "nowhere", "kind": "html"},
            {"route": "list", "kind": "html", "probability": "often"},
            {"route": "list", "script": "ok"},
            {"route": "list", "script": ["ok"], "probability": 1},
        ]
        for bad in nonsense:
            status, answer = await call("POST", "/_emulator/faults", json=bad)
            assert (status, answer["code"]) == (400, 1201), bad
