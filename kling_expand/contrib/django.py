"""How does a Django project expand photos? One client beside it, opened and closed with the server.

::

    application = setup(get_asgi_application(), budget=800)  # asgi.py
    urlpatterns = [webhook("kling"), …]  # urls.py

and in an async view ``get_client(request).submit(…, callback_url="https://your.site/kling")``. The future
hears of a callback as soon as that comes, and by the client's own reads if it never does.

The client lives in the server's event loop, so the server must be an ASGI one that tells of its start
and end (`lifespan`), as uvicorn, Hypercorn and Granian do. Django takes in a whole body, beyond a few
MB to disk, before it asks any view: how long one may be is for the server in front to say.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from kling_expand.client import KlingClient
from kling_expand.errors import ConfigurationError, KlingError, MissingExtra

from ._callback import answer

try:
    from django import urls
    from django.http import HttpRequest, HttpResponse, UnreadablePostError
    from django.views.decorators.csrf import csrf_exempt
    from django.views.decorators.http import require_POST
except ImportError as missing:
    raise MissingExtra("this needs Django: pip install 'kling-expand[django]'") from missing

__all__ = ["get_client", "setup", "webhook"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_CLIENT = "kling_expand.client"
_PIECE = 64 * 1024  # bytes of a body looked at at once


def setup(app: Application, **options: Any) -> Application:
    """*app* with a `KlingClient` of these *options* that lives from the server's start to its end."""
    clients: list[KlingClient] = []

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(clients, options, receive, send)
        else:
            await app({**scope, _CLIENT: clients[0]} if clients else scope, receive, send)

    return application


async def _live(clients: list[KlingClient], options: dict[str, Any], receive: Receive, send: Send) -> None:
    """Have a client among *clients* from the server's start to its end."""
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


def get_client(request: HttpRequest) -> KlingClient:
    """The client, from a request. Raises `ConfigurationError` where there is none."""
    client: KlingClient | None = getattr(request, "scope", {}).get(_CLIENT)
    if client is None:
        raise ConfigurationError("there is no client: serve setup(app) by an ASGI server with lifespan")
    return client


def webhook(path: str) -> Any:
    """A URL pattern at *path* for the service's callbacks; its public address is the `callback_url` to send.

    It answers 204, or 400, 408 or 413 to what is refused (see `kling_expand.contrib._callback`).
    """
    return urls.path(path.removeprefix("/"), csrf_exempt(require_POST(_receive)))


async def _receive(request: HttpRequest) -> HttpResponse:
    status, text = await answer(
        get_client(request), request.headers, _pieces(request), broken=(UnreadablePostError,)
    )
    return HttpResponse(text, status=status, content_type="text/plain")


async def _pieces(request: HttpRequest) -> AsyncIterator[bytes]:
    while piece := request.read(_PIECE):
        yield piece
