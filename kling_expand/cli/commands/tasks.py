"""What does the service know of tasks? Reading only: nothing is waited for, saved or paid."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import click

from kling_expand.cli import options
from kling_expand.cli.connection import Connection, connection_options
from kling_expand.cli.exit_codes import FAILED, leave, run
from kling_expand.cli.formatting import clean, show, task_facts, task_lines, task_row
from kling_expand.client import KlingClient
from kling_expand.errors import KlingError
from kling_expand.models import Status, Task


@click.command(short_help="Show all that is known of a task.")
@click.argument("any_id", metavar="ID")
@connection_options
@options.as_json
def get(any_id: str, connection: Connection, *, as_json: bool) -> None:
    """Show a task, by its task_id or external_task_id."""
    task = run(_get(any_id, connection))
    if as_json:
        show(task_facts(task))
    else:
        click.echo("\n".join(task_lines(task)))


async def _get(any_id: str, connection: Connection) -> Task:
    async with connection.client() as kling:
        return await kling.get(any_id)


@click.command(short_help="Say which status tasks have.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@connection_options
@options.as_json
def status(ids: tuple[str, ...], connection: Connection, *, as_json: bool) -> None:
    """Print each task's status: submitted, processing, succeed or failed.

    Exit code 1 if one failed or could not be read.
    """
    found = run(_status(ids, connection))
    for any_id, task in zip(ids, found, strict=True):
        if isinstance(task, KlingError):
            facts: dict[str, Any] = {"id": any_id, "error": str(task)}
            line = f"{any_id}  {task}"
        else:
            facts = {"id": any_id, **task_facts(task)}
            line = f"{any_id}  {task.task_status}  {task.task_status_msg or ''}".rstrip()
        show(facts) if as_json else click.echo(clean(line))
    if any(isinstance(task, KlingError) or task.status is Status.FAILED for task in found):
        leave(FAILED)


async def _status(ids: tuple[str, ...], connection: Connection) -> list[Task | KlingError]:
    async with connection.client() as kling:
        return await asyncio.gather(*(_try(kling, any_id) for any_id in ids))


async def _try(kling: KlingClient, any_id: str) -> Task | KlingError:
    try:
        return await kling.get(any_id)
    except KlingError as error:
        return error


@click.command("list", short_help="List the account's tasks.")
@click.option("--page", default=1, show_default=True, help="Which page, from 1.")
@click.option("--page-size", default=30, show_default=True, help="Tasks a page, 1 to 500.")
@click.option("--all", "every", is_flag=True, help="Every page.")
@click.option("--status", "word", metavar="WORD", help="Only tasks of this status, such as failed.")
@connection_options
@options.as_json
def list_tasks(connection: Connection, *, as_json: bool, **given: Any) -> None:
    """List tasks, in the service's order.

    One line each: task_id, status, creation, units billed, external_task_id.
    """
    run(_list(connection, as_json=as_json, **given))


async def _list(
    connection: Connection, *, page: int, page_size: int, every: bool, word: str | None, as_json: bool
) -> None:
    async with connection.client() as kling:
        tasks = kling.tasks(page_size=page_size) if every else _page(kling, page, page_size)
        async for task in tasks:
            if word in {None, task.task_status}:
                show(task_facts(task)) if as_json else click.echo(task_row(task))


async def _page(kling: KlingClient, page: int, page_size: int) -> AsyncIterator[Task]:
    for task in await kling.list(page, page_size):
        yield task
