"""Can an emulator in another process be steered, and does it tell what it has seen?"""

from typing import Any

import pytest
from support.raw_client import EDITING, calling, order

from kling_expand.emulator.settings import Settings, change, options


async def test_time_moves_over_http() -> None:
    """A task is done as soon as the clock says so, and gone 30 days later, its pictures too."""
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
        async with call.session.get(url) as answer:
            assert answer.status == 404
        assert await call.create(external_task_id="x") != task_id


@pytest.mark.parametrize("seconds", [-1, "1", None, True, 10**400, 1e308 * 10])
async def test_time_moves_forwards_only(seconds: Any) -> None:
    """Backwards, nowhere and for ever are refused."""
    async with calling() as call:
        status, body = await call("POST", "/_emulator/advance", json={"seconds": seconds})
        assert (status, body["code"] in {1200, 1201}) == (400, True)


async def test_settings_change_over_http() -> None:
    """An account falls into arrears and recovers; what may not be changed or makes no sense is refused."""
    async with calling() as call:
        await call("POST", "/_emulator/settings", json={"account_code": 1101, "slots": 3})
        status, body = await call("POST", EDITING, json=order())
        assert (status, body["code"]) == (429, 1101)
        _, body = await call("POST", "/_emulator/settings", json={"account_code": 0})
        assert body["data"]["settings"]["slots"] == 3
        assert (await call("POST", EDITING, json=order(n=3)))[0] == 200
        for bad in (
            {"port": 1},
            {"colour": 1},
            {"slots": "3"},
            {"slots": True},
            {"slots": -1},
            {"account": 7},
            {"clock": 1},
            {"slots": 5, "list_order": "sideways"},
        ):
            status, body = await call("POST", "/_emulator/settings", json=bad)
            assert (status, body["code"]) == (400, 1201), bad
        assert call.emulator.slots == 3


async def test_state_shows_counts_but_no_secret() -> None:
    """Requests, refusals, tasks and money; the credentials are not for show."""
    async with calling(queue_seconds=0, work_seconds=0, secret_key="hush" * 8) as call:
        await call.create(n=2, external_task_id="x", prompt="a park")
        await call("GET", EDITING + "/unknown")
        async with call.session.get(call.emulator.url + "/_emulator") as answer:
            text = await answer.text()
            account = (await answer.json())["data"]["account"]
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


def test_settings_change_all_or_none() -> None:
    """A refused change changes nothing; a whole number is a duration too."""
    settings = Settings()
    with pytest.raises(ValueError, match="queue_seconds must be a float of at least 0"):
        change(settings, {"slots": 5, "queue_seconds": "1"})
    assert settings.slots == 9
    change(settings, {"queue_seconds": 2, "allow_duplicates": True})
    assert (settings.queue_seconds, settings.allow_duplicates) == (2, True)


def test_every_setting_says_what_it_is_for() -> None:
    """The command line shows a text for each."""
    assert all(option.metadata["help"] for option in options())
    assert {option.name for option in options()} == set(Settings.__annotations__) - {"clock"}
