"""The adapter for aiohttp.web: one client, opened and closed with the application.

::

    app = web.Application()
    setup(app, budget=800)
    app.add_routes([webhook("/kling")])

In a handler, call ``get_client(request).submit(…, callback_url="https://your.site/kling")``. A callback ends
the wait for its future at once. Without callbacks, polling detects the end of the task.
"""

from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from kling_expand.client import KlingClient, log_running, takes_options
from kling_expand.errors import ConfigurationError

from ._callback import handle_callback

__all__ = ["get_client", "setup", "webhook"]

_CLIENT = web.AppKey("kling_expand_client", KlingClient)
_DISCONNECT_ERRORS = (web.RequestPayloadError, ConnectionError)


@takes_options(KlingClient)
def setup(app: web.Application, **options: Any) -> None:
    """Open a `KlingClient` with these *options* when *app* starts, and close it when *app* ends.

    Start-up handlers and cleanup contexts that are added after this call can use the client, for example to
    `resume`. Those that were added earlier run before it exists. At shutdown the client is closed before the
    server waits for open responses. So a progress stream ends with `ClientClosed` instead of delaying the
    shutdown.
    """

    async def open_client(app: web.Application) -> AsyncIterator[None]:
        async with KlingClient(**options) as client:
            app[_CLIENT] = client
            yield

    async def close_client(app: web.Application) -> None:
        log_running(app[_CLIENT], await app[_CLIENT].aclose())  # then `open_client` has nothing left to close

    app.cleanup_ctx.append(open_client)
    app.on_shutdown.append(close_client)


def get_client(source: web.Request | web.Application) -> KlingClient:
    """Return the client of the application. *source* is the application or a request to it.

    The request may belong to a sub-application.

    Raises:
        ConfigurationError: if `setup` was not called, or the application has not started.
    """
    holder = source.config_dict if isinstance(source, web.Request) else source
    client = holder.get(_CLIENT)
    if client is None:
        raise ConfigurationError("the application has no client: call setup(app) before it starts")
    return client


def webhook(path: str) -> web.RouteDef:
    """Return a route at *path* for the service's callbacks. Pass its public URL as `callback_url`.

    It responds with 204, or with 400, 408 or 413 if it refuses a callback (see
    `kling_expand.contrib._callback`).
    """
    return web.post(path, _receive)


async def _receive(request: web.Request) -> web.Response:
    status, text = await handle_callback(
        get_client(request), request.headers, request.content.iter_any(), disconnect_errors=_DISCONNECT_ERRORS
    )
    return web.Response(status=status, text=text or None)
