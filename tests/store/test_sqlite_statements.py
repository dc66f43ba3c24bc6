"""Records: a job's states only move forward, and its row comes back as it was."""

import pytest

from kling_expand.store.sqlite_statements import NEXT, Job, State

FINAL = {State.DONE, State.FAILED}


def test_every_state_is_in_the_table() -> None:
    """No state can be forgotten where transitions are decided."""
    assert set(State) == set(NEXT)


def reachable(state: State) -> set[State]:
    """All states that can follow, in any number of steps."""
    found: set[State] = set()
    ahead = set(NEXT[state])
    while ahead:
        found |= ahead
        ahead = {later for earlier in ahead for later in NEXT[earlier]} - found
    return found


@pytest.mark.parametrize("state", State)
def test_what_is_paid_is_never_forgotten(state: State) -> None:
    """Once a task is known there is no way back to a state without one."""
    if state not in {State.INTENT, State.UNKNOWN, State.REJECTED}:
        assert not reachable(state) & {State.INTENT, State.UNKNOWN, State.REJECTED}


@pytest.mark.parametrize("state", [state for state in State if state not in FINAL])
def test_every_job_can_end(state: State) -> None:
    """From every open state an end can be reached."""
    assert reachable(state) & FINAL


def test_a_row_becomes_a_job() -> None:
    """Paths come back as text, whatever bytes they are made of."""
    names = "out/\udcff.png\0out/two\nlines.png".encode(errors="surrogateescape")
    job = Job("k", "x", "h", 1, "done", "t", 1.5, None, None, names, b"in/\xff.png", "{}", 1.0, 2.0)
    assert State.DONE is job.state
    assert job.files == ("out/\udcff.png", "out/two\nlines.png")
    assert job.source == "in/\udcff.png"
    assert job.task is None
