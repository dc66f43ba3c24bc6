"""The start of the command line: what it imports, and Ctrl-C before a command runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kling_expand


def imported_modules(*arguments: str) -> set[str]:
    """Return the modules that a command has imported by its end."""
    code = (
        "import atexit, sys; atexit.register(lambda: sys.stderr.write(' '.join(sys.modules)));"
        f"sys.argv = ['kling-expand', *{arguments}]; from kling_expand.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ratios", "100x100", "--up", "1"]])
def test_a_quick_command_imports_little(arguments: list[str]) -> None:
    """Help, version and ratios load neither aiohttp nor asyncio, rich or a database."""
    heavy = {"aiohttp", "asyncio", "rich", "sqlite3", "jinja2", "cattrs", "PIL"}
    assert imported_modules(*arguments) & heavy == set()


@pytest.mark.parametrize("command", ["expand", "bulk", "wait", "resume", "list", "doctor"])
def test_display_libraries_are_loaded_only_when_used(command: str) -> None:
    """A command loads the libraries for live screens and pages only when it draws one."""
    drawing = {"rich.live", "rich.console", "jinja2", "PIL"}
    heavy = drawing | {"procrastinate", "psycopg", "kling_expand.emulator"}
    assert imported_modules(command, "--help") & heavy == set()


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_at_the_start_is_quiet(delay: float) -> None:
    """Ctrl-C in the first half second ends the command without a message."""
    code = "from kling_expand.__main__ import main; print(flush=True); main()"
    words = [sys.executable, "-c", code, "wait", "1", "--base-url", "http://127.0.0.1:1"]
    environ = os.environ | {"KLING_API_KEY": "key"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the interpreter's own start is not tested
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert "Traceback" not in err
    assert (process.returncode, [line for line in err.splitlines() if "Error" in line]) == (130, [])


def test_little_is_imported_before_ctrl_c_is_handled() -> None:
    """No slow module is imported before the handler is installed. Until then, Ctrl-C prints a traceback."""
    code = "import sys, kling_expand.__main__; print(*sys.modules)"
    root = Path(kling_expand.__file__).parents[1]  # -S leaves out the directory of an editable installation
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert not {"contextlib", "enum", "functools", "importlib", "re", "typing"} & set(done.stdout.split())
