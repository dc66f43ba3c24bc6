"""Who may steer the emulator? People at this machine: no web page of somebody else through their browser.

A page on another site can send requests to 127.0.0.1, and by changing where its own name points (DNS
rebinding) even read the answers. The first is told by `Origin` and `Sec-Fetch-Site`, the second by `Host`.
The service's own routes ask for credentials instead, and are left alone.
"""

import ipaddress
import re

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_GUARDED = re.compile(r"/(|console/.*|_emulator(/.*)?)")
_SAFE = {"GET", "HEAD"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def guard(host: str) -> Middleware:
    """Refuses strangers with 403 and a sentence; `host` is the address the emulator was told to listen on."""
    local = is_loopback(host)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _GUARDED.fullmatch(request.path):
            return await handler(request)
        wrong = _wrong_host(request, host) if local else ""
        wrong = wrong or _wrong_origin(request)
        if wrong:
            return web.Response(status=403, text=wrong + "\n", headers=_HEADERS)
        return await handler(request)

    return middleware


async def harden(request: web.Request, response: web.StreamResponse) -> None:
    """Put on every answer of the console and its routes what a browser is to hold it to."""
    if _GUARDED.fullmatch(request.path):
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an emulator that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wrong_host(request: web.Request, bound: str) -> str:
    """What is wrong with `Host`: only the names of this machine itself, with our port, are ours."""
    sockname = request.transport.get_extra_info("sockname") if request.transport else None
    port = sockname[1] if sockname else 0
    names = {"localhost", "127.0.0.1", "[::1]", f"[{bound}]" if ":" in bound else bound}
    ours = {f"{name}:{port}" for name in names} | (names if port == 80 else set())
    given = request.headers.get("Host", "")
    return "" if given.lower() in ours else f"this emulator listens on this machine only, not as {given!r}"


def _wrong_origin(request: web.Request) -> str:
    """What is wrong with where a browser says the request comes from; other programs say nothing."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    navigates = request.headers.get("Sec-Fetch-Mode") == "navigate" and request.path == "/"
    if site not in {"none", "same-origin"} and not navigates:
        return "other web pages may not steer this emulator"
    origin = request.headers.get("Origin")
    if request.method not in _SAFE and origin not in {None, f"http://{request.headers.get('Host', '')}"}:
        return f"web pages of {origin} may not steer this emulator"
    return ""
