"""A task and its status, which is a function of time and is not changed by a timer.

created_at ──queue──> starts_at ──work──> due_at
submitted             processing          succeed | failed     (later, when painting ends after due_at)
"""

import json
from base64 import urlsafe_b64encode
from typing import Any

from attrs import asdict, evolve, field, frozen

from kling_expand.emulator.painting.canvas import Ratios

UNITS_PER_IMAGE = 8
TASK_ID_PATTERN = "[0-9]{18}|[A-Za-z0-9_-]{22}"


@frozen
class Task:
    """A task of either dialect. Times are in Unix seconds, and `digest` identifies the uploaded image."""

    task_id: str
    external_task_id: str
    dialect: str
    ratios: Ratios
    n: int
    prompt: str
    watermark: bool
    callback_url: str
    created_at: float
    starts_at: float
    due_at: float
    seed: int
    engine: str
    misregister: str = ""
    image_url: str = field(default="", repr=False)
    digest: str = ""
    ready_at: float | None = None  # when painting ended, in success or failure
    failure: str = ""  # the message of a task that fails

    @property
    def ended_at(self) -> float | None:
        """The time at which the task succeeds or fails, or None while it is being painted."""
        return None if self.ready_at is None else max(self.due_at, self.ready_at)

    def status_at(self, now: float) -> str:
        """Return `submitted`, `processing`, `succeed` or `failed`."""
        if now < self.starts_at:
            return "submitted"
        if self.ended_at is None or now < self.ended_at:
            return "processing"
        return "failed" if self.failure else "succeed"

    def updated_at(self, now: float) -> float:
        """Return the time at which the status at *now* began."""
        if now < self.starts_at:
            return self.created_at
        return self.starts_at if self.ended_at is None or now < self.ended_at else self.ended_at

    def painted(self, now: float, failure: str = "") -> "Task":
        """Return the task after painting has ended."""
        return evolve(self, ready_at=now, failure=failure)


def text_id(number: int) -> str:
    """Return a task id of 22 characters, like those of older accounts. Equal numbers give equal ids."""
    return urlsafe_b64encode(number.to_bytes(16, "little")).decode().rstrip("=")


def dump_task(task: Task) -> str:
    """Return a task as JSON for the database."""
    return json.dumps(asdict(task))


def load_task(text: str) -> Task:
    """Return the task that `dump_task` has written."""
    fields: dict[str, Any] = json.loads(text)
    up, down, left, right = fields.pop("ratios")
    return Task(ratios=(up, down, left, right), **fields)
