"""Does the emulator speak the documented wire? Raw aiohttp on one side, literal JSON on both."""

import asyncio
import base64
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from PIL import Image
from support.raw_client import EDITING, Caller, calling, order, png

import kling_expand.emulator
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "coffee.jpg"


async def test_a_task_lives_as_documented() -> None:
    """submitted, processing, succeed, each at its moment, with the fields of the document."""
    async with calling(queue_seconds=10, work_seconds=20, clock=lambda: 1_700_000_000.0) as call:
        status, body = await call("POST", EDITING, json=order(n=2, external_task_id="mine"))
        assert (status, body["code"], body["message"]) == (200, 0, "SUCCEED")
        task_id = body["data"]["task_id"]
        assert len(task_id) == 18
        assert task_id.isdecimal()
        assert body["data"] == {
            "task_id": task_id,
            "task_info": {"external_task_id": "mine"},
            "task_status": "submitted",
            "created_at": 1_700_000_000_000,
            "updated_at": 1_700_000_000_000,
        }
        call.emulator.advance(10)
        assert (await call.task(task_id))["task_status"] == "processing"
        call.emulator.advance(20)
        task = await call.task("mine")
        stem = f"{call.emulator.url}/files/{task_id}/"
        assert task == {
            "task_id": task_id,
            "task_info": {"external_task_id": "mine"},
            "task_status": "succeed",
            "task_status_msg": "",
            "watermark_info": {"enabled": False},
            "final_unit_deduction": "16",
            "final_balance_deduction": {"quota": "0.056", "list_price": "0.056"},
            "created_at": 1_700_000_000_000,
            "updated_at": 1_700_000_030_000,
            "task_result": {
                "images": [{"index": 0, "url": stem + "0.png"}, {"index": 1, "url": stem + "1.png"}]
            },
        }
        assert call.emulator.account.units_billed == 16


async def test_pictures_differ_and_need_no_credentials() -> None:
    """n pictures of the exact aspect, served whole and in ranges to anybody, saying what made them."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task = await call.task(await call.create(n=2, right_expansion_ratio=0.5))
        first, second = (image["url"] for image in task["task_result"]["images"])
        async with call.session.get(first) as answer:
            whole = await answer.read()
            assert ("image/png", str(len(whole)), "flat") == (
                answer.content_type,
                answer.headers["Content-Length"],
                answer.headers["X-Engine"],
            )
            assert answer.headers["Server"] == "kling-expand-emulator"
        async with call.session.get(second) as answer:
            assert whole != await answer.read()
        with Image.open(io.BytesIO(whole)) as picture:
            assert abs(picture.width - picture.height * 1.75 / 1.5) <= 1
        parts = [(0, 9), (10, 99), (100, len(whole) + 5)]
        joined = b""
        for first_byte, last_byte in parts:
            headers = {"Range": f"bytes={first_byte}-{last_byte}"}
            async with call.session.get(first, headers=headers) as answer:
                assert answer.status == 206
                joined += await answer.read()
        assert whole == joined


@pytest.mark.parametrize(
    ("header", "status", "content_range"),
    [
        ("bytes=-5", 206, "bytes {last5}-{last}/{size}"),
        ("bytes=999999999-", 416, "bytes */{size}"),
        ("bytes=9-2", 200, None),
        ("lines=1-2", 200, None),
    ],
)
async def test_odd_ranges(header: str, status: int, content_range: str | None) -> None:
    """A tail is served, what lies outside is 416, and what is no range is ignored."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task = await call.task(await call.create())
        url = task["task_result"]["images"][0]["url"]
        async with call.session.get(url) as answer:
            size, tag = len(await answer.read()), answer.headers["ETag"]
        async with call.session.get(url, headers={"Range": header, "If-Range": tag}) as answer:
            assert status == answer.status
            expected = content_range and content_range.format(size=size, last=size - 1, last5=size - 5)
            assert expected == answer.headers.get("Content-Range")
        async with call.session.get(url, headers={"Range": header, "If-Range": '"other"'}) as answer:
            assert (200, size) == (answer.status, len(await answer.read()))


async def test_the_real_engine_paints() -> None:
    """Without another engine being named, a photograph grows by itself, and its task waits for that."""
    async with calling(engine="patchmatch", queue_seconds=0, work_seconds=0) as call:
        photo = base64.b64encode(PHOTO.read_bytes()).decode()
        task_id = await call.create(image=photo)
        await call.emulator.painted()
        task = await call.task(task_id)
        assert task["task_status"] == "succeed"
        async with call.session.get(task["task_result"]["images"][0]["url"]) as answer:
            assert answer.headers["X-Engine"] == "patchmatch"
            with Image.open(io.BytesIO(await answer.read())) as picture:
                picture.load()


async def test_lists_are_paged_newest_first() -> None:
    """pageNum and pageSize as documented, whatever is out of range is 1201."""
    async with calling(slots=100) as call:
        ids = [await call.create() for _ in range(5)]
        _, body = await call("GET", f"{EDITING}?pageNum=2&pageSize=2")
        assert [ids[2], ids[1]] == [task["task_id"] for task in body["data"]]
        _, body = await call("GET", EDITING)
        assert ids[::-1] == [task["task_id"] for task in body["data"]]
        for query in ("pageNum=0", "pageNum=1001", "pageSize=0", "pageSize=501", "pageSize=x", "pageNum="):
            status, body = await call("GET", f"{EDITING}?{query}")
            assert (status, body["code"]) == (400, 1201)


def token(emulator: Emulator, **claims: Any) -> str:
    """A JWT as the documented sample makes it, with changes."""
    now = time.time()
    usual = {"iss": emulator.access_key, "exp": now + 1800, "nbf": now - 5}
    return "Bearer " + jwt.encode(usual | claims, emulator.secret_key, algorithm="HS256")


async def test_a_jwt_opens_as_a_static_key_does() -> None:
    """Also one with `iat` and a life of 3600 s, as other clients send."""
    async with calling() as call:
        for claims in ({}, {"iat": time.time(), "exp": time.time() + 3600}):
            headers = {"Authorization": token(call.emulator, **claims)}
            status, _ = await call("GET", EDITING, headers=headers)
            assert status == 200


async def test_unknown_places_and_verbs_are_told_in_an_envelope() -> None:
    """1203 for a resource and 1202 for a method that do not exist, both under 404."""
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


async def test_nobody_is_there_for_a_while() -> None:
    """ConnectionPool are refused and open ones cut; afterwards the same address serves the same tasks."""
    async with calling() as call:
        task_id = await call.create()
        async with call.emulator.unreachable():
            for _ in range(2):
                with pytest.raises(aiohttp.ClientError):
                    await call.task(task_id)
        assert (await call.task(task_id))["task_id"] == task_id


async def test_a_call_under_way_is_answered_before_the_end() -> None:
    """Leaving the block waits a moment for those who were already served."""
    async with aiohttp.ClientSession() as session:
        async with Emulator(engine="flat") as emulator:
            call = Caller(emulator, session)
            emulator.faults.script("create", Fault("slow_headers", seconds=0.05))
            under_way = asyncio.ensure_future(call.create())
            while not emulator.account.tasks:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
        assert len(await under_way) == 18


async def test_before_the_start_there_is_nothing() -> None:
    """Books, faults and the rest are had from a running emulator only, and it says so."""
    emulator = Emulator()
    with pytest.raises(RuntimeError, match="async with"):
        emulator.advance(1)
    with pytest.raises(RuntimeError, match="async with"):
        async with emulator.unreachable():
            raise AssertionError("it was reachable")


async def test_an_unknown_engine_stops_the_start() -> None:
    """Not the first picture."""
    with pytest.raises(ValueError, match="got 'oils'"):
        async with Emulator(engine="oils"):
            raise AssertionError("it started")


async def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that says what to install."""
    for module in [name for name in sys.modules if name.startswith("kling_expand.emulator.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(RuntimeError, match=r"needs numpy to paint: pip install 'kling-expand\[emulator\]'"):
        async with Emulator():
            raise AssertionError("it started")


async def test_half_a_body_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """A caller who hangs up in the middle, or sends broken chunks, leaves no trace but a count."""
    async with calling() as call:
        host, port = call.emulator.url.removeprefix("http://").split(":")
        head = f"POST {EDITING} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {call.emulator.api_key}\r\n"
        for rest in ("Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\nzz\r\n"):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write((head + rest).encode())
            await writer.drain()
            while call.emulator.account.requests["create"] == 0 and "Length" in rest:  # noqa: ASYNC110
                await asyncio.sleep(0)
            writer.close()
            await writer.wait_closed()
        assert (await call("GET", EDITING))[0] == 200
        assert call.emulator.account.tasks == {}
    assert "unexpected error" not in caplog.text


async def test_the_package_has_no_other_names() -> None:
    """A misspelt import is told as usual."""
    with pytest.raises(AttributeError, match="Emulatr"):
        kling_expand.emulator.Emulatr  # noqa: B018


async def test_a_large_picture_is_read_beside_the_loop() -> None:
    """A body of some megabytes makes a task like any other, and a broken one is refused like any other."""
    async with calling() as call:
        for image, code in (
            (base64.b64encode(png() + bytes(3_000_000)).decode(), 0),
            ("!" * 3_000_000, 1201),
        ):
            body = io.BytesIO(json.dumps(order(image=image)).encode())
            assert (await call("POST", EDITING, data=body))[1]["code"] == code
        assert len(call.emulator.account.tasks) == 1


async def test_a_state_that_cannot_be_written_is_5000(tmp_path: Path) -> None:
    """Whoever asks is told that something is wrong here, not that there is a task."""
    async with calling(state=str(tmp_path / "state.db")) as call:
        call.emulator.service.store._database.execute("DROP TABLE tasks")
        status, body = await call("POST", EDITING, json=order())
        assert (status, body["code"], set(body)) == (500, 5000, {"code", "message", "request_id"})
