"""A throw-away PostgreSQL server in a folder, for development and tests."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from kling_expand.errors import ConfigurationError

MISSING = "PostgreSQL must be installed on this machine, on Debian with `apt-get install postgresql`"
# `fsync` stays on: tests kill the server at any time and expect every committed row back.
_OPTIONS = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200")


def find_programs() -> Path:
    """Return the folder of `initdb` and `postgres`, of the newest version installed.

    Raises:
        ConfigurationError: when PostgreSQL is not installed.
    """
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not folders and not found:
        raise ConfigurationError(MISSING)
    return (folders[-1] if folders else Path(str(found)).resolve()).parent


class Cluster:
    """A database server with its files in *folder*: ``async with Cluster(folder) as cluster: cluster.dsn``.

    PostgreSQL refuses to run as root, so root runs it as the system's user ``postgres``. *options* are
    lines of its configuration.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._options = (*_OPTIONS, *options)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The URL that connects to it."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.create)
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def create(self) -> None:
        """Create the files of the server.

        Raises:
            ConfigurationError: when PostgreSQL is not installed, or `initdb` fails.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres")
            # Folders of pytest and tempfile are closed to other users.
            for parent in self._folder.resolve().parents:
                if parent.stat().st_mode & 0o001 == 0:
                    parent.chmod(parent.stat().st_mode | 0o011)
        words = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "--no-instructions"]
        self._run(find_programs() / "initdb", "-D", self._data, "--locale=C", *words)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    async def start(self) -> None:
        """Start the server and wait until it answers, in a thread."""
        await asyncio.to_thread(self.launch)

    def launch(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ConfigurationError: when the server does not start.
        """
        options = [word for option in (*self._options, f"port={self._port}") for word in ("-c", option)]
        with (self._folder / "log").open("ab") as log:
            command = _as_postgres(find_programs() / "postgres", "-D", self._data, *options)
            self._process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own program
                command, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(1200):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.dsn, connect_timeout=5).close()
                return
            if self._process.poll() is not None:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
        raise ConfigurationError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()[-300:]}")

    def kill(self) -> None:
        """SIGKILL all processes of the server at once, as a power cut would."""
        if self._process is not None:
            pid = int((self._data / "postmaster.pid").read_text().split()[0])
            backends = _children(pid)
            os.kill(pid, signal.SIGSTOP)  # first, else it would clean up after the killed backends
            for each in (*backends, pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            self._process.wait()
            self._process = None
            (self._data / "postmaster.pid").unlink()

    def stop(self) -> None:
        """Stop the server and close its connections. Stopping twice is harmless."""
        if self._process is not None and self._process.poll() is None:
            pid = int((self._data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGINT)
            self._process.wait()
        self._process = None

    def _run(self, *command: object) -> None:
        words = _as_postgres(*command)
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - PostgreSQL's own program
        if done.returncode:
            raise ConfigurationError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")


def _as_postgres(*command: object) -> Sequence[str]:
    words = [str(word) for word in command]
    return (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *words]
        if os.geteuid() == 0
        else words
    )


def _children(pid: int) -> list[int]:
    """Return the child processes of *pid* (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found
