"""How did it end? The last lines of a run over many rows: what was done, what it cost, and how to go on."""

from collections.abc import Iterator

import click

from kling_expand.cli.formatting import clean, money, show
from kling_expand.store.sqlite import SQLiteStore

from .progress import Progress
from .usage import Spent, spent

_AGAIN = "run the same command again"


async def summary(
    progress: Progress, journal: SQLiteStore, path: str, *, as_json: bool, retry: str = ""
) -> None:
    """Print it: on stderr, or as one object of JSON on stdout. *retry* is how what failed is tried again."""
    found = await spent(journal)
    if as_json:
        show({"summary": _facts(progress, found, path)})
        return
    for line in _lines(progress, found, path, retry):
        click.echo(clean(line), err=True)


def _facts(progress: Progress, found: Spent, path: str) -> dict[str, object]:
    return {
        "rows": progress.total,
        "saved": progress.saved,
        "known": progress.known,
        "failed": progress.failed,
        "bad": progress.bad,
        "not_sent": progress.unsent,
        "interrupted": progress.interrupted,
        "units_billed": found.billed,
        "open_tasks": found.open,
        "journal": path,
    }


def _lines(progress: Progress, found: Spent, path: str, retry: str) -> Iterator[str]:
    yield f"{progress.total} rows: {progress.counts()}"
    yield f"{money(found.billed)} billed for all that is in {path}"
    if found.open:
        yield f"{found.open} tasks go on at the service, which cannot be told to cancel"
    if progress.interrupted:
        yield f"interrupted: {_AGAIN} to go on; nothing is paid twice"
    elif progress.failed or progress.unsent:
        yield retry or f"{_AGAIN} to try what failed or was not sent"
