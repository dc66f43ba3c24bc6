"""How is a photo made wider from a shell? `kling-expand expand`: checked, sent, waited for, saved."""

from collections.abc import Sequence
from typing import Any

import click

from kling_expand import images
from kling_expand.errors import InvalidRequest
from kling_expand.geometry import Geometry, Towards
from kling_expand.models import Dialect, ExpandRequest

from . import options
from .connection import Connection, local_options
from .failures import FAILED, exit_code, leave, run
from .geometry import geometry_options
from .job import Job, see_through
from .naming import plan
from .screen import Screen


@click.command(short_help="Expand photos and save the results.")
@click.argument("photos", metavar="PHOTO...", nargs=-1, required=True)
@geometry_options
@click.option("--prompt", metavar="TEXT", help="What the new area should show; 2500 characters at most.")
@click.option("-n", "count", default=1, show_default=True, metavar="N", help="Pictures per photo, 1 to 9.")
@click.option("--watermark", is_flag=True, help="Also make a copy with a watermark.")
@options.output
@options.deadline
@local_options
@options.as_json
def expand(photos: tuple[str, ...], geometry: Geometry, connection: Connection, **given: Any) -> None:
    """Expand each PHOTO (a file or a URL) and save the results.

    \b
      kling-expand expand dog.jpg --aspect 16:9
      kling-expand expand a.jpg b.jpg --right 0.5 --prompt "a sunlit park" -n 2
      kling-expand expand dog.jpg --size 1920x1080 --anchor bottom -o wide/

    Every photo is checked before the first is sent. The paths of the results are
    printed, one a line. The service takes PNG and JPEG up to 10 MB, and bills 8
    units for each picture it makes.
    """
    requests = [
        ExpandRequest(photo, geometry, given["prompt"], n=given["count"], watermark=given["watermark"])
        for photo in photos
    ]
    jobs = run(_expand(requests, connection, **given))
    errors = [job.error for job in jobs if job.error is not None]
    if errors:
        leave(max((exit_code(error) for error in errors), key=lambda code: code == FAILED))


async def _expand(
    requests: Sequence[ExpandRequest],
    connection: Connection,
    *,
    output: str,
    deadline: float | None,
    as_json: bool,
    **_: Any,
) -> list[Job]:
    labels = [str(request.image) for request in requests]
    names = plan(labels, output, requests[0].n)
    for request in requests:
        await _check(request, connection)
    async with connection.client(deadline=deadline) as kling:
        with Screen(len(requests), as_json=as_json) as screen:
            jobs = [
                Job(label, kling.submit(request), output, name)
                for label, request, name in zip(labels, requests, names, strict=True)
            ]
            await see_through(kling, jobs, screen, resume(connection, output))
    return jobs


async def _check(request: ExpandRequest, connection: Connection) -> None:
    """Raise now what would be raised once some photos were already paid for."""
    photo = await images.load(request.image)
    if connection.dialect == Dialect.DIRECTION and not isinstance(request.geometry, Towards):
        raise InvalidRequest("geometry", "it", "the direction dialect only knows --direction and --ratio")
    if photo.width is None or photo.height is None:
        if request.geometry.needs_size:
            limit = "its size is not known here: use --up/--down/--left/--right or --direction"
            raise InvalidRequest("photo", photo.name, limit)
    else:
        request.geometry.ratios(photo.width, photo.height)


def resume(connection: Connection, output: str) -> str:
    """The command that waits for tasks (``{ids}``) of this one; empty where they do not outlive it."""
    if connection.local:
        return ""
    from shlex import quote

    tail = f" -o {quote(output)}{connection.arguments}".replace("{", "{{").replace("}", "}}")
    return f"kling-expand wait {{ids}}{tail}"
