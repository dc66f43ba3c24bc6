"""The session over real sockets, in virtual time, against a server that violates HTTP."""

import asyncio
import gzip
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import jwt
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from support.raw_server import (
    Loopback,
    Step,
    closes,
    hangs,
    loopback,
    refuses,
    resets,
    resets_early,
    resets_half_way,
    responds,
    sends,
    task,
)

from kling_expand.api import codec
from kling_expand.api.photo import MAX_BYTES, Photo, load_photo
from kling_expand.api.session import Body, Session
from kling_expand.config import Auth, KeyPair, Settings, StaticKey
from kling_expand.errors import (
    APIError,
    AuthenticationError,
    ClientClosed,
    ConfigurationError,
    DeadlineExceeded,
    ImageError,
    KlingError,
    NotFound,
    ProtocolError,
    RateLimited,
    ServerError,
    TokenExpired,
    TransportError,
)
from kling_expand.events import EventKind
from kling_expand.models import Task
from kling_expand.testing import loop_clock, run, virtual_time

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"
DONE = Task("1", "processing")


@asynccontextmanager
async def opened(server: Loopback | str, auth: Auth | None = None, **options: Any) -> AsyncIterator[Session]:
    """Open a session with a server, a key and these settings."""
    url = server if isinstance(server, str) else server.url
    auth = auth or StaticKey("api-key-kling-secret")
    async with Session(Settings(base_url=url, **options), auth, rng=Random(1)) as session:
        yield session


def pair() -> KeyPair:
    """Return credentials that can be renewed, on the loop's clock."""
    return KeyPair("access", "secret-0123456789-0123456789-0123456789", clock=loop_clock)


def get(session: Session, path: str = "/x", deadline_at: float | None = None) -> Any:
    """Send one GET request that returns a task."""
    return session.call("GET", path, codec.decode_task, deadline_at=deadline_at)


def post(session: Session, body: Callable[[], Body], deadline_at: float | None = None) -> Any:
    """Send one POST request that returns a task."""
    return session.call("POST", "/x", codec.decode_task, body=body, deadline_at=deadline_at)


def now() -> float:
    """Return the loop time."""
    return asyncio.get_running_loop().time()


# ------------------------------------------------------------------ tokens


@virtual_time
async def test_each_request_has_the_documented_headers() -> None:
    """Each request has the documented headers and path."""
    async with loopback(task()) as server, opened(server) as session:
        assert await get(session, "/v1/images/editing/expand/a%2Fb") == DONE
        (request,) = server.requests
        assert request.line == "GET /v1/images/editing/expand/a%2Fb HTTP/1.1"
        assert request.headers["authorization"] == "Bearer api-key-kling-secret"
        assert request.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "refusal", [refuses(1003, 401), refuses(1004, 401), refuses(1000, 401), responds(b"<p>401", 401)]
)
@virtual_time
async def test_a_refused_token_is_renewed(refusal: Step) -> None:
    """A refused token costs one more request."""

    async def later(exchange: Any) -> None:
        await asyncio.sleep(10)
        await refusal(exchange)

    async with loopback(later, task()) as server, opened(server, pair()) as session:
        assert await get(session) == DONE
        first, second = server.tokens()
        assert first != second


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1004])
@virtual_time
async def test_a_token_is_renewed_once(code: int) -> None:
    """A service that refuses every token gets two requests, and then the refusal is raised."""
    async with loopback(refuses(code, 401)) as server, opened(server, pair()) as session:
        with pytest.raises(AuthenticationError):
            await session.read("/x", codec.decode_task)
        assert len(server.requests) == 2


@virtual_time
async def test_a_refused_static_key_is_not_sent_again() -> None:
    """A refused static key is not sent again."""
    async with loopback(refuses(1002, 401)) as server, opened(server) as session:
        with pytest.raises(AuthenticationError, match="1002"):
            await get(session)
        assert len(server.requests) == 1


@virtual_time
async def test_the_services_clock_is_followed() -> None:
    """If the local clock is an hour slow, the second token is made by the service's clock."""
    ahead = loop_clock() + 3600
    refusal = refuses(1004, 401, Date=formatdate(ahead, usegmt=True))
    async with loopback(refusal, task()) as server, opened(server, pair()) as session:
        await get(session)
        claims = [jwt.decode(each, options={"verify_signature": False}) for each in server.tokens()]
        assert claims[1]["exp"] - claims[0]["exp"] == pytest.approx(3600, abs=2)


@virtual_time
async def test_a_token_is_made_after_the_pause() -> None:
    """The token is made after a pause, so it is valid however long the pause was."""
    async with loopback(refuses(1302, 429, Retry_After="3600"), task()) as server:
        async with opened(server, pair()) as session:
            with pytest.raises(RateLimited):
                await get(session)
            await get(session)
        assert jwt.decode(server.tokens()[1], options={"verify_signature": False})["nbf"] > loop_clock() - 400


# ------------------------------------------------------------------ pauses


@pytest.mark.parametrize("form", ["seconds", "date"])
@virtual_time
async def test_too_many_requests_pause_all_callers(form: str) -> None:
    """All callers wait at least until the requested time, and not much longer."""
    header = "60" if form == "seconds" else formatdate(loop_clock() + 60, usegmt=True)
    date = formatdate(loop_clock(), usegmt=True)
    async with loopback(refuses(1302, 429, Retry_After=header, Date=date), task()) as server:
        async with opened(server) as session:
            with pytest.raises(RateLimited):
                await get(session)
            closed = now()
            assert set(await asyncio.gather(*(get(session) for _ in range(20)))) == {DONE}
        first, *others = server.times()
        assert len(others) == 20
        assert first + 60 <= min(others)
        assert max(others) <= closed + 60 * 1.2
        assert len(set(others)) > 10  # and not all at once


@virtual_time
async def test_a_refusal_after_a_renewal_pauses_too() -> None:
    """A 1302 on the second attempt of a call pauses the route like any other."""
    steps = refuses(1004, 401), refuses(1302, 429, Retry_After="60"), task()
    async with loopback(*steps) as server, opened(server, pair()) as session:
        with pytest.raises(RateLimited):
            await get(session)
        await get(session)
        assert server.times()[2] - server.times()[1] >= 60


@pytest.mark.parametrize("headers", [{}, {"Retry_After": "0"}, {"Retry_After": "soon"}])
@virtual_time
async def test_an_invalid_retry_after_still_leads_to_a_pause(headers: dict[str, str]) -> None:
    """A `Retry-After` that is zero or invalid still leads to a pause."""
    async with loopback(refuses(1302, 429, **headers)) as server, opened(server) as session:
        for _ in range(5):
            with pytest.raises(RateLimited):
                await get(session)
        times = server.times()
        assert all(later - earlier >= 0.25 for earlier, later in pairwise(times))


@virtual_time
async def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    """A shorter pause does not end a longer one that is in force."""
    async with loopback(task()) as server, opened(server) as session:
        session.gates[EventKind.READ].close(50)
        session.gates[EventKind.READ].close(5)
        await get(session)
        assert server.times()[0] >= 50


@virtual_time
async def test_a_pause_beyond_the_deadline_is_not_waited_for() -> None:
    """A caller fails at once if its deadline is before the end of the pause."""
    async with loopback(task()) as server, opened(server) as session:
        session.gates[EventKind.READ].close(50)
        with pytest.raises(DeadlineExceeded):
            await get(session, deadline_at=now() + 49)
        assert now() == 0
        assert server.requests == []


@pytest.mark.parametrize(
    ("code", "status"), [(1100, 429), (1102, 429), (1303, 429), (1304, 429), (5000, 500)]
)
@virtual_time
async def test_other_refusals_cause_no_pause(code: int, status: int) -> None:
    """Other refusals cause no pause, even with status 429."""
    async with loopback(refuses(code, status, Retry_After="60"), task()) as server, opened(server) as session:
        with pytest.raises(KlingError):
            await get(session)
        await get(session)
        assert now() < 1


GATES = [EventKind.CREATE, EventKind.READ, EventKind.LIST]


@virtual_time
async def test_pauses_double_without_a_header_and_reset_after_a_success() -> None:
    """Without `Retry-After` the pauses are 1, 2, 4 ... 60 s, and 1 s again after a success."""
    refused = refuses(1302, 429)
    async with loopback(*[refused] * 9, task(), refused, task()) as server, opened(server) as session:
        for _ in range(9):
            with pytest.raises(RateLimited):
                await get(session)
        await get(session)
        with pytest.raises(RateLimited):
            await get(session)
        await get(session)
    steps = [later - earlier for earlier, later in pairwise(server.times())]
    for step, least in zip(steps, [1, 2, 4, 8, 16, 32, 60, 60, 60, 0, 1], strict=True):
        assert least <= step <= 1.1 * least + 0.1


@virtual_time
async def test_simultaneous_refusals_count_as_one() -> None:
    """Twenty requests that are refused together lead to the same pause as one."""
    async with loopback(*[refuses(1302, 429)] * 20, task()) as server, opened(server) as session:
        await asyncio.gather(*(get(session) for _ in range(20)), return_exceptions=True)
        await get(session)
    assert 1 <= server.times()[-1] <= 1.2


@pytest.mark.parametrize("kind", GATES)
@virtual_time
async def test_each_route_has_its_own_pause(kind: EventKind) -> None:
    """A pause of one route does not delay the other routes."""
    async with loopback(task()) as server, opened(server) as session:
        session.gates[kind].close(50)
        calls: dict[EventKind, Callable[[], Any]] = {
            EventKind.CREATE: lambda: post(session, partial(Body, b"{}")),
            EventKind.READ: lambda: get(session),
            EventKind.LIST: lambda: session.call("GET", "/x", codec.decode_task, params={"pageNum": 1}),
        }
        for each in GATES:
            await calls[each]() if each is not kind else None
        assert now() < 1
        await calls[kind]()
        assert now() >= 50


@virtual_time
async def test_a_wait_beyond_max_retry_after_raises_and_blocks_no_later_call() -> None:
    """The error has the requested wait, and the next call is made after `max_retry_after`."""
    refused = refuses(1302, 429, Retry_After="86400")
    async with loopback(refused, task()) as server, opened(server) as session:
        with pytest.raises(RateLimited) as caught:
            await session.read("/x", codec.decode_task)
        assert (caught.value.retry_after, caught.value.retryable, now() < 1) == (86400, False, True)
        await get(session)
    assert 300 <= server.times()[1] <= 331


@pytest.mark.parametrize("form", ["7.5", "date", "date without Date"])
@virtual_time
async def test_every_form_of_retry_after_is_obeyed(form: str) -> None:
    """`Retry-After` may be a fraction, or a date by the service's clock or else by the local one."""
    headers = {"Retry_After": "7.5" if form == "7.5" else formatdate(loop_clock() + 60, usegmt=True)}
    headers |= {"Date": formatdate(loop_clock(), usegmt=True)} if form == "date" else {}
    auth = StaticKey("api-key-kling-secret")
    async with loopback(refuses(1302, 429, **headers), task()) as server:
        settings = Settings(base_url=server.url)
        async with Session(settings, auth, rng=Random(1), clock=loop_clock) as session:
            await session.read("/x", codec.decode_task)
    asked = 7.5 if form == "7.5" else 60
    assert asked - 1 <= server.times()[1] <= 1.1 * asked + 1


@virtual_time
async def test_a_call_that_waits_for_the_rate_limit_can_be_cancelled() -> None:
    """A call that waits for the rate limit can be cancelled, and nothing is sent."""
    bodies: list[Body] = []

    def body() -> Body:
        bodies.append(Body(b"{}"))
        return bodies[-1]

    async with loopback(task()) as server, opened(server) as session:
        session.gates[EventKind.CREATE].close(50)
        waiting = asyncio.create_task(post(session, body))
        await asyncio.sleep(5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (server.requests, bodies, now()) == ([], [], 5)


# ------------------------------------------------------------------ permanent refusals


@pytest.mark.parametrize("status", [400, 404, 405, 413, 418, 451])
@pytest.mark.parametrize("page", [b"<h1>Too large</h1>", b'{"error": "too large"}', b"[]"])
@virtual_time
async def test_a_4xx_without_an_envelope_is_not_retried(status: int, page: bytes) -> None:
    """A 4xx without an envelope is not retried. The error has the status and the beginning of the body."""
    async with loopback(responds(page, status)) as server, opened(server) as session:
        with pytest.raises(APIError) as caught:
            await session.read("/x/1", codec.decode_task)
        assert (caught.value.status, caught.value.retryable, len(server.requests)) == (status, False, 1)
        assert repr(page.decode())[1:-1] in str(caught.value)


@virtual_time
async def test_a_404_for_the_api_path_mentions_base_url() -> None:
    """A 404 for the API's own path leads to an error about `base_url`. A 404 for a task does not."""
    async with loopback(responds(b"<h1>Not Found</h1>", 404)) as server, opened(server) as session:
        with pytest.raises(NotFound, match=f"base_url must be .*: {server.url} has no /v1/images/editing"):
            await session.read("/v1/images/editing/expand", codec.decode_tasks, params={"pageNum": 1})
        with pytest.raises(NotFound) as caught:
            await session.read("/v1/images/editing/expand/1", codec.decode_task)
        assert "base_url" not in str(caught.value)


# ------------------------------------------------------------------ first contact


@virtual_time
async def test_a_refused_first_connection_is_retried_for_connect_timeout() -> None:
    """A refused first connection is retried for `connect_timeout`, and then its cause is raised."""
    async with opened(f"http://127.0.0.1:{nowhere()}") as session:
        with pytest.raises(TransportError, match="cannot be reached") as caught:
            await session.read("/x", codec.decode_task)
        assert (caught.value.retryable, caught.value.sent) == (False, False)
        assert 10 <= now() <= 10.5


@virtual_time
async def test_a_later_refused_connection_is_retried_for_retry_timeout() -> None:
    """After a first response, a refused connection is retried for the whole `retry_timeout`."""
    async with loopback(task()) as server, opened(server) as session:
        await get(session)
        url, session._settings = (
            server.url,
            evolve(session._settings, base_url=f"http://127.0.0.1:{nowhere()}"),
        )
        assert url != session._settings.base_url
        with pytest.raises(TransportError) as caught:
            await session.read("/x", codec.decode_task)
        assert caught.value.retryable
        assert 90 <= now() <= 121


@pytest.fixture
def untrusted(tmp_path: Path) -> ssl.SSLContext:
    """Return the TLS context of a server with a self-signed certificate."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


async def test_an_untrusted_certificate_is_not_retried(untrusted: ssl.SSLContext) -> None:
    """An untrusted certificate is not retried, and the message says why it is not trusted."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=untrusted)
    async with server, opened(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as session:
        began = now()
        with pytest.raises(TransportError, match=r"certificate of 127\.0\.0\.1 is not trusted") as caught:
            await session.read("/x", codec.decode_task)
        assert (caught.value.retryable, now() - began < 5) == (False, True)


def nowhere() -> int:
    """Return a port on which no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


# ------------------------------------------------------------------ connections


@virtual_time
async def test_a_fresh_request_never_takes_a_pooled_connection() -> None:
    """The retry of a create uses a new connection, which is not returned to the pool."""
    async with loopback(task()) as server, opened(server) as session:
        body = partial(Body, b"{}")
        for fresh in (False, False, True, True, False):
            await session.call("POST", "/x", codec.decode_task, body=body, fresh=fresh)
        ports = [each.writer.get_extra_info("peername")[1] for each in server.requests]
        assert ports[0] == ports[1] == ports[4]
        assert len({*ports}) == 3


# ------------------------------------------------------------------ long responses


@pytest.mark.parametrize(("params", "limit"), [(None, 4 << 20), ({"pageNum": 1}, 32 << 20)])
@virtual_time
async def test_a_long_response_is_refused_before_it_has_arrived(
    params: dict[str, Any] | None, limit: int
) -> None:
    """More than 4 MB for a task, or 32 MB for a list, is refused before the whole response has arrived."""

    async def endless(exchange: Any) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            exchange.writer.write(bytes(1 << 20))
            await exchange.writer.drain()

    async with loopback(endless) as server, opened(server) as session:
        with pytest.raises(ProtocolError, match=f"the response must have at most {limit} bytes"):
            await session.call("GET", "/x", codec.decode_task, params=params)


async def test_a_long_response_does_not_block_the_loop() -> None:
    """Parsing a list of 20 MB does not block the event loop. A short response needs no thread."""
    images = [{"index": 0, "url": "https://a/" + "x" * 4200} for _ in range(9)]
    tasks = [
        {"task_id": str(n), "task_status": "succeed", "task_result": {"images": images}} for n in range(500)
    ]
    raw = json.dumps({"code": 0, "message": "", "request_id": "r", "data": tasks}).encode()
    response, longest = codec.Response(200, {}, raw), 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.process_time()  # CPU time, because other processes may be busy
            await asyncio.sleep(0)
            longest = max(longest, time.process_time() - before)

    async with opened("http://127.0.0.1:9") as session:
        beside = asyncio.create_task(tick())
        found = await session._open(response, codec.decode_tasks, "/x", EventKind.LIST, 0.0)
        beside.cancel()
    assert len(found) == 500
    assert longest < 0.25  # seconds of this process; usually 0.05


# ------------------------------------------------------------------ foreign errors

OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(40 << 20), 1)
NETWORK_FAULTS: dict[str, Step] = {
    "reset": resets,
    "reset early": resets_early,
    "closed": closes,
    "nothing": sends(b"", close=True),
    "garbage": sends(b"\x16\x03\x01\x00\r\n\r\n" * 20, close=True),
    "no http": sends(b"SSH-2.0-OpenSSH_9.6\r\n", close=True),
    "half a status": sends(b"HTTP/1.1 2", close=True),
    "half a header": sends(OK + b"Content-Le", close=True),
    "cut body": sends(OK + b"Content-Length: 500\r\n\r\n{", close=True),
    "cut chunks": sends(OK + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"co', close=True),
    "bad chunk": sends(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", close=True),
    "bad length": sends(OK + b"Content-Length: -1\r\n\r\n{}", close=True),
    "two lengths": sends(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", close=True),
    "no gzip": responds(b"this is not gzip", Content_Encoding="gzip"),
    "half a gzip": responds(gzip.compress(b"{}" * 999)[:20], Content_Encoding="gzip"),
    "no deflate": responds(b"\xff\xff\xff", Content_Encoding="deflate"),
    "no brotli": responds(b"\xff\xff\xff", Content_Encoding="br"),
    "unknown coding": responds(b"\xff\xff\xff", Content_Encoding="rot13"),
    "a bomb": responds(BOMB, Content_Encoding="gzip"),
    "long header": sends(OK + b"X: " + b"x" * 100_000 + b"\r\nContent-Length: 2\r\n\r\n{}", close=True),
    "many headers": sends(OK + b"X: x\r\n" * 50_000 + b"Content-Length: 2\r\n\r\n{}", close=True),
    "bad header": sends(OK + b"X\x00Y: x\r\nContent-Length: 2\r\n\r\n{}", close=True),
    "html": responds(b"<!DOCTYPE html><h1>Welcome</h1>"),
    "empty": responds(b""),
    "no content": sends(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "not modified": sends(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "utf-16": responds('{"code":0}'.encode("utf-16")),
    "latin": responds(b'{"code":0,"message":"\xe9"}'),
    "an upgrade": sends(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n{}", close=True),
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", NETWORK_FAULTS)
@virtual_time
async def test_foreign_errors_are_converted(name: str, method: str) -> None:
    """A network failure or a faulty response raises a retryable error, and the session stays usable."""
    body = partial(Body, b'{"image":"', None, b'"}') if method == "POST" else None
    async with (
        loopback(*[NETWORK_FAULTS[name]] * 2, task()) as server,
        opened(server, read_timeout=5) as session,
    ):
        with pytest.raises((TransportError, ProtocolError)) as caught:
            await session.call(method, "/x", codec.decode_task, body=body)
        assert caught.value.retryable
        assert "secret" not in repr(caught.value) + str(caught.value) + str(caught.value.__cause__)
        server.steps.clear()
        server.steps.append(task())
        assert await get(session) == DONE


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@virtual_time
async def test_no_redirect_is_followed(status: int) -> None:
    """A redirect is not followed, so neither the credentials nor the body are sent elsewhere."""
    async with loopback(task()) as elsewhere:
        moved = responds(b"", status, Location=f"{elsewhere.url}/x?token=1")
        async with loopback(moved) as server, opened(server) as session:
            for body in (None, partial(Body, b"{}")):
                with pytest.raises(ConfigurationError, match="base_url") as caught:
                    await session.call("POST", "/x", codec.decode_task, body=body)
                assert f"{elsewhere.url}/x" in str(caught.value)
                assert "token" not in str(caught.value)
        assert elsewhere.requests == []


@virtual_time
async def test_a_cookie_is_not_kept() -> None:
    """Cookies are not kept between calls."""
    async with loopback(task(Set_Cookie="a=b")) as server, opened(server) as session:
        await get(session)
        await get(session)
        assert "cookie" not in server.requests[1].headers


@virtual_time
async def test_a_refused_connection_has_sent_nothing() -> None:
    """A refused connection is reported as not sent."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with opened(f"http://127.0.0.1:{taken.getsockname()[1]}") as session:
            with pytest.raises(TransportError) as caught:
                await post(session, partial(Body, b"{}"))
            assert caught.value.sent is False


# ------------------------------------------------------------------ bodies


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a photo of exactly 10 MB, which is the limit."""
    path = tmp_path_factory.mktemp("photos") / "big.jpg"
    whole = PHOTO.read_bytes()
    cut = whole.rindex(b"\xff\xd9")
    path.write_bytes(pad(whole[:2], MAX_BYTES - len(whole)) + whole[2:cut] + whole[cut:])
    return path


def pad(start: bytes, size: int) -> bytes:
    """Return the beginning of a JPEG, extended by *size* bytes of comments."""
    parts = [start]
    while size:
        take = min(size, 65_000)
        take -= 4 if 0 < size - take < 4 else 0
        parts.append(b"\xff\xfe" + (take - 2).to_bytes(2) + Random(size).randbytes(take - 4))
        size -= take
    return b"".join(parts)


def photo_digest(path: Path) -> str:
    """Return the digest of a file's content, computed without the SDK."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def json_of(photo: Photo, server: Loopback) -> Any:
    """Send a photo, and return the JSON that arrives."""
    async with opened(server) as session:
        await post(session, partial(Body, b'{"image":"', photo, b'","n":1}'))
    request = server.requests[-1]
    assert int(request.headers["content-length"]) == len(request.body)
    assert "transfer-encoding" not in request.headers
    return json.loads(request.body)


@virtual_time
async def test_a_photo_of_ten_megabytes_arrives_unchanged(big: Path) -> None:
    """A photo of 10 MB arrives unchanged and with an exact Content-Length."""
    async with loopback(task()) as server:
        sent = await json_of(await load_photo(big), server)
        digest = hashlib.sha256(b64decode(sent["image"], validate=True)).hexdigest()
        assert digest == photo_digest(big)
        assert sent["n"] == 1


@pytest.mark.parametrize("source", [PHOTO, PHOTO.read_bytes(), "https://example.com/dog.png?a=b"])
@virtual_time
async def test_every_source_has_its_exact_length(source: Any) -> None:
    """Paths, bytes and URLs are sent with an exact Content-Length."""
    async with loopback(task()) as server:
        sent = await json_of(await load_photo(source), server)
        expected = source if isinstance(source, str) else PHOTO.read_bytes()
        assert (sent["image"] if isinstance(source, str) else b64decode(sent["image"])) == expected


@virtual_time
async def test_a_body_is_sent_again_completely(big: Path) -> None:
    """After a refused token, the same complete body is sent again."""
    async with loopback(refuses(1004, 401), task()) as server, opened(server, pair()) as session:
        photo = await load_photo(big)
        await post(session, partial(Body, b'{"image":"', photo, b'"}'))
        first, second = (hashlib.sha256(each.body).digest() for each in server.requests)
        assert first == second


@virtual_time
async def test_a_photo_that_changes_is_not_sent(tmp_path: Path, big: Path) -> None:
    """A photo that changes while it is sent raises `ImageError`, and no complete request is sent."""
    path = tmp_path / "photo.jpg"
    shutil.copyfile(big, path)
    photo = await load_photo(path)
    with open(path, "r+b") as file:  # noqa: ASYNC230, PTH123 - nothing else runs on this loop
        file.seek(-100, 2)
        file.write(bytes(98))
    async with loopback(task()) as server, opened(server) as session:
        with pytest.raises(ImageError, match="changed"):
            await post(session, partial(Body, b'{"image":"', photo, b'"}'))


async def sent(step: Step, photo: Photo | None) -> bool:
    """Return whether the error of a failed create says that the request may have arrived."""
    async with loopback(step) as server, opened(server, create_timeout=5) as session:
        with pytest.raises(TransportError) as caught:
            await post(session, partial(Body, b'{"image":"', photo, b'"}'))
        return caught.value.sent


@virtual_time
async def test_sent_is_false_only_if_the_request_cannot_have_arrived(big: Path) -> None:
    """`sent` is False only if the service cannot have received the whole request."""
    photo = await load_photo(big)
    assert await sent(resets_early, photo) is False
    assert await sent(resets_half_way, photo) is False
    assert await sent(resets, photo) is True
    assert await sent(closes, photo) is True
    assert await sent(hangs, photo) is True


@pytest.mark.parametrize("step", [resets_early, resets_half_way, resets, closes, hangs])
@virtual_time
async def test_a_small_body_counts_as_possibly_received(step: Step) -> None:
    """A small body fits into one packet, so it always counts as possibly received."""
    assert await sent(step, None) is True


@virtual_time
async def test_a_body_does_not_show_its_content() -> None:
    """A body shows its length, but not its content."""
    body = Body(b'{"image":"', None, b'"}')
    with pytest.raises(TypeError):
        body.decode()
    assert body.size == 12


@given(st.binary(min_size=1, max_size=50), st.binary(max_size=50), st.booleans())
def test_a_body_has_its_announced_length(head: bytes, tail: bytes, with_photo: bool) -> None:  # noqa: FBT001
    """A body yields the same bytes each time, and sets `sent` only with the last of them."""

    async def check() -> None:
        photo = await load_photo(PHOTO.read_bytes()) if with_photo else None
        body = Body(head, photo, tail)
        for _ in range(2):
            body.sent = False
            pieces = []
            async for piece in body.slices():
                pieces.append(piece)
                assert body.sent is (sum(map(len, pieces)) == body.size)
            whole = b"".join(pieces)
            middle = b64encode(PHOTO.read_bytes()) if with_photo else b""
            assert whole == head + middle + tail

    run(check())


# ------------------------------------------------------------------ timeouts and deadlines


@virtual_time
async def test_a_request_ends_at_the_deadline() -> None:
    """A request ends at its own timeout or at the deadline, whichever comes first."""
    async with loopback(hangs) as server, opened(server, read_timeout=20) as session:
        with pytest.raises(TransportError, match="in time"):
            await get(session, deadline_at=now() + 3)
        assert now() == pytest.approx(3, abs=0.01)
        began = now()
        with pytest.raises(TransportError, match="in time"):
            await get(session, deadline_at=now() + 300)
        assert now() - began == pytest.approx(20, abs=1.01)  # aiohttp rounds long timeouts up


@virtual_time
async def test_a_large_create_has_a_longer_timeout(big: Path) -> None:
    """A create with a large body has a longer timeout than a read."""
    photo = await load_photo(big)
    async with loopback(hangs) as server:
        async with opened(server, create_timeout=30, upload_speed=100_000) as session:
            with pytest.raises(TransportError):
                await post(session, partial(Body, b"", photo))
        expected = 30 + photo.encoded_length / 100_000
        assert now() == pytest.approx(expected, abs=1.01)


@virtual_time
async def test_no_request_is_made_after_the_deadline() -> None:
    """After the deadline the call fails without a request."""
    async with loopback(task()) as server, opened(server) as session:
        await asyncio.sleep(5)
        for deadline_at in (5.0, 1.0):
            with pytest.raises(DeadlineExceeded):
                await get(session, deadline_at=deadline_at)
        assert server.requests == []


# ------------------------------------------------------------------ retries of reads


@virtual_time
async def test_a_read_survives_transient_failures() -> None:
    """A read survives a reset, a 5xx, HTML, a truncated response and a refusal in a row."""
    half = sends(OK + b"Content-Length: 500\r\n\r\n{", close=True)
    steps = resets, refuses(5001, 503), responds(b"<html>"), half, refuses(1302, 429), responds(b"", 502)
    async with loopback(*steps, task()) as server, opened(server) as session:
        assert await session.read("/x", codec.decode_task, params={"pageNum": 1}) == DONE
        assert len(server.requests) >= 7
        assert {each.line for each in server.requests} == {"GET /x?pageNum=1 HTTP/1.1"}


@pytest.mark.parametrize("code", [1100, 1103, 1200, 1201, 1203, 1301, 1304])
@virtual_time
async def test_a_permanent_refusal_is_not_retried(code: int) -> None:
    """A permanent refusal is not retried."""
    async with loopback(refuses(code, 400)) as server, opened(server) as session:
        with pytest.raises(KlingError, match=str(code)):
            await session.read("/x", codec.decode_task)
        assert len(server.requests) == 1


@virtual_time
async def test_a_read_is_given_up_after_retry_timeout() -> None:
    """Waits grow, and the last error is raised after `retry_timeout`."""
    async with loopback(refuses(5000, 500)) as server, opened(server, retry_timeout=60) as session:
        with pytest.raises(ServerError):
            await session.read("/x", codec.decode_task)
        times = server.times()
        assert 30 < times[-1] <= 60
        assert 5 <= len(times) <= 15


@virtual_time
async def test_a_read_obeys_retry_after() -> None:
    """The `Retry-After` of a 503 is obeyed, and the wait is not shortened."""
    async with loopback(refuses(5001, 503, Retry_After="33"), task()) as server, opened(server) as session:
        await session.read("/x", codec.decode_task)
        first, second = server.times()
        assert 33 <= second - first < 40


@virtual_time
async def test_a_wait_beyond_retry_timeout_is_not_started() -> None:
    """A `Retry-After` of an hour ends the retries."""
    async with loopback(refuses(5001, 503, Retry_After="3600")) as server, opened(server) as session:
        with pytest.raises(ServerError):
            await session.read("/x", codec.decode_task)
        assert now() < 1


@virtual_time
async def test_a_read_does_not_wait_beyond_its_deadline() -> None:
    """A wait that would end after the deadline is not started."""
    async with loopback(refuses(5000, 500)) as server, opened(server) as session:
        with pytest.raises(DeadlineExceeded):
            await session.read("/x", codec.decode_task, deadline_at=now() + 10)
        assert now() <= 10
        assert len(server.requests) > 2


# ------------------------------------------------------------------ opening and closing


@virtual_time
async def test_a_closed_session_raises_client_closed() -> None:
    """A call before opening, during closing or after closing raises `ClientClosed`."""
    session = Session(Settings(), StaticKey("k"), rng=Random(1))
    with pytest.raises(ClientClosed):
        await get(session)
    async with loopback(task()) as server:
        async with opened(server) as session:
            session.gates[EventKind.READ].close(5)
            waiting = asyncio.ensure_future(get(session))
            await asyncio.sleep(1)
        with pytest.raises(ClientClosed):
            await waiting
        with pytest.raises(ClientClosed):
            await get(session)
        assert server.requests == []


@virtual_time
async def test_closing_ends_a_request_in_progress() -> None:
    """A request that is in progress at closing raises an error of this package."""
    async with loopback(hangs) as server:
        async with opened(server) as session:
            waiting = asyncio.ensure_future(get(session))
            await asyncio.sleep(1)
        with pytest.raises(KlingError):
            await waiting


def test_a_session_belongs_to_its_loop() -> None:
    """A session that is used in another event loop raises an error instead of hanging."""

    async def enter() -> Session:
        return await Session(Settings(), StaticKey("k"), rng=Random(1)).__aenter__()

    with asyncio.Runner() as first:
        session = first.run(enter())
        with pytest.raises(ConfigurationError, match="event loop"):
            run(get(session))
        first.run(session.__aexit__(None, None, None))


@virtual_time
async def test_an_injected_session_stays_open() -> None:
    """An injected session is neither closed nor changed."""
    async with aiohttp.ClientSession(raise_for_status=True) as http, loopback(refuses(1200, 400)) as server:
        settings = Settings(base_url=server.url)
        async with Session(settings, StaticKey("k"), http=http, rng=Random(1)) as session:
            with pytest.raises(KlingError, match="1200"):
                await get(session)
        assert not http.closed
        with pytest.raises(ClientClosed):
            await get(session)


@virtual_time
async def test_our_own_session_is_closed() -> None:
    """An aiohttp session that the session opened is closed with it."""
    async with loopback(task()) as server:
        async with opened(server) as session:
            http = session.http
            await get(session)
        assert http.closed


@virtual_time
async def test_requests_can_be_traced() -> None:
    """`trace_configs` are passed to the aiohttp session that the session opens."""
    traced: list[str] = []

    async def on_start(_: Any, __: Any, params: aiohttp.TraceRequestStartParams) -> None:
        traced.append(params.method)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(on_start)
    async with loopback(task()) as server:
        settings = Settings(base_url=server.url)
        async with Session(settings, StaticKey("k"), trace_configs=[trace], rng=Random(1)) as session:
            await get(session)
    assert traced == ["GET"]


@virtual_time
async def test_a_trace_hook_that_awaits_a_cancelled_task_fails_like_the_network() -> None:
    """A `CancelledError` of a trace hook is not a cancellation of the call, which is retried."""
    tries: list[str] = []

    async def on_start(_: Any, __: Any, params: aiohttp.TraceRequestStartParams) -> None:
        tries.append(params.method)
        if len(tries) == 1:
            raise asyncio.CancelledError

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(on_start)
    async with loopback(task()) as server:
        settings = Settings(base_url=server.url)
        async with Session(settings, StaticKey("k"), trace_configs=[trace], rng=Random(1)) as session:
            assert await session.read("/x", codec.decode_task) == DONE
    assert tries == ["GET", "GET"]


@virtual_time
async def test_a_cancellation_is_not_converted() -> None:
    """A cancellation is not converted to a network error, and the session stays usable."""
    async with loopback(hangs, task()) as server, opened(server) as session:
        waiting = asyncio.ensure_future(session.read("/x", codec.decode_task))
        await asyncio.sleep(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await get(session) == DONE


@virtual_time
async def test_an_expired_token_is_distinguished() -> None:
    """The final error shows that the token has expired."""
    async with loopback(refuses(1004, 401)) as server, opened(server, pair()) as session:
        with pytest.raises(TokenExpired):
            await get(session)
