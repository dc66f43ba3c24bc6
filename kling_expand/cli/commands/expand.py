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
    several=PassesOption,
    request=RequestOptions,
    batch=BatchOptions,
    limits=LimitOptions,
    output=OutputOptions,
    limit=DeadlineOption,
    connection=EmulatedConnection,
)
def expand(
    photos: tuple[str, ...],
    *,
    shapes: ShapeOptions,
    several: PassesOption,
    request: RequestOptions,
    batch: BatchOptions,
    limits: LimitOptions,
    output: OutputOptions,
    limit: DeadlineOption,
    connection: EmulatedConnection,
) -> None:
    """Expand each PHOTO (a file or a URL) and save the results.

    \b
      kling-expand expand dog.jpg --aspect 16:9
      kling-expand expand a.jpg b.jpg --right 0.5 --prompt "a park" -n 2
      kling-expand expand dog.jpg --size 1920x1080 --anchor bottom -o wide/
      kling-expand expand dog.jpg --for instagram --aspect 16:9

    Every photo is checked before the first one is sent, and nothing is sent if one
    is bad; `kling-expand bulk` skips bad photos and sends the others. The paths of
    the results are printed, one per line. No file is replaced. Running the same
    command again never pays twice; --fresh makes new pictures. The service takes PNG
    and JPEG up to 10 MB, and bills 8 units for each picture.
    """
    shapes.require()
    run_plan(
        batch.plan(
            photos,
            output,
            shapes,
            request,
            several=several,
            title=f"{plural(len(photos), 'photo')} to {output.target}",
            connection=connection,
            limits=limits,
            deadline=limit.deadline,
            detailed=True,
            strict=True,
        )
    )
