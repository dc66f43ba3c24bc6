"""How is a manifest worked off? Row by row through one client and its journal, or until interrupted."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

from attrs import define, field

from kling_expand.cli.exit_codes import FAILED
from kling_expand.client import KlingClient
from kling_expand.models import ExpandRequest
from kling_expand.store.sqlite import SQLiteStore

from .board import Board
from .output_names import Places
from .plan import Errand
from .progress import Progress
from .result_saver import Item, ResultSaver, facts
from .summary import summary
from .survey import Survey
from .usage import spent


async def carry_out(errand: Errand, survey: Survey) -> int:
    """Do it; the exit code."""
    async with SQLiteStore(errand.journal) as journal:
        before = await spent(journal)
        progress = Progress(survey.rows, expected=before.saved, units_before=before.due)
        try:
            async with _opened(errand, journal, before.due) as kling:
                with Board(
                    f"{errand.manifest.name or 'photos'} to {errand.output}",
                    progress,
                    lambda: kling.stats,
                    budget=errand.budget,
                    as_json=errand.as_json,
                ) as board:
                    await Run(errand, survey, kling, progress, board).through()
        finally:
            if progress.began:
                await summary(progress, journal, errand.journal, as_json=errand.as_json)
    return 0 if progress.well else FAILED


@asynccontextmanager
async def _opened(errand: Errand, journal: SQLiteStore, due: int) -> AsyncIterator[KlingClient]:
    budget = None if errand.budget is None else max(errand.budget - due, 0)
    async with errand.connection.client(
        state=f"{errand.journal}.tasks",
        journal=journal,
        run=journal.run,
        budget=budget,
        max_in_flight=errand.jobs,
        deadline=errand.deadline,
    ) as kling:
        yield kling


@define
class Run:
    """One pass over the rows; `items` are those that are under way, by their number."""

    errand: Errand
    survey: Survey
    kling: KlingClient
    progress: Progress
    board: Board
    items: dict[int, Item] = field(factory=dict)

    async def through(self) -> None:
        """Every row to its end. When cancelled, what was begun is brought to where it can be gone on with."""
        fresh = self.errand.connection.local
        saver = ResultSaver(self.kling, Places(self.errand.output), self.progress, self.board, fresh=fresh)
        self.progress.began = True
        try:
            requests = self._requests(saver)
            async with aclosing(self.kling.map(requests, max_failures=self.errand.max_failures)) as outcomes:
                async for outcome in outcomes:
                    await saver.take(self.items.pop(outcome.index), outcome.result, outcome.error)
            await saver.finish()
        except asyncio.CancelledError:
            self.progress.interrupted = True
            self.board.note("interrupted: closing (again to leave at once)")
            await saver.poll_now()
            await self.kling.aclose()
            raise
        self.progress.unsent += self.progress.total - self.progress.ended

    def _requests(self, saver: ResultSaver) -> Iterator[ExpandRequest]:
        number = 0
        for row in self.errand.rows():
            if saver.sated:
                return
            item = Item(row.line, row.label, self.survey.candidates(row))
            if row.request is None:  # which was told when the rows were counted
                self.progress.bad += 1
                self.board.ended(facts(item, "bad", reason=row.error))
                continue
            self.items[number] = item
            number += 1
            yield row.request
