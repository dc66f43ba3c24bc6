"""Download of images given by URL: over http(s), within limits, from public addresses.

Addresses are checked when the connection is made, so a name whose address changes between two lookups gains
nothing. As on the real service, a failed download fails the task later.
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

from kling_expand.emulator.http.validation import MAX_IMAGE_BYTES

MAX_REDIRECTS = 5


class FetchError(Exception):
    """The image could not be downloaded; the message says why."""


class PublicResolver(AbstractResolver):
    """A resolver that returns public addresses only, unless *allow_private*."""

    def __init__(self, *, allow_private: bool) -> None:
        self._resolver = ThreadedResolver()
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the allowed addresses of *host*.

        Raises:
            OSError: when there is none.
        """
        found = await self._resolver.resolve(host, port, family)
        allowed = [address for address in found if self._allow_private or is_public(address["host"])]
        if not allowed:
            raise OSError(errno.EACCES, f"{host} has no public address")
        return allowed

    async def close(self) -> None:
        """Do nothing: the resolver holds no resources."""


def is_public(host: str) -> bool:
    """Return whether an address is public. A name passes: `PublicResolver` checks its addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return True
    inner = getattr(address, "ipv4_mapped", None)
    return (inner or address).is_global and not address.is_multicast


def check_url(url: URL, *, allow_private: bool) -> None:
    """Check the scheme of a URL, and the address if the URL contains one.

    Raises:
        FetchError: when the scheme is not http(s), or the address is not public.
    """
    if url.scheme not in {"http", "https"} or not url.host:
        raise FetchError("only http and https addresses are fetched")
    if not allow_private and not is_public(url.host):
        raise FetchError(f"{url.host} is not a public address")


async def fetch(url: str, *, timeout: float, allow_private: bool) -> bytes:  # noqa: ASYNC109 - one budget for all redirects
    """Return the bytes behind a URL, at most MAX_IMAGE_BYTES and a few more.

    Raises:
        FetchError: when they cannot be downloaded within *timeout* seconds.
    """
    try:
        async with asyncio.timeout(timeout), _session(timeout, allow_private=allow_private) as session:
            return await _follow(session, URL(url), allow_private=allow_private)
    except TimeoutError:
        raise FetchError(f"no image within {timeout:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchError(str(error) or type(error).__name__) from None


def _session(timeout: float, *, allow_private: bool) -> aiohttp.ClientSession:
    """Return a session that connects to allowed addresses; `check_url` handles literal ones."""
    connector = aiohttp.TCPConnector(resolver=PublicResolver(allow_private=allow_private))
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout))


async def _follow(session: aiohttp.ClientSession, url: URL, *, allow_private: bool) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        check_url(url, allow_private=allow_private)
        async with session.get(url, allow_redirects=False) as response:
            redirected = response.status in {301, 302, 303, 307, 308}
            location = response.headers.get("Location") if redirected else None
            if location is None:
                return await _read(response)
            url = url.join(URL(location))
    raise FetchError(f"more than {MAX_REDIRECTS} redirects")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    if response.status != 200:
        raise FetchError(f"the image's server answered {response.status}")
    data = bytearray()
    part: Any
    async for part in response.content.iter_any():
        data += part
        if len(data) > MAX_IMAGE_BYTES:
            break
    return bytes(data)
