"""Failures that are triggered by words in a prompt."""

import pytest
from support.raw_client import calling, create_code


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *((f"emulate-{number}", (429, number)) for number in (1100, 1101, 1102, 1302, 1303, 1304)),
        ("emulate-1103", (403, 1103)),
        *((f"emulate-{number}", (400, number)) for number in (1300, 1301)),
        ("emulate-5000", (500, 5000)),
        ("emulate-5001", (503, 5001)),
        ("emulate-5002", (504, 5002)),
        ("emulate-1201", (200, 0)),
        ("emulated pastures", (200, 0)),
    ],
)
async def test_trigger_words_cause_refusals(word: str, expected: tuple[int, int]) -> None:
    """Each trigger causes its error code and creates no task. Other words have no effect."""
    async with calling() as call:
        assert await create_code(call, prompt=f"a park, {word}, sunlit") == expected
        assert len(call.emulator.account.tasks) == (expected == (200, 0))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("risk-control", "Failure to pass the risk control system"),
        ("invalid-pixel", "Image pixel is invalid"),
    ],
)
async def test_trigger_words_cause_failed_tasks(word: str, message: str) -> None:
    """The task is accepted and processed. It then fails, without pictures and at no cost."""
    async with calling(queue_seconds=1, work_seconds=1) as call:
        task_id = await call.create(prompt=f"emulate-{word}")
        call.emulator.advance(1)
        assert (await call.task(task_id))["task_status"] == "processing"
        call.emulator.advance(1)
        task = await call.task(task_id)
        assert (task["task_status"], task["task_status_msg"]) == ("failed", message)
        assert (task["final_unit_deduction"], "task_result" in task) == ("0", False)
