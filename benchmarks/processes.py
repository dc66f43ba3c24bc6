"""What can be killed and started again? A command; and the emulator, on one port and one state."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path


class Process:
    """A command that can be killed and started again; what it says on stderr goes to *log*."""

    def __init__(self, log: Path, *command: object) -> None:
        self._log = log
        self._command = [sys.executable, *map(str, command)]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *more: object, **env: str) -> asyncio.subprocess.Process:
        """Start it; the process."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, *map(str, more), stdout=subprocess.PIPE, stderr=log, env=os.environ | env
            )
        return self._process

    async def kill(self) -> bool:
        """SIGKILL, and wait until it is dead; whether it was still alive."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        process.send_signal(signal.SIGKILL)
        return await process.wait() == -signal.SIGKILL


class Emulator:
    """The service with these *options*, on one port and one state however often it is killed."""

    def __init__(self, folder: Path, *options: object) -> None:
        state = f"--state={folder / 'service.db'}"
        command = ("-m", "kling_expand.emulator", "--engine=flat", state, *options)
        self._process = Process(folder / "service.log", *command)
        self._port = 0
        self.keys: dict[str, str] = {}  # access_key, secret_key, api_key

    @property
    def url(self) -> str:
        """Where it is, without any proxy."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Start it, and wait until it answers. Raises RuntimeError."""
        process = await self._process.start("--port", self._port)
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode().split()
        if not line:
            raise RuntimeError("the emulator did not start; its log says why")
        self._port = int(line[0].rpartition(":")[2])
        self.keys.update((name, key) for name, _, key in (word.partition("=") for word in line[1:]))

    async def kill(self) -> bool:
        """SIGKILL; whether it was still alive."""
        return await self._process.kill()
