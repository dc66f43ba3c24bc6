"""`kling-expand get`, `status` and `list`: read tasks from the service."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from kling_expand.cli.options import Connection, JSONOption, OptionGroup, option, options
from kling_expand.cli.terminal import FAILED, clean, leave, show, task_facts, task_lines, task_row
from kling_expand.errors import KlingError
from kling_expand.models import Status, Task

if TYPE_CHECKING:
    from kling_expand.client import KlingClient


@click.command()
@click.argument("any_id", metavar="ID")
@options(connection=Connection, output=JSONOption)
def get(any_id: str, *, connection: Connection, output: JSONOption) -> None:
    """Show a task, by its task_id or external_task_id."""
    task = asyncio.run(_get(any_id, connection))
    if output.as_json:
        show(task_facts(task))
    else:
        click.echo("\n".join(task_lines(task)))


async def _get(any_id: str, connection: Connection) -> Task:
    async with connection.client() as client:
        return await client.get(any_id)


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options(connection=Connection, output=JSONOption)
def status(ids: tuple[str, ...], *, connection: Connection, output: JSONOption) -> None:
    """Print the status of each task: submitted, processing, succeed or failed.

    Exit code 1 if a task failed or could not be read.
    """
    found = asyncio.run(_status(ids, connection))
    for any_id, task in zip(ids, found, strict=True):
        if isinstance(task, KlingError):
            facts: dict[str, Any] = {"id": any_id, "error": str(task)}
            line = f"{any_id}  {task}"
        else:
            facts = {"id": any_id, **task_facts(task)}
            line = f"{any_id}  {task.task_status}  {task.task_status_msg or ''}".rstrip()
        show(facts) if output.as_json else click.echo(clean(line))
    if any(isinstance(task, KlingError) or task.status is Status.FAILED for task in found):
        leave(FAILED)


async def _status(ids: tuple[str, ...], connection: Connection) -> list[Task | KlingError]:
    async with connection.client() as client:
        return await asyncio.gather(*(_read(client, any_id) for any_id in ids))


async def _read(client: "KlingClient", any_id: str) -> Task | KlingError:
    try:
        return await client.get(any_id)
    except KlingError as error:
        return error


@frozen
class ListOptions(OptionGroup):
    """The tasks that `list` prints."""

    page: int = option("--page", default=1, show_default=True, metavar="N", help="The page, from 1.")
    page_size: int = option(
        "--page-size", default=30, show_default=True, metavar="N", help="Tasks per page, 1 to 500."
    )
    all_pages: bool = option("--all", default=False, is_flag=True, help="Print every page.")
    status: str | None = option(
        "--status", metavar="WORD", help="Only tasks with this status, such as failed."
    )


@click.command("list")
@options(chosen=ListOptions, connection=Connection, output=JSONOption)
def list_tasks(*, chosen: ListOptions, connection: Connection, output: JSONOption) -> None:
    """List tasks, in the order of the service.

    One line each: task_id, status, time of creation, units billed, external_task_id.
    """
    asyncio.run(_list(chosen, connection, as_json=output.as_json))


async def _list(chosen: ListOptions, connection: Connection, *, as_json: bool) -> None:
    async with connection.client() as client:
        tasks = client.tasks(page_size=chosen.page_size) if chosen.all_pages else _page(client, chosen)
        async for task in tasks:
            if chosen.status in {None, task.task_status}:
                show(task_facts(task)) if as_json else click.echo(task_row(task))


async def _page(client: "KlingClient", chosen: ListOptions) -> AsyncIterator[Task]:
    for task in await client.list(chosen.page, chosen.page_size):
        yield task
