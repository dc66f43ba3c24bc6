"""`kling-expand resume`: follow the open jobs of a journal, whichever program wrote it."""

import asyncio
from collections.abc import AsyncIterator

import click

from kling_expand.api import codec
from kling_expand.cli.batch.plan import Plan, open_journal, read_usage
from kling_expand.cli.batch.progress import Progress
from kling_expand.cli.batch.runner import Jobs, follow, known_job, run_batch
from kling_expand.cli.options import (
    Connection,
    DeadlineOption,
    LimitOptions,
    OutputOptions,
    find_journal,
    options,
)
from kling_expand.cli.terminal import NothingDone, leave
from kling_expand.client import KlingClient
from kling_expand.jobs.runner import may_have_passed
from kling_expand.store.base import UNFINISHED, JobRecord, JobState, JobStore

_RETRY = "failed jobs are only retried by the program that submitted them, such as `kling-expand bulk`"


@click.command()
@click.argument("journal", metavar="JOURNAL", type=click.Path())
@options(limits=LimitOptions, output=OutputOptions, limit=DeadlineOption, connection=Connection)
def resume(
    journal: str,
    *,
    limits: LimitOptions,
    output: OutputOptions,
    limit: DeadlineOption,
    connection: Connection,
) -> None:
    """Wait for every open job of JOURNAL, a file or its directory, and save its results.

    A job that was recorded and not sent is sent now, if its photo can still be
    read, and so are the passes that are left of a picture. Results are named as the
    command that began them would have named them, and never replace a file. Rows of
    a manifest that were never started are in no journal: run `kling-expand bulk`
    again for those.

    Exit code 0 if every job has its pictures, 1 if not.
    """
    journal = find_journal(journal)
    connection.require_credentials()
    plan = Plan(
        title=f"{journal} to {output.target}",
        journal=journal,
        own_journal=True,
        connection=connection,
        output=output,
        limits=limits,
        deadline=limit.deadline,
    )
    leave(asyncio.run(_resume(plan)))


async def _resume(plan: Plan) -> int:
    async with open_journal(plan) as journal:
        if journal is None:
            raise NothingDone("resume needs a journal")
        records = [record async for record in _unfinished(journal)]

        async def jobs(client: KlingClient) -> Jobs:
            for record in records:
                job = known_job(record)
                follow(job, client, record)
                yield job

        usage = await read_usage(journal)
        progress = Progress(len(records), units_before=usage.due)
        return await run_batch(plan, progress, jobs, journal, retry_hint=_RETRY)


async def _unfinished(journal: JobStore) -> AsyncIterator[JobRecord]:
    """Iterate over the jobs that can go on, of several passes of one picture only over the first."""
    reached: dict[str, str] = {}  # what is asked for by the jobs that are followed or come after them
    async for record in journal.jobs(*UNFINISHED, JobState.REJECTED):
        if record.state is JobState.REJECTED and not may_have_passed(record):
            continue
        if "pass" in record.note:
            from kling_expand.passes import pass_of  # imported here, as few runs have passes

            step = pass_of(record)
            if step is not None:
                wanted = codec.pack_request(step.request, step.steps[0])
                reached[record.external_task_id] = wanted
                if reached.get(step.before or "") == wanted:
                    continue
        yield record
