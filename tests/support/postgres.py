"""A real PostgreSQL for tests: one server for the session, and an empty database for each test."""

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from kling_expand.fleet.dev_server import Cluster, as_postgres, temporary_folder

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Yield a running server. Without PostgreSQL, fail and say what to install."""
    with temporary_folder() as folder:
        cluster = Cluster(folder / "cluster", "fsync=off")
        cluster.create()
        cluster.launch()
        try:
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def dsn(cluster: Cluster) -> str:
    """Return the DSN of a new, empty database."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(cluster.dsn, autocommit=True) as database:
        database.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    return cluster.dsn.rpartition("/")[0] + "/" + name


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """Yield a server that is not running yet, for a test that kills it."""
    with temporary_folder() as folder:
        yield Cluster(folder / "cluster")


@pytest.fixture
async def pooled_dsn(dsn: str) -> AsyncIterator[str]:
    """Yield the DSN of the test's database through pgbouncer in transaction mode."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = conninfo_to_dict(dsn)
    through = f"postgresql://postgres@127.0.0.1:{port}/{given['dbname']}"
    with temporary_folder() as folder:
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host={given['host']} user=postgres\n"
            f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\n"
            "pool_mode=transaction\ndefault_pool_size=4\n"
        )
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "pgbouncer must be installed, on Debian with `apt-get install pgbouncer`"
        process = await asyncio.create_subprocess_exec(*as_postgres(program, "-q", settings))
        try:
            async with asyncio.timeout(20):
                while not await asyncio.to_thread(_accepts_connections, through):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
            yield through
        finally:
            process.terminate()
            await process.wait()


def _accepts_connections(dsn: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect(dsn, connect_timeout=5).close()
        return True
    return False
