"""Which tasks are open, and under which ids? Bookkeeping for the poll loop; it asks and decides nothing."""

from collections.abc import Iterator
from math import inf

from .future import TaskFuture


class PolledTask:
    """One open task: its place in the order of all, when it began, was last heard of and is due."""

    __slots__ = ("began", "due", "future", "good", "known_as", "listed", "serial", "twin")

    def __init__(self, future: TaskFuture, serial: int, now: float) -> None:
        self.future = future
        self.serial = serial
        self.twin: PolledTask | None = None  # the next future of the same task
        self.known_as = future.any_id
        self.began = self.good = now
        self.listed: bool | None = None  # whether lists show it; None before one has been asked
        self.due: float | None = inf  # for a single read: inf while lists serve, None while it is under way


class TaskRegistry:
    """The open tasks in the order they came, found by their futures and by their ids."""

    def __init__(self) -> None:
        self._by_future: dict[TaskFuture, PolledTask] = {}
        self._by_id: dict[str, PolledTask] = {}
        self.so_far = 0  # how many were ever added

    def __len__(self) -> int:
        return len(self._by_future)

    def __contains__(self, future: TaskFuture) -> bool:
        return future in self._by_future

    def __iter__(self) -> Iterator[PolledTask]:
        return iter(self._by_future.values())

    def futures(self) -> tuple[TaskFuture, ...]:
        """Theirs."""
        return tuple(self._by_future)

    def add(self, future: TaskFuture, now: float) -> PolledTask:
        """Open one."""
        self.so_far += 1
        entry = self._by_future[future] = PolledTask(future, self.so_far, now)
        self._name(entry)
        return entry

    def remove(self, future: TaskFuture) -> PolledTask:
        """Close it."""
        entry = self._by_future.pop(future)
        self._unname(entry)
        return entry

    def rename(self, entry: PolledTask) -> None:
        """From now on it goes by the id that its future has."""
        if entry.known_as != entry.future.any_id:  # it was watched by your id
            self._unname(entry)
            entry.known_as = entry.future.any_id
            self._name(entry)

    def get(self, any_id: str) -> PolledTask | None:
        """The newest of this id."""
        return self._by_id.get(any_id)

    def named(self, any_id: str) -> list[PolledTask]:
        """All of this id: several futures may be of one task."""
        named, entry = [], self._by_id.get(any_id)
        while entry is not None:
            named.append(entry)
            entry = entry.twin
        return named

    def _name(self, entry: PolledTask) -> None:
        entry.twin = self._by_id.get(entry.known_as)
        self._by_id[entry.known_as] = entry

    def _unname(self, entry: PolledTask) -> None:
        others = [each for each in self.named(entry.known_as) if each is not entry]
        self._by_id.pop(entry.known_as, None)
        for other in others:
            self._name(other)
