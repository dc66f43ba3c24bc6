"""What does a manifest come to? Rows counted and their cost, before anything is sent."""

from collections import Counter
from typing import Any

from attrs import define, evolve, field

from kling_expand.api import codec
from kling_expand.api.photo import load_photo
from kling_expand.cli.formatting import money
from kling_expand.config import Settings
from kling_expand.errors import KlingError
from kling_expand.models import ExpandRequest, resolve_geometry
from kling_expand.store.base import JobRecord, JobState
from kling_expand.store.sqlite import SQLiteStore

from .rows import Row
from .validation import check

PAID = (JobState.SUBMITTED, JobState.SUCCEEDED, JobState.DONE)  # asking for such a job again costs nothing


@define
class Survey:
    """How many rows there are, how many cannot be sent, and what the others cost at most.

    `paid` are those of them that the journal has a task for, `units` is what is left to pay.
    """

    rows: int = 0
    bad: int = 0
    paid: int = 0
    units: int = 0
    most: int = 1  # pictures of a row
    names: Counter[int] = field(factory=Counter)  # their hashes, as there may be a million

    def count(self, row: Row, *, paid: bool = False) -> None:
        """Add a row."""
        self.rows += 1
        if row.request is None:
            self.bad += 1
            return
        self.names[hash(row.name.casefold())] += 1
        self.most = max(self.most, row.request.n)
        self.paid += paid
        self.units += 0 if paid else row.request.units

    def candidates(self, row: Row) -> tuple[str, ...]:
        """What the row's results may be called, best first."""
        tagged = f"{row.name}-{row.tag}"
        shared = self.names[hash(row.name.casefold())] > 1
        return (tagged,) if shared else (row.name, tagged)

    def facts(self) -> dict[str, Any]:
        """The same for JSON."""
        good = self.rows - self.bad
        return {"rows": self.rows, "good": good, "bad": self.bad, "paid": self.paid, "units": self.units}

    def words(self) -> str:
        """One line to read."""
        already = f", {self.paid} of them already paid for" if self.paid else ""
        good = self.rows - self.bad
        return f"{good} rows can be sent{already}; {self.bad} cannot; {money(self.units)} at most"


async def looked_at(row: Row, dialect: str | None) -> tuple[Row, tuple[str, ...]]:
    """The row, bad if its photo or geometry would be refused, and what its user should know of it."""
    if row.request is None:
        return row, ()
    try:
        return row, (await check(row.request, dialect)).notes
    except KlingError as error:
        return evolve(row, request=None, error=error.message), ()


async def known(request: ExpandRequest, journal: SQLiteStore, dialect: str | None) -> JobRecord | None:
    """The journal's job for the same photo and parameters. Raises what `load_photo` does."""
    photo = await load_photo(request.image)
    expansion = resolve_geometry(request, Settings.from_env(dialect=dialect).dialect, photo.dimensions)
    digest = codec.fingerprint(request, expansion, photo.digest)
    return await journal.find(request.key or digest, digest)
