"""The control routes, through which another process controls an emulator."""

from typing import Any

import pytest
from support.raw_client import EDITING, calling, order


async def test_the_clock_is_advanced_over_http() -> None:
    """When the clock is advanced, a task ends, and 30 days later it is removed with its pictures."""
    async with calling(queue_seconds=10, work_seconds=10) as call:
        task_id = await call.create(external_task_id="x")
        await call("POST", "/_emulator/advance", json={"seconds": 20})
        task = await call.task(task_id)
        assert task["task_status"] == "succeed"
        url = task["task_result"]["images"][0]["url"]
        await call("POST", "/_emulator/advance", json={"seconds": 30 * 86400 - 1})
        assert (await call.task("x"))["task_id"] == task_id
        await call("POST", "/_emulator/advance", json={"seconds": 10})
        status, body = await call("GET", f"{EDITING}/{task_id}")
        assert (status, body["message"]) == (400, f"Task not found by id/external id: {task_id}")
        async with call.session.get(url) as response:
            assert response.status == 404
        assert await call.create(external_task_id="x") != task_id


@pytest.mark.parametrize("seconds", [-1, "1", None, True, 10**400, 1e308 * 10])
async def test_an_invalid_advance_is_refused(seconds: Any) -> None:
    """The clock moves only forward, and only by a finite number of seconds."""
    async with calling() as call:
        status, body = await call("POST", "/_emulator/advance", json={"seconds": seconds})
        assert (status, body["code"] in {1200, 1201}) == (400, True)


async def test_settings_change_over_http() -> None:
    """Settings change over HTTP. Fixed, unknown and invalid ones are refused."""
    async with calling() as call:
        await call("POST", "/_emulator/settings", json={"account_code": 1101, "slots": 3})
        status, body = await call("POST", EDITING, json=order())
        assert (status, body["code"]) == (429, 1101)
        _, body = await call("POST", "/_emulator/settings", json={"account_code": 0})
        assert body["data"]["settings"]["slots"] == 3
        assert (await call("POST", EDITING, json=order(n=3)))[0] == 200
        for bad in (
            {"port": 1},
            {"color": 1},
            {"slots": "3"},
            {"slots": True},
            {"slots": -1},
            {"account": 7},
            {"clock": 1},
            {"allow_private": True},
            {"slots": 5, "list_order": "sideways"},
        ):
            status, body = await call("POST", "/_emulator/settings", json=bad)
            assert (status, body["code"]) == (400, 1201), bad
        assert call.emulator.slots == 3


async def test_state_shows_counts_but_no_secret() -> None:
    """The state shows requests, refusals, tasks and units, but no credentials."""
    async with calling(queue_seconds=0, work_seconds=0, secret_key="hush" * 8) as call:
        await call.create(n=2, external_task_id="x", prompt="a park")
        await call("GET", EDITING + "/unknown")
        async with call.session.get(call.emulator.url + "/_emulator") as response:
            text = await response.text()
            account = (await response.json())["data"]["account"]
        assert "hush" not in text
        assert call.emulator.api_key not in text
        assert account["requests"] == {"create": 1, "query": 1}
        assert account["refusals"] == {"1201": 1}
        assert account["accepted"] == {"x": 1}
        assert (account["images_billed"], account["units_billed"], account["peak_slots"]) == (2, 16, 2)
        _, body = await call("GET", "/_emulator/tasks")
        (task,) = body["data"]
        assert (task["prompt"], task["ratios"], task["task_status"]) == ("a park", [0.25] * 4, "succeed")
        assert "hush" not in repr(call.emulator)


async def test_faults_can_be_set_over_http() -> None:
    """Scripts and probabilities can be added, read and cleared. Invalid ones are refused."""
    async with calling() as call:
        for body in (
            {"route": "list", "script": ["ok", {"kind": "error", "code": 5000}]},
            {"route": "list", "kind": "html"},
            {"route": "query", "kind": "error", "code": 1302, "probability": 1},
            {"route": "create", "kind": "error", "code": 1103, "duration": 10},
        ):
            status, response = await call("POST", "/_emulator/faults", json=body)
            assert status == 200
        waiting = response["data"]["faults"]
        assert [step["kind"] for step in waiting["list"]["script"]] == ["ok", "error", "html"]
        assert [step["code"] for step in waiting["create"]["timed"]] == [1103]
        assert (await call("GET", EDITING + "/1"))[1]["code"] == 1302
        status, response = await call("DELETE", "/_emulator/faults")
        assert response["data"]["faults"]["query"] == {"script": [], "timed": [], "chances": []}
        nonsense: list[dict[str, Any]] = [
            {},
            {"route": []},
            {"route": "list"},
            {"route": "nowhere", "kind": "html"},
            {"route": "list", "kind": "html", "probability": "often"},
            {"route": "list", "script": "ok"},
            {"route": "list", "script": ["ok"], "probability": 1},
            {"route": "list", "script": ["ok"], "duration": 1},
            {"route": "list", "kind": "html", "duration": "long"},
            {"route": "list", "kind": "html", "duration": 1, "probability": 1},
        ]
        for bad in nonsense:
            status, response = await call("POST", "/_emulator/faults", json=bad)
            assert (status, response["code"]) == (400, 1201), bad
