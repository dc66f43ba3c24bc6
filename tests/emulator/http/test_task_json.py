"""The JSON forms of a task."""

from typing import Any

import pytest
from support.raw_client import EDITING, calling, order


async def test_a_task_has_the_documented_json() -> None:
    """A task is submitted, processed and successful at the right times, and has all documented fields."""
    async with calling(queue_seconds=10, work_seconds=20, clock=lambda: 1_700_000_000.0) as call:
        status, body = await call("POST", EDITING, json=order(n=2, external_task_id="mine"))
        assert (status, body["code"], body["message"]) == (200, 0, "SUCCEED")
        task_id = body["data"]["task_id"]
        assert len(task_id) == 18
        assert task_id.isdecimal()
        assert body["data"] == {
            "task_id": task_id,
            "task_info": {"external_task_id": "mine"},
            "task_status": "submitted",
            "created_at": 1_700_000_000_000,
            "updated_at": 1_700_000_000_000,
        }
        call.emulator.advance(10)
        assert (await call.task(task_id))["task_status"] == "processing"
        call.emulator.advance(20)
        task = await call.task("mine")
        stem = f"{call.emulator.url}/files/{task_id}/"
        assert task == {
            "task_id": task_id,
            "task_info": {"external_task_id": "mine"},
            "task_status": "succeed",
            "task_status_msg": "",
            "watermark_info": {"enabled": False},
            "final_unit_deduction": "16",
            "final_balance_deduction": {"quota": "0.056", "list_price": "0.056"},
            "created_at": 1_700_000_000_000,
            "updated_at": 1_700_000_030_000,
            "task_result": {
                "images": [{"index": 0, "url": stem + "0.png"}, {"index": 1, "url": stem + "1.png"}]
            },
        }
        assert call.emulator.account.units_billed == 16


async def test_the_oldest_format_has_fewer_fields() -> None:
    """`array` wraps the data of a query and omits newer fields. `success_status` sets the status word."""
    async with calling(
        task_format="array", success_status="succeeded", queue_seconds=0, work_seconds=0
    ) as call:
        task_id = await call.create(watermark_info={"enabled": True})
        _, body = await call("GET", f"{EDITING}/{task_id}")
        (task,) = body["data"]
        assert (task["task_status"], task["watermark_info"]) == ("succeeded", {"enabled": True})
        assert "final_balance_deduction" not in task
        assert set(task["task_result"]["images"][0]) == {"index", "url", "watermark_url"}


async def test_the_newer_form_of_a_task() -> None:
    """With `outputs`, creates, queries and lists return id, status, outputs and billing."""
    options: dict[str, Any] = {"task_format": "outputs", "queue_seconds": 10, "work_seconds": 0}
    async with calling(clock=lambda: 1_700_000_000.0, **options) as call:
        body = order(n=2, external_task_id="mine", watermark_info={"enabled": True})
        _, response = await call("POST", EDITING, json=body)
        made = response["data"]
        assert made == {
            "id": made["id"],
            "external_id": "mine",
            "status": "submitted",
            "message": "",
            "create_time": 1_700_000_000_000,
            "update_time": 1_700_000_000_000,
            "outputs": [],
            "billing": [],
        }
        call.emulator.advance(10)
        done = await call.task("mine")
        stem = f"{call.emulator.url}/files/{made['id']}/"
        assert (done["status"], done["update_time"]) == ("succeeded", 1_700_000_010_000)
        assert done["outputs"] == [
            {"type": "image", "url": f"{stem}{i}.png", "watermark_url": f"{stem}{i}-watermark.png"}
            for i in range(2)
        ]
        assert [(each["charge_type"], each["amount"]) for each in done["billing"]] == [("unit", "16")]
        assert (await call("GET", EDITING))[1]["data"] == [done]


async def test_a_failure_in_the_newer_form() -> None:
    """A failed task has its message, no outputs and no billing."""
    async with calling(task_format="outputs", queue_seconds=0, work_seconds=0) as call:
        _, response = await call("POST", EDITING, json=order(prompt="emulate-risk-control"))
        task = await call.task(response["data"]["id"])
        assert (task["status"], task["message"]) == ("failed", "Failure to pass the risk control system")
        assert (task["outputs"], task["billing"]) == ([], [])


@pytest.mark.parametrize("form", ["object", "outputs"])
async def test_a_success_can_come_before_its_images(form: str) -> None:
    """A successful task lists no images for `images_lag` seconds, and all of them afterwards."""
    options: dict[str, Any] = {"task_format": form, "images_lag": 5, "queue_seconds": 0, "work_seconds": 0}
    async with calling(clock=lambda: 1e9, **options) as call:
        _, response = await call("POST", EDITING, json=order(external_task_id="mine", n=2))
        assert response["code"] == 0
        shown = []
        for seconds in (0, 4.9, 0.1):
            call.emulator.advance(seconds)
            task = await call.task("mine")
            assert task.get("task_status", task.get("status")) in {"succeed", "succeeded"}
            images = task["outputs"] if form == "outputs" else task.get("task_result", {}).get("images", [])
            shown.append(len(images))
        assert shown == [0, 0, 2]
