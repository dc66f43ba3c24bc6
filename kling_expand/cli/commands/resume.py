"""`kling-expand resume`: follow the open jobs of a journal, whichever program wrote it."""

import asyncio

import click

from kling_expand.cli.options import (
    Connection,
    DeadlineOption,
    LimitOptions,
    OutputOptions,
    find_journal,
    options,
)
from kling_expand.cli.terminal import leave


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
    from kling_expand.cli.batch.existing_jobs import resume_journal  # imported here, as they load aiohttp
    from kling_expand.cli.batch.plan import Plan

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
    leave(asyncio.run(resume_journal(plan)))
