"""What is seen while tasks run? A live screen on a terminal, plain lines elsewhere; results on stdout."""

import json
import sys
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from kling_expand.cli.formatting import clean
from kling_expand.models import Task

from .job import Job


class Screen:
    """Tells of *jobs* jobs as they go: progress on stderr, results (paths, or JSON) on stdout."""

    def __init__(self, jobs: int, *, as_json: bool = False) -> None:
        self._jobs = jobs
        self._json = as_json
        self._done = 0
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        # Lines on the terminal that a live screen is drawn on would tear it.
        self._late: list[str] | None = [] if self._live and sys.stdout.isatty() else None
        self._rows: dict[int, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self._live,
        )
        self._total = self._progress.add_task(self._count())

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        for line in self._late or ():
            click.echo(line)

    def note(self, text: str) -> None:
        """A line about the whole."""
        text = clean(text)
        if self._live:
            self._console.print(text)
        else:
            click.echo(text, err=True)

    def news(self, job: Job, task: Task) -> None:
        """A new snapshot of the job's task."""
        text = clean(f"{job.label}: {task.task_status}")
        if id(job) in self._rows:
            self._progress.update(self._rows[id(job)], description=text)
        else:
            self._rows[id(job)] = self._progress.add_task(text)
        if not self._live and not self._json:
            click.echo(f"{text} ({task.task_id})", err=True)

    def ended(self, job: Job) -> None:
        """The job's end: its results, or why there are none."""
        self._done += 1
        self._progress.update(self._total, description=self._count())
        if id(job) in self._rows:
            self._progress.remove_task(self._rows.pop(id(job)))
        if job.error is not None and not self._json:
            self.note(f"{job.label}: {job.error}")
        for line in [json.dumps(job.facts())] if self._json else [str(path) for path in job.paths]:
            self._result(line)

    def _count(self) -> str:
        return f"{self._done} of {self._jobs} done"

    def _result(self, line: str) -> None:
        if self._late is None:
            click.echo(line)
        else:
            self._late.append(line)
