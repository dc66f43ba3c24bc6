"""Exit codes and messages of failures."""

import click
import pytest
from click.testing import CliRunner

from kling_expand.cli.terminal import Commands
from kling_expand.errors import APIError, ConfigurationError, InvalidRequest, KlingError, TaskFailed


def outcome(error: BaseException) -> tuple[int, str]:
    """Return exit code and stderr of a command that raises *error*."""

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
def test_an_error_of_the_package_is_one_sentence(error: KlingError, code: int) -> None:
    """Errors found locally have exit code 2, answers of the service 1."""
    assert outcome(error) == (code, f"Error: {error}\n")


def test_ctrl_c_is_130_wherever_it_strikes() -> None:
    """Ctrl-C has exit code 130 and no message, also outside an event loop."""
    assert outcome(KeyboardInterrupt()) == (130, "")
