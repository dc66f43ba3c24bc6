"""The log of API calls: bounded, with bodies, and without credentials."""

import base64
import json
import re
from typing import Any

import aiohttp
from hypothesis import given
from hypothesis import strategies as st
from support.raw_client import EDITING, Caller, calling, get, order, png

from kling_expand.emulator.http.call_log import MAX_BODY, shortened


async def call_of(call: Caller, number: int) -> Any:
    """Return one logged call with its bodies."""
    return json.loads((await get(call, f"/_emulator/calls/{number}"))[2])["data"]


async def test_calls_are_logged_with_bodies_but_without_secrets() -> None:
    """Both bodies can be read, but neither the picture nor the credentials."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        photo = base64.b64encode(png(400, 300) + b"\0" * 5000).decode()
        task_id = await call.create(image=photo, prompt="größer")
        await call("GET", EDITING + "/unknown", headers={"authorization": "Bearer something-secret"})
        await get(call, f"/files/{task_id}/0.png")
        made, refused, picture = [await call_of(call, number) for number in (1, 2, 3)]
        assert made["request"]["headers"]["Authorization"] == "Bearer …"
        assert '"prompt": "größer"' in made["request"]["body"]
        assert photo[:24] in made["request"]["body"]
        assert photo[:25] not in made["request"]["body"]
        assert f"{len(photo) - 24} more characters" in made["request"]["body"]
        assert json.loads(made["response"]["body"])["data"]["task_id"] == task_id
        assert "something-secret" not in json.dumps(refused)
        assert (refused["status"], refused["task_id"]) == (401, "")
        assert re.fullmatch(r"\(\d+ bytes of image/png\)", picture["response"]["body"])
        assert picture["task_id"] == task_id
        assert (await get(call, "/_emulator/calls/999"))[0] == 404


async def test_a_deeply_nested_body_is_logged_unchanged() -> None:
    """A body that is nested too deeply for the parser breaks neither the call nor the log."""
    async with calling() as call:
        await call("POST", EDITING, data=b"[" * 5000)
        assert (await call_of(call, 1))["request"]["body"] == "[" * 5000


async def test_broken_calls_are_logged_too() -> None:
    """A cut call has no status, a call sent in pieces has no body, and each names its fault."""
    async with calling() as call:
        call.emulator.faults.script("create", "reset_after", "slow_body", "html")
        for _ in range(3):
            try:
                async with call.session.post(call.emulator.url + EDITING, json=order()) as response:
                    await response.read()
            except aiohttp.ClientError:
                continue
        cut, pieces, html = [await call_of(call, number) for number in (1, 2, 3)]
        assert (cut["status"], cut["fault"], cut["response"]["body"]) == (
            None,
            "reset_after",
            "",
        )
        assert (pieces["status"], pieces["fault"], pieces["response"]["body"]) == (
            401,
            "slow_body",
            "(sent in pieces)",
        )
        assert html["response"]["body"].startswith("<!DOCTYPE html>")


@given(st.binary(max_size=3 * MAX_BODY), st.sampled_from([b"", b'{"image":"', b'{"image" : "', b'"image"']))
def test_logged_bodies_are_bounded(tail: bytes, head: bytes) -> None:
    """A logged body has a bounded length, and a short one is unchanged."""
    body = head + tail
    kept = shortened(body)
    assert len(kept) <= MAX_BODY + 100
    if len(body) <= MAX_BODY // 4:
        assert kept == body
