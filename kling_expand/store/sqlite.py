"""What survives a crash? Every job, in one SQLite file, written ahead of every step that costs.

It stores what happened and sends nothing; what follows from a job's state is its reader's business.

Durability: every ``await`` of a writing method returns after the COMMIT that holds its record, and
that COMMIT after an fsync (a write-ahead log with ``synchronous=FULL``; EXTRA on a rollback journal,
where a file system refuses the former). What waits at the same moment shares one COMMIT. When a
method raises `JournalError` its record is not promised; everything promised before is still there.
Neither image bytes nor credentials are stored.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Self, TypeVar

from kling_expand.errors import JournalError

from . import sqlite_statements as records
from .moves import Moves
from .sqlite_file import Connection, Database, Work
from .sqlite_statements import Job, State
from .write_queue import Batches

T = TypeVar("T")

__all__ = ["Job", "Journal", "State"]


class Journal(Moves):
    """A file of jobs: ``async with Journal("run.db") as journal``, in one event loop and one process.

    *run* names the run, and is part of every id made from it; without one, a random name is made
    once and kept in the file. *clock* gives Unix seconds. Entering, and every method, raises
    `JournalError` when the file cannot be used, and says why. After a full disk the next write
    tries again; a file that was deleted or replaced stays refused.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, run: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - links stay as they were given
        self.run = run or ""
        self._clock = clock
        self._database = Database(self.path, records.KIND)
        self._batches: Batches[Work] | None = None

    async def __aenter__(self) -> Self:
        if self._batches is not None:
            raise JournalError(f"the journal {self.path} is open already")
        self._loop = asyncio.get_running_loop()
        batches: Batches[Work] = Batches(self._database.commit)
        try:
            await batches.alone(self._database.open)
            self.run = await batches.put(partial(records.name_run, self.path, self.run))
        except BaseException:
            batches.stop(self._database.close)
            raise
        self._batches = batches
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Write what is waiting, then give the file free. Twice is harmless."""
        batches, self._batches = self._batches, None
        if batches is not None:
            await batches.finish(lambda _db: None, self._database.close)

    # ------------------------------------------------------------------------ what happened

    async def intend(
        self,
        key: str,
        *,
        params_hash: str,
        params: str,
        source: str | None,
        external_id: Callable[[int], str],
    ) -> Job:
        """The job to go on with for *key* and *params_hash*; recorded before this returns.

        A job known and not failed is given back as it is; a rejected one as an intent again, under
        its old id, for no task exists. A new one, and the next attempt after a failed task, gets
        ``external_id(attempt)``, which is called on another thread. Other parameters under a known
        key make another job, with a warning in the log.
        """
        where = None if source is None or source.startswith("data:") else os.fsencode(source)
        now = self._clock()
        draft = {
            "key": key,
            "params_hash": params_hash,
            "params": params,
            "source": where,
            "created_at": now,
            "updated_at": now,
        }
        return await self._do(partial(records.intend, draft, external_id))

    async def posting(self, external_task_id: str) -> None:
        """A POST is about to leave; send it at once when this returns.

        Raises `JournalError` with the `task_id` where a task is known: then it must not be sent.
        """
        await self._do(partial(records.posting, external_task_id, self._clock()))

    # ------------------------------------------------------------------------ what is known

    async def find(self, key: str, params_hash: str | None = None) -> Job | None:
        """The newest job of *key*, or of exactly these parameters under it."""
        if params_hash is None:
            return await self._do(partial(records.newest, "key = ?", (key,)))
        return await self._do(partial(records.newest, records.SAME_REQUEST, (key, params_hash)))

    async def get(self, external_task_id: str) -> Job | None:
        """The job with this id; earlier attempts are found too."""
        return await self._do(partial(records.newest, "external_task_id = ?", (external_task_id,)))

    async def jobs(self, *states: State) -> AsyncIterator[Job]:
        """Jobs in these states (in any, without), oldest first; of each the last attempt.

        They are read page by page, so a million cost the memory of a page; a job that moves
        meanwhile is seen in one state or the other.
        """
        after = 0
        while page := await self._do(partial(records.page, states or tuple(State), after)):
            for after, job in page:  # noqa: B007 - where the next page begins
                yield job

    async def counts(self) -> dict[State, int]:
        """How many jobs are in each state; of each the last attempt."""
        return await self._do(records.counts)

    async def _move(self, external_task_id: str, state: State, **values: Any) -> None:
        values["updated_at"] = self._clock()
        await self._do(partial(records.move, external_task_id, state, values))

    async def _do(self, work: Callable[[Connection], T]) -> T:
        if self._batches is None:
            raise JournalError(f"the journal {self.path} is not open")
        if asyncio.get_running_loop() is not self._loop:
            raise JournalError(f"the journal {self.path} was opened in another event loop")
        result: T = await self._batches.put(work)
        return result
