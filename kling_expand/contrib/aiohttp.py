"""How does an aiohttp.web application expand photos? One client, opened and closed with it.

::

    app = web.Application()
    setup(app, budget=800)
    app.add_routes([webhook("/kling")])

and in a handler ``get_client(request).submit(…, callback_url="https://your.site/kling")``. The future
hears of a callback as soon as that comes, and by the client's own reads if it never does.
"""

from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from kling_expand.client import KlingClient
from kling_expand.errors import ConfigurationError

from ._callback import answer

__all__ = ["get_client", "setup", "webhook"]

_CLIENT = web.AppKey("kling_expand_client", KlingClient)
_BROKEN = (web.RequestPayloadError, ConnectionError)


def setup(app: web.Application, **options: Any) -> None:
    """Open a `KlingClient` with these *options* when *app* starts, and close it when *app* ends.

    What *app* was told before to do at its start happens before, what it is told later finds the client.
    """

    async def opened(app: web.Application) -> AsyncIterator[None]:
        async with KlingClient(**options) as client:
            app[_CLIENT] = client
            yield

    app.cleanup_ctx.append(opened)


def get_client(source: web.Request | web.Application) -> KlingClient:
    """The client, from a request (to a sub-application too) or the application itself.

    Raises `ConfigurationError` where there is none.
    """
    holder = source.config_dict if isinstance(source, web.Request) else source
    client = holder.get(_CLIENT)
    if client is None:
        raise ConfigurationError("there is no client: call setup(app), and let the application start")
    return client


def webhook(path: str) -> web.RouteDef:
    """A route at *path* for the service's callbacks; its public address is the `callback_url` to send.

    It answers 204, or 400, 408 or 413 to what is refused (see `kling_expand.contrib._callback`).
    """
    return web.post(path, _receive)


async def _receive(request: web.Request) -> web.Response:
    status, text = await answer(
        get_client(request), request.headers, request.content.iter_any(), broken=_BROKEN
    )
    return web.Response(status=status, text=text or None)
