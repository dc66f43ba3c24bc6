"""Retry waits and poll schedules: exponential backoff, and waits that adapt to past durations."""

import os
from collections.abc import Callable
from itertools import islice
from math import exp, isfinite
from pathlib import Path
from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand import ConfigurationError
from kling_expand.api.session import retry_waits
from kling_expand.jobs.poll_schedule import (
    LEARN_AFTER,
    AdaptiveSchedule,
    CallbackTrust,
    ExponentialSchedule,
    PollSchedule,
    format_durations,
    parse_durations,
    read_history,
    write_history,
)

seeds = st.integers(0, 2**32)


# ------------------------------------------------------------------ between retries


@given(seeds, st.floats(0.01, 10), st.floats(1, 100))
def test_waits_double_up_to_a_limit(seed: int, first: float, factor: float) -> None:
    """Each wait is in the upper half of its step, so none is close to zero, and none overflows."""
    longest = first * factor
    waits = list(islice(retry_waits(Random(seed), first=first, longest=longest), 2000))
    for number, wait in enumerate(waits):
        step = min(first * 2 ** min(number, 60), longest)
        assert step / 2 <= wait <= step


def test_waits_come_from_the_given_random_generator() -> None:
    """The same random generator gives the same waits, and the global generator is not used."""
    one, two, other = (list(islice(retry_waits(Random(seed)), 9)) for seed in (1, 1, 2))
    assert one == two != other


# ------------------------------------------------------------------ between polls


def polls_and_latency(schedule: PollSchedule, duration: float, most: int = 10_000) -> tuple[int, float]:
    """Return the number of polls and the latency of a task of this duration."""
    age, polls = 0.0, 0
    while age < duration:
        age += schedule.wait([age])
        polls += 1
        assert polls < most
    return polls, age - duration


ages = st.floats(0, 1e7)
durations = st.lists(st.floats(0, 1e6), max_size=40)
SCHEDULES: list[Callable[[Random], PollSchedule]] = [ExponentialSchedule, lambda _rng: AdaptiveSchedule()]


@pytest.mark.parametrize("make", SCHEDULES, ids=["exponential", "adaptive"])
@given(seed=seeds, history=durations, age=ages)
def test_every_wait_is_positive_and_bounded(
    make: Callable[[Random], PollSchedule], seed: int, history: list[float], age: float
) -> None:
    """Whatever was learned and however old the tasks are, the next wait is positive and bounded."""
    schedule = make(Random(seed))
    for duration in history:
        schedule.learn(duration)
    wait = schedule.wait([age])
    assert isfinite(wait)
    assert 0 < wait <= max(11.0, 3e6)


@given(seeds, st.floats(0.05, 5), st.floats(1.1, 3), st.floats(1, 20), ages)
def test_exponential_waits_grow(seed: int, first: float, factor: float, times: float, age: float) -> None:
    """Waits start at `first` and never exceed `longest` by more than a tenth."""
    longest = first * times
    schedule = ExponentialSchedule(Random(seed), first=first, factor=factor, longest=longest)
    assert first <= schedule.wait([0]) <= first * 1.1
    assert 0 < schedule.wait([age]) <= longest * 1.1


def test_exponential_polls_are_few() -> None:
    """A task of one minute takes at most 15 polls, and a task of one hour at most 400."""
    schedule = ExponentialSchedule(Random(1))
    schedule.learn(5)  # has no effect
    assert polls_and_latency(schedule, 60)[0] <= 15
    assert polls_and_latency(schedule, 3600)[0] <= 400


def test_a_few_durations_change_no_wait() -> None:
    """Until enough durations are known, the waits are the same as without any."""
    learned, plain = AdaptiveSchedule(), AdaptiveSchedule()
    for _ in range(LEARN_AFTER - 1):
        learned.learn(1000)
        assert learned.wait([0]) == plain.wait([0])


def first_job(low: float, high: float, schedule: PollSchedule | None = None) -> tuple[float, float]:
    """Return the polls and the latency of the first job of a process, averaged over *durations*."""
    durations = [low + (high - low) * (i + 0.5) / 200 for i in range(200)]
    results = [polls_and_latency(schedule or AdaptiveSchedule(), duration) for duration in durations]
    return mean(polls for polls, _ in results), mean(late for _, late in results)


def test_a_first_task_of_documented_length_is_noticed_soon() -> None:
    """Without any history, a task of 15 to 60 s (documented) has a latency of 1.5 s and takes 11 polls."""
    polls, late = first_job(15, 60)
    assert late <= 1.5
    assert polls <= 11


@pytest.mark.parametrize(("low", "high"), [(0, 1), (8, 15), (60, 120), (120, 600)])
def test_a_first_task_of_another_length_is_noticed_soon(low: float, high: float) -> None:
    """A shorter or longer first task has no more latency than with an exponential schedule."""
    assert first_job(low, high)[1] <= 1.05 * first_job(low, high, ExponentialSchedule(Random(1)))[1]


# ------------------------------------------------------------------ kept for later processes


@given(st.lists(st.floats(0.01, 1e5), max_size=400))
def test_durations_are_stored_and_restored(durations: list[float]) -> None:
    """The newest durations are restored to a hundredth of a second, and other text raises an error."""
    found = parse_durations(format_durations(durations))
    assert found == pytest.approx(durations[-256:], abs=0.006)


@pytest.mark.parametrize("text", ["12 x", "nan", "inf", "-1", "0"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    """Only finite numbers above zero are durations."""
    with pytest.raises(ValueError, match=r"a duration|could not convert"):
        parse_durations(text)


def test_accounts_are_kept_apart(tmp_path: Path) -> None:
    """Each account has its own durations, and only the accounts written last are kept."""
    folder = tmp_path / "new" / "folder"
    for number in range(40):
        write_history(folder, f"account {number}", [number + 1.0] * 300)
    write_history(folder, "account 20", [7.0])
    assert read_history(folder, "account 20") == [7.0]
    assert read_history(folder, "account 39") == [40.0] * 256
    assert read_history(folder, "account 1") == []
    assert [file.name for file in folder.iterdir()] == ["durations.txt"]
    assert (folder / "durations.txt").stat().st_size < 256 * 1024


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\0", b"a\t1 2 x\n", b"a 1 2", b"a\tinf\n", b"\t\n" * 300_000]
)
def test_a_damaged_file_is_ignored_and_replaced(tmp_path: Path, content: bytes) -> None:
    """Nothing is read from a damaged file, whatever it contains, and the next write replaces it."""
    (tmp_path / "durations.txt").write_bytes(content)
    assert read_history(tmp_path, "a") == []
    write_history(tmp_path, "a", [3.0])
    assert read_history(tmp_path, "a") == [3.0]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """If another program has put a link where the new file is written, it is removed, not followed."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / f"durations.txt.{os.getpid()}").symlink_to(victim)
    write_history(tmp_path, "a", [3.0])
    assert (victim.read_text(), read_history(tmp_path, "a")) == ("untouched", [3.0])


def test_a_folder_that_cannot_be_used_is_ignored(tmp_path: Path) -> None:
    """A path that is not a folder stores nothing and raises nothing."""
    file = tmp_path / "file"
    file.touch()
    write_history(file, "a", [3.0])
    assert read_history(file, "a") == []


@pytest.mark.parametrize("latency", [0, -1, float("nan")])
def test_the_target_latency_must_be_positive(latency: float) -> None:
    """A target latency of zero or less raises an error with the argument's name and limit."""
    with pytest.raises(ConfigurationError, match=f"target_latency .*above 0, got {latency}"):
        AdaptiveSchedule(target_latency=latency)


def drawn(seed: int, count: int, median: float, sigma: float) -> list[float]:
    """Return durations from a log-normal distribution, which resembles real ones."""
    rng = Random(seed)
    return [median * exp(rng.gauss(0, sigma)) for _ in range(count)]


def measured(schedule: PollSchedule, tasks: list[float]) -> tuple[float, float]:
    """Return polls and latency per task, if each duration is learned when its task ends."""
    results = []
    for duration in tasks:
        results.append(polls_and_latency(schedule, duration))
        schedule.learn(duration)
    settled = results[len(results) // 4 :]
    return mean(polls for polls, _ in settled), mean(late for _, late in settled)


@pytest.mark.parametrize(("median", "sigma"), [(12, 0.35), (30, 0.2), (60, 0.5)])
def test_learned_durations_save_polls(median: float, sigma: float) -> None:
    """The latency is near its target, with fewer polls than a fixed interval of the same latency needs."""
    tasks = drawn(1, 400, median, sigma)
    polls, late = measured(AdaptiveSchedule(target_latency=0.5), tasks)
    fixed = mean(tasks) / (2 * late)
    assert late == pytest.approx(0.5, rel=0.35)
    assert polls < fixed


def test_new_tasks_are_not_polled_early() -> None:
    """If no task ends within ten seconds, the first poll comes after ten seconds."""
    schedule = AdaptiveSchedule()
    for duration in drawn(1, 200, 30, 0.1):
        schedule.learn(duration)
    assert schedule.wait([0]) > 10


def test_tasks_of_equal_duration_take_few_polls() -> None:
    """If all durations are equal, a task takes at most four polls."""
    schedule = AdaptiveSchedule()
    for _ in range(50):
        schedule.learn(20.0)
    polls, late = polls_and_latency(schedule, 20.0)
    assert polls <= 4
    assert late <= 2


def test_new_durations_replace_old_ones() -> None:
    """When the service becomes faster, the schedule adapts within one window."""
    schedule = AdaptiveSchedule(window=64)
    for duration in drawn(1, 100, 120, 0.2) + drawn(2, 64, 10, 0.2):
        schedule.learn(duration)
    assert schedule.wait([0]) < 12
    assert polls_and_latency(schedule, 10)[1] < 3


@pytest.mark.parametrize("history", [[0.0] * 300, [12.0] * 300 + [3600.0], [0.0, 0.0, 1e6] * 9])
def test_outliers_are_forgotten_after_one_window(history: list[float]) -> None:
    """Zero durations, one hour-long task or a long outage do not affect the schedule after one window."""
    schedule = AdaptiveSchedule(target_latency=0.5)
    for duration in history:
        schedule.learn(duration)
        schedule.wait([0])
    for duration in drawn(2, 256, 12, 0.35):
        schedule.learn(duration)
    polls, late = measured(schedule, drawn(1, 150, 12, 0.35))
    assert late < 1
    assert polls < 12


def test_a_task_older_than_any_before_is_still_polled() -> None:
    """A task of unusual age is still polled at least every `longest` seconds."""
    schedule = AdaptiveSchedule(longest=10)
    for duration in drawn(1, 100, 10, 0.2):
        schedule.learn(duration)
    assert schedule.wait([10_000]) <= 10
    assert polls_and_latency(schedule, 1000)[0] < 200


@given(seeds, st.lists(st.floats(0, 40), min_size=1, max_size=200), st.floats(0.1, 100))
def test_a_poll_of_more_tasks_is_due_sooner(seed: int, together: list[float], price: float) -> None:
    """The wait decreases with more tasks, and increases with the price of a poll."""
    schedule = AdaptiveSchedule()
    for duration in drawn(seed, 60, 12, 0.35):
        schedule.learn(duration)
    schedule.wait([0.0])  # fits the model
    some = together[:16]  # not so many that the schedule takes a sample
    assert schedule.wait([*some, 10.0], price) <= schedule.wait(some, price) * 1.01
    assert schedule.wait(some, price) <= schedule.wait(some, 2 * price) * 1.01


def test_a_poll_is_due_when_the_latency_equals_its_price() -> None:
    """In a simulation, the summed latency of ended tasks at the poll equals the price on average."""
    schedule, rng = AdaptiveSchedule(), Random(2)
    history = drawn(3, 256, 12, 0.35)
    for duration in history:
        schedule.learn(duration)
    ages = [6.0, 9.0, 12.0, 15.0] * 5
    wait = schedule.wait(ages, 5.0)
    waited = 0.0
    for _ in range(2000):
        for age in ages:
            end = rng.choice([each for each in history if each > age])
            waited += max(0.0, age + wait - end) / 2000
    assert waited == pytest.approx(5 * schedule._price, rel=0.25)


def test_tasks_that_start_together_do_not_bias_the_model() -> None:
    """The model counts tasks that still run, so the first ends in a group do not bias it."""
    tasks = sorted(drawn(1, 100, 12, 0.35))
    schedule = AdaptiveSchedule()
    for duration in tasks[:20]:
        schedule.learn(duration)
    running = [tasks[20]] * 80
    schedule.wait(running)
    biased = AdaptiveSchedule()
    for duration in tasks[:20]:
        biased.learn(duration)
    biased.wait([0.0])
    assert schedule._model is not None
    assert biased._model is not None
    assert biased._model.at(tasks[20])[0] > 0.8
    assert schedule._model.at(tasks[20])[0] == pytest.approx(0.2, abs=0.05)


# ------------------------------------------------------------------ callbacks


@given(seeds, st.floats(0.02, 0.9))
def test_a_share_of_tasks_is_overdue(seed: int, share: float) -> None:
    """When tasks become overdue, the requested share of them is still running."""
    schedule, tasks = AdaptiveSchedule(), drawn(seed, 200, 12, 0.35)
    for task in tasks:
        schedule.learn(task)
    schedule.wait([0.0])
    overdue = schedule.overdue(0.0, share)
    assert abs(sum(task > overdue for task in tasks) / len(tasks) - share) < 0.06


@given(st.floats(0, 10_000), st.floats(0.02, 1.0))
def test_an_overdue_task_is_overdue_again_soon(age: float, share: float) -> None:
    """However old a task is, it becomes overdue again in bounded time."""
    schedule = AdaptiveSchedule()
    for task in drawn(3, 100, 12, 0.35):
        schedule.learn(task)
    schedule.wait([0.0])
    assert 0 <= schedule.overdue(age, share) <= max(10.001, 60.0 - age)


def test_trust_in_callbacks_grows_slowly_and_falls_at_once() -> None:
    """Full trust takes forty received callbacks, and one missed callback halves it."""
    trust = CallbackTrust()
    for number in range(40):
        assert trust.missed > 0.02 or number > 30
        trust.ended(str(number), 0.1, float(number), called=True)
    assert trust.missed == 0.02
    trust.ended("missed", 8.0, 50.0, called=False)
    assert trust.missed > 0.5
    assert trust.missed_more


def test_a_callback_may_arrive_after_the_read() -> None:
    """An end that a read shows first counts as a missed callback only if none follows in time."""
    trust = CallbackTrust()
    trust.ended("1", 0.1, 0.0, called=False)
    trust.ended("2", 0.1, 0.0, called=False)
    trust.arrived("1", 0.2)
    trust.expire(1.0)
    assert 0.5 < trust.missed < 1
    trust.expire(2.0)
    assert trust.missed > 0.85
    trust.arrived("2", 2.1)
    assert trust.missed > 0.85
