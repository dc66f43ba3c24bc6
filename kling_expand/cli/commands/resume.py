"""`kling-expand resume`: follow the open jobs of a journal, regardless of the program that wrote it."""

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
from kling_expand.cli.terminal import NothingDone, leave


@click.command()
@click.argument("journal", metavar="JOURNAL", type=click.Path())
@options(limits=LimitOptions, output=OutputOptions, deadline_option=DeadlineOption, connection=Connection)
def resume(
    journal: str,
    *,
    limits: LimitOptions,
    output: OutputOptions,
    deadline_option: DeadlineOption,
    connection: Connection,
) -> None:
    """Wait for the unfinished jobs of a run and save their results.

    JOURNAL is the output directory of the run, or its journal file. Jobs that were recorded but not
    sent are sent now, if their photos can still be read. Remaining passes are also sent. Results keep their
    original names and never replace a file.

    The journal has no record of photos that the run never reached. For those, run `kling-expand bulk` again.
    To continue a run that used --emulator, repeat the command that started it instead.

    Exit code 0 if every job has its pictures, 1 if not, 2 if nothing was started,
    3 if no further job could succeed, for example because the credentials are wrong.
    """
    from kling_expand.cli.batch.existing_jobs import resume_journal  # imported here, because it loads aiohttp
    from kling_expand.cli.batch.plan import Plan

    journal = find_journal(journal)
    _refuse_emulated(journal)
    connection.require_credentials()
    plan = Plan(
        title=f"{journal} to {output.target}",
        journal=journal,
        own_journal=True,
        connection=connection,
        output=output,
        limits=limits,
        deadline=deadline_option.deadline,
    )
    leave(asyncio.run(resume_journal(plan)))


def _refuse_emulated(journal: str) -> None:
    """Raise `NothingDone` for a journal of --emulator. Only its own command starts that emulator again."""
    from kling_expand.cli.batch.plan import EMULATED
    from kling_expand.store.sqlite_file import peek_meta

    if peek_meta(journal, "account") == EMULATED:
        raise NothingDone(f"{journal}: this run used the local emulator; repeat the command that started it")
