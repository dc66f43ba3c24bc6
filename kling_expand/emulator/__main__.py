"""How is an emulator started from a shell? `python -m kling_expand.emulator`, until Ctrl-C or SIGTERM."""

import argparse
import asyncio
import signal
import sqlite3
import sys
from collections.abc import Sequence
from typing import Any

from .faults.prompt_triggers import HELP
from .server import Emulator
from .settings import options


def parser() -> argparse.ArgumentParser:
    """One option for every setting."""
    arguments = argparse.ArgumentParser(
        prog="python -m kling_expand.emulator",
        description="A local emulator of Kling's image expansion; it really expands pictures, by itself.",
        epilog=HELP,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option in options():
        name = "--" + option.name.replace("_", "-")
        text = option.metadata["help"].replace("%", "%%")
        if isinstance(option.default, bool):
            arguments.add_argument(name, action="store_true", help=text)
        else:
            among = option.metadata["among"] or None
            arguments.add_argument(
                name, type=type(option.default), default=option.default, choices=among, help=text
            )
    return arguments


async def serve(settings: dict[str, Any]) -> None:
    """Run until a signal; prints one line with the address and the credentials when ready."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 after a graceful stop, 2 with one sentence when it cannot start."""
    settings = vars(parser().parse_args(argv))
    try:
        asyncio.run(serve(settings))
    except (RuntimeError, ValueError, OSError, sqlite3.Error) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
