"""`kling-expand doctor`: checks of what a job needs."""

import json

import pytest
from click.testing import Result
from support.shell import Shell, shell

from kling_expand.cli.commands.doctor import _by_extra, _clock, _extra
from kling_expand.emulator.faults.plan import Fault


def results_by_subject(done: Result) -> dict[str, bool | None]:
    """Return the result of each check by its subject."""
    return {facts["about"]: facts["good"] for facts in map(json.loads, done.stdout.splitlines())}


def test_a_valid_setup_is_checked_at_no_cost() -> None:
    """The exit code is 0, no task is created and no secret is printed."""
    with shell() as kling:
        done = kling("doctor")
        assert kling.emulator.account.tasks == {}
        secret = kling.emulator.api_key
        found = results_by_subject(kling("doctor", "--json"))
    assert done.exit_code == 0
    assert secret not in done.stdout
    assert "API key was accepted" in done.stdout
    assert found["credentials"]
    assert found["service"]
    assert found["clock"]
    assert found["extra cli"]


def test_missing_and_refused_credentials_are_distinguished() -> None:
    """For missing or refused credentials, the exit code is 2. The network is checked in both cases."""
    with shell() as kling:
        none = kling("doctor", "--json", KLING_API_KEY="")
        wrong = kling("doctor", "--json", KLING_API_KEY="api-key-kling-of-another")
        half = kling("doctor", "--json", KLING_API_KEY="", KLING_ACCESS_KEY="half")
    for done in (none, wrong, half):
        assert done.exit_code == 2
        assert (results_by_subject(done)["credentials"], results_by_subject(done)["service"]) == (False, True)
    assert "no credentials" in none.stdout
    assert "KlingClient" not in none.stdout
    assert "refused" in wrong.stdout
    assert "secret key is missing" in half.stdout


def test_an_unreachable_service_is_reported() -> None:
    """The exit code is 1, and the credentials count as not checked."""
    done = Shell()("doctor", "--base-url", "http://127.0.0.1:9", "--json", KLING_API_KEY="some")
    found = results_by_subject(done)
    assert (done.exit_code, found["service"], found["credentials"]) == (1, False, None)
    assert "clock" not in found


def test_a_server_error_counts_against_the_service() -> None:
    """A server error counts against the service, not the credentials."""
    with shell() as kling:
        kling.emulator.faults.script("list", Fault("error", code=5001))
        done = kling("doctor", "--json")
    assert (done.exit_code, results_by_subject(done)["service"]) == (1, False)


@pytest.mark.parametrize(
    ("offset", "good", "message"), [(0.0, True, ""), (3600.0, False, "ahead of"), (-3600.0, False, "behind")]
)
def test_a_wrong_clock_is_reported(offset: float, *, good: bool, message: str) -> None:
    """The clock is compared with the date in the service's response."""
    found = _clock(1_750_000_000.5 + offset, 1_750_000_000.0)
    assert found.good is good
    assert message in found.text


def test_a_clock_without_a_date_to_compare_is_not_checked() -> None:
    """Without a date in the response, the clock counts as not checked."""
    assert _clock(1.0, None).good is None


def test_a_missing_extra_is_not_a_failure() -> None:
    """A missing distribution is named with the command that installs it, but is not a failure."""
    found = _extra("images", ["click", "no-such-package"])
    assert found.good is None
    assert "no-such-package missing (pip install 'kling-expand[images]')" in found.text
    assert _by_extra("no-such-package") == {}
    assert {"cli", "emulator", "images"} <= set(_by_extra("kling-expand"))


def test_only_extras_for_users_are_checked() -> None:
    """Extras for tests, benchmarks and linters are not checked, because users do not need them."""
    assert not {"bench", "browser", "core-test", "test", "lint", "dev"} & set(_by_extra("kling-expand"))
