"""How do the results of many tasks come home? Saved a few at a time, counted and told of."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from kling_expand.client import KlingClient
from kling_expand.errors import BudgetExceeded, InvalidRequest, KlingError, NotSubmitted
from kling_expand.jobs.future import ExpandResult

from .board import Board
from .output_names import Places
from .progress import Progress

AT_ONCE = 8  # tasks whose pictures are saved at the same time
GRACE = 10.0  # seconds to finish them once interrupted


@frozen
class Item:
    """One job of many: what its user calls it, and what its results may be called, best first."""

    line: int | None
    label: str
    names: tuple[str, ...]


class ResultSaver:
    """Takes outcomes as they come; `sated` says that money has run out and nothing more need be sent.

    With *fresh*, URLs are asked for anew before they are used: a local emulator's address changes.
    """

    def __init__(
        self, kling: KlingClient, places: Places, progress: Progress, board: Board, *, fresh: bool = False
    ) -> None:
        self._kling = kling
        self._places = places
        self._progress = progress
        self._board = board
        self._fresh = fresh
        self._room = asyncio.Semaphore(AT_ONCE)
        self._saving: set[asyncio.Task[None]] = set()
        self.sated = False

    async def take(self, item: Item, result: ExpandResult | None, error: KlingError | None) -> None:
        """Account for one outcome; saving its pictures goes on behind it, if there is room."""
        if result is None:
            self._lost(item, error or KlingError("it ended without a word"))
        elif result.files:
            self._progress.known += 1
            self._tell(item, "known", result, result.files)
        else:
            await self._room.acquire()
            saving = asyncio.create_task(self._save(item, result))
            self._saving.add(saving)
            saving.add_done_callback(self._saved)

    async def finish(self) -> None:
        """Wait until everything taken is saved. Cancelled, it still waits a moment for what is under way."""
        while self._saving:
            try:
                await asyncio.wait(self._saving)
            except asyncio.CancelledError:
                await self.poll_now()
                raise

    async def poll_now(self) -> None:
        """Give what is under way a moment, and the rest up."""
        if self._saving:
            _, late = await asyncio.wait(self._saving, timeout=GRACE)
            for saving in late:
                saving.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _saved(self, saving: asyncio.Task[None]) -> None:
        self._room.release()
        self._saving.discard(saving)

    async def _save(self, item: Item, result: ExpandResult) -> None:
        try:
            if self._fresh:
                result = evolve(result, task=await self._kling.get(result.task_id))
            async with self._places.name(result.task, item.names) as name:
                paths = await evolve(result, name=name).save(self._places.target)
        except KlingError as error:
            error.task_id = error.task_id or result.task_id
            self._lost(item, error, result)
            return
        self._progress.saved += 1
        self._tell(item, "saved", result, paths)

    def _lost(self, item: Item, error: KlingError, result: ExpandResult | None = None) -> None:
        if isinstance(error, BudgetExceeded | NotSubmitted):
            if isinstance(error, BudgetExceeded) and not self.sated:
                self.sated = True
                self._board.trouble(f"{item.label}: {error}; nothing more is sent")
            self._progress.unsent += 1
            self._tell(item, "not sent", result, error=error)
            return
        bad = isinstance(error, InvalidRequest) and error.task_id is None
        self._progress.bad += bad
        self._progress.failed += not bad
        self._board.trouble(f"{item.label}: {error.message if bad else error}")
        self._tell(item, "bad" if bad else "failed", result, error=error)

    def _tell(
        self,
        item: Item,
        how: str,
        result: ExpandResult | None,
        files: Sequence[Path] = (),
        error: KlingError | None = None,
    ) -> None:
        self._board.ended(facts(item, how, result, files, error))


def facts(
    item: Item,
    how: str,
    result: ExpandResult | None = None,
    files: Sequence[Path] = (),
    error: KlingError | None = None,
    *,
    reason: str | None = None,
) -> dict[str, Any]:
    """What is known of a row, for JSON; *reason* is why it never became a request."""
    told = error or (KlingError(reason) if reason else None)
    task = result.task if result else None
    return {
        "line": item.line,
        "source": item.label,
        "outcome": how,
        "task_id": task.task_id if task else error and error.task_id,
        "external_task_id": task.external_task_id if task else error and error.external_task_id,
        "files": [str(path) for path in files],
        "units": task.final_unit_deduction if task else None,
        "error": told
        and {"type": type(told).__name__ if error else "InvalidRequest", "message": told.message},
    }
