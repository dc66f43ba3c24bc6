"""The HTML page about a journal, with one card per job, rendered from one Jinja2 template."""

import asyncio
import hashlib
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from attrs import define, field, frozen
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kling_expand.api import codec
from kling_expand.cli.batch.fitting import is_fitted
from kling_expand.cli.batch.manifest import JOURNAL_PREFIX, stem
from kling_expand.cli.batch.plan import EMULATED, Usage
from kling_expand.cli.terminal import clean, moment, money, span
from kling_expand.geometry import Canvas, Expansion, Ratios, Towards, chained_canvas
from kling_expand.models import ExpandRequest, Status, Task
from kling_expand.passes import Pass, pass_of
from kling_expand.store.base import JobRecord, JobState
from kling_expand.store.sqlite import SQLiteStore

from .thumbnails import Thumbnail, Thumbnails

_ANY_SIZE = (1000, 1000)  # assumed size of an unreadable photo: its place in the canvas does not depend on it
_ASPECT = re.compile(r"(\d+(?:\.\d+)?)x(\d{1,2}(?:\.\d+)?)")  # an aspect ratio in the name of a shape
_URL_SECRETS = re.compile(r"(://)(?:[^/\s]*@)?([^\s?#)]*)(?:[?#][^\s)]*)?")
PREFETCHED_CARDS = 2 * (os.cpu_count() or 1)  # cards that are made in advance, while others are written

# The page's filter for a job, and its state in words.
STATES = {
    JobState.DONE: ("done", "done"),
    JobState.SUCCEEDED: ("open", "not saved yet"),
    JobState.SUBMITTED: ("open", "at the service"),
    JobState.INTENT: ("open", "not sent"),
    JobState.UNKNOWN: ("open", "not confirmed"),
    JobState.FAILED: ("failed", "failed"),
    JobState.REJECTED: ("failed", "refused"),
}


@define
class Totals:
    """The totals of all jobs. `durations` are the seconds that the succeeded tasks took.

    The tasks of an `emulated` service are not billed. `checks` has the findings of `--check`, by job.
    `title` names the run.
    """

    title: str = ""
    emulated: bool = False
    jobs: int = 0
    usage: Usage = field(factory=Usage)
    durations: list[float] = field(factory=list)
    checks: dict[str, tuple[str, ...]] = field(factory=dict)
    bad_rows: dict[str, str] = field(factory=dict)  # rows that could not be sent, with the reasons

    def count(self, job: JobRecord) -> None:
        """Add a job."""
        self.jobs += 1
        self.usage.count(job)
        duration = seconds(job.task)
        if duration is not None:
            self.durations.append(duration)

    def kinds(self) -> dict[str, int]:
        """Return the number of jobs of each kind. Suspicious ones do not count as done."""
        suspicious = sum(map(bool, self.checks.values()))
        kinds = {"done": -suspicious, "suspicious": suspicious, "failed": 0, "open": 0}
        for state, number in self.usage.states.items():
            kinds[STATES[state][0]] += number
        return {kind: number for kind, number in kinds.items() if number}

    def facts(self) -> dict[str, str]:
        """Return the names and values of the page's header."""
        kinds = dict.fromkeys(("done", "failed", "open"), 0) | self.kinds()
        facts = {"jobs": str(self.jobs), **{kind: str(number) for kind, number in kinds.items()}}
        if self.checks:
            facts["suspicious"] = f"{sum(map(bool, self.checks.values()))} of {len(self.checks)} checked"
        if self.bad_rows:
            facts["not sent"] = str(len(self.bad_rows))
        facts["used" if self.emulated else "billed"] = money(self.usage.billed, emulated=self.emulated)
        if ordered := sorted(self.durations):
            facts["median task"] = span(ordered[len(ordered) // 2])
            facts["95th percentile"] = span(ordered[min(len(ordered) * 19 // 20, len(ordered) - 1)])
        return facts


def seconds(task: Task | None) -> float | None:
    """Return the duration of a successful task by the service's clock, or None."""
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
    """One job on the page. `place` is the style that positions the photo within the result."""

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
    changed: bool  # whether the photo is no longer the one that was sent
    suspicions: tuple[str, ...]  # the findings of `--check`
    facts: dict[str, str]


def make_card(job: JobRecord, thumbnails: Thumbnails, suspicions: tuple[str, ...] = ()) -> Card:
    """Return the card of *job*."""
    request, step = codec.unpack_request(job.params, job.source or "", job.key), pass_of(job)
    source = str(step.request.image) if step else job.source
    before = thumbnails.make(source, upright=is_fitted(job.key)) if source else None
    after = [small for path in job.files if (small := thumbnails.make(path))]
    passes = step.steps[: step.number] if step else (_ratios(request),)
    canvas = chained_canvas(*(before.width, before.height) if before else _ANY_SIZE, passes)
    kind, state = ("suspicious", "suspicious") if suspicions else STATES[job.state]
    return Card(
        name=_title(source, job.note) if source else job.external_task_id,
        source=_without_query(source or ""),
        kind=kind,
        state=state,
        width=after[0].width if after else canvas.width,
        height=after[0].height if after else canvas.height,
        place=_place(canvas),
        before=before,
        after=after,
        prompt=request.prompt,
        error=job.error,
        changed=_is_changed(job, request),
        suspicions=suspicions,
        facts=_facts(job, request, step) | _sizes(canvas, before, after),
    )


def _title(source: str, note: Mapping[str, Any]) -> str:
    """Return the name of a photo, with its directory in the output and the requested shape."""
    name = stem(source) if "://" in source else PurePath(source).name
    folder = str(next(iter(note.get("names", ())), "")).rpartition("/")[0]
    path = f"{folder}/{name}" if folder else name
    aspect = _ASPECT.fullmatch(str(note.get("shape", "")))
    return f"{path} → {aspect[1]}:{aspect[2]}" if aspect else path


def _without_query(source: str) -> str:
    """Return a path, or a URL without its user, query and fragment.

    The page may be sent to others, and these parts of a URL may contain secrets.
    """
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _is_changed(job: JobRecord, request: ExpandRequest) -> bool:
    """Return whether the photo has changed since it was sent. Read it only if it is newer than its job."""
    with suppress(OSError):
        if job.source is None or Path(job.source).stat().st_mtime <= job.created_at:
            return False
        with open(job.source, "rb") as file:  # noqa: PTH123 - it is text
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return codec.fingerprint(request, _expansion(request), digest) != job.params_hash
    return False


def _expansion(request: ExpandRequest) -> Expansion:
    return request.geometry if isinstance(request.geometry, Towards) else _ratios(request)


def _ratios(request: ExpandRequest) -> Ratios:
    geometry = request.geometry
    return geometry if isinstance(geometry, Ratios) else geometry.ratios(0, 0)


def _place(canvas: Canvas) -> str:
    left, top, right, bottom = canvas.frame
    return (
        f"left:{100 * left:.4f}%;top:{100 * top:.4f}%;"
        f"width:{100 * (right - left):.4f}%;height:{100 * (bottom - top):.4f}%"
    )


def _facts(job: JobRecord, request: ExpandRequest, step: Pass | None) -> dict[str, str]:
    duration = seconds(job.task)
    return {
        "ratios": _geometry_text(request),
        "shape": str(job.note.get("shape", "")),
        "pass": f"{step.number} of {len(step.steps)}" if step else "",
        "pictures": str(request.n) if request.n > 1 else "",
        "duration": span(duration) if duration is not None else "",
        "units": (job.task and job.task.final_unit_deduction) or "",
        "created": moment(round(job.created_at * 1000)),
        "attempt": str(job.attempt) if job.attempt > 1 else "",
        "task": job.task_id or "",
        "external id": job.external_task_id,
        "files": ", ".join(PurePath(path).name for path in job.files),
    }


def _sizes(canvas: Canvas, before: Thumbnail | None, after: list[Thumbnail]) -> dict[str, str]:
    """Return the sizes in pixels of the photo, its canvas and the (expected) picture."""
    sizes: dict[str, str] = {}
    if before:
        sizes["photo"] = f"{before.width}×{before.height}"
        sizes["canvas"] = f"{canvas.width}×{canvas.height}"
        sizes["result"] = "about {}×{}".format(*canvas.expected_size)
    if after:
        sizes["result"] = f"{after[0].width}×{after[0].height}"
    return sizes


def _geometry_text(request: ExpandRequest) -> str:
    if isinstance(request.geometry, Towards):
        return f"{request.geometry.direction} {request.geometry.ratio:g}"
    ratios = _ratios(request)
    sides = {"up": ratios.up, "down": ratios.down, "left": ratios.left, "right": ratios.right}
    return ", ".join(f"{side} {value:.4g}" for side, value in sides.items() if value)


# ---------------------------------------------------------------------------- the page


async def _bad_rows(journal: SQLiteStore) -> dict[str, str]:
    rows = await journal.bad_rows()
    return {_URL_SECRETS.sub(r"\1\2", name): _URL_SECRETS.sub(r"\1\2", text) for name, text in rows.items()}


def _title_of_run(journal: Path) -> str:
    """Return the journal's output directory, or the journal's name if the user chose it."""
    return f"{journal.resolve().parent.name}/" if journal.name.startswith(JOURNAL_PREFIX) else journal.name


async def read_totals(journal: SQLiteStore, path: str) -> Totals:
    """Return the totals of all jobs of *journal*, which may be a snapshot of the file at *path*."""
    emulated, checks = journal.account == EMULATED, await journal.findings()
    title = _title_of_run(Path(path))
    totals = Totals(title, emulated, checks=checks, bad_rows=await _bad_rows(journal))
    await totals.usage.add_costs(journal)
    async for job in journal.jobs():
        totals.count(job)
    return totals


def render(
    journal: SQLiteStore,
    totals: Totals,
    thumbnails: Thumbnails,
    *,
    last: int,
    on_card: Callable[[], object],
) -> AsyncIterator[str]:
    """Yield the page in pieces, because it may be larger than memory.

    The page shows the newest *last* jobs, and *on_card* is called after each of them.
    """
    environment = Environment(
        loader=PackageLoader("kling_expand.cli", "report"),
        autoescape=True,
        enable_async=True,
        undefined=StrictUndefined,
        finalize=_without_controls,
    )
    return environment.get_template("report.html.j2").generate_async(
        title=totals.title,
        css=_asset("report.css"),
        script=_asset("report.js"),
        totals=totals,
        last=last,
        cards=_cards(journal, thumbnails, skip=totals.jobs - last, on_card=on_card),
    )


async def _cards(
    journal: SQLiteStore, thumbnails: Thumbnails, *, skip: int, on_card: Callable[[], object]
) -> AsyncIterator[Card]:
    """Make the cards on several threads, because Pillow releases the GIL, and yield them in order."""
    number, cards = 0, deque[asyncio.Task[Card]]()
    findings = await journal.findings()
    async for job in journal.jobs():
        number += 1
        if number > skip:
            found = findings.get(job.external_task_id, ())
            cards.append(asyncio.create_task(asyncio.to_thread(make_card, job, thumbnails, found)))
        if len(cards) > PREFETCHED_CARDS:
            yield await cards.popleft()
            on_card()
    for card in cards:
        yield await card
        on_card()


def _asset(name: str) -> Markup:
    return Markup(files(__package__).joinpath(name).read_text("utf-8"))  # noqa: S704 - our own file


def _without_controls(value: Any) -> Any:
    """Escape control characters in text from outside, such as those that reverse its direction."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else clean(value)
