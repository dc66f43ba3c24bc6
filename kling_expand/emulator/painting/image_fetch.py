"""How is an image given by URL brought in? Over http(s), within limits, from public addresses.

The addresses are checked where the connection is made, so a name that changes its mind between two lookups
gains nothing. What cannot be had is a FetchError: the task fails with it, later, like on the real service.
"""

import asyncio
import errno
import ipaddress
import socket
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from kling_expand.emulator.http.uploads import IMAGE_BYTES

REDIRECTS = 5


class FetchError(Exception):
    """The image could not be had; the text says why."""


class Guard(AbstractResolver):
    """Resolves names, but to public addresses only unless `allow_private`."""

    def __init__(self, *, allow_private: bool) -> None:
        self._names = ThreadedResolver()
        self._all = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The allowed addresses of `host`; raises OSError if none is."""
        found = await self._names.resolve(host, port, family)
        allowed = [address for address in found if self._all or is_public(address["host"])]
        if not allowed:
            raise OSError(errno.EACCES, f"{host} has no public address")
        return allowed

    async def close(self) -> None:
        """Nothing is held."""


def is_public(host: str) -> bool:
    """Whether the whole world reaches an address; a name is none and passes, for Guard to see."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return True
    inner = getattr(address, "ipv4_mapped", None)
    return (inner or address).is_global and not address.is_multicast


def open_session(seconds: float, *, allow_private: bool) -> aiohttp.ClientSession:
    """A client that reaches public addresses only; literal ones are for `check_host`."""
    connector = aiohttp.TCPConnector(resolver=Guard(allow_private=allow_private))
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=seconds))


def check_host(url: URL, *, allow_private: bool) -> None:
    """Raise FetchError for another scheme than http(s), or a literal address that is not public."""
    if url.scheme not in {"http", "https"} or not url.host:
        raise FetchError("only http and https addresses are fetched")
    if not allow_private and not is_public(url.host):
        raise FetchError(f"{url.host} is not a public address")


async def fetch(address: str, *, seconds: float, allow_private: bool) -> bytes:
    """The bytes behind a URL, at most IMAGE_BYTES + 1 of them; raises FetchError."""
    try:
        async with asyncio.timeout(seconds), open_session(seconds, allow_private=allow_private) as session:
            return await _follow(session, URL(address), allow_private=allow_private)
    except TimeoutError:
        raise FetchError(f"no image within {seconds:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchError(str(error) or type(error).__name__) from None


async def _follow(session: aiohttp.ClientSession, url: URL, *, allow_private: bool) -> bytes:
    for _ in range(REDIRECTS + 1):
        check_host(url, allow_private=allow_private)
        async with session.get(url, allow_redirects=False) as answer:
            where = answer.headers.get("Location") if answer.status in {301, 302, 303, 307, 308} else None
            if where is None:
                return await _body(answer)
            url = url.join(URL(where))
    raise FetchError(f"more than {REDIRECTS} redirects")


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    if answer.status != 200:
        raise FetchError(f"the image's server answered {answer.status}")
    data = bytearray()
    part: Any
    async for part in answer.content.iter_any():
        data += part
        if len(data) > IMAGE_BYTES:
            break
    return bytes(data)
