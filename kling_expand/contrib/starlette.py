"""The adapter for Starlette and FastAPI: one client, opened and closed with the application.

::

    app = FastAPI()
    setup(app, budget=800)
    app.router.routes.append(webhook("/kling"))

In an endpoint, call ``get_client(request).submit(…, callback_url="https://your.site/kling")``. FastAPI
injects the client into a parameter of type ``Annotated[KlingClient, Depends(get_client)]``. A callback ends
the wait for its future at once. Without callbacks, polling detects the end of the task.

An ASGI server announces a shutdown to the application only after all responses have ended. So make the server
cut off open progress streams, for example with uvicorn's ``--timeout-graceful-shutdown 5``. Otherwise the
shutdown waits for the tasks that the streams follow.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from kling_expand.client import KlingClient, takes_options
from kling_expand.errors import ConfigurationError, require

from ._callback import handle_callback

require("starlette", "starlette")
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

__all__ = ["get_client", "setup", "webhook"]

_CLIENT = "kling_expand_client"

if TYPE_CHECKING:
    Source = HTTPConnection | Starlette
else:
    Source = HTTPConnection  # the type for which FastAPI injects the request


@takes_options(KlingClient)
def setup(app: Starlette, **options: Any) -> None:
    """Open a `KlingClient` with these *options* when *app* starts, and close it when *app* ends.

    An existing lifespan of *app* is kept and runs while the client is open. It can call ``get_client(app)``,
    for example to `resume` the jobs that a crash left open. An error at start-up stops the server.
    """
    app_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with KlingClient(**options) as client:
            setattr(app.state, _CLIENT, client)
            async with app_lifespan(app) as state:
                yield {**(state or {}), _CLIENT: client}

    app.router.lifespan_context = lifespan


def get_client(request: Source) -> KlingClient:
    """Return the client of the application, from a request, a WebSocket or the application itself.

    A request to a mounted application works too.

    Raises:
        ConfigurationError: if `setup` was not called, or the server does not run the lifespan.
    """
    client = getattr(request.state, _CLIENT, None)
    if client is None:  # some test clients pass no lifespan state
        application = getattr(request, "scope", {}).get("app")
        client = getattr(getattr(application, "state", None), _CLIENT, None)
    if not isinstance(client, KlingClient):
        raise ConfigurationError("the application has no client: call setup(app) and enable its lifespan")
    return client


def webhook(path: str) -> Route:
    """Return a route at *path* for the service's callbacks. Pass its public URL as `callback_url`.

    It responds with 204, or with 400, 408 or 413 if it refuses a callback (see
    `kling_expand.contrib._callback`).
    """
    return Route(path, _receive, methods=["POST"], include_in_schema=False)


async def _receive(request: Request) -> Response:
    status, text = await handle_callback(
        get_client(request), request.headers, request.stream(), disconnect_errors=(ClientDisconnect,)
    )
    return PlainTextResponse(text, status) if text else Response(status_code=status)
