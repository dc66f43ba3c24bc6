"""The SQLite database of tasks and uploaded images, committed before a response is sent.

Without a file it is a temporary SQLite database, which keeps many uploads out of memory. Writes during a
commit are combined in the next one, so many creates share one fsync. The file belongs to one emulator while
it runs, and shrinks when tasks expire.
"""

import asyncio
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor

from .tasks import Task, dump_task, load_task

_log = logging.getLogger(__name__)
_TABLES = """
    CREATE TABLE IF NOT EXISTS tasks (task_id TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS images (digest TEXT PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""
Statement = tuple[str, tuple[object, ...]]


class Store:
    """The database at *path*, or a temporary one.

    What a `put_…` method writes is durable once the next `flush` has returned.
    """

    def __init__(self, path: str = "") -> None:
        self._durable = bool(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            self._prepare()
        except sqlite3.Error as error:  # also if the file is not a database
            self._database.close()
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise RuntimeError(f"the state file {path} is in use by another emulator") from None
        self._pending: list[Statement] = []
        self._digests: set[str] = {row[0] for row in self._database.execute("SELECT digest FROM images")}
        self._commit_task: asyncio.Task[None] | None = None

    def _prepare(self) -> None:
        """Lock the file while it is open, and create its tables."""
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA auto_vacuum = FULL")  # applies to a new file
        self._database.execute("PRAGMA journal_mode = WAL" if self._durable else "PRAGMA journal_mode = OFF")
        self._database.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        self._database.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")

    def tasks(self) -> list[Task]:
        """Return all tasks, oldest first."""
        tasks = [load_task(body) for (body,) in self._database.execute("SELECT body FROM tasks")]
        return sorted(tasks, key=lambda task: (task.created_at, task.task_id))

    def delete(self, task_id: str, digest: str) -> None:
        """Delete a task, and an image unless *digest* is empty."""
        self._write("DELETE FROM tasks WHERE task_id = ?", task_id)
        if digest:
            self._digests.discard(digest)
            self._write("DELETE FROM images WHERE digest = ?", digest)

    def number(self, name: str) -> float:
        """Return the number that is stored under a name, or 0."""
        row = self._database.execute("SELECT value FROM numbers WHERE name = ?", (name,)).fetchone()
        return float(row[0]) if row else 0.0

    def put_number(self, name: str, value: float) -> None:
        """Write a number under a name."""
        self._write("INSERT OR REPLACE INTO numbers VALUES (?, ?)", name, value)

    def put_task(self, task: Task) -> None:
        """Write a task, or its newer version."""
        self._write("INSERT OR REPLACE INTO tasks VALUES (?, ?)", task.task_id, dump_task(task))

    def put_image(self, digest: str, data: bytes) -> None:
        """Write an uploaded image, unless it is already stored."""
        if digest not in self._digests:
            self._digests.add(digest)
            self._write("INSERT OR REPLACE INTO images VALUES (?, ?)", digest, data)

    async def image(self, digest: str) -> bytes:
        """Return an uploaded image.

        Raises:
            KeyError: if there is no such image.
        """
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
            self._pending.append((statement, values))
        else:
            self._database.execute(statement, values)

    async def flush(self) -> None:
        """Wait until everything written so far is on disk.

        Raises:
            sqlite3.Error: if it could not be written.
        """
        while self._pending or self._commit_task:
            included = not self._pending  # the running commit includes everything written so far
            if self._commit_task is None:
                self._commit_task = asyncio.ensure_future(self._commit_pending())
                included = True
            await asyncio.shield(self._commit_task)
            if included:
                return

    async def _commit_pending(self) -> None:
        statements, self._pending = self._pending, []
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, statements)
        finally:
            self._commit_task = None

    def _commit(self, statements: list[Statement]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in statements:
                self._database.execute(statement, values)
        except sqlite3.Error:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    async def aclose(self) -> None:
        """Write pending changes and close the database. A failure is logged."""
        try:
            await self.flush()
        except sqlite3.Error as error:
            _log.warning("the last changes could not be written to the state file: %s", error)
        self._thread.shutdown()
        self._database.close()
