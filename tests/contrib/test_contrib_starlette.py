"""The Starlette adapter, also with FastAPI: the contract of every adapter, and its own features."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

import pytest
from aiohttp import ClientSession
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from support.adapter_contract import AdapterContract, Site, emulated, options
from support.asgi_server import served

from kling_expand import KlingClient
from kling_expand.contrib.starlette import get_client, setup, webhook
from kling_expand.errors import ConfigurationError


class Finder:
    """An endpoint that records the clients of its requests."""

    def __init__(self) -> None:
        self.found: list[KlingClient] = []

    async def __call__(self, request: Request) -> Response:
        self.found.append(get_client(request))
        return Response()

    def route(self, path: str = "/client") -> Route:
        """Return a route to this endpoint."""

        async def endpoint(request: Request) -> Response:
            return await self(request)

        return Route(path, endpoint)


async def get(url: str) -> int:
    """Return the status of a GET request."""
    async with ClientSession() as http, http.get(url) as response:
        return response.status


@asynccontextmanager
async def site(app: Starlette, finder: Finder) -> AsyncIterator[Site]:
    """Serve *app*, and get its client through a request."""
    async with served(app) as origin:
        assert await get(origin + "/client") == 200
        yield Site(origin + "/hooks/kling", finder.found[0])


class TestStarlette(AdapterContract):
    """The contract of adapters, with Starlette on uvicorn."""

    def serve(self, **client_options: Any) -> AbstractAsyncContextManager[Site]:
        """Serve an application that has only a client and its webhook."""
        finder = Finder()
        app = Starlette(routes=[webhook("/hooks/kling"), finder.route()])
        setup(app, **client_options)
        return site(app, finder)


class TestFastAPI(AdapterContract):
    """The contract of adapters, with FastAPI on uvicorn and an injected client."""

    def serve(self, **client_options: Any) -> AbstractAsyncContextManager[Site]:
        """Serve an application that has only a client and its webhook."""
        app, finder = FastAPI(), Finder()
        setup(app, **client_options)
        app.router.routes.append(webhook("/hooks/kling"))

        @app.get("/client")
        async def client(kling: Annotated[KlingClient, Depends(get_client)]) -> None:
            finder.found.append(kling)

        return site(app, finder)


async def test_an_existing_lifespan_is_kept() -> None:
    """The existing lifespan runs while the client is open, and its state is available in requests."""
    happened: list[object] = []
    finder = Finder()

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, str]]:
        happened.append("opened")
        yield {"greeting": "hello"}
        happened.append(await finder.found[0].list())

    async def greet(request: Request) -> Response:
        return Response(request.state.greeting)

    async with emulated() as emulator:
        app = Starlette(routes=[finder.route(), Route("/greet", greet)], lifespan=lifespan)
        setup(app, **options(emulator))
        async with served(app) as origin, ClientSession() as http:
            assert await get(origin + "/client") == 200
            async with http.get(origin + "/greet") as response:
                assert await response.text() == "hello"
        assert happened == ["opened", ()]


async def test_the_application_lifespan_can_use_the_client() -> None:
    """The client is open when the lifespan starts, so it can resume the jobs of an earlier process."""
    resumed: list[object] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        resumed.extend([future async for future in get_client(app).resume()])
        resumed.append(await get_client(app).list())
        yield

    async with emulated() as emulator:
        app = FastAPI(lifespan=lifespan)
        setup(app, **options(emulator))
        async with served(app):
            pass
    assert resumed == [()]


async def test_a_mounted_application_shares_the_client() -> None:
    """The application and those mounted in it share one client."""
    finder = Finder()
    async with emulated() as emulator:
        inner = Starlette(routes=[finder.route("/within")])
        app = Starlette(routes=[finder.route(), Mount("/sub", inner)])
        setup(app, **options(emulator))
        async with served(app) as origin:
            assert await get(origin + "/client") == await get(origin + "/sub/within") == 200
        first, second = finder.found
        assert first is second


async def test_without_setup_there_is_no_client() -> None:
    """The error says that `setup` was not called."""
    with pytest.raises(ConfigurationError, match=r"setup\(app\)"):
        get_client(Request({"type": "http"}))


async def test_an_application_without_credentials_does_not_start() -> None:
    """An invalid configuration fails at start-up, and not at the first request."""
    app = Starlette()
    setup(app, access_key="half of a pair")
    with pytest.raises(ConfigurationError, match="secret key is missing"):
        async with app.router.lifespan_context(app):
            pass


def test_without_the_extra_the_error_names_it() -> None:
    """Without Starlette, the import raises an error that says what to install."""
    program = """
import sys
sys.modules["starlette"] = None
from kling_expand.errors import MissingExtra
try:
    import kling_expand.contrib.starlette
except MissingExtra as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'kling-expand[starlette]'" in ran.stdout
