"""Every snippet of the README runs unchanged against the emulator."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from kling_expand.emulator import Emulator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SNIPPETS = [body for kind, body in BLOCKS if kind == "python"]
COMMANDS = [
    line[2:] for kind, body in BLOCKS if kind == "console" for line in body.splitlines() if line[:2] == "$ "
]

# Runs a file in which `await` may stand outside of a function, as it does in a notebook.
RUNNER = """
import ast, asyncio, inspect, sys
code = compile(open(sys.argv[1]).read(), "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
names = {}
async def main(): await eval(code, names)
asyncio.run(main()) if code.co_flags & inspect.CO_COROUTINE else exec(code, names)
"""


async def run(words: list[str], emulator: Emulator, folder: Path) -> str:
    """Return what a command prints in a folder with the photos, with the emulator as the service."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KLING")}
    environ |= {"KLING_API_KEY": emulator.api_key, "KLING_BASE_URL": emulator.url, "COLUMNS": "80"}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.splitlines()[-1][:40])
async def test_snippets_run(snippet: str, kling_emulator: Emulator, tmp_path: Path) -> None:
    """Each Python block runs by itself, and prints what its comments say it prints."""
    (tmp_path / "snippet.py").write_text(snippet, encoding="utf-8")
    said = await run([sys.executable, "-c", RUNNER, "snippet.py"], kling_emulator, tmp_path)
    for promised in re.findall(r"print\(.*\)  # (.+)", snippet):
        for part in promised.split(", ") if "out/" in promised else [promised]:
            assert part in said


@pytest.mark.parametrize("command", COMMANDS)
async def test_commands_run(command: str, kling_emulator: Emulator, tmp_path: Path) -> None:
    """Each command of the README exits with code 0."""
    await run(["bash", "-c", command], kling_emulator, tmp_path)  # asserts it


def test_the_two_first_commands_are_one_line_each() -> None:
    """The first block runs the main job, the second the tests, each with its set-up."""
    first, second = [body.strip() for kind, body in BLOCKS if kind == "sh"][:2]
    assert [first.count("\n"), second.count("\n")] == [0, 0]
    assert "-m venv" in first
    assert "examples/photos/coffee.jpg --aspect 16:9" in first
    assert "-m venv" in second
    assert "pytest" in second


def test_links_and_pictures_exist() -> None:
    """Every file that the README links to exists."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
