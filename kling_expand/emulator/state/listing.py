"""Which tasks are on a page? Nobody promises order or completeness, so both can be spoilt."""

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

from attrs import evolve, frozen

from kling_expand.emulator.http.codes import Refusal
from kling_expand.emulator.settings import Settings

from .tasks import Task


@frozen
class Page:
    """`number` counts from 1 to 1000, `size` is 1 to 500."""

    number: int
    size: int

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Self:
        """From `pageNum` (1 by default) and `pageSize` (30); raises Refusal 1201."""
        return cls(
            _whole(query, "pageNum", default=1, most=1000), _whole(query, "pageSize", default=30, most=500)
        )

    @property
    def span(self) -> slice:
        """The positions it shows."""
        return slice((self.number - 1) * self.size, self.number * self.size)


def _whole(query: Mapping[str, str], name: str, *, default: int, most: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch("[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text) <= most:
        raise Refusal(1201, f"{name} must be an integer between 1 and {most}")
    return int(text)


def arrange(newest: Iterator[Task], settings: Settings, now: float, chance: random.Random) -> Iterator[Task]:
    """The tasks as the list shows them at `now`; raises Refusal 1103 where lists are refused."""
    if settings.list_mode == "refused":
        raise Refusal(1103)
    if settings.list_lag:
        newest = (task for task in newest if task.created <= now - settings.list_lag)
    if settings.list_mode == "newest":
        return _with_foreign(newest, settings.list_foreign)
    found = list(newest)[::-1]
    if settings.list_mode == "shuffled":
        chance.shuffle(found)
    return _with_foreign(found, settings.list_foreign)


def _with_foreign(tasks: Iterable[Task], every: int) -> Iterator[Task]:
    for count, task in enumerate(tasks, 1):
        yield task
        if every and count % every == 0:
            yield _foreign(task)


def _foreign(task: Task) -> Task:
    """A task that another program of the same account might have made at the same time."""
    task_id = str(int(task.task_id) + 50_000)  # ids made within one millisecond lie closer together
    return evolve(task, task_id=task_id, external_task_id="", prompt="", callback_url="", n=1)
