"""The log of a client: its lines about retries, pauses and ends, and the lines that it omits."""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.log_secrets import SECRETS

from kling_expand import ExpandRequest, KlingClient, Ratios
from kling_expand.config import enable_logging
from kling_expand.emulator.faults.plan import Fault
from kling_expand.errors import ConfigurationError
from kling_expand.events import CALLS, Event, EventKind
from kling_expand.testing import emulated, loop_clock, virtual_time

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "chelsea.jpg"
JOBS = 200


class Lines(logging.Handler):
    """A handler that keeps each line with its second of virtual time."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []
        self.seconds: Counter[int] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("kling_expand"):
            self.texts.append(record.getMessage())
            self.seconds[int(loop_clock())] += 1


@virtual_time
async def test_every_retry_pause_and_end_is_logged() -> None:
    """200 jobs with 10 % faults log each retry, pause and end with its ids, in at most 20 lines a second."""
    events: list[Event] = []
    log = Lines()
    logging.getLogger().addHandler(log)
    client: dict[str, Any] = {"listener": [events.append, events.append], "max_in_flight": 60}
    try:
        async with emulated(client, slots=50, work_seconds=12) as (emulator, kling):
            for route in ("create", "query", "list"):
                for fault in (Fault("reset_after"), Fault("html"), Fault("error"), Fault("error", 1302)):
                    emulator.faults.chance(route, fault, 0.025)
            requests = (ExpandRequest(PHOTO, Ratios(right=0.1 + n / 1000), key=f"k{n}") for n in range(JOBS))
            outcomes = [outcome async for outcome in kling.map(requests)]
    finally:
        logging.getLogger().removeHandler(log)
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert events[::2] == events[1::2]
    text = "\n".join(log.texts)
    found = [event for event in events[::2] if event.kind in {EventKind.RETRY, EventKind.PAUSE}]
    assert len(found) > 50
    assert {event.route for event in found} >= {"create", "read"}
    for event in found:
        if event.number is not None:
            assert f"job {event.number} ({event.external_task_id}" in text
            assert event.attempt or event.kind is EventKind.PAUSE
    for outcome in outcomes:
        assert outcome.result is not None
        assert len(re.findall(rf"job \d+ \({outcome.result.external_task_id}, \d+\) succeeded", text)) == 1
    assert max(log.seconds.values()) <= 20
    assert not [secret for secret in SECRETS if secret in text]
    assert "base64" not in text
    assert "/9j/" not in text
    assert max(map(len, log.texts)) < 40_000


@virtual_time
async def test_events_of_calls_name_their_job() -> None:
    """Events of creates and reads have the number and id of their job, unless the user makes the call."""
    events: list[Event] = []
    async with emulated({"listener": events.append}) as (emulator, kling):
        emulator.faults.script("create", "reset_after")
        future = kling.submit(PHOTO, Ratios(right=0.5))
        await future
        await kling.list()
    calls = [event for event in events if event.kind in CALLS]
    assert {event.number for event in calls[:-1]} == {future.number}
    assert {event.external_task_id for event in calls[:-1]} == {future.external_task_id}
    assert (calls[-1].kind, calls[-1].number, calls[-1].route) == (EventKind.LIST, None, "list")
    assert all(event.attempt == 1 for event in calls)
    (retried,) = [event for event in events if event.kind is EventKind.RETRY]
    assert (retried.number, retried.route, retried.attempt) == (future.number, "create", 1)
    assert retried.wait is None  # it is looked up before it is retried


@virtual_time
async def test_a_parallel_limit_is_logged_as_a_retry(caplog: pytest.LogCaptureFixture) -> None:
    """A 1303 that is retried is logged with its job, below the level of a warning."""
    caplog.set_level(logging.INFO, "kling_expand")
    async with emulated({"max_in_flight": 9}, slots=1, work_seconds=5) as (emulator, kling):
        futures = [kling.submit(PHOTO, Ratios(right=0.1 + n / 10)) for n in range(3)]
        for future in futures:
            await future
        assert emulator.account.refusals[1303] > 0
    found = [record for record in caplog.records if "ParallelLimit" in record.getMessage()]
    assert found
    assert {record.levelname for record in found} == {"INFO"}
    assert "create for job" in found[0].getMessage()
    assert "retrying when a slot is free" in found[0].getMessage()


@virtual_time
async def test_a_rate_limit_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A 1302 is logged once as a pause of its route, with the job and the seconds."""
    async with emulated({"max_in_flight": 9}) as (emulator, kling):
        emulator.faults.script("create", Fault("error", 1302))
        future = kling.submit(PHOTO, Ratios(right=0.5))
        await future
    (found,) = [text for text in caplog.messages if "RateLimited" in text]
    assert found.startswith(f"create paused for 1.0 s after job {future.number} (")


@virtual_time
async def test_a_retried_download_is_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The line names the task but no URL, both for an expired URL and for a server error."""
    events: list[Event] = []
    async with emulated({"listener": events.append}) as (emulator, kling):
        result = await kling.expand(PHOTO, Ratios(right=0.5))
        emulator.faults.script("file", "expired", "error")
        await result.save(tmp_path)
    found = [event for event in events if event.kind is EventKind.RETRY]
    assert [(event.route, event.attempt, event.wait == 0) for event in found] == [
        ("download", 1, True),
        ("download", 2, False),
    ]
    text = "\n".join(caplog.messages)
    assert f"download for task {result.external_task_id}, {result.task_id} failed, attempt 1" in text
    assert "http://" not in text


async def test_kling_log_turns_on_logging_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`KLING_LOG=debug` writes each line to stderr once for all clients. Other words raise an error."""
    logger = logging.getLogger("kling_expand")
    before, level = list(logger.handlers), logger.level
    try:
        enable_logging({})
        assert logger.handlers == before
        monkeypatch.setenv("KLING_LOG", "Debug")
        for _ in range(3):
            async with KlingClient(api_key="k"):
                pass
        logging.getLogger("kling_expand.calls").debug("a line for scripts")
        assert capfd.readouterr().err.count("DEBUG kling_expand.calls: a line for scripts") == 1
        monkeypatch.setenv("KLING_LOG", "loud")
        with pytest.raises(ConfigurationError, match=r"KLING_LOG must be debug, .*, got 'loud'"):
            await KlingClient(api_key="k").__aenter__()
    finally:
        logger.handlers[:] = before
        logger.setLevel(level)
