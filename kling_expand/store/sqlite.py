"""A durable job store in one SQLite file.

Every ``await`` of a writing method returns after the COMMIT that holds its record, and that COMMIT after
an fsync: a write-ahead log with ``synchronous=FULL``, or EXTRA on a rollback journal where the file system
refuses such a log. Records that wait at the same moment share one COMMIT. When a method raises
`JournalError` its record may be missing, and every record confirmed before is still there. Neither image
bytes nor credentials are stored.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Self, TypeVar

from kling_expand.errors import JournalError

from . import sqlite_statements as statements
from .base import JobRecord, JobState, JobStore
from .sqlite_file import Connection, DatabaseFile, Statement
from .write_queue import WriteQueue

T = TypeVar("T")


class SQLiteStore(JobStore):
    """A file of jobs: ``async with SQLiteStore("run.db") as store``, in one event loop and one process.

    *run* names the run, and every derived id depends on it. Without one, a random name is made once and
    kept in the file. *clock* gives Unix seconds. After a full disk the next write tries again; a file
    that was deleted or replaced is refused until it is opened again.

    Raises:
        JournalError: from entering and from every method, when the file cannot be used.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, run: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.path: str = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - links stay as they were given
        self.run: str = run or ""
        self._clock = clock
        self._file = DatabaseFile(self.path, statements.FORMAT)
        self._writes: WriteQueue[Statement] | None = None

    async def __aenter__(self) -> Self:
        if self._writes is not None:
            raise JournalError(f"the journal {self.path} is open already")
        self._loop = asyncio.get_running_loop()
        writes: WriteQueue[Statement] = WriteQueue(self._file.commit)
        try:
            await writes.run(self._file.open)
            self.run = await writes.put(partial(statements.name_run, self.path, self.run))
        except BaseException:
            writes.abort(self._file.close)
            raise
        self._writes = writes
        return self

    async def aclose(self) -> None:
        """Write what is waiting, then close and unlock the file. A second call does nothing."""
        writes, self._writes = self._writes, None
        if writes is not None:
            await writes.close(lambda _db: None, self._file.close)

    async def mark_sending(self, external_task_id: str) -> None:
        """Record that a create is about to be sent. Raises `JournalError` where a task is known."""
        await self._execute(partial(statements.mark_sending, external_task_id, self._clock()))

    async def get(self, external_task_id: str) -> JobRecord | None:
        """Return the record with this id, of an earlier attempt too, or None."""
        return await self._execute(partial(statements.newest, "external_task_id = ?", (external_task_id,)))

    async def find(self, key: str, digest: str | None = None) -> JobRecord | None:
        """Return the newest record of *key*, or of exactly one request under it, or None."""
        if digest is None:
            return await self._execute(partial(statements.newest, "key = ?", (key,)))
        return await self._execute(partial(statements.newest, statements.SAME_REQUEST, (key, digest)))

    async def jobs(self, *states: JobState) -> AsyncIterator[JobRecord]:
        """Iterate over the jobs in these states (without any, over all), oldest first, page by page."""
        after = 0
        while page := await self._execute(partial(statements.page, states or tuple(JobState), after)):
            for after, job in page:  # noqa: B007 - where the next page begins
                yield job

    async def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state, of each the last attempt."""
        return await self._execute(statements.counts)

    async def _claim(
        self, draft: dict[str, Any], external_id: Callable[[int], str], after: int = 0
    ) -> JobRecord:
        return await self._execute(partial(statements.claim, draft, external_id, after))

    async def _transition(self, external_task_id: str, state: JobState, **values: Any) -> None:
        values["updated_at"] = self._clock()
        await self._execute(partial(statements.transition, external_task_id, state, values))

    async def _execute(self, statement: Callable[[Connection], T]) -> T:
        if self._writes is None:
            raise JournalError(f"the journal {self.path} is not open")
        if asyncio.get_running_loop() is not self._loop:
            raise JournalError(f"the journal {self.path} was opened in another event loop")
        result: T = await self._writes.put(statement)
        return result
