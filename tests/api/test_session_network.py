"""Proxies, headers, certificates and injected sessions, with a real proxy and a real server."""

import asyncio
import platform
import re
import ssl
import subprocess
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from support.http_proxy import HTTPProxy, http_proxy
from support.raw_server import Loopback, loopback, task

from kling_expand import KlingClient, Ratios, __version__, blocking
from kling_expand.api import codec
from kling_expand.api.session import USER_AGENT, Body, Session
from kling_expand.config import Settings, StaticKey
from kling_expand.emulator import Emulator
from kling_expand.errors import ConfigurationError, TransportError
from kling_expand.testing import emulated, loop_clock, run, virtual_time

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"
WIDER = Ratios(right=0.5)
NOWHERE = "http://kling.invalid"  # an address that only the proxy can resolve
HIDDEN = "https://kling.invalid"
VARIABLES = [
    name for each in ("http", "https", "all", "no") for name in (f"{each}_proxy", f"{each}_PROXY".upper())
]


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove the proxy settings of this machine from the environment."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def address(url: str) -> str:
    """Return the host and port of a URL."""
    return url.partition("://")[2]


@asynccontextmanager
async def client_behind_proxy(emulator: Emulator, **client: Any) -> AsyncIterator[KlingClient]:
    """Open a client that reaches the emulator by a name that only a proxy can resolve."""
    options: dict[str, Any] = {"base_url": NOWHERE, "clock": loop_clock, "connect_timeout": 2.0} | client
    async with KlingClient(api_key=emulator.api_key, **options) as kling:
        yield kling


@asynccontextmanager
async def hidden(login: str | None = None) -> AsyncIterator[tuple[Emulator, HTTPProxy]]:
    """Yield an emulator, and a proxy that resolves `NOWHERE` to it."""
    # With its default keys, the emulator accepts only names of this machine as `Host`.
    keys: dict[str, Any] = {
        "api_key": "api-key-kling-hidden",
        "access_key": "hidden",
        "secret_key": "hidden-secret-" * 3,
    }
    async with (
        Emulator(engine="flat", clock=loop_clock, **keys) as emulator,
        http_proxy({"kling.invalid:80": address(emulator.url)}, login=login) as proxy,
    ):
        yield emulator, proxy


# ------------------------------------------------------------------ the choice of the proxy


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize("scheme", ["http://", ""])
@virtual_time
async def test_the_proxy_of_the_environment_is_used(
    name: str, scheme: str, environ: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A whole job goes through the proxy: the create, the polls and the download."""
    async with hidden() as (emulator, proxy):
        environ.setenv(name, f"{scheme}{address(proxy.url)}")
        async with client_behind_proxy(emulator) as kling:
            result = await kling.expand(PHOTO, WIDER)
            assert len(await result.save(tmp_path)) == 1
        methods = [(line.split()[0], "/files/" in line) for line in proxy.lines]
        assert {("POST", False), ("GET", False), ("GET", True)} == {*methods}


@virtual_time
async def test_an_argument_beats_the_environment(environ: pytest.MonkeyPatch) -> None:
    """`proxy=` is used for every host, even if the environment says otherwise."""
    environ.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    environ.setenv("NO_PROXY", "kling.invalid")
    async with hidden() as (emulator, proxy):
        async with client_behind_proxy(emulator, proxy=proxy.url) as kling:
            assert await kling.list() == ()
        assert len(proxy.heads) == 1


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "*", "example.com, 127.0.0.1", "{port}"])
@virtual_time
async def test_the_no_proxy_variable_is_obeyed(
    no_proxy: str, environ: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A host in `NO_PROXY` is reached directly, for calls and for downloads."""
    async with Emulator(engine="flat", clock=loop_clock) as emulator, http_proxy() as proxy:
        environ.setenv("HTTP_PROXY", proxy.url)
        environ.setenv("NO_PROXY", no_proxy.format(port=address(emulator.url)))
        async with client_behind_proxy(emulator, base_url=emulator.url) as kling:
            await (await kling.expand(PHOTO, WIDER)).save(tmp_path)
        assert proxy.heads == []


@virtual_time
async def test_without_trust_env_the_environment_is_ignored(environ: pytest.MonkeyPatch) -> None:
    """`trust_env=False` ignores the proxies of the environment."""
    environ.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with emulated({"trust_env": False}) as (_, kling):
        assert await kling.list() == ()


@virtual_time
async def test_a_netrc_is_never_read(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The credentials in a netrc file are sent neither to the service nor to the proxy."""
    netrc = tmp_path / "netrc"
    netrc.write_text(
        "machine 127.0.0.1 login me password of-the-netrc\ndefault login me password of-the-netrc\n"
    )
    environ.setenv("NETRC", str(netrc))
    async with Emulator(engine="flat", clock=loop_clock) as emulator, http_proxy() as proxy:
        environ.setenv("HTTP_PROXY", proxy.url)
        async with client_behind_proxy(emulator, base_url=emulator.url) as kling:
            await (await kling.expand(PHOTO, WIDER)).save(tmp_path / "out")
        assert proxy.heads
        hidden = b64encode(b"me:of-the-netrc").decode()
        assert hidden not in proxy.sent()


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1080", "http://127.0.0.1:99999"])
async def test_an_invalid_proxy_of_the_environment_is_named(url: str, environ: pytest.MonkeyPatch) -> None:
    """The error names the variable, but not its value, which may contain a password."""
    environ.setenv("HTTPS_PROXY", url)
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY must be http://host:port") as caught:
        async with KlingClient(api_key="k"):
            pass
    assert "127.0.0.1" not in str(caught.value)


# ------------------------------------------------------------------ the proxy's own refusals and secrets


@virtual_time
async def test_a_proxy_password_is_sent_only_to_the_proxy(tmp_path: Path) -> None:
    """The password is sent to the proxy for calls and downloads, and no representation shows it."""
    async with hidden(login="me:pass-word") as (emulator, proxy):
        url = proxy.url.replace("//", "//me:pass-word@")
        async with client_behind_proxy(emulator, proxy=url) as kling:
            await (await kling.expand(PHOTO, WIDER)).save(tmp_path)
            assert "pass-word" not in repr(kling) + repr(kling.settings)
        assert all("proxy-authorization" in head.headers for head in proxy.heads)


@virtual_time
async def test_a_407_says_what_to_do() -> None:
    """A 407 says what to do, is not retried, and shows that the create was not sent."""
    async with (
        hidden(login="me:pass-word") as (emulator, proxy),
        client_behind_proxy(emulator, proxy=proxy.url) as kling,
    ):
        with pytest.raises(TransportError, match="credentials: give http://user:password@") as caught:
            await kling.expand(PHOTO, WIDER)
        assert (caught.value.sent, caught.value.retryable) == (False, False)
        assert len(proxy.heads) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
@virtual_time
async def test_an_unreachable_proxy_is_named(scheme: str) -> None:
    """The message names the unreachable proxy, and no error of the chain contains its password."""
    settings = Settings(
        base_url=f"{scheme}://kling.invalid", proxy="http://me:pass-word@127.0.0.1:9", connect_timeout=1.0
    )
    async with Session(settings, StaticKey("a-key-of-ours"), rng=Random(1)) as session:
        with pytest.raises(TransportError, match=r"through the proxy http://127\.0\.0\.1:9") as caught:
            await session.read("/x", codec.decode_task)
    assert (caught.value.sent, caught.value.retryable) == (False, False)
    assert no_secret(caught.value, "pass-word", "a-key-of-ours")


@pytest.mark.parametrize(("status", "retryable"), [(407, False), (403, False), (502, True)])
@virtual_time
async def test_a_refused_tunnel_sends_nothing_to_the_service(status: int, *, retryable: bool) -> None:
    """After a refused CONNECT, nothing was sent to the service. Only a status of 500 or above is retried."""
    async with http_proxy(status=status) as proxy:
        url = proxy.url.replace("//", "//me:pass-word@")
        async with Session(
            Settings(base_url=HIDDEN, proxy=url), StaticKey("a-key-of-ours"), rng=Random(1)
        ) as session:
            with pytest.raises(TransportError, match=f"which responded {status}") as caught:
                await session.call("POST", "/x", codec.decode_task, body=partial(Body, b"{}"))
        assert (caught.value.sent, caught.value.retryable) == (False, retryable)
        assert no_secret(caught.value, "pass-word", "a-key-of-ours", b64encode(b"me:pass-word").decode())
        assert proxy.lines == ["CONNECT kling.invalid:443 HTTP/1.1"]
        assert "a-key-of-ours" not in proxy.sent()


def no_secret(error: BaseException, *secrets: str) -> bool:
    """Return whether no error of the chain has a secret in its text, its representation or arguments."""
    each: BaseException | None = error
    while each is not None:
        shown = f"{each} {each!r} {each.args!r}"
        if any(secret in shown for secret in secrets):
            return False
        each = each.__cause__ or each.__context__
    return True


@virtual_time
async def test_an_invalid_response_shows_no_token() -> None:
    """An invalid HTTP response raises an error without the request's headers, unlike aiohttp's own error."""

    async def garbage(exchange: Any) -> None:
        await exchange.read()
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")

    async with (
        loopback(garbage) as server,
        Session(Settings(base_url=server.url), StaticKey("a-key-of-ours"), rng=Random(1)) as session,
    ):
        with pytest.raises(TransportError) as caught:
            await session.call("GET", "/x", codec.decode_task)
    assert isinstance(caught.value.__cause__, aiohttp.ClientError)
    assert no_secret(caught.value, "a-key-of-ours", "Authorization")


# ------------------------------------------------------------------ TLS through a tunnel


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a self-signed certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=kling.invalid"
    names = ["-addext", "subjectAltName=DNS:kling.invalid,IP:127.0.0.1"]
    command = [*words.split(), *names, "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
    subprocess.run(command, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes())
    return both


@asynccontextmanager
async def hidden_tls(
    certificate: Path, login: str | None = None
) -> AsyncIterator[tuple[Loopback, HTTPProxy]]:
    """Yield an HTTPS server that always responds with a task, and a proxy that resolves `HIDDEN` to it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with loopback(task()) as inner:
        server = await asyncio.start_server(inner.serve, "127.0.0.1", 0, ssl=context)
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, http_proxy({"kling.invalid:443": where}, login=login) as proxy:
            yield inner, proxy


@pytest.mark.parametrize("trusted", ["context", "nothing"])
async def test_tls_goes_through_a_tunnel(certificate: Path, trusted: str) -> None:
    """The proxy sees only the name and port. A fresh request opens a new tunnel, and others share one."""
    context = ssl.create_default_context(cafile=str(certificate)) if trusted == "context" else False
    async with hidden_tls(certificate, login="me:pass-word") as (inner, proxy):
        url = proxy.url.replace("//", "//me:pass-word@")
        settings = Settings(base_url=HIDDEN, proxy=url, ssl=context, headers={"X-Own": "o"})
        async with Session(settings, StaticKey("a-key-of-ours"), rng=Random(1)) as session:
            body = partial(Body, b"{}")
            for fresh in (False, False, True, True, False):
                await session.call("POST", "/x", codec.decode_task, body=body, fresh=fresh)
        assert proxy.lines == ["CONNECT kling.invalid:443 HTTP/1.1"] * 3
        assert "a-key-of-ours" not in proxy.sent()
        assert "x-own" not in proxy.sent()
        ports = [each.writer.get_extra_info("peername")[1] for each in inner.requests]
        assert ports[0] == ports[1] == ports[4]
        assert len({*ports}) == 3


async def test_a_certificate_is_checked_through_a_tunnel(certificate: Path) -> None:
    """A certificate from an unknown authority is refused, and no request is sent."""
    async with hidden_tls(certificate) as (inner, proxy):
        settings = Settings(base_url=HIDDEN, proxy=proxy.url.replace("//", "//me:pass-word@"))
        async with Session(settings, StaticKey("a-key-of-ours"), rng=Random(1)) as session:
            with pytest.raises(TransportError, match=r"certificate of .* is not trusted") as caught:
                await session.call("GET", "/x", codec.decode_task)
    assert not inner.requests
    assert no_secret(caught.value, "pass-word", "a-key-of-ours")


@virtual_time
async def test_a_fresh_request_never_takes_a_pooled_connection_to_a_proxy() -> None:
    """The retry of a create through a forwarding proxy also uses a new connection."""
    async with loopback(task()) as server, http_proxy() as proxy:
        settings = Settings(base_url=server.url, proxy=proxy.url)
        async with Session(settings, StaticKey("k"), rng=Random(1)) as session:
            for fresh in (False, False, True, True, False):
                await session.call("POST", "/x", codec.decode_task, body=partial(Body, b"{}"), fresh=fresh)
        ports = [head.port for head in proxy.heads]
        assert ports[0] == ports[1] == ports[4]
        assert len({*ports}) == 3


# ------------------------------------------------------------------ headers


@virtual_time
async def test_headers_of_the_settings_are_sent_only_to_the_api(tmp_path: Path) -> None:
    """Headers of the settings are added to each call. Neither they nor the key are sent with a download."""
    async with Emulator(engine="flat", clock=loop_clock) as emulator, http_proxy() as proxy:
        headers = {"X-Relay-Key": "relay-secret", "User-Agent": "mine/1"}
        async with client_behind_proxy(
            emulator, base_url=emulator.url, proxy=proxy.url, headers=headers
        ) as kling:
            assert "relay-secret" not in repr(kling.settings)
            await (await kling.expand(PHOTO, WIDER)).save(tmp_path)
        for head in proxy.heads:
            download = "/files/" in head.line
            assert (head.headers.get("x-relay-key") == "relay-secret") is not download
            assert ("authorization" in head.headers) is not download
            assert head.headers["user-agent"] == (USER_AGENT if download else "mine/1")


@virtual_time
async def test_the_user_agent_names_package_and_python() -> None:
    """The user agent has the versions of the package and of Python."""
    async with loopback(task()) as server, KlingClient(api_key="k", base_url=server.url) as kling:
        await kling.get("1")
        sent = server.requests[0].headers["user-agent"]
    assert sent == f"kling-expand/{__version__} python/{platform.python_version()}"
    assert re.fullmatch(r"kling-expand/\d+\.\d+\S* python/3\.\d+\.\S+", sent)


# ------------------------------------------------------------------ injected sessions


@virtual_time
async def test_a_session_function_is_called_at_each_opening() -> None:
    """The function is called at each opening, and its session is closed with the client."""
    made: list[aiohttp.ClientSession] = []

    def make() -> aiohttp.ClientSession:
        made.append(aiohttp.ClientSession(headers={"X-Made": "here"}))
        return made[-1]

    async with loopback(task()) as server:
        kling = KlingClient(api_key="k", base_url=server.url, http=make)
        for _ in range(2):
            async with kling:
                await kling.get("1")
                assert not made[-1].closed
        assert [each.closed for each in made] == [True, True]
        assert [each.headers["x-made"] for each in server.requests] == ["here", "here"]


def test_the_blocking_client_accepts_a_session_function(tmp_path: Path) -> None:
    """The function runs in the thread of the event loop. A session of another loop is refused."""

    async def served() -> None:
        async with Emulator(engine="flat", queue_seconds=0, work_seconds=0) as emulator:
            await asyncio.to_thread(use, emulator.url, emulator.api_key)
            async with aiohttp.ClientSession() as foreign:
                refused = blocking.KlingClient(api_key="k", base_url=emulator.url, http=foreign)
                with pytest.raises(ConfigurationError, match="pass a function that returns one"):
                    await asyncio.to_thread(refused.open)

    def use(url: str, key: str) -> None:
        def make() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(trust_env=True)

        with blocking.KlingClient(api_key=key, base_url=url, http=make) as kling:
            assert kling.list() == ()

    asyncio.run(served())
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("wrong", [lambda: None, lambda: "session", dict])
async def test_a_function_that_returns_no_session_is_refused(wrong: Any) -> None:
    """The error names the argument and says what it must be."""
    with pytest.raises(ConfigurationError, match="http must be a function that returns"):
        async with KlingClient(api_key="k", http=wrong):
            pass


@pytest.mark.parametrize(
    "network", [{"proxy": "http://a.example:1"}, {"ssl": False}, {"trace_configs": [aiohttp.TraceConfig()]}]
)
def test_network_settings_with_an_injected_session_are_refused(network: dict[str, Any]) -> None:
    """A proxy, a TLS context or traces would have no effect with a session, so they are refused."""
    with pytest.raises(ConfigurationError, match=f"{next(iter(network))} must not be given with http"):
        KlingClient(api_key="k", http=aiohttp.ClientSession, **network)


def test_an_injected_session_is_used_in_its_loop() -> None:
    """An injected session of the same event loop is used, and is not closed."""

    async def main() -> None:
        async with emulated() as (emulator, _), aiohttp.ClientSession() as http:
            options: dict[str, Any] = {
                "base_url": emulator.url,
                "clock": loop_clock,
                "headers": {"X-Own": "1"},
            }
            async with KlingClient(api_key=emulator.api_key, http=http, **options) as kling:
                assert await kling.list() == ()
            assert not http.closed

    run(main())
