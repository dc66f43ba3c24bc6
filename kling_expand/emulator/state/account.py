"""The account: its tasks, its slots, its counts and its bill.

Tasks are in memory. `settle` releases the slots of ended tasks, bills them, and drops expired tasks.
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Any

from attrs import define, field

from .change_signal import ChangeSignal
from .tasks import UNITS_PER_IMAGE, Task, text_id


@define(eq=False)
class Account:
    """The tasks that have not expired, oldest first, and counts since the start of the process."""

    retention_seconds: float
    changes: ChangeSignal = field(factory=ChangeSignal)
    tasks: dict[str, Task] = field(factory=dict)
    requests: Counter[str] = field(factory=Counter)  # by route: create, query, list, file
    refusals: Counter[int] = field(factory=Counter)  # by code
    faults: Counter[str] = field(factory=Counter)  # injected, by kind
    callbacks: Counter[str] = field(factory=Counter)  # "delivered", "undelivered"
    accepted: Counter[str] = field(factory=Counter)  # accepted creates, by external_task_id
    images_billed: int = 0
    expired: list[tuple[str, str]] = field(factory=list)  # dropped task ids, each with an image digest or ""
    used_slots: int = 0
    peak_slots: int = 0
    _by_external_id: dict[str, str] = field(factory=dict)
    _digest_uses: Counter[str] = field(factory=Counter)  # tasks, by the digest of their image
    _open: set[str] = field(factory=set)
    _ending: list[tuple[float, str]] = field(factory=list)
    _expiring: list[tuple[float, str]] = field(factory=list)
    _last_number: int = 0

    @property
    def units_billed(self) -> int:
        """The image units billed until the last `settle`: 8 for each image of a successful task."""
        return UNITS_PER_IMAGE * self.images_billed

    @property
    def open_tasks(self) -> int:
        """The number of tasks that have not ended."""
        return len(self._open)

    def counts(self) -> dict[str, Any]:
        """Return all counts as JSON."""
        return {
            "requests": dict(self.requests),
            "refusals": dict(self.refusals),
            "faults": dict(self.faults),
            "callbacks": dict(self.callbacks),
            "accepted": dict(self.accepted),
            "tasks": len(self.tasks),
            "open_tasks": self.open_tasks,
            "used_slots": self.used_slots,
            "peak_slots": self.peak_slots,
            "images_billed": self.images_billed,
            "units_billed": self.units_billed,
        }

    def new_id(self, now: float, *, text: bool = False) -> str:
        """Return a new task id: a number of 18 digits above the last one or, with *text*, 22 characters."""
        number = 10**17 + int(now * 1000) % (9 * 10**12) * 10**5
        task_id = ""
        while not task_id or task_id in self.tasks:  # after a restart the number of a text id is not known
            self._last_number = max(number, self._last_number + 1)
            task_id = text_id(self._last_number) if text else str(self._last_number)
        return task_id

    def add(self, task: Task) -> None:
        """Add a new task, or one from the database."""
        if task.task_id.isdecimal():
            self._last_number = max(self._last_number, int(task.task_id))
        self.tasks[task.task_id] = task
        self._digest_uses[task.digest] += 1
        if task.external_task_id:
            self.accepted[task.external_task_id] += 1
            self._by_external_id.setdefault(task.external_task_id, task.task_id)
        self._open.add(task.task_id)
        self.used_slots += task.n
        self.peak_slots = max(self.peak_slots, self.used_slots)
        self._schedule_end(task)
        self.changes.notify()

    def remove(self, task: Task) -> None:
        """Remove a new task whose create has failed."""
        self._drop(self.tasks.pop(task.task_id))
        self._open.discard(task.task_id)
        self.used_slots -= task.n
        self.accepted[task.external_task_id] -= 1
        self.accepted = +self.accepted
        self.changes.notify()

    def update(self, task: Task) -> None:
        """Replace a task after painting has ended."""
        if task.task_id in self.tasks:
            self._digest_uses[self.tasks[task.task_id].digest] -= 1
            self._digest_uses[task.digest] += 1
            self.tasks[task.task_id] = task
            self._schedule_end(task)
            self.changes.notify()

    def _schedule_end(self, task: Task) -> None:
        if task.ended_at is not None:
            heapq.heappush(self._ending, (task.ended_at, task.task_id))

    def settle(self, now: float) -> None:
        """Release the slots of tasks that have ended by *now*, bill them, and drop expired tasks."""
        while self._ending and self._ending[0][0] <= now:
            ended_at, task_id = heapq.heappop(self._ending)
            if task_id in self.tasks:
                self._end(self.tasks[task_id], ended_at)
        while self._expiring and self._expiring[0][0] <= now:
            self._drop(self.tasks.pop(heapq.heappop(self._expiring)[1]))

    def _end(self, task: Task, ended_at: float) -> None:
        self._open.discard(task.task_id)
        self.used_slots -= task.n
        self.images_billed += 0 if task.failure else task.n
        heapq.heappush(self._expiring, (ended_at + self.retention_seconds, task.task_id))

    def _drop(self, task: Task) -> None:
        self._digest_uses[task.digest] -= 1
        unneeded = task.digest if self._digest_uses[task.digest] <= 0 else ""
        if unneeded:
            del self._digest_uses[unneeded]
        self.expired.append((task.task_id, unneeded))
        if self._by_external_id.get(task.external_task_id) == task.task_id:
            del self._by_external_id[task.external_task_id]

    def has_external_id(self, external_task_id: str) -> bool:
        """Return whether a task of this account has the external id."""
        return external_task_id in self._by_external_id

    def find(self, name: str, dialect: str) -> Task | None:
        """Return the task with this id or external id, or None. Dialects do not share their tasks."""
        task = self.tasks.get(name) or self.tasks.get(self._by_external_id.get(name, ""))
        return task if task and task.dialect == dialect else None

    def newest(self, dialect: str) -> Iterator[Task]:
        """Yield the tasks of a dialect, newest first."""
        return (task for task in reversed(self.tasks.values()) if task.dialect == dialect)
