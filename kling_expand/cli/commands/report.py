"""`kling-expand report`: write one HTML page about the jobs of a journal."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click
from attrs import frozen

from kling_expand.cli.options import JSONOption, OptionGroup, option, options
from kling_expand.cli.terminal import NothingDone, show
from kling_expand.errors import InvalidRequest, require
from kling_expand.store.sqlite import SQLiteStore

if TYPE_CHECKING:
    from kling_expand.cli.report.report_html import Totals


@frozen
class ReportOptions(OptionGroup):
    """The options of `report` alone."""

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
        help="The longer side of a picture on the page.",
    )
    last: int = option(
        "--last",
        default=500,
        show_default=True,
        type=click.IntRange(min=1),
        metavar="N",
        help="Show only the newest jobs; the totals include all.",
    )


@click.command()
@click.argument("journal", metavar="JOURNAL", type=click.Path())
@options(chosen=ReportOptions, output=JSONOption)
def report(journal: str, *, chosen: ReportOptions, output: JSONOption) -> None:
    """Write one HTML page about JOURNAL: each photo before and after, with a slider.

    \b
      kling-expand report photos.csv.journal -o report.html

    The page shows prompts, ratios, durations, cost and failures. It is one file
    that needs no network: open it from disk, or send it to others.
    """
    require("images", "PIL")
    if not Path(journal).is_file():
        raise NothingDone(f"{journal}: no such journal")
    if Path(chosen.file).suffix.lower() not in {".html", ".htm"}:
        raise InvalidRequest("output", repr(chosen.file), "must be an .html file")
    totals = asyncio.run(_report(journal, chosen))
    if output.as_json:
        shown, units = min(totals.jobs, chosen.last), totals.usage.billed
        show({"file": chosen.file, "jobs": totals.jobs, "shown": shown, "units_billed": units})
    else:
        click.echo(chosen.file)


async def _report(path: str, chosen: ReportOptions) -> "Totals":
    from kling_expand.cli.report.report_html import read_totals, render

    async with SQLiteStore(path) as journal:
        totals = await read_totals(journal)
        try:
            await _write(chosen.file, render(journal, totals, size=chosen.size, last=chosen.last))
        except OSError as error:
            problem = f"cannot be written ({error.strerror})"
            raise InvalidRequest("output", repr(chosen.file), problem) from error
    return totals


async def _write(output: str, pieces: AsyncIterator[str]) -> None:
    """Write the whole page or nothing: an interrupted report leaves the previous one as it was."""
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
