"""Protection of the console and the control routes from other web pages."""

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from aiohttp.web import Request, Response
from support.raw_client import EDITING, Caller, calling, get, order

from kling_expand.emulator.http.same_origin import is_loopback, same_origin_only
from kling_expand.emulator.settings import Settings

CONSOLE_PATHS = [
    "/",
    "/console/main.js",
    "/_emulator",
    "/_emulator/console",
    "/_emulator/events",
    "/_emulator/tasks",
]


@pytest.mark.parametrize("path", CONSOLE_PATHS)
async def test_security_headers_are_sent(path: str) -> None:
    """The console sends a strict Content-Security-Policy and is not cached."""
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


@pytest.mark.parametrize("path", CONSOLE_PATHS)
async def test_only_names_of_this_machine_are_accepted(path: str) -> None:
    """On a loopback address, only the names of this machine with the right port are accepted."""
    async with calling() as call:
        port = call.emulator.url.rpartition(":")[2]
        for good in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
            assert (await get(call, path, Host=f"{good}:{port}"))[0] == 200
        bad = ("evil.example", f"evil.example:{port}", "localhost", "localhost:1", "", f"127.0.0.2:{port}")
        for host in (*bad, f"localhost.evil.example:{port}", f"127.0.0.1:{port}.evil.example"):
            status, _, body = await get(call, path, Host=host)
            assert (status, body[:13]) == (403, b"Host must be ")
            assert call.emulator.api_key.encode() not in body


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({}, 403),
        ({"api_key": "my own"}, 403),  # the default key pair is still valid
        ({"api_key": "my own", "secret_key": "my own too"}, 401),
        ({"public_url": "https://kling.test:8443"}, 403),
        ({"public_url": "https://evil.example"}, 401),
        ({"forwarded": True}, 401),
    ],
)
async def test_default_credentials_are_accepted_only_by_local_names(
    settings: dict[str, Any], status: int
) -> None:
    """A page whose name was rebound to this machine cannot use the public default credentials."""
    async with calling(**settings) as call:
        assert (await get(call, EDITING))[0] == 401
        assert (await get(call, EDITING, Host="evil.example"))[0] == status
        assert (await get(call, EDITING, Host="localhost:1"))[0] == 401  # the port may be that of a tunnel


async def test_a_public_address_accepts_any_host() -> None:
    """An emulator that listens on all addresses accepts any Host, but no foreign Origin."""
    async with calling(host="0.0.0.0") as call:
        assert (await get(call, "/_emulator", Host="photos.example:8000"))[0] == 200
        evil = {"Host": "photos.example:8000", "Origin": "http://evil.example"}
        status, _ = await post(call, "/_emulator/advance", {"seconds": 1}, **evil)
        assert status == 403


async def post(call: Caller, path: str, body: Any, **headers: str) -> tuple[int, str]:
    """Send a POST with these headers, and return the status and the text of the response."""
    async with call.session.post(call.emulator.url + path, json=body, headers=headers) as response:
        return response.status, await response.text()


async def test_requests_of_other_pages_are_refused() -> None:
    """Requests with a foreign `Origin` or `Sec-Fetch-Site` are refused and have no effect."""
    async with calling() as call:
        mine = call.emulator.url
        other_port = "http://127.0.0.1:1"
        secure = mine.replace("http", "https")
        for origin in ("http://evil.example", "null", other_port, secure, mine + "0"):
            assert (await post(call, "/_emulator/advance", {"seconds": 5}, Origin=origin))[0] == 403
            async with call.session.delete(
                mine + "/_emulator/faults", headers={"Origin": origin}
            ) as response:
                assert response.status == 403
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


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"public_url": "https://kling.test/api"}, {"Host": "kling.test"}),
        ({"forwarded": True}, {"Host": "kling.test"}),
        ({"forwarded": True}, {"Host": "localhost:1", "X-Forwarded-Host": "kling.test, inner.test"}),
    ],
)
async def test_the_console_works_behind_tls(settings: dict[str, Any], headers: dict[str, str]) -> None:
    """The page at the address in the settings may control the emulator, and no other page may."""
    async with calling(**settings) as call:
        for origin, status in (("https://kling.test", 200), ("https://evil.example", 403), ("null", 403)):
            got = await post(call, "/_emulator/advance", {"seconds": 1}, **headers, Origin=origin)
            assert got[0] == status, got


async def test_the_service_accepts_any_origin_with_a_key() -> None:
    """With the user's own credentials, the service checks these, and neither Host nor Origin."""
    async with calling(api_key="api-key-own", secret_key="own") as call:
        headers = {"Host": "kling.example", "Origin": "http://app.example"}
        status, body = await call("POST", EDITING, json=order(), headers=headers)
        assert (status, body["code"]) == (200, 0)


class Wire:
    """A transport with only the method that the middleware uses."""

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        """Return the address on which the server listens."""
        return ("127.0.0.1", 80) if name == "sockname" else None


async def test_port_80_may_be_omitted() -> None:
    """`Host: localhost` without a port is accepted only on port 80."""

    async def handler(_: Request) -> Response:
        return Response(text="in")

    wire: Any = Wire()
    for host, status in (("localhost", 200), ("localhost:80", 200), ("evil.example", 403)):
        request = make_mocked_request("GET", "/", headers={"Host": host}, transport=wire)
        assert (await same_origin_only(Settings())(request, handler)).status == status


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
    """Only addresses that no other machine can reach count as loopback."""
    assert is_loopback(host) is local
