"""`kling-expand fleet`: many machines that share one account and a PostgreSQL database."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from itertools import chain
from typing import IO, TYPE_CHECKING

import click
from attrs import asdict, frozen

from kling_expand.cli.options import (
    POSITIVE,
    GeometryOptions,
    JSONOption,
    OptionGroup,
    PassesOption,
    RequestOptions,
    option,
    options,
)
from kling_expand.cli.terminal import (
    FAILED,
    Commands,
    NothingDone,
    clean,
    leave,
    plural,
    print_path,
    redirect_warnings,
    show,
)
from kling_expand.config import environment_with
from kling_expand.models import ExpandRequest, source_name

from .fleet_stats import stats_lines, watch

if TYPE_CHECKING:
    from kling_expand.fleet.queue import Fleet
    from kling_expand.store.postgres import JobOutcome

EXTRA = "this command needs the extra `fleet`: pip install 'kling-expand[fleet]'"
NO_DATABASE = (
    "the fleet needs a database: give --dsn postgresql://user@host/name, or set KLING_FLEET_DSN; "
    "to try it, `kling-expand fleet up` starts a database on this machine"
)
EMULATOR_SLOTS = 9  # the slots of the emulator that `fleet up` starts


@frozen(repr=False)  # a DSN may contain a password
class Database(OptionGroup):
    """The options for a fleet's database, and for the run of jobs in it."""

    dsn: str | None = option(
        "--dsn",
        envvar="KLING_FLEET_DSN",
        metavar="URL",
        help="The database, as postgresql://user@host/name; the default is KLING_FLEET_DSN. Do not put a "
        "password here; use KLING_FLEET_DSN or ~/.pgpass.",
    )
    run: str = option(
        "--run", default="default", show_default=True, metavar="NAME", help="The run that the jobs belong to."
    )

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Fleet"]:
        """Open the fleet. Raise `NothingDone` if no database is given or the extra is not installed."""
        if not self.dsn:
            raise NothingDone(NO_DATABASE)
        try:
            from kling_expand.fleet.queue import Fleet
        except ImportError as error:
            raise NothingDone(EXTRA) from error
        redirect_warnings(None, unfiltered=True)
        async with Fleet(self.dsn, run=self.run) as fleet:
            yield fleet


@click.group(cls=Commands)
def fleet() -> None:
    """Run jobs on many machines that share one account and a PostgreSQL database.

    \b
      kling-expand fleet up                      try it on this machine
      kling-expand fleet init                    create the tables, once
      kling-expand fleet worker -o out/          on every machine
      kling-expand fleet submit *.jpg --aspect 16:9 --wait
      kling-expand fleet top                     watch it
    """


@fleet.command()
@options(database=Database)
def init(database: Database) -> None:
    """Create or upgrade the tables in the database."""

    async def main() -> None:
        async with database.open() as fleet:
            await fleet.init()

    asyncio.run(main())


# ---------------------------------------------------------------------------- jobs


@frozen
class SubmitOptions(OptionGroup):
    """The options that only `fleet submit` has."""

    listed: IO[str] | None = option(  # noqa: RUF009 - a declaration, evaluated once
        "--from", type=click.File("r"), metavar="FILE", help="Read more photos from FILE, one per line."
    )
    priority: int = option(
        "--priority",
        default=0,
        show_default=True,
        metavar="N",
        help="Priority of the jobs; higher numbers start first.",
    )
    wait: bool = option(
        "--wait", default=False, is_flag=True, help="Wait for the results of these jobs, and print them."
    )


@fleet.command()
@click.argument("photos", metavar="[PHOTO]...", nargs=-1)
@options(
    geometry=GeometryOptions,
    passes_option=PassesOption,
    request=RequestOptions,
    chosen=SubmitOptions,
    database=Database,
    output=JSONOption,
)
def submit(
    photos: tuple[str, ...],
    *,
    geometry: GeometryOptions,
    passes_option: PassesOption,
    request: RequestOptions,
    chosen: SubmitOptions,
    database: Database,
    output: JSONOption,
) -> None:
    """Queue a job for each PHOTO.

    PHOTO is the path of a file that the workers can read, a URL, or an object-store URL (s3://…).
    """
    target_geometry = geometry.geometry()
    listed = filter(None, map(str.strip, chosen.listed or ()))
    requests = (request.request(photo, target_geometry) for photo in chain(photos, listed))
    submitting = _submit(requests, chosen, database, passes=passes_option.passes, as_json=output.as_json)
    if failures := asyncio.run(submitting):
        click.echo(f"{plural(failures, 'job')} failed", err=True)
        leave(FAILED)


async def _submit(
    requests: Iterator[ExpandRequest],
    chosen: SubmitOptions,
    database: Database,
    *,
    passes: int,
    as_json: bool,
) -> int:
    """Queue the requests, optionally wait for them, and return the number of failures."""
    waiting: dict[str, str] = {}  # photos by the keys of their jobs

    def remember_photos() -> Iterator[ExpandRequest]:
        from kling_expand.fleet.job import pack

        for request in requests:
            if chosen.wait:
                waiting[pack(request)["key"]] = source_name(request.image)
            yield request

    started_at = time.time()
    async with database.open() as fleet:
        count = await fleet.submit_many(remember_photos(), passes=passes, priority=chosen.priority)
        click.echo(f"{plural(count, 'job')} queued", err=True)
        if not chosen.wait:
            return 0
        if not (await fleet.stats()).workers:
            click.echo("no worker is running yet: start one with `kling-expand fleet worker`", err=True)
        failures = 0
        async with aclosing(_own_outcomes(fleet, waiting, started_at)) as outcomes:
            async for ended in outcomes:
                failures += ended.status != "succeeded"
                _print_outcome(ended, waiting.pop(ended.key), as_json=as_json)
    for photo in waiting.values():
        click.echo(clean(f"{photo}: the job is no longer queued, and it has no outcome"), err=True)
    return failures + len(waiting)


async def _own_outcomes(
    fleet: "Fleet", waiting: Mapping[str, str], started_at: float
) -> AsyncGenerator["JobOutcome", None]:
    """Yield the outcomes of the jobs in *waiting*, until the caller has removed all of these jobs.

    Outcomes from before *started_at* come last. A job that was submitted again keeps its earlier outcome
    until it ends again. But if a worker's clock is behind, a new outcome seems to be an earlier one.
    """
    earlier: dict[str, JobOutcome] = {}
    async with aclosing(fleet.results()) as outcomes:
        async for ended in outcomes:
            if ended.key not in waiting:
                continue
            if ended.ended_at < started_at:
                earlier[ended.key] = ended
                continue
            yield ended
            if not waiting:
                return
    for key in [*waiting]:
        if key in earlier:
            yield earlier[key]


def _print_outcome(ended: "JobOutcome", photo: str, *, as_json: bool) -> None:
    if as_json:
        show({"photo": photo, **asdict(ended)})
    elif ended.status == "succeeded":
        for place in ended.files or ended.urls:
            print_path(place)
        if ended.error:
            problem = (
                "the full-size pictures are missing" if ended.saved else "its pictures are not saved yet"
            )
            click.echo(clean(f"{photo}: {problem}: {ended.error}"), err=True)
    else:
        click.echo(clean(f"{photo}: {ended.status}: {ended.error or '-'}"), err=True)


# ---------------------------------------------------------------------------- workers


@frozen
class WorkerOptions(OptionGroup):
    """The options of a worker."""

    concurrency: int = option(
        "--concurrency",
        default=32,
        show_default=True,
        type=click.IntRange(min=1),
        metavar="N",
        help="Jobs to process at the same time; most of them wait for a slot.",
    )
    max_in_flight: int | None = option(
        "--max-in-flight",
        type=click.IntRange(min=1),
        metavar="N",
        help="Maximum number of pictures in progress, over all workers with this option. Without it, each "
        "worker estimates its share of the account's limit.",
    )
    account: str = option(
        "--account",
        default="default",
        show_default=True,
        metavar="NAME",
        help="The account to which --max-in-flight applies.",
    )
    output: str | None = option(
        "-o", "--output", metavar="PLACE", help="Directory, template or s3://… for the pictures."
    )
    full_size: bool = option(
        "--full-size",
        default=False,
        is_flag=True,
        help="Also save each picture at the scale of the photo, with the photo's own pixels put back.",
    )
    callback_url: str | None = option(
        "--callback-url", metavar="URL", help="URL to notify when the status of a task changes."
    )
    base_url: str | None = option(
        "--base-url", metavar="URL", help="Address of the service; the default is KLING_BASE_URL."
    )
    heartbeat_timeout: float = option(
        "--heartbeat-timeout",
        default=30.0,
        show_default=True,
        type=POSITIVE,
        metavar="SECONDS",
        help="Time without a heartbeat after which a worker counts as dead.",
    )
    shutdown_timeout: float = option(
        "--shutdown-timeout",
        default=20.0,
        show_default=True,
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="Time allowed for running jobs to finish after SIGTERM or Ctrl-C.",
    )


@fleet.command()
@options(chosen=WorkerOptions, database=Database)
def worker(*, chosen: WorkerOptions, database: Database) -> None:
    """Process jobs until SIGTERM or Ctrl-C.

    Running jobs then have --shutdown-timeout seconds to finish. The worker requeues those that have not
    finished by then, and exits at most 15 seconds later. A second signal ends it at once; no job is lost.
    """

    async def main() -> None:
        async with database.open() as fleet:
            from kling_expand.fleet.worker import Worker

            process = Worker(
                fleet,
                concurrency=chosen.concurrency,
                max_in_flight=chosen.max_in_flight,
                account=chosen.account,
                output=chosen.output,
                full_size=chosen.full_size,
                callback_url=chosen.callback_url,
                heartbeat_timeout=chosen.heartbeat_timeout,
                shutdown_timeout=chosen.shutdown_timeout,
                base_url=chosen.base_url,
            )
            _on_signal(process.stop)
            await process.run()

    asyncio.run(main())


def _on_signal(stop: Callable[[], None]) -> None:
    """Call *stop* at the first SIGINT or SIGTERM. A second signal of the same kind ends the process."""
    loop = asyncio.get_running_loop()

    def handle(number: int, _frame: object) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        loop.call_soon_threadsafe(stop)

    for number in (signal.SIGINT, signal.SIGTERM):  # asyncio's own signal handlers do not exist on Windows
        signal.signal(number, handle)


# ---------------------------------------------------------------------------- status


@fleet.command()
@options(database=Database, output=JSONOption)
def status(*, database: Database, output: JSONOption) -> None:
    """Print fleet statistics: workers, queue, slots, cost."""

    async def main() -> None:
        async with database.open() as fleet:
            stats = await fleet.stats()
        if output.as_json:
            show(asdict(stats))
        else:
            click.echo("\n".join(f"{name:<9} {text}" for name, text in stats_lines(stats)))

    asyncio.run(main())


@fleet.command()
@options(database=Database)
@click.option(
    "--every",
    default=1.0,
    show_default=True,
    type=POSITIVE,
    metavar="SECONDS",
    help="Time between two updates.",
)
def top(*, database: Database, every: float) -> None:
    """Show fleet statistics on a live screen, until Ctrl-C."""

    async def main() -> None:
        async with database.open() as fleet:
            await watch(fleet.stats, every)

    with suppress(KeyboardInterrupt):
        asyncio.run(main())


# ---------------------------------------------------------------------------- a fleet on this machine


@fleet.command()
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Worker processes.",
)
@click.option(
    "-o", "--output", default="out", show_default=True, metavar="DIR", help="Directory for the pictures."
)
def up(workers: int, output: str) -> None:
    """Run a whole fleet on this machine until Ctrl-C.

    The command starts the emulator, a temporary PostgreSQL server and workers. It prints the URL of the
    database, for the --dsn option of `submit`, `status` and `top`. Nothing is billed, and the database is
    deleted at the end.
    """
    asyncio.run(_up(workers, output))


async def _up(workers: int, output: str) -> None:
    try:
        from kling_expand.fleet.dev_server import Cluster, temporary_folder
    except ImportError as error:
        raise NothingDone(EXTRA) from error
    from kling_expand.emulator import Emulator

    stop = asyncio.Event()
    _on_signal(stop.set)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        try:
            emulator = await stack.enter_async_context(Emulator(slots=EMULATOR_SLOTS, work_seconds=0.3))
        except RuntimeError as error:
            raise NothingDone(str(error)) from error
        cluster = await stack.enter_async_context(Cluster(folder / "postgres"))
        async with Database(cluster.dsn, "default").open() as fleet:
            await fleet.init()
        words = ["--dsn", cluster.dsn, "--base-url", emulator.url, "-o", output]
        words += ["--max-in-flight", str(EMULATOR_SLOTS)]
        processes = [await _start_worker(words, emulator.api_key) for _ in range(workers)]
        click.echo(cluster.dsn)
        count = plural(workers, "worker")
        click.echo(f"{count} started; now run in another terminal:", err=True)
        click.echo(f"export KLING_FLEET_DSN='{cluster.dsn}'", err=True)
        click.echo("kling-expand fleet submit PHOTO --right 0.5 --wait", err=True)
        await stop.wait()
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        await asyncio.gather(*(process.wait() for process in processes))


async def _start_worker(words: Sequence[str], api_key: str) -> asyncio.subprocess.Process:
    """Start a worker that receives SIGTERM when its stdin is closed or this process is killed."""
    from kling_expand.fleet.dev_server import guard

    command = [sys.executable, "-m", "kling_expand", "fleet", "worker", "--shutdown-timeout", "3", *words]
    # In a separate session, workers do not receive Ctrl-C themselves: this process stops them.
    return await asyncio.create_subprocess_exec(
        *map(str, guard("TERM", *command)),
        env=environment_with(KLING_API_KEY=api_key),
        stdin=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
