"""`kling-expand expand`: expand photos and save the results."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from kling_expand.cli.batch.plan import Plan, distinct_names
from kling_expand.cli.batch.progress import Job, Progress
from kling_expand.cli.batch.runner import Jobs, run_batch
from kling_expand.cli.batch.validation import Checked, check
from kling_expand.cli.options import (
    DeadlineOption,
    EmulatedConnection,
    GeometryOptions,
    OutputOptions,
    RequestOptions,
    options,
)
from kling_expand.cli.terminal import clean, leave, plural
from kling_expand.client import KlingClient
from kling_expand.models import ExpandRequest


@click.command(short_help="Expand photos and save the results.")
@click.argument("photos", metavar="PHOTO...", nargs=-1, required=True, type=click.Path())
@options(geometry=GeometryOptions, request=RequestOptions)
@click.option(
    "--fit",
    is_flag=True,
    help="Convert photos first where needed: to PNG or JPEG, upright, under 10 MB. Prints every change.",
)
@options(output=OutputOptions, limit=DeadlineOption, connection=EmulatedConnection)
def expand(
    photos: tuple[str, ...],
    *,
    geometry: GeometryOptions,
    request: RequestOptions,
    fit: bool,
    output: OutputOptions,
    limit: DeadlineOption,
    connection: EmulatedConnection,
) -> None:
    """Expand each PHOTO (a file or a URL) and save the results.

    \b
      kling-expand expand dog.jpg --aspect 16:9
      kling-expand expand a.jpg b.jpg --right 0.5 --prompt "a park" -n 2
      kling-expand expand dog.jpg --size 1920x1080 --anchor bottom -o wide/

    Every photo is checked before the first one is sent. The paths of the results
    are printed, one per line; results replace files of the same name. The service
    takes PNG and JPEG up to 10 MB, and bills 8 units for each picture it makes.
    """
    how_far = geometry.geometry()
    requests = [request.request(photo, how_far) for photo in photos]
    plan = Plan(
        title=f"{plural(len(photos), 'photo')} to {output.target}",
        connection=connection,
        output=output,
        deadline=limit.deadline,
        detailed=True,
        max_open=len(photos),
    )
    leave(asyncio.run(_expand(plan, requests, fit=fit)))


async def _expand(plan: Plan, requests: Sequence[ExpandRequest], *, fit: bool) -> int:
    labels = [str(request.image) for request in requests]
    names = distinct_names(labels, plan.output.target, requests[0].n)
    with _fit_folder(fit=fit) as folder:
        checked = [
            await check(request, plan.connection.dialect, folder and _subfolder(folder, index))
            for index, request in enumerate(requests)
        ]
        _print_notes(labels, checked)

        async def jobs(client: KlingClient) -> Jobs:
            for label, one, name in zip(labels, checked, names, strict=True):
                yield Job(label, (name,), client.submit(one.prepared.request), notes=one.notes)

        return await run_batch(plan, Progress(len(requests)), jobs)


@contextmanager
def _fit_folder(*, fit: bool) -> Iterator[Path | None]:
    """Provide a temporary directory for fitted photos, if there are to be any."""
    if not fit:
        yield None
        return
    with TemporaryDirectory(prefix="kling-expand-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _subfolder(folder: Path, index: int) -> Path:
    """Make a directory for one photo: two photos may have the same name."""
    subfolder = folder / str(index)
    subfolder.mkdir()
    return subfolder


def _print_notes(labels: Sequence[str], checked: Sequence[Checked]) -> None:
    for label, one in zip(labels, checked, strict=True):
        if one.notes:
            click.echo(clean(f"{label}: {', '.join(one.notes)}"), err=True)
