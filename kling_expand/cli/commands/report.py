"""What came of a run? `kling-expand report`: one page with every job of a journal, to be opened from disk."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import click
from attrs import define, field

from kling_expand.cli import options
from kling_expand.cli.batch.usage import Spent
from kling_expand.cli.exit_codes import Stop, run
from kling_expand.cli.formatting import show
from kling_expand.cli.report.cards import card, seconds
from kling_expand.cli.report.page import foot, head
from kling_expand.errors import InvalidRequest, MissingExtra
from kling_expand.store.base import JobRecord, JobState
from kling_expand.store.sqlite import SQLiteStore


@define
class Totals:
    """What all jobs come to. `durations` are those of the tasks that ended well, in seconds."""

    jobs: int = 0
    states: dict[JobState, int] = field(factory=lambda: dict.fromkeys(JobState, 0))
    spent: Spent = field(factory=Spent)
    durations: list[float] = field(factory=list)

    def count(self, job: JobRecord) -> None:
        """Add a job."""
        self.jobs += 1
        self.states[job.state] += 1
        self.spent.count(job)
        took = seconds(job.task)
        if took is not None:
            self.durations.append(took)


@click.command(short_help="Make a page of a journal's results.")
@click.argument("journal", metavar="JOURNAL", type=click.Path())
@click.option(
    "-o",
    "--output",
    default="report.html",
    show_default=True,
    type=click.Path(),
    metavar="FILE",
    help="The HTML file to write.",
)
@click.option(
    "--size",
    default=560,
    show_default=True,
    type=click.IntRange(64, 4096),
    metavar="PIXELS",
    help="The longer side of a picture on the page.",
)
@click.option(
    "--last",
    default=500,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Show only the newest jobs; the sums are of all.",
)
@options.as_json
def report(journal: str, *, output: str, size: int, last: int, as_json: bool) -> None:
    """Write one HTML page about JOURNAL: each photo before and after, with a slider.

    \b
      kling-expand report photos.csv.journal -o report.html

    It tells prompts, ratios, durations, cost and failures. Everything is in that
    one file, so it opens from disk and can be passed on; it asks no network.
    """
    if find_spec("PIL") is None:
        raise MissingExtra("a report holds small pictures made by Pillow: pip install 'kling-expand[images]'")
    if not Path(journal).is_file():
        raise Stop(f"{journal}: there is no such journal")
    if Path(output).suffix.lower() not in {".html", ".htm"}:
        raise InvalidRequest("output", repr(output), "a report is an .html file")
    totals = run(_report(journal, output, size, last))
    shown = min(totals.jobs, last)
    if as_json:
        show({"file": output, "jobs": totals.jobs, "shown": shown, "units_billed": totals.spent.billed})
    else:
        click.echo(output)


async def _report(journal: str, output: str, size: int, last: int) -> Totals:
    async with SQLiteStore(journal) as opened:
        totals = Totals()
        async for job in opened.jobs():
            totals.count(job)
        try:
            await _write(output, _pieces(opened, totals, size, last))
        except OSError as error:
            raise InvalidRequest("output", repr(output), f"it cannot be written: {error.strerror}") from error
    return totals


async def _pieces(journal: SQLiteStore, totals: Totals, size: int, last: int) -> AsyncIterator[str]:
    """The page piece by piece, as it may be larger than memory is."""
    yield head(Path(journal.path).name, totals.states, totals.spent, totals.durations, last)
    number = 0
    async for job in journal.jobs():
        number += 1
        if number > totals.jobs - last:
            yield await asyncio.to_thread(card, job, size)
    yield foot()


async def _write(output: str, pieces: AsyncIterator[str]) -> None:
    """The whole page or nothing: an interrupted report leaves the last one as it was."""
    folder = Path(output).parent
    folder.mkdir(parents=True, exist_ok=True)
    file: IO[str]
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=folder, prefix=".report-", suffix=".html", delete=False
    ) as file:
        try:
            async for piece in pieces:
                file.write(piece)
            file.close()
            os.chmod(file.name, 0o644)  # noqa: PTH101 - a temporary file is its owner's alone
            os.replace(file.name, output)  # noqa: PTH105
        except BaseException:
            file.close()
            os.unlink(file.name)  # noqa: PTH108
            raise
