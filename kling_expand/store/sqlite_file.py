"""Is this SQLite file ours, whole, and open here only? The one module that speaks sqlite3.

It opens, locks, checks and commits; the tables and what they mean are its caller's.

SQLite's own lock is held as long as the file is open: the kernel frees it with the process, however
that ends, it knows a file by its inode and so under every name, a forked child does not inherit it,
and it works on every system. Everything here runs on one thread.
"""

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen

from kling_expand.errors import JournalError

logger = logging.getLogger(__name__)

Connection = sqlite3.Connection
Statement = Callable[[Connection], Any]

PATIENCE = 0.5  # seconds a lock is waited for: a backup or a shell may hold it for a moment

_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk is full; make room and write again",
    sqlite3.SQLITE_IOERR_LOCK: "it cannot be locked: it is read-only, or its file system knows no locks",
    sqlite3.SQLITE_IOERR: "the disk did not take it: full, over a quota, or failing",
    sqlite3.SQLITE_READONLY: "the file or its directory is read-only",
    sqlite3.SQLITE_CANTOPEN: "its directory is missing or may not be written",
    sqlite3.SQLITE_PERM: "the file may not be opened",
    sqlite3.SQLITE_NOTADB: "this is not a journal; name another file",
    sqlite3.SQLITE_CORRUPT: "it is torn; restore a copy, or begin a new one under the same run name",
}


@frozen
class FileFormat:
    """What a file must be: its mark in the header (`application_id`), its version, its tables."""

    application_id: int
    version: int
    schema: str


class DatabaseFile:
    """One file of one kind. Made anywhere; then opened, used and closed on one thread."""

    def __init__(self, path: str, file_format: FileFormat) -> None:
        self.path = path
        self._uri = Path(path).as_uri()
        self._format = file_format
        self._connection: Connection | None = None

    def open(self) -> None:
        """Lock the file, check it, make it ready. Raises `JournalError`; a file not ours is not touched."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self._open()
            except sqlite3.Error as error:
                self._drop()
                if _primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise self._trouble(error) from error
            except JournalError:
                self._drop()
                raise
            # Two that begin together shut each other out: both let go, and return at times of their own.
            time.sleep(0.005 * (1 + os.getpid() % 7))

    def _open(self) -> None:
        before = self._look()
        db = self._connection = sqlite3.connect(
            f"{self._uri}?mode=rwc", uri=True, isolation_level=None, timeout=0
        )
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN IMMEDIATE")
        new = self._identify(db)
        db.execute("COMMIT")
        if before[0] is not None:
            self._doubt(db, new, before[1] is not None)
        settle(db)
        db.execute("BEGIN IMMEDIATE")
        if new:
            self._create(db)
        db.execute("INSERT OR REPLACE INTO meta VALUES ('pid', ?)", (str(os.getpid()),))
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the pid can now be read past the lock
        db.execute(f"PRAGMA busy_timeout = {PATIENCE * 1000:.0f}")
        self._inodes = self._look()

    def _create(self, db: Connection) -> None:
        for statement in self._format.schema.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {self._format.application_id}")
        db.execute(f"PRAGMA user_version = {self._format.version}")

    def _identify(self, db: Connection) -> bool:
        """Whether the file is new. Nothing is written before it is known to be ours."""
        mark, version, tables = (
            db.execute(question).fetchone()[0]
            for question in (
                "PRAGMA application_id",
                "PRAGMA user_version",
                "SELECT count(*) FROM sqlite_master",
            )
        )
        if (mark, version, tables) == (0, 0, 0):
            return True
        if mark != self._format.application_id:
            raise JournalError(f"{self.path} is another program's database; name another file")
        if version != self._format.version:
            raise JournalError(
                f"the journal {self.path} has schema {version}, and this is made for {self._format.version};"
                " use the version of kling_expand that wrote it"
            )
        flaw = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if flaw != "ok":
            raise JournalError(f"the journal {self.path}: {_CAUSES[sqlite3.SQLITE_CORRUPT]} ({flaw})")
        return False

    def _doubt(self, db: Connection, new: bool, log_found: bool) -> None:  # noqa: FBT001 - private
        """Say where records may be missing that no check can miss: the file as it is, is whole."""
        if new:
            logger.warning("the journal %s was an empty file: it begins anew", self.path)
            return
        killed = db.execute("SELECT count(*) FROM meta WHERE name = 'pid'").fetchone()[0]
        mode = db.execute("PRAGMA journal_mode").fetchone()[0]
        if killed and mode == "wal" and not log_found:
            logger.warning(
                "the journal %s was not closed, and %s-wal is missing: unless something else opened it"
                " since, the last records are lost; it should be put back before going on",
                self.path,
                self.path,
            )

    def commit(self, batch: list[Statement]) -> list[Any]:
        """Do a batch of work in one transaction: the results, or the exceptions it ended in.

        Statement that raises before it writes fails alone; trouble with the file fails the whole batch.
        """
        db = self._connection
        if db is None:
            return [JournalError(f"the journal {self.path} is closed") for _work in batch]
        try:
            return self._commit(db, batch)
        except sqlite3.Error as error:
            trouble = self._trouble(error)
        except JournalError as error:
            trouble = error
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled it back already
            db.execute("ROLLBACK")
        return [JournalError(trouble.message) for _work in batch]

    def _commit(self, db: Connection, batch: list[Statement]) -> list[Any]:
        db.execute("BEGIN IMMEDIATE")
        outcomes = [_outcome(work, db) for work in batch]
        db.execute("COMMIT")
        if self._look() != self._inodes:
            raise JournalError(
                f"the journal {self.path} was deleted or replaced while it was open: nothing more can be"
                " kept there; stop, and open it anew under the same run name"
            )
        return outcomes

    def _look(self) -> list[tuple[int, int] | None]:
        """Which files the names stand for now."""
        return [_inode(self.path), _inode(f"{self.path}-wal")]

    def close(self) -> None:
        """Give the file free. Twice is harmless."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("DELETE FROM meta WHERE name = 'pid'")
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _trouble(self, error: sqlite3.Error) -> JournalError:
        code = _primary(error)
        if code == sqlite3.SQLITE_BUSY:
            cause = f"{self._holder()} has it open; wait for that to end, stop it, or name another file"
        else:
            exact = getattr(error, "sqlite_errorcode", code)
            cause = _CAUSES.get(exact, _CAUSES.get(code, "it cannot be used"))
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        return JournalError(f"the journal {self.path}: {cause} ({name}: {error})")

    def _holder(self) -> str:
        """Who has the file: the process noted in it, read past the lock."""
        with contextlib.suppress(sqlite3.Error):
            peek = sqlite3.connect(f"{self._uri}?mode=ro&immutable=1", uri=True)
            with contextlib.closing(peek):
                for (pid,) in peek.execute("SELECT value FROM meta WHERE name = 'pid'"):
                    return f"process {pid}"
        return "another program"


def settle(db: Connection) -> str:
    """Choose the safest way of writing that the file system allows: the journal mode it came to."""
    mode: str = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    # Without a write-ahead log a COMMIT is the end of another file, so its directory counts too.
    db.execute(f"PRAGMA synchronous = {'FULL' if mode == 'wal' else 'EXTRA'}")
    return mode


def _outcome(work: Statement, db: Connection) -> Any:
    """A result or an exception. What only this work is to blame for leaves the others alone."""
    try:
        return work(db)
    except sqlite3.IntegrityError as error:
        return JournalError(f"two jobs cannot have one external_task_id ({error})")
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError, UnicodeError) as error:
        return JournalError(f"this cannot be stored ({error})")
    except sqlite3.Error:
        raise
    except Exception as error:  # noqa: BLE001 - it is handed to the one who asked
        return error


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - for every batch, and this one is quick
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _primary(error: sqlite3.Error) -> int:
    """SQLite's result code, without what it adds in the higher bits."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF
