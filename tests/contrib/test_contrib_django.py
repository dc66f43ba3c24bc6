"""The Django adapter: the contract of every adapter, and its own features."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from support.adapter_contract import AdapterContract, Site, emulated, options
from support.asgi_server import served

from kling_expand import KlingClient
from kling_expand.contrib.django import get_client, setup, webhook
from kling_expand.errors import ConfigurationError

settings.configure(
    ALLOWED_HOSTS=["*"],
    LOGGING_CONFIG=None,
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="made up",
)

found: list[KlingClient] = []


async def client(request: HttpRequest) -> HttpResponse:
    """Remember the client of a request."""
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
        async with http.get(origin + "/client") as answer:
            assert answer.status == 200
        yield Site(origin + "/hooks/kling", found[-1])


class TestDjango(AdapterContract):
    """Served by uvicorn, with the middleware that refuses posts without a token of its forms."""

    def serve(self, **client_options: Any) -> AbstractAsyncContextManager[Site]:
        """The project above, with a client of these options."""
        return site(setup(get_asgi_application(), **client_options))


async def test_a_view_uses_the_client() -> None:
    """Views run in the loop the client lives in."""
    async with emulated() as emulator:
        app = setup(get_asgi_application(), **options(emulator))
        async with (
            served(app) as origin,
            ClientSession() as http,
            http.get(origin + "/count") as answer,
        ):
            assert await answer.text() == "0"


async def test_without_setup_there_is_no_client() -> None:
    """The error says that `setup` or the lifespan is missing."""
    with pytest.raises(ConfigurationError, match="lifespan"):
        get_client(HttpRequest())


async def test_before_the_start_the_project_is_served_without() -> None:
    """Without a lifespan the project is served unchanged."""
    scopes: list[Any] = []

    async def project(scope: Any, _receive: Any, _send: Any) -> None:
        scopes.append(scope)

    async def nothing(*_: Any) -> Any:
        return {}

    await setup(project)({"type": "http"}, nothing, nothing)
    assert scopes == [{"type": "http"}]


async def test_an_application_without_credentials_does_not_start() -> None:
    """A wrong configuration fails at the start and not at the first request."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = setup(get_asgi_application(), access_key="half of a pair")
    await app({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "secret key is missing" in sent[0]["message"]


def test_without_the_extra_the_error_names_it() -> None:
    """Where Django is not installed the import says what to install."""
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
