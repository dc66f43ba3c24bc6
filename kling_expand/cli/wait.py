"""How are tasks of an earlier command waited for? By any of their ids, from any machine."""

from typing import Any

import click

from . import options
from .connection import Connection, connection_options
from .expand import resume
from .failures import FAILED, leave, run
from .job import Job, see_through
from .screen import Screen


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
    jobs = run(_wait(tuple(dict.fromkeys(ids)), connection, **given))
    if any(job.error for job in jobs):
        leave(FAILED)


async def _wait(
    ids: tuple[str, ...], connection: Connection, *, output: str, deadline: float | None, as_json: bool
) -> list[Job]:
    async with connection.client(deadline=deadline) as kling:
        with Screen(len(ids), as_json=as_json) as screen:
            jobs = [Job(any_id, kling.attach(any_id), output) for any_id in ids]
            await see_through(kling, jobs, screen, resume(connection, output))
    return jobs
