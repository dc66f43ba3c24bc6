"""`kling-expand bulk`: expand the photos of directories, a manifest or a list, and continue earlier runs."""

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Self

import click
from attrs import frozen

from kling_expand.cli.options import (
    DeadlineOption,
    EmulatedConnection,
    GroupedCommand,
    LimitOptions,
    OptionGroup,
    OutputOptions,
    PassesOption,
    RequestOptions,
    ShapeOptions,
    option,
    options,
)
from kling_expand.cli.terminal import leave
from kling_expand.models import request_fields

if TYPE_CHECKING:  # imported where they are used, so that `--help` does not load aiohttp
    from kling_expand.cli.batch.plan import BulkPlan


@frozen
class BatchOptions(OptionGroup):
    """The options that `expand` and `bulk` share."""

    heading: ClassVar[str] = "Run"

    fit: bool = option(
        "--fit",
        default=False,
        is_flag=True,
        help="Convert photos if necessary, to an upright PNG or JPEG of at most 10 MB. Required for HEIC "
        "(iPhone photos), WebP, AVIF, TIFF, BMP and GIF.",
    )
    exclude: tuple[str, ...] = option(
        "--exclude",
        default=(),
        multiple=True,
        metavar="PATTERN",
        help="Leave out files and directories whose name or path matches PATTERN, such as 'raw' or "
        "'*-small.jpg'. May be repeated.",
    )
    no_recursive: bool = option(
        "--no-recursive", default=False, is_flag=True, help="Do not search subdirectories."
    )
    dry_run: bool = option(
        "--dry-run",
        default=False,
        is_flag=True,
        help="Check every photo and print the cost and the bad photos, but send nothing.",
    )
    fresh: bool = option(
        "--fresh",
        default=False,
        is_flag=True,
        help="Make new pictures of photos that are already done, and pay for them again.",
    )
    overwrite: bool = option(
        "--overwrite/--skip-existing",
        default=False,
        help="Replace existing files, or keep them (the default). If they are kept, a new picture whose "
        "name is taken gets the task ID in its name.",
    )
    journal: str | None = option(
        "--journal",
        type=click.Path(),
        metavar="FILE",
        help="File that records the jobs; the default is .kling-expand.db in the output directory.",
    )
    no_journal: bool = option(
        "--no-journal",
        default=False,
        is_flag=True,
        help="Record nothing. If you run the command again, it makes and pays for every picture again.",
    )

    def plan(
        self,
        sources: tuple[str, ...],
        output: OutputOptions,
        shapes: ShapeOptions,
        request: RequestOptions,
        *,
        passes_option: PassesOption,
        **options: Any,
    ) -> "BulkPlan":
        """Return the plan of a batch with these options."""
        from kling_expand.cli.batch.manifest import Defaults, Selection
        from kling_expand.cli.batch.plan import BulkPlan, default_journal, output_folder

        _require_shape(sources, shapes)
        if self.journal and self.no_journal:
            raise click.UsageError("--journal and --no-journal cannot be combined")
        selection = Selection(
            recursive=not self.no_recursive,
            exclude=self.exclude,
            fit=self.fit,
            output=output_folder(output.target),
            named=options.get("detailed", False),
        )
        journal = self.journal or default_journal(output.target, options["connection"])
        return BulkPlan(
            sources=sources,
            defaults=Defaults.of(shapes, request, passes_option.passes, output.target),
            selection=selection,
            output=output,
            journal="" if self.no_journal else journal,
            own_journal=self.journal is not None,
            overwrite=self.overwrite,
            fresh=self.fresh,
            dry_run=self.dry_run,
            **options,
        )


@frozen
class BulkOptions(OptionGroup):
    """The options that only `bulk` has."""

    heading: ClassVar[str] = "Run"

    strict: bool = option(
        "--strict",
        default=False,
        is_flag=True,
        help="Send nothing if a photo or row is bad.",
    )
    max_failures: int | None = option(
        "--max-failures", type=click.IntRange(min=1), metavar="N", help="Send nothing more after N failures."
    )
    failures: str = option(
        "--failures",
        default="",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="List the photos or rows whose pictures were not saved, with the reasons, in a .csv, .tsv or "
        ".jsonl file. To retry them, pass that file to `bulk` with the same options.",
    )

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Return the group. Raise click's usage error if `bulk` cannot read the suffix of --failures."""
        from kling_expand.cli.batch.tables import LINES, TABLES  # imported here, because few commands need it

        if values["failures"] and not values["failures"].lower().endswith(TABLES + LINES):
            suffixes = " or ".join(TABLES + LINES)
            raise click.UsageError(f"--failures must end in {suffixes}, got {values['failures']!r}")
        return cls(**values)


def run_plan(plan: "BulkPlan") -> None:
    """Run a batch, or its dry run, and exit with its code."""
    if plan.dry_run:
        from kling_expand.cli.batch.dry_run import dry_run

        leave(asyncio.run(dry_run(plan)))
    from kling_expand.cli.batch.runner import run_rows

    leave(asyncio.run(run_rows(plan)))


def _require_shape(sources: tuple[str, ...], shapes: ShapeOptions) -> None:
    """Raise click's usage error if no shape is given, unless rows of a manifest may have their own."""
    from kling_expand.cli.batch.tables import LINES, STDIN, TABLES  # imported here, because few need it

    if not any(word == STDIN or word.lower().endswith(TABLES + LINES) for word in sources):
        shapes.require()


def _print_example(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from kling_expand.cli.batch.tables import EXAMPLE

        click.echo(EXAMPLE, nl=False)
        ctx.exit()


_EXPLAINED = {"key", "external_task_id"}
_LIKE_OPTIONS = [each.column for each in request_fields() if each.column and each.column not in _EXPLAINED]
COLUMNS = f"""\b
Columns of a manifest:
  image     the photo, as a path or a URL (required; the column may also
            be named file, path or photo)
  aspect area anchor size up down left right pad direction ratio
            the shape; a row's values override the options
  passes    the same as the option
  {" ".join(_LIKE_OPTIONS)}
            the same as the options
  name      the name of the results, instead of the photo's name
  key       distinguishes identical rows; without it, they are one job
  external_task_id
            your own id for the task
  _...      columns that begin with _ are ignored
"""


@click.command(cls=GroupedCommand, epilog=COLUMNS)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path())
@options(
    shapes=ShapeOptions,
    passes_option=PassesOption,
    request=RequestOptions,
    batch=BatchOptions,
    chosen=BulkOptions,
    limits=LimitOptions,
    output=OutputOptions,
    deadline_option=DeadlineOption,
    connection=EmulatedConnection,
)
@click.option(
    "--example-manifest",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_example,
    help="Print an example of a manifest, and exit.",
)
def bulk(
    sources: tuple[str, ...],
    *,
    shapes: ShapeOptions,
    passes_option: PassesOption,
    request: RequestOptions,
    batch: BatchOptions,
    chosen: BulkOptions,
    limits: LimitOptions,
    output: OutputOptions,
    deadline_option: DeadlineOption,
    connection: EmulatedConnection,
) -> None:
    """Expand many photos, from directories, a list or a table, and skip bad ones.

    \b
      kling-expand bulk photos/ --aspect 16:9 --fit --dry-run
      kling-expand bulk photos.csv --aspect 16:9 --budget 800
      find . -name '*.jpg' | kling-expand bulk - --aspect 16:9 -o wide/

    SOURCE is a directory, a photo, a URL, or a pattern such as 'photos/*.jpg'. You can name several of these,
    or one manifest: a table (.csv, .tsv) or a JSON Lines file (.jsonl) with a photo in each row. With -, a
    list of photos or JSON Lines is read from stdin. Paths in a manifest are relative to its directory.
    Results keep the directory structure.

    Bad photos are reported, and the others are sent. `kling-expand expand` sends nothing if one is bad.

    If the command stops for any reason, run it again to continue. With the same output directory, nothing is
    paid for twice: finished jobs are skipped, running jobs are waited for, and failed jobs are retried. No
    file is replaced, unless you give --overwrite. Results of earlier runs are never used as photos.

    Exit code 0 if every photo has its pictures, 1 if not, 2 if nothing was started,
    3 if no further job could succeed, for example because the credentials are wrong.
    """
    run_plan(
        batch.plan(
            sources,
            output,
            shapes,
            request,
            passes_option=passes_option,
            title=f"{sources[0] if len(sources) == 1 else 'photos'} to {output.target}",
            connection=connection,
            limits=limits,
            deadline=deadline_option.deadline,
            max_failures=chosen.max_failures,
            strict=chosen.strict,
            failures=chosen.failures,
        )
    )
