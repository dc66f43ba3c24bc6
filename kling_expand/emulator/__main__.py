"""The command line of the emulator, for `python -m kling_expand.emulator` and `kling-expand serve`."""

import argparse
import asyncio
import signal
import sqlite3
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .faults.prompt_triggers import HELP
from .server import Emulator
from .settings import check, flag, options


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """A formatter whose help starts with "Usage:", like that of the other commands."""

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = "Usage: ") -> None:
        super().add_usage(usage, actions, groups, prefix)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like those of the other commands."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"Error: {message}; see {self.prog} --help\n")


def parser(prog: str) -> argparse.ArgumentParser:
    """Return a parser with one option for each setting."""
    arguments = _Parser(
        prog=prog,
        usage="%(prog)s [options]",
        description="Run a local emulator of the image expansion service until Ctrl-C. It paints real "
        "pictures on this machine and costs nothing. When it is ready, it prints its address and "
        "credentials on one line, two `export` lines for a shell, and the address of its console.",
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
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the loop's own handlers are missing on Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    async with Emulator(**settings) as emulator:
        sys.stdout.write(
            f"{emulator.url} access_key={emulator.access_key} secret_key={emulator.secret_key} "
            f"api_key={emulator.api_key}\n\n"
            f"export KLING_BASE_URL={emulator.url}\nexport KLING_API_KEY={emulator.api_key}\n\n"
            f"console: open {emulator.url}/ in a browser; Ctrl-C ends the emulator\n"
        )
        sys.stdout.flush()
        await stop.wait()


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m kling_expand.emulator") -> int:
    """Run an emulator. Return 0 after a graceful stop, or 2 with one line on stderr if it cannot start."""
    settings = vars(parser(prog).parse_args(argv))
    try:
        for option in options():
            check(option, settings[option.name])
        asyncio.run(serve(settings))
    except sqlite3.Error as error:
        problem = f"the state file {settings['state']!r} cannot be used: {error}"
    except OSError as error:
        problem = f"cannot listen on {settings['host']}:{settings['port']}: {error.strerror or error}"
    except (RuntimeError, ValueError) as error:
        problem = str(error)
    else:
        return 0
    sys.stderr.write(f"Error: {problem}\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
