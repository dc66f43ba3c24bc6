"""`kling-expand report`: write one HTML page about the jobs of a journal."""

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attrs import frozen

from kling_expand.cli.options import JSONOption, OptionGroup, find_journal, option, options
from kling_expand.cli.terminal import print_path, show
from kling_expand.errors import InvalidRequest, require

if TYPE_CHECKING:
    from kling_expand.cli.report.report_html import Totals


@frozen
class ReportOptions(OptionGroup):
    """The options that only `report` has."""

    file: str = option(
        "-o",
        "--output",
        default="report.html",
        show_default=True,
        type=click.Path(),
        metavar="FILE",
        help="The HTML file to write.",
    )
    size: int = option(
        "--size",
        default=560,
        show_default=True,
        type=click.IntRange(64, 4096),
        metavar="PIXELS",
        help="Maximum width and height of the pictures on the page.",
    )
    last: int = option(
        "--last",
        default=500,
        show_default=True,
        type=click.IntRange(min=1),
        metavar="N",
        help="Show only the newest N jobs; the totals include all.",
    )


INTERVAL = 5.0  # seconds between two lines of progress, if stderr is not a terminal


@click.command()
@click.argument("journal", metavar="JOURNAL", type=click.Path())
@options(chosen=ReportOptions, output=JSONOption)
def report(journal: str, *, chosen: ReportOptions, output: JSONOption) -> None:
    """Write an HTML page that shows each photo of a run before and after, with a slider.

    \b
      kling-expand report out/ -o report.html

    JOURNAL is the output directory of the run, or its journal file. The run may still be in progress.
    The page shows prompts, ratios, durations, cost and failures, and marks photos that have changed since the
    run. It is one file that needs no network: open it from disk, or send it to others. If you write it again,
    the thumbnails of the earlier page are reused.
    """
    require("images", "PIL")
    path = find_journal(journal)
    if Path(chosen.file).suffix.lower() not in {".html", ".htm"}:
        raise InvalidRequest("output", repr(chosen.file), "must be an .html file")
    totals = asyncio.run(_report(path, chosen))
    if output.as_json:
        shown, units = min(totals.jobs, chosen.last), totals.usage.billed
        show({"file": chosen.file, "jobs": totals.jobs, "shown": shown, "units_billed": units})
    else:
        print_path(chosen.file)


async def _report(path: str, chosen: ReportOptions) -> "Totals":
    from kling_expand.cli.batch.plan import copied_journal
    from kling_expand.cli.report.report_html import read_totals, render
    from kling_expand.cli.report.thumbnails import Thumbnails

    async with copied_journal(path) as journal:
        totals = await read_totals(journal, path)
        progress = _Progress(min(totals.jobs, chosen.last))
        try:
            thumbnails = await asyncio.to_thread(Thumbnails, chosen.size, Path(chosen.file))
            pages = render(journal, totals, thumbnails, last=chosen.last, on_card=progress.step)
            await _write(chosen.file, pages)
        except OSError as error:
            problem = f"cannot be written ({error.strerror})"
            raise InvalidRequest("output", repr(chosen.file), problem) from error
        finally:
            progress.clear()
    return totals


class _Progress:
    """A counter of the jobs on the page: a changing line on a terminal, occasional lines elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = self._printed = 0
        self._live = bool(sys.stderr and sys.stderr.isatty())
        self._printed_at = time.monotonic()

    def step(self) -> None:
        """Count a job."""
        self._done += 1
        now = time.monotonic()
        if now - self._printed_at < (0.1 if self._live else INTERVAL):
            return
        self._printed_at, self._printed = now, self._done
        text = f"report: {self._done} of {self._total} jobs"
        click.echo(f"\r{text}" if self._live else text, err=True, nl=not self._live)

    def clear(self) -> None:
        """Remove the changing line, or print a last line with the final number."""
        if self._live:
            click.echo("\r\x1b[K", err=True, nl=False)
        elif 0 < self._printed < self._done:
            click.echo(f"report: {self._done} of {self._total} jobs", err=True)


async def _write(output: str, pieces: AsyncIterator[str]) -> None:
    """Write the whole page or nothing. An interrupted report leaves the previous one unchanged."""
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}-{secrets.token_hex(8)}.part")
    output_file = part.open("x", encoding="utf-8")  # "x" never follows a link that another user made
    try:
        with output_file as file:
            async for piece in pieces:
                file.write(piece)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
