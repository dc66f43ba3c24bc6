"""What is seen of a fleet? A few lines of numbers, once or again and again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from kling_expand.models import DOLLARS_PER_UNIT

SILENT = 30.0  # seconds after which a worker is shown as silent


def lines(numbers: Any) -> list[str]:
    """The numbers, one fact a line; *numbers* is a `kling_expand.fleet.queue.FleetStats`."""
    return [f"{name:<9} {text}" for name, text in facts(numbers)]


def facts(numbers: Any) -> list[tuple[str, str]]:
    """Name and text of every fact."""
    heard = [age for age, _ in numbers.workers]
    silent = sum(age > SILENT for age in heard)
    ended = ", ".join(f"{count} {status}" for status, count in sorted(numbers.outcomes.items())) or "none"
    return [
        ("workers", f"{len(heard) - silent} heard of lately" + (f", {silent} silent" if silent else "")),
        ("queue", f"{numbers.queued} waiting, {numbers.running} in hand"),
        ("slots", f"{numbers.in_flight} pictures at the service, {numbers.permits} permits taken"),
        ("ended", f"{ended}; {numbers.recent_outcomes} in the last minute"),
        ("spend", f"{numbers.units_billed} units, ${float(numbers.units_billed) * DOLLARS_PER_UNIT:.2f}"),
    ]


def screen(numbers: Any) -> Table:
    """The same as a table, with a row for each worker."""
    table = Table(title="kling-expand fleet", show_header=False, title_justify="left", min_width=60)
    for name, text in facts(numbers):
        table.add_row(name, text)
    for number, (age, jobs) in enumerate(numbers.workers, 1):
        mark = " (silent)" if age > SILENT else ""
        table.add_row(f"worker {number}", f"{jobs} jobs, heard {age:.0f} s ago{mark}")
    return table


async def watch(look: Callable[[], Awaitable[Any]], every: float, console: Console | None = None) -> None:
    """Show what *look* finds, *every* so many seconds, until cancelled."""
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            live.update(screen(await look()), refresh=True)
            await asyncio.sleep(every)
