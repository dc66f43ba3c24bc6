"""Commands of the command line, in this process or their own, with an emulator in a thread."""

import asyncio
import os
import pty
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from click.testing import CliRunner, Result

from kling_expand.cli import root
from kling_expand.emulator import Emulator

T = TypeVar("T")

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
COFFEE, CHELSEA = str(PHOTOS / "coffee.jpg"), str(PHOTOS / "chelsea.jpg")
NAMES = [
    f"{prefix}_{name}"
    for prefix in ("KLING", "KLINGAI")
    for name in ("ACCESS_KEY", "SECRET_KEY", "API_KEY", "BASE_URL")
]


class Shell:
    """A runner of `kling-expand` commands, with or without an emulator."""

    def __init__(
        self, emulator: Emulator | None = None, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._emulator = emulator
        self._loop = loop

    @property
    def emulator(self) -> Emulator:
        """The emulator, which may be used only while no command runs."""
        assert self._emulator is not None
        return self._emulator

    def env(self) -> dict[str, str | None]:
        """Return the environment of a command, with only the emulator's address and credentials."""
        env: dict[str, str | None] = dict.fromkeys(NAMES)
        if self._emulator is not None:
            env |= {"KLING_API_KEY": self._emulator.api_key, "KLING_BASE_URL": self._emulator.url}
        return env | {"COLUMNS": "80"}

    def __call__(self, *args: object, **env: str) -> Result:
        """Run a command in this process."""
        return self.with_input(*args, text="", **env)

    def with_input(self, *args: object, text: str, **env: str) -> Result:
        """Run a command in this process with *text* on stdin."""
        words = [str(arg) for arg in args]
        return CliRunner().invoke(root, words, text, env=self.env() | env, prog_name="kling-expand")

    @contextmanager
    def start(self, *args: object) -> "Iterator[subprocess.Popen[str]]":
        """Start a command in its own process, and kill it at the end of the block."""
        env = {name: value for name, value in (os.environ | self.env()).items() if value is not None}
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "kling_expand", *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
        )
        watchdog = threading.Timer(30, process.kill)  # a command that hangs fails the test
        watchdog.start()
        with process:
            try:
                yield process
            finally:
                watchdog.cancel()
                process.kill()

    def on_a_terminal(
        self, *args: object, size: tuple[int, int] = (30, 80), **env: str
    ) -> tuple[str, "subprocess.Popen[bytes]"]:
        """Run a command on a terminal of *size* (lines, columns), and return its output and its process."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, size)
        given = {name: value for name, value in (os.environ | self.env()).items() if value is not None}
        del given["COLUMNS"]
        process = subprocess.Popen(
            [sys.executable, "-m", "kling_expand", *map(str, args)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=given | {"TERM": "xterm-256color"} | env,
        )
        os.close(theirs)
        shown = b""
        while piece := _read(ours):
            shown += piece
        os.close(ours)
        process.wait(30)
        assert b"Traceback" not in shown, shown.decode()
        return shown.decode(), process

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* in the emulator's own thread."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def within(self, function: Callable[..., T], *args: Any) -> T:
        """Call *function* in the emulator's own thread."""

        async def call() -> T:
            return function(*args)

        return self.run(call())


def _read(terminal: int) -> bytes:
    """Return the next output of the terminal, or nothing at its end."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports the end in this way
        return b""


@contextmanager
def shell(**settings: Any) -> Iterator[Shell]:
    """Yield a shell whose commands use an emulator in a thread."""
    ready: list[tuple[Emulator, asyncio.AbstractEventLoop, asyncio.Event]] = []
    up = threading.Event()

    async def serve() -> None:
        options: dict[str, Any] = {"engine": "flat", "queue_seconds": 0.0, "work_seconds": 0.05}
        async with Emulator(**options | settings) as emulator:
            stop = asyncio.Event()
            ready.append((emulator, asyncio.get_running_loop(), stop))
            up.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert up.wait(30)
        emulator, loop, stop = ready[0]
        yield Shell(emulator, loop)
        loop.call_soon_threadsafe(stop.set)
    finally:
        if ready and not ready[0][2].is_set():
            ready[0][1].call_soon_threadsafe(ready[0][2].set)
        thread.join(30)
