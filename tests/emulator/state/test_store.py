"""The database: durable after a flush, with few commits."""

import asyncio
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from support.stored_tasks import NOW, task

from kling_expand.emulator.state.store import Store


def crash_copy(path: str) -> str:
    """Return a copy of a database in the state in which a crash would leave it now."""
    folder = Path(tempfile.mkdtemp(dir=Path(path).parent))
    for file in Path(path).parent.glob(f"{Path(path).name}*"):
        shutil.copy(file, folder)
    return str(folder / Path(path).name)


async def test_a_file_belongs_to_one_emulator(tmp_path: Path) -> None:
    """A second store on the same file is refused with a reason, until the first is closed."""
    path = str(tmp_path / "state.db")
    store = Store(path)
    with pytest.raises(RuntimeError, match=r"state\.db is in use by another emulator"):
        Store(path)
    await store.aclose()
    await Store(path).aclose()


async def test_the_file_shrinks_when_tasks_are_deleted(tmp_path: Path) -> None:
    """When tasks are deleted, their images no longer take up space."""
    path = tmp_path / "state.db"
    store = Store(str(path))
    for number in range(5):
        store.put_image(str(number), bytes(1_000_000))
        store.put_task(task(number))
    await store.aclose()
    assert path.stat().st_size > 5_000_000
    store = Store(str(path))
    for number in range(5):
        store.delete(task(number).task_id, str(number))
    await store.aclose()
    assert path.stat().st_size < 100_000


async def test_flushed_data_is_durable(tmp_path: Path) -> None:
    """A copy of the database has the newest versions of the tasks in order, the images and the numbers."""
    path = str(tmp_path / "state.db")
    store = Store(path)
    store.put_image("d", b"\x00picture")
    for number in (3, 1, 2):
        store.put_task(task(number))
    store.put_task(task(1).painted(NOW))
    store.put_number("clock_offset", 12.5)
    await store.flush()
    again = Store(crash_copy(path))
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
        found = Store(crash_copy(path))
        assert task(number) in found.tasks()
        await found.aclose()

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
    """Without a file, uploads are kept while the process runs."""
    store = Store()
    store.put_image("d", b"picture")
    assert await store.image("d") == b"picture"
    await store.aclose()
