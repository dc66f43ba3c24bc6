"""Is the OpenAPI document true? An independent machine reads it and tries to prove that it is not."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from support.raw_client import DIRECTION, EDITING, Caller, calling

from kling_expand.emulator import Emulator
from kling_expand.emulator.http import openapi

TESTS = Path(__file__).parents[2]
QUICK: dict[str, Any] = {"slots": 10**6, "callback_attempts": 0, "queue_seconds": 0, "work_seconds": 0}


async def read(call: Caller) -> dict[str, Any]:
    """The document, which needs no credentials."""
    async with call.session.get(call.emulator.url + "/openapi.json") as answer:
        document: dict[str, Any] = await answer.json()
        return document


async def tried(emulator: Emulator, document: str, place: Path, *more: str) -> tuple[int, str]:
    """(exit code, output) of schemathesis against the emulator, with its settings beside this file."""
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
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Good data are accepted, bad data refused, strangers kept out, and every answer is as described."""
    async with calling(**QUICK) as call:
        code, output = await tried(call.emulator, call.emulator.url + "/openapi.json", tmp_path)
        assert code == 0, output
        assert call.emulator.account.refusals[5000] == 0
        assert len(call.emulator.account.tasks) > 20
        assert {1001, 1200, 1201, 1203} & set(call.emulator.account.refusals) >= {1001, 1201}


async def test_schemathesis_would_find_a_lie(tmp_path: Path) -> None:
    """Told that n may be 20 and that a task has a colour, it objects to both."""
    async with calling(**QUICK) as call:
        document = await read(call)
        text = json.dumps(document).replace('"maximum": 9', '"maximum": 20')
        lie = text.replace('"task_status_msg"', '"colour"')
        (tmp_path / "lie.json").write_text(lie)
        code, output = await tried(call.emulator, str(tmp_path / "lie.json"), tmp_path, "--max-examples=5")
        assert code == 1
        assert "good data were refused: n must be an integer between 1 and 9" in output
        assert "'colour' is a required property" in output or '"colour" is a required property' in output


async def test_the_document_follows_the_settings() -> None:
    """What `task_format` and `success_status` change in the answers, they change in the document too."""
    async with calling(**QUICK, task_format="array", success_status="succeeded") as call:
        text = json.dumps(await read(call))
        assert "final_balance_deduction" not in text
        assert '"succeeded"' in text
        paths = (await read(call))["paths"]
        answer = paths[EDITING + "/{id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert answer["properties"]["data"]["type"] == "array"
        assert {EDITING, DIRECTION} <= set(paths)


def test_every_documented_code_is_in_the_document() -> None:
    """Under the status it comes with."""
    assert openapi._refusal(401)["properties"]["code"]["enum"] == [1000, 1001, 1002, 1003, 1004]
    assert openapi._refusal(429)["properties"]["code"]["enum"] == [1100, 1101, 1102, 1302, 1303, 1304]
