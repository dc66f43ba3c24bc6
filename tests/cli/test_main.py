"""The command itself: help, version, completion, the emulator and missing extras."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.shell import COFFEE, Shell, shell

from kling_expand import __version__
from kling_expand.cli import root
from kling_expand.emulator.settings import options

kling = Shell()


@pytest.mark.parametrize("command", ["", *root.commands])
def test_help_fits_eighty_columns(command: str) -> None:
    """The help of each command starts with its usage, and fits 80 columns."""
    done = kling(*command.split(), "--help")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: kling-expand {command}".rstrip())
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert kling(*command.split(), "-h").stdout == done.stdout


@pytest.mark.parametrize("command", ["", "fleet", "webhook"])
def test_no_summary_of_a_command_is_cut_off(command: str) -> None:
    """Each command is listed on one line of at most 80 columns, with a whole sentence."""
    _, _, listed = kling(*command.split(), "--help").stdout.partition("Commands:\n")
    lines = listed.splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"  \w+ .*[^.]\.", line)] == []


def test_version() -> None:
    """The version is that of the package."""
    assert __version__ in kling("--version").stdout


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_the_help_says_how_to_complete_in_each_shell(shell_name: str) -> None:
    """The instruction in --help prints a script that calls the command."""
    instruction = f"_KLING_EXPAND_COMPLETE={shell_name}_source kling-expand"
    assert instruction in kling("--help").stdout
    done = kling(_KLING_EXPAND_COMPLETE=f"{shell_name}_source")
    assert (done.exit_code, "COMP_WORDS" in done.stdout) == (0, True)


def test_completion_knows_commands_and_options() -> None:
    """A half-typed command or option is completed."""
    env = {"_KLING_EXPAND_COMPLETE": "bash_complete"}
    commands = kling(COMP_WORDS="kling-expand pre", COMP_CWORD="1", **env).stdout
    assert commands.split() == ["plain,preview"]
    words = kling(COMP_WORDS="kling-expand expand --asp", COMP_CWORD="2", **env).stdout
    assert words.split() == ["plain,--aspect"]


def test_serve_has_every_setting_of_the_emulator() -> None:
    """`serve` has an option with help for every setting."""
    text = kling("serve", "--help").stdout
    assert [name for name in options() if f"--{name.name.replace('_', '-')}" not in text] == []


def test_serve_runs_until_it_is_interrupted(tmp_path: Path) -> None:
    """It prints its address, keys, lines for a shell and console. Ctrl-C ends it with exit code 0."""
    with kling.start("serve", "--engine", "flat", "--work-seconds", 0.05) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url, keys = line.split(maxsplit=1)
        more = [process.stdout.readline() for _ in range(5)]
        assert f"export KLING_BASE_URL={url}\n" in more
        assert "export KLING_API_KEY=api-key-kling-emulator\n" in more
        assert f"open {url}/ in a browser" in more[-1]
        api_key = re.search(r"api_key=(\S+)", keys)
        assert api_key is not None
        done = kling(
            "expand", COFFEE, "--up", 0.5, "--base-url", url, "-o", tmp_path, KLING_API_KEY=api_key[1]
        )
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (done.exit_code, process.returncode, err) == (0, 0, "")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", "x"),
        ("--port", "99999"),
        ("--list-order", "never"),
        ("--account-code", "7"),
        ("--work-seconds", "nan"),
        ("--state", "/nonexistent/tasks.db"),
        ("--state", __file__),
        ("--host", "999.1.1.1"),
    ],
)
def test_serve_refuses_an_invalid_setting(option: str, value: str) -> None:
    """For an invalid setting, the exit code is 2, and one line names the setting."""
    done = kling("serve", option, value)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    named = value if option == "--host" else option.strip("-").replace("-", "_")
    assert named in done.stderr.replace("-", "_")


def test_serve_says_why_it_cannot_start() -> None:
    """For a port in use, the exit code is 2, and there is no traceback."""
    with shell() as other:
        done = kling("serve", "--port", other.emulator.url.rpartition(":")[2])
    assert (done.exit_code, "Traceback" in done.stderr) == (2, False)
    assert "Error: " in done.stderr


SCRIPT = """
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {missing} else found(name, package)
sys.argv = ["kling-expand", *{arguments}]
from kling_expand.__main__ import main
main()
"""


def run_without(missing: set[str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as if these packages were not installed."""
    code = SCRIPT.format(missing=missing, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ({"click"}, ["--help"], "cli"),
        ({"click", "rich", "jinja2"}, ["expand"], "cli"),
        ({"numpy"}, ["expand", COFFEE, "--up", "1", "--emulator"], "emulator"),
        ({"numpy"}, ["serve"], "emulator"),
        ({"PIL"}, ["preview", COFFEE, "--up", "1"], "images"),
        ({"PIL"}, ["expand", COFFEE, "--up", "1", "--fit"], "images"),
    ],
)
def test_a_missing_extra_is_named(missing: set[str], arguments: list[str], extra: str) -> None:
    """For a missing extra, the exit code is 2, and the message has the command that installs it."""
    done = run_without(missing, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"pip install 'kling-expand[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_heic_photo_names_the_missing_extra(tmp_path: Path) -> None:
    """Without a HEIC reader the message names the extra."""
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    done = run_without({"pillow_heif"}, "expand", str(tmp_path / "photo.heic"), "--up", "1", "--fit")
    assert (done.returncode, "kling-expand[heif]" in done.stderr) == (2, True)


def test_ratios_needs_only_the_cli_extra() -> None:
    """`ratios` works without the packages of any other extra."""
    done = run_without({"PIL", "numpy", "pillow_heif", "textual_image"}, "ratios", COFFEE, "--up", "1")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "1.0000,0.0000,0.0000,0.0000")
