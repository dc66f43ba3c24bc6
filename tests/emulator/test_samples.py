"""The examples of the documentation: their requests are accepted, and responses have all their fields."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from support.raw_client import DIRECTION, EDITING, calling, png

SAMPLES = Path(__file__).parents[1] / "samples"
REQUESTS = sorted(path.name for path in SAMPLES.glob("*.request.json"))


def sample(name: str) -> Any:
    """Return a recorded body."""
    return json.loads((SAMPLES / name).read_text())


def path_of(name: str) -> str:
    """Return the path to which a sample is sent."""
    return EDITING if name.startswith("editing") else DIRECTION


def missing(shown: Any, found: Any, path: str = "") -> list[str]:
    """Return the fields of a sample that a response lacks or has with another type."""
    if isinstance(shown, dict) and isinstance(found, dict):
        return [
            lack
            for name, value in shown.items()
            for lack in (
                missing(value, found[name], f"{path}.{name}") if name in found else [f"{path}.{name}"]
            )
        ]
    if isinstance(shown, list) and isinstance(found, list):
        return missing(shown[0], found[0], path + "[]")
    return [] if type(shown) is type(found) else [f"{path}: {type(found).__name__}"]


def test_all_samples_exist() -> None:
    """There is one request of the editing dialect and three of the direction dialect."""
    assert len(REQUESTS) == 4


@pytest.mark.parametrize("name", REQUESTS)
async def test_recorded_requests_are_accepted_unchanged(name: str) -> None:
    """The recorded bytes are accepted unchanged, including the URL of their picture."""
    async with calling(fetch_timeout=0) as call:
        raw = (SAMPLES / name).read_bytes()
        status, body = await call(
            "POST", path_of(name), data=raw, headers={"Content-Type": "application/json"}
        )
        assert (status, body["code"], body["message"]) == (200, 0, "SUCCEED")
        assert missing(sample("editing-create.json"), body) == []


@pytest.mark.parametrize("name", REQUESTS)
async def test_responses_have_every_recorded_field(name: str) -> None:
    """The responses to create, query and list have every recorded field, in both formats."""
    image = base64.b64encode(png()).decode()
    marked = {"watermark_info": {"enabled": True}} if name.startswith("editing") else {}
    async with calling(queue_seconds=0, work_seconds=0) as call:
        path = path_of(name)
        _, body = await call("POST", path, json=sample(name) | {"image": image} | marked)
        task_id = body["data"]["task_id"]
        _, newer = await call("GET", f"{path}/{task_id}")
        _, listed = await call("GET", f"{path}?pageNum=1&pageSize=30")
        call.emulator.task_format = "array"
        _, older = await call("GET", f"{path}/{task_id}")
        if path == DIRECTION:
            assert missing(sample("direction-query.json"), newer) == []
            return
        assert missing(sample("editing-query.json"), older) == []
        assert missing(sample("editing-query-object.json"), newer) == []
        assert missing(sample("editing-list.json"), listed) == []
