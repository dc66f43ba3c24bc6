"""The adapter for Django: one client, opened and closed with the ASGI server.

::

    application = setup(get_asgi_application(), budget=800)  # asgi.py
    urlpatterns = [webhook("kling"), …]  # urls.py

and in an async view ``get_client(request).submit(…, callback_url="https://your.site/kling")``. A callback
ends the wait of that future at once; without one, polling does.

The client lives in the server's event loop. So the server must speak ASGI with `lifespan`, as uvicorn,
Hypercorn and Granian do. Django receives a whole body before it calls a view, larger ones on disk. Limit
the size and the time of a body in the server in front of it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from kling_expand.client import KlingClient, takes_options
from kling_expand.errors import ConfigurationError, KlingError, MissingExtra

from ._callback import answer_callback

try:
    from django import urls
    from django.http import HttpRequest, HttpResponse, UnreadablePostError
    from django.views.decorators.csrf import csrf_exempt
    from django.views.decorators.http import require_POST
except ImportError as _missing:
    raise MissingExtra("this needs Django: pip install 'kling-expand[django]'") from _missing

__all__ = ["get_client", "setup", "webhook"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_CLIENT = "kling_expand.client"
_PIECE = 64 * 1024  # bytes


@takes_options(KlingClient)
def setup(app: Application, **options: Any) -> Application:
    """Return *app* with a `KlingClient` of these *options*, open from the server's start to its end."""
    clients: list[KlingClient] = []

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _run_lifespan(clients, options, receive, send)
        else:
            await app({**scope, _CLIENT: clients[0]} if clients else scope, receive, send)

    return application


async def _run_lifespan(
    clients: list[KlingClient], options: dict[str, Any], receive: Receive, send: Send
) -> None:
    """Keep an open client in *clients* from the server's start to its end."""
    await receive()
    try:
        client = KlingClient(**options)
    except KlingError as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    async with client:
        clients.append(client)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        clients.clear()
    await send({"type": "lifespan.shutdown.complete"})


def get_client(request: object) -> KlingClient:
    """Return the client of the project, from the `HttpRequest` of a view.

    Raises:
        ConfigurationError: `setup` was not called, or the server does not run the lifespan.
    """
    client: KlingClient | None = getattr(request, "scope", {}).get(_CLIENT)
    if client is None:
        raise ConfigurationError("there is no client: serve setup(app) by an ASGI server with lifespan")
    return client


def webhook(path: str) -> Any:
    """Return a URL pattern at *path* for the service's callbacks; its public address is `callback_url`.

    It answers 204, or 400, 408 or 413 where it refuses a call (see `kling_expand.contrib._callback`).
    """
    return urls.path(path.removeprefix("/"), csrf_exempt(require_POST(_receive)))


async def _receive(request: HttpRequest) -> HttpResponse:
    status, text = await answer_callback(
        get_client(request), request.headers, _pieces(request), broken=(UnreadablePostError,)
    )
    return HttpResponse(text, status=status, content_type="text/plain")


async def _pieces(request: HttpRequest) -> AsyncIterator[bytes]:
    while piece := request.read(_PIECE):
        yield piece
