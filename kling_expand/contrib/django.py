"""The adapter for Django: one client, opened and closed with the ASGI server.

::

    application = setup(get_asgi_application(), budget=800)  # asgi.py
    urlpatterns = [webhook("kling"), …]  # urls.py

In an async view, call ``get_client(request).submit(…, callback_url="https://your.site/kling")``. A callback
ends the wait for its future at once. Without callbacks, polling detects the end of the task. To use the
client when the server starts, write::

    @application.on_startup
    async def resume(client):
        async for future in client.resume():
            ...

The client runs in the server's event loop. So the server must support ASGI with `lifespan`, as uvicorn,
Hypercorn and Granian do. An ASGI server announces a shutdown to the application only after all responses have
ended. So make the server cut off open progress streams, for example with uvicorn's
``--timeout-graceful-shutdown 5``. Otherwise the shutdown waits for the tasks that the streams follow.

Django receives a whole body before it calls a view, and stores a large body on disk. Limit the size and the
upload time of a body in the reverse proxy.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from kling_expand.client import KlingClient, takes_options
from kling_expand.errors import ConfigurationError, require

from ._callback import handle_callback

require("django", "django")
from django import urls
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

__all__ = ["KlingApplication", "get_client", "setup", "webhook"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

Startup = TypeVar("Startup", bound=Callable[[KlingClient], Awaitable[object]])

logger: logging.Logger = logging.getLogger(__name__)

_CLIENT = "kling_expand.client"
_CHUNK_BYTES = 64 * 1024  # bytes


class KlingApplication:
    """An ASGI application around *app*, with a client that is open while the server runs.

    *options* are those of `KlingClient`. If *app* has a lifespan, it starts after the client has opened and
    ends before the client is closed.
    """

    def __init__(self, app: Application, options: dict[str, Any]) -> None:
        self._app = app
        self._options = options
        self._client: KlingClient | None = None
        self._startup: list[Callable[[KlingClient], Awaitable[object]]] = []

    def on_startup(self, function: Startup) -> Startup:
        """Call the async *function* with the open client before the server takes requests.

        An error that it raises stops the server.
        """
        self._startup.append(function)
        return function

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(scope, receive, send)
        else:
            await self._app({**scope, _CLIENT: self._client} if self._client else scope, receive, send)

    async def _run_lifespan(self, scope: Message, receive: Receive, send: Send) -> None:
        inner = _Lifespan(receive, send)
        try:
            async with KlingClient(**self._options) as client:
                for function in self._startup:
                    await function(client)
                self._client = client
                await inner.run(self._app, {**scope, _CLIENT: client})
                self._client = None
        except Exception as error:
            # The server must not mistake this for a missing lifespan and serve without a client.
            logger.exception("the client or the application failed during the server's %s", inner.step)
            await send({"type": f"lifespan.{inner.step}.failed", "message": str(error)})
        else:
            await send(inner.last)


class _Lifespan:
    """The lifespan of the inner application, or a minimal one if it has none, as with Django itself.

    Its last message is held back until the client is closed, as the server may stop the event loop after it.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self.step = "startup"
        self.last: Message = {"type": "lifespan.shutdown.complete"}
        self._started = False
        self._receive = receive
        self._send = send

    async def run(self, app: Application, scope: Message) -> None:
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            if self._started:
                raise
            await self.receive()
            await self.send({"type": "lifespan.startup.complete"})
            await self.receive()

    async def receive(self) -> Message:
        self._started = True
        return await self._receive()

    async def send(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            self.step = "shutdown"
            await self._send(message)
        else:
            self.last = message


@takes_options(KlingClient)
def setup(app: Application, **options: Any) -> KlingApplication:
    """Return an application around *app* that keeps a `KlingClient` open while the server runs.

    *options* are those of `KlingClient`. An error at start-up stops the server, which receives its message.
    """
    return KlingApplication(app, options)


def get_client(request: object) -> KlingClient:
    """Return the client of the project from *request*, the `HttpRequest` of a view.

    Raises:
        ConfigurationError: if `setup` was not called, or the server does not run the lifespan.
    """
    client: KlingClient | None = getattr(request, "scope", {}).get(_CLIENT)
    if client is None:
        raise ConfigurationError(
            "there is no client: serve setup(app) with an ASGI server that runs the lifespan"
        )
    return client


def webhook(path: str) -> Any:
    """Return a URL pattern at *path* for the service's callbacks. Pass its public URL as `callback_url`.

    It responds with 204, or with 400, 408 or 413 if it refuses a callback (see
    `kling_expand.contrib._callback`).
    """
    return urls.path(path.removeprefix("/"), csrf_exempt(require_POST(_receive)))


async def _receive(request: HttpRequest) -> HttpResponse:
    status, text = await handle_callback(
        get_client(request), request.headers, _chunks(request), disconnect_errors=(UnreadablePostError,)
    )
    return HttpResponse(text, status=status, content_type="text/plain")


async def _chunks(request: HttpRequest) -> AsyncIterator[bytes]:
    while chunk := request.read(_CHUNK_BYTES):
        yield chunk
