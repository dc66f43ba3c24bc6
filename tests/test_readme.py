"""Every snippet of the README runs unchanged against the emulator."""

import asyncio
import inspect
import json
import os
import re
import shutil
import sys
from pathlib import Path

import attrs

from kling_expand import KlingClient, Settings
from kling_expand.cli.commands.bulk import bulk
from kling_expand.cli.commands.webhook import listen
from kling_expand.emulator import Emulator

ROOT = Path(__file__).parent.parent
SOURCE = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "kling_expand").rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SNIPPETS = [body for kind, body in BLOCKS if kind == "python"]
COMMANDS = [
    line[2:] for kind, body in BLOCKS if kind == "console" for line in body.splitlines() if line[:2] == "$ "
]

# Runs the Python blocks, in which top-level `await` is allowed as in a notebook.
RUNNER = """
import ast, asyncio, inspect, json
for number, snippet in enumerate(json.load(open("snippets.json"))):
    print(f"block {number}:", flush=True)
    code = compile(snippet, f"block {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = {"__name__": "__main__"}
    async def main(): await eval(code, names)
    asyncio.run(main()) if code.co_flags & inspect.CO_COROUTINE else exec(code, names)
"""


async def run(words: list[str], emulator: Emulator, folder: Path) -> str:
    """Return the output of a command that runs in *folder* with the emulator as the service."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KLING")}
    environ |= {"KLING_API_KEY": emulator.api_key, "KLING_BASE_URL": emulator.url, "COLUMNS": "80"}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, f"{words}: {said.decode()}"
    return said.decode()


async def test_blocks_run_in_order_in_one_folder(kling_emulator: Emulator, tmp_path: Path) -> None:
    """The blocks run unchanged and in order, and print the output that their comments show."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "snippets.json").write_text(json.dumps(SNIPPETS), encoding="utf-8")
    said = await run([sys.executable, "-c", RUNNER], kling_emulator, tmp_path)
    printed = re.split(r"^block \d+:\n", said, flags=re.MULTILINE)[1:]
    for snippet, lines in zip(SNIPPETS, printed, strict=True):
        for promised in re.findall(r"print\(.*\)  # (.+)", snippet):
            for part in promised.split(", ") if "out/" in promised else [promised]:
                assert part in lines
    for command in COMMANDS:
        await run(["bash", "-c", command], kling_emulator, tmp_path)  # asserts its exit code 0


def _table(title: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its header."""
    section = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [row.strip("|").split("|") for row in section.splitlines() if row.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_configuration_table_is_complete_and_correct() -> None:
    """The table has every argument of a client, every environment variable and the correct defaults."""
    rows = _table("Configuration")
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    settings = {each.name: each for each in attrs.fields(Settings)}
    arguments = inspect.signature(KlingClient).parameters
    shell_options = [word for command in (bulk, listen) for each in command.params for word in each.opts]
    assert sorted(named) == sorted({*arguments, *settings} - {"options"})
    for names, variables, options, _unit, default, _meaning in rows:
        for name in re.findall(r"`(\w+)`", names):
            value = settings[name].default if name in settings else arguments[name].default
            if isinstance(value, str | int | float):
                assert default.strip("`").replace(",", "") == str(value).removesuffix(".0"), name
        for option in re.findall(r"`(--[\w-]+)`", options):
            assert option in shell_options, option
        for variable in re.findall(r"`(KLING\w+)`", variables):
            assert variable in SOURCE, variable
    section = README.split("\n## Configuration\n")[1].split("\n## ")[0]
    for variable in set(re.findall(r"\bKLING_[A-Z_]+[A-Z]\b", SOURCE)) - {"KLING_EXPAND_COMPLETE"}:
        assert variable in section, variable


def test_the_first_two_commands_are_one_line_each() -> None:
    """The first block expands a photo and the second runs the tests, each with its set-up."""
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
