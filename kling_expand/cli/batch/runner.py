"""How is a manifest worked off? Row by row through one client and its journal, or until interrupted."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

from attrs import define, field

from kling_expand.client import KlingClient
from kling_expand.journal import Journal
from kling_expand.models import ExpandRequest

from .board import Board
from .errand import Errand
from .failures import FAILED
from .harvest import Harvest, Item, facts
from .places import Places
from .spent import spent
from .summary import summary
from .survey import Survey
from .tally import Tally


async def carry_out(errand: Errand, survey: Survey) -> int:
    """Do it; the exit code."""
    async with Journal(errand.journal) as journal:
        before = await spent(journal)
        tally = Tally(survey.rows, expected=before.saved, units_before=before.due)
        try:
            async with _opened(errand, journal, before.due) as kling:
                with Board(
                    f"{errand.manifest.name or 'photos'} to {errand.output}",
                    tally,
                    lambda: kling.stats,
                    budget=errand.budget,
                    as_json=errand.as_json,
                ) as board:
                    await Run(errand, survey, kling, tally, board).through()
        finally:
            if tally.began:
                await summary(tally, journal, errand.journal, as_json=errand.as_json)
    return 0 if tally.well else FAILED


@asynccontextmanager
async def _opened(errand: Errand, journal: Journal, due: int) -> AsyncIterator[KlingClient]:
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
    tally: Tally
    board: Board
    items: dict[int, Item] = field(factory=dict)

    async def through(self) -> None:
        """Every row to its end. When cancelled, what was begun is brought to where it can be gone on with."""
        fresh = self.errand.connection.local
        harvest = Harvest(self.kling, Places(self.errand.output), self.tally, self.board, fresh=fresh)
        self.tally.began = True
        try:
            requests = self._requests(harvest)
            async with aclosing(self.kling.map(requests, stop_after=self.errand.stop_after)) as outcomes:
                async for outcome in outcomes:
                    await harvest.take(self.items.pop(outcome.index), outcome.result, outcome.error)
            await harvest.finish()
        except asyncio.CancelledError:
            self.tally.interrupted = True
            self.board.note("interrupted: closing (again to leave at once)")
            await harvest.hurry()
            await self.kling.aclose()
            raise
        self.tally.unsent += self.tally.total - self.tally.ended

    def _requests(self, harvest: Harvest) -> Iterator[ExpandRequest]:
        number = 0
        for row in self.errand.rows():
            if harvest.sated:
                return
            item = Item(row.line, row.label, self.survey.candidates(row))
            if row.request is None:  # which was told when the rows were counted
                self.tally.bad += 1
                self.board.ended(facts(item, "bad", reason=row.error))
                continue
            self.items[number] = item
            number += 1
            yield row.request
