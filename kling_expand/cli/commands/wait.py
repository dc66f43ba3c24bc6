"""`kling-expand wait` and `kling-expand download`: save the results of tasks, by any of their ids."""

import asyncio

import click

from kling_expand.cli.batch.plan import Plan
from kling_expand.cli.batch.progress import Job, Progress
from kling_expand.cli.batch.runner import Jobs, run_batch
from kling_expand.cli.options import Connection, DeadlineOption, OutputOptions, options
from kling_expand.cli.terminal import leave, plural
from kling_expand.client import KlingClient


@click.command(short_help="Wait for tasks by their ids and save the results.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options(output=OutputOptions, limit=DeadlineOption, connection=Connection)
def wait(
    ids: tuple[str, ...], *, output: OutputOptions, limit: DeadlineOption, connection: Connection
) -> None:
    """Wait for tasks, by task_id or external_task_id, and save their results.

    Results are named after the task, and replace files of the same name. A task
    that has ended already is only saved.
    """
    _save(ids, output, connection, deadline=limit.deadline)


@click.command(short_help="Save the results of tasks that have ended.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options(output=OutputOptions, connection=Connection)
def download(ids: tuple[str, ...], *, output: OutputOptions, connection: Connection) -> None:
    """Save the results of tasks, by task_id or external_task_id, without waiting.

    The service keeps results for 30 days. A task that has not ended counts as
    failed here; `kling-expand wait` waits for it.
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
    chosen = tuple(dict.fromkeys(ids))
    plan = Plan(
        title=f"{plural(len(chosen), 'task')} to {output.target}",
        connection=connection,
        output=output,
        deadline=deadline,
        detailed=True,
        max_open=len(chosen),
    )

    async def jobs(client: KlingClient) -> Jobs:
        for any_id in chosen:
            yield Job(any_id, (), client.attach(any_id))

    leave(asyncio.run(run_batch(plan, Progress(len(chosen)), jobs, only_ended=only_ended)))
