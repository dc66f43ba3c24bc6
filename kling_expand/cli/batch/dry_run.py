"""What would a bulk run do? Reads all rows, looks at photos on request, tells the cost; sends nothing."""

import asyncio
from pathlib import Path

import click

from kling_expand.cli.exit_codes import FAILED, Stop
from kling_expand.cli.formatting import clean, show
from kling_expand.store.sqlite import SQLiteStore

from .naming import plan
from .plan import Errand
from .survey import PAID, Survey, known, looked_at


def check_output(errand: Errand, survey: Survey) -> None:
    """Raise `InvalidRequest` where two rows' results, or two of one row's, would share a path."""
    plan(["one row.jpg", "another row.jpg"], errand.output, survey.most)


def read_through(errand: Errand) -> Survey:
    """The rows as they are written. Raises `Stop` where none can be sent."""
    survey = Survey()
    for row in errand.rows():
        survey.count(row)
        if row.error is not None and not errand.as_json:
            click.echo(clean(f"{row.label}: {row.error}"), err=True)
    _require_rows(survey)
    return survey


def _require_rows(survey: Survey) -> None:
    if survey.bad == survey.rows:
        raise Stop(f"none of {survey.rows} rows can be sent" if survey.rows else "there is no photo in it")


async def looked_through(errand: Errand) -> Survey:
    """The rows with their photos. Raises `Stop` where one is bad."""
    survey = await _look(errand, None)
    _require_rows(survey)
    if survey.bad:
        raise Stop(f"{survey.bad} of {survey.rows} rows cannot be sent, so nothing was")
    return survey


async def _look(errand: Errand, journal: SQLiteStore | None) -> Survey:
    survey = Survey()
    for row in errand.rows():
        seen, notes = await looked_at(row, errand.connection.dialect)
        paid = False
        if seen.request is not None and journal is not None:
            job = await known(seen.request, journal, errand.connection.dialect)
            paid = job is not None and job.state in PAID
        survey.count(seen, paid=paid)
        for text in (seen.error, *notes):
            if text is None:
                continue
            if errand.as_json:
                show({"line": row.line, "source": row.label, "bad": seen.request is None, "note": text})
            else:
                click.echo(clean(f"{row.label}: {text}"), err=True)
    return survey


async def rehearse(errand: Errand) -> int:
    """Tell what a run would cost; its exit code."""
    if await asyncio.to_thread(Path(errand.journal).exists):
        async with SQLiteStore(errand.journal) as journal:
            survey = await _look(errand, journal)
    else:
        survey = await _look(errand, None)
    check_output(errand, survey)
    if errand.as_json:
        show(survey.facts())
    else:
        click.echo(survey.words())
    return FAILED if survey.bad or not survey.rows else 0
