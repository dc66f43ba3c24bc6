"""The dry run of a batch, which checks the photos and prints the cost, but sends nothing."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import click

from kling_expand.api import codec
from kling_expand.cli.terminal import FAILED, show
from kling_expand.passes import Pass, pass_of
from kling_expand.store.base import JobStore

from .manifest import Row
from .plan import PAID, BulkPlan, Checked, check_output, check_rows, copied_journal, find_rows

Paid = dict[tuple[str | None, str, int], float]


async def dry_run(plan: BulkPlan) -> int:
    """Print what a run would cost, and return the exit code."""
    listed = await find_rows(plan)
    paid: Callable[[Row, Checked], int] | None = None
    async with AsyncExitStack() as stack:
        if await asyncio.to_thread(os.path.isfile, plan.journal) and not plan.fresh:
            journal = await stack.enter_async_context(copied_journal(plan.journal))
            paid = partial(_paid_units, await _paid_requests(journal))
    survey = await check_rows(plan, listed, paid)
    check_output(plan, survey)
    if plan.output.as_json:
        show(survey.facts())
    else:
        click.echo(survey.text(emulated=plan.connection.emulator))
    return FAILED if survey.bad or not survey.rows else 0


async def _paid_requests(journal: JobStore) -> Paid:
    """Return the creation time of each paid job of a journal, by photo, parameters and pass."""
    found: Paid = {}
    async for job in journal.jobs(*PAID):
        step = pass_of(job)
        if step is None:
            found[job.source, job.params.partition("\n")[0], 1] = job.created_at
        else:
            found[str(step.request.image), _packed(step), step.number] = job.created_at
    return found


def _packed(step: Pass) -> str:
    return codec.pack_request(step.pass_request(), step.steps[step.number - 1])


def _paid_units(paid: Paid, row: Row, checked: Checked) -> int:
    """Return the units already paid for a request. Only tasks newer than its photo's last change count."""
    if row.request is None:
        return 0
    image = str(row.request.image)
    place = image if "://" in image else os.path.abspath(image)  # noqa: PTH100 - links must not be resolved
    changed_at = 0.0 if "://" in image else os.stat(image).st_mtime  # noqa: PTH116 - the same
    if not checked.steps:
        packed = codec.pack_request(row.request, checked.expansion)
        return row.request.units if paid.get((place, packed, 1), -1) >= changed_at else 0
    steps = [Pass(number, checked.steps, row.request) for number in range(1, len(checked.steps) + 1)]
    return sum(
        step.pass_request().units
        for step in steps
        if paid.get((place, _packed(step), step.number), -1) >= changed_at
    )
