"""Processes that a benchmark kills and restarts: any Python command, and the emulator."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path


class Process:
    """A Python command that can be killed and restarted; its stderr is appended to *log*."""

    def __init__(self, log: Path, *command: object) -> None:
        self._log = log
        self._command = [sys.executable, *map(str, command)]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *more: object, **env: str) -> asyncio.subprocess.Process:
        """Start the command and return its process."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, *map(str, more), stdout=subprocess.PIPE, stderr=log, env=os.environ | env
            )
        return self._process

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal, and return whether the process was still running."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        process.send_signal(number)
        return True

    async def kill(self) -> bool:
        """Send SIGKILL, wait for the end, and return whether the process was still running."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        process.send_signal(signal.SIGKILL)
        return await process.wait() == -signal.SIGKILL


class Emulator:
    """An emulator with *options* that keeps its port and its state when it is restarted."""

    def __init__(self, folder: Path, *options: object) -> None:
        state = f"--state={folder / 'service.db'}"
        command = ("-m", "kling_expand.emulator", "--engine=flat", state, *options)
        self._process = Process(folder / "service.log", *command)
        self._port = 0
        self.keys: dict[str, str] = {}  # access_key, secret_key, api_key

    @property
    def url(self) -> str:
        """The address of the emulator itself, without a proxy."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Start the emulator and wait until it listens.

        Raises:
            RuntimeError: the emulator ended during its start.
        """
        process = await self._process.start("--port", self._port)
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode().split()
        if not line:
            raise RuntimeError("the emulator must print its address, but it ended; see service.log")
        self._port = int(line[0].rpartition(":")[2])
        self.keys.update((name, key) for name, _, key in (pair.partition("=") for pair in line[1:]))

    async def kill(self) -> bool:
        """Send SIGKILL and return whether the emulator was still running."""
        return await self._process.kill()
