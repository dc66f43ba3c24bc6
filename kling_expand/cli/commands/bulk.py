"""`kling-expand bulk`: expand the photos of a manifest, with a journal that lets the command run again."""

import asyncio

import click
from attrs import frozen

from kling_expand.cli.batch.manifest import Defaults, manifest
from kling_expand.cli.batch.plan import (
    BulkPlan,
    Survey,
    check_output,
    check_rows,
    dry_run,
    read_rows,
    read_usage,
)
from kling_expand.cli.batch.progress import Progress
from kling_expand.cli.batch.runner import run_batch, submit_rows
from kling_expand.cli.options import (
    DeadlineOption,
    EmulatedConnection,
    GeometryOptions,
    LimitOptions,
    OptionGroup,
    OutputOptions,
    RequestOptions,
    option,
    options,
)
from kling_expand.cli.terminal import leave
from kling_expand.store.sqlite import SQLiteStore


@frozen
class BulkOptions(OptionGroup):
    """The options of `bulk` alone."""

    journal: str | None = option(
        "--journal",
        type=click.Path(),
        metavar="FILE",
        help="File that records the run; the default is MANIFEST.journal, or bulk.journal for photos.",
    )
    dry_run: bool = option(
        "--dry-run",
        default=False,
        is_flag=True,
        help="Check every photo, print the cost and the bad rows, and send nothing.",
    )
    strict: bool = option(
        "--strict",
        default=False,
        is_flag=True,
        help="Check every photo first, and send nothing if a row is bad.",
    )
    max_failures: int | None = option(
        "--max-failures", type=click.IntRange(min=1), metavar="N", help="Send nothing more after N failures."
    )


COLUMNS = """\b
Columns of a manifest:
  image     the photo, a path or a URL (required)
  aspect area anchor size up down left right pad direction ratio
            how far to expand; a row that says so replaces the options
  prompt n watermark callback_url
            as the options
  name      what the results are called instead of the photo's name
  key       makes jobs distinct that ask for the same; without it they are one
  external_task_id
            your own id of the task
  _...      ignored
"""


@click.command(short_help="Expand all photos of a table or directory.", epilog=COLUMNS)
@click.argument("words", metavar="MANIFEST...", nargs=-1, required=True, type=click.Path())
@options(
    geometry=GeometryOptions,
    request=RequestOptions,
    chosen=BulkOptions,
    limits=LimitOptions,
    output=OutputOptions,
    limit=DeadlineOption,
    connection=EmulatedConnection,
)
def bulk(
    words: tuple[str, ...],
    *,
    geometry: GeometryOptions,
    request: RequestOptions,
    chosen: BulkOptions,
    limits: LimitOptions,
    output: OutputOptions,
    limit: DeadlineOption,
    connection: EmulatedConnection,
) -> None:
    """Expand every photo of MANIFEST; run it again to continue where it stopped.

    \b
      kling-expand bulk photos.csv --dry-run
      kling-expand bulk photos.csv --aspect 16:9 --budget 800
      kling-expand bulk "photos/**/*.jpg" --aspect 16:9 -o wide/

    MANIFEST is a table (.csv, .tsv), JSON lines (.jsonl), a directory, a pattern,
    or photos one by one. Paths in a file are relative to that file. Its columns
    are listed below.

    The same photo with the same parameters is paid for once, however often and from
    wherever you run this with one journal: finished jobs are skipped, running jobs
    are waited for, failed jobs are retried. Results never replace a file.

    Exit code 0 if every row has its pictures, 1 if not, 2 if nothing was started.
    """
    listed = manifest(words)
    suffix = ".local.journal" if connection.emulator else ".journal"
    plan = BulkPlan(
        title=f"{listed.name or 'photos'} to {output.target}",
        manifest=listed,
        defaults=Defaults.of(geometry, request),
        journal=chosen.journal or f"{listed.journal.removesuffix('.journal')}{suffix}",
        connection=connection,
        output=output,
        limits=limits,
        deadline=limit.deadline,
        max_failures=chosen.max_failures,
    )
    leave(_run(plan, chosen))


def _run(plan: BulkPlan, chosen: BulkOptions) -> int:
    if chosen.dry_run:
        return asyncio.run(dry_run(plan))
    survey = asyncio.run(check_rows(plan)) if chosen.strict else read_rows(plan)
    check_output(plan, survey)
    plan.connection.require_credentials()
    return asyncio.run(_bulk(plan, survey))


async def _bulk(plan: BulkPlan, survey: Survey) -> int:
    async with SQLiteStore(plan.journal) as journal:
        usage = await read_usage(journal)
        progress = Progress(survey.rows, expected=usage.saved, units_before=usage.due)
        return await run_batch(plan, progress, lambda client: submit_rows(plan, survey, client), journal)
