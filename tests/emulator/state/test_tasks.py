"""Tasks and their JSON in the database."""

from support.stored_tasks import task

from kling_expand.emulator.state.tasks import dump_task, load_task


def test_a_task_is_stored_unchanged() -> None:
    """Every field survives, with any characters."""
    assert load_task(dump_task(task(ready_at=5.5, failure="no"))) == task(ready_at=5.5, failure="no")
