"""The command line of the emulator, for `python -m kling_expand.emulator` and `kling-expand serve`."""

import argparse
import asyncio
import signal
import sqlite3
import sys
from collections.abc import Sequence
from typing import Any

from .faults.prompt_triggers import HELP
from .server import Emulator
from .settings import flag, options


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """A formatter whose help starts with "Usage:", as that of the other commands does."""

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = "Usage: ") -> None:
        super().add_usage(usage, actions, groups, prefix)


def parser(prog: str) -> argparse.ArgumentParser:
    """Return a parser with one option for each setting."""
    arguments = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [options]",
        description="Run a local emulator of the image expansion service until Ctrl-C. It paints real "
        "pictures on this machine and bills nothing. When it is ready, it prints its address and "
        "credentials on one line.",
        epilog=HELP,
        formatter_class=_HelpFormatter,
    )
    for option in options():
        text = option.metadata["help"].replace("%", "%%")
        if isinstance(option.default, bool):
            arguments.add_argument(flag(option), action="store_true", help=text)
        else:
            kind, choices = type(option.default), option.metadata["choices"] or None
            metavar = "CODE" if choices and kind is int else None  # a list of codes is too long to show
            arguments.add_argument(
                flag(option), type=kind, default=option.default, choices=choices, metavar=metavar, help=text
            )
    return arguments


async def serve(settings: dict[str, Any]) -> None:
    """Run an emulator until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Emulator(**settings) as emulator:
        sys.stdout.write(
            f"{emulator.url} access_key={emulator.access_key} secret_key={emulator.secret_key} "
            f"api_key={emulator.api_key}\n"
        )
        sys.stdout.flush()
        await stop.wait()


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m kling_expand.emulator") -> int:
    """Return exit code 0 after a graceful stop, or 2 with one line on stderr when it cannot start."""
    settings = vars(parser(prog).parse_args(argv))
    try:
        asyncio.run(serve(settings))
    except (RuntimeError, ValueError, OSError, sqlite3.Error) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
