"""The entry point of ``kling-expand`` and ``python -m kling_expand``.

It handles Ctrl-C before it imports almost anything, so that an early Ctrl-C exits without a traceback.
"""

import os
import sys

TYPE_CHECKING = False  # as `typing` has it
if TYPE_CHECKING:
    import signal
    from types import FrameType
else:
    import _signal as signal  # the same without enums, which take longer to make than all of this


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
    """Exit at once while the command is being imported: there is nothing to clean up yet."""
    os._exit(130)


def _interrupt(_number: int, _frame: "FrameType | None") -> None:
    """Stop a command as Ctrl-C does, when it is terminated or its terminal is closed."""
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
