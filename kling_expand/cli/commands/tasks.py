"""`kling-expand get` and `list`: read tasks from the service."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import click
from attrs import frozen

from kling_expand.cli.options import Connection, JSONOption, OptionGroup, option, options
from kling_expand.cli.terminal import show, task_facts, task_lines, task_row
from kling_expand.models import Status, Task

if TYPE_CHECKING:
    from kling_expand.client import KlingClient


@click.command()
@click.argument("any_id", metavar="ID")
@options(connection=Connection, output=JSONOption)
def get(any_id: str, *, connection: Connection, output: JSONOption) -> None:
    """Print the details of a task, by its task_id or external_task_id.

    `kling-expand status` prints only its status.
    """
    task = asyncio.run(_get(any_id, connection))
    if output.as_json:
        show(task_facts(task))
    else:
        click.echo("\n".join(task_lines(task)))


async def _get(any_id: str, connection: Connection) -> Task:
    async with connection.client() as client:
        return await client.get(any_id)


@frozen
class ListOptions(OptionGroup):
    """The options that select the tasks to print."""

    page: int = option("--page", default=1, show_default=True, metavar="N", help="Page number, from 1.")
    page_size: int = option(
        "--page-size", default=30, show_default=True, metavar="N", help="Tasks per page, 1 to 500."
    )
    all_pages: bool = option("--all", default=False, is_flag=True, help="Print every page.")
    status: str | None = option(
        "--status",
        type=click.Choice(
            [str(status) for status in Status if status not in {Status.UNKNOWN, Status.QUEUED}]
        ),
        help="Only tasks with this status.",
    )


@click.command("list")
@options(chosen=ListOptions, connection=Connection, output=JSONOption)
def list_tasks(*, chosen: ListOptions, connection: Connection, output: JSONOption) -> None:
    """List the tasks of the account, in the service's order (usually newest first).

    Each line has the task_id, the status, the time of creation, the units billed and the external_task_id.
    """
    asyncio.run(_list(chosen, connection, as_json=output.as_json))


async def _list(chosen: ListOptions, connection: Connection, *, as_json: bool) -> None:
    async with connection.client() as client:
        tasks = client.tasks(page_size=chosen.page_size) if chosen.all_pages else _page(client, chosen)
        async for task in tasks:
            if chosen.status in {None, task.status}:
                show(task_facts(task)) if as_json else click.echo(task_row(task))


async def _page(client: "KlingClient", chosen: ListOptions) -> AsyncIterator[Task]:
    for task in await client.list(chosen.page, chosen.page_size):
        yield task
