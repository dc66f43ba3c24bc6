"""Downloads from a faulty server: the target directory has complete pictures or none."""

import asyncio
import errno
import functools
import io
import os
import random
import resource
import ssl
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from support.scripted_server import (
    Handler,
    Server,
    cuts,
    hangs,
    redirects,
    responds,
    sends_raw,
    serves_ranges,
)
from yarl import URL

from kling_expand.config import Settings
from kling_expand.downloads.downloader import (
    MAX_FILE_BYTES,
    MAX_OPEN_FILES,
    MAX_REDIRECTS,
    Downloads,
    ResultFile,
    ResultUrls,
    by_index,
    parse_url,
    redirect_url,
)
from kling_expand.downloads.files import FORMATS, SaveOptions, remove_stale_parts
from kling_expand.errors import (
    ClientClosed,
    DeadlineExceeded,
    DownloadError,
    InvalidRequest,
    KlingError,
    MissingExtra,
    NotFound,
    ResultExpired,
    ServerError,
    TaskNotFound,
)
from kling_expand.models import Image, Task
from kling_expand.testing import VirtualLoop, virtual_time

# A throwaway key and a self-signed certificate for a host that cannot exist.
CERTIFICATE = """\
-----BEGIN EC {} KEY-----
MHcCAQEEIMRUINmk53QOiePj8wBk2N/XLq2dDsyS8HdovnE+rRq3oAoGCCqGSM49
AwEHoUQDQgAEiMxirHq2L1GqDB5rYjKHvI3pBGJHhn1BdLCQg+Id1RrBzYan6NHt
8NJLdOWXjz/8t4u8bLiobCHPHyjH8Tdv+g==
-----END EC {} KEY-----
-----BEGIN CERTIFICATE-----
MIIBiDCCAS+gAwIBAgIUK5ick/auUBJVhq4Z5fHR8GaHJPkwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwObm9ib2R5LmludmFsaWQwIBcNMjYxMTIwMDY1MjAwWhgPMjEy
NjEwMjcwNjUyMDBaMBkxFzAVBgNVBAMMDm5vYm9keS5pbnZhbGlkMFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEiMxirHq2L1GqDB5rYjKHvI3pBGJHhn1BdLCQg+Id
1RrBzYan6NHt8NJLdOWXjz/8t4u8bLiobCHPHyjH8Tdv+qNTMFEwHQYDVR0OBBYE
FLrn+IQ97QmgE6U2eIHezoVvIa26MB8GA1UdIwQYMBaAFLrn+IQ97QmgE6U2eIHe
zoVvIa26MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgNFCWkXRw
wbvItSRp6JKFAoFGsP2Ppv9lhI+RBmE1+vACIDa4bzYkl1BVUIb5NquENGJnAkGc
aG845mZq+t9J3Tc6
-----END CERTIFICATE-----
""".format("PRIVATE", "PRIVATE")

TASK_ID, EXTERNAL_ID = "930810057590833241", "mine-1"


@functools.cache
def picture(kind: str = "PNG", size: int = 64, seed: int = 0) -> bytes:
    """Return a picture of noise, which cannot be compressed to a few bytes."""
    noise = random.Random(seed).randbytes(size * size * 3)
    out = io.BytesIO()
    Pillow.frombytes("RGB", (size, size), noise).save(out, kind)
    return out.getvalue()


PNG = picture()


def task(*urls: str, watermarks: bool = False, status: str = "succeed") -> Task:
    images = [Image(i, url, f"{url}-marked" if watermarks else None) for i, url in enumerate(urls)]
    return Task(TASK_ID, status, external_task_id=EXTERNAL_ID, images=tuple(images))


async def no_refresh(task_id: str) -> Task:
    raise AssertionError(f"no fresh URLs of {task_id} were needed")


@asynccontextmanager
async def started(
    *, session: dict[str, Any] | None = None, refresh: Any = no_refresh, **options: Any
) -> AsyncIterator[tuple[Server, Downloads]]:
    """Yield a server, and a `Downloads` with these settings and an aiohttp session with these arguments."""
    async with Server().running() as server, aiohttp.ClientSession(**(session or {})) as http:
        yield server, make_downloads(http, refresh, **options)


def make_downloads(http: aiohttp.ClientSession, refresh: Any = no_refresh, **options: Any) -> Downloads:
    return Downloads(http, Settings(**options), refresh=refresh, rng=random.Random(1))


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below *folder* by path, including hidden files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everything(folder: Path) -> list[Path]:
    """Return all paths below *folder*, including directories."""
    return [*folder.rglob("*")]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit every file to *size* bytes, like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def certified(path: Path) -> ssl.SSLContext:
    """Return the TLS context of a server with an untrusted certificate."""
    path.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def blames(error: KlingError) -> tuple[str | None, str | None]:
    return error.task_id, error.external_task_id


# ------------------------------------------------------------------ saved files


@virtual_time
async def test_images_are_saved_by_index_with_their_own_suffix(tmp_path: Path) -> None:
    """Paths are returned by index, whatever the service's order, and no other file is left."""
    jpeg, webp = picture("JPEG"), picture("WEBP")
    async with started() as (server, downloads):
        urls = [server.on(f"/{n}.bin", responds(body)) for n, body in enumerate([PNG, jpeg, webp])]
        images = tuple(Image(n, urls[n]) for n in (2, 0, 1))
        paths = await downloads.save(
            Task(TASK_ID, "succeed", images=images), tmp_path / "new" / "deep", SaveOptions(name="dog")
        )
    assert [tmp_path / "new" / "deep" / f"dog-{end}" for end in ("0.png", "1.jpg", "2.webp")] == list(paths)
    assert {"dog-0.png": PNG, "dog-1.jpg": jpeg, "dog-2.webp": webp} == files(tmp_path / "new" / "deep")


@virtual_time
async def test_a_watermarked_picture_is_saved_beside_the_plain_one(tmp_path: Path) -> None:
    """Each file has the suffix of its own format, and one path is returned for each image."""
    jpeg = picture("JPEG")
    async with started() as (server, downloads):
        one = task(server.on("/a", responds(PNG)), watermarks=True)
        server.on("/a-marked", responds(jpeg))
        paths = await downloads.save(one, tmp_path)
    assert (tmp_path / f"{TASK_ID}-0.png",) == paths
    assert {f"{TASK_ID}-0.png": PNG, f"{TASK_ID}-0-watermark.jpg": jpeg} == files(tmp_path)


@virtual_time
async def test_images_with_the_same_index_become_two_files(tmp_path: Path) -> None:
    """Two images with the same index become two files."""
    async with started() as (server, downloads):
        urls = [server.on("/a", responds(PNG)), server.on("/b", responds(picture(seed=1)))]
        images = tuple(Image(0, url) for url in urls)
        paths = await downloads.save(Task(TASK_ID, "succeed", images=images), tmp_path, SaveOptions(name="x"))
    assert [tmp_path / "x-0.png", tmp_path / "x-1.png"] == list(paths)


@virtual_time
async def test_a_big_picture_is_written_in_batches(tmp_path: Path) -> None:
    """A file that is flushed several times equals what was sent, even without a Content-Length."""
    big = picture(size=1100)

    async def streamed(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for start in range(0, len(big), 70_000):
            await response.write(big[start : start + 70_000])
        return response

    async with started() as (server, downloads):
        await downloads.save(task(server.on("/a", streamed)), tmp_path / "a.png")
    assert {"a.png": big} == files(tmp_path)


@virtual_time
async def test_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    """A result has the permissions of any new file, and not those of a temporary file."""
    (tmp_path / "ordinary").touch()
    async with started() as (server, downloads):
        [path] = await downloads.save(task(server.on("/a", responds(PNG))), tmp_path)
    assert (tmp_path / "ordinary").stat().st_mode == path.stat().st_mode


@virtual_time
async def test_a_compressed_response_is_decompressed(tmp_path: Path) -> None:
    """A response that is compressed despite ``Accept-Encoding: identity`` is decompressed."""

    async def squeezed(_request: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(body=PNG, headers={"ETag": '"1"'})
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with started() as (server, downloads):
        await downloads.save(task(server.on("/a", squeezed)), tmp_path / "a.png")
        assert server.heads("Accept-Encoding") == ["identity"]
    assert files(tmp_path) == {"a.png": PNG}


@virtual_time
async def test_open_files_are_bounded_over_all_tasks(tmp_path: Path) -> None:
    """All tasks together stay within one limit on requests and open files, and all are saved."""
    under_way = most = most_files = 0

    async def counted(_request: web.BaseRequest) -> web.StreamResponse:
        nonlocal under_way, most, most_files
        under_way += 1
        most = max(most, under_way)
        most_files = max(most_files, sum(name.endswith(".part") for name in files(tmp_path)))
        for _ in range(20):  # one jump of the clock may come before a request that is still on its way
            await asyncio.sleep(0.05)
        under_way -= 1
        return web.Response(body=PNG)

    async with started() as (server, downloads):
        url = server.on("/a", counted)
        jobs = [downloads.save(task(*[url] * 9), tmp_path, SaveOptions(name=f"x{n}")) for n in range(9)]
        await asyncio.gather(*jobs)
    assert (most, most_files, len(files(tmp_path))) == (MAX_OPEN_FILES, MAX_OPEN_FILES, 81)


# ------------------------------------------------------------------ faulty responses


TRANSIENT: dict[str, Handler] = {
    "HTML under 200": responds(b"<html><body>please wait</body></html>", Content_Type="image/png"),
    "nothing": responds(b""),
    "few bytes": responds(PNG[:5]),
    "cut short under its right length": responds(PNG[:-1]),
    "cut in the middle": cuts(PNG, 5000),
    "cut before the first byte": cuts(PNG, 0),
    "no length and cut": sends_raw("HTTP/1.1 200 OK", PNG[:-20]),
    "a length too small": sends_raw(f"HTTP/1.1 200 OK\nContent-Length: {len(PNG) - 30}", PNG),
    "a chunk cut": sends_raw("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"ffff\r\n" + PNG[:100]),
    "not HTTP": sends_raw("SSH-2.0-OpenSSH_9.9"),
    "an endless header": sends_raw("HTTP/1.1 200 OK\nX-Long: " + "x" * 100_000),
    "reset": sends_raw(""),
    "500": responds(b"sorry", 500),
    "503 with a date that is none": responds(b"", 503, Retry_After="soon"),
    "204": responds(b"", 204),
    "429": responds(b"slow down", 429),
    "a part that was not requested": responds(
        PNG[10:], 206, Content_Range=f"bytes 10-{len(PNG) - 1}/{len(PNG)}"
    ),
    "a redirect to nowhere": responds(b"", 302),
    "silence": hangs,
    "an unknown encoding": responds(PNG, Content_Encoding="gzip"),
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT.keys())
@pytest.mark.parametrize("times", [1, 3])
@virtual_time
async def test_a_faulty_response_is_retried(tmp_path: Path, fault: Handler, times: int) -> None:
    """After any faulty response, the next complete picture is saved."""
    async with started() as (server, downloads):
        url = server.on("/a", *[fault] * times, responds(PNG))
        await downloads.save(task(url), tmp_path / "a.png")
    assert files(tmp_path) == {"a.png": PNG}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT.keys())
@virtual_time
async def test_lasting_faults_raise_a_download_error(tmp_path: Path, fault: Handler) -> None:
    """After `retry_timeout`, a `DownloadError` has the task's ids, and no file is left."""
    async with started(retry_timeout=100.0) as (server, downloads):
        with pytest.raises(DownloadError) as caught:
            await downloads.save(task(server.on("/a", fault)), tmp_path / "a.png")
        assert len(server.requests) > 3
    assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)
    assert files(tmp_path) == {}
    assert asyncio.get_running_loop().time() <= 100.0 + 21.0  # the last attempt may take `read_timeout`


@virtual_time
async def test_an_unreachable_server_is_given_up(tmp_path: Path) -> None:
    """A refused connection is retried, and finally raises a `DownloadError`."""
    async with Server().running() as server:
        url = server.on("/a", responds(PNG))

    async def refresh(_task_id: str) -> Task:
        return task(url)

    async with aiohttp.ClientSession() as http:
        downloads = make_downloads(http, refresh)
        with pytest.raises(DownloadError, match="connection failed"):
            await downloads.save(task(url), tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry_After": "77"}, 77.0),
        ({"Retry_After": "Wed, 21 Oct 2026 07:29:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 60.0),
    ],
)
@virtual_time
async def test_retry_after_is_obeyed(tmp_path: Path, headers: dict[str, str], wait: float) -> None:
    """The next attempt is made at the requested time. A date is compared with the server's own clock."""
    times: list[float] = []

    async def noted(_request: web.BaseRequest) -> web.StreamResponse:
        times.append(asyncio.get_running_loop().time())
        return await (responds(b"", 429, **headers) if len(times) == 1 else responds(PNG))(_request)

    async with started() as (server, downloads):
        await downloads.save(task(server.on("/a", noted)), tmp_path)
    assert wait == pytest.approx(times[1] - times[0])


@virtual_time
async def test_a_wait_beyond_retry_timeout_is_not_started(tmp_path: Path) -> None:
    """A requested wait that is longer than `retry_timeout` ends the download at once."""
    async with started(retry_timeout=10.0) as (server, downloads):
        url = server.on("/a", responds(b"", 503, Retry_After="11"))
        with pytest.raises(DownloadError, match="HTTP 503"):
            await downloads.save(task(url), tmp_path)
        assert len(server.requests) == 1
    assert asyncio.get_running_loop().time() < 10


@virtual_time
async def test_one_bad_image_does_not_affect_the_others(tmp_path: Path) -> None:
    """The other images are saved before the error is raised."""
    async with started(retry_timeout=5.0) as (server, downloads):
        urls = [
            server.on("/a", responds(b"", 500)),
            server.on("/b", responds(b"", 500, Retry_After="1"), responds(PNG)),
        ]
        with pytest.raises(DownloadError):
            await downloads.save(task(*urls), tmp_path, SaveOptions(name="x"))
    assert files(tmp_path) == {"x-1.png": PNG}


# ------------------------------------------------------------------ resuming


STRONG = [
    {"ETag": '"v1"'},
    {"Last_Modified": "Wed, 21 Oct 2026 07:00:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"},
]
WEAK = [
    {},
    {"ETag": 'W/"v1"'},
    {"ETag": '"caf\xe9"'},
    {"Last_Modified": "Wed, 21 Oct 2026 07:27:59 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"},
    {"Last_Modified": "yesterday", "Date": "today"},
]


@pytest.mark.parametrize("headers", STRONG)
@virtual_time
async def test_an_interrupted_download_is_resumed(tmp_path: Path, headers: dict[str, str]) -> None:
    """The received bytes are kept, and the rest is requested on condition that the file is unchanged."""
    async with started() as (server, downloads):
        url = server.on("/a", cuts(PNG, 5000, **headers), serves_ranges(PNG, **headers))
        await downloads.save(task(url), tmp_path / "a.png")
        assert server.heads("Range") == [None, "bytes=5000-"]
        assert [None, next(iter(headers.values()))] == server.heads("If-Range")
    assert files(tmp_path) == {"a.png": PNG}


@pytest.mark.parametrize("headers", WEAK)
@virtual_time
async def test_without_a_strong_validator_a_download_starts_again(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    """Without a strong validator, a download is not resumed."""
    async with started() as (server, downloads):
        url = server.on("/a", cuts(PNG, 5000, **headers), serves_ranges(PNG, **headers))
        await downloads.save(task(url), tmp_path / "a.png")
        assert server.heads("Range") == [None, None]
    assert files(tmp_path) == {"a.png": PNG}


OTHER = picture(seed=9)
REST = f"bytes 5000-{len(PNG) - 1}/{len(PNG)}"
PLAUSIBLE = bytes(len(PNG) - 5012) + PNG[-12:]  # as long as the rest, and with the end of a picture
WRONG: dict[str, Handler] = {
    "from elsewhere, but as long": responds(
        PLAUSIBLE, 206, Content_Range=f"bytes 4000-{len(PNG) - 1001}/{len(PNG)}"
    ),
    "of another size, and whole": responds(
        b"!" + PLAUSIBLE, 206, Content_Range=f"bytes 5000-{len(PNG)}/{len(PNG) + 1}"
    ),
    "ignored": responds(PNG, ETag='"v1"'),
    "another file, whole": responds(OTHER, ETag='"v2"'),
    "another file's rest": responds(OTHER[5000:], 206, ETag='"v2"', Content_Range=REST),
    "from elsewhere": responds(PNG[4000:], 206, Content_Range=f"bytes 4000-{len(PNG) - 1}/{len(PNG)}"),
    "of another size": responds(PNG[5000:], 206, Content_Range=f"bytes 5000-{len(PNG)}/{len(PNG) + 1}"),
    "without a range": responds(PNG[5000:], 206),
    "a number no machine holds": responds(PNG[5000:], 206, Content_Range=f"bytes {'9' * 5000}-1/2"),
    "a range that is none": responds(PNG[5000:], 206, Content_Range="bytes 5000-"),
    "too much": responds(PNG[5000:] + b"more", 206, Content_Range=REST),
    "HTML": responds(b"<html>", 206, Content_Range=REST),
    "zipped": responds(PNG[5000:], 206, Content_Range=REST, Content_Encoding="gzip"),
    "416": responds(b"", 416, Content_Range=f"bytes */{len(PNG)}"),
    "HTML instead": responds(b"<html>not now</html>"),
}


@pytest.mark.parametrize("handler", WRONG.values(), ids=WRONG.keys())
@virtual_time
async def test_a_wrong_response_to_a_range_request_is_discarded(tmp_path: Path, handler: Handler) -> None:
    """Whatever response follows a range request, the file is one picture and not a mixture of two."""
    async with started() as (server, downloads):
        url = server.on("/a", cuts(PNG, 5000, ETag='"v1"'), handler, responds(PNG, ETag='"v1"'))
        [path] = await downloads.save(task(url), tmp_path / "a.png")
    assert path.read_bytes() in {PNG, OTHER}
    assert [*files(tmp_path)] == ["a.png"]


@virtual_time
async def test_a_server_may_send_the_rest_in_pieces(tmp_path: Path) -> None:
    """A 206 that is shorter than the rest, or has no total size, is resumed again."""
    size = len(PNG)
    async with started() as (server, downloads):
        url = server.on(
            "/a",
            cuts(PNG, 1000, ETag='"v1"'),
            responds(PNG[1000:2000], 206, Content_Range=f"bytes 1000-1999/{size}"),
            responds(PNG[2000:], 206, Content_Range=f"bytes 2000-{size - 1}/*"),
        )
        await downloads.save(task(url), tmp_path / "a.png")
        assert server.heads("Range") == [None, "bytes=1000-", "bytes=2000-"]
    assert files(tmp_path) == {"a.png": PNG}


@virtual_time
async def test_a_range_response_may_give_the_total_size(tmp_path: Path) -> None:
    """If the first response has no length, a range response gives the total size."""
    size = len(PNG)
    async with started() as (server, downloads):
        url = server.on(
            "/a",
            sends_raw('HTTP/1.1 200 OK\nETag: "v1"\nTransfer-Encoding: chunked', b"ffff\r\n" + PNG[:1000]),
            responds(PNG[1000:2000], 206, Content_Range=f"bytes 1000-1999/{size}"),
            serves_ranges(PNG, ETag='"v1"'),
        )
        await downloads.save(task(url), tmp_path / "a.png")
        assert server.heads("Range") == [None, "bytes=1000-", "bytes=2000-"]
    assert files(tmp_path) == {"a.png": PNG}


UNUSABLE: dict[str, Handler] = {
    "HTML": responds(b"<html>please wait</html>", ETag='"v1"'),
    "cut short": responds(PNG[:-1], ETag='"v1"'),
    "compressed and cut": sends_raw(
        'HTTP/1.1 200 OK\nETag: "v1"\nContent-Encoding: gzip\nContent-Length: 99999',
        zlib.compress(PNG, wbits=31)[:9000],
    ),
}


@pytest.mark.parametrize("handler", UNUSABLE.values(), ids=UNUSABLE.keys())
@virtual_time
async def test_bytes_that_are_no_picture_are_not_resumed(tmp_path: Path, handler: Handler) -> None:
    """Bytes that are not the beginning of the picture are discarded, even with a strong entity tag."""
    async with started() as (server, downloads):
        url = server.on("/a", handler, serves_ranges(PNG, ETag='"v1"'))
        await downloads.save(task(url), tmp_path / "a.png")
        assert server.heads("Range") == [None, None]
    assert files(tmp_path) == {"a.png": PNG}


# ------------------------------------------------------------------ expired URLs


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
@virtual_time
async def test_expired_urls_cost_one_read_of_the_task(tmp_path: Path, status: int) -> None:
    """Nine expired URLs cost one read of the task, and every picture is saved."""
    lookups: list[str] = []

    async def refresh(task_id: str) -> Task:
        lookups.append(task_id)
        await asyncio.sleep(1)
        return task(*(server.on(f"/fresh{n}", responds(PNG)) for n in range(9)))

    async with started(refresh=refresh) as (server, downloads):
        stale = task(*(server.on(f"/stale{n}", responds(b"<Error/>", status)) for n in range(9)))
        await downloads.save(stale, tmp_path)
    assert lookups == [TASK_ID]
    assert len(files(tmp_path)) == 9


@pytest.mark.parametrize("status", ["processing", "succeed"])
@virtual_time
async def test_an_out_of_date_response_is_read_again(tmp_path: Path, status: str) -> None:
    """The read for a fresh URL may show the task as it was seconds earlier, and is then repeated."""

    async def refresh(_task_id: str) -> Task:
        lags = asyncio.get_running_loop().time() < 5
        return Task(TASK_ID, status) if lags else task(server.on("/fresh", responds(PNG)))

    async with started(refresh=refresh) as (server, downloads):
        await downloads.save(task(server.on("/a", responds(b"", 403))), tmp_path)
    assert len(files(tmp_path)) == 1


@virtual_time
async def test_only_a_task_that_has_ended_expires(tmp_path: Path) -> None:
    """If every response is out of date, the error does not advise to pay for the job again."""

    async def refresh(_task_id: str) -> Task:
        return Task(TASK_ID, "processing")

    async with started(refresh=refresh) as (server, downloads):
        with pytest.raises(DownloadError, match="as it was before its end; save it again later") as caught:
            await downloads.save(task(server.on("/a", responds(b"", 403))), tmp_path)
    assert not isinstance(caught.value, ResultExpired)


@pytest.mark.parametrize("moved", [True, False])
@virtual_time
async def test_an_unreachable_host_costs_one_read_of_the_task(tmp_path: Path, *, moved: bool) -> None:
    """A refused connection leads to one read of the task, and its URL is used at once."""
    lookups: list[str] = []
    async with Server().running() as gone:
        urls = [gone.on(f"/old{n}", responds(PNG)) for n in range(3)]

    async def refresh(task_id: str) -> Task:
        lookups.append(task_id)
        if not moved:
            raise ServerError("down", code=5000)
        return task(*(server.on(f"/new{n}", responds(PNG)) for n in range(3)))

    async with started(refresh=refresh, retry_timeout=5.0) as (server, downloads):
        if moved:
            await downloads.save(task(*urls), tmp_path)
            assert (lookups, len(files(tmp_path))) == ([TASK_ID], 3)
            assert asyncio.get_running_loop().time() < 1.0
            return
        with pytest.raises(DownloadError, match="connection failed"):
            await downloads.save(task(urls[0]), tmp_path)
    assert (lookups, files(tmp_path)) == ([TASK_ID], {})


@pytest.mark.parametrize(
    ("status", "kind"), [(403, ResultExpired), (404, ResultExpired), (451, DownloadError)]
)
@virtual_time
async def test_a_refused_fresh_url_ends_the_download(
    tmp_path: Path, status: int, kind: type[KlingError]
) -> None:
    """If a fresh URL is refused too, the download ends at once, with the ids in the error."""

    async def refresh(_task_id: str) -> Task:
        return task(f"{server.url}/a")

    async with started(refresh=refresh) as (server, downloads):
        with pytest.raises(DownloadError) as caught:
            await downloads.save(task(server.on("/a", responds(b"", status))), tmp_path)
        assert len(server.requests) == 2
    assert (kind, TASK_ID, EXTERNAL_ID) == (type(caught.value), *blames(caught.value))
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (Task(TASK_ID, "succeed"), ResultExpired),
        (TaskNotFound("Task not found by id", code=1201), ResultExpired),
        (ServerError("down", code=5000), ServerError),
    ],
)
@virtual_time
async def test_a_failed_read_of_the_task_is_raised(
    tmp_path: Path, response: Any, kind: type[KlingError]
) -> None:
    """A task that is unknown or has no images counts as expired. Other errors are raised with the ids."""

    async def refresh(_task_id: str) -> Task:
        if isinstance(response, Exception):
            raise response
        found: Task = response
        return found

    async with started(refresh=refresh) as (server, downloads):
        with pytest.raises(kind) as caught:
            await downloads.save(task(server.on("/a", responds(b"", 403))), tmp_path)
    assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)
    assert ("fresh=True" in str(caught.value)) == (kind is ResultExpired)
    assert files(tmp_path) == {}


# ------------------------------------------------------------------ URLs and headers


SECRETS = {"Authorization": "Bearer top-secret", "Cookie": "session=secret", "X-Api-Key": "secret"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@virtual_time
async def test_no_credential_is_sent_with_a_download(tmp_path: Path, status: int) -> None:
    """The session's default headers, cookies and middlewares do not affect downloads or redirects."""

    async def sign(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        request.headers["Authorization"] = "Bearer from-a-middleware"
        return await handler(request)

    jar = aiohttp.CookieJar(unsafe=True)
    async with started(session={"headers": SECRETS, "cookie_jar": jar, "middlewares": (sign,)}) as one:
        server, downloads = one
        jar.update_cookies({"token": "secret"}, URL(server.url))
        async with Server().running() as other:
            there = other.on("/b", responds(PNG))
            await downloads.save(task(server.on("/a", redirects(there, status))), tmp_path / "a.png")
            sent = [*server.requests, *other.requests]
    assert files(tmp_path) == {"a.png": PNG}
    assert len(sent) == 2
    for request in sent:
        assert not [header for header in request.headers.items() if "secret" in str(header).lower()]
        assert {"Authorization", "Cookie", "X-Api-Key"}.isdisjoint(request.headers)


@pytest.mark.filterwarnings("ignore:.*[Aa]uth:DeprecationWarning")
@virtual_time
async def test_neither_the_sessions_auth_nor_a_netrc_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credentials that aiohttp finds for a host are not sent either."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password top-secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for auth in (aiohttp.BasicAuth("me", "top-secret"), None):
        async with started(session={"trust_env": True, "auth": auth}) as (server, downloads):
            one = task(server.on("/a", responds(PNG)))
            await downloads.save(one, tmp_path / "a.png", SaveOptions(overwrite=True))
            assert server.heads("Authorization") == [None]


@virtual_time
async def test_a_proxy_of_the_session_is_used_without_its_headers(tmp_path: Path) -> None:
    """The session's proxy is used, but neither the proxy nor the server receives the default headers."""
    async with Server().running() as proxy:
        proxy.on("/a", responds(PNG))
        proxy.on("*", responds(b"", 502))  # a CONNECT request has no path
        async with started(session={"proxy": proxy.url, "headers": SECRETS}, retry_timeout=1.0) as (
            _,
            downloads,
        ):
            await downloads.save(task("http://pictures.invalid/a"), tmp_path / "a.png")
            with pytest.raises(DownloadError):
                await downloads.save(task("https://pictures.invalid/a"), tmp_path / "b.png")
        assert {request.method for request in proxy.requests} == {"GET", "CONNECT"}
        assert "secret" not in str([request.headers for request in proxy.requests])
    assert files(tmp_path) == {"a.png": PNG}


@virtual_time
async def test_a_password_in_a_url_is_not_sent(tmp_path: Path) -> None:
    """Credentials in a URL, from the service or a redirect, are not sent."""
    async with started() as (server, downloads):
        there = server.on("/b", responds(PNG)).replace("//", "//user:password@")
        url = server.on("/a", redirects(there)).replace("//", "//user:password@")
        await downloads.save(task(url), tmp_path / "a.png")
        assert server.heads("Authorization") == [None, None]


@virtual_time
async def test_a_signed_url_is_sent_as_it_is(tmp_path: Path) -> None:
    """The escapes in a signed URL are not changed, even after a redirect."""
    query = "?sig=a%2Fb%2bc%3D&x=%7E~+%20&empty="
    async with started() as (server, downloads):
        server.on("/b", responds(PNG))
        url = server.on("/a", redirects(f"/b{query}"))
        await downloads.save(task(f"{url}{query}"), tmp_path)
        assert [f"/a{query}", f"/b{query}"] == [request.raw_path for request in server.requests]


@virtual_time
async def test_a_url_with_letters_of_any_script_is_fetched(tmp_path: Path) -> None:
    """A URL with characters outside ASCII is encoded."""
    async with started() as (server, downloads):
        server.on("/ein Bär", responds(PNG))
        await downloads.save(task(f"{server.url}/ein Bär"), tmp_path / "a.png")
    assert files(tmp_path) == {"a.png": PNG}


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "//127.0.0.1/a.png",
        "a.png",
        "",
        "http://",
        "http:///a.png",
        "http://127.0.0.1:99999/a.png",
        "http://[::1/a.png",
        "http://127.0.0.1:x/a.png",
        "http://127.0.0.1:0/a.png",
        "http://a\r\nb/",
        "http://a..b/",
    ],
)
@pytest.mark.parametrize("hop", [False, True])
@virtual_time
async def test_only_http_is_fetched(tmp_path: Path, url: str, *, hop: bool) -> None:
    """Any other URL, and any other text, raises an error, and no file is saved."""

    async def refresh(_task_id: str) -> Task:
        return task(first)

    async with started(refresh=refresh, retry_timeout=5.0) as (server, downloads):
        first = (
            server.on("/a", sends_raw(f"HTTP/1.1 302 Found\nContent-Length: 0\nLocation: {url}"))
            if hop
            else url
        )
        server.on("/a.png", responds(b"", 503))  # the target of relative URLs
        server.on("/", responds(b"", 503))
        with pytest.raises((DownloadError, ResultExpired)) as caught:
            await downloads.save(task(first), tmp_path)
        assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)
    assert files(tmp_path) == {}


@virtual_time
async def test_at_most_five_redirects_are_followed(tmp_path: Path) -> None:
    """Five redirects are followed, and a sixth raises an error."""
    async with started() as (server, downloads):
        for n in range(MAX_REDIRECTS + 1):
            server.on(f"/{n}", redirects(f"/{n + 1}"))
        server.on(f"/{MAX_REDIRECTS + 1}", responds(PNG))
        await downloads.save(task(f"{server.url}/1"), tmp_path)
        with pytest.raises(DownloadError, match="redirects"):
            await downloads.save(task(f"{server.url}/0"), tmp_path / "other")


def _shown(error: BaseException) -> str:
    """Return what a log or a span shows of *error*, with the messages and arguments of the whole chain."""
    lines = [f"{error!r} {error.args!r}"]
    if cause := error.__cause__ if error.__suppress_context__ else error.__context__:
        lines.append(_shown(cause))
    return "\n".join(lines)


@virtual_time
async def test_no_query_is_in_a_traceback(tmp_path: Path) -> None:
    """The signature in a URL is a secret, which neither an error nor any of its causes contains."""
    faults = [
        *TRANSIENT.values(),
        responds(b"", 403),
        redirects("ftp://h/?sig=secret"),
        redirects("http://[?sig=secret"),
    ]

    async def refresh(_task_id: str) -> Task:
        return task(f"{server.url}/a?sig=secret")

    async with started(refresh=refresh, retry_timeout=5.0) as (server, downloads):
        for fault in faults:
            server.on("/a", fault)
            with pytest.raises(DownloadError) as caught:
                await downloads.save(task(f"{server.url}/a?sig=secret"), tmp_path)
            assert "=secret" not in _shown(caught.value)
        for url in (
            "http://a b/?sig=secret",
            f"http://{'x' * 70}.example/?sig=secret",
            "http://x:y/?sig=secret",
        ):
            with pytest.raises(DownloadError) as caught:
                await downloads.save(task(url), tmp_path)
            assert "=secret" not in _shown(caught.value)


@virtual_time
async def test_an_unreachable_host_shows_no_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret of a URL is shown, although aiohttp's timeout error contains the whole URL."""

    async def late(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", late)
    async with started(retry_timeout=5.0) as (_, downloads):
        with pytest.raises(DownloadError, match="ConnectionTimeoutError") as caught:
            await downloads.save(task("http://me:word@h.example/a?sig=secret#part"), tmp_path)
        shown = _shown(caught.value)
        assert "http://h.example/a" in shown
        assert not any(word in shown for word in ("secret", "word", "part"))


# ------------------------------------------------------------------ the disk


@pytest.mark.parametrize("room", [0, 5000, 1 << 20, 3_600_000])
@virtual_time
async def test_a_full_disk_is_raised_and_leaves_nothing(tmp_path: Path, room: int) -> None:
    """A full disk raises one clear error, without a retry, and leaves no incomplete file."""
    big = picture(size=1100)
    assert len(big) > room
    async with started() as (server, downloads):
        url = server.on("/a", responds(big))
        with file_size_limit(room), pytest.raises(DownloadError, match=os.strerror(errno.EFBIG)) as caught:
            await downloads.save(task(url), tmp_path)
        assert len(server.requests) == 1
    assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)
    assert files(tmp_path) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@virtual_time
async def test_a_directory_without_write_access_is_raised(tmp_path: Path) -> None:
    """The error is raised before a request is sent."""
    async with started() as (server, downloads):
        url = server.on("/a", responds(PNG))
        for target in ("/proc", "/proc/self/new"):
            with pytest.raises(DownloadError, match="cannot be written"):
                await downloads.save(task(url), target)
        assert server.requests == []
    assert files(tmp_path) == {}


@virtual_time
async def test_a_file_where_a_directory_is_needed_is_raised(tmp_path: Path) -> None:
    """The existing file is not changed."""
    (tmp_path / "out").write_text("mine")
    async with started() as (server, downloads):
        url = server.on("/a", responds(PNG))
        for target in (tmp_path / "out", tmp_path / "out" / "deeper", f"{tmp_path}/out/{{index}}{{ext}}"):
            with pytest.raises(DownloadError, match="cannot be written"):
                await downloads.save(task(url), target)
    assert files(tmp_path) == {"out": b"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
@virtual_time
async def test_a_directory_at_the_target_is_kept(tmp_path: Path, *, overwrite: bool) -> None:
    """The directory stays empty. Another name is used, or an error is raised with `overwrite`."""
    (tmp_path / "x-0.png").mkdir()
    options = SaveOptions(name="x", overwrite=overwrite)
    async with started() as (server, downloads):
        saving = downloads.save(task(server.on("/a", responds(PNG))), tmp_path, options)
        if overwrite:
            with pytest.raises(DownloadError, match="cannot be written"):
                await saving
        else:
            await saving
    assert files(tmp_path) == ({} if overwrite else {f"x-0-{TASK_ID}.png": PNG})


@pytest.mark.parametrize("overwrite", [False, True])
@virtual_time
async def test_a_link_at_the_target_is_not_followed(tmp_path: Path, *, overwrite: bool) -> None:
    """The file that a link points to is not changed. Only `overwrite` replaces the link itself."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x-0.png").symlink_to(tmp_path / "precious")
    options = SaveOptions(name="x", overwrite=overwrite)
    async with started() as (server, downloads):
        [path] = await downloads.save(task(server.on("/a", responds(PNG))), tmp_path / "out", options)
    assert (tmp_path / "precious").read_text() == "mine"
    assert path.name == ("x-0.png" if overwrite else f"x-0-{TASK_ID}.png")
    assert path.read_bytes() == PNG
    assert (tmp_path / "out" / "x-0.png").is_symlink() is not overwrite


# ------------------------------------------------------------------ names that are taken


def numbered_task(number: int, *urls: str) -> Task:
    """Return a task with another id."""
    return evolve(task(*urls), task_id=f"other-{number}")


X = SaveOptions(name="x")


@virtual_time
async def test_no_task_replaces_the_picture_of_another(tmp_path: Path) -> None:
    """The first task gets the name. The other tasks append their ids to the names of all their pictures."""
    bodies = [picture(seed=number) for number in range(6)]
    async with started() as (server, downloads):
        urls = [server.on(f"/{number}", responds(body)) for number, body in enumerate(bodies)]
        tasks = [numbered_task(number, *urls[2 * number : 2 * number + 2]) for number in range(3)]
        for each in tasks:
            await downloads.save(each, tmp_path, X)
    named = {"x-0.png": 0, "x-1.png": 1}
    named |= {f"x-{index}-other-{number}.png": 2 * number + index for number in (1, 2) for index in (0, 1)}
    assert files(tmp_path) == {name: bodies[number] for name, number in named.items()}


@pytest.mark.parametrize("clients", [1, 2])
@virtual_time
async def test_concurrent_tasks_keep_their_files_apart(tmp_path: Path, clients: int) -> None:
    """Ten tasks with one name and equal pictures, in one or two clients, become twenty files."""
    async with started() as (server, first):
        downloads = [first, make_downloads(first._http)][:clients]
        urls = [server.on(f"/{number}", responds(PNG)) for number in (0, 1)]
        tasks = [numbered_task(number, *urls) for number in range(10)]
        saves = [downloads[n % clients].save(each, tmp_path, X) for n, each in enumerate(tasks)]
        saved = await asyncio.gather(*saves)
        again = await asyncio.gather(*(make_downloads(first._http).save(each, tmp_path, X) for each in tasks))
        assert len(server.requests) == 20
    assert saved == again
    assert len({path for paths in saved for path in paths}) == 20
    assert set(files(tmp_path)) == {path.name for paths in saved for path in paths}
    if clients == 1:
        assert all(len({"other" in path.name for path in paths}) == 1 for paths in saved)


SAVER = """
import asyncio, sys, aiohttp
from pathlib import Path
from random import Random
from kling_expand.config import Settings
from kling_expand.downloads.downloader import Downloads
from kling_expand.downloads.files import FORMATS, SaveOptions
from kling_expand.models import Image, Task
async def main(url, name, folder):
    async with aiohttp.ClientSession() as http:
        downloads = Downloads(http, Settings(), refresh=None, rng=Random(1))
        task = Task(name, "succeed", images=(Image(0, url),))
        print(*await downloads.save(task, folder, SaveOptions(name="x")))
asyncio.run(main(*sys.argv[1:]))
"""


async def test_concurrent_processes_keep_their_files_apart(tmp_path: Path) -> None:
    """Two processes that save tasks with one name and equal pictures write separate files."""
    meeting = asyncio.Barrier(2)

    async def together(request: web.BaseRequest) -> web.StreamResponse:
        await meeting.wait()
        return await responds(PNG)(request)

    async with Server().running() as server:
        url = server.on("/a", together)
        command = [sys.executable, "-c", SAVER, url]
        pipe = asyncio.subprocess.PIPE
        running = [
            await asyncio.create_subprocess_exec(*command, name, str(tmp_path), stdout=pipe) for name in "ab"
        ]
        said = [(await process.communicate())[0].decode().strip() for process in running]
    assert {Path(path).name for path in said} in ({"x-0.png", "x-0-a.png"}, {"x-0.png", "x-0-b.png"})
    assert set(files(tmp_path).values()) == {PNG}
    assert len(files(tmp_path)) == 2


@virtual_time
async def test_a_task_finds_its_own_pictures(tmp_path: Path) -> None:
    """A second save of a task downloads only pictures that are missing or were edited."""
    async with started() as (server, downloads):
        one = task(server.on("/a", responds(PNG)), server.on("/b", responds(picture(seed=1))))
        paths = await downloads.save(one, tmp_path, X)
        assert await make_downloads(downloads._http).save(one, tmp_path, X) == paths
        assert len(server.requests) == 2
        paths[1].unlink()
        assert await downloads.save(one, tmp_path, X) == paths
        assert len(server.requests) == 3
        paths[0].write_bytes(b"edited")
        edited = await downloads.save(one, tmp_path, X)
        assert [path.name for path in edited] == [f"x-0-{TASK_ID}.png", "x-1.png"]
        assert await downloads.save(one, tmp_path, X) == edited
        assert len(server.requests) == 4
    assert paths[0].read_bytes() == b"edited"


@virtual_time
async def test_overwrite_replaces_whatever_has_the_name(tmp_path: Path) -> None:
    """With `overwrite`, the plain name is used, and the picture is downloaded again."""
    (tmp_path / "x-0.png").write_text("old")
    always = SaveOptions(name="x", overwrite=True)
    async with started() as (server, downloads):
        one = task(server.on("/a", responds(PNG)))
        for _ in range(2):
            assert await downloads.save(one, tmp_path, always) == (tmp_path / "x-0.png",)
        assert len(server.requests) == 2
    assert files(tmp_path) == {"x-0.png": PNG}


@virtual_time
async def test_a_file_system_without_links_keeps_files_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hard links, files are still kept apart, and an error leaves no empty file."""

    def refuse(*_paths: object) -> None:
        raise OSError(reason, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    async with started() as (server, downloads):
        url = server.on("/a", responds(PNG))
        reason = errno.EPERM
        await asyncio.gather(
            *(downloads.save(numbered_task(number, url), tmp_path, X) for number in range(5))
        )
        assert len(files(tmp_path)) == 5
        assert set(files(tmp_path).values()) == {PNG}
        reason = errno.EIO
        with pytest.raises(DownloadError, match="no links here"):
            await downloads.save(numbered_task(5, url), tmp_path, X)
        reason = errno.ENOTSUP
        monkeypatch.setattr(Path, "replace", refuse)
        with pytest.raises(DownloadError, match="no links here"):
            await downloads.save(numbered_task(6, url), tmp_path, X)
    assert len(files(tmp_path)) == 5


@virtual_time
async def test_watermarked_pictures_are_saved_on_request(tmp_path: Path) -> None:
    """Without `watermark`, only the plain pictures are downloaded."""
    async with started() as (server, downloads):
        one = task(server.on("/a", responds(PNG)), watermarks=True)
        await downloads.save(one, tmp_path, SaveOptions(name="x", watermark=False))
        assert len(server.requests) == 1
    assert files(tmp_path) == {"x-0.png": PNG}


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("target", ["x.jpg", "{name}.jpeg", "a/x.webp", "x.TIFF"])
@virtual_time
async def test_a_picture_never_has_the_suffix_of_another_format(tmp_path: Path, target: str) -> None:
    """PNG bytes are not saved under the suffix of another format, and the error says what to do."""
    async with started() as (server, downloads):
        with pytest.raises(InvalidRequest, match=r"must end in \.png.*format=.* converts it") as caught:
            await downloads.save(task(server.on("/a", responds(PNG))), tmp_path / target)
    assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)
    assert files(tmp_path) == {}


@virtual_time
async def test_a_suffix_that_contradicts_the_wanted_format_costs_no_request(tmp_path: Path) -> None:
    """A contradiction between suffix and format is detected before the download."""
    async with started() as (server, downloads):
        one = task(server.on("/a", responds(PNG)))
        with pytest.raises(InvalidRequest, match=r"must end in \.webp"):
            await downloads.save(one, tmp_path / "x.jpg", SaveOptions(format="webp"))
        assert server.requests == []


@pytest.mark.parametrize(("wanted", "ext"), FORMATS.items())
@virtual_time
async def test_a_picture_is_converted_on_request(tmp_path: Path, wanted: str, ext: str) -> None:
    """The file has the requested format and suffix. A picture that already has the format is not changed."""
    async with started() as (server, downloads):
        one = task(server.on("/a", responds(PNG)))
        [path] = await downloads.save(one, tmp_path, SaveOptions(name="x", format=wanted))
        assert await downloads.save(one, tmp_path, SaveOptions(name="x", format=wanted)) == (path,)
        assert len(server.requests) == 1
    assert path.name == f"x-0{ext}"
    with Pillow.open(path) as image:
        assert (image.format, image.size) == (wanted.upper(), (64, 64))
    assert (path.read_bytes() == PNG) is (wanted == "png")


@virtual_time
async def test_a_conversion_without_pillow_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the extra to install, and is raised before the download."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    async with started() as (server, downloads):
        one = task(server.on("/a", responds(PNG)))
        with pytest.raises(MissingExtra, match=r"kling-expand\[images\]"):
            await downloads.save(one, tmp_path, SaveOptions(format="png"))
        assert server.requests == []


@virtual_time
async def test_each_quality_is_a_file_of_its_own(tmp_path: Path) -> None:
    """A picture that was saved with one quality is not returned for another."""
    async with started() as (server, downloads):
        one = task(server.on("/a", responds(PNG)))
        paths = [
            (await downloads.save(one, tmp_path, SaveOptions(name="x", format="jpeg", quality=quality)))[0]
            for quality in (30, 95)
        ]
    assert paths[0].stat().st_size < paths[1].stat().st_size


@pytest.mark.parametrize(
    "options",
    [
        {"format": "gif"},
        {"format": "JPEG"},
        {"quality": 90},
        {"format": "png", "quality": 90},
        {"format": "jpeg", "quality": 0},
        {"format": "jpeg", "quality": 101},
        {"format": "webp", "quality": "90"},
        {"format": "webp", "quality": True},
    ],
)
def test_an_invalid_format_or_quality_is_refused(options: dict[str, Any]) -> None:
    """An invalid value is refused when the options are created."""
    with pytest.raises(InvalidRequest, match=r"format|quality"):
        SaveOptions(**options)


# ------------------------------------------------------------------ pictures in memory


@virtual_time
async def test_a_complete_picture_is_read_in_chunks(tmp_path: Path) -> None:
    """An interrupted download is resumed before the first chunk is yielded, and no file is left."""
    big = picture(size=700)
    async with started() as (server, downloads):
        one = task(server.on("/a", cuts(big, 5000, ETag='"1"'), serves_ranges(big, ETag='"1"')))
        chunks = [chunk async for chunk in downloads.stream(one, 0)]
    assert b"".join(chunks) == big
    assert len(chunks) > 1
    assert files(tmp_path) == {}


@pytest.mark.parametrize("fault", ["HTML under 200", "cut short under its right length", "500", "nothing"])
@virtual_time
async def test_no_chunk_of_an_incomplete_picture_is_yielded(fault: str) -> None:
    """For an incomplete picture, `stream` raises an error with the ids before the first chunk."""
    async with started(retry_timeout=10.0) as (server, downloads):
        chunks = downloads.stream(task(server.on("/a", TRANSIENT[fault])), 0)
        with pytest.raises(DownloadError) as caught:
            await anext(chunks)
    assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)


@virtual_time
async def test_a_read_has_a_deadline_and_ends_early() -> None:
    """A deadline ends the download with the ids. A caller that stops early leaves nothing open."""
    big = picture(size=700)
    async with started() as (server, downloads):
        chunks = downloads.stream(task(server.on("/a", hangs)), 0, deadline_at=5.0)
        with pytest.raises(DeadlineExceeded) as caught:
            await anext(chunks)
        assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)
        chunks = downloads.stream(task(server.on("/b", responds(big))), 0)
        assert (await anext(chunks))[:4] == big[:4]
        await chunks.aclose()


@virtual_time
async def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """The announced length or the received bytes end the download at once, without a retry."""
    chunk = PNG + bytes(1 << 20)

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(chunk)

    announced = sends_raw(f"HTTP/1.1 200 OK\nContent-Length: {MAX_FILE_BYTES + 1}", PNG)
    async with started() as (server, downloads):
        for handler in (announced, endless):
            server.requests.clear()
            with pytest.raises(DownloadError, match=f"at most {MAX_FILE_BYTES} bytes"):
                await downloads.save(task(server.on("/a", handler)), tmp_path)
            assert len(server.requests) == 1
    assert files(tmp_path) == {}


@virtual_time
async def test_saves_to_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    """After concurrent saves to one path, the file is one complete picture."""
    pictures = [picture(seed=n) for n in range(8)]
    async with started() as (server, downloads):
        tasks = [task(server.on(f"/{n}", responds(body))) for n, body in enumerate(pictures)]
        await asyncio.gather(*(downloads.save(one, tmp_path / "a.png") for one in tasks))
    [(name, body)] = files(tmp_path).items()
    assert name == "a.png"
    assert body in pictures


@virtual_time
async def test_an_old_picture_is_kept_until_the_new_one_is_complete(tmp_path: Path) -> None:
    """A failed save keeps the existing file."""
    (tmp_path / "a.png").write_bytes(OTHER)
    async with started(retry_timeout=1.0) as (server, downloads):
        with pytest.raises(DownloadError):
            await downloads.save(task(server.on("/a", responds(PNG[:-1]))), tmp_path / "a.png")
    assert files(tmp_path) == {"a.png": OTHER}


# ------------------------------------------------------------------ leftovers of a crash


CRASH = """
import sys, time
from pathlib import Path
from kling_expand.downloads.files import PartialFile
part = PartialFile(Path(sys.argv[1]))
part.create()
part.write(b"\\x89PNG\\r\\n\\x1a\\n, cut short")
part.flush()
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def downloading_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process with a download into *folder* in progress."""
    with subprocess.Popen(
        [sys.executable, "-c", CRASH, folder], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


async def test_partial_files_of_a_crash_are_removed_at_the_next_save(tmp_path: Path) -> None:
    """The partial file of a killed process is removed when another client saves to the directory."""
    async with started() as (server, downloads):
        with downloading_process(tmp_path) as process:
            process.kill()
        assert len(files(tmp_path)) == 1
        await downloads.save(task(server.on("/a", responds(PNG))), tmp_path, SaveOptions(name="x"))
    assert files(tmp_path) == {"x-0.png": PNG}


async def test_partial_files_are_removed_even_if_nothing_is_downloaded(tmp_path: Path) -> None:
    """A save of full-size pictures, whose downloads are already there, removes the leftovers of a crash."""
    async with started() as (server, downloads):
        saved = task(server.on("/a", responds(PNG)))
        await downloads.save(saved, tmp_path, SaveOptions(name="x"))
        (tmp_path / ".kling-0123456789abcdef.part").write_text("left by a crash")
        remove_stale_parts.cache_clear()  # as in a new process
        await downloads.save(saved, tmp_path, SaveOptions(name="x"))
    assert files(tmp_path) == {"x-0.png": PNG}


async def test_partial_files_of_a_running_process_are_kept(tmp_path: Path) -> None:
    """The partial files of another process, or of another client in this process, are kept."""
    arrived = asyncio.Event()

    async def silent(request: web.BaseRequest) -> web.StreamResponse:
        arrived.set()
        return await hangs(request)

    async with started() as (server, downloads), started() as (_server, other):
        slow = asyncio.create_task(downloads.save(task(server.on("/slow", silent)), tmp_path))
        await arrived.wait()
        with downloading_process(tmp_path):
            remove_stale_parts.cache_clear()
            await other.save(task(server.on("/a", responds(PNG))), tmp_path, SaveOptions(name="x"))
            assert len([name for name in files(tmp_path) if name.endswith(".part")]) == 2
        slow.cancel()
        await asyncio.wait([slow])


@pytest.mark.parametrize("target", ["out", "out/{task_id}/{index}{ext}"])
async def test_only_our_own_partial_files_are_removed(tmp_path: Path, target: str) -> None:
    """Files of other programs, links, FIFOs and other directories are not removed."""
    folder = Path(target.format(task_id=TASK_ID, index=0, ext=".png"))
    folder = tmp_path / (folder.parent if folder.suffix else folder)
    name = ".kling-0123456789abcde{}.part"
    (folder / "deeper").mkdir(parents=True)
    kept = [folder / ".0123456789abcdef.part", folder / ".kling-xyz.part", folder / "deeper" / name.format(0)]
    kept += [folder.parent / name.format(1), folder / f"{name.format(2)}.part"]
    for path in kept:
        path.write_text("mine")
    (folder / name.format(3)).symlink_to(kept[0])
    os.mkfifo(folder / name.format(4))
    (folder / name.format(5)).mkdir()
    (folder / name.format(6)).write_text("left by a crash")
    kept += [folder / name.format(number) for number in (3, 4, 5)]
    async with started() as (server, downloads):
        await downloads.save(task(server.on("/a", responds(PNG))), tmp_path / target)
    left = set(everything(tmp_path))
    assert left.issuperset(kept)
    assert folder / name.format(6) not in left


async def test_a_directory_is_searched_for_partial_files_once(tmp_path: Path) -> None:
    """A process searches a directory for partial files only on its first save there."""
    async with started() as (server, downloads):
        url = server.on("/a", responds(PNG))
        await downloads.save(task(url), tmp_path, SaveOptions(name="x"))
        late = tmp_path / ".kling-0123456789abcdef.part"
        late.write_text("left later")
        await downloads.save(task(url), tmp_path, SaveOptions(name="y"))
        assert late.exists()


# ------------------------------------------------------------------ time and cancellation


@virtual_time
async def test_a_slow_server_is_given_up_after_download_timeout(tmp_path: Path) -> None:
    """A byte every few seconds keeps a connection alive, but only until `download_timeout`."""

    async def drips(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(PNG))})
        await response.prepare(request)
        for byte in PNG:
            await response.write(bytes([byte]))
            await asyncio.sleep(5)
        return response

    async with started(download_timeout=120) as (server, downloads):
        with pytest.raises(DownloadError, match="within download_timeout, 120 s") as caught:
            await downloads.save(task(server.on("/a", drips)), tmp_path)
        assert asyncio.get_running_loop().time() == pytest.approx(120, abs=1)
    assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)
    assert files(tmp_path) == {}


@virtual_time
async def test_the_time_limit_counts_from_the_start_of_each_picture(tmp_path: Path) -> None:
    """The time that a picture waits for others does not count against its `download_timeout`."""

    async def slow(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(15)
        return web.Response(body=PNG)

    async with started(download_timeout=20) as (server, downloads):
        await downloads.save(task(*[server.on("/a", slow)] * (2 * MAX_OPEN_FILES)), tmp_path)
    assert len(files(tmp_path)) == 2 * MAX_OPEN_FILES


@virtual_time
async def test_the_deadline_ends_everything(tmp_path: Path) -> None:
    """At `deadline_at`, an error with the ids is raised, and no incomplete file is left."""
    async with started() as (server, downloads):
        urls = [server.on("/a", hangs), server.on("/b", responds(b"", 503)), server.on("/c", responds(PNG))]
        deadline_at = asyncio.get_running_loop().time() + 20.0
        with pytest.raises(DeadlineExceeded) as caught:
            await downloads.save(task(*urls), tmp_path, SaveOptions(name="x"), deadline_at=deadline_at)
        assert deadline_at == pytest.approx(asyncio.get_running_loop().time(), abs=0.1)
    assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)
    assert files(tmp_path) == {"x-2.png": PNG}


@virtual_time
async def test_a_deadline_that_has_passed_sends_nothing(tmp_path: Path) -> None:
    """No request is sent after the deadline."""
    async with started() as (server, downloads):
        url = server.on("/a", responds(PNG))
        await asyncio.sleep(5)
        with pytest.raises(DeadlineExceeded):
            await downloads.save(task(url), tmp_path, deadline_at=4.0)
        assert server.requests == []
    assert files(tmp_path) == {}


class Stepping(VirtualLoop):
    """A loop that cancels a job twice, after a given number of iterations."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.job: asyncio.Task[Any] | None = None
        self._after = after

    def _run_once(self) -> None:
        if self.job is not None:
            self._after -= 1
            if self._after in {0, -1}:
                self.job.cancel()
        super()._run_once()  # type: ignore[misc]  # the stubs do not have this method


async def saved_or_cancelled(folder: Path, body: bytes) -> bool:
    """Return whether the save completed, after checking that no incomplete file is left."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Stepping)
    async with started(refresh=None) as (server, downloads):
        fresh = task(server.on("/fresh", cuts(body, 100, ETag='"1"'), serves_ranges(body, ETag='"1"')))
        stale = task(server.on("/stale", responds(b"", 403)))

        async def refresh(_task_id: str) -> Task:
            return fresh

        downloads._refresh = refresh
        loop.job = asyncio.create_task(downloads.save(stale, folder, SaveOptions(name="x")))
        await asyncio.wait([loop.job])
        assert files(folder) in ({}, {"x-0.png": body})
        return not loop.job.cancelled() and bool(loop.job.result())


def test_cancelling_at_any_point_leaves_a_picture_or_nothing(tmp_path: Path) -> None:
    """A cancellation at any iteration of the loop leaves a complete picture or no file."""
    for turn in range(1, 500):
        folder = tmp_path / str(turn)
        with asyncio.Runner(loop_factory=functools.partial(Stepping, turn)) as runner:
            if runner.run(saved_or_cancelled(folder, PNG)):
                break
    assert 20 < turn < 499
    assert files(folder) == {"x-0.png": PNG}


@virtual_time
async def test_a_cancelled_save_waits_for_its_thread(tmp_path: Path) -> None:
    """A save that is cancelled during a body or before a retry removes its partial file."""
    arrived = asyncio.Event()

    async def half(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(PNG))})
        await response.prepare(request)
        await response.write(PNG[:5000])
        arrived.set()
        return await hangs(request)

    async with started() as (server, downloads):
        for handler in (half, responds(b"", 503, Retry_After="100")):
            job = asyncio.create_task(downloads.save(task(server.on("/a", handler)), tmp_path))
            await asyncio.wait([job], timeout=10)
            assert len(files(tmp_path)) == 1
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            assert files(tmp_path) == {}
    assert arrived.is_set()


@virtual_time
async def test_a_closed_session_is_raised(tmp_path: Path) -> None:
    """If the session is closed during a save, `ClientClosed` is raised."""
    async with started() as (server, downloads):
        url = server.on("/a", responds(b"", 503))
        job = asyncio.create_task(downloads.save(task(url), tmp_path))
        await asyncio.sleep(0.2)
        await downloads._http.close()
        with pytest.raises(ClientClosed) as caught:
            await job
    assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)
    assert files(tmp_path) == {}


# ------------------------------------------------------------------ invalid requests


@pytest.mark.parametrize("status", ["submitted", "processing", "failed", "perhaps"])
@virtual_time
async def test_only_a_task_that_succeeded_is_saved(tmp_path: Path, status: str) -> None:
    """A task with any other status raises `InvalidRequest`."""
    async with started() as (server, downloads):
        with pytest.raises(InvalidRequest) as caught:
            await downloads.save(task(server.on("/a", responds(PNG)), status=status), tmp_path)
    assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)


@virtual_time
async def test_a_success_without_images_is_raised(tmp_path: Path) -> None:
    """A success without images raises an error, instead of returning an empty tuple."""
    async with started() as (_server, downloads):
        with pytest.raises(DownloadError, match="no image"):
            await downloads.save(task(), tmp_path)


@virtual_time
async def test_a_bad_target_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    """One name for two pictures, or an unknown field, costs no request and creates no directory."""
    async with started() as (server, downloads):
        two = task(server.on("/a", responds(PNG)), server.on("/b", responds(PNG)))
        for target in ("new/{size}.png", "new/{name}{ext}", "new/a.png"):
            with pytest.raises(InvalidRequest) as caught:
                await downloads.save(two, tmp_path / target)
            assert blames(caught.value) == (TASK_ID, EXTERNAL_ID)
        assert server.requests == []
    assert not everything(tmp_path)


@virtual_time
async def test_an_untrusted_certificate_is_raised_at_once(tmp_path: Path) -> None:
    """A host with an untrusted certificate is not retried, and nothing is fetched from it."""
    context = certified(tmp_path / "both.pem")
    async with Server().running(context) as server, aiohttp.ClientSession() as http:
        downloads = make_downloads(http)
        with pytest.raises(DownloadError, match="not trusted"):
            await downloads.save(task(server.on("/a", responds(PNG))), tmp_path / "out")
        assert server.requests == []
    assert [*files(tmp_path)] == ["both.pem"]


@virtual_time
async def test_https_is_never_downgraded(tmp_path: Path) -> None:
    """A redirect may lead from http to https and within https, but not from https to http."""
    context = certified(tmp_path / "both.pem")
    trusting = aiohttp.TCPConnector(ssl=False)
    session = {"connector": trusting}
    async with started(session=session) as (plain, downloads), Server().running(context) as safe:
        safe.on("/b", responds(PNG))
        safe.on("/a", redirects("/b"))
        await downloads.save(task(plain.on("/a", redirects(f"{safe.url}/a"))), tmp_path / "a.png")
        safe.on("/a", redirects(plain.on("/b", responds(PNG))))
        with pytest.raises(DownloadError, match="https to http"):
            await downloads.save(task(f"{safe.url}/a"), tmp_path / "b.png")
    assert {name: body for name, body in files(tmp_path).items() if name != "both.pem"} == {"a.png": PNG}


# ------------------------------------------------------------------ the URLs of a task


LISTED = Task("1", "succeed", images=(Image(1, "http://h/1"), Image(0, "http://h/0", "http://h/w")))


@given(st.text() | st.text().map("http://{}".format) | st.from_regex(r"https?://[a-z0-9:@\[\]/.%?#-]+"))
def test_any_text_is_a_valid_url_or_a_download_error(text: str) -> None:
    """A parsed URL is http or https, and has a host and no credentials."""
    try:
        url = parse_url(text)
    except DownloadError:
        return
    assert url.scheme in {"http", "https"}
    assert url.host
    assert url.user is url.password is None


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#\\"), min_size=1))
def test_an_encoded_url_is_not_changed(query: str) -> None:
    """An encoded URL is not changed, because a signature may cover its exact characters."""
    assert parse_url(f"https://h/a%2Fb?{query}").raw_path_qs == f"/a%2Fb?{query}"
    assert redirect_url(parse_url("https://h/x"), f"/a%2Fb?{query}").raw_path_qs == f"/a%2Fb?{query}"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("b", "https://h/x/b"),
        ("/b", "https://h/b"),
        ("//other/b", "https://other/b"),
        ("https://other:8443/b", "https://other:8443/b"),
        ("https://user:secret@other/b", "https://other/b"),
        ("?again=1", "https://h/x/a?again=1"),
    ],
)
def test_redirects_are_resolved(location: str, expected: str) -> None:
    """A redirect is resolved against the URL that it came from, and its credentials are removed."""
    assert str(redirect_url(parse_url("https://h/x/a?q=1"), location)) == expected


@pytest.mark.parametrize("location", ["http://h/a", "HTTP://h/a", "file:///etc/passwd", "http://[", "http:b"])
def test_invalid_redirects_are_refused(location: str) -> None:
    """A redirect from https to http, to another scheme or to an invalid URL raises an error."""
    with pytest.raises(DownloadError):
        redirect_url(parse_url("https://h/x"), location)


def test_files_are_sorted_by_index() -> None:
    """Files are sorted by index, whatever the service's order, and the watermarked ones come last."""
    urls = ResultUrls(LISTED, None)  # type: ignore[arg-type]  # it is not called
    assert [image.index for image in by_index(LISTED.images)] == [0, 1]
    assert [urls.url(file) for file in urls.files()] == ["http://h/0", "http://h/1", "http://h/w"]


async def test_concurrent_callers_share_one_read() -> None:
    """Concurrent callers share one read of the task."""
    asked: list[str] = []

    async def refresh(task_id: str) -> Task:
        asked.append(task_id)
        await asyncio.sleep(0)
        return Task("1", "succeed", images=(Image(0, "http://h/new"), Image(1, "")))

    urls = ResultUrls(LISTED, refresh)
    first, second = ResultFile(0, watermark=False), ResultFile(0, watermark=False)
    assert {*await asyncio.gather(urls.refresh(first), urls.refresh(second))} == {"http://h/new"}
    for gone in (
        ResultFile(0, watermark=True),
        ResultFile(1, watermark=False),
        ResultFile(2, watermark=False),
    ):
        with pytest.raises(ResultExpired):
            await urls.refresh(gone)
    assert asked == ["1"]


async def test_a_failed_read_is_repeated_for_the_next_caller() -> None:
    """An unknown task counts as expired, and the next caller reads the task again."""
    responds: list[Task | Exception] = [NotFound("no such resource", code=1203), LISTED]

    async def refresh(_task_id: str) -> Task:
        response = responds.pop(0)
        if isinstance(response, Exception):
            raise response
        return response

    urls = ResultUrls(LISTED, refresh)
    with pytest.raises(ResultExpired):
        await urls.refresh(ResultFile(0, watermark=False))
    assert await urls.refresh(ResultFile(0, watermark=False)) == "http://h/0"
