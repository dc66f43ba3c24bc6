"""Lists: pages, order, lag and tasks of other programs."""

from typing import Any

from support.raw_client import DIRECTION, EDITING, Caller, calling, order


async def ids(call: Caller, query: str = "") -> list[str]:
    """Return the task ids of a page."""
    _, body = await call("GET", EDITING + query)
    return [task["task_id"] for task in body["data"]]


async def test_lists_are_paged_newest_first() -> None:
    """Pages follow pageNum and pageSize, and values out of range get 1201."""
    async with calling(slots=100) as call:
        ids = [await call.create() for _ in range(5)]
        _, body = await call("GET", f"{EDITING}?pageNum=2&pageSize=2")
        assert [ids[2], ids[1]] == [task["task_id"] for task in body["data"]]
        _, body = await call("GET", EDITING)
        assert ids[::-1] == [task["task_id"] for task in body["data"]]
        for query in ("pageNum=0", "pageNum=1001", "pageSize=0", "pageSize=501", "pageSize=x", "pageNum="):
            status, body = await call("GET", f"{EDITING}?{query}")
            assert (status, body["code"]) == (400, 1201)


async def test_lists_can_have_any_order() -> None:
    """Lists can be oldest first, or shuffled at every call, and contain the same tasks."""
    async with calling(slots=100) as call:
        made = [await call.create() for _ in range(20)]
        call.emulator.list_order = "oldest"
        assert await ids(call) == made
        call.emulator.list_order = "shuffled"
        first, second = await ids(call), await ids(call)
        assert sorted(first) == sorted(second) == sorted(made)
        assert first != second


async def test_lists_can_be_refused() -> None:
    """Lists can be refused while queries succeed."""
    async with calling(list_code=1103) as call:
        task_id = await call.create()
        status, body = await call("GET", EDITING)
        assert (status, body["code"]) == (403, 1103)
        assert (await call.task(task_id))["task_status"] == "submitted"


async def test_lists_can_lag() -> None:
    """With `list_lag`, newer tasks are missing and statuses are old."""
    clock: dict[str, Any] = {"clock": lambda: 1_700_000_000.0}
    async with calling(list_lag=5, queue_seconds=1, work_seconds=2, **clock) as call:
        task_id = await call.create()
        call.emulator.advance(4)
        assert await ids(call) == []
        assert (await call.task(task_id))["task_status"] == "succeed"
        call.emulator.advance(1)
        _, body = await call("GET", EDITING)
        assert [task["task_status"] for task in body["data"]] == ["submitted"]


async def test_lists_can_contain_foreign_tasks() -> None:
    """Tasks of another program appear between our own, over all pages."""
    async with calling(slots=100, list_foreign=2) as call:
        made = [await call.create(external_task_id=f"x{number}") for number in range(5)]
        shown = await ids(call)
        assert [task_id for task_id in shown if task_id in made] == made[::-1]
        assert [task_id in made for task_id in shown] == [True, True, False] * 2 + [True]
        pages = [await ids(call, f"?pageNum={page}&pageSize=2") for page in range(1, 5)]
        assert [task_id for page in pages for task_id in page] == shown
        assert len(set(shown)) == 7


async def test_dialects_do_not_mix() -> None:
    """Each dialect lists and finds its own tasks, but an external id is used in both."""
    async with calling(slots=100) as call:
        editing = await call.create(external_task_id="x")
        body = {"image": order()["image"], "direction": "right", "external_task_id": "y"}
        _, response = await call("POST", DIRECTION, json=body)
        direction = response["data"]["task_id"]
        assert await ids(call) == [editing]
        _, response = await call("GET", DIRECTION)
        assert [task["task_id"] for task in response["data"]] == [direction]
        assert (await call("GET", f"{DIRECTION}/y"))[0] == 200
        status, response = await call("GET", f"{DIRECTION}/{editing}")
        assert (status, response["code"]) == (400, 1201)
        status, response = await call("POST", EDITING, json=order(external_task_id="y"))
        assert (status, response["message"]) == (400, "external_task_id y already exists")


async def test_lists_can_be_refused_with_1302_alone() -> None:
    """Lists can be refused with any code, while creates and queries succeed."""
    async with calling(list_code=1302) as call:
        task_id = await call.create()
        status, body = await call("GET", EDITING)
        assert (status, body["code"]) == (429, 1302)
        assert (await call.task(task_id))["task_id"] == task_id


async def test_statuses_in_lists_can_lag_or_never_change() -> None:
    """With `list_status_lag`, every task is listed at once, with its status of some seconds ago."""
    clock: dict[str, Any] = {"clock": lambda: 1_700_000_000.0}
    async with calling(list_status_lag=40, queue_seconds=1, work_seconds=2, **clock) as call:
        task_id = await call.create()
        seen = []
        for seconds in (0, 3, 38, 2):
            call.emulator.advance(seconds)
            (task,) = (await call("GET", EDITING))[1]["data"]
            assert task["task_id"] == task_id
            seen.append(task["task_status"])
        assert seen == ["submitted", "submitted", "processing", "succeed"]
        call.emulator.list_status_lag = 1e9
        call.emulator.advance(86400)
        (task,) = (await call("GET", EDITING))[1]["data"]
        assert (task["task_status"], (await call.task(task_id))["task_status"]) == ("submitted", "succeed")
