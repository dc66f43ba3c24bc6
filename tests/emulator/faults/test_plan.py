"""The plan of faults: scripts, durations and probabilities."""

import random
from typing import Any

import pytest
from support.raw_client import EDITING, calling, create_code

from kling_expand.emulator.faults.plan import ROUTES, Fault, FaultPlan, parse_fault


async def test_scripts_are_exact_and_per_route() -> None:
    """`ok` does not affect a call, `times` repeats a fault, and other routes are not affected."""
    async with calling() as call:
        call.emulator.faults.script("list", "ok", Fault("error", code=1302, times=2), "ok")
        assert (await create_code(call))[0] == 200
        statuses = [(await call("GET", EDITING))[0] for _ in range(5)]
        assert statuses == [200, 429, 429, 200, 200]


def test_probabilities_follow_the_seed() -> None:
    """Equal seeds pick the same calls, and their share is close to the probability."""

    def draw() -> list[bool]:
        faults = FaultPlan(random.Random(7), lambda: 0.0)
        faults.chance("query", "html", 0.1)
        return [faults.pick("query") is not None for _ in range(1000)]

    assert draw() == draw()
    assert 60 < sum(draw()) < 140


def test_scripts_come_before_probabilities() -> None:
    """A script is applied first, and `clear` removes everything."""
    faults = FaultPlan(random.Random(0), lambda: 0.0)
    faults.chance("create", Fault("html"), 1)
    faults.script("create", "reset")
    assert [step["kind"] for step in faults.planned()["create"]["script"]] == ["reset"]
    assert [faults.pick("create"), faults.pick("create")] == [Fault("reset"), Fault("html")]
    faults.clear()
    assert faults.pick("create") is None
    assert faults.planned() == {route: {"script": [], "timed": [], "chances": []} for route in ROUTES}


@pytest.mark.parametrize(
    "step",
    [
        "unheard-of",
        7,
        {},
        {"kind": ["html"]},
        {"kind": "error", "code": 7},
        {"kind": "error", "more": 1},
        {"kind": "late", "seconds": "1"},
        {"kind": "late", "seconds": -1},
        {"kind": "late", "seconds": float("nan")},
        {"kind": "html", "times": 0},
        {"kind": "html", "retry_after": 5},
        {"kind": "error", "retry_after": "5\r\nX: y"},
    ],
)
def test_an_invalid_fault_is_refused(step: Any) -> None:
    """A fault with a wrong name, type or range is refused."""
    with pytest.raises(ValueError, match=r"."):
        parse_fault(step)


def test_a_fault_on_the_wrong_route_is_refused() -> None:
    """A download fault on another route, an unknown route and a wrong probability are refused."""
    faults = FaultPlan(random.Random(0), lambda: 0.0)
    with pytest.raises(ValueError, match="only for downloads"):
        faults.script("create", "truncated_picture")
    with pytest.raises(ValueError, match="route must be"):
        faults.script("delete", "html")
    with pytest.raises(ValueError, match="probability"):
        faults.chance("create", "html", 2)


def test_timed_faults_end_with_the_clock() -> None:
    """A timed fault applies to every call until its end, after a script and before probabilities."""
    now = 100.0
    faults = FaultPlan(random.Random(0), lambda: now)
    faults.chance("query", "html", 1)
    faults.for_seconds("query", Fault("error", code=1103), 10)
    faults.script("query", "reset")
    assert [faults.pick("query") for _ in range(3)] == [Fault("reset"), *[Fault("error", code=1103)] * 2]
    (timed,) = faults.planned()["query"]["timed"]
    assert (timed["seconds_left"], timed["code"]) == (10, 1103)
    now = 110.0
    assert faults.pick("query") == Fault("html")
    assert faults.planned()["query"]["timed"] == []


@pytest.mark.parametrize("duration", [-1, float("inf"), float("nan")])
def test_an_invalid_duration_is_refused(duration: float) -> None:
    """A duration must be a finite number of at least 0."""
    faults = FaultPlan(random.Random(0), lambda: 0.0)
    with pytest.raises(ValueError, match="duration must be"):
        faults.for_seconds("query", "html", duration)


@pytest.mark.parametrize(("code", "status"), [(1000, 401), (1004, 401), (1103, 403), (1203, 404)])
async def test_queries_can_be_refused_for_some_seconds(code: int, status: int) -> None:
    """Every query is refused for 10 s of the emulator's clock, and creates are not affected."""
    async with calling(clock=lambda: 1e9) as call:
        task_id = await call.create()
        call.emulator.faults.for_seconds("query", Fault("error", code=code), 10)
        assert (await create_code(call))[0] == 200
        for _ in range(3):
            assert (await call("GET", f"{EDITING}/{task_id}"))[0] == status
        call.emulator.advance(10)
        assert (await call.task(task_id))["task_id"] == task_id
