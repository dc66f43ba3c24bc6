"""Fixtures for tests of the fleet: a photo, an emulator, and a database with its tables."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.reporting import picture
from kling_expand.emulator import Emulator
from kling_expand.fleet.queue import Fleet


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Return the path of a photo."""
    path = tmp_path / "dog.png"
    path.write_bytes(picture(300))
    return path


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Yield an emulator whose tasks take 50 ms."""
    async with Emulator(
        engine="flat", queue_seconds=0, work_seconds=0.05, slots=100, allow_private=True
    ) as emulator:
        yield emulator


@pytest.fixture
async def fleet(dsn: str) -> AsyncIterator[Fleet]:
    """Yield a fleet in an empty database with its tables."""
    async with Fleet(dsn, webhook_secrets=[]) as fleet:
        await fleet.init()
        yield fleet
