"""Downloads of images given by URL, within limits and from public addresses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from support.raw_client import EDITING, Caller, calling, order, png

from kling_expand.emulator.http.validation import MAX_IMAGE_BYTES
from kling_expand.emulator.painting.image_fetch import FetchError, fetch, is_public


async def picture(_: web.Request) -> web.Response:
    """Return a valid picture."""
    return web.Response(body=png())


async def small(_: web.Request) -> web.Response:
    """Return a picture that is too small."""
    return web.Response(body=png(299, 299))


async def endless(request: web.Request) -> web.StreamResponse:
    """Send bytes until the client disconnects."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(1_000_000))


async def redirect(request: web.Request) -> web.Response:
    """Redirect to /hop/<n-1> and finally to the picture, or to the URL in `to`."""
    left = int(request.match_info["left"])
    where = request.query.get("to") or (f"/hop/{left - 1}" if left else "/picture")
    return web.Response(status=302, headers={"Location": where})


async def missing(_: web.Request) -> web.Response:
    """Return 404."""
    return web.Response(status=404)


@asynccontextmanager
async def host() -> AsyncIterator[str]:
    """Run an image server on a loopback address."""
    app = web.Application()
    for path, handler in (("picture", picture), ("small", small), ("endless", endless), ("missing", missing)):
        app.router.add_get(f"/{path}", handler)
    app.router.add_get("/hop/{left}", redirect)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def task_outcome(call: Caller, image: str) -> tuple[str, str]:
    """Wait until a task for this image has ended, and return (status, message)."""
    task_id = await call.create(image=image)
    await call.emulator.painted()
    task = await call.task(task_id)
    return task["task_status"], task["task_status_msg"]


async def test_an_image_is_fetched_and_expanded() -> None:
    """An image at a URL is expanded, even after a few redirects."""
    async with host() as url, calling(allow_private=True, queue_seconds=0, work_seconds=0) as call:
        for path in ("/picture", "/hop/4"):
            assert await task_outcome(call, url + path) == ("succeed", "")
        _, body = await call("GET", EDITING)
        async with call.session.get(body["data"][0]["task_result"]["images"][0]["url"]) as response:
            assert (response.status, response.content_type) == (200, "image/png")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/small", "Image pixel is invalid"),
        ("/missing", "Failed to fetch the image: the image's server answered 404"),
        ("/hop/9", "Failed to fetch the image: more than 5 redirects"),
        (
            "/hop/0?to=ftp://h/",
            "Failed to fetch the image: only http and https addresses are fetched",
        ),
        ("/endless", "Image file size must not exceed 10MB"),
    ],
)
async def test_a_failed_download_fails_the_task(path: str, message: str) -> None:
    """A failed download fails the task later, with the reason."""
    async with host() as url, calling(allow_private=True, queue_seconds=0, work_seconds=0) as call:
        assert await task_outcome(call, url + path) == ("failed", message)


async def test_a_slow_server_times_out() -> None:
    """A download ends after its timeout."""
    with pytest.raises(FetchError, match=r"no image within 0 s"):
        await fetch("http://127.0.0.1:1/", timeout=0, allow_private=True)


async def test_a_refused_connection_is_reported() -> None:
    """A connection error becomes a FetchError with its reason."""
    with pytest.raises(FetchError, match=r"127\.0\.0\.1"):
        await fetch("http://127.0.0.1:1/", timeout=5, allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.png",
        "http://10.0.0.1/x.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/x.png",
        "http://[::ffff:127.0.0.1]/x.png",
        "http://0.0.0.0/x.png",
        "http://224.0.0.1/x.png",
    ],
)
async def test_private_addresses_are_refused(url: str) -> None:
    """A create is refused if its URL contains a private address."""
    async with calling() as call:
        status, body = await call("POST", EDITING, json=order(image=url))
        assert (status, body["code"]) == (400, 1201)
        assert "is not a public address" in body["message"]


async def test_names_of_private_addresses_are_refused() -> None:
    """A name with only private addresses fails the task."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        status, message = await task_outcome(call, "http://localhost:1/x.png")
        assert status == "failed"
        assert "is not a public address" in message


SPELLINGS = ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1", "[::ffff:7f00:1]", "127.0.0.1."]


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_of_a_private_address_is_connected_to(spelling: str) -> None:
    """However a URL writes an address, the address of the connection decides."""
    async with host() as url:
        port = url.rpartition(":")[2]
        with pytest.raises(FetchError):
            await fetch(f"http://{spelling}:{port}/picture", timeout=5, allow_private=False)


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "fe80::1%lo",
        "fec0::1",
        "64:ff9b:1::7f00:1",
        "::ffff:0:127.0.0.1",
        "ff0e::1",
    ],
)
def test_private_addresses_within_ipv6_are_private(address: str) -> None:
    """An IPv6 address that contains a private IPv4 address is private."""
    assert not is_public(address)


def test_public_addresses_are_public() -> None:
    """Public addresses of both families pass, and so do names."""
    assert is_public("1.1.1.1")
    assert is_public("2606:4700:4700::1111")
    assert is_public("64:ff9b::101:101")
    assert is_public("::ffff:1.1.1.1")
    assert is_public("example.com")


async def test_exactly_the_limit_is_read_and_no_more() -> None:
    """An endless body is read only up to the limit."""
    async with host() as url:
        data = await fetch(url + "/endless", timeout=30, allow_private=True)
    assert MAX_IMAGE_BYTES < len(data) < MAX_IMAGE_BYTES + 2_000_000
