"""The account: task ids in both formats, before and after a restart."""

import re
from pathlib import Path
from typing import Any

from support.raw_client import EDITING, calling

from kling_expand.emulator.state.account import Account


def test_numeric_ids_increase() -> None:
    """An id has 18 digits and is greater than the one before, even while the clock stands still."""
    account = Account(retention_seconds=60)
    ids = [account.new_id(now) for now in (1e9, 1e9, 1e9 + 1, 1e9)]
    assert all(re.fullmatch("[0-9]{18}", each) for each in ids)
    assert ids == sorted(set(ids))


async def test_ids_can_be_text(tmp_path: Path) -> None:
    """A text id has 22 characters, works on every route, and is unique even after a restart."""
    options: dict[str, Any] = {"task_id_format": "text", "state": str(tmp_path / "state.db"), "slots": 100}
    options |= {"queue_seconds": 0, "work_seconds": 0, "clock": lambda: 1e9, "list_foreign": 2}
    made: list[str] = []
    for _ in range(2):
        async with calling(**options) as call:
            made += [await call.create() for _ in range(3)]
            assert set(call.emulator.account.tasks) == set(made)
            task = await call.task(made[-1])
            async with call.session.get(task["task_result"]["images"][0]["url"]) as response:
                assert response.status == 200
            listed = [each["task_id"] for each in (await call("GET", EDITING))[1]["data"]]
            assert set(made) < set(listed)
            assert len(listed) == len(set(listed))
    assert len(set(made)) == 6
    assert all(re.fullmatch("[A-Za-z0-9_-]{22}", each) for each in made)
