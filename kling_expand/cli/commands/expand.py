"""`kling-expand expand`: expand a few photos and save the results."""

import click

from kling_expand.cli.commands.bulk import BatchOptions, run_plan
from kling_expand.cli.options import (
    DeadlineOption,
    EmulatedConnection,
    GroupedCommand,
    LimitOptions,
    OutputOptions,
    PassesOption,
    RequestOptions,
    ShapeOptions,
    options,
)
from kling_expand.cli.terminal import plural


@click.command(cls=GroupedCommand)
@click.argument("photos", metavar="PHOTO...", nargs=-1, required=True, type=click.Path())
@options(
    shapes=ShapeOptions,
    passes_option=PassesOption,
    request=RequestOptions,
    batch=BatchOptions,
    limits=LimitOptions,
    output=OutputOptions,
    deadline_option=DeadlineOption,
    connection=EmulatedConnection,
)
def expand(
    photos: tuple[str, ...],
    *,
    shapes: ShapeOptions,
    passes_option: PassesOption,
    request: RequestOptions,
    batch: BatchOptions,
    limits: LimitOptions,
    output: OutputOptions,
    deadline_option: DeadlineOption,
    connection: EmulatedConnection,
) -> None:
    """Expand each PHOTO and save the results.

    \b
      kling-expand expand dog.jpg --aspect 16:9
      kling-expand expand a.jpg b.jpg --right 0.5 --prompt "a park" -n 2
      kling-expand expand dog.jpg --size 1920x1080 --anchor bottom -o wide/
      kling-expand expand dog.jpg --for instagram --aspect 16:9

    PHOTO is a file, a URL, a directory, or a pattern such as 'photos/*.jpg'. The
    service accepts PNG and JPEG files of up to 10 MB; --fit converts others. It
    bills 8 units for each picture.

    Every photo is checked before the first one is sent, and nothing is sent if one
    is bad. `kling-expand bulk` skips bad photos and sends the others.

    The paths of the results are printed, one per line. No file is replaced, unless
    you give --overwrite. Running the same command again pays for nothing twice,
    unless you ask for new pictures with --fresh.
    """
    shapes.require()
    run_plan(
        batch.plan(
            photos,
            output,
            shapes,
            request,
            passes_option=passes_option,
            title=f"{plural(len(photos), 'photo')} to {output.target}",
            connection=connection,
            limits=limits,
            deadline=deadline_option.deadline,
            detailed=True,
            strict=True,
        )
    )
