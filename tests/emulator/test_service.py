"""The limits of the account, external ids, and restarts on a state file."""

import base64
import io
import json
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from support.raw_client import DIRECTION, EDITING, NARROW, calling, create_code, order, png
from yarl import URL

NOW = 1_800_000_000.25
FROZEN: dict[str, Any] = {"clock": lambda: NOW}


async def test_slots_are_held_from_create_to_end() -> None:
    """The sum of n is at most 9, and a task holds its slots until it succeeds or fails."""
    async with calling(queue_seconds=5, work_seconds=5, **FROZEN) as call:
        assert await create_code(call, n=5) == (200, 0)
        call.emulator.advance(1)
        assert await create_code(call, n=4, prompt="emulate-risk-control") == (200, 0)
        status, body = await call("POST", EDITING, json=order())
        assert (status, body["message"]) == (429, "parallel task over resource pack limit")
        call.emulator.advance(8.9)
        assert await create_code(call) == (429, 1303)
        call.emulator.advance(0.1)
        assert (await create_code(call, n=5), await create_code(call)) == ((200, 0), (429, 1303))
        call.emulator.advance(1)
        assert await create_code(call, n=4) == (200, 0)
        account = call.emulator.account
        assert (account.peak_slots, account.images_billed, account.refusals[1303]) == (9, 5, 3)


async def test_open_tasks_are_limited_too() -> None:
    """The number of open tasks is limited, regardless of their slots."""
    async with calling(slots=100, max_open_tasks=2) as call:
        assert [await create_code(call) for _ in range(3)] == [(200, 0), (200, 0), (429, 1303)]


async def test_an_external_id_is_accepted_once() -> None:
    """A used external id is refused with 1201 and not billed. An empty id counts as absent."""
    async with calling(slots=100, queue_seconds=0, work_seconds=0) as call:
        task_id = await call.create(external_task_id="mine")
        call.emulator.advance(3600)
        status, body = await call("POST", EDITING, json=order(external_task_id="mine"))
        assert (status, body["code"], body["message"]) == (400, 1201, "external_task_id mine already exists")
        assert (await call.task("mine"))["task_id"] == task_id
        assert len({await call.create(external_task_id="") for _ in range(3)}) == 3
        account = call.emulator.account
        assert (account.accepted, account.images_billed) == ({"mine": 1}, 4)


async def test_external_ids_may_be_any_text() -> None:
    """An external id may contain slashes, spaces, question marks and any letters."""
    async with calling(slots=100) as call:
        for name in ("a/b c?d#e%41", "日本", "{x}", "a+b", "\x00\n"):
            task_id = await call.create(external_task_id=name)
            headers = {"Authorization": f"Bearer {call.emulator.api_key}"}
            url = URL(f"{call.emulator.url}{EDITING}/{quote(name, safe='')}", encoded=True)
            async with call.session.get(url, headers=headers) as response:
                data = (await response.json())["data"]
            assert (data["task_id"], data["task_info"]["external_task_id"]) == (task_id, name)


async def test_a_service_without_uniqueness_bills_twice() -> None:
    """With `allow_duplicates`, a repeated external id is accepted and billed again."""
    async with calling(allow_duplicates=True, queue_seconds=0, work_seconds=0) as call:
        first = await call.create(external_task_id="x")
        assert await call.create(external_task_id="x") != first
        assert (await call.task("x"))["task_id"] == first
        assert (call.emulator.account.accepted, call.emulator.account.images_billed) == ({"x": 2}, 2)


async def test_integers_nulls_and_omitted_fields_are_accepted() -> None:
    """Both dialects accept integers for floats, nulls and omitted fields."""
    async with calling(slots=100) as call:
        image = order()["image"]
        bodies: list[tuple[str, dict[str, Any]]] = [
            (EDITING, order(up_expansion_ratio=1, down_expansion_ratio=0, prompt=None, n=None)),
            (DIRECTION, {"image": image, "direction": "right", "expansion_ratio": 2, "prompt": None}),
            (DIRECTION, {"image": image, "direction": "top,bottom"}),
        ]
        for path, body in bodies:
            status, response = await call("POST", path, json=body)
            assert (status, response["code"]) == (200, 0)
            assert isinstance(response["data"]["created_at"], int)
            status, response = await call("GET", f"{path}/{response['data']['task_id']}")
            assert isinstance(response["data"], dict)


async def test_a_large_body_is_parsed_in_a_thread() -> None:
    """A body of several megabytes is accepted or refused like a small one."""
    async with calling() as call:
        for image, code in (
            (base64.b64encode(png() + bytes(3_000_000)).decode(), 0),
            ("!" * 3_000_000, 1201),
        ):
            body = io.BytesIO(json.dumps(order(image=image)).encode())
            assert (await call("POST", EDITING, data=body))[1]["code"] == code
        assert len(call.emulator.account.tasks) == 1


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    """A restart keeps tasks, statuses, clock, ids and pictures, and drops expired tasks."""
    options: dict[str, Any] = {
        "state": str(tmp_path / "state.db"),
        "queue_seconds": 10,
        "work_seconds": 10,
        "clock": lambda: NOW,
    }
    async with calling(**options) as call:
        first = await call.create(external_task_id="a", watermark_info={"enabled": True})
        call.emulator.advance(20)
        before = await call.task(first)
        async with call.session.get(before["task_result"]["images"][0]["url"]) as response:
            picture = await response.read()
        second = await call.create(external_task_id="b")
    async with calling(**options) as call:
        after = await call.task("a")
        async with call.session.get(after["task_result"]["images"][0]["url"]) as response:
            assert await response.read() == picture
        assert after["updated_at"] == before["updated_at"]
        assert (await call.task("b"))["task_status"] == "submitted"
        status, body = await call("POST", EDITING, json=order(external_task_id="a"))
        assert (status, body["code"]) == (400, 1201)
        assert int(await call.create()) > int(second)
        call.emulator.advance(31 * 86400)
    async with calling(**options) as call:
        assert call.emulator.account.tasks == {}
    with sqlite3.connect(options["state"]) as database:
        counts = database.execute("SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM images)")
        assert counts.fetchone() == (0, 0)
    database.close()


async def test_a_create_that_cannot_be_stored_holds_no_slot(tmp_path: Path) -> None:
    """With a full disk, a create is refused and leaves neither a task nor a used slot."""
    async with calling(state=str(tmp_path / "state.db"), slots=1) as call:
        database = call.emulator.service.store._database
        database.execute("CREATE TRIGGER full BEFORE INSERT ON tasks BEGIN SELECT RAISE(FAIL, 'full'); END")
        status, body = await call("POST", EDITING, json=order(external_task_id="a"))
        assert (status, body["code"]) == (500, 5000)
        assert "full" in body["message"]
        account = call.emulator.account
        assert (account.tasks, account.used_slots, account.accepted) == ({}, 0, {})
        database.execute("DROP TRIGGER full")
        assert await call.create(external_task_id="a")


async def test_a_restart_resumes_painting(tmp_path: Path) -> None:
    """A task that was being painted when the emulator stopped is painted after the next start."""
    options: dict[str, Any] = {"state": str(tmp_path / "state.db"), "engine": "patchmatch"}
    async with calling(queue_seconds=0, work_seconds=0, **options) as call:
        task_id = await call.create(**NARROW)
    async with calling(queue_seconds=0, work_seconds=0, **options) as call:
        await call.emulator.painted()
        assert (await call.task(task_id))["task_status"] == "succeed"
