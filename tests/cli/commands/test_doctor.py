"""`kling-expand doctor`: checks of what a job needs."""

import json

import pytest
from click.testing import Result
from support.shell import Shell, shell

from kling_expand.cli.commands.doctor import _by_extra, _clock, _extra
from kling_expand.emulator.faults.plan import Fault


def verdicts(done: Result) -> dict[str, bool | None]:
    """Return the result of each check by its subject."""
    return {facts["about"]: facts["good"] for facts in map(json.loads, done.stdout.splitlines())}


def test_all_well_costs_nothing() -> None:
    """The exit code is 0, no task is created and no secret is printed."""
    with shell() as kling:
        done = kling("doctor")
        assert kling.emulator.account.tasks == {}
        secret = kling.emulator.api_key
        found = verdicts(kling("doctor", "--json"))
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
        assert (verdicts(done)["credentials"], verdicts(done)["service"]) == (False, True)
    assert "no credentials" in none.stdout
    assert "KlingClient" not in none.stdout
    assert "refused" in wrong.stdout
    assert "secret key is missing" in half.stdout


def test_a_service_out_of_reach_says_so() -> None:
    """The exit code is 1, and the credentials count as not checked."""
    done = Shell()("doctor", "--base-url", "http://127.0.0.1:9", "--json", KLING_API_KEY="some")
    found = verdicts(done)
    assert (done.exit_code, found["service"], found["credentials"]) == (1, False, None)
    assert "clock" not in found


def test_a_broken_service_says_so() -> None:
    """A server error counts against the service, not the credentials."""
    with shell() as kling:
        kling.emulator.faults.script("list", Fault("error", code=5001))
        done = kling("doctor", "--json")
    assert (done.exit_code, verdicts(done)["service"]) == (1, False)


@pytest.mark.parametrize(
    ("off", "good", "said"), [(0.0, True, ""), (3600.0, False, "ahead of"), (-3600.0, False, "behind")]
)
def test_a_clock_that_is_off_is_noticed(off: float, *, good: bool, said: str) -> None:
    """The clock is compared with the date in the service's response."""
    found = _clock(1_750_000_000.5 + off, 1_750_000_000.0)
    assert found.good is good
    assert said in found.text


def test_a_service_without_a_clock_is_not_blamed() -> None:
    """Without a date in the response, the clock counts as not checked."""
    assert _clock(1.0, None).good is None


def test_an_extra_that_is_missing_is_no_fault() -> None:
    """A missing distribution is named with the command that installs it, but is not a failure."""
    found = _extra("images", ["click", "no-such-package"])
    assert found.good is None
    assert "no-such-package missing (pip install 'kling-expand[images]')" in found.text
    assert _by_extra("no-such-package") == {}
    assert {"cli", "emulator", "images"} <= set(_by_extra("kling-expand"))


def test_only_extras_for_users_are_checked() -> None:
    """Extras for tests, benchmarks and linters are not checked, because users do not need them."""
    assert not {"bench", "browser", "core-test", "test", "lint", "dev"} & set(_by_extra("kling-expand"))
