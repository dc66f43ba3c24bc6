"""The progress of a batch: its counts, and a live screen or plain lines that show them."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click
from attrs import define, field
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kling_expand.cli.terminal import billed_units, clean, money, show, span
from kling_expand.errors import InvalidRequest, KlingError, SubmissionUnknown
from kling_expand.events import Stats
from kling_expand.jobs.future import TaskFuture
from kling_expand.models import Status, Task

LAST_FAILURES, KEPT_FAILURES = 3, 1000  # shown on the live screen, and listed at the end
SHOWN_JOBS = 8  # lines of running jobs on the live screen
LINE_INTERVAL, MAX_LINE_INTERVAL = 1.0, 30.0  # seconds between two plain lines


@define(eq=False)
class Job:
    """One job of a batch; `label` is what the user called it, `names` what its results may be called.

    Without a future the row cannot be sent, because of `problem`.
    """

    label: str
    names: tuple[str, ...] = ()  # best first
    future: TaskFuture | None = None
    line: int | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = None
    outcome: str = "open"
    files: tuple[Path, ...] = ()
    error: KlingError | None = None

    @property
    def open_id(self) -> str | None:
        """The id of a task that exists, or may exist, and whose results are not saved; else None."""
        if self.files or self.future is None:
            return None
        if self.future.task is not None:
            return None if self.future.task.status is Status.FAILED else self.future.task.task_id
        error = self.future.error
        return self.future.any_id if error is None or isinstance(error, SubmissionUnknown) else None

    def facts(self) -> dict[str, Any]:
        """Return what is known of the job, for JSON."""
        future, task = self.future, self.future.task if self.future else None
        return {
            "line": self.line,
            "source": self.label,
            "outcome": self.outcome,
            "status": task.task_status if task else None,
            "task_id": task.task_id if task else None,
            "external_task_id": future.external_task_id if future else None,
            "notes": list(self.notes),
            "files": [str(path) for path in self.files],
            "urls": [image.url for image in task.images] if task else [],
            "units": billed_units(task),
            "error": self._error(),
        }

    def _error(self) -> dict[str, str] | None:
        if self.error is not None:
            return {"type": type(self.error).__name__, "message": self.error.message}
        return {"type": InvalidRequest.__name__, "message": self.problem} if self.problem else None


@define
class Progress:
    """The rows of a batch. Each of `total` rows is counted once: saved, known, failed, bad or not sent."""

    total: int
    expected: int = 0  # rows that earlier runs have saved, by the journal
    saved: int = 0
    known: int = 0  # saved by an earlier run
    failed: int = 0
    bad: int = 0
    not_sent: int = 0
    units_before: int = 0
    failures: deque[str] = field(factory=lambda: deque(maxlen=KEPT_FAILURES))
    dropped_failures: int = 0  # more than are kept
    most_running: int = 1  # tasks at the same time
    started: bool = False
    interrupted: bool = False

    @property
    def ended(self) -> int:
        """The number of rows that this run is done with."""
        return self.saved + self.known + self.failed + self.bad + self.not_sent

    @property
    def complete(self) -> bool:
        """Whether the pictures of every row are saved."""
        return self.saved + self.known == self.total

    def add(self, outcome: str) -> None:
        """Count a row that has ended: "saved", "known", "failed", "bad" or "not sent"."""
        name = outcome.replace(" ", "_")
        setattr(self, name, getattr(self, name) + 1)

    def add_failure(self, text: str) -> None:
        """Record why a row failed."""
        self.dropped_failures += len(self.failures) == KEPT_FAILURES
        self.failures.append(text)

    def time_left(self, stats: Stats) -> float | None:
        """Return the expected seconds until the last row ends, or None before the first task has ended."""
        self.most_running = max(self.most_running, stats.running)
        if stats.duration.median is None:
            return None
        skipped = max(self.expected - self.known, 0)
        rows = max(self.total - self.ended - skipped, 0)
        cycle = stats.duration.median + (stats.latency.median or 0.0)  # how long a task holds its slot
        return rows * cycle / self.most_running

    def counts(self) -> str:
        """Return the ended rows by kind; kinds without a row are left out, except the first."""
        kinds = {
            "saved": self.saved,
            "already done": self.known,
            "failed": self.failed,
            "bad": self.bad,
            "not sent": self.not_sent,
        }
        return ", ".join(f"{n} {kind}" for kind, n in kinds.items() if n or kind == "saved")

    def line(self, stats: Stats) -> str:
        """Return the progress on one line."""
        left = self.time_left(stats)
        time_left = f"; about {span(left)} left" if left else ""
        return f"{self.ended} of {self.total} rows: {self.counts()}; {stats.running} running{time_left}"


@define
class LineSchedule:
    """When to print the next plain line: after a twentieth of the rows, or after a while without one."""

    printed_at: float
    ended: int = 0

    def due(self, ended: int, total: int, now: float) -> bool:
        """Return whether to print a line now."""
        many = 20 * (ended - self.ended) >= total
        if now - self.printed_at < (LINE_INTERVAL if many else MAX_LINE_INTERVAL):
            return False
        self.ended, self.printed_at = ended, now
        return True


class ProgressDisplay:
    """Shows a batch: progress and failures on stderr, results (paths or JSON) on stdout.

    *stats* returns the client's current numbers. A *detailed* display has a line for every running job.
    Where a live screen shares its terminal with stdout, paths would tear it: a detailed display prints
    them at its end, any other does not list them.
    """

    def __init__(
        self,
        title: str,
        progress: Progress,
        stats: Callable[[], Stats],
        *,
        detailed: bool = False,
        budget: int | None = None,
        as_json: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = clean(title)
        self._progress = progress
        self._stats = stats
        self._detailed = detailed
        self._budget = budget
        self._json = as_json
        self._clock = clock
        self._started_at = clock()
        self._console = console or Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._running: dict[Job, tuple[str, float]] = {}  # status and start of each
        self._screen = Live(
            console=self._console,
            get_renderable=self.__rich__,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        shared = sys.stdout.isatty()
        capable = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = capable and not (as_json and shared)
        self._paths: list[Path] | None = [] if self._live and shared else None  # to be printed at the end
        self._lines = LineSchedule(self._started_at)

    def __enter__(self) -> Self:
        if self._live:
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._live:
            return
        self._screen.stop()
        for text in self._progress.failures:
            self.note(text)
        if self._progress.dropped_failures:
            self.note(f"and {self._progress.dropped_failures} earlier failures")
        for path in self._paths or ():
            click.echo(path)

    def note(self, text: str) -> None:
        """Print a line about the whole batch."""
        if self._live:
            self._console.print(clean(text))
        else:
            click.echo(clean(text), err=True)

    def failure(self, text: str) -> None:
        """Report why a row failed."""
        self._progress.add_failure(text)
        if not self._live and not self._json:
            self.note(text)

    def snapshot(self, job: Job, task: Task) -> None:
        """Report a new snapshot of a job's task."""
        if not self._detailed:
            return
        _, started_at = self._running.get(job, ("", self._clock()))
        self._running[job] = task.task_status, started_at
        if not self._live and not self._json:
            self.note(f"{job.label}: {task.task_status} ({task.task_id})")

    def ended(self, job: Job) -> None:
        """Report the end of a job."""
        self._running.pop(job, None)
        if self._json:
            show(job.facts())
            return
        self._print_paths(job.files)
        if self._live or self._detailed:
            return
        if self._lines.due(self._progress.ended, self._progress.total, self._clock()):
            self.note(self._progress.line(self._stats()))

    def _print_paths(self, paths: Iterable[Path]) -> None:
        if self._paths is None:
            for path in paths:
                click.echo(path)
        elif self._detailed:
            self._paths += paths

    # ------------------------------------------------------------------ the live screen

    def __rich__(self) -> Group:
        progress, stats = self._progress, self._stats()
        failures = list(progress.failures)[-LAST_FAILURES:]
        rows: list[RenderableType] = [
            Text(self._title, "bold"),
            self._bar(stats),
            Text(f"{stats.running} running, {stats.waiting} queued, {progress.counts()}"),
            *(_cut(f"  {line}") for line in self._job_lines()),
            _cut(self._cost(stats)),
            *([Text("last failures", "bold")] if failures else []),
            *(_cut(f"  {clean(text)}", "red") for text in failures),
        ]
        return Group(*rows, "")  # an empty line for the ^C that a terminal prints by itself

    def _bar(self, stats: Stats) -> Table:
        progress, left = self._progress, self._progress.time_left(stats)
        elapsed = span(self._clock() - self._started_at)
        bar = Table.grid(padding=(0, 2, 0, 0), expand=True)
        bar.add_column(ratio=1)
        for _ in range(3):
            bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            ProgressBar(total=max(progress.total, 1), completed=progress.ended, complete_style="cyan"),
            f"{progress.ended} of {progress.total}",
            f"{100 * progress.ended // max(progress.total, 1)} %",
            f"{elapsed}, about {span(left)} left" if left and round(left) else elapsed,
        )
        return bar

    def _job_lines(self) -> list[str]:
        now = self._clock()
        lines = [
            clean(f"{job.label}: {status}, {span(now - started_at)}")
            for job, (status, started_at) in list(self._running.items())[:SHOWN_JOBS]
        ]
        more = len(self._running) - SHOWN_JOBS
        return [*lines, f"and {more} more"] if more > 0 else lines

    def _cost(self, stats: Stats) -> str:
        units = self._progress.units_before + stats.units_due
        budget = f" of {money(self._budget)}" if self._budget is not None else ""
        median = stats.duration.median
        duration = f"; median task {median:.1f} s" if median is not None else ""
        return f"{money(units)}{budget} spent or due{duration}"


def _cut(text: str, style: str = "") -> Text:
    """Return one line that is cut off at the edge of the terminal."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")
