"""What is a task, and how is it at a given moment? Its state is a function of time; nothing ticks.

created ──queue──> starts ──work──> due
submitted          processing       succeed | failed     (or later, when painting took longer than `due`)
"""

import json
from typing import Any

from attrs import asdict, evolve, field, frozen

from kling_expand.emulator.http.validation import Ratios

UNITS_PER_IMAGE = 8
DOLLARS_PER_IMAGE = 0.028


@frozen
class Task:
    """What is known of a task for good; times are Unix seconds, `digest` names the picture that came in."""

    task_id: str
    external_task_id: str
    dialect: str
    ratios: Ratios
    n: int
    prompt: str
    watermark: bool
    callback_url: str
    created: float
    starts: float
    due: float
    seed: int
    engine: str
    image_url: str = field(default="", repr=False)
    digest: str = ""
    ready: float | None = None  # when the pictures were painted, or could not be
    failure: str = ""  # why it fails, when it does

    @property
    def ended(self) -> float | None:
        """When it succeeds or fails; None while painting goes on."""
        return None if self.ready is None else max(self.due, self.ready)

    def status_at(self, now: float) -> str:
        """`submitted`, `processing`, `succeed` or `failed`."""
        if now < self.starts:
            return "submitted"
        if self.ended is None or now < self.ended:
            return "processing"
        return "failed" if self.failure else "succeed"

    def updated_at(self, now: float) -> float:
        """When the status of `now` began."""
        if now < self.starts:
            return self.created
        return self.starts if self.ended is None or now < self.ended else self.ended

    def painted(self, now: float, failure: str = "") -> "Task":
        """The same task once its pictures are there, or are known never to be."""
        return evolve(self, ready=now, failure=failure)


def dump(task: Task) -> str:
    """A task as text for a database."""
    return json.dumps(asdict(task))


def load(text: str) -> Task:
    """The task that `dump` wrote."""
    fields = json.loads(text)
    up, down, left, right = fields.pop("ratios")
    return Task(ratios=(up, down, left, right), **fields)


@frozen
class Shapes:
    """How answers are spelled: where pictures are found, and what of the two documents is followed."""

    origin: str
    seed: bool = False
    succeeded: bool = False

    def created(self, task: Task, now: float) -> dict[str, Any]:
        """`data` of a create."""
        return {
            "task_id": task.task_id,
            "task_info": {"external_task_id": task.external_task_id},
            "task_status": self._word(task.status_at(now)),
            "created_at": _milliseconds(task.created),
            "updated_at": _milliseconds(task.updated_at(now)),
        }

    def task(self, task: Task, now: float) -> dict[str, Any]:
        """A task in a query, a list or a callback."""
        status = task.status_at(now)
        view = self.created(task, now)
        view["task_status_msg"] = task.failure if status == "failed" else ""
        view["watermark_info"] = {"enabled": task.watermark}
        if status == "succeed":
            view["task_result"] = {"images": [self._image(task, index) for index in range(task.n)]}
        if status in {"succeed", "failed"}:
            view.update(self._price(task, status))
        return view

    def _image(self, task: Task, index: int) -> dict[str, Any]:
        stem = f"{self.origin}/files/{task.task_id}/{index}"
        image: dict[str, Any] = {"index": index, "url": f"{stem}.png"}
        if task.watermark:
            image["watermark_url"] = f"{stem}-watermark.png"
        return image

    def _price(self, task: Task, status: str) -> dict[str, Any]:
        images = task.n if status == "succeed" else 0
        price: dict[str, Any] = {"final_unit_deduction": str(UNITS_PER_IMAGE * images)}
        if not self.seed:
            dollars = f"{DOLLARS_PER_IMAGE * images:.3f}"
            price["final_balance_deduction"] = {"quota": dollars, "list_price": dollars}
        return price

    def _word(self, status: str) -> str:
        return "succeeded" if self.succeeded and status == "succeed" else status


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
