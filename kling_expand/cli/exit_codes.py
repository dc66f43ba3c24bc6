"""What does a failure look like in a shell? One sentence and an exit code, never a traceback."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import click

from kling_expand.errors import ConfigurationError, InvalidRequest, KlingError

T = TypeVar("T")

FAILED = 1
REFUSED = 2
INTERRUPTED = 130


class Stop(click.ClickException):
    """End the command with this sentence, before anything was begun."""

    exit_code = REFUSED


class Refused(Stop):
    """End the command with what the service said."""

    exit_code = FAILED


class Commands(click.Group):
    """A group whose commands may raise what the package raises."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added, which is the order of work."""
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KlingError as error:
            kind = Stop if exit_code(error) == REFUSED else Refused
            raise kind(str(error)) from error
        except KeyboardInterrupt:
            leave(INTERRUPTED)


def exit_code(error: KlingError) -> int:
    """2 for what was wrong before anything was sent, 1 for what the service said."""
    return REFUSED if isinstance(error, ConfigurationError | InvalidRequest) else FAILED


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in an event loop of its own; Ctrl-C cancels it, and is raised when it has cleared up."""
    return asyncio.run(main)


def leave(code: int) -> NoReturn:
    """End the command; whatever there is to say has been said."""
    raise click.exceptions.Exit(code)
