"""What is new for one console? Turns of a loop: what differs from what this console has been told.

event: tasks      the newest tasks that are new or different
event: gone       ids of tasks no longer shown
event: calls      calls that ended since
event: state      time, counts, slots, faults that wait
"""

import json
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any

from attrs import asdict

from kling_expand.emulator.http.call_log import Exchanges
from kling_expand.emulator.service import Service
from kling_expand.emulator.state.tasks import Task

SHOWN = 100  # tasks, the newest
FAULTS = 50  # of a script, the next


class Feed:
    """What one console knows; `news` tells it the rest."""

    def __init__(self, service: Service, exchanges: Exchanges) -> None:
        self._service = service
        self._exchanges = exchanges
        self._told: dict[str, dict[str, Any]] = {}
        self._number = 0
        self._now = 0.0

    def news(self) -> Iterator[bytes]:
        """Server-sent events; the last of them tells the time."""
        service = self._service
        self._now = now = service.clock.now()
        service.account.settle(now)
        shown = list(islice(reversed(service.account.tasks.values()), SHOWN))[::-1]
        yield from self._tasks({task.task_id: view(task, now) for task in shown})
        calls = self._exchanges.since(self._number)
        if calls:
            self._number = calls[-1].number
            yield _event("calls", [call.summary() for call in calls])
        yield _event("state", self._state(now))

    def _tasks(self, views: dict[str, dict[str, Any]]) -> Iterator[bytes]:
        fresh = [seen for task_id, seen in views.items() if self._told.get(task_id) != seen]
        gone = [task_id for task_id in self._told if task_id not in views]
        self._told = views
        if fresh:
            yield _event("tasks", fresh)
        if gone:
            yield _event("gone", gone)

    def _state(self, now: float) -> dict[str, Any]:
        service = self._service
        counts = service.account.counts()
        del counts["accepted"]  # grows with every task
        return {
            "now": now,
            "moved": service.clock.moved,
            "slots": service.settings.slots,
            "account": counts,
            "faults": {route: _short(each) for route, each in service.faults.waiting().items()},
        }

    def next_change(self) -> float | None:
        """Seconds until the clock alone changes the status of a task that is shown; 0 if it just has."""
        moments = [seen[key] for seen in self._told.values() for key in ("starts", "ended") if seen[key]]
        soonest = min((moment for moment in moments if moment > self._now), default=None)
        return None if soonest is None else max(0.0, soonest - self._service.clock.now())


def view(task: Task, now: float) -> dict[str, Any]:
    """A task as a console shows it."""
    known = asdict(task)
    for hidden in ("seed", "digest", "ready", "image_url", "callback_url"):
        del known[hidden]
    return known | {
        "status": task.status_at(now),
        "ended": task.ended,
        "image_url": task.image_url[:200],
        "before": bool(task.digest),
    }


def _short(waiting: dict[str, Any]) -> dict[str, Any]:
    """A script with equal faults in a row counted, and cut."""
    rows = [{**next(same), "times": 1 + sum(1 for _ in same)} for _, same in groupby(waiting["script"])]
    return {"script": rows[:FAULTS], "left_out": len(rows[FAULTS:]), "chances": waiting["chances"][:FAULTS]}


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
