"""The aiohttp.web adapter: the contract of every adapter, and its own features."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from support.adapter_contract import PHOTO, AdapterContract, Site, emulated, options

from kling_expand import KlingClient, Ratios
from kling_expand.contrib.aiohttp import get_client, setup, webhook
from kling_expand.errors import ClientClosed, ConfigurationError

TestServer.__test__ = False  # it is not a test class


@asynccontextmanager
async def serve(app: web.Application, path: str = "/client") -> AsyncIterator[Site]:
    """Serve *app*, and get its client through a request to *path*."""
    found: list[KlingClient] = []

    async def client(request: web.Request) -> web.Response:
        found.append(get_client(request))
        return web.Response()

    app.router.add_get("/client", client)
    async with TestServer(app) as server, ClientSession() as http:
        async with http.get(server.make_url(path)) as response:
            assert response.status == 200
        yield Site(str(server.make_url("/hooks/kling")), found[0])


class TestAiohttp(AdapterContract):
    """The contract of adapters, served by aiohttp's own server."""

    def serve(self, **client_options: Any) -> AbstractAsyncContextManager[Site]:
        """Serve an application that has only a client and its webhook."""
        app = web.Application()
        setup(app, **client_options)
        app.add_routes([webhook("/hooks/kling")])
        return serve(app)


async def test_a_sub_application_shares_the_client() -> None:
    """The application and its sub-applications share one client."""
    found: list[KlingClient] = []

    async def inner(request: web.Request) -> web.Response:
        found.append(get_client(request))
        return web.Response()

    async with emulated() as emulator:
        app, sub = web.Application(), web.Application()
        setup(app, **options(emulator))
        sub.router.add_get("/", inner)
        app.add_subapp("/sub/", sub)
        async with serve(app) as site, ClientSession() as http:
            async with http.get(site.callback_url.replace("/hooks/kling", "/sub/")) as response:
                assert response.status == 200
            assert found == [site.client]
            assert get_client(app) is site.client


async def test_a_later_startup_handler_can_use_the_client() -> None:
    """A start-up handler that is added after `setup` can use the client."""
    listed: list[object] = []

    async def resume(app: web.Application) -> None:
        listed.append(await get_client(app).list())

    async with emulated() as emulator:
        app = web.Application()
        setup(app, **options(emulator))
        app.on_startup.append(resume)
        async with serve(app):
            assert listed == [()]


async def test_a_shutdown_ends_an_open_stream() -> None:
    """A progress stream ends with `ClientClosed` at the shutdown, and does not delay it."""
    ended: list[Exception] = []

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            async for task in get_client(request).submit(PHOTO, Ratios(right=0.5)):
                await response.write(task.task_status.encode())
        except ClientClosed as error:
            ended.append(error)
        return response

    async with emulated(work_seconds=3600.0) as emulator:
        app = web.Application()
        setup(app, **options(emulator))
        app.router.add_get("/stream", stream)
        async with (
            serve(app) as site,
            ClientSession() as http,
            http.get(site.callback_url.replace("/hooks/kling", "/stream")) as response,
        ):
            assert b"submitted" in await response.content.readany()
            await app.shutdown()  # the server does this before it waits for open responses
            await response.read()
    assert [type(error) for error in ended] == [ClientClosed]


async def test_without_setup_there_is_no_client() -> None:
    """The error says that `setup` was not called."""
    with pytest.raises(ConfigurationError, match=r"setup\(app\)"):
        get_client(web.Application())


async def test_an_application_without_credentials_does_not_start() -> None:
    """An invalid configuration fails at start-up, and not at the first request."""
    app = web.Application()
    setup(app, access_key="half of a pair")
    with pytest.raises(ConfigurationError, match="secret key is missing"):
        await TestServer(app).start_server()
