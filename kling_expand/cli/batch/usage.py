"""What has a journal's work cost? One walk along it, money and progress counted."""

from attrs import define

from kling_expand.api import codec
from kling_expand.models import UNITS_PER_IMAGE, Task
from kling_expand.store.base import JobRecord, JobState
from kling_expand.store.sqlite import SQLiteStore

from .survey import PAID


@define
class Spent:
    """What a journal says of money and progress, its last attempts only.

    `due` is what its tasks cost if all go well, `billed` what the service says it has billed, in units.
    """

    due: int = 0
    billed: int = 0
    saved: int = 0
    open: int = 0  # tasks at the service
    ended: int = 0  # that succeeded and are not saved

    def count(self, job: JobRecord) -> None:
        """Add a job."""
        if job.state in PAID:
            self.due += UNITS_PER_IMAGE * pictures(job)
        self.billed += int(billed(job.task))
        self.saved += job.state is JobState.DONE
        self.open += job.state is JobState.SUBMITTED
        self.ended += job.state is JobState.SUCCEEDED


def pictures(job: JobRecord) -> int:
    """How many a job asked for."""
    return codec.unpack_request(job.params, job.source or "", job.key).n


def billed(task: Task | None) -> float:
    """Units the service says it has billed."""
    return float(task.units or 0) if task else 0.0


async def spent(journal: SQLiteStore) -> Spent:
    """One walk along the journal."""
    found = Spent()
    async for job in journal.jobs():
        found.count(job)
    return found
