"""Lists of tasks: pages, with the order and completeness that the settings specify."""

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
    """A page. `number` is 1 to 1000, and `size` is 1 to 500."""

    number: int
    size: int

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Self:
        """Return the page of `pageNum` (default 1) and `pageSize` (default 30).

        Raises:
            Refusal: if either is out of range (code 1201).
        """
        return cls(
            _integer(query, "pageNum", default=1, limit=1000),
            _integer(query, "pageSize", default=30, limit=500),
        )

    @property
    def span(self) -> slice:
        """The positions of its tasks in the list."""
        return slice((self.number - 1) * self.size, self.number * self.size)


def _integer(query: Mapping[str, str], name: str, *, default: int, limit: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch("[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text) <= limit:
        raise Refusal(1201, f"{name} must be an integer between 1 and {limit}")
    return int(text)


def arrange(newest: Iterator[Task], settings: Settings, now: float, rng: random.Random) -> Iterator[Task]:
    """Yield the tasks that a list contains at *now*, in its order.

    Raises:
        Refusal: if the setting `list_code` refuses lists.
    """
    if settings.list_code:
        raise Refusal(settings.list_code)
    if settings.list_lag:
        newest = (task for task in newest if task.created_at <= now - settings.list_lag)
    if settings.list_order == "newest":
        return _with_foreign(newest, settings.list_foreign)
    tasks = list(newest)[::-1]
    if settings.list_order == "shuffled":
        rng.shuffle(tasks)
    return _with_foreign(tasks, settings.list_foreign)


def _with_foreign(tasks: Iterable[Task], every: int) -> Iterator[Task]:
    for count, task in enumerate(tasks, 1):
        yield task
        if every and count % every == 0:
            yield _foreign(task)


def _foreign(task: Task) -> Task:
    """Return a task that another program of the account could have created at the same time."""
    # The ids of one millisecond are less than 50,000 apart.
    task_id = str(int(task.task_id) + 50_000) if task.task_id.isdecimal() else task.task_id[::-1]
    return evolve(task, task_id=task_id, external_task_id="", prompt="", callback_url="", n=1)
