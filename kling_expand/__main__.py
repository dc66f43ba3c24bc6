"""The entry point of ``kling-expand`` and ``python -m kling_expand``.

It installs a handler for Ctrl-C before the other imports, so that an early Ctrl-C exits without a traceback.
"""

import os
import sys

TYPE_CHECKING = False  # `typing` is not imported for it, to save time
if TYPE_CHECKING:
    import signal
    from types import FrameType
else:
    import _signal as signal  # `signal` without its enums, which are slow to create


def main() -> None:
    """Run the command line and exit, with code 2 if the extra `cli` is not installed."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)
    from importlib.util import find_spec

    if missing := [name for name in ("click", "rich", "jinja2") if find_spec(name) is None]:
        needs = " and ".join(missing)
        sys.stderr.write(f"the command line needs {needs}: pip install 'kling-expand[cli]'\n")
        sys.exit(2)
    from .cli import root

    root(prog_name="kling-expand", obj=lambda: signal.signal(signal.SIGINT, handler))


def _exit(_number: int, _frame: "FrameType | None") -> None:
    """Exit at once. While the command is being imported, there is nothing to clean up."""
    os._exit(130)


def _interrupt(_number: int, _frame: "FrameType | None") -> None:
    """Handle SIGTERM and SIGHUP in the same way as Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
