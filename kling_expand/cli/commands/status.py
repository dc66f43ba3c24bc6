"""`kling-expand status`: the status of tasks, or the progress of a run."""

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import click
from attrs import define, field

from kling_expand.cli.options import Connection, JSONOption, exists, find_journal, options
from kling_expand.cli.terminal import FAILED, clean, leave, money, plural, show, span, task_facts
from kling_expand.errors import KlingError
from kling_expand.models import Status, Task

if TYPE_CHECKING:
    from kling_expand.cli.batch.plan import Usage
    from kling_expand.client import KlingClient

RECENT = 600.0  # seconds: only rows saved within this time count for the rate


@click.command()
@click.argument("ids", metavar="ID...|RUN", nargs=-1, required=True)
@options(connection=Connection, output=JSONOption)
def status(ids: tuple[str, ...], *, connection: Connection, output: JSONOption) -> None:
    """Print the status of each task, or the progress of a run.

    \b
      kling-expand status 930810057590833241
      kling-expand status out/

    ID is a task_id or external_task_id. The command asks the service for each task, and prints submitted,
    processing, succeed or failed. `kling-expand get` prints the details of a task.

    RUN is an output directory, or its journal file. The run may still be in progress.

    Exit code 1 if a task failed or could not be read.
    """
    if len(ids) == 1 and exists(ids[0]):
        run = asyncio.run(_read_run(find_journal(ids[0])))
        show(run.facts()) if output.as_json else click.echo("\n".join(map(clean, run.lines())))
        return
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


# ---------------------------------------------------------------------------- the progress of a run


@define
class Run:
    """The state of a run at the time `now`, from its journal. `saved_at` are the times of recent saves."""

    journal: str
    process: int | None  # the process that has the journal open
    rows: int
    usage: "Usage"
    emulated: bool
    now: float
    saved_at: list[float] = field(factory=list)
    bad: int = 0  # rows that cannot be sent

    @property
    def to_come(self) -> int:
        """The number of rows that have not been started."""
        return max(self.rows - sum(self.usage.states.values()) - self.bad, 0)

    @property
    def left(self) -> int:
        """The number of rows that have not ended."""
        return self.to_come + self._count("intent", "unknown", "submitted", "succeeded")

    @property
    def rate(self) -> float | None:
        """The recent number of rows saved per second, or None if the run is not in progress."""
        if self.process is None or len(self.saved_at) < 2:
            return None
        return (len(self.saved_at) - 1) / max(self.now - min(self.saved_at), 1.0)

    @property
    def time_left(self) -> float | None:
        """The expected seconds until the last row ends, or None."""
        return self.left / self.rate if self.rate else None

    def lines(self) -> list[str]:
        """Return the progress as text."""
        counts = {
            "saved": self.usage.saved,
            "at the service": self._count("submitted", "succeeded"),
            "waiting to be sent": self._count("intent", "unknown"),
            "failed": self._count("failed", "rejected"),
            "bad": self.bad,
            "not started": self.to_come,
        }
        kinds = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number or kind == "saved")
        state = f"running in process {self.process}" if self.process else "not running"
        lines = [
            f"{self.journal}: {state}",
            f"{plural(self.rows, 'job')}: {kinds}",
            self._cost(),
        ]
        if self.rate and self.time_left:
            lines.insert(2, f"{60 * self.rate:.1f} jobs per minute, about {span(self.time_left)} left")
        return lines

    def _cost(self) -> str:
        due = max(self.usage.due - self.usage.billed, 0)
        used = "used" if self.emulated else "billed"
        more = f", {due:.10g} more if the open tasks succeed" if due else ""
        return f"{money(self.usage.billed, emulated=self.emulated)} {used}{more}"

    def facts(self) -> dict[str, Any]:
        """Return the progress for JSON."""
        return {
            "journal": self.journal,
            "process": self.process,
            "rows": self.rows,
            "saved": self.usage.saved,
            "open": self._count("intent", "unknown", "submitted", "succeeded"),
            "failed": self._count("failed", "rejected"),
            "bad": self.bad,
            "to_come": self.to_come,
            "rows_per_minute": 60 * self.rate if self.rate else None,
            "seconds_left": self.time_left,
            "units_billed": self.usage.billed,
            "units_due": self.usage.due,
            "emulated": self.emulated,
        }

    def _count(self, *states: str) -> int:
        return sum(number for state, number in self.usage.states.items() if state in states)


async def _read_run(path: str) -> Run:
    """Read the progress of a run from a snapshot of its journal."""
    from kling_expand.cli.batch.plan import EMULATED, Usage, copied_journal
    from kling_expand.store.base import JobState
    from kling_expand.store.sqlite_file import writer_of

    process = writer_of(path)
    async with copied_journal(path) as journal:
        usage, saved_at, now = Usage(), list[float](), time.time()
        await usage.add_costs(journal)
        async for job in journal.jobs():
            usage.count(job)
            if job.state is JobState.DONE and job.updated_at > now - RECENT:
                saved_at.append(job.updated_at)
        bad = len(await journal.bad_rows())
        known = sum(usage.states.values()) + bad
        return Run(
            path,
            process if process is not None and _is_running(process) else None,
            max(await journal.rows() or 0, known),
            usage,
            journal.account == EMULATED,
            now,
            sorted(saved_at),
            bad,
        )


def _is_running(process: int) -> bool:
    """Return whether a process exists. A killed process could not record its end."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True
