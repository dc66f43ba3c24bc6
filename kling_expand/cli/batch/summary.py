"""How did it end? The last lines of a run over many rows: what was done, what it cost, and how to go on."""

from collections.abc import Iterator

import click

from kling_expand.journal import Journal

from .printing import clean, money, show
from .spent import Spent, spent
from .tally import Tally

_AGAIN = "run the same command again"


async def summary(tally: Tally, journal: Journal, path: str, *, as_json: bool, retry: str = "") -> None:
    """Print it: on stderr, or as one object of JSON on stdout. *retry* is how what failed is tried again."""
    found = await spent(journal)
    if as_json:
        show({"summary": _facts(tally, found, path)})
        return
    for line in _lines(tally, found, path, retry):
        click.echo(clean(line), err=True)


def _facts(tally: Tally, found: Spent, path: str) -> dict[str, object]:
    return {
        "rows": tally.total,
        "saved": tally.saved,
        "known": tally.known,
        "failed": tally.failed,
        "bad": tally.bad,
        "not_sent": tally.unsent,
        "interrupted": tally.interrupted,
        "units_billed": found.billed,
        "open_tasks": found.open,
        "journal": path,
    }


def _lines(tally: Tally, found: Spent, path: str, retry: str) -> Iterator[str]:
    yield f"{tally.total} rows: {tally.counts()}"
    yield f"{money(found.billed)} billed for all that is in {path}"
    if found.open:
        yield f"{found.open} tasks go on at the service, which cannot be told to cancel"
    if tally.interrupted:
        yield f"interrupted: {_AGAIN} to go on; nothing is paid twice"
    elif tally.failed or tally.unsent:
        yield retry or f"{_AGAIN} to try what failed or was not sent"
