"""A task for the tests of the emulator's state."""

from typing import Any

from kling_expand.emulator.state.tasks import Task

NOW = 1_800_000_000.0


def task(number: int = 1, **changes: Any) -> Task:
    """Return a task with an unusual prompt."""
    usual: dict[str, Any] = {
        "task_id": str(10**17 + number),
        "external_task_id": f"x{number}",
        "dialect": "editing",
        "ratios": (0.1, 0.2, 0.3, 0.4),
        "n": 2,
        "prompt": "日本 \ud800 \x00 'quoted'",
        "watermark": True,
        "callback_url": "",
        "created_at": NOW,
        "starts_at": NOW + 1,
        "due_at": NOW + 2,
        "seed": 3,
        "engine": "flat",
        "digest": "d",
    }
    return Task(**(usual | changes))
