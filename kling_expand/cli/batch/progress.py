"""The progress of a batch, shown on a live screen or as plain lines."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import click
from attrs import define, field

from kling_expand.cli.options import OutputOptions
from kling_expand.cli.terminal import (
    billed_units,
    clean,
    money,
    plural,
    print_path,
    redirect_warnings,
    shell_words,
    show,
    span,
)
from kling_expand.config import Settings
from kling_expand.errors import (
    KlingError,
    ParallelLimit,
    SubmissionUnknown,
    TaskNotFound,
    TransportError,
)
from kling_expand.events import CALLS, Event, EventKind, Stats
from kling_expand.jobs.future import TaskFuture
from kling_expand.jobs.poller import NOT_FOUND_TIMEOUT
from kling_expand.models import ExpandRequest, Status, Task

from .manifest import Problem
from .trouble import DOWNLOAD, Trouble, describe_trouble, failure_text

if TYPE_CHECKING:  # rich takes a moment to import, and only a live screen needs it
    from rich.console import Console, Group, RenderableType
    from rich.table import Table
    from rich.text import Text

    from kling_expand.passes import Passes

    from .failures import FailuresFile

LAST_FAILURES, KEPT_FAILURES = 3, 1000  # failures shown on the live screen, and failures listed at the end
SHOWN_JOBS = 8  # lines of running jobs on the live screen
LINE_INTERVAL, MAX_LINE_INTERVAL = 1.0, 30.0  # seconds between two plain lines
NARROW = 60  # columns: on a narrower terminal, the live screen shows its numbers below the bar
TICK = 0.5  # seconds between two checks whether a line is due
TROUBLE_AFTER = 1.0  # seconds for which a call must fail before it is reported
_STATUS_WORDS = {"succeed": "succeeded"}  # shown instead of the service's words
TROUBLE_TIMEOUT = 60.0  # seconds without another failed call, after which trouble is over


@define(eq=False)
class Job:
    """One job of a batch. `label` names it in messages, and `names` are the possible names of its results.

    `start` submits it. A job of several `passes` has the future of the current one. If `problem` is set, the
    row cannot be sent, and the job has neither passes nor a future. `discard` removes temporary files after
    the last task. `cells` are the cells of its row in the file of --failures, by column. `request` has the
    user's own photo and key, even if an identical photo, or a converted one, was sent.
    """

    label: str
    names: tuple[str, ...] = ()  # in order of preference
    future: TaskFuture | None = None
    line: int | None = None
    notes: tuple[str, ...] = ()
    problem: Problem | None = None
    outcome: str = "open"
    files: tuple[Path, ...] = ()
    saved_as: str = ""  # the name under which its results were saved
    full_size_files: tuple[Path, ...] = ()
    changes: tuple[str, ...] = ()  # to the photo, by `--fit`
    suspicions: tuple[str, ...] = ()  # about its pictures, from `--check`
    error: KlingError | None = None
    shape: str = ""
    passes: "Passes | None" = None
    start: Callable[["Job"], Awaitable[None]] | None = None
    discard: Callable[[], object] = lambda: None
    cells: Mapping[str, Any] = field(factory=dict)
    request: ExpandRequest | None = None

    @property
    def earlier(self) -> list[Task]:
        """The tasks of earlier passes that have succeeded."""
        result, found = self.passes.result if self.passes else None, list[Task]()
        while result is not None:
            found.insert(0, result.task)
            result = result.earlier
        last = self.future and self.future.task
        return [task for task in found if last is None or task.task_id != last.task_id]

    @property
    def open_id(self) -> str | None:
        """The id of a task that exists or may exist, if its results are not saved, or None."""
        if self.files or self.future is None:
            return None
        if self.future.task is not None:
            return None if self.future.task.status is Status.FAILED else self.future.task.task_id
        error = self.future.error
        return self.future.any_id if error is None or isinstance(error, SubmissionUnknown) else None

    @property
    def finished(self) -> bool:
        """Whether the task has ended."""
        task = self.future.task if self.future else None
        return task is not None and task.status.final

    @property
    def watermark_files(self) -> tuple[Path, ...]:
        """The paths of the copies with a watermark, if they were requested."""
        task = self.future.task if self.future else None
        if task is None or not any(image.watermark_url for image in task.images):
            return ()
        patterns = [(file.parent, f"{escape(file.stem)}-watermark.*") for file in self.files]
        return tuple(copy for folder, pattern in patterns for copy in sorted(folder.glob(pattern)))

    def facts(self) -> dict[str, Any]:
        """Return the state of the job, for JSON."""
        future, task = self.future, self.future.task if self.future else None
        return {
            "line": self.line,
            "source": self.label,
            "outcome": self.outcome,
            "status": task.task_status if task else None,
            "task_id": task.task_id if task else None,
            "external_task_id": future.external_task_id if future else None,
            "notes": [*self.notes, *self.changes],
            "files": [str(path) for path in self.files],
            "full_size_files": [str(path) for path in self.full_size_files],
            "suspicions": list(self.suspicions),
            "watermark_files": [str(path) for path in self.watermark_files],
            "urls": [image.url for image in task.images] if task else [],
            "units": billed_units(task, *self.earlier),
            "earlier_task_ids": [task.task_id for task in self.earlier],
            "error": why._asdict() if (why := self.reason) else None,
        }

    @property
    def reason(self) -> Problem | None:
        """The reason why the job has no pictures, or None."""
        if self.error is not None:
            return Problem(type(self.error).__name__, shell_words(self.error.message))
        return self.problem


@define
class Progress:
    """The counts of a batch. Each of `total` rows is counted once: saved, known, failed, bad or not sent."""

    total: int
    noun: str = field(default="job", kw_only=True)
    expected: int = 0  # rows saved by earlier runs, according to the journal
    saved: int = 0
    known: int = 0  # rows that an earlier run had saved
    failed: int = 0
    bad: int = 0
    not_sent: int = 0
    finishing: int = 0  # rows whose pictures are being checked or enlarged
    suspicious: int = 0  # saved or known rows with a picture that fails `--check`
    units_before: int = 0
    failures: deque[str] = field(factory=lambda: deque(maxlen=KEPT_FAILURES))
    dropped_failures: int = 0  # older failures, which are no longer kept
    failures_file: "FailuresFile | None" = None
    most_running: int = 1  # the largest number of tasks at the same time
    started: bool = False
    interrupted: bool = False
    over_budget: bool = False
    troubles: dict[str, Trouble] = field(factory=dict)  # by the route of the calls
    answered: bool = False  # whether the service has answered once
    recovered: bool = False  # whether the last trouble ended with a success
    on_event: Callable[[Event], object] | None = None  # called with each event of the client
    clock: Callable[[], float] = time.monotonic

    @property
    def ended(self) -> int:
        """The number of rows that this run has finished."""
        return self.saved + self.known + self.failed + self.bad + self.not_sent

    @property
    def complete(self) -> bool:
        """Whether the pictures of every row are saved."""
        return self.saved + self.known == self.total

    def add(self, outcome: str) -> None:
        """Count a row that has ended: "saved", "known", "failed", "bad" or "not sent"."""
        name = outcome.replace(" ", "_")
        setattr(self, name, getattr(self, name) + 1)
        if self.troubles.pop(DOWNLOAD, None):  # a download that succeeds emits no event
            self.recovered = outcome in {"saved", "known"}

    def report(self, job: Job, *, as_json: bool) -> None:
        """If *as_json*, print a job that has ended. If it is not saved, add it to the file of failures."""
        if as_json:
            show(job.facts())
        if self.failures_file is not None and job.outcome not in {"saved", "known", "left out"}:
            self.failures_file.add(job)

    def add_failure(self, text: str) -> None:
        """Record why a row failed."""
        self.dropped_failures += len(self.failures) == KEPT_FAILURES
        self.failures.append(text)

    def receive(self, event: Event) -> None:
        """Process an event of the client. Trouble begins with a retry, and ends with a successful call."""
        if event.kind in CALLS:
            self.answered |= not isinstance(event.error, TransportError)
            if event.error is None and event.kind in self.troubles:
                del self.troubles[event.kind]
                self.recovered = True
        elif event.kind in {EventKind.RETRY, EventKind.PAUSE} and event.error is not None:
            now, route = self.clock(), event.route or EventKind.READ
            known = self.troubles.get(route)
            self.recovered = False
            self.troubles[route] = Trouble(event.error, known.started_at if known else now, now, event.wait)
        if self.on_event is not None:
            self.on_event(event)

    def trouble(self, stats: Stats) -> tuple[str, Trouble] | None:
        """Return the route whose calls have failed for the longest time, with its trouble, or None."""
        now = self.clock()
        persistent = [
            (route, trouble)
            for route, trouble in self.troubles.items()
            if now - trouble.started_at >= TROUBLE_AFTER
            and now - trouble.seen_at < TROUBLE_TIMEOUT + (trouble.wait or 0.0)
            # At the limit of parallel tasks, a run with running tasks continues as soon as one of them ends.
            and not (isinstance(trouble.error, ParallelLimit) and stats.running)
        ]
        return min(persistent, key=lambda each: each[1].started_at, default=None)

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
        """Return the ended rows by kind. Kinds without a row are omitted, except saved ones."""
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
        rows = plural(self.total, self.noun)
        running = f"{stats.running} running{self.extra_work()}"
        return f"{self.ended} of {rows}: {self.counts()}; {running}{time_left}"

    def extra_work(self) -> str:
        """Return how many rows are being processed after their download, or an empty string if none is."""
        return f", {self.finishing} being enlarged or checked" if self.finishing else ""


@define
class LineSchedule:
    """The schedule of plain lines: one after every 5 % of the rows, or after a time without a line."""

    printed_at: float
    ended: int = 0

    def due(self, ended: int, total: int, now: float) -> bool:
        """Return whether to print a line now."""
        many = ended > self.ended and 20 * (ended - self.ended) >= total
        if now - self.printed_at < (LINE_INTERVAL if many else MAX_LINE_INTERVAL):
            return False
        self.ended, self.printed_at = ended, now
        return True


# ---------------------------------------------------------------------------- the display


class ProgressDisplay:
    """The display of a batch: progress, trouble and failures on stderr, results (paths or JSON) on stdout.

    *stats* returns the client's current statistics. A *detailed* display has a line for every running job.
    Paths would break a live screen that shares its terminal with stdout. In that case a detailed display
    prints them at its end, and any other display does not print them. An *emulated* service bills nothing.
    """

    def __init__(
        self,
        title: str,
        progress: Progress,
        stats: Callable[[], Stats],
        *,
        detailed: bool = False,
        budget: int | None = None,
        output: OutputOptions | None = None,
        settings: Settings | None = None,
        emulated: bool = False,
        console: "Console | None" = None,
    ) -> None:
        self._title = clean(title)
        self._progress = progress
        self._stats = stats
        self._detailed = detailed
        self._budget = budget
        self._output = output or OutputOptions()
        self._settings = settings or Settings()
        self._emulated = emulated
        self._clock = progress.clock
        self._started_at = self._clock()
        self._running: dict[Job, tuple[str, float]] = {}  # status and start time of each
        shared = bool(sys.stdout and sys.stdout.isatty())
        live = not self._output.quiet and not (self._output.as_json and shared)
        self._console = console or (_terminal() if live else None)
        self._screen = self._make_screen(self._console) if self._console else None
        self._paths: list[Path] | None = [] if self._screen and shared else None  # printed at the end
        self._lines = LineSchedule(self._started_at)
        self._reported: str | None = None  # the trouble that was last printed as a plain line
        self._reported_at = 0.0
        self._ticks: asyncio.TimerHandle | None = None
        progress.on_event = self._on_event

    def __enter__(self) -> Self:
        redirect_warnings(self.note)
        if self._screen is not None:
            self._screen.start()
        else:
            self._tick()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticks is not None:
            self._ticks.cancel()
            if self._reported is not None:
                self._print_trouble()  # the trouble may have ended since the last tick
        if self._screen is not None:
            self._screen.stop()
            for text in self._progress.failures:
                self.note(text)
            if self._progress.dropped_failures:
                self.note(f"and {plural(self._progress.dropped_failures, 'earlier failure')}")
        for path in self._paths or ():
            print_path(path)
        redirect_warnings(None)

    def note(self, text: str) -> None:
        """Print a line about the whole batch, unless only results are wanted."""
        if not self._output.quiet:
            self._print(text)

    def failure(self, text: str) -> None:
        """Report why a row failed."""
        self._progress.add_failure(text)
        if self._screen is None and not self._output.as_json:
            self._print(text)

    def snapshot(self, job: Job, task: Task) -> None:
        """Report a new snapshot of a job's task."""
        if not self._detailed:
            return
        if job not in self._running and not self._output.as_json:
            for change in job.changes:
                self.note(f"{job.label}: {change}")
        _, started_at = self._running.get(job, ("", self._clock()))
        step = job.passes.step if job.passes else None
        several = f"pass {step.number} of {len(step.steps)} " if step and len(step.steps) > 1 else ""
        status = f"{several}{_STATUS_WORDS.get(task.task_status, task.task_status)}"
        self._running[job] = status, started_at
        if self._screen is None and not self._output.as_json:
            self.note(f"{job.label}: {status}" + (f" ({task.task_id})" if task.task_id else ""))

    def ended(self, job: Job) -> None:
        """Report the end of a job."""
        self._running.pop(job, None)
        self._progress.report(job, as_json=self._output.as_json)
        if self._output.as_json:
            return
        if self._paths is None:
            for path in (*job.files, *job.full_size_files, *job.watermark_files):
                print_path(path)
        elif self._detailed:
            self._paths += (*job.files, *job.full_size_files, *job.watermark_files)
        if self._screen is None and not self._detailed:
            self._print_line()

    # ------------------------------------------------------------------ plain lines

    def _print(self, text: str) -> None:
        if self._screen is not None and self._console is not None:
            self._console.print(clean(text))
        else:
            click.echo(clean(text), err=True)

    def _print_line(self) -> None:
        """Print the progress if a line is due. With JSON, the objects show the progress."""
        if not self._output.as_json and self._lines.due(
            self._progress.ended, self._progress.total, self._clock()
        ):
            self.note(self._progress.line(self._stats()))

    def _tick(self) -> None:
        """Print the lines that are due, now and periodically."""
        self._ticks = asyncio.get_running_loop().call_later(TICK, self._tick)
        self._print_trouble()
        self._print_line()

    def _print_trouble(self) -> None:
        """Print trouble when it begins, periodically while it lasts, and when it ends."""
        text, now = self._trouble(), self._clock()
        if text is None:
            if self._reported is not None and self._progress.recovered:
                self.note("the service is responding again")
        elif self._reported is not None and now - self._reported_at < MAX_LINE_INTERVAL:
            return
        else:
            self.note(text)
        self._reported, self._reported_at = text, now

    def _on_event(self, event: Event) -> None:
        """Print a failed call if ``-v`` was given."""
        if not self._output.verbose or event.error is None:
            return
        if event.kind in {EventKind.RETRY, EventKind.PAUSE}:
            attempt = f", attempt {event.attempt}," if event.attempt else ""
            again = f"; retrying in {event.wait:.1f} s" if event.wait else ""
            name = event.task_id or event.external_task_id or "-"
            self.note(f"{event.route} of {name}{attempt} failed: {self._failure(event.error)}{again}")

    def _failure(self, error: KlingError) -> str:
        return failure_text(error, urlsplit(self._settings.base_url).netloc)

    def _trouble(self) -> str | None:
        found = self._progress.trouble(self._stats())
        if found is None:
            return None
        route, trouble = found
        settings = self._settings
        if not self._progress.answered:  # the host may be wrong, so calls to it are not retried for long
            limit = settings.connect_timeout
        elif isinstance(trouble.error, TaskNotFound):
            limit = NOT_FOUND_TIMEOUT
        else:
            limit = settings.poll_timeout if route == EventKind.READ else settings.retry_timeout
        return describe_trouble(route, trouble, urlsplit(settings.base_url).netloc, limit, self._clock())

    # ------------------------------------------------------------------ the live screen

    def _make_screen(self, console: "Console") -> Any:
        from rich.live import Live

        return Live(
            console=console,
            get_renderable=self.__rich__,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __rich__(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        progress, stats, trouble = self._progress, self._stats(), self._trouble()
        failures = list(progress.failures)[-LAST_FAILURES:]
        rows: list[RenderableType] = [
            Text(self._title, "bold"),
            self._bar(stats),
            _wrapped(
                f"{stats.running} running, {stats.waiting} queued{progress.extra_work()}, {progress.counts()}"
            ),
            *(_cut(f"  {line}") for line in self._job_lines()),
            _wrapped(self._cost(stats)),
            *([_wrapped(clean(trouble), "bold magenta")] if trouble else []),
            *([Text("last failures", "bold")] if failures else []),
            *(_cut(f"  {clean(text)}", "red") for text in failures),
        ]
        return Group(*rows, "")  # the terminal prints ^C on the empty line

    def _bar(self, stats: Stats) -> "Table":
        """Return the bar with its numbers beside it, or below it if the terminal is narrow."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        progress, left = self._progress, self._progress.time_left(stats)
        total, elapsed = max(progress.total, 1), span(self._clock() - self._started_at)
        drawn = ProgressBar(total=total, completed=progress.ended, complete_style="cyan")
        numbers = (
            f"{progress.ended} of {progress.total}",
            f"{100 * progress.ended // total} %",
            f"{elapsed}, about {span(left)} left" if left and round(left) else elapsed,
        )
        bar = Table.grid(padding=(0, 2, 0, 0), expand=True)
        bar.add_column(ratio=1)
        if self._console is not None and self._console.width < NARROW:
            bar.add_row(drawn)
            bar.add_row(_wrapped(", ".join(numbers)))
            return bar
        for _ in numbers:
            bar.add_column(no_wrap=True, justify="right")
        bar.add_row(drawn, *numbers)
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
        if self._emulated:
            return f"{money(units, emulated=True)}{duration}"
        return f"{money(units)}{budget} spent or due{duration}"


def _terminal() -> "Console | None":
    """Return the console of stderr if it is a terminal that can show a live screen, or None."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    return console if console.is_terminal and not console.is_dumb_terminal else None


def _cut(text: str, style: str = "") -> "Text":
    """Return one line, truncated at the edge of the terminal."""
    from rich.text import Text

    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _wrapped(text: str, style: str = "") -> "Text":
    """Return text that is wrapped at the edge of the terminal."""
    from rich.text import Text

    return Text(text, style, no_wrap=False, overflow="fold")
