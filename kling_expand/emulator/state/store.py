"""What survives a crash? Tasks and the pictures that came in, in SQLite; committed before anybody is told.

Without a file it is a temporary database of SQLite's own, which holds uploads outside of memory when there
are many. Writes are gathered while one commit is on its way and go together into the next, so many creates
share one sync.
"""

import asyncio
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from .tasks import Task, dump, load

_TABLES = """
    CREATE TABLE IF NOT EXISTS tasks (task_id TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS images (digest TEXT PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""
Write = tuple[str, tuple[object, ...]]


class Store:
    """Open with a path, or "" for none; every `put_…` is durable once the `flush` after it has returned."""

    def __init__(self, path: str = "") -> None:
        self._durable = bool(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL" if path else "PRAGMA journal_mode = OFF")
        self._database.execute(f"PRAGMA synchronous = {'FULL' if path else 'OFF'}")
        self._database.executescript(_TABLES)
        self._waiting: list[Write] = []
        self._digests: set[str] = {row[0] for row in self._database.execute("SELECT digest FROM images")}
        self._committing: asyncio.Task[None] | None = None

    def tasks(self) -> list[Task]:
        """Everything that was put and not dropped, oldest first."""
        rows = self._database.execute("SELECT body FROM tasks ORDER BY task_id")
        return [load(body) for (body,) in rows]

    def drop(self, task_ids: Iterable[str]) -> None:
        """Forget tasks whose life is over, and pictures nobody needs; before anything else is put."""
        self._database.executemany(
            "DELETE FROM tasks WHERE task_id = ?", [(task_id,) for task_id in task_ids]
        )
        needed = {task.digest for task in self.tasks()}
        for digest in self._digests - needed:
            self._database.execute("DELETE FROM images WHERE digest = ?", (digest,))
        self._digests &= needed

    def fact(self, name: str) -> float:
        """A number that was put; 0 if none was."""
        row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return float(row[0]) if row else 0.0

    def put_fact(self, name: str, value: float) -> None:
        """Remember a number."""
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)

    def put_task(self, task: Task) -> None:
        """Remember a task, or what is new of it."""
        self._write("INSERT OR REPLACE INTO tasks VALUES (?, ?)", task.task_id, dump(task))

    def put_image(self, digest: str, data: bytes) -> None:
        """Remember an upload, each only once."""
        if digest not in self._digests:
            self._digests.add(digest)
            self._write("INSERT OR REPLACE INTO images VALUES (?, ?)", digest, data)

    async def image(self, digest: str) -> bytes:
        """An upload that was put; raises KeyError for others."""
        await self.flush()
        if not self._durable:
            return self._read(digest)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, digest)

    def _read(self, digest: str) -> bytes:
        row = self._database.execute("SELECT data FROM images WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            raise KeyError(digest)
        return bytes(row[0])

    def _write(self, statement: str, *values: object) -> None:
        if self._durable:
            self._waiting.append((statement, values))
        else:
            self._database.execute(statement, values)

    async def flush(self) -> None:
        """Return when all that was put so far is on the disk; raises sqlite3.Error when that failed."""
        while self._waiting or self._committing:
            mine = not self._waiting  # all of it is in the commit that runs
            if self._committing is None:
                self._committing = asyncio.ensure_future(self._commit_waiting())
                mine = True
            await asyncio.shield(self._committing)
            if mine:
                return

    async def _commit_waiting(self) -> None:
        writes, self._waiting = self._waiting, []
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, writes)
        finally:
            self._committing = None

    def _commit(self, writes: list[Write]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in writes:
                self._database.execute(statement, values)
        except sqlite3.Error:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    async def aclose(self) -> None:
        """Write what waits and close."""
        await self.flush()
        self._thread.shutdown()
        self._database.close()
