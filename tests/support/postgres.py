"""A real PostgreSQL for tests: one server for the session, and an empty database for each test."""

import itertools
import os
from collections.abc import Iterator

import psycopg
import pytest

from kling_expand.fleet.dev_server import Cluster, temporary_folder

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Yield a running server. Without PostgreSQL this fails and says what to install."""
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
