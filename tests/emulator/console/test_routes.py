"""The routes of the console, over HTTP and without a browser."""

import json
import re
from pathlib import Path

import pytest
from support.console_stream import open_stream
from support.raw_client import calling, get, png

import kling_expand.emulator
from kling_expand.emulator.console.routes import static_files
from kling_expand.emulator.faults.plan import FILE_KINDS, KINDS

FOLDER = Path(kling_expand.emulator.__file__).parent / "console" / "static"


async def test_every_file_of_the_page_is_served() -> None:
    """Each file that the page refers to is served with its type, and the page refers to no other host."""
    async with calling() as call:
        status, headers, page = await get(call, "/")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        text = page.decode()
        assert re.findall(r'\s(?:style|on\w+)="', text) == []
        assert re.findall(r"<(?:style|script)[^>]*>[^<]", text) == []
        types = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
        types |= {".svg": "image/svg+xml", ".jpg": "image/jpeg"}
        for path in FOLDER.rglob("*"):
            if path.suffix in types:
                status, headers, body = await get(call, f"/console/{path.relative_to(FOLDER)}")
                assert (status, headers["content-type"]) == (200, types[path.suffix])
                assert body == path.read_bytes()
        for name in static_files():
            assert not re.findall(
                rb"""(?:https?:)?//(?!www\.w3\.org)[a-z0-9]+\.[a-z]""", static_files()[name]
            )


@pytest.mark.parametrize("name", ["missing.js", "../console.py", "%2e%2e/console.py", "samples", "/"])
async def test_only_the_console_is_served(name: str) -> None:
    """Paths outside the static files are not served."""
    async with calling() as call:
        assert (await get(call, f"/console/{name}"))[0] == 404


async def test_the_page_receives_its_configuration() -> None:
    """The page receives the key, the engine, the faults with their routes, the codes and the samples."""
    async with calling(api_key="a-key-of-mine") as call:
        known = json.loads((await get(call, "/_emulator/console"))[2])["data"]
        assert (known["api_key"], known["engine"]) == ("a-key-of-mine", "flat")
        assert {each["kind"] for each in known["faults"]} == set(KINDS)
        assert {each["kind"] for each in known["faults"] if each["routes"] == ["file"]} == FILE_KINDS
        assert len(known["samples"]) == 3
        for path in known["samples"]:
            assert (await get(call, f"/console/{path}"))[0] == 200


async def test_downloads_by_the_console_are_not_counted() -> None:
    """Downloads by the console are not counted, and no faults apply to them."""
    async with calling(queue_seconds=5, work_seconds=5, clock=lambda: 1e9) as call:
        call.emulator.faults.script("file", "expired")
        task_id = await call.create(n=2)
        status, headers, body = await get(call, f"/_emulator/before/{task_id}")
        assert (status, headers["content-type"], body) == (200, "image/png", png())
        assert (await get(call, f"/_emulator/after/{task_id}/0"))[0] == 404
        call.emulator.advance(10)
        status, headers, body = await get(call, f"/_emulator/after/{task_id}/1")
        assert (status, headers["content-type"], headers["x-engine"]) == (200, "image/png", "flat")
        assert body.startswith(b"\x89PNG")
        for path in (f"after/{task_id}/2", "after/unknown/0", "before/unknown"):
            assert (await get(call, f"/_emulator/{path}"))[0] == 404
        assert call.emulator.account.requests == {"create": 1}
        assert call.emulator.faults.planned()["file"]["script"]


async def test_a_picture_that_is_not_fetched_is_404() -> None:
    """A task with an image URL has no uploaded picture before the download, but its URL is shown."""
    async with calling(allow_private=True) as call:
        task_id = await call.create(image="http://127.0.0.1:1/photo.png")
        assert (await get(call, f"/_emulator/before/{task_id}"))[0] == 404
        async with open_stream(call) as stream:
            (task,) = await stream.until("tasks")
        assert (task["before"], task["image_url"]) == (False, "http://127.0.0.1:1/photo.png")
