"""`kling-expand wait` and `kling-expand download`: save the results of tasks, by any of their ids."""

import asyncio
import os

import click
from attrs import evolve

from kling_expand.cli.batch.plan import Plan, default_journal, open_journal
from kling_expand.cli.batch.progress import Job, Progress
from kling_expand.cli.batch.runner import Jobs, known_job, run_batch
from kling_expand.cli.options import Connection, DeadlineOption, OutputOptions, options
from kling_expand.cli.terminal import leave, plural
from kling_expand.client import KlingClient
from kling_expand.store.base import JobRecord, JobStore


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options(output=OutputOptions, limit=DeadlineOption, connection=Connection)
def wait(
    ids: tuple[str, ...], *, output: OutputOptions, limit: DeadlineOption, connection: Connection
) -> None:
    """Wait for tasks, by task_id or external_task_id, and save their results.

    Results are named as the command that began the task would have named them where
    the journal in the output directory knows it, else after the task. No file is
    replaced. A task that has ended already is only saved. Of a picture in several
    passes only this pass is saved; `kling-expand resume` makes the others.
    """
    _save(ids, output, connection, deadline=limit.deadline)


@click.command()
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
    journal = default_journal(output.target, connection)
    plan = Plan(
        title=f"{plural(len(chosen), 'task')} to {output.target}",
        connection=connection,
        output=output,
        journal=journal if os.path.isfile(journal) else "",  # noqa: PTH113 - names stay as they are written
        deadline=deadline,
        detailed=True,
        max_open=len(chosen),
    )
    connection.require_credentials()
    leave(asyncio.run(_run(plan, chosen, only_ended=only_ended)))


async def _run(plan: Plan, ids: tuple[str, ...], *, only_ended: bool) -> int:
    async with open_journal(plan) as journal:

        async def jobs(client: KlingClient) -> Jobs:
            known = await _known(journal, ids) if journal else {}
            for any_id in ids:
                record = known.get(any_id)
                job = known_job(record) if record else Job(any_id)
                if record and "pass" in record.note:
                    job.names = tuple(_pass_name(record, name) for name in job.names)
                yield evolve(job, label=any_id, future=client.attach(any_id))

        return await run_batch(plan, Progress(len(ids)), jobs, journal, only_ended=only_ended)


async def _known(journal: JobStore, ids: tuple[str, ...]) -> dict[str, JobRecord]:
    """Return the jobs of the tasks that a journal knows, by the ids that were given."""
    found: dict[str, JobRecord] = {}
    async for job in journal.jobs():
        for any_id in (job.task_id, job.external_task_id):
            if any_id in ids:
                found[any_id] = job
    return found


def _pass_name(record: JobRecord, name: str) -> str:
    """Return the name of a picture that only a later pass completes."""
    from kling_expand.passes import pass_of  # imported here, as few jobs have passes

    step = pass_of(record)
    return name if step is None or step.is_last else f"{name}-pass{step.number}"
