"""A temporary PostgreSQL server in a directory, for development and tests.

The server listens on a Unix socket in a directory that no other user can enter. Otherwise any user could
connect and run programs as the server's user. The server stops when the process that started it ends, even if
that process is killed with SIGKILL.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg

from kling_expand.errors import ConfigurationError

MISSING = "PostgreSQL must be installed on this machine; on Debian, run `apt-get install postgresql`"
# `fsync` stays on: tests kill the server at any time, and no committed row may be lost.
_OPTIONS = ("listen_addresses=", "unix_socket_permissions=0700", "max_connections=200")
_MAX_SOCKET_PATH = 103  # bytes; macOS allows 104 and Linux 108, including the final NUL
_GUARD = """
exec 3<&0
"$@" <&- 3<&- & guarded=$!
(read -r _ <&3; kill -s "$0" "$guarded") & watcher=$!
wait "$guarded"; code=$?
kill "$watcher"
exit "$code"
"""


def find_programs() -> Path:
    """Return the directory that holds `initdb` and `postgres` of the newest installed version.

    Raises:
        ConfigurationError: if PostgreSQL is not installed.
    """
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not folders and not found:
        raise ConfigurationError(MISSING)
    return (folders[-1] if folders else Path(str(found)).resolve()).parent


class Cluster:
    """A database server with its files in *folder*: ``async with Cluster(folder) as cluster: cluster.dsn``.

    PostgreSQL refuses to run as root. Under root, the server therefore runs as the system user ``postgres``,
    which must be able to enter the directory (see `temporary_folder`). *options* are settings of the server,
    such as ``max_connections=50``.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._options = (*_OPTIONS, f"unix_socket_directories={folder}", *options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The URL to connect to the server."""
        return f"postgresql://postgres@{quote(str(self._folder), safe='')}/postgres"

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.create)
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def create(self) -> None:
        """Create the directory and the files of the server.

        Raises:
            ConfigurationError: if PostgreSQL is not installed, `initdb` fails, or the directory exists, has
                a path that is too long, or cannot be entered by the server's user.
        """
        if len(os.fsencode(self._folder / ".s.PGSQL.5432")) > _MAX_SOCKET_PATH:
            raise ConfigurationError(
                f"the path of the server's directory must be shorter, got {self._folder}"
            )
        try:
            self._folder.mkdir(mode=0o700)
        except OSError as error:
            raise ConfigurationError(f"the server's directory must be new: {error}") from error
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
            closed = [each for each in self._folder.parents if not each.stat().st_mode & 0o001]
            if closed:
                raise ConfigurationError(
                    f"{closed[0]} must be open to the user postgres; run chmod o+x, or use another directory"
                )
        words = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "--no-instructions"]
        self._run(find_programs() / "initdb", "-D", self._data, "--locale=C", *words)

    async def start(self) -> None:
        """Start the server without blocking the event loop, and wait until it accepts connections."""
        await asyncio.to_thread(self.launch)

    def launch(self) -> None:
        """Start the server and wait until it accepts connections.

        Raises:
            ConfigurationError: if the server does not start.
        """
        options = [word for option in self._options for word in ("-c", option)]
        with open(self._folder / "log", "ab", opener=_open_log) as log:
            server = [find_programs() / "postgres", "-D", self._data, *options]
            command = as_postgres(*guard("INT", *server))
            self._process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own program
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
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
        """Send SIGKILL to all processes of the server at once, to simulate a power failure."""
        if self._process is not None:
            pid = self._pid()
            backends = _children(pid)
            os.kill(pid, signal.SIGSTOP)  # first, or it would clean up after the killed backends
            for each in (*backends, pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            self._wait()
            (self._data / "postmaster.pid").unlink()

    def stop(self) -> None:
        """Stop the server and close its connections. Stopping twice is harmless."""
        if self._process is not None:
            if self._process.poll() is None:
                os.kill(self._pid(), signal.SIGINT)
            self._wait()

    def _pid(self) -> int:
        """Return the process id of the server from a file that the server's user can write.

        Raises:
            ConfigurationError: if the process does not belong to the session that was started.
        """
        pid = int((self._data / "postmaster.pid").read_text().split()[0])
        if self._process is None or os.getsid(pid) != self._process.pid:
            raise ConfigurationError(f"postmaster.pid must name the server that was started, got {pid}")
        return pid

    def _wait(self) -> None:
        """Wait until the server has ended."""
        process, self._process = self._process, None
        if process is not None:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _run(self, *command: object) -> None:
        words = as_postgres(*command)
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - PostgreSQL's own program
        if done.returncode:
            raise ConfigurationError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a directory that the server's user can enter, and delete it at the end."""
    with tempfile.TemporaryDirectory(prefix="kling-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o711)
        yield folder


def guard(signal_name: str, *command: object) -> list[object]:
    """Return a command that runs *command*, and sends it a signal when standard input is closed.

    If standard input is a pipe, it is closed when the process at its other end ends for any reason.
    """
    return ["/bin/sh", "-c", _GUARD, signal_name, *command]


def as_postgres(*command: object) -> Sequence[str]:
    """Return *command* as words, to be run as the server's user if the current user is root."""
    words = [str(word) for word in command]
    return (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *words]
        if os.geteuid() == 0
        else words
    )


def _open_log(path: str, flags: int) -> int:
    """Open the log of the server without following a link that its user may have created."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _children(pid: int) -> list[int]:
    """Return the child processes of *pid* (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found
