"""How is a fleet run from a shell? Its tables, its workers, its jobs, and a look at all of it."""

import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict

from kling_expand.cli import options
from kling_expand.cli.batch.fleet_progress import lines, watch
from kling_expand.cli.connection import WORK_SECONDS
from kling_expand.cli.exit_codes import FAILED, Commands, Stop, leave, run
from kling_expand.cli.formatting import clean, show
from kling_expand.cli.geometry import geometry_options
from kling_expand.geometry import Geometry
from kling_expand.models import ExpandRequest

if TYPE_CHECKING:
    from kling_expand.fleet.queue import Fleet
    from kling_expand.store.postgres import JobOutcome

EXTRA = "this needs more: pip install 'kling-expand[fleet]'"
SLOTS = 9  # of the emulator that `up` starts

dsn = click.option(
    "--dsn",
    envvar="KLING_FLEET_DSN",
    required=True,
    metavar="URL",
    help="The database, as postgresql://user@host/name; KLING_FLEET_DSN says it too.",
)
run_name = click.option("--run", "name", default="default", show_default=True, help="Which run of jobs.")
concurrency = click.option(
    "--concurrency",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="Jobs in hand; most of them wait for a slot.",
)


@click.group(cls=Commands, short_help="Many machines, one account: queue, workers, results.")
def fleet() -> None:
    """Share one account between many machines, over a PostgreSQL database.

    \b
      kling-expand fleet up                      try it all out on this machine
      kling-expand fleet init                    make the tables, once
      kling-expand fleet worker -o out/          on every machine
      kling-expand fleet submit *.jpg --aspect 16:9 --wait
      kling-expand fleet top                     look at it
    """


@fleet.command()
@dsn
def init(dsn: str) -> None:
    """Make the tables in the database; those that are there stay as they are."""

    async def main() -> None:
        async with _opened(dsn, "default") as fleet:
            await fleet.init()

    run(main())


@fleet.command()
@click.argument("photos", metavar="[PHOTO]...", nargs=-1)
@click.option("--from", "listed", type=click.File("r"), metavar="FILE", help="Read more photos, one a line.")
@geometry_options
@click.option("--prompt", metavar="TEXT", help="What the new area should show.")
@click.option("-n", "count", default=1, show_default=True, metavar="N", help="Pictures per photo, 1 to 9.")
@click.option("--priority", default=0, show_default=True, help="Higher ones are begun first.")
@click.option("--wait", is_flag=True, help="Wait for the results, and print them.")
@run_name
@dsn
@options.as_json
def submit(photos: tuple[str, ...], geometry: Geometry, dsn: str, name: str, **given: Any) -> None:
    """Queue each PHOTO: a file that the workers can read, a URL, or s3://… and the like."""

    def requests() -> Iterator[ExpandRequest]:
        for photo in chain(photos, filter(None, map(str.strip, given["listed"] or ()))):
            yield ExpandRequest(photo, geometry, given["prompt"], n=given["count"])

    async def main() -> int:
        failures = 0
        async with _opened(dsn, name) as fleet:
            count = await fleet.submit_many(requests(), priority=given["priority"])
            click.echo(f"{count} queued", err=True)
            if given["wait"]:
                async for ended in fleet.results():
                    failures += ended.status != "succeeded"
                    _tell(ended, as_json=given["as_json"])
        return failures

    if run(main()):
        leave(FAILED)


def _tell(ended: "JobOutcome", *, as_json: bool) -> None:
    if as_json:
        show(asdict(ended))
    elif ended.status == "succeeded":
        for place in ended.files or ended.urls:
            click.echo(clean(place))
    else:
        click.echo(clean(f"{ended.key}: {ended.status}: {ended.error or '-'}"), err=True)


@fleet.command()
@concurrency
@click.option(
    "--max-in-flight",
    type=click.IntRange(min=1),
    metavar="N",
    help="Count the account's slots exactly, over all workers that say the same; else each finds its share.",
)
@click.option("--account", default="default", show_default=True, help="Whose slots those are.")
@click.option("-o", "--output", metavar="PLACE", help="A directory, template, or s3://… for pictures.")
@click.option("--callback-url", metavar="URL", help="Have the service call this for every job.")
@click.option("--base-url", metavar="URL", help="Where the service is; KLING_BASE_URL says it too.")
@click.option(
    "--heartbeat-timeout",
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Requeue the jobs of a worker without a heartbeat for this long.",
)
@click.option(
    "--shutdown-timeout",
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running jobs may go on after SIGTERM.",
)
@run_name
@dsn
def worker(dsn: str, name: str, **given: Any) -> None:
    """Work until SIGTERM or Ctrl-C: then end what runs, hand over the rest, and go.

    It is gone 15 seconds after --shutdown-timeout at the latest. A second Ctrl-C or SIGTERM ends it at
    once, which loses nothing either.
    """

    async def main() -> None:
        from kling_expand.fleet.worker import Worker

        async with _opened(dsn, name) as fleet:
            one = Worker(fleet, **given)
            _on_signal(one.stop)
            await one.run()

    run(main())


@fleet.command()
@run_name
@dsn
@options.as_json
def status(dsn: str, name: str, as_json: bool) -> None:
    """Print how it goes: workers, queue, slots, spend."""

    async def main() -> None:
        async with _opened(dsn, name) as fleet:
            stats = await fleet.stats()
        if as_json:
            show(asdict(stats))
        else:
            click.echo("\n".join(lines(stats)))

    run(main())


@fleet.command()
@run_name
@dsn
@click.option("--every", default=1.0, show_default=True, help="Seconds between two looks.")
def top(dsn: str, name: str, every: float) -> None:
    """A live screen of workers, slots, queue and spend, until Ctrl-C."""

    async def main() -> None:
        async with _opened(dsn, name) as fleet:
            await watch(fleet.stats, every)

    with suppress(KeyboardInterrupt):
        run(main())


@fleet.command()
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("-o", "--output", default="out", show_default=True, metavar="DIR", help="Where pictures go.")
def up(workers: int, output: str) -> None:
    """Try it all out: an emulator, a throw-away PostgreSQL and workers, on this machine, until Ctrl-C.

    It prints the database's URL for `submit --dsn`, `status` and `top`. Nothing is billed, and the queue
    is gone with it.
    """
    run(_up(workers, output))


async def _up(workers: int, output: str) -> None:
    try:
        from kling_expand.fleet.dev_server import Cluster
    except ImportError as error:
        raise Stop(EXTRA) from error
    from kling_expand.emulator import Emulator

    stop = asyncio.Event()
    _on_signal(stop.set)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kling-fleet-"))
        try:
            emulator = await stack.enter_async_context(Emulator(slots=SLOTS, work_seconds=WORK_SECONDS))
        except RuntimeError as error:
            raise Stop(str(error)) from error
        cluster = await stack.enter_async_context(Cluster(Path(folder, "postgres")))
        async with _opened(cluster.dsn, "default") as fleet:
            await fleet.init()
        words = [
            "--dsn",
            cluster.dsn,
            "--base-url",
            emulator.url,
            "--max-in-flight",
            str(SLOTS),
            "-o",
            output,
        ]
        crew = [await _worker(words, emulator.api_key) for _ in range(workers)]
        click.echo(cluster.dsn)
        click.echo(f"{workers} workers; next: kling-expand fleet submit PHOTO --right 0.5 --dsn …", err=True)
        await stop.wait()
        for process in crew:
            with suppress(ProcessLookupError):
                process.terminate()
        await asyncio.gather(*(process.wait() for process in crew))


async def _worker(words: Sequence[str], api_key: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "kling_expand", "fleet", "worker", "--shutdown-timeout", "3", *words]
    # Ctrl-C is for this process, which tells the others.
    return await asyncio.create_subprocess_exec(
        "/usr/bin/env", f"KLING_API_KEY={api_key}", *command, start_new_session=True
    )


@asynccontextmanager
async def _opened(dsn: str, name: str) -> AsyncIterator["Fleet"]:
    try:
        from kling_expand.fleet.queue import Fleet
    except ImportError as error:
        raise Stop(EXTRA) from error
    async with Fleet(dsn, run=name) as fleet:
        yield fleet


def _on_signal(stop: Callable[[], None]) -> None:
    """The first signal asks, the second ends."""
    loop = asyncio.get_running_loop()

    def told(number: int) -> None:
        loop.remove_signal_handler(number)
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told, number)
