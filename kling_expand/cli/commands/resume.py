"""`kling-expand resume`: follow the open jobs of a journal, whichever program wrote it."""

import asyncio
import hashlib

import click

from kling_expand.cli.batch.manifest import stem
from kling_expand.cli.batch.plan import Plan, open_journal, read_usage
from kling_expand.cli.batch.progress import Job, Progress
from kling_expand.cli.batch.runner import Jobs, run_batch
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
from kling_expand.store.base import UNFINISHED

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
    read. Rows of a manifest that were never started are in no journal: run
    `kling-expand bulk` again for those. Results never replace a file.

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

        async def jobs(client: KlingClient) -> Jobs:
            async for future in client.resume():
                record = await journal.get(future.external_task_id or future.any_id)
                external_id = record.external_task_id if record else future.any_id
                source = (record and record.source) or external_id
                name, tag = stem(source), hashlib.sha256(external_id.encode()).hexdigest()[:8]
                yield Job(source, (name, f"{name}-{tag}"), future)

        usage = await read_usage(journal)
        progress = Progress(sum(usage.states[state] for state in UNFINISHED), units_before=usage.due)
        return await run_batch(plan, progress, jobs, journal, retry_hint=_RETRY)
