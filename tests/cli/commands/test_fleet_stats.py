"""The numbers of a fleet on a live screen."""

import asyncio
import contextlib

from attrs import evolve
from rich.console import Console

from kling_expand.cli.commands.fleet_stats import stats_table, watch
from kling_expand.errors import JournalError
from kling_expand.fleet.queue import Fleet, FleetStats
from kling_expand.testing import virtual_time

pytest_plugins = ["support.postgres", "support.fleet"]


async def test_the_live_view_is_updated_at_every_interval(fleet: Fleet) -> None:
    """The live screen shows workers, slots, queue and cost, and updates at every interval."""
    console = Console(record=True, width=80, force_terminal=True)
    watching = asyncio.create_task(watch(fleet.stats, 0.01, console))
    await asyncio.sleep(0.3)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    stats = evolve(await fleet.stats(), workers=((3.0, 2), (400.0, 1)), units_billed=16)
    console.print(stats_table(stats))
    text = console.export_text()
    for words in (
        "queue",
        "0 permits held",
        "1 alive, 1 silent",
        "last heartbeat 400 s ago (silent)",
        "$0.06",
    ):
        assert words in text


@virtual_time
async def test_the_live_view_shows_old_numbers_while_the_database_is_down() -> None:
    """While the database does not respond, the last numbers are shown with their age."""
    console = Console(record=True, width=30, force_terminal=True)
    stats = FleetStats(
        queued=1,
        running=0,
        workers=(),
        in_flight=0,
        permits=0,
        units_billed=0,
        outcomes={},
        recent_outcomes=0,
        states={},
    )
    reads = 0

    async def read() -> FleetStats:
        nonlocal reads
        reads += 1
        if reads == 2:
            await asyncio.sleep(5)
        if reads == 3:
            raise JournalError("away")
        return stats

    watching = asyncio.create_task(watch(read, 1.0, console))
    await asyncio.sleep(4.5)
    assert "no response from the" in console.export_text(clear=False)
    assert "numbers are 4 s old" in " ".join(console.export_text().split())
    await asyncio.sleep(5)
    assert "no response" not in console.export_text().split("kling-expand fleet")[-1]
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
