"""How is a photo made wider from a shell? `kling-expand expand`: checked, sent, waited for, saved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from kling_expand.cli import options
from kling_expand.cli.batch.job import Job, see_through
from kling_expand.cli.batch.naming import plan
from kling_expand.cli.batch.screen import Screen
from kling_expand.cli.batch.validation import Checked, check
from kling_expand.cli.connection import Connection, local_options
from kling_expand.cli.exit_codes import FAILED, exit_code, leave, run
from kling_expand.cli.formatting import clean
from kling_expand.cli.geometry import geometry_options
from kling_expand.geometry import Geometry
from kling_expand.models import ExpandRequest


@click.command(short_help="Expand photos and save the results.")
@click.argument("photos", metavar="PHOTO...", nargs=-1, required=True, type=click.Path())
@geometry_options
@click.option("--prompt", metavar="TEXT", help="What the new area should show; 2500 characters at most.")
@click.option("-n", "count", default=1, show_default=True, metavar="N", help="Pictures per photo, 1 to 9.")
@click.option("--watermark", is_flag=True, help="Also make a copy with a watermark.")
@click.option(
    "--fit",
    "fitting",
    is_flag=True,
    help="Make photos acceptable first: PNG or JPEG, upright, under 10 MB. Says what it did.",
)
@options.output
@options.deadline
@local_options
@options.as_json
def expand(photos: tuple[str, ...], geometry: Geometry, connection: Connection, **given: Any) -> None:
    """Expand each PHOTO (a file or a URL) and save the results.

    \b
      kling-expand expand dog.jpg --aspect 16:9
      kling-expand expand a.jpg b.jpg --right 0.5 --prompt "a park" -n 2
      kling-expand expand dog.jpg --size 1920x1080 --anchor bottom -o wide/

    Every photo is checked before the first is sent. The paths of the results are
    printed, one a line. The service takes PNG and JPEG up to 10 MB, and bills 8
    units for each picture it makes.
    """
    fields = {"prompt": given.pop("prompt"), "n": given.pop("count"), "watermark": given.pop("watermark")}
    requests = [ExpandRequest(photo, geometry, **fields) for photo in photos]
    jobs = run(_expand(requests, connection, **given))
    codes = {exit_code(job.error) for job in jobs if job.error is not None}
    if codes:
        leave(FAILED if FAILED in codes else min(codes))


async def _expand(
    requests: Sequence[ExpandRequest],
    connection: Connection,
    *,
    output: str,
    deadline: float | None,
    fitting: bool,
    as_json: bool,
) -> list[Job]:
    labels = [str(request.image) for request in requests]
    names = plan(labels, output, requests[0].n)
    with _workshop(fitting) as folder:
        checked = [
            await check(request, connection.dialect, folder and _room(folder, index))
            for index, request in enumerate(requests)
        ]
        _tell(labels, checked)
        async with connection.client(deadline=deadline) as kling:
            with Screen(len(requests), as_json=as_json) as screen:
                jobs = [
                    Job(label, kling.submit(one.request), output, name, notes=one.notes)
                    for label, one, name in zip(labels, checked, names, strict=True)
                ]
                await see_through(kling, jobs, screen, connection.resume(output))
    return jobs


@contextmanager
def _workshop(fitting: bool) -> Iterator[Path | None]:
    """A directory for photos that are made acceptable; gone with the command."""
    if not fitting:
        yield None
        return
    with TemporaryDirectory(prefix="kling-expand-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _room(folder: Path, index: int) -> Path:
    """A directory of its own for each photo: two may have the same name."""
    room = folder / str(index)
    room.mkdir()
    return room


def _tell(labels: Sequence[str], checked: Sequence[Checked]) -> None:
    for label, one in zip(labels, checked, strict=True):
        if one.notes:
            click.echo(clean(f"{label}: {', '.join(one.notes)}"), err=True)
