"""How is a journal gone on with, whoever wrote it? `kling-expand resume`: every open job in it."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import click
from attrs import define

from kling_expand.cli import options
from kling_expand.cli.batch.board import Board
from kling_expand.cli.batch.output_names import Places
from kling_expand.cli.batch.progress import Progress
from kling_expand.cli.batch.result_saver import Item, ResultSaver
from kling_expand.cli.batch.rows import stem
from kling_expand.cli.batch.summary import summary
from kling_expand.cli.batch.usage import spent
from kling_expand.cli.connection import Connection, connection_options
from kling_expand.cli.exit_codes import FAILED, Stop, leave, run
from kling_expand.client import KlingClient
from kling_expand.errors import KlingError
from kling_expand.jobs.future import TaskFuture
from kling_expand.store.base import JobState
from kling_expand.store.sqlite import SQLiteStore

OPEN = (JobState.INTENT, JobState.UNKNOWN, JobState.SUBMITTED, JobState.SUCCEEDED)
_AGAIN = "what failed for good is only tried again by what asked for it, such as `kling-expand bulk`"


@click.command(short_help="Go on with the jobs of a journal.")
@click.argument("journal", metavar="JOURNAL", type=click.Path())
@options.jobs
@options.budget
@options.places
@options.deadline
@connection_options
@options.as_json
def resume(journal: str, connection: Connection, **given: Any) -> None:
    """Bring every open job of JOURNAL home: those at the service, or on their way.

    A job that was written down and not sent is sent now, if its photo can still
    be read. A manifest's rows that were never begun are in no journal: run
    `kling-expand bulk` again for those. Results never replace a file.

    Exit code 0 if every job came to its pictures, 1 if not.
    """
    if not Path(journal).is_file():
        raise Stop(f"{journal}: there is no such journal")
    connection.require()
    leave(run(_resume(journal, connection, **given)))


async def _resume(
    path: str,
    connection: Connection,
    *,
    jobs: int,
    budget: int | None,
    output: str,
    deadline: float | None,
    as_json: bool,
) -> int:
    async with SQLiteStore(path) as journal:
        counts, before = await journal.counts(), await spent(journal)
        progress = Progress(sum(counts[state] for state in OPEN), units_before=before.due)
        async with connection.client(
            journal=journal,
            run=journal.run,
            budget=None if budget is None else max(budget - before.due, 0),
            max_in_flight=jobs,
            deadline=deadline,
        ) as kling:
            with Board(f"{path} to {output}", progress, lambda: kling.stats, as_json=as_json) as board:
                saver = ResultSaver(kling, Places(output), progress, board)
                following = Following(kling, journal, saver, asyncio.Semaphore(2 * jobs))
                interrupted = await _through(following, progress, board)
        await summary(progress, journal, path, as_json=as_json, retry=_AGAIN)
    if interrupted is not None:
        raise interrupted
    return 0 if progress.well else FAILED


async def _through(following: "Following", progress: Progress, board: Board) -> asyncio.CancelledError | None:
    """Every job to its end; when that is interrupted, the interruption, once all is in order."""
    try:
        await following.all()
    except asyncio.CancelledError as interruption:
        progress.interrupted = True
        board.note("interrupted: closing (again to leave at once)")
        await following.saver.poll_now()
        await following.kling.aclose()
        return interruption
    return None


@define
class Following:
    """The open jobs of a journal, so many at a time as there is `room`."""

    kling: KlingClient
    journal: SQLiteStore
    saver: ResultSaver
    room: asyncio.Semaphore

    async def all(self) -> None:
        """Each to its end, and its pictures to disk."""
        async with asyncio.TaskGroup() as group:
            await self.room.acquire()
            async for future in self.kling.resume():
                group.create_task(self._follow(future))
                await self.room.acquire()
        await self.saver.finish()

    async def _follow(self, future: TaskFuture) -> None:
        external_id = future.external_task_id or future.any_id
        job = await self.journal.get(external_id)
        source = job.source if job and job.source else external_id
        name = stem(source)
        tag = hashlib.sha256(external_id.encode()).hexdigest()[:8]
        item = Item(None, source, (name, f"{name}-{tag}"))
        try:
            await self.saver.take(item, await future, None)
        except KlingError as error:
            await self.saver.take(item, None, error)
        finally:
            self.room.release()
