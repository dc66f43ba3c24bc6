"""Downloads of images given by URL: over http(s), within limits, from public addresses.

An address is checked when its socket is created. So the check cannot be evaded by another notation in the URL
(decimal, octal, IPv4 within IPv6), or by a name that resolves differently at its second lookup. As on the
real service, a failed download fails the task and not the create.
"""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
from yarl import URL

from kling_expand.emulator.http.validation import MAX_IMAGE_BYTES

MAX_REDIRECTS = 5
_UNICAST = ipaddress.IPv6Network("2000::/3")  # all addresses of the public internet
_EMBEDDING = [ipaddress.IPv6Network("::/96"), ipaddress.IPv6Network("64:ff9b::/96")]  # with an IPv4 address


class FetchError(Exception):
    """The error for an image that could not be downloaded. The message has the reason."""


def is_public(host: str) -> bool:
    """Return whether *host* is public. A name counts as public: `public_connector` checks its addresses."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    if isinstance(address, ipaddress.IPv6Address):
        inner = [*_inner_addresses(address)]
        if inner:
            return all(each.is_global and not each.is_multicast for each in inner)
        return address in _UNICAST and address.is_global
    return address.is_global and not address.is_multicast


def _inner_addresses(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses within an IPv6 address: mapped, compatible, 6to4, Teredo, NAT64."""
    last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    found += [last for network in _EMBEDDING if address in network]
    return [each for each in found if each is not None]


def public_connector(allow_private: Callable[[], bool]) -> aiohttp.TCPConnector:
    """Return a connector that connects to public addresses only, unless *allow_private*."""

    def make(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not allow_private() and not is_public(address[0]):
            raise OSError(errno.EACCES, f"{address[0]} is not a public address")
        return socket.socket(family, kind, protocol)

    return aiohttp.TCPConnector(socket_factory=make)


def check_url(url: URL, *, allow_private: bool) -> None:
    """Check the scheme of a URL, and the address if the URL contains one.

    Raises:
        FetchError: if the scheme is not http(s), or the address is not public.
    """
    if url.scheme not in {"http", "https"} or not url.host:
        raise FetchError("only http and https addresses are fetched")
    if not allow_private and not is_public(url.host):
        raise FetchError(f"{url.host} is not a public address")


async def fetch(url: str, *, timeout: float, allow_private: bool) -> bytes:  # noqa: ASYNC109 - one limit for all redirects
    """Return the content of a URL, truncated slightly above MAX_IMAGE_BYTES.

    Raises:
        FetchError: if it cannot be downloaded within *timeout* seconds.
    """
    try:
        async with (
            asyncio.timeout(timeout),
            aiohttp.ClientSession(connector=public_connector(lambda: allow_private)) as session,
        ):
            return await _follow(session, URL(url), allow_private=allow_private)
    except TimeoutError:
        raise FetchError(f"no image within {timeout:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchError(str(error) or type(error).__name__) from None


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
