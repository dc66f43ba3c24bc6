"""Is the console served to the right people only, and told everything once? Over HTTP, without a browser."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from aiohttp.web import Request, Response
from hypothesis import given
from hypothesis import strategies as st
from support.raw_client import EDITING, Caller, calling, order, png

import kling_expand.emulator
from kling_expand.emulator import Emulator
from kling_expand.emulator.console.feed import MAX_FAULTS, MAX_TASKS
from kling_expand.emulator.console.routes import static_files
from kling_expand.emulator.faults.plan import FILE_KINDS, KINDS
from kling_expand.emulator.http.call_log import MAX_BODY, MAX_CALLS, shortened
from kling_expand.emulator.http.same_origin import is_loopback, same_origin_only

FOLDER = Path(kling_expand.emulator.__file__).parent / "console" / "static"
WALLS = ["/", "/console/main.js", "/_emulator", "/_emulator/console", "/_emulator/events", "/_emulator/tasks"]


class Stream:
    """What a console hears, event by event."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def next(self) -> tuple[str, Any]:
        """The next event's name and data; ("", None) at the end."""
        name = ""
        async for line in self._answer.content:
            kind, _, rest = line.decode().rstrip("\n").partition(": ")
            if kind == "event":
                name = rest
            elif kind == "data":
                return name, json.loads(rest)
        return "", None

    async def until(self, wanted: str) -> Any:
        """The data of the next event of this name."""
        while True:
            name, data = await self.next()
            assert name, f"the stream ended before {wanted}"
            if name == wanted:
                return data


@asynccontextmanager
async def listening(call: Caller) -> AsyncIterator[Stream]:
    """A console's stream, from its beginning."""
    async with call.session.get(call.emulator.url + "/_emulator/events") as answer:
        assert answer.content_type == "text/event-stream"
        yield Stream(answer)


async def get(call: Caller, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body as a stranger sees them."""
    async with call.session.get(call.emulator.url + path, headers=headers) as answer:
        body = b"" if answer.content_type == "text/event-stream" else await answer.read()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, body


async def test_the_page_asks_for_nothing_it_is_not_given() -> None:
    """Each file the page and its scripts name is served, by its right type; no other host, nothing inline."""
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
    """Whatever else one asks for below `/console/` does not exist."""
    async with calling() as call:
        assert (await get(call, f"/console/{name}"))[0] == 404


@pytest.mark.parametrize("path", WALLS)
async def test_browsers_are_told_to_trust_nothing_else(path: str) -> None:
    """Policy, type and referrer: on the page, its files and the control routes, and on refusals."""
    async with calling() as call:
        for host in ("", "evil.example"):
            _, headers, _ = await get(call, path, **({"Host": host} if host else {}))
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "*" not in policy
            assert "http" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["referrer-policy"] == "no-referrer"
            assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", WALLS)
async def test_only_names_of_this_machine_are_answered(path: str) -> None:
    """A name that was made to point here (DNS rebinding), another port, or none: refused with a sentence."""
    async with calling() as call:
        port = call.emulator.url.rpartition(":")[2]
        for good in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
            assert (await get(call, path, Host=f"{good}:{port}"))[0] == 200
        bad = ("evil.example", f"evil.example:{port}", "localhost", "localhost:1", "", f"127.0.0.2:{port}")
        for host in (*bad, f"localhost.evil.example:{port}", f"127.0.0.1:{port}.evil.example"):
            status, _, body = await get(call, path, Host=host)
            assert (status, body[:13]) == (403, b"Host must be ")
            assert call.emulator.api_key.encode() not in body


async def test_who_opens_it_to_others_opens_it() -> None:
    """Listening on every address, it answers to whatever name it is called by, but still to no other page."""
    async with calling(host="0.0.0.0") as call:
        assert (await get(call, "/_emulator", Host="photos.example:8000"))[0] == 200
        evil = {"Host": "photos.example:8000", "Origin": "http://evil.example"}
        status, _ = await post(call, "/_emulator/advance", {"seconds": 1}, **evil)
        assert status == 403


async def post(call: Caller, path: str, body: Any, **headers: str) -> tuple[int, str]:
    """Status and text of the answer to a POST with these headers."""
    async with call.session.post(call.emulator.url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.text()


async def test_other_pages_may_not_steer() -> None:
    """By `Origin` or `Sec-Fetch-Site`: refused, and nothing has happened; our own page and programs may."""
    async with calling() as call:
        mine = call.emulator.url
        other_port = "http://127.0.0.1:1"
        secure = mine.replace("http", "https")
        for origin in ("http://evil.example", "null", other_port, secure, mine + "0"):
            assert (await post(call, "/_emulator/advance", {"seconds": 5}, Origin=origin))[0] == 403
            async with call.session.delete(mine + "/_emulator/faults", headers={"Origin": origin}) as answer:
                assert answer.status == 403
        for site in ("cross-site", "same-site"):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}
            assert (await post(call, "/_emulator/advance", {"seconds": 5}, **headers))[0] == 403
            assert (await get(call, "/_emulator/console", **headers))[0] == 403
        assert call.emulator.service.clock.offset == 0
        assert (await post(call, "/_emulator/advance", {"seconds": 5}, Origin=mine))[0] == 200
        assert call.emulator.service.clock.offset == 5
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert (await get(call, "/", **link))[0] == 200, "a link to the console may stand anywhere"
        assert (await get(call, "/_emulator/console", **link))[0] == 403


async def test_the_service_is_for_everybody_with_a_key() -> None:
    """Its own routes look at credentials, whatever name and page the call comes from."""
    async with calling() as call:
        headers = {"Host": "kling.example", "Origin": "http://app.example"}
        status, body = await call("POST", EDITING, json=order(), headers=headers)
        assert (status, body["code"]) == (200, 0)


class Wire:
    """As much of a connection as the guard asks for."""

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        """Where the server listens."""
        return ("127.0.0.1", 80) if name == "sockname" else None


async def test_on_port_80_browsers_leave_the_port_out() -> None:
    """`Host: localhost` is right there, and only there."""

    async def handler(_: Request) -> Response:
        return Response(text="in")

    wire: Any = Wire()
    for host, status in (("localhost", 200), ("localhost:80", 200), ("evil.example", 403)):
        request = make_mocked_request("GET", "/", headers={"Host": host}, transport=wire)
        assert (await same_origin_only("127.0.0.1")(request, handler)).status == status


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("photos.example", False),
    ],
)
def test_what_is_loopback(host: str, local: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """Only addresses that nobody else can reach."""
    assert is_loopback(host) is local


async def test_what_the_page_knows() -> None:
    """The key, the engine, each fault with where it fits, each code; samples that are served."""
    async with calling(api_key="a-key-of-mine") as call:
        known = json.loads((await get(call, "/_emulator/console"))[2])["data"]
        assert (known["api_key"], known["engine"]) == ("a-key-of-mine", "flat")
        assert {each["kind"] for each in known["faults"]} == set(KINDS)
        assert {each["kind"] for each in known["faults"] if each["routes"] == ["file"]} == FILE_KINDS
        assert len(known["samples"]) == 3
        for path in known["samples"]:
            assert (await get(call, f"/console/{path}"))[0] == 200


async def test_a_console_hears_everything_once() -> None:
    """A task is told when it is new and when its status changes, calls as they end, the state each time."""
    async with calling(queue_seconds=10, work_seconds=10, clock=lambda: 1e9) as call:
        async with listening(call) as stream:
            name, state = await stream.next()
            assert (name, state["now"], state["slots"], state["account"]["tasks"]) == ("state", 1e9, 9, 0)
            task_id = await call.create(prompt="a park", external_task_id="mine")
            (task,) = await stream.until("tasks")
            assert (task["task_id"], task["status"], task["prompt"]) == (task_id, "submitted", "a park")
            assert (task["before"], task["ended_at"]) == (True, 1e9 + 20)
            (made,) = await stream.until("calls")
            assert (made["route"], made["status"], made["task_id"]) == ("create", 200, task_id)
            for seconds, status in ((10, "processing"), (10, "succeed")):
                call.emulator.advance(seconds)
                (task,) = await stream.until("tasks")
                assert task["status"] == status
            await call("GET", f"{EDITING}/mine")
            (read,) = await stream.until("calls")
            assert (read["route"], read["task_id"]) == ("query", task_id)
            call.emulator.advance(31 * 86400)
            assert await stream.until("removed") == [task_id]
        async with listening(call) as late:
            assert [call["number"] for call in await late.until("calls")] == [1, 2]


async def test_time_alone_is_news() -> None:
    """Nobody calls: the console is told when a task ends all the same, also right after it began."""
    for queue, work in ((0.1, 0.1), (0.0, 0.02)):
        async with calling(queue_seconds=queue, work_seconds=work) as call, listening(call) as stream:
            await call.create()
            async with asyncio.timeout(30):
                while (await stream.until("tasks"))[0]["status"] != "succeed":
                    pass


async def test_the_stream_ends_with_the_emulator() -> None:
    """Whoever stops it does not wait for open consoles."""
    async with aiohttp.ClientSession() as session:
        async with Emulator(engine="flat") as emulator:
            answer = await session.get(emulator.url + "/_emulator/events")
            stream = Stream(answer)
            await stream.until("state")
        async with asyncio.timeout(30):
            while (await stream.next())[0]:
                pass
        answer.release()


async def test_a_console_shows_only_the_newest() -> None:
    """However many tasks there are, what is told stays bounded, and so do the faults that are shown."""
    async with calling(slots=1000, clock=lambda: 1e9) as call:
        ids = [await call.create() for _ in range(MAX_TASKS + 3)]
        kinds = ["reset", "empty"]
        call.emulator.faults.script("file", *(kinds[number % 2] for number in range(MAX_FAULTS + 5)))
        call.emulator.faults.script("list", *["html"] * 40)
        async with listening(call) as stream:
            assert [task["task_id"] for task in await stream.until("tasks")] == ids[3:]
            calls = await stream.until("calls")
            assert len(calls) == MAX_CALLS
            faults = (await stream.until("state"))["faults"]
            assert (len(faults["file"]["script"]), faults["file"]["more"]) == (MAX_FAULTS, 5)
            assert [each["times"] for each in faults["list"]["script"]] == [40]
            fresh = await call.create()
            assert [task["task_id"] for task in await stream.until("tasks")] == [fresh]
            assert await stream.until("removed") == [ids[3]]
        assert (await get(call, f"/_emulator/calls/{calls[0]['number']}"))[0] == 404


async def call_of(call: Caller, number: int) -> Any:
    """One call with its bodies."""
    return json.loads((await get(call, f"/_emulator/calls/{number}"))[2])["data"]


async def test_calls_are_kept_with_bodies_but_without_secrets() -> None:
    """Both bodies can be read, the picture and the credentials cannot."""
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


async def test_broken_calls_are_kept_too() -> None:
    """Cut connections have no status, pieces no body, and each says which fault it met."""
    async with calling() as call:
        call.emulator.faults.script("create", "reset_after", "slow_body", "html")
        for _ in range(3):
            try:
                async with call.session.post(call.emulator.url + EDITING, json=order()) as answer:
                    await answer.read()
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


async def test_pictures_are_shown_without_being_counted() -> None:
    """What came in and what came out, once it is there; no fault is used up by it, no download counted."""
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


async def test_a_picture_still_to_be_fetched_is_not_there() -> None:
    """A task by URL has no picture until it was fetched; the console is told the address instead."""
    async with calling(allow_private=True) as call:
        task_id = await call.create(image="http://127.0.0.1:1/photo.png")
        assert (await get(call, f"/_emulator/before/{task_id}"))[0] == 404
        async with listening(call) as stream:
            (task,) = await stream.until("tasks")
        assert (task["before"], task["image_url"]) == (False, "http://127.0.0.1:1/photo.png")


@given(st.binary(max_size=3 * MAX_BODY), st.sampled_from([b"", b'{"image":"', b'{"image" : "', b'"image"']))
def test_bodies_are_bounded(tail: bytes, head: bytes) -> None:
    """Whatever was sent, what is kept is short; what was short is kept as it was."""
    body = head + tail
    kept = shortened(body)
    assert len(kept) <= MAX_BODY + 100
    if len(body) <= MAX_BODY // 4:
        assert kept == body
