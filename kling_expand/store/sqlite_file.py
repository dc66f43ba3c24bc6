"""One locked and checked SQLite file. Only this module calls sqlite3.

The module opens, locks and checks the file and commits to it. The caller defines the tables.

Three locks keep other processes out while the file is open:

- SQLite's own lock, in exclusive mode. It keeps out every program that uses SQLite. But POSIX drops all
  locks of a process on a file as soon as that process closes any descriptor of it, as ``shutil.copy`` does.
- A lock of one byte on an open file description, if the system has such locks (Linux). Only closing that
  description releases it, so neither a copy nor a second store in the same process releases it. This lock is
  checked first.
- SQLite's lock again, renewed with each commit in case it was dropped.

All three identify a file by its inode, so they hold under every name of the file, and the kernel drops them
when the process ends. Apart from the constructor, everything here runs on one thread.
"""

import contextlib
import errno
import logging
import os
import shutil
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attrs import frozen

from kling_expand.errors import JournalError

try:
    import fcntl
except ImportError:  # Windows, where SQLite's own lock is not dropped
    fcntl = None  # type: ignore[assignment]  # the module is typed as always present

logger: logging.Logger = logging.getLogger(__name__)

Connection = sqlite3.Connection
Statement = Callable[[Connection], Any]

WORKER = "{worker}"  # in a path: the number of the first file that no other process has open
MAX_WORKERS = 1000
COPY_TRIES = 50
LOCK_TIMEOUT = 0.5  # seconds: a backup or a shell may hold a lock for a moment
_SQLITE_BYTES = 512, 0x40000000  # the range that SQLite locks: length and first byte
_LOCK_BYTE = 0x40001000  # a byte outside that range

_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space and try again",
    sqlite3.SQLITE_IOERR_LOCK: "it cannot be locked: it is read-only, or its file system has no locks",
    sqlite3.SQLITE_IOERR: "the disk refused a write: it is full, over a quota, or failing",
    sqlite3.SQLITE_READONLY: "the file or its directory is read-only",
    sqlite3.SQLITE_CANTOPEN: "its directory is missing or not writable",
    sqlite3.SQLITE_PERM: "permission to open the file was denied",
    sqlite3.SQLITE_NOTADB: "this is not a journal; name another file",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore a copy, or start a new one with the same run name",
}

_descriptors: set[int] = set()  # the open ones that hold a lock


@frozen
class FileFormat:
    """The format of a file: its `application_id` in the header, its schema version and its tables.

    `migrations` are the scripts from each version to the next, beginning with version 1.
    """

    application_id: int
    version: int
    schema: str
    migrations: tuple[str, ...] = ()


class DatabaseFile:
    """One file of one format, opened, used and closed on one thread.

    For a temporary copy, messages show the path that it was *copied_from*.
    """

    def __init__(self, path: str, file_format: FileFormat, copied_from: str = "") -> None:
        self.path: str = path
        self._copied_from = copied_from
        self._format = file_format
        self._connection: Connection | None = None
        self._descriptor = -1  # holds the lock, and shows whether the file was deleted
        self._links = 1  # the number of the file's names (hard links)
        self._has_log = False

    @property
    def _name(self) -> str:
        return self._copied_from or self.path

    def open(self) -> None:
        """Lock the file, check it, and create its tables if it is new.

        Raises:
            JournalError: if the file cannot be used. A file of another kind is not changed.
        """
        if WORKER not in self.path:
            return self._open_within(LOCK_TIMEOUT)
        pattern = self.path
        for number in range(MAX_WORKERS):
            self.path = pattern.replace(WORKER, str(number))
            try:
                return self._open_within(0.0)
            except JournalError as error:
                if not _is_busy(error.__cause__):
                    raise
        raise JournalError(f"all {MAX_WORKERS} journals {pattern} are open in other processes")

    def _open_within(self, seconds: float) -> None:
        """Open the file as soon as it is unlocked, or raise `JournalError` after these *seconds*."""
        end_at = time.monotonic() + seconds
        while True:
            try:
                return self._open()
            except (sqlite3.Error, BlockingIOError) as error:
                self._drop()
                if not _is_busy(error) or time.monotonic() >= end_at:
                    raise self._explain(error) from error
            except JournalError:
                self._drop()
                raise
            # Two processes that start together may lock each other out, so each retries at a different time.
            time.sleep(0.005 * (1 + os.getpid() % 7))

    def _open(self) -> None:
        found, log_found = os.path.exists(self.path), os.path.exists(f"{self.path}-wal")  # noqa: PTH110 - quick
        self._lock()
        db = self._connection = sqlite3.connect(
            f"{Path(self.path).as_uri()}?mode=rwc", uri=True, isolation_level=None, timeout=0
        )
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN IMMEDIATE")
        new = self._check(db)
        db.execute("COMMIT")
        if found:
            self._warn_of_loss(db, new=new, log_found=log_found)
        mode = set_journal_mode(db)
        db.execute("BEGIN IMMEDIATE")
        if new:
            self._create(db)
        self._migrate(db)
        db.execute("INSERT OR REPLACE INTO meta VALUES ('pid', ?)", (str(os.getpid()),))
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that a refused process can read the pid
        db.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT * 1000:.0f}")
        self._links, self._has_log = os.fstat(self._descriptor).st_nlink, mode == "wal"

    def _lock(self) -> None:
        """Acquire the lock that only closing its descriptor releases, or raise `BlockingIOError`."""
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            return  # SQLite then gets the same error and reports its cause
        _descriptors.add(self._descriptor)
        if hasattr(fcntl, "F_OFD_SETLK"):
            request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _LOCK_BYTE, 1, 0)
            _try_lock(lambda: fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, request))

    def _create(self, db: Connection) -> None:
        for statement in self._format.schema.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {self._format.application_id}")
        db.execute(f"PRAGMA user_version = {self._format.version}")

    def _migrate(self, db: Connection) -> None:
        """Upgrade a file of an earlier version, within the open transaction."""
        version = db.execute("PRAGMA user_version").fetchone()[0]
        for script in self._format.migrations[version - 1 :]:
            for statement in script.split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {self._format.version}")

    def _check(self, db: Connection) -> bool:
        """Return whether the file is new. Raise `JournalError` if it is neither new nor an intact journal."""
        application_id, version, tables = (
            db.execute(query).fetchone()[0]
            for query in (
                "PRAGMA application_id",
                "PRAGMA user_version",
                "SELECT count(*) FROM sqlite_master",
            )
        )
        if (application_id, version, tables) == (0, 0, 0):
            return True
        if application_id != self._format.application_id:
            raise JournalError(f"{self._name} is another program's database; name another file")
        if not 1 <= version <= self._format.version:
            raise JournalError(
                f"the schema version of the journal {self._name} must be at most {self._format.version}, got"
                f" {version}; use the version of kling_expand that wrote it"
            )
        problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise JournalError(f"the journal {self._name}: {_CAUSES[sqlite3.SQLITE_CORRUPT]} ({problem})")
        return False

    def _warn_of_loss(self, db: Connection, *, new: bool, log_found: bool) -> None:
        """Warn if records may be missing although the file itself is valid."""
        if new:
            if not self._copied_from:
                logger.warning("the journal %s was an empty file and is now a new journal", self.path)
            return
        unclosed = db.execute("SELECT count(*) FROM meta WHERE name = 'pid'").fetchone()[0]
        mode = db.execute("PRAGMA journal_mode").fetchone()[0]
        if unclosed and mode == "wal" and not log_found:
            logger.warning(
                "the journal %s was not closed, and %s-wal is missing: unless another program has opened the"
                " journal since then, its last records are lost; restore the -wal file before you continue",
                self._name,
                self._name,
            )

    def commit(self, batch: list[Statement]) -> list[Any]:
        """Execute a batch in one transaction, and return a result or an exception for each statement.

        A statement that raises before it writes fails alone. An error of the file fails the whole batch.
        """
        db = self._connection
        if db is None:
            return [JournalError(f"the journal {self._name} is closed") for _statement in batch]
        try:
            return self._commit(db, batch)
        except sqlite3.Error as error:
            failure = self._explain(error)
        except JournalError as error:
            failure = error
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled it back already
            db.execute("ROLLBACK")
        return [JournalError(failure.message) for _statement in batch]

    def _commit(self, db: Connection, batch: list[Statement]) -> list[Any]:
        self._renew_lock()
        db.execute("BEGIN IMMEDIATE")
        outcomes = [_outcome(statement, db) for statement in batch]
        db.execute("COMMIT")
        if self._is_lost():
            raise JournalError(
                f"the journal {self._name} was deleted or replaced while it was open: no more records can be"
                " kept in it; stop, and open it again with the same run name"
            )
        return outcomes

    def _renew_lock(self) -> None:
        """Lock SQLite's bytes again. This has no effect unless this process has dropped its locks."""
        if fcntl is None or self._descriptor < 0:
            return
        try:
            _try_lock(lambda: fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, *_SQLITE_BYTES))
        except BlockingIOError:
            raise JournalError(
                f"the journal {self._name} was opened by another program while this process had lost its lock"
            ) from None

    def _is_lost(self) -> bool:
        """Return whether the path no longer refers to the open file.

        Inode numbers are compared only if the file has lost a name, because they change by themselves on some
        FUSE and network mounts.
        """
        try:
            by_path, by_descriptor = os.stat(self.path), os.fstat(self._descriptor)  # noqa: PTH116 - for each batch
            if self._has_log:
                os.stat(f"{self.path}-wal")  # noqa: PTH116 - the same
        except OSError:
            return True
        lost = by_descriptor.st_nlink < self._links and not os.path.samestat(by_path, by_descriptor)
        self._links = self._links if lost else by_descriptor.st_nlink
        return lost

    def close(self) -> None:
        """Close and unlock the file. A second call does nothing."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("DELETE FROM meta WHERE name = 'pid'")
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._descriptor >= 0:  # closed last, as that drops SQLite's lock too
            _descriptors.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _explain(self, error: sqlite3.Error | BlockingIOError) -> JournalError:
        if _is_busy(error):
            pid = writer_of(self.path)
            known = "this process" if pid == os.getpid() else f"process {pid}"
            holder = known if pid else "another program"
            cause = f"{holder} has it open; wait for it to end, stop it, or name another file"
            return JournalError(f"the journal {self._name}: {cause}")
        code = _primary_code(error)
        exact = getattr(error, "sqlite_errorcode", code)
        cause = _CAUSES.get(exact, _CAUSES.get(code, "it cannot be used"))
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        return JournalError(f"the journal {self._name}: {cause} ({name}: {error})")


def copy_file(path: str, folder: str) -> str:
    """Copy a file to *folder*, even while another process writes to it. Return the path of the copy.

    Raises:
        JournalError: if the file cannot be read, or was rewritten during every try.
    """
    target = os.path.join(folder, os.path.basename(path))  # noqa: PTH118, PTH119 - paths are text here
    try:
        for _ in range(COPY_TRIES):
            before = os.stat(path)  # noqa: PTH116
            shutil.copyfile(path, target)
            for log in ("-wal", "-journal"):
                Path(target + log).unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(path + log, target + log)
            after = os.stat(path)  # noqa: PTH116
            # Appending to the log in the meantime is harmless. But a checkpoint rewrites the file, and the
            # copied log may then belong to another state of it.
            if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size):
                return target
            time.sleep(0.02)
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be read ({error.strerror})") from error
    raise JournalError(f"the journal {path} changed while it was being copied; try again")


def read_copy(path: str, statement: Statement) -> Any:
    """Return what *statement* finds in a copy of a file that another process may be writing.

    A file without tables is new, or its process was killed at the start. The result is then None.

    Raises:
        JournalError: if the file cannot be read.
    """
    with TemporaryDirectory(prefix="kling-expand-") as folder:
        copy = copy_file(path, folder)
        try:
            with contextlib.closing(sqlite3.connect(copy)) as db:
                db.execute("PRAGMA synchronous = OFF")  # the copy is deleted at once
                tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                return statement(db) if tables else None
        except sqlite3.Error as error:
            raise JournalError(f"the journal {path} cannot be read ({error})") from error


def worker_files(pattern: str) -> list[str]:
    """Return the files that exist for a path with ``{worker}``, or none for any other path."""
    if WORKER not in pattern:
        return []
    named = (pattern.replace(WORKER, str(number)) for number in range(MAX_WORKERS))
    return [path for path in named if os.path.exists(path)]  # noqa: PTH110 - quick


def writer_of(path: str) -> int | None:
    """Return the id of the process that has the file open, or None. The file is read without a lock."""
    found = peek_meta(path, "pid")
    return int(found) if found and found.isdecimal() else None


def peek_meta(path: str, name: str) -> str | None:
    """Return a value of the table `meta` without a lock, or None.

    A value that a killed process wrote may be missing.
    """
    with contextlib.suppress(sqlite3.Error):
        db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        with contextlib.closing(db):
            for (value,) in db.execute("SELECT value FROM meta WHERE name = ?", (name,)):
                return str(value)
    return None


def count_if_unlocked(path: str, query: str) -> int:
    """Return the number that *query* selects from a file that no process has open, or 0."""
    with contextlib.suppress(sqlite3.Error):
        reader = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=0)
        with contextlib.closing(reader):
            return int(reader.execute(query).fetchone()[0])
    return 0


def set_journal_mode(db: Connection) -> str:
    """Set the safest journal mode that the file system supports, and return it."""
    mode: str = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    # Without a write-ahead log a COMMIT deletes another file, so its directory must be flushed too.
    db.execute(f"PRAGMA synchronous = {'FULL' if mode == 'wal' else 'EXTRA'}")
    return mode


def _outcome(statement: Statement, db: Connection) -> Any:
    """Return a result or an exception. An error of this statement alone does not affect other statements."""
    try:
        return statement(db)
    except sqlite3.IntegrityError as error:
        return JournalError(f"two jobs cannot share one external_task_id ({error})")
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError, UnicodeError) as error:
        return JournalError(f"the record cannot be stored ({error})")
    except sqlite3.Error:
        raise
    except Exception as error:  # noqa: BLE001 - the caller of this statement raises it
        return error


def _try_lock(lock: Callable[[], object]) -> None:
    """Lock without waiting, or raise `BlockingIOError` if the file is locked.

    Any other error is ignored. If the file system has no locks, SQLite reports that.
    """
    try:
        lock()
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(errno.EAGAIN, "the file is locked") from None


def _is_busy(error: BaseException | None) -> bool:
    return isinstance(error, BlockingIOError) or _primary_code(error) == sqlite3.SQLITE_BUSY


def _primary_code(error: BaseException | None) -> int:
    """Return SQLite's result code without the details in its higher bits."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _close_in_child() -> None:
    """Close the descriptors that a forked child has inherited, as they would keep a dead parent's locks."""
    while _descriptors:
        os.close(_descriptors.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
