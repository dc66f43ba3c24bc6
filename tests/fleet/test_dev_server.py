"""The temporary PostgreSQL server, and its errors when something is missing or broken."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest

from kling_expand.errors import ConfigurationError
from kling_expand.fleet.dev_server import Cluster, find_programs, temporary_folder

pytest_plugins = ["support.postgres"]


def test_a_missing_postgresql_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigurationError, match="apt-get install postgresql"):
        find_programs()


def test_a_server_that_cannot_start_is_an_error_with_a_reason(own_cluster: Cluster) -> None:
    """Existing files, a long path and a wrong setting raise errors. Stopping afterwards is harmless."""
    own_cluster.create()
    with pytest.raises(ConfigurationError, match="directory must be new"):
        own_cluster.create()
    with pytest.raises(ConfigurationError, match="path of the server's directory must be shorter"):
        Cluster(Path("/tmp", "x" * 100)).create()
    with temporary_folder() as folder:
        broken = Cluster(folder / "cluster", "no_such_setting=1")
        broken.create()
        (folder / "cluster" / "log").symlink_to(folder / "other")
        with pytest.raises(OSError, match="symbolic links"):  # the server's user could have created it
            broken.launch()
        assert not (folder / "other").exists()
        (folder / "cluster" / "log").unlink()
        with pytest.raises(ConfigurationError, match="did not start"):
            broken.launch()
        broken.stop()
        broken.kill()


def assert_kill_checks_the_pid(cluster: Cluster) -> None:
    """Assert that another process is not killed, even if the server's user writes its number."""
    file = Path(unquote(cluster.dsn.partition("@")[2].partition("/")[0]), "data", "postmaster.pid")
    content = file.read_text()
    file.write_text("1\n")
    with pytest.raises(ConfigurationError, match=r"postmaster\.pid must name the server"):
        cluster.kill()
    file.write_text(content)


async def test_a_killed_server_keeps_committed_rows(own_cluster: Cluster) -> None:
    """After a SIGKILL and a restart, every committed row is still there."""
    async with own_cluster as cluster:
        with psycopg.connect(cluster.dsn) as database:
            database.execute("CREATE TABLE numbers AS SELECT 1 AS number")
        assert_kill_checks_the_pid(cluster)
        cluster.kill()
        await cluster.start()
        with psycopg.connect(cluster.dsn) as database:
            assert database.execute("SELECT number FROM numbers").fetchall() == [(1,)]


def test_no_other_user_can_connect(cluster: Cluster) -> None:
    """The server listens on no port, and its socket is in a directory that is closed to other users."""
    with psycopg.connect(cluster.dsn) as database:
        listening = database.execute("SELECT current_setting('listen_addresses')").fetchone()
        socket_folder = Path(database.info.host)
    assert listening == ("",)
    assert stat.S_ISSOCK((socket_folder / ".s.PGSQL.5432").stat().st_mode)
    assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    with socket.socket() as port:
        assert port.connect_ex(("127.0.0.1", 5432)) != 0


def test_the_mode_of_an_existing_directory_is_unchanged(tmp_path: Path) -> None:
    """A directory that the server's user cannot enter raises an error, and its mode does not change."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    before = [stat.S_IMODE(each.stat().st_mode) for each in (closed, *closed.parents)]
    if os.geteuid() == 0:
        with pytest.raises(ConfigurationError, match=r"must be open to the user postgres|must be shorter"):
            Cluster(closed / "c").create()
    assert before == [stat.S_IMODE(each.stat().st_mode) for each in (closed, *closed.parents)]


PARENT = """
import sys, time
from pathlib import Path
from kling_expand.fleet.dev_server import Cluster

cluster = Cluster(Path(sys.argv[1]))
cluster.create()
cluster.launch()
print((Path(sys.argv[1]) / "data" / "postmaster.pid").read_text().split()[0], flush=True)
time.sleep(600)
"""


def test_the_server_dies_with_its_parent() -> None:
    """The server ends when the process that started it is killed with SIGKILL."""
    with temporary_folder() as folder:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(folder / "cluster")], stdout=subprocess.PIPE
        )
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
        deadline = time.monotonic() + 20
        while Path(f"/proc/{server}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{server}").exists()
