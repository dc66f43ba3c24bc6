"""Batches of existing jobs: the open jobs of a journal, and tasks named by their ids."""

from collections.abc import AsyncIterator
from functools import partial

from attrs import evolve

from kling_expand.api import codec
from kling_expand.cli.terminal import NothingDone
from kling_expand.client import KlingClient
from kling_expand.jobs.runner import is_resumable
from kling_expand.store.base import UNFINISHED, JobRecord, JobState, JobStore

from .plan import Plan, open_journal, read_usage
from .progress import Job, Progress
from .runner import Jobs, follow, known_job, run_batch

_RETRY = "failed jobs are only retried by the program that submitted them, such as `kling-expand bulk`"


async def resume_journal(plan: Plan) -> int:
    """Follow every open job of the plan's journal, save its results and return the exit code.

    Raises:
        NothingDone: if the journal cannot be used.
    """
    async with open_journal(plan) as journal:
        if journal is None:
            raise NothingDone("resume needs a journal")
        records = [record async for record in _unfinished(journal)]

        async def jobs(client: KlingClient) -> Jobs:
            for record in records:
                job = known_job(record)
                job.start = partial(follow, client, record)
                yield job

        usage = await read_usage(journal)
        progress = Progress(len(records), units_before=usage.due)
        return await run_batch(plan, progress, jobs, journal, retry_hint=_RETRY)


async def _unfinished(journal: JobStore) -> AsyncIterator[JobRecord]:
    """Yield the jobs that can continue. Of several open passes of one picture, yield only the first."""
    reached: dict[str, str] = {}  # for each pass, by its external_task_id, the request that it belongs to
    async for record in journal.jobs(*UNFINISHED, JobState.REJECTED):
        if not is_resumable(record):
            continue
        if "pass" in record.note:
            from kling_expand.passes import pass_of  # imported here, because few runs have passes

            step = pass_of(record)
            if step is not None:
                wanted = codec.pack_request(step.request, step.steps[0])
                reached[record.external_task_id] = wanted
                if reached.get(step.before or "") == wanted:
                    continue
        yield record


async def save_tasks(plan: Plan, ids: tuple[str, ...], *, only_ended: bool) -> int:
    """Save the results of tasks and return the exit code. With *only_ended*, do not wait for any task."""
    async with open_journal(plan) as journal:

        async def jobs(client: KlingClient) -> Jobs:
            for any_id in ids:
                record = None
                if journal is not None:
                    record = await journal.get(any_id) or await journal.find_task(any_id)
                job = known_job(record) if record else Job(any_id)
                if record and "pass" in record.note:
                    job.names = tuple(_pass_name(record, name) for name in job.names)
                yield evolve(job, label=any_id, future=client.attach(any_id))

        return await run_batch(plan, Progress(len(ids)), jobs, journal, only_ended=only_ended)


def _pass_name(record: JobRecord, name: str) -> str:
    """Return the name of a pass's picture. If it is not the last pass, the name ends in its number."""
    from kling_expand.passes import pass_of  # imported here, because few jobs have passes

    step = pass_of(record)
    return name if step is None or step.is_last else f"{name}-pass{step.number}"
