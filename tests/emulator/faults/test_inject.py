"""Each kind of fault: what the client receives, and whether the call takes effect."""

import asyncio
import io
import json

import aiohttp
import pytest
from PIL import Image
from support.raw_client import EDITING, Caller, calling, order

from kling_expand.emulator.faults.plan import KINDS, Fault


async def create(call: Caller) -> tuple[int, str, bytes]:
    """Send a create and return (status, content type, body)."""
    headers = {"Authorization": f"Bearer {call.emulator.api_key}"}
    async with call.session.post(call.emulator.url + EDITING, json=order(), headers=headers) as response:
        return response.status, response.content_type, await response.read()


@pytest.mark.parametrize(
    ("kind", "tasks"), [("refused", 0), ("reset", 0), ("reset_after", 1), ("wrong_length", 1)]
)
async def test_connections_are_cut(kind: str, tasks: int) -> None:
    """The client gets a connection error, and a task exists only if the kind of fault says so."""
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
async def test_responses_are_replaced(fault: Fault, status: int, content_type: str, tasks: int) -> None:
    """The status, the content type and the effect are those of the kind of fault."""
    async with calling() as call:
        call.emulator.faults.script("create", fault)
        assert (await create(call))[:2] == (status, content_type)
        assert len(call.emulator.account.tasks) == tasks


async def test_truncated_json_is_invalid_and_slow_json_is_complete() -> None:
    """A truncated response is not JSON, and a slow one is complete."""
    async with calling() as call:
        call.emulator.faults.script("create", "truncated_json", Fault("slow_body", seconds=0.001))
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            json.loads((await create(call))[2])
        assert json.loads((await create(call))[2])["code"] == 0


async def test_a_refused_call_has_no_effect_with_a_fault() -> None:
    """A call that would be refused without the fault has no effect with the fault."""
    async with calling() as call:
        call.emulator.faults.script("create", Fault("slow_headers", seconds=0), "html_after")
        async with call.session.post(call.emulator.url + EDITING, json=order()) as response:
            assert (response.status, (await response.json())["code"]) == (401, 1001)
        async with call.session.post(call.emulator.url + EDITING, json=order()) as response:
            assert (response.status, response.content_type) == (200, "text/html")
        assert call.emulator.account.refusals == {1001: 2}
        assert call.emulator.account.tasks == {}


async def test_a_late_create_takes_effect_after_the_reset() -> None:
    """The task does not exist at the reset and exists later."""
    async with calling() as call:
        made = asyncio.Event()
        call.emulator.service.on_task.append(lambda _: made.set())
        call.emulator.faults.script("create", Fault("late", seconds=0.01))
        with pytest.raises(aiohttp.ClientError):
            await create(call)
        assert not call.emulator.account.tasks
        await made.wait()
        assert call.emulator.account.requests["create"] == 1


async def test_files_can_expire_or_be_truncated() -> None:
    """An expired URL gets 403, and a truncated picture is a complete HTTP response."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task = await call.task(await call.create())
        url = task["task_result"]["images"][0]["url"]
        call.emulator.faults.script("file", "expired", "truncated_picture")
        async with call.session.get(url) as response:
            assert response.status == 403
        async with call.session.get(url) as response:
            cut = await response.read()
        with Image.open(io.BytesIO(cut)) as picture, pytest.raises(OSError, match="truncated"):
            picture.load()
        async with call.session.get(url) as response:
            assert len(await response.read()) // 2 == len(cut)


async def test_every_kind_of_fault_applies_to_a_file() -> None:
    """Every kind of fault leads to a response or to a cut connection."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task = await call.task(await call.create())
        url = task["task_result"]["images"][0]["url"]
        for kind in KINDS:
            call.emulator.faults.script("file", Fault(kind, seconds=0))
            try:
                async with call.session.get(url) as response:
                    outcome = len(await response.read())
            except aiohttp.ClientError:
                outcome = -1
            assert outcome >= 0 or kind in {"refused", "reset", "reset_after", "late", "wrong_length"}
        assert call.emulator.account.faults == dict.fromkeys(set(KINDS) - {"ok"}, 1)


async def test_informational_fields_can_have_odd_types() -> None:
    """The task keeps its id, status and URLs, and the other fields have unexpected types."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task_id = await call.create()
        good = await call.task(task_id)
        call.emulator.faults.script("query", "odd_types")
        call.emulator.faults.script("list", "odd_types")
        for path in (f"{EDITING}/{task_id}", EDITING):
            status, body = await call("GET", path)
            data = body["data"]
            odd = data[0] if isinstance(data, list) else data
            assert (status, body["code"]) == (200, "0")
            assert (odd["task_id"], odd["task_status"]) == (task_id, "succeed")
            assert (odd["created_at"], odd["watermark_info"]) == ("a minute ago", False)
            (image,) = odd["task_result"]["images"]
            assert image == {"index": None, "url": good["task_result"]["images"][0]["url"]}


async def test_retry_after_can_be_a_day() -> None:
    """The `retry_after` of an error is sent unchanged, such as a day or an HTTP date."""
    async with calling() as call:
        for value in ("86400", "Wed, 21 Oct 2026 07:28:00 GMT", "1.5"):
            call.emulator.faults.script("list", Fault("error", code=1302, retry_after=value))
            async with call.session.get(call.emulator.url + EDITING) as response:
                assert (response.status, response.headers["Retry-After"]) == (429, value)
