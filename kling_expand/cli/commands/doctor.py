"""`kling-expand doctor`: check everything that a job needs, at no cost."""

import asyncio
import platform
import re
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict, frozen

from kling_expand import __version__
from kling_expand.cli.options import Connection, JSONOption, options
from kling_expand.cli.terminal import FAILED, NOTHING_DONE, clean, leave, shell_words, show
from kling_expand.config import Auth, Settings, StaticKey, credentials
from kling_expand.errors import AuthenticationError, ConfigurationError, KlingError, TransportError

if TYPE_CHECKING:  # imported where it is used, so that `--help` does not load aiohttp
    from kling_expand.api.codec import Response

DEVELOPMENT = frozenset({"bench", "browser", "core-test", "test", "lint", "dev"})  # extras that no user needs
MAX_CLOCK_SKEW = 5.0  # seconds: the `nbf` of a token is this far in the past (documented)


@frozen
class Finding:
    """The result of one check. `good` is None if no job depends on it, or if the check was not possible."""

    about: str
    good: bool | None
    text: str


@click.command()
@options(connection=Connection, output=JSONOption)
def doctor(*, connection: Connection, output: JSONOption) -> None:
    """Check what a job needs: credentials, the service, the clock, the extras.

    The command sends one request, which is free.

    Exit code 2 if the credentials are missing or refused, 1 if another check fails.
    """
    findings = [Finding("version", None, f"kling-expand {__version__}, Python {platform.python_version()}")]
    findings += asyncio.run(_service(connection))
    findings += _extras()
    for finding in findings:
        if output.as_json:
            show(asdict(finding))
        else:
            mark = {True: "ok", False: "bad", None: "-"}[finding.good]
            click.echo(clean(f"{mark:<4} {finding.about}: {finding.text}"))
    bad = {finding.about for finding in findings if finding.good is False}
    if bad:
        leave(NOTHING_DONE if "credentials" in bad else FAILED)


async def _service(connection: Connection) -> list[Finding]:
    """Check credentials, network and clock by reading one page of the list of tasks."""
    settings = Settings.from_env(
        base_url=connection.base_url, dialect=connection.dialect, proxy=connection.proxy
    )
    try:
        return await _request(credentials(), settings)
    except ConfigurationError as error:
        missing = Finding("credentials", good=False, text=shell_words(error.message))
    # Without credentials the request is refused, but the response still shows that the network works, and
    # has the service's date.
    return [missing, *(await _request(StaticKey("none"), settings))[1:]]


async def _request(auth: Auth, settings: Settings) -> list[Finding]:
    from random import Random

    from kling_expand.api import codec
    from kling_expand.api.session import Session

    clocks: list[tuple[float, float | None]] = []

    def decode(response: "Response") -> Any:
        clocks.append((time.time(), response.server_time))
        return codec.decode_tasks(response)

    error: KlingError | None = None
    started_at = time.monotonic()
    async with Session(settings, auth, rng=Random()) as session:
        try:
            page = {"pageNum": 1, "pageSize": 1}
            await session.call("GET", codec.create_path(settings.dialect), decode, params=page)
        except KlingError as failure:
            error = failure
    took = time.monotonic() - started_at
    service = Finding("service", good=True, text=f"{settings.base_url} answered in {took:.2f} s")
    if error is not None and not isinstance(error, AuthenticationError):
        named = settings.base_url in str(error)
        text = str(error) if named else f"{settings.base_url}: {error}"
        service = Finding("service", good=False, text=text)
    return [_accepted(auth, error), service, *(_clock(*clock) for clock in clocks[:1])]


def _accepted(auth: Auth, error: KlingError | None) -> Finding:
    if isinstance(error, AuthenticationError):
        return Finding("credentials", good=False, text=f"{_named(auth)} was refused: {error}")
    if isinstance(error, TransportError):
        return Finding("credentials", good=None, text=f"{_named(auth)}, not checked")
    return Finding("credentials", good=True, text=f"{_named(auth)} was accepted")


def _named(auth: Auth) -> str:
    """Return a name for the credentials that contains no secret."""
    return "API key" if isinstance(auth, StaticKey) else repr(auth).strip("<>").replace("KeyPair", "key pair")


def _clock(local_time: float, server_time: float | None) -> Finding:
    """Compare this machine's clock with the service's date, which has whole seconds."""
    if server_time is None:
        return Finding("clock", good=None, text="the service sent no date")
    offset = local_time - server_time - 0.5
    text = f"{abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} the service"
    if abs(offset) > MAX_CLOCK_SKEW:
        text += ", so tokens may be refused: set this machine's clock"
    return Finding("clock", good=abs(offset) <= MAX_CLOCK_SKEW, text=text)


def _extras() -> Iterator[Finding]:
    """Check which distributions of each extra are installed."""
    return (_extra(name, needs) for name, needs in _by_extra("kling-expand").items())


def _extra(extra: str, needs: Iterable[str]) -> Finding:
    versions = {name: _version(name) for name in needs}
    text = ", ".join(f"{name} {found or 'missing'}" for name, found in versions.items())
    if not all(versions.values()):
        return Finding(f"extra {extra}", good=None, text=f"{text} (pip install 'kling-expand[{extra}]')")
    return Finding(f"extra {extra}", good=True, text=text)


def _by_extra(package: str) -> dict[str, list[str]]:
    """Return the distributions of each extra, except the extras for development."""
    from importlib.metadata import PackageNotFoundError, requires

    found: dict[str, list[str]] = {}
    try:
        wanted = requires(package) or []
    except PackageNotFoundError:  # the package is not installed but runs from its source tree
        return found
    for line in wanted:
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if match and match[2] not in DEVELOPMENT and match[1] != package:
            found.setdefault(match[2], []).append(match[1])
    return found


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None
