"""Whom do the commands talk to? The service, or an emulator that lives as long as the command."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

import click
from attrs import frozen

from kling_expand.client import KlingClient
from kling_expand.config import Settings, credentials
from kling_expand.errors import ConfigurationError
from kling_expand.jobs.poll_schedule import ExponentialSchedule, PollSchedule
from kling_expand.models import Dialect

from .exit_codes import Stop
from .options import gathered

QUEUE_SECONDS, WORK_SECONDS = 0.2, 0.3  # the local emulator's; painting takes what it takes


@frozen
class Connection:
    """What the options say of the other side."""

    base_url: str | None
    dialect: str | None
    local: bool = False

    def resume(self, output: str) -> str:
        """The command that waits for tasks, but for their ids; empty where tasks end with this command."""
        given = (("-o", output), ("--base-url", self.base_url), ("--dialect", self.dialect))
        options = "".join(f"{option} {quote(value)} " for option, value in given if value)
        return "" if self.local else f"kling-expand wait {options}"

    def require(self) -> None:
        """Raise `Stop` where credentials are needed and missing."""
        if not self.local:
            _require_credentials()

    @asynccontextmanager
    async def client(self, *, state: str = "", **options: Any) -> AsyncIterator[KlingClient]:
        """An open client; a local emulator keeps its tasks in the file *state*, if any.

        Raises `Stop` where credentials or an extra are missing.
        """
        async with AsyncExitStack() as stack:
            given: dict[str, Any] = {"base_url": self.base_url}
            if self.local:
                given = await stack.enter_async_context(_emulator(state))
            else:
                self.require()
            given |= {"dialect": self.dialect, "schedule": _schedule(given["base_url"])}
            kling = KlingClient(**given, **options)
            yield await stack.enter_async_context(kling)


def _schedule(base_url: str | None) -> PollSchedule | None:
    """An emulator on this machine may be asked more often than a service that serves many."""
    if urlsplit(Settings.from_env(base_url=base_url).base_url).hostname not in {
        "127.0.0.1",
        "localhost",
        "::1",
    }:
        return None
    return ExponentialSchedule(Random(), first=0.2, longest=1.0)


def _require_credentials() -> None:
    try:
        credentials()
    except ConfigurationError as error:
        hint = "an emulator on this machine needs none: see `kling-expand serve`, and `expand --local`"
        raise Stop(f"{error.message} ({hint})") from None


@asynccontextmanager
async def _emulator(state: str) -> AsyncIterator[dict[str, Any]]:
    from kling_expand.emulator import Emulator

    async with AsyncExitStack() as stack:
        try:
            emulator = Emulator(queue_seconds=QUEUE_SECONDS, work_seconds=WORK_SECONDS, state=state)
            await stack.enter_async_context(emulator)
        except (RuntimeError, OSError) as error:
            raise Stop(str(error)) from error
        yield {"base_url": emulator.url, "api_key": emulator.api_key}


_OPTIONS: dict[str, Any] = {
    "base_url": click.option(
        "--base-url", metavar="URL", help="Where the service is; KLING_BASE_URL says it too."
    ),
    "dialect": click.option(
        "--dialect",
        type=click.Choice([str(dialect) for dialect in Dialect]),
        help="The interface to use; editing unless given.",
    ),
}

connection_options = gathered("connection", Connection, **_OPTIONS)
local_options = gathered(
    "connection",
    Connection,
    local=click.option(
        "--local", is_flag=True, help="Paint on this machine, by an emulator: no account, no cost."
    ),
    **_OPTIONS,
)
