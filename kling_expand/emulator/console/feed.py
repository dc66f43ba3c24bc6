"""The event stream of one console. Each update has the changes since the previous one.

event: tasks      tasks that are new or have changed, among the newest
event: removed    ids of tasks that are no longer shown
event: calls      calls that have ended
event: state      time, account, slots and planned faults
"""

import json
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any

from attrs import asdict

from kling_expand.emulator.http.call_log import CallLog
from kling_expand.emulator.service import Service
from kling_expand.emulator.state.tasks import Task

MAX_TASKS = 100  # the newest tasks, which are shown
MAX_FAULTS = 50  # shown of each list
_HIDDEN = ("seed", "digest", "ready_at", "image_url", "callback_url")


class Feed:
    """The state that one console has received. `updates` returns the changes."""

    def __init__(self, service: Service, call_log: CallLog) -> None:
        self._service = service
        self._call_log = call_log
        self._sent: dict[str, dict[str, Any]] = {}
        self._last_call = 0
        self._now = 0.0

    def updates(self) -> Iterator[bytes]:
        """Yield the server-sent events of one update. The last one is the state."""
        service = self._service
        self._now = now = service.clock.now()
        service.settle()
        shown = list(islice(reversed(service.account.tasks.values()), MAX_TASKS))[::-1]
        yield from self._tasks({task.task_id: view(task, now) for task in shown})
        calls = self._call_log.since(self._last_call)
        if calls:
            self._last_call = calls[-1].number
            yield _event("calls", [call.summary() for call in calls])
        yield _event("state", self._state(now))

    def _tasks(self, views: dict[str, dict[str, Any]]) -> Iterator[bytes]:
        changed = [shown for task_id, shown in views.items() if self._sent.get(task_id) != shown]
        removed = [task_id for task_id in self._sent if task_id not in views]
        self._sent = views
        if changed:
            yield _event("tasks", changed)
        if removed:
            yield _event("removed", removed)

    def _state(self, now: float) -> dict[str, Any]:
        service = self._service
        counts = service.account.counts()
        del counts["accepted"]  # it grows with every task
        return {
            "now": now,
            "clock_offset": service.clock.offset,
            "slots": service.settings.slots,
            "account": counts,
            "faults": {route: _shortened(each) for route, each in service.faults.planned().items()},
        }

    def next_change(self) -> float | None:
        """Return the seconds until time alone changes a shown task or fault, or None if it never will."""
        moments = [shown[key] for shown in self._sent.values() for key in ("starts_at", "ended_at")]
        for planned in self._service.faults.planned().values():
            moments += [self._service.clock.now() + fault["seconds_left"] for fault in planned["timed"]]
        soonest = min((moment for moment in moments if moment and moment > self._now), default=None)
        return None if soonest is None else max(0.0, soonest - self._service.clock.now())


def view(task: Task, now: float) -> dict[str, Any]:
    """Return a task as a console shows it."""
    fields = asdict(task)
    for hidden in _HIDDEN:
        del fields[hidden]
    return fields | {
        "status": task.status_at(now),
        "ended_at": task.ended_at,
        "image_url": task.image_url[:200],
        "before": bool(task.digest),
    }


def _shortened(planned: dict[str, Any]) -> dict[str, Any]:
    """Return planned faults with equal consecutive ones counted and long lists truncated."""
    rows = [{**next(same), "times": 1 + sum(1 for _ in same)} for _, same in groupby(planned["script"])]
    return {
        "script": rows[:MAX_FAULTS],
        "more": len(rows[MAX_FAULTS:]),
        "timed": planned["timed"][:MAX_FAULTS],
        "chances": planned["chances"][:MAX_FAULTS],
    }


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
