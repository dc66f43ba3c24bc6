"""The throw-away PostgreSQL server: what is missing or broken is said in one sentence."""

import tempfile
from pathlib import Path

import psycopg
import pytest

from kling_expand.errors import ConfigurationError
from kling_expand.fleet.dev_server import Cluster, find_programs

pytest_plugins = ["support.postgres"]


def test_a_missing_postgresql_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigurationError, match="apt-get install postgresql"):
        find_programs()


def test_a_server_that_cannot_start_says_why(own_cluster: Cluster) -> None:
    """Files that exist already and a wrong setting are errors; stopping afterwards is harmless."""
    own_cluster.create()
    with pytest.raises(ConfigurationError, match="initdb failed"):
        own_cluster.create()
    # Not in `tmp_path`: each run of pytest closes its parent folder to the user that PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="kling-postgres-") as folder:
        broken = Cluster(Path(folder, "cluster"), "no_such_setting=1")
        broken.create()
        with pytest.raises(ConfigurationError, match="did not start"):
            broken.launch()
        broken.stop()
        broken.kill()


async def test_a_killed_server_keeps_committed_rows(own_cluster: Cluster) -> None:
    """After SIGKILL and a restart the rows of every COMMIT are there."""
    async with own_cluster as cluster:
        with psycopg.connect(cluster.dsn) as database:
            database.execute("CREATE TABLE numbers AS SELECT 1 AS number")
        cluster.kill()
        await cluster.start()
        with psycopg.connect(cluster.dsn) as database:
            assert database.execute("SELECT number FROM numbers").fetchall() == [(1,)]
