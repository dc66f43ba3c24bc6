"""The Django adapter: the contract of every adapter, and its own features."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from attrs import frozen
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from support.adapter_contract import AdapterContract, Site, emulated, options
from support.asgi_server import served

from kling_expand import KlingClient
from kling_expand.contrib.django import get_client, setup, webhook
from kling_expand.errors import ClientClosed, ConfigurationError

settings.configure(
    ALLOWED_HOSTS=["*"],
    LOGGING_CONFIG=None,
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="made up",
)

found: list[KlingClient] = []


async def client(request: HttpRequest) -> HttpResponse:
    """Record the client of a request."""
    found.append(get_client(request))
    return HttpResponse()


async def balance(request: HttpRequest) -> HttpResponse:
    """Use the client as a view would."""
    return HttpResponse(str(len(await get_client(request).list())))


urlpatterns = [webhook("/hooks/kling"), path("client", client), path("count", balance)]


@asynccontextmanager
async def site(app: Any) -> AsyncIterator[Site]:
    """Serve *app*, and get its client through a request."""
    async with served(app) as origin, ClientSession() as http:
        async with http.get(origin + "/client") as response:
            assert response.status == 200
        yield Site(origin + "/hooks/kling", found[-1])


class TestDjango(AdapterContract):
    """The contract of adapters, served by uvicorn with Django's CSRF middleware."""

    def serve(self, **client_options: Any) -> AbstractAsyncContextManager[Site]:
        """Serve the project above, with a client that has these options."""
        return site(setup(get_asgi_application(), **client_options))


async def test_a_view_uses_the_client() -> None:
    """A view runs in the event loop of the client."""
    async with emulated() as emulator:
        app = setup(get_asgi_application(), **options(emulator))
        async with (
            served(app) as origin,
            ClientSession() as http,
            http.get(origin + "/count") as response,
        ):
            assert await response.text() == "0"


async def test_without_setup_there_is_no_client() -> None:
    """The error says that `setup` or the lifespan is missing."""
    with pytest.raises(ConfigurationError, match="lifespan"):
        get_client(HttpRequest())


async def test_without_a_lifespan_the_project_is_served_unchanged() -> None:
    """Without a lifespan, the project is served unchanged."""
    scopes: list[Any] = []

    async def project(scope: Any, _receive: Any, _send: Any) -> None:
        scopes.append(scope)

    async def no_op(*_: Any) -> Any:
        return {}

    await setup(project)({"type": "http"}, no_op, no_op)
    assert scopes == [{"type": "http"}]


class Server:
    """The server's side of a lifespan, which starts an application and stops it at once."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self._coming = ["lifespan.startup", "lifespan.shutdown"]

    async def receive(self) -> dict[str, Any]:
        """Return the next message to the application."""
        return {"type": self._coming.pop(0)}

    async def send(self, message: Any) -> None:
        """Record a message of the application."""
        self.sent.append(message)

    async def run(self, app: Any) -> list[str]:
        """Run the lifespan of *app*, and return the types of its messages."""
        await app({"type": "lifespan"}, self.receive, self.send)
        return [message["type"].removeprefix("lifespan.") for message in self.sent]


ALL_COMPLETE = ["startup.complete", "shutdown.complete"]


async def test_an_application_without_credentials_does_not_start() -> None:
    """An invalid configuration fails at start-up, and not at the first request."""
    server = Server()
    assert await server.run(setup(get_asgi_application(), access_key="half of a pair")) == ["startup.failed"]
    assert "secret key is missing" in server.sent[0]["message"]


async def test_a_journal_that_is_in_use_stops_the_server(tmp_path: Path) -> None:
    """An error in opening the client stops the server, which would otherwise serve without a client."""
    async with emulated() as emulator, KlingClient(**options(emulator, journal=tmp_path / "a.db")):
        server = Server()
        app = setup(get_asgi_application(), **options(emulator, journal=tmp_path / "a.db"))
        assert await server.run(app) == ["startup.failed"]
        assert "has it open" in server.sent[0]["message"]


async def test_startup_functions_can_use_the_client() -> None:
    """They run with the open client before the server accepts requests, and their errors stop it."""
    async with emulated() as emulator:
        app = setup(get_asgi_application(), **options(emulator))
        resumed: list[object] = []

        @app.on_startup
        async def resume(client: KlingClient) -> None:
            resumed.extend([future async for future in client.resume()])
            resumed.append(await client.list())

        assert await Server().run(app) == ALL_COMPLETE
        assert resumed == [()]

        @app.on_startup
        async def fail(_client: KlingClient) -> None:
            raise ValueError("no such table")

        server = Server()
        assert await server.run(app) == ["startup.failed"]
        assert server.sent[0]["message"] == "no such table"


@pytest.mark.parametrize("failing", [None, "startup", "shutdown"])
async def test_an_inner_lifespan_is_run(failing: str | None) -> None:
    """The inner lifespan starts after the client opens. The server gets its end after the client closes."""
    found: list[KlingClient] = []

    async def project(scope: Any, receive: Any, send: Any) -> None:
        found.append(get_client(Scoped(scope)))
        for step in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{step}"
            assert await found[0].list() == ()  # open
            if step == failing:
                raise ValueError("no such table")
            await send({"type": f"lifespan.{step}.complete"})

    async with emulated() as emulator:
        messages = await Server().run(setup(project, **options(emulator)))
        expected = {
            None: ALL_COMPLETE,
            "startup": ["startup.failed"],
            "shutdown": [ALL_COMPLETE[0], "shutdown.failed"],
        }
        assert messages == expected[failing]
        with pytest.raises(ClientClosed):
            await found[0].list()


@frozen
class Scoped:
    """The part of a request that `get_client` reads."""

    scope: Any


def test_without_the_extra_the_error_names_it() -> None:
    """Without Django, the import raises an error that says what to install."""
    program = """
import sys
sys.modules["django"] = None
from kling_expand.errors import MissingExtra
try:
    import kling_expand.contrib.django
except MissingExtra as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'kling-expand[django]'" in ran.stdout
