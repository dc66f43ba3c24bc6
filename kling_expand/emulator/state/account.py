"""What has happened here? Every task, a count of everything, and what would be billed.

Tasks live in memory; `settle` moves time on: it frees the slots of ended tasks and forgets those whose life
is over.
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Any

from attrs import define, field

from .change_signal import News
from .tasks import UNITS_PER_IMAGE, Task


@define(eq=False)
class Account:
    """All numbers are since the start of the process, `tasks` is everything not yet expired, oldest first."""

    life_seconds: float
    news: News = field(factory=News)
    tasks: dict[str, Task] = field(factory=dict)
    requests: Counter[str] = field(factory=Counter)  # "create", "query", "list", "file"
    refusals: Counter[int] = field(factory=Counter)  # by code
    faults: Counter[str] = field(factory=Counter)  # by kind, once carried out
    callbacks: Counter[str] = field(factory=Counter)  # "delivered", "given up"
    accepted: Counter[str] = field(factory=Counter)  # creates accepted, by external_task_id
    images_billed: int = 0
    used_slots: int = 0
    most_slots: int = 0
    _external: dict[str, str] = field(factory=dict)
    _open: set[str] = field(factory=set)
    _ending: list[tuple[float, str]] = field(factory=list)
    _expiring: list[tuple[float, str]] = field(factory=list)
    _last_id: int = 0

    @property
    def units_billed(self) -> int:
        """Image units taken, 8 an image, on success only; up to date after `settle`."""
        return UNITS_PER_IMAGE * self.images_billed

    @property
    def open_tasks(self) -> int:
        """How many tasks have not ended."""
        return len(self._open)

    def counts(self) -> dict[str, Any]:
        """All numbers, as JSON."""
        return {
            "requests": dict(self.requests),
            "refusals": dict(self.refusals),
            "faults": dict(self.faults),
            "callbacks": dict(self.callbacks),
            "accepted": dict(self.accepted),
            "tasks": len(self.tasks),
            "open_tasks": self.open_tasks,
            "used_slots": self.used_slots,
            "most_slots": self.most_slots,
            "images_billed": self.images_billed,
            "units_billed": self.units_billed,
        }

    def next_id(self, now: float) -> str:
        """An 18-digit id, greater than every one before."""
        fresh = 10**17 + int(now * 1000) % (9 * 10**12) * 10**5
        self._last_id = max(fresh, self._last_id + 1)
        return str(self._last_id)

    def add(self, task: Task) -> None:
        """Enter a new task, or one from a database."""
        self._last_id = max(self._last_id, int(task.task_id))
        self.tasks[task.task_id] = task
        if task.external_task_id:
            self.accepted[task.external_task_id] += 1
            self._external.setdefault(task.external_task_id, task.task_id)
        self._open.add(task.task_id)
        self.used_slots += task.n
        self.most_slots = max(self.most_slots, self.used_slots)
        self._schedule(task)
        self.news.tell()

    def update(self, task: Task) -> None:
        """Replace what is known of a task, once its end is known too."""
        if task.task_id in self.tasks:
            self.tasks[task.task_id] = task
            self._schedule(task)
            self.news.tell()

    def _schedule(self, task: Task) -> None:
        if task.ended is not None:
            heapq.heappush(self._ending, (task.ended, task.task_id))

    def settle(self, now: float) -> None:
        """Free, bill and forget whatever is due at `now`."""
        while self._ending and self._ending[0][0] <= now:
            ended, task_id = heapq.heappop(self._ending)
            self._end(self.tasks[task_id], ended)
        while self._expiring and self._expiring[0][0] <= now:
            self._forget(self.tasks.pop(heapq.heappop(self._expiring)[1]))

    def _end(self, task: Task, ended: float) -> None:
        self._open.discard(task.task_id)
        self.used_slots -= task.n
        self.images_billed += 0 if task.failure else task.n
        heapq.heappush(self._expiring, (ended + self.life_seconds, task.task_id))

    def _forget(self, task: Task) -> None:
        if self._external.get(task.external_task_id) == task.task_id:
            del self._external[task.external_task_id]

    def has_external(self, external_task_id: str) -> bool:
        """Whether a task of this account bears the id already."""
        return external_task_id in self._external

    def find(self, name: str, dialect: str) -> Task | None:
        """By task id, else by external id; the resources of the two dialects do not mix."""
        task = self.tasks.get(name) or self.tasks.get(self._external.get(name, ""))
        return task if task and task.dialect == dialect else None

    def newest(self, dialect: str) -> Iterator[Task]:
        """The tasks of a dialect, newest first."""
        return (task for task in reversed(self.tasks.values()) if task.dialect == dialect)
