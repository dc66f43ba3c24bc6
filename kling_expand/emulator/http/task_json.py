"""The JSON of a task in responses and callbacks.

Three forms exist. `object` is that of the current documentation. `array` is the oldest one, without the newer
fields. `outputs` is used by newer APIs of the vendor and by the test callback of the vendor's console.
"""

from typing import Any

from attrs import frozen

from kling_expand.emulator.settings import Settings
from kling_expand.emulator.state.tasks import UNITS_PER_IMAGE, Task

DOLLARS_PER_IMAGE = 0.028


@frozen
class TaskJson:
    """The JSON form that *settings* specify. Picture URLs begin with *origin*."""

    settings: Settings
    origin: str

    def created(self, task: Task, now: float) -> dict[str, Any]:
        """Return the `data` of a response to a create."""
        if self.settings.task_format == "outputs":
            return self._outputs_form(task, now)
        return {
            "task_id": task.task_id,
            "task_info": {"external_task_id": task.external_task_id},
            "task_status": self._status_word(task.status_at(now)),
            "created_at": _milliseconds(task.created_at),
            "updated_at": _milliseconds(task.updated_at(now)),
        }

    def queried(self, task: Task, now: float) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the `data` of a response to a query."""
        view = self.task(task, now)
        return [view] if self.settings.task_format == "array" else view

    def task(self, task: Task, now: float) -> dict[str, Any]:
        """Return a task of a list, or the body of a callback."""
        if self.settings.task_format == "outputs":
            return self._outputs_form(task, now)
        status = task.status_at(now)
        view = self.created(task, now)
        view["task_status_msg"] = task.failure if status == "failed" else ""
        view["watermark_info"] = {"enabled": task.watermark}
        images = self._images(task, now)
        if images:
            view["task_result"] = {
                "images": [{"index": index, **image} for index, image in enumerate(images)]
            }
        if status in {"succeed", "failed"}:
            view.update(self._price(task, status))
        return view

    def _outputs_form(self, task: Task, now: float) -> dict[str, Any]:
        status = task.status_at(now)
        return {
            "id": task.task_id,
            "external_id": task.external_task_id,
            "status": "succeeded" if status == "succeed" else status,
            "message": task.failure if status == "failed" else "",
            "create_time": _milliseconds(task.created_at),
            "update_time": _milliseconds(task.updated_at(now)),
            "outputs": [{"type": "image", **image} for image in self._images(task, now)],
            "billing": _billing(task) if status == "succeed" else [],
        }

    def _images(self, task: Task, now: float) -> list[dict[str, str]]:
        """Return the visible images: none before a success or within `images_lag` seconds after it."""
        if task.status_at(now) != "succeed" or now < task.updated_at(now) + self.settings.images_lag:
            return []
        return [self._image(task, index) for index in range(task.n)]

    def _image(self, task: Task, index: int) -> dict[str, str]:
        stem = f"{self.origin}/files/{task.task_id}/{index}"
        image = {"url": f"{stem}.png"}
        return image | {"watermark_url": f"{stem}-watermark.png"} if task.watermark else image

    def _price(self, task: Task, status: str) -> dict[str, Any]:
        images = task.n if status == "succeed" else 0
        price: dict[str, Any] = {"final_unit_deduction": str(UNITS_PER_IMAGE * images)}
        if self.settings.task_format != "array":
            price["final_balance_deduction"] = {"quota": _dollars(images), "list_price": _dollars(images)}
        return price

    def _status_word(self, status: str) -> str:
        return self.settings.success_status if status == "succeed" else status


def _billing(task: Task) -> list[dict[str, str]]:
    return [
        {
            "charge_type": "unit",
            "package_type": "image",
            "amount": str(UNITS_PER_IMAGE * task.n),
            "currency": "USD",
            "list_price": _dollars(task.n),
        }
    ]


def _dollars(images: int) -> str:
    return f"{DOLLARS_PER_IMAGE * images:.3f}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
