"""`kling-expand wait` and `kling-expand download`: save the results of tasks, by either of their ids."""

import asyncio
import os

import click

from kling_expand.cli.options import Connection, DeadlineOption, OutputOptions, options
from kling_expand.cli.terminal import leave, plural


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options(output=OutputOptions, deadline_option=DeadlineOption, connection=Connection)
def wait(
    ids: tuple[str, ...], *, output: OutputOptions, deadline_option: DeadlineOption, connection: Connection
) -> None:
    """Wait for tasks, by task_id or external_task_id, and save their results.

    Results keep their original names if the journal in the output directory has the task. Otherwise they are
    named after the task ID. No file is replaced. If a task has already ended, its results are saved at once.
    If a task is one pass of several, only its own result is saved; `kling-expand resume` continues with the
    others.
    """
    _save(ids, output, connection, deadline=deadline_option.deadline)


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options(output=OutputOptions, connection=Connection)
def download(ids: tuple[str, ...], *, output: OutputOptions, connection: Connection) -> None:
    """Save the results of tasks, by task_id or external_task_id, without waiting.

    The service keeps results for 30 days. A task that is still running is reported as a failure; use
    `kling-expand wait` for it.
    """
    _save(ids, output, connection, only_ended=True)


def _save(
    ids: tuple[str, ...],
    output: OutputOptions,
    connection: Connection,
    *,
    deadline: float | None = None,
    only_ended: bool = False,
) -> None:
    from kling_expand.cli.batch.existing_jobs import save_tasks  # imported here, because it loads aiohttp
    from kling_expand.cli.batch.plan import Plan, default_journal

    chosen = tuple(dict.fromkeys(ids))
    journal = default_journal(output.target, connection)
    plan = Plan(
        title=f"{plural(len(chosen), 'task')} to {output.target}",
        connection=connection,
        output=output,
        journal=journal if os.path.isfile(journal) else "",  # noqa: PTH113 - pathlib normalizes names
        deadline=deadline,
        detailed=True,
        max_open=len(chosen),
    )
    connection.require_credentials()
    leave(asyncio.run(save_tasks(plan, chosen, only_ended=only_ended)))
