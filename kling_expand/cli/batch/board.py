"""What is seen while many rows are worked on? A live board on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import click
from attrs import define
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kling_expand.cli.formatting import clean, money, show, span
from kling_expand.events import Stats

from .progress import SHOWN, Progress

BRIEF, QUIET = 1.0, 30.0  # seconds between two lines where there is no live board: the least, the most


@define
class Plain:
    """When the next line is due: a twentieth of the rows after the last, and after a while anyway."""

    at: float
    ended: int = 0

    def due(self, ended: int, total: int, now: float) -> bool:
        """Whether to say something now."""
        many = 20 * (ended - self.ended) >= total
        if now - self.at < (BRIEF if many else QUIET):
            return False
        self.ended, self.at = ended, now
        return True


class Board:
    """Tells of many rows: progress and troubles on stderr, results (paths, or JSON) on stdout.

    *stats* gives the client's numbers as they are now. On a terminal that shows both, paths are not listed.
    """

    def __init__(
        self,
        title: str,
        progress: Progress,
        stats: Callable[[], Stats],
        *,
        budget: int | None = None,
        as_json: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = clean(title)
        self._progress = progress
        self._stats = stats
        self._budget = budget
        self._json = as_json
        self._clock = clock
        self._began = clock()
        self._console = console or Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        shared = sys.stdout.isatty()
        capable = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(
            console=self._console,
            get_renderable=self.__rich__,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        # Lines on the terminal that a live board is drawn on would tear it.
        self.live = capable and not (as_json and shared)
        self._lists = not (self.live and shared)
        self._plain = Plain(self._began)

    def __enter__(self) -> Self:
        if self.live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self._live.stop()
            for text in self._progress.troubles:
                self.note(text)
            if self._progress.untold:
                self.note(f"and {self._progress.untold} before these")

    def note(self, text: str) -> None:
        """A line about the whole."""
        if self.live:
            self._console.print(clean(text))
        else:
            click.echo(clean(text), err=True)

    def trouble(self, text: str) -> None:
        """Why a row failed."""
        self._progress.trouble(text)
        if not self.live and not self._json:
            self.note(text)

    def ended(self, facts: dict[str, Any]) -> None:
        """A row has ended; its *facts* as they are in JSON."""
        if self._json:
            show(facts)
            return
        if self._lists:
            for path in facts["files"]:
                click.echo(path)
        if not self.live and self._plain.due(self._progress.ended, self._progress.total, self._clock()):
            self.note(self._progress.progress(self._stats()))

    # ------------------------------------------------------------------ the live board

    def __rich__(self) -> Group:
        progress, stats = self._progress, self._stats()
        troubles = list(progress.troubles)[-SHOWN:]
        rows: list[RenderableType] = [
            Text(self._title, "bold"),
            self._bar(stats),
            Text(f"{stats.running} running, {stats.waiting} queued, {progress.counts()}"),
            Text(self._money(stats), no_wrap=True, overflow="ellipsis"),
            *([Text("last troubles", "bold")] if troubles else []),
            *(Text(f"  {clean(text)}", "red", no_wrap=True, overflow="ellipsis") for text in troubles),
        ]
        return Group(*rows, "")  # an empty line for the ^C that a terminal writes by itself

    def _bar(self, stats: Stats) -> Table:
        progress, left = self._progress, self._progress.left(stats)
        spent = span(self._clock() - self._began)
        bar = Table.grid(padding=(0, 2, 0, 0), expand=True)
        bar.add_column(ratio=1)
        for _ in range(3):
            bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            ProgressBar(total=max(progress.total, 1), completed=progress.ended, complete_style="cyan"),
            f"{progress.ended} of {progress.total}",
            f"{100 * progress.ended // max(progress.total, 1)} %",
            f"{spent}, about {span(left)} left" if left is not None else spent,
        )
        return bar

    def _money(self, stats: Stats) -> str:
        units = self._progress.units_before + stats.units_due
        of = f" of {money(self._budget)}" if self._budget is not None else ""
        took = stats.duration.median
        tempo = f"; a task takes {took:.1f} s" if took is not None else ""
        return f"{money(units)}{of} spent or due{tempo}"
