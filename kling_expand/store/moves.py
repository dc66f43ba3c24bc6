"""What is written down when a job comes further? The same wherever jobs are kept."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from kling_expand.api.codec import pack
from kling_expand.models import Status, Task

from .sqlite_statements import State


class Moves(ABC):
    """Every way a job may move from state to state, each as one call of `_move`."""

    @abstractmethod
    async def _move(self, external_task_id: str, state: State, **values: Any) -> None:
        """The job is in this state now, if the table of states allows it, and these *values* are new."""

    async def accepted(self, external_task_id: str, task_id: str) -> None:
        """The service made task *task_id* of it, or had it already."""
        await self._move(external_task_id, State.SUBMITTED, task_id=task_id, error=None)

    async def observed(self, external_task_id: str, task: Task) -> None:
        """News of the task. A final snapshot is kept; any other only says that the task exists."""
        if task.status.final:
            await self._end(external_task_id, task)
        else:
            await self.accepted(external_task_id, task.task_id)

    async def _end(self, external_task_id: str, task: Task, **more: Any) -> None:
        failed = task.status is Status.FAILED
        await self._move(
            external_task_id,
            State.FAILED if failed else State.SUCCEEDED,
            task_id=task.task_id,
            snapshot=pack(task),
            error=self._text(task.task_status_msg or "no reason was given") if failed else None,
            **more,
        )

    async def downloaded(self, external_task_id: str, files: Iterable[str | os.PathLike[str]]) -> None:
        """The pictures are on disk, as *files*."""
        await self._move(external_task_id, State.DONE, files=b"\0".join(map(os.fsencode, files)))

    async def rejected(self, external_task_id: str, error: str) -> None:
        """It was refused for good, and a lookup found no task."""
        await self._move(external_task_id, State.REJECTED, error=self._text(error))

    async def unknown(self, external_task_id: str, error: str) -> None:
        """Nobody could say in time whether a task exists."""
        await self._move(external_task_id, State.UNKNOWN, error=self._text(error))

    def _text(self, words: str) -> str:
        """Words that can be stored, whatever a stranger put into them."""
        return words.encode(errors="replace").decode()
