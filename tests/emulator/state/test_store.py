"""The database: durable after a flush, with few commits."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from support.stored_tasks import NOW, task

from kling_expand.emulator.state.store import Store


async def test_flushed_data_is_durable(tmp_path: Path) -> None:
    """A second database finds tasks in order, their newest versions, images and numbers."""
    path = str(tmp_path / "state.db")
    store = Store(path)
    store.put_image("d", b"\x00picture")
    for number in (3, 1, 2):
        store.put_task(task(number))
    store.put_task(task(1).painted(NOW))
    store.put_number("clock_offset", 12.5)
    await store.flush()
    again = Store(path)
    assert again.tasks() == [task(1).painted(NOW), task(2), task(3)]
    assert (await again.image("d"), again.number("clock_offset"), again.number("other")) == (
        b"\x00picture",
        12.5,
        0.0,
    )
    with pytest.raises(KeyError):
        await again.image("unknown")
    await again.aclose()
    await store.aclose()


async def test_concurrent_writes_share_commits(tmp_path: Path) -> None:
    """100 concurrent creates need fewer than 20 commits."""
    path = str(tmp_path / "state.db")
    store = Store(path)
    commits: list[str] = []
    store._database.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)

    async def create(number: int) -> None:
        await asyncio.sleep(0)
        store.put_task(task(number))
        await store.flush()
        assert task(number) in Store(path).tasks()

    await asyncio.gather(*(create(number) for number in range(100)))
    assert len(commits) < 20
    await store.aclose()


async def test_a_failed_write_raises(tmp_path: Path) -> None:
    """A failed write raises at `flush`, and the next write succeeds."""
    store = Store(str(tmp_path / "state.db"))
    trigger = "CREATE TRIGGER full BEFORE INSERT ON tasks BEGIN SELECT RAISE(FAIL, 'full'); END"
    store._database.execute(trigger)
    store.put_task(task())
    with pytest.raises(sqlite3.Error, match="full"):
        await store.flush()
    store._database.execute("DROP TRIGGER full")
    store.put_task(task())
    await store.flush()
    assert store.tasks() == [task()]
    await store.aclose()


async def test_without_a_file_uploads_are_found_too() -> None:
    """Without a file uploads are found while the process lives."""
    store = Store()
    store.put_image("d", b"picture")
    assert await store.image("d") == b"picture"
    await store.aclose()
