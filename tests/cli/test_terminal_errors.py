"""Exit codes and messages of failures."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import kling_expand
from kling_expand.cli.terminal import SHELL_WORDS, Commands, shell_words
from kling_expand.errors import APIError, ConfigurationError, InvalidRequest, KlingError, TaskFailed


def outcome(error: BaseException) -> tuple[int, str]:
    """Return the exit code and stderr of a command that raises *error*."""

    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    def command() -> None:
        raise error

    done = CliRunner().invoke(group, ["command"])
    return done.exit_code, done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("no credentials"), 2),
        (InvalidRequest("n", 12, "at most 9"), 2),
        (APIError("refused", code=1100, status=429), 1),
        (TaskFailed("risk control", task_id="1"), 1),
    ],
)
def test_an_error_of_the_package_is_one_line(error: KlingError, code: int) -> None:
    """The exit code is 2 for an error that is found locally, and 1 for an error response of the service."""
    assert outcome(error) == (code, f"Error: {error}\n")


def test_a_file_is_named_if_it_causes_an_error() -> None:
    """An unexpected error of a file names the file. Any other error of a stream is blamed on the output."""
    assert outcome(PermissionError(13, "Permission denied", "a\x1b")) == (
        1,
        "Error: a\\x1b: Permission denied\n",
    )
    assert outcome(OSError(28, "No space left")) == (
        1,
        "Error: the output cannot be written: No space left\n",
    )


def test_ctrl_c_always_exits_with_130() -> None:
    """After Ctrl-C, the exit code is 130 and there is no message, even outside an event loop."""
    assert outcome(KeyboardInterrupt()) == (130, "")


def test_advice_is_given_in_terms_of_the_shell() -> None:
    """No message of a command advises to pass an argument of the library or to await something."""
    package = Path(kling_expand.__file__).parent
    texts = [path.read_text() for path in package.rglob("*.py") if path.name != "terminal.py"]
    for words, own in SHELL_WORDS.items():
        assert any(words in text for text in texts), words  # otherwise the message has changed
        assert shell_words(f"late: {words}") == f"late: {own}"
    assert outcome(KlingError("time is up, and the future can be awaited again"))[1] == (
        "Error: time is up; run the same command again to wait for it\n"
    )
