"""How are tasks of an earlier command brought home? By any of their ids, from any machine."""

import asyncio
from contextlib import suppress
from typing import Any

import click

from kling_expand.cli import options
from kling_expand.cli.batch.job import Job, see_through
from kling_expand.cli.batch.screen import Screen
from kling_expand.cli.connection import Connection, connection_options
from kling_expand.cli.exit_codes import FAILED, leave, run
from kling_expand.errors import KlingError
from kling_expand.jobs.future import TaskFuture


@click.command(short_help="Wait for tasks by their ids and save the results.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options.output
@options.deadline
@connection_options
@options.as_json
def wait(ids: tuple[str, ...], connection: Connection, **given: Any) -> None:
    """Wait for tasks, by task_id or external_task_id, and save their results.

    Results are named after the task. A task that has ended already is only saved.
    """
    _bring(ids, connection, **given)


@click.command(short_help="Save the results of tasks that have ended.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options.output
@connection_options
@options.as_json
def download(ids: tuple[str, ...], connection: Connection, **given: Any) -> None:
    """Save the results of tasks, by task_id or external_task_id, without waiting.

    The service keeps results for 30 days. A task that has not ended counts as a
    failure here; `kling-expand wait` waits for it.
    """
    _bring(ids, connection, ended=True, **given)


def _bring(ids: tuple[str, ...], connection: Connection, **given: Any) -> None:
    jobs = run(_jobs(tuple(dict.fromkeys(ids)), connection, **given))
    if any(job.error for job in jobs):
        leave(FAILED)


async def _jobs(
    ids: tuple[str, ...],
    connection: Connection,
    *,
    output: str,
    as_json: bool,
    deadline: float | None = None,
    ended: bool = False,
) -> list[Job]:
    async with connection.client(deadline=deadline) as kling:
        with Screen(len(ids), as_json=as_json) as screen:
            jobs = [Job(any_id, kling.attach(any_id), output) for any_id in ids]
            if ended:
                await asyncio.gather(*(_only_ended(job.future) for job in jobs))
            await see_through(kling, jobs, screen, connection.resume(output))
    return jobs


async def _only_ended(future: TaskFuture) -> None:
    """Give up on a task that is still at work."""
    with suppress(KlingError):  # its own job will tell
        task = await future.accepted()
        future.record.fail(KlingError(f"it has not ended yet ({task.task_status})"))
