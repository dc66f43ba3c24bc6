"""Fixtures: each test of the command line runs in its own working directory, where results go by default."""

import pytest


@pytest.fixture(autouse=True)
def _own_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to an empty directory, which is not `tmp_path`."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
