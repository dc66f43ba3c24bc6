"""Progress of a batch: its numbers, the live screen and the plain lines."""

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from rich.console import Console
from support.shell import CHELSEA, COFFEE, shell

from kling_expand.cli.batch.progress import KEPT_FAILURES, Job, Progress, ProgressDisplay
from kling_expand.emulator.faults.plan import Fault
from kling_expand.errors import (
    KlingError,
    ParallelLimit,
    RateLimited,
    ServerError,
    TaskNotFound,
    TransportError,
)
from kling_expand.events import Event, EventKind, Quantiles
from kling_expand.events import StatsCollector as Counts

IDLE = Counts().stats(waiting=0, running=0, units_due=0)
BUSY = evolve(IDLE, running=9, waiting=4, units_due=80, duration=Quantiles(10.0), latency=Quantiles(0.5))


def screen_text(progress: Progress, width: int = 80, **options: Any) -> str:
    """Return what the live screen shows on a terminal of this width."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with console.capture() as capture:
        display = ProgressDisplay("m.csv to out", progress, lambda: BUSY, console=console, **options)
        console.print(display.__rich__())
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get())


def test_the_live_screen_shows_progress_cost_and_failures() -> None:
    """It shows progress, time, running jobs, cost and the newest failures."""
    progress = Progress(100, saved=40, failed=5, units_before=20, clock=lambda: 5.0)
    for number in range(5):
        progress.add_failure(f"line {number}: \x1b[2Jno")
    text = screen_text(progress, budget=1000)
    assert "45 of 100  45 %  0 s, about 1:04 left" in text
    assert "9 running, 4 queued, 40 saved, 5 failed" in text
    assert "100 units ($0.35) of 1000 units ($3.50) spent or due; median task 10.0 s" in text
    assert re.findall(r"line \d: (.*?) *\n", text) == [r"\x1b[2Jno"] * 3
    assert "line 4" in text


@pytest.mark.parametrize("width", [30, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """A long reason is truncated on the live screen."""
    progress = Progress(3)
    progress.add_failure("line 1: " + "x" * 500)
    assert max(map(len, screen_text(progress, width).splitlines())) <= width


def test_a_narrow_terminal_shows_every_number() -> None:
    """At 30 columns, the numbers continue on further lines, and none of them is truncated."""
    progress = Progress(100, saved=40, failed=5, units_before=20, clock=lambda: 5.0)
    text = " ".join(screen_text(progress, 30, budget=1000).split())
    assert "45 of 100, 45 %, 0 s, about 1:04 left" in text
    assert "9 running, 4 queued, 40 saved, 5 failed" in text
    assert "100 units ($0.35) of 1000 units ($3.50) spent or due; median task 10.0 s" in text


def test_no_time_left_is_shown_before_a_task_has_ended() -> None:
    """No time left is shown before a task has ended, and an empty batch does not divide by zero."""
    assert Progress(10).time_left(IDLE) is None
    assert "0 of 0" in screen_text(Progress(0))


def test_time_left_is_the_remaining_work_divided_by_the_slots() -> None:
    """The time left is the remaining work divided by the slots, even during a pause."""
    assert Progress(90).time_left(BUSY) == pytest.approx(90 * 10.5 / 9)
    progress = Progress(90, expected=50, known=10)
    assert progress.time_left(BUSY) == pytest.approx(40 * 10.5 / 9)
    assert progress.time_left(evolve(BUSY, running=1)) == progress.time_left(BUSY)
    assert Progress(90, expected=200).time_left(BUSY) == 0


def test_only_the_newest_failures_are_kept() -> None:
    """All failures are counted, and the newest are kept."""
    progress = Progress(0)
    for number in range(KEPT_FAILURES + 7):
        progress.add_failure(str(number))
    assert (len(progress.failures), progress.dropped_failures, progress.failures[-1]) == (
        KEPT_FAILURES,
        7,
        str(KEPT_FAILURES + 6),
    )


def test_plain_lines_are_printed_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    """A line is printed for each twentieth of the rows, at least 1 s and at most 30 s after the last line."""
    now = 0.0
    progress = Progress(100, clock=lambda: now)
    display = ProgressDisplay("x", progress, lambda: IDLE)
    printed = []
    for now in (0.5, 0.9, 1.0, 1.5, 2.5, 3.0, 40.0, 40.5):
        progress.saved += 5 if now != 40.0 else 1
        display.ended(Job("photo"))
        printed.append(bool(capsys.readouterr().err))
    assert printed == [False, False, True, False, True, False, True, False]


def test_a_terminal_shows_the_live_screen_and_then_the_summary(tmp_path: Path) -> None:
    """A bulk run on a terminal lists no paths, prints failures in full and ends with its summary."""
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"image,up,prompt\n{COFFEE},0.5,\n{CHELSEA},0.5,emulate-risk-control\n")
    with shell(work_seconds=0.4) as kling:
        shown, process = kling.on_a_terminal("bulk", manifest, "-o", tmp_path / "out")
    assert process.returncode == 1
    assert "of 2" in shown
    assert "queued" in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "").splitlines()
    assert "2 rows: 1 saved, 1 failed" in lines
    assert lines[-1] == "run the same command again to retry the jobs that failed or were not sent"
    assert str(tmp_path / "out" / "coffee") not in shown


def test_copies_with_a_watermark_are_listed(tmp_path: Path) -> None:
    """The copies are printed after the pictures, and JSON has them too."""
    words = ["expand", COFFEE, "--up", 0.5, "--watermark", "-o", tmp_path]
    copies = [str(tmp_path / "coffee-0.png"), str(tmp_path / "coffee-0-watermark.png")]
    with shell() as kling:
        assert kling(*words).stdout.splitlines() == copies
        facts = json.loads(kling(*words, "--json", "--prompt", "x").stdout.splitlines()[0])
    assert [len(facts["files"]), len(facts["watermark_files"])] == [1, 1]


def test_json_on_a_terminal_has_no_live_screen(tmp_path: Path) -> None:
    """With --json on a terminal there is no live screen, only objects."""
    with shell() as kling:
        arguments = ["bulk", COFFEE, "--up", 0.5, "--json", "--journal", tmp_path / "j", "-o", tmp_path]
        shown, process = kling.on_a_terminal(*arguments, size=(30, 2000))
    assert process.returncode == 0
    assert [set(json.loads(line)) >= {"line"} for line in shown.splitlines()] == [True, False]


def test_a_terminal_shows_progress_and_then_the_paths(tmp_path: Path) -> None:
    """The live screen disappears, and the paths of the results are the last lines."""
    with shell(work_seconds=0.4) as kling:
        shown, process = kling.on_a_terminal("expand", COFFEE, CHELSEA, "--up", 0.5, "-o", tmp_path)
    assert process.returncode == 0
    assert "0 of 2" in shown
    assert "coffee.jpg: " in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).split()
    assert sorted(lines[-2:]) == [str(tmp_path / "chelsea-0.png"), str(tmp_path / "coffee-0.png")]


def test_no_color_is_obeyed(tmp_path: Path) -> None:
    """With NO_COLOR, the live screen uses no color."""
    with shell() as kling:
        shown, _ = kling.on_a_terminal("expand", COFFEE, "--up", 0.5, "-o", tmp_path, NO_COLOR="1")
    assert re.findall(r"\x1b\[(?:[0-9]+;)*(?:3[0-9]|4[0-9]|9[0-9])[0-9;]*m", shown) == []


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    """A dumb terminal gets plain lines without escape sequences."""
    with shell() as kling:
        shown, _ = kling.on_a_terminal("expand", COFFEE, "--up", 0.5, "-o", tmp_path, TERM="dumb")
    assert "\x1b" not in shown
    assert "coffee.jpg: " in shown


def test_a_failure_stays_on_the_terminal(tmp_path: Path) -> None:
    """A failure is printed, and remains on the terminal after the live screen."""
    with shell() as kling:
        kling.emulator.faults.script("create", Fault("error", code=1301))
        shown, process = kling.on_a_terminal("expand", COFFEE, "--up", 0.5, "-o", tmp_path)
    assert (process.returncode, "code=1301" in shown) == (1, True)


def unreachable(cause: BaseException) -> TransportError:
    """Return the error of a call without a response, with its cause."""
    error = TransportError("https://x cannot be reached", sent=False)
    error.__cause__ = cause
    return error


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def screen_after(
    progress: Progress, clock: Clock, *errors: KlingError | None, kind: EventKind = EventKind.READ
) -> str:
    """Return the live screen after calls that ended in *errors*, one each second."""
    for error in errors:
        progress.receive(Event(kind, error=error))
        if error is not None:
            progress.receive(Event(EventKind.RETRY, error=error, route=kind))
        clock.now += 1.0
    return " ".join(screen_text(progress, 100).split())


@pytest.mark.parametrize(("outcome", "recovered"), [("saved", True), ("failed", False)])
async def test_trouble_ends_only_with_a_success(
    outcome: str, capsys: pytest.CaptureFixture[str], *, recovered: bool
) -> None:
    """A line says that the service responds again only if the trouble ended with a success."""
    clock = Clock()
    progress = Progress(2, clock=clock)
    with ProgressDisplay("m.csv", progress, lambda: IDLE):
        for _ in range(2):
            progress.receive(Event(EventKind.RETRY, error=KlingError("HTTP 503"), route="download"))
            clock.now += 2.0
        await asyncio.sleep(0.6)
        progress.add(outcome)
    err = capsys.readouterr().err
    assert "a picture cannot be downloaded yet (HTTP 503), giving up in" in err
    assert ("responding again" in err) is recovered


def test_work_after_the_download_is_shown() -> None:
    """Rows whose pictures are being enlarged or checked are counted separately from running ones."""
    assert "9 running, 4 queued, 3 being enlarged or checked, 0 saved" in screen_text(
        Progress(9, finishing=3)
    )
    assert "9 running, 3 being enlarged or checked" in Progress(9, finishing=3).line(BUSY)


def test_trouble_is_shown_with_its_cause_and_time_limit() -> None:
    """Until a call succeeds, the live screen says why calls fail and how long they are retried."""
    clock = Clock()
    progress = Progress(9, clock=clock)
    refused = unreachable(ConnectionRefusedError())
    text = screen_after(progress, clock, refused, refused, kind=EventKind.CREATE)
    assert "no response from api-singapore.klingai.com (refused), giving up in 8 s" in text
    assert "no response" not in screen_after(progress, clock, None, kind=EventKind.CREATE)
    # If the service has responded before, calls are retried for longer.
    text = screen_after(progress, clock, refused, refused, kind=EventKind.CREATE)
    assert "no response from api-singapore.klingai.com (refused), giving up in 1:58" in text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (unreachable(TimeoutError()), "(timed out), giving up in 14:58"),
        (unreachable(ConnectionResetError()), "(connection reset)"),
        (ServerError("busy\x1b[2J", code=5001, status=503), r"api-singapore.klingai.com: busy\x1b[2J"),
        (RateLimited("slow down", code=1302, status=429, retry_after=30.0), "(1302), calling again in 29 s"),
        (
            TaskNotFound("no such task", code=1201, status=400),
            "no such task (code=1201, status=400), giving up in 28 s",
        ),
    ],
)
def test_each_kind_of_trouble_has_its_own_text(error: KlingError, text: str) -> None:
    """A timeout, a reset, an error of the service and a rate limit have different texts, without escapes."""
    clock = Clock()
    progress = Progress(9, clock=clock)
    assert text in screen_after(progress, clock, None, error, error)


def test_a_short_failure_and_an_old_one_are_not_trouble() -> None:
    """One failed call is not yet trouble. A failure is forgotten if no other follows within a minute."""
    clock = Clock()
    progress = Progress(9, clock=clock)
    progress.receive(Event(EventKind.RETRY, error=unreachable(TimeoutError()), route="read"))
    clock.now += 0.5
    assert progress.trouble(IDLE) is None
    clock.now += 1.0
    assert progress.trouble(IDLE) is not None
    clock.now += 60.0
    assert progress.trouble(IDLE) is None


def test_the_account_limit_is_trouble_only_for_an_idle_run() -> None:
    """At the limit of parallel tasks, only a run without tasks of its own says what it waits for."""
    clock = Clock()
    progress = Progress(9, clock=clock)
    full = ParallelLimit("full", code=1303, status=429)
    progress.receive(Event(EventKind.RETRY, error=full, route="create"))
    clock.now += 2.0
    assert progress.trouble(BUSY) is None
    assert progress.trouble(IDLE) is not None


def stderr_during_outage(tmp_path: Path, *arguments: str) -> str:
    """Return the stderr of `expand` when the service is down for 2 s after the first poll."""
    with (
        shell(work_seconds=0.5) as kling,
        kling.start("expand", COFFEE, "--up", 0.5, "-o", tmp_path, *arguments) as run,
    ):

        async def leave() -> None:
            account = kling.emulator.account
            # A new journal lists the account once before the create.
            while not account.tasks or account.requests["query"] + account.requests["list"] < 2:  # noqa: ASYNC110 - another process sends them
                await asyncio.sleep(0.01)
            async with kling.emulator.unreachable():
                await asyncio.sleep(2)

        kling.run(leave())
        out, err = run.communicate(timeout=30)
    assert (run.returncode, out) == (0, f"{tmp_path / 'coffee-0.png'}\n")
    return err


def test_plain_output_reports_trouble_and_its_end(tmp_path: Path) -> None:
    """If the service is down for a while, a line says so, and another when it ends. -v prints each call."""
    err = stderr_during_outage(tmp_path, "-v")
    assert re.search(
        r"^no response from 127.0.0.1:\d+ \(\w+( \w+)?\), giving up in 14:5\d$", err, re.MULTILINE
    )
    assert "the service is responding again\n" in err
    retried = r"^read of \S+, attempt \d, failed: no response from .*; retrying in "
    assert re.search(retried, err, re.MULTILINE)


def test_quiet_prints_results_only(tmp_path: Path) -> None:
    """With -q only the results are printed, even if the service is down for a while."""
    assert stderr_during_outage(tmp_path, "-q") == ""
