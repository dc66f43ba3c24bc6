"""How does a Starlette or FastAPI application expand photos? One client, opened and closed with it.

::

    app = FastAPI()
    setup(app, budget=800)
    app.router.routes.append(webhook("/kling"))

and in an endpoint ``get_client(request).submit(…, callback_url="https://your.site/kling")``; FastAPI gives
it by itself to a parameter of type ``Annotated[KlingClient, Depends(get_client)]``. The future hears
of a callback as soon as that comes, and by the client's own reads if it never does.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from kling_expand.client import KlingClient
from kling_expand.errors import ConfigurationError, MissingExtra

from ._callback import answer

try:
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, HTTPConnection, Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as missing:
    raise MissingExtra("this needs Starlette: pip install 'kling-expand[starlette]'") from missing

__all__ = ["get_client", "setup", "webhook"]

_CLIENT = "kling_expand_client"


def setup(app: Starlette, **options: Any) -> None:
    """Open a `KlingClient` with these *options* when *app* starts, and close it when *app* ends.

    A lifespan that *app* has already is kept: it runs within the client's life.
    """
    kept = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with KlingClient(**options) as client, kept(app) as state:
            yield {**(state or {}), _CLIENT: client}

    app.router.lifespan_context = lifespan


def get_client(request: HTTPConnection) -> KlingClient:
    """The client, from a request or a WebSocket, to a mounted application too.

    Raises `ConfigurationError` where there is none.
    """
    client = getattr(request.state, _CLIENT, None)
    if not isinstance(client, KlingClient):
        raise ConfigurationError("there is no client: call setup(app), and let the server start its lifespan")
    return client


def webhook(path: str) -> Route:
    """A route at *path* for the service's callbacks; its public address is the `callback_url` to send.

    It answers 204, or 400, 408 or 413 to what is refused (see `kling_expand.contrib._callback`).
    """
    return Route(path, _receive, methods=["POST"], include_in_schema=False)


async def _receive(request: Request) -> Response:
    status, text = await answer(
        get_client(request), request.headers, request.stream(), broken=(ClientDisconnect,)
    )
    return PlainTextResponse(text, status) if text else Response(status_code=status)
