"""Exit codes and error messages: a failure is one sentence on stderr, never a traceback.

====  ==============================================================
0     success
1     a task failed, or the service refused a request
2     nothing was started: wrong options, input or configuration
130   interrupted with Ctrl-C
====  ==============================================================
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import click

from kling_expand.errors import ConfigurationError, InvalidRequest, KlingError

T = TypeVar("T")

FAILED = 1
NOTHING_DONE = 2
INTERRUPTED = 130


class NothingDone(click.ClickException):
    """The end of a command before it started anything; the message says what to do."""

    exit_code = NOTHING_DONE


class ServiceFailed(click.ClickException):
    """The end of a command because of an answer of the service."""

    exit_code = FAILED


class Commands(click.Group):
    """A group of commands that may raise `KlingError` and KeyboardInterrupt."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they were added."""
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the named command, and turn what it raises into a message and an exit code."""
        try:
            return super().invoke(ctx)
        except KlingError as error:
            kind = NothingDone if exit_code(error) == NOTHING_DONE else ServiceFailed
            raise kind(str(error)) from error
        except KeyboardInterrupt:
            leave(INTERRUPTED)


def exit_code(error: KlingError) -> int:
    """Return 2 for an error found before anything was sent, 1 for any other."""
    return NOTHING_DONE if isinstance(error, ConfigurationError | InvalidRequest) else FAILED


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in a new event loop. Ctrl-C cancels it, and is raised after its clean-up."""
    return asyncio.run(main)


def leave(code: int) -> NoReturn:
    """End the command with an exit code and no message."""
    raise click.exceptions.Exit(code)
