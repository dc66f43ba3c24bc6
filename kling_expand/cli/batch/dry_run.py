"""The dry run of a batch: what it would cost, with nothing sent and no photo read whole."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import click

from kling_expand.api import codec
from kling_expand.cli.terminal import FAILED, show
from kling_expand.geometry import Expansion
from kling_expand.store.base import JobStore
from kling_expand.store.sqlite import SQLiteStore

from .manifest import Row
from .plan import PAID, BulkPlan, check_output, check_rows, find_rows

Paid = dict[tuple[str | None, str], float]


async def dry_run(plan: BulkPlan) -> int:
    """Print what a run would cost, and return the exit code."""
    listed = await find_rows(plan)
    paid: Callable[[Row, Expansion], bool] | None = None
    async with AsyncExitStack() as stack:
        if await asyncio.to_thread(os.path.isfile, plan.journal) and not plan.fresh:
            journal = await stack.enter_async_context(SQLiteStore.snapshot(plan.journal))
            paid = partial(_is_paid, await _paid_requests(journal))
    survey = await check_rows(plan, listed, paid)
    check_output(plan, survey)
    if plan.output.as_json:
        show(survey.facts())
    else:
        click.echo(survey.text(emulated=plan.connection.emulator))
    return FAILED if survey.bad or not survey.rows else 0


async def _paid_requests(journal: JobStore) -> Paid:
    """Return the paid jobs of a journal by their photo and parameters, and when each was submitted."""
    return {(job.source, job.params): job.created_at async for job in journal.jobs(*PAID)}


def _is_paid(paid: Paid, row: Row, expansion: Expansion) -> bool:
    """Return whether the journal has a task for this request, made after the last change of the photo."""
    if row.request is None:
        return False
    image = str(row.request.image)
    place = image if "://" in image else os.path.abspath(image)  # noqa: PTH100 - links stay as they were given
    submitted_at = paid.get((place, codec.pack_request(row.request, expansion)))
    if submitted_at is None:
        return False
    return "://" in image or os.stat(image).st_mtime <= submitted_at  # noqa: PTH116 - the same
