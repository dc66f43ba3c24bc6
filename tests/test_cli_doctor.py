"""`kling-expand doctor`: what a job needs, looked at for free."""

import json
import time

from click.testing import Result
from shell import Shell, shell

from kling_expand.emulator.faults import Fault


def verdicts(done: Result) -> dict[str, bool | None]:
    """What was found, by what it is about."""
    return {facts["about"]: facts["good"] for facts in map(json.loads, done.stdout.splitlines())}


def test_all_well_costs_nothing() -> None:
    """Exit code 0, no task made, no secret shown."""
    with shell() as kling:
        done = kling("doctor")
        assert kling.emulator.books.tasks == {}
        secret = kling.emulator.api_key
        found = verdicts(kling("doctor", "--json"))
    assert done.exit_code == 0
    assert secret not in done.stdout
    assert found["credentials"]
    assert found["service"]
    assert found["clock"]
    assert found["extra cli"]


def test_no_credentials_and_refused_ones_are_told_apart() -> None:
    """Both are exit code 2, and the network is judged all the same."""
    with shell() as kling:
        none = kling("doctor", "--json", KLING_API_KEY="")
        wrong = kling("doctor", "--json", KLING_API_KEY="api-key-kling-of-nobody")
        half = kling("doctor", "--json", KLING_API_KEY="", KLING_ACCESS_KEY="half")
    for done in (none, wrong, half):
        assert done.exit_code == 2
        assert (verdicts(done)["credentials"], verdicts(done)["service"]) == (False, True)
    assert "no credentials" in none.stdout
    assert "refused" in wrong.stdout
    assert "secret key is missing" in half.stdout


def test_a_service_out_of_reach_says_so() -> None:
    """Exit code 1; nothing is claimed of credentials that nobody looked at."""
    done = Shell()("doctor", "--base-url", "http://127.0.0.1:9", "--json", KLING_API_KEY="some")
    found = verdicts(done)
    assert (done.exit_code, found["service"], found["credentials"]) == (1, False, None)
    assert "clock" not in found


def test_a_broken_service_says_so() -> None:
    """A refusal that is not about the credentials is the service's."""
    with shell() as kling:
        kling.emulator.faults.script("list", Fault("error", code=5001))
        done = kling("doctor", "--json")
    assert (done.exit_code, verdicts(done)["service"]) == (1, False)


def test_a_clock_that_is_off_is_noticed() -> None:
    """By the date of the service's own answer, early or late."""
    for off in (3600.0, -3600.0):
        with shell(clock=lambda off=off: time.time() + off) as kling:
            done = kling("doctor", "--json")
            if "Date" not in done.stdout and verdicts(done)["clock"]:
                return  # this emulator tells the machine's own date
            assert (done.exit_code, verdicts(done)["clock"]) == (1, False)
