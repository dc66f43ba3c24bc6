"""Protection of the emulator from web pages of other sites.

A page on another site can send requests to 127.0.0.1 through the user's browser. With DNS rebinding it can
even read the responses. `Origin` and `Sec-Fetch-Site` reveal the former, and `Host` reveals the latter. The
routes of the service are protected by credentials. The default credentials are public, so with them `Host` is
checked there too.
"""

import ipaddress
import re

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from attrs import fields
from yarl import URL

from kling_expand.emulator.settings import Settings

_PROTECTED = re.compile(r"/(|console/.*|_emulator(/.*)?)")
_PORT = re.compile(r":[0-9]+$")
_SAFE_METHODS = {"GET", "HEAD"}
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


def same_origin_only(settings: Settings) -> Middleware:
    """Return a middleware that refuses requests from other sites with 403."""
    local = is_loopback(settings.host)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _PROTECTED.fullmatch(request.path):
            refusal_text = _wrong_host(request, settings) if local else ""
            refusal_text = refusal_text or _wrong_origin(request, settings)
            if refusal_text:
                return web.Response(status=403, text=refusal_text + "\n", headers=_HEADERS)
        elif local and _has_default_credentials(settings):
            refusal_text = _foreign_name(request, settings)
            if refusal_text:
                return web.json_response({"code": 1103, "message": refusal_text}, status=403)
        return await handler(request)

    return middleware


def _has_default_credentials(settings: Settings) -> bool:
    names = ("api_key", "secret_key")
    return any(getattr(settings, name) == getattr(fields(Settings), name).default for name in names)


async def add_security_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the security headers of the console and the control routes to a response."""
    if _PROTECTED.fullmatch(request.path):
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)


def is_loopback(host: str) -> bool:
    """Return whether *host* is an address that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _local_names(settings: Settings) -> set[str]:
    bound = settings.host
    return {"localhost", "127.0.0.1", "[::1]", f"[{bound}]" if ":" in bound else bound}


def _foreign_name(request: web.Request, settings: Settings) -> str:
    """Return an objection unless `Host` names this machine, or the host of `public_url`.

    The port may be that of a proxy or a tunnel. A trusted proxy may send any name.
    """
    given = request.headers.get("Host", "").lower()
    name = _PORT.sub("", given)
    public = URL(settings.public_url).host if settings.public_url else None
    if settings.forwarded or name in {*_local_names(settings), public}:
        return ""
    return f"with the emulator's default credentials, Host must be a name of this machine, got {given!r}"


def _wrong_host(request: web.Request, settings: Settings) -> str:
    """Return an objection unless `Host` is this machine with the listening port, or `public_url`.

    A trusted proxy in front of the emulator may send its own name.
    """
    sockname = request.transport.get_extra_info("sockname") if request.transport else None
    port = sockname[1] if sockname else 0
    names = _local_names(settings)
    allowed = {f"{name}:{port}" for name in names} | (names if port == 80 else set())
    if settings.public_url:
        allowed.add(URL(settings.public_url).raw_authority.lower())
    given = request.headers.get("Host", "")
    if given.lower() in allowed or settings.forwarded:
        return ""
    return f"Host must be a name of this machine, such as localhost:{port}, got {given!r}"


def _wrong_origin(request: web.Request, settings: Settings) -> str:
    """Return an objection if a browser names another origin. Other programs send no such headers."""
    fetch_site = request.headers.get("Sec-Fetch-Site", "none")
    navigates = request.headers.get("Sec-Fetch-Mode") == "navigate" and request.path == "/"
    if fetch_site not in {"none", "same-origin"} and not navigates:
        return "requests from other web pages are not allowed"
    origin = request.headers.get("Origin")
    if request.method not in _SAFE_METHODS and origin not in {None, *_own_origins(request, settings)}:
        return f"requests from web pages of {origin} are not allowed"
    return ""


def _own_origins(request: web.Request, settings: Settings) -> set[str]:
    """Return the origins of the emulator's own page. A proxy may add TLS and another name."""
    host = request.headers.get("Host", "")
    own = {f"http://{host}"}
    if settings.public_url:
        own.add(str(URL(settings.public_url).origin()))
    if settings.forwarded:
        own.add(f"https://{request.headers.get('X-Forwarded-Host', host).partition(',')[0].strip()}")
    return own
