"""The statistics of a fleet as text and on a live screen."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from kling_expand.cli.terminal import money, plural, span
from kling_expand.errors import JournalError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kling_expand.fleet.queue import FleetStats

SILENT_AFTER = 30.0  # seconds without a heartbeat after which a worker counts as silent
STALE_AFTER = 1.0  # seconds to wait for the database, before the numbers count as stale


def stats_lines(stats: "FleetStats") -> list[tuple[str, str]]:
    """Return the statistics of a fleet as pairs of a name and a text."""
    silent = sum(age > SILENT_AFTER for age, _ in stats.workers)
    ended = ", ".join(f"{count} {status}" for status, count in sorted(stats.outcomes.items())) or "none"
    return [
        ("workers", f"{len(stats.workers) - silent} alive" + (f", {silent} silent" if silent else "")),
        ("queue", f"{stats.queued} waiting, {stats.running} running"),
        (
            "slots",
            f"{plural(stats.in_flight, 'picture')} at the service, {plural(stats.permits, 'permit')} held",
        ),
        ("ended", f"{ended}; {stats.recent_outcomes} in the last minute"),
        ("cost", money(float(stats.units_billed))),
    ]


def stats_table(stats: "FleetStats", width: int = 60) -> "Table":
    """Return the statistics of a fleet as a table, with a row for each worker."""
    from rich.table import Table

    table = Table(
        title="kling-expand fleet", show_header=False, title_justify="left", min_width=min(60, width)
    )
    for name, text in stats_lines(stats):
        table.add_row(name, text)
    for number, (age, jobs) in enumerate(stats.workers, 1):
        mark = " (silent)" if age > SILENT_AFTER else ""
        table.add_row(f"worker {number}", f"{plural(jobs, 'job')}, last heartbeat {age:.0f} s ago{mark}")
    return table


async def watch(
    read: Callable[[], Awaitable["FleetStats"]], every: float, console: "Console | None" = None
) -> None:
    """Call *read* every *every* seconds and show the result, until cancelled.

    While the database does not respond, show the last numbers with their age.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    loop = asyncio.get_running_loop()
    stats, read_at = await read(), loop.time()
    reading: asyncio.Task[FleetStats] | None = None
    try:
        with Live(console=console, auto_refresh=False, transient=False) as live:
            while True:
                table, age = stats_table(stats, live.console.width), loop.time() - read_at
                late = Text(f"no response from the database: these numbers are {span(age)} old", "bold red")
                live.update(Group(table, late) if age > every + STALE_AFTER else table, refresh=True)
                await asyncio.sleep(every)
                reading = reading or asyncio.ensure_future(read())
                done, _ = await asyncio.wait([reading], timeout=STALE_AFTER)
                if done:
                    with suppress(JournalError):  # the database is unavailable: try again
                        stats, read_at = reading.result(), loop.time()
                    reading = None
    finally:
        # A cancelled read may leave a psycopg callback that fails. That no longer matters.
        loop.set_exception_handler(lambda _loop, _context: None)
        if reading is not None:
            reading.cancel()
