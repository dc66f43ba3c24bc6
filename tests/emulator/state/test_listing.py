"""Can the list be as unhelpful as a list may be?"""

from typing import Any

from support.raw_client import DIRECTION, EDITING, Caller, calling, order


async def ids(call: Caller, query: str = "") -> list[str]:
    """The task ids of a page."""
    _, body = await call("GET", EDITING + query)
    return [task["task_id"] for task in body["data"]]


async def test_order_can_be_any() -> None:
    """Oldest first, or another order at every call, but always the same tasks."""
    async with calling(slots=100) as call:
        made = [await call.create() for _ in range(20)]
        call.emulator.list_order = "oldest"
        assert await ids(call) == made
        call.emulator.list_order = "shuffled"
        first, second = await ids(call), await ids(call)
        assert sorted(first) == sorted(second) == sorted(made)
        assert first != second


async def test_lists_can_be_refused() -> None:
    """Some accounts may not list; reading single tasks still works."""
    async with calling(list_code=1103) as call:
        task_id = await call.create()
        status, body = await call("GET", EDITING)
        assert (status, body["code"]) == (403, 1103)
        assert (await call.task(task_id))["task_status"] == "submitted"


async def test_lists_can_lag() -> None:
    """What is new is missing, what has changed is shown as it was."""
    clock: dict[str, Any] = {"clock": lambda: 1_700_000_000.0}
    async with calling(list_lag=5, queue_seconds=1, work_seconds=2, **clock) as call:
        task_id = await call.create()
        call.emulator.advance(4)
        assert await ids(call) == []
        assert (await call.task(task_id))["task_status"] == "succeed"
        call.emulator.advance(1)
        _, body = await call("GET", EDITING)
        assert [task["task_status"] for task in body["data"]] == ["submitted"]


async def test_foreign_tasks_stand_in_between() -> None:
    """Paging goes on across them; they bear other ids and none of ours."""
    async with calling(slots=100, list_foreign=2) as call:
        made = [await call.create(external_task_id=f"x{number}") for number in range(5)]
        shown = await ids(call)
        assert [task_id for task_id in shown if task_id in made] == made[::-1]
        assert [task_id in made for task_id in shown] == [True, True, False] * 2 + [True]
        pages = [await ids(call, f"?pageNum={page}&pageSize=2") for page in range(1, 5)]
        assert [task_id for page in pages for task_id in page] == shown
        assert len(set(shown)) == 7


async def test_dialects_do_not_mix() -> None:
    """Each path lists and finds its own tasks, but an external id is taken for both."""
    async with calling(slots=100) as call:
        editing = await call.create(external_task_id="x")
        body = {"image": order()["image"], "direction": "right", "external_task_id": "y"}
        _, answer = await call("POST", DIRECTION, json=body)
        direction = answer["data"]["task_id"]
        assert await ids(call) == [editing]
        _, answer = await call("GET", DIRECTION)
        assert [task["task_id"] for task in answer["data"]] == [direction]
        assert (await call("GET", f"{DIRECTION}/y"))[0] == 200
        status, answer = await call("GET", f"{DIRECTION}/{editing}")
        assert (status, answer["code"]) == (400, 1201)
        status, answer = await call("POST", EDITING, json=order(external_task_id="y"))
        assert (status, answer["message"]) == (400, "external_task_id y already exists")
