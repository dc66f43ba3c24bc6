"""The OpenAPI document, checked by schemathesis against the running emulator."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from support.raw_client import DIRECTION, EDITING, Caller, calling

from kling_expand.emulator import Emulator
from kling_expand.emulator.http import openapi
from kling_expand.models import request_fields

TESTS = Path(__file__).parents[2]
QUICK: dict[str, Any] = {"slots": 10**6, "callback_attempts": 0, "queue_seconds": 0, "work_seconds": 0}


async def read(call: Caller) -> dict[str, Any]:
    """Return the document, which needs no credentials."""
    async with call.session.get(call.emulator.url + "/openapi.json") as response:
        document: dict[str, Any] = await response.json()
        return document


async def run_schemathesis(emulator: Emulator, document: str, place: Path, *more: str) -> tuple[int, str]:
    """Run schemathesis against the emulator and return (exit code, output)."""
    credentials = f"--header=Authorization: Bearer {emulator.api_key}"
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "schemathesis.cli",
            f"--config-file={TESTS / 'support' / 'schemathesis.toml'}",
        ),
        *("run", document, f"--url={emulator.url}", credentials, *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=place,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(
                TESTS.parent / ".hypothesis"
            ),  # where it caches its tables of characters
        },
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@pytest.mark.parametrize("dialect", ["editing", "direction"])
async def test_every_field_that_the_sdk_sends_is_declared(dialect: str) -> None:
    """Each request field of the SDK is in the document, so a field added only to the SDK fails here."""
    async with calling(**QUICK) as call:
        paths = (await read(call))["paths"]
    create = next(each["post"] for path, each in paths.items() if path == openapi.PATHS[dialect])
    declared = set(create["requestBody"]["content"]["application/json"]["schema"]["properties"])
    sent = {
        (each.wire or "").split(".")[0]
        for each in request_fields()
        if not (each.editing_only and dialect == "direction")
    }
    assert sent - {""} <= declared


@pytest.mark.parametrize("forms", [{}, {"task_format": "outputs", "task_id_format": "text"}], ids=str)
async def test_schemathesis_finds_nothing(tmp_path: Path, forms: dict[str, Any]) -> None:
    """Valid data are accepted, invalid data and credentials are refused, and all responses match."""
    few = ["--max-examples=4"] if forms else []
    async with calling(**QUICK, **forms) as call:
        document = call.emulator.url + "/openapi.json"
        code, output = await run_schemathesis(call.emulator, document, tmp_path, *few)
        assert code == 0, output
        assert call.emulator.account.refusals[5000] == 0
        assert len(call.emulator.account.tasks) > (3 if forms else 20)
        assert {1001, 1200, 1201, 1203} & set(call.emulator.account.refusals) >= {1001, 1201}


async def test_schemathesis_finds_an_error(tmp_path: Path) -> None:
    """Schemathesis finds a wrong limit of n and a wrong field of a task."""
    async with calling(**QUICK) as call:
        document = await read(call)
        text = json.dumps(document).replace('"maximum": 9', '"maximum": 20')
        wrong = text.replace('"task_status_msg"', '"color"')
        (tmp_path / "wrong.json").write_text(wrong)
        code, output = await run_schemathesis(
            call.emulator, str(tmp_path / "wrong.json"), tmp_path, "--max-examples=5"
        )
        assert code == 1
        assert "good data were refused: n must be an integer between 1 and 9" in output
        assert "'color' is a required property" in output or '"color" is a required property' in output


async def test_the_document_follows_the_settings() -> None:
    """The document changes with `task_format` and `success_status`."""
    async with calling(**QUICK, task_format="array", success_status="succeeded") as call:
        text = json.dumps(await read(call))
        assert "final_balance_deduction" not in text
        assert '"succeeded"' in text
        paths = (await read(call))["paths"]
        schema = paths[EDITING + "/{id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema["properties"]["data"]["type"] == "array"
        assert {EDITING, DIRECTION} <= set(paths)


def test_every_documented_code_is_in_the_document() -> None:
    """Each code is listed under its HTTP status."""
    assert openapi._refusal(401)["properties"]["code"]["enum"] == [1000, 1001, 1002, 1003, 1004]
    assert openapi._refusal(429)["properties"]["code"]["enum"] == [1100, 1101, 1102, 1302, 1303, 1304]
