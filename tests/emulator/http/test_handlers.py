"""The routes of the service: downloads, the account's state and the addresses in responses."""

import io

import pytest
from PIL import Image
from support.raw_client import EDITING, Caller, calling, create_code, get


async def test_pictures_differ_and_need_no_credentials() -> None:
    """The n pictures differ, have the exact aspect, and are served whole and in ranges."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task = await call.task(await call.create(n=2, right_expansion_ratio=0.5))
        first, second = (image["url"] for image in task["task_result"]["images"])
        async with call.session.get(first) as response:
            whole = await response.read()
            assert ("image/png", str(len(whole)), "flat") == (
                response.content_type,
                response.headers["Content-Length"],
                response.headers["X-Engine"],
            )
            assert response.headers["Server"] == "kling-expand-emulator"
        async with call.session.get(second) as response:
            assert whole != await response.read()
        with Image.open(io.BytesIO(whole)) as picture:
            assert abs(picture.width - picture.height * 1.75 / 1.5) <= 1
        parts = [(0, 9), (10, 99), (100, len(whole) + 5)]
        joined = b""
        for first_byte, last_byte in parts:
            headers = {"Range": f"bytes={first_byte}-{last_byte}"}
            async with call.session.get(first, headers=headers) as response:
                assert response.status == 206
                joined += await response.read()
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
    """A suffix range is served, a range outside the picture gets 416, and an invalid range is ignored."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task = await call.task(await call.create())
        url = task["task_result"]["images"][0]["url"]
        async with call.session.get(url) as response:
            size, tag = len(await response.read()), response.headers["ETag"]
        async with call.session.get(url, headers={"Range": header, "If-Range": tag}) as response:
            assert status == response.status
            expected = content_range and content_range.format(size=size, last=size - 1, last5=size - 5)
            assert expected == response.headers.get("Content-Range")
        async with call.session.get(url, headers={"Range": header, "If-Range": '"other"'}) as response:
            assert (200, size) == (response.status, len(await response.read()))


async def test_a_watermarked_copy_exists_only_on_request() -> None:
    """A watermarked copy exists only if it was requested."""
    async with calling(queue_seconds=0, work_seconds=0) as call:
        task = await call.task(await call.create(watermark_info={"enabled": True}))
        (image,) = task["task_result"]["images"]
        pictures = []
        for name in ("url", "watermark_url"):
            async with call.session.get(image[name]) as response:
                pictures.append(await response.read())
        assert pictures[0] != pictures[1]
        plain = await call.task(await call.create())
        url = plain["task_result"]["images"][0]["url"]
        for wrong in (url.replace("0.png", "0-watermark.png"), url.replace("0.png", "1.png"), url + "x"):
            async with call.session.get(wrong) as response:
                assert response.status == 404


@pytest.mark.parametrize(
    ("account", "status"), [(1100, 429), (1101, 429), (1102, 429), (1103, 403), (1304, 429)]
)
async def test_an_account_code_refuses_every_call(account: int, status: int) -> None:
    """With `account_code`, creates and reads are both refused."""
    async with calling(account_code=account) as call:
        assert await create_code(call) == (status, account)
        assert (await call("GET", EDITING))[0] == status


OWN_CREDENTIALS = {
    "api_key": "api-key-own",
    "secret_key": "own-secret",
    "queue_seconds": 0,
    "work_seconds": 0,
}


async def url_of(call: Caller, task_id: str, **headers: str) -> str:
    """Return the URL of a task's picture from the response to a request with these headers."""
    _, body = await call("GET", f"{EDITING}/{task_id}", headers=headers)
    url: str = body["data"]["task_result"]["images"][0]["url"]
    return url


async def test_urls_follow_the_host_header() -> None:
    """Picture URLs use the Host header of the request, unless it is invalid."""
    async with calling(**OWN_CREDENTIALS) as call:
        task_id = await call.create()
        for host, origin in (("kling.test:81", "http://kling.test:81"), ("a b<", call.emulator.url)):
            assert (await url_of(call, task_id, Host=host)).startswith(origin + "/files/")


async def test_urls_behind_a_proxy() -> None:
    """`public_url` takes precedence, and the headers of a proxy are trusted only with `forwarded`."""
    proxied = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "kling.test, inner"}
    async with calling(**OWN_CREDENTIALS) as call:
        task_id = await call.create()
        assert (await url_of(call, task_id, **proxied)).startswith(call.emulator.url)
        call.emulator.forwarded = True
        assert (await url_of(call, task_id, **proxied)).startswith("https://kling.test/files/")
        odd = proxied | {"X-Forwarded-Proto": "javascript"}
        assert (await url_of(call, task_id, **odd)).startswith(call.emulator.url)
        call.emulator.public_url = "https://public.test:8443"
        assert (await url_of(call, task_id, **proxied)).startswith("https://public.test:8443/files/")


async def test_health_needs_no_credentials() -> None:
    """The route reports that the emulator is ready, and does not count as a request of the service."""
    async with calling() as call:
        assert (await get(call, "/health"))[0] == 200
        assert call.emulator.account.requests == {}
