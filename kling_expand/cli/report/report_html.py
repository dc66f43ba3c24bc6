"""The HTML page about a journal: one card per job, rendered by one Jinja2 template into one file."""

import asyncio
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from attrs import define, field, frozen
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kling_expand.api import codec
from kling_expand.cli.batch.manifest import stem
from kling_expand.cli.batch.plan import Usage
from kling_expand.cli.terminal import clean, moment, money, span
from kling_expand.geometry import Ratios, Towards
from kling_expand.models import ExpandRequest, Status, Task
from kling_expand.store.base import JobRecord, JobState
from kling_expand.store.sqlite import SQLiteStore

from .thumbnails import Thumbnail, thumbnail

# The filter that shows a job, and its state in words.
STATES = {
    JobState.DONE: ("done", "done"),
    JobState.SUCCEEDED: ("open", "not saved yet"),
    JobState.SUBMITTED: ("open", "at the service"),
    JobState.INTENT: ("open", "not sent"),
    JobState.UNKNOWN: ("open", "unknown"),
    JobState.FAILED: ("failed", "failed"),
    JobState.REJECTED: ("failed", "refused"),
}


@define
class Totals:
    """The sums of all jobs; `durations` are the seconds of the tasks that succeeded."""

    jobs: int = 0
    usage: Usage = field(factory=Usage)
    durations: list[float] = field(factory=list)

    def count(self, job: JobRecord) -> None:
        """Add a job."""
        self.jobs += 1
        self.usage.count(job)
        duration = seconds(job.task)
        if duration is not None:
            self.durations.append(duration)

    def kinds(self) -> dict[str, int]:
        """Return the number of jobs of each kind that has any."""
        kinds = dict.fromkeys(("done", "failed", "open"), 0)
        for state, number in self.usage.states.items():
            kinds[STATES[state][0]] += number
        return {kind: number for kind, number in kinds.items() if number}

    def facts(self) -> dict[str, str]:
        """Return names and values for the head of the page."""
        kinds = dict.fromkeys(("done", "failed", "open"), 0) | self.kinds()
        facts = {"jobs": str(self.jobs), **{kind: str(number) for kind, number in kinds.items()}}
        facts["billed"] = money(self.usage.billed)
        if ordered := sorted(self.durations):
            facts["median task"] = span(ordered[len(ordered) // 2])
            facts["95th percentile"] = span(ordered[min(len(ordered) * 19 // 20, len(ordered) - 1)])
        return facts


def seconds(task: Task | None) -> float | None:
    """Return how long a successful task took, by the service's clock; None for any other."""
    if (
        task is None
        or task.status is not Status.SUCCEED
        or task.created_at is None
        or task.updated_at is None
    ):
        return None
    return max(task.updated_at - task.created_at, 0) / 1000


@frozen
class Card:
    """One job on the page; `place` is the style that puts the photo where it lies in the result."""

    name: str
    source: str
    kind: str
    state: str
    width: int
    height: int
    place: str
    before: Thumbnail | None
    after: list[Thumbnail]
    prompt: str | None
    error: str | None
    facts: dict[str, str]


def make_card(job: JobRecord, size: int) -> Card:
    """Return the card of *job* with pictures of at most *size* pixels on each side."""
    request = codec.unpack_request(job.params, job.source or "", job.key)
    ratios = _ratios(request)
    before = thumbnail(job.source, size) if job.source else None
    after = [small for path in job.files if (small := thumbnail(path, size))]
    width, height = _canvas(before, after, ratios)
    kind, state = STATES[job.state]
    return Card(
        name=stem(job.source) if job.source else job.external_task_id,
        source=job.source or "",
        kind=kind,
        state=state,
        width=width,
        height=height,
        place=_place(ratios),
        before=before,
        after=after,
        prompt=request.prompt,
        error=job.error,
        facts=_facts(job, request, before, after),
    )


def _ratios(request: ExpandRequest) -> Ratios:
    geometry = request.geometry
    return geometry if isinstance(geometry, Ratios) else geometry.ratios(0, 0)


def _canvas(before: Thumbnail | None, after: list[Thumbnail], ratios: Ratios) -> tuple[int, int]:
    if after:
        return after[0].width, after[0].height
    if before is None:
        return 1, 1
    canvas = ratios.canvas(before.width, before.height)
    return canvas.width, canvas.height


def _place(ratios: Ratios) -> str:
    across, down = 1 + ratios.left + ratios.right, 1 + ratios.up + ratios.down
    return (
        f"left:{100 * ratios.left / across:.4f}%;top:{100 * ratios.up / down:.4f}%;"
        f"width:{100 / across:.4f}%;height:{100 / down:.4f}%"
    )


def _facts(
    job: JobRecord, request: ExpandRequest, before: Thumbnail | None, after: list[Thumbnail]
) -> dict[str, str]:
    duration = seconds(job.task)
    sizes = [f"{small.width}×{small.height}" for small in (before, *after[:1]) if small]
    return {
        "ratios": _geometry_text(request),
        "size": " → ".join(sizes),
        "pictures": str(request.n) if request.n > 1 else "",
        "duration": span(duration) if duration is not None else "",
        "units": (job.task and job.task.final_unit_deduction) or "",
        "created": moment(round(job.created_at * 1000)),
        "attempt": str(job.attempt) if job.attempt > 1 else "",
        "task": job.task_id or "",
        "external id": job.external_task_id,
        "files": ", ".join(PurePath(path).name for path in job.files),
    }


def _geometry_text(request: ExpandRequest) -> str:
    if isinstance(request.geometry, Towards):
        return f"{request.geometry.direction} {request.geometry.ratio:g}"
    ratios = _ratios(request)
    sides = {"up": ratios.up, "down": ratios.down, "left": ratios.left, "right": ratios.right}
    return ", ".join(f"{side} {value:.4g}" for side, value in sides.items() if value)


# ---------------------------------------------------------------------------- the page


async def read_totals(journal: SQLiteStore) -> Totals:
    """Add up all jobs of *journal*."""
    totals = Totals()
    async for job in journal.jobs():
        totals.count(job)
    return totals


def render(journal: SQLiteStore, totals: Totals, *, size: int, last: int) -> AsyncIterator[str]:
    """Yield the page in pieces, because it may be larger than memory; it shows the *last* jobs."""
    environment = Environment(
        loader=PackageLoader("kling_expand.cli", "report"),
        autoescape=True,
        enable_async=True,
        undefined=StrictUndefined,
        finalize=_without_controls,
    )
    return environment.get_template("report.html.j2").generate_async(
        title=Path(journal.path).name,
        css=_asset("report.css"),
        script=_asset("report.js"),
        totals=totals,
        last=last,
        cards=_cards(journal, skip=totals.jobs - last, size=size),
    )


async def _cards(journal: SQLiteStore, *, skip: int, size: int) -> AsyncIterator[Card]:
    number = 0
    async for job in journal.jobs():
        number += 1
        if number > skip:
            yield await asyncio.to_thread(make_card, job, size)


def _asset(name: str) -> Markup:
    return Markup(files(__package__).joinpath(name).read_text("utf-8"))  # noqa: S704 - our own file


def _without_controls(value: Any) -> Any:
    """Remove control characters from text of others, such as those that reverse its direction."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else clean(value)
