"""The plan of a batch: its options, its rows and their cost, and distinct names for its results."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import click
from attrs import define, evolve, field, frozen

from kling_expand.api import codec
from kling_expand.cli.options import Connection, LimitOptions, OutputOptions
from kling_expand.cli.terminal import FAILED, NothingDone, billed_units, clean, money, plural, show
from kling_expand.downloads.files import SUFFIXES, OutputPaths, SaveOptions, output_paths
from kling_expand.errors import InvalidRequest, KlingError
from kling_expand.models import UNITS_PER_IMAGE, Image, Task
from kling_expand.store.base import JobRecord, JobState, JobStore, identify
from kling_expand.store.sqlite import SQLiteStore

from .manifest import Defaults, Manifest, Row, stem
from .validation import Checked, check

PAID = (JobState.SUBMITTED, JobState.SUCCEEDED, JobState.DONE)  # such a job is not billed again


@frozen(kw_only=True)
class Plan:
    """The options of a batch: its connection, its output and its limits.

    A `detailed` batch is one of few jobs: each has its own line on the screen, and its paths are printed.
    At most `max_open` jobs wait for their results at once; None means twice `max_in_flight`.
    """

    title: str
    connection: Connection
    output: OutputOptions
    limits: LimitOptions = field(factory=LimitOptions)
    deadline: float | None = None
    max_failures: int | None = None
    max_open: int | None = None
    detailed: bool = False
    journal: str = ""  # the file's name, where there is one


@frozen(kw_only=True)
class BulkPlan(Plan):
    """The plan of `kling-expand bulk`: the rows of a manifest."""

    manifest: Manifest
    defaults: Defaults

    def rows(self) -> Iterator[Row]:
        """Read the manifest once more."""
        return self.manifest.rows(self.defaults)


@define
class Usage:
    """The cost and the states of the jobs of a journal, by their last attempts.

    `due` is their cost if every open task succeeds, `billed` what the service has billed, in units.
    """

    due: int = 0
    billed: float = 0
    saved: int = 0
    open: int = 0  # tasks at the service
    states: Counter[JobState] = field(factory=Counter)

    def count(self, job: JobRecord) -> None:
        """Add a job."""
        if job.state in PAID:
            self.due += UNITS_PER_IMAGE * codec.unpack_request(job.params, job.source or "", job.key).n
        self.billed += billed_units(job.task) or 0
        self.saved += job.state is JobState.DONE
        self.open += job.state is JobState.SUBMITTED
        self.states[job.state] += 1


async def read_usage(journal: JobStore) -> Usage:
    """Add up all jobs of *journal*."""
    usage = Usage()
    async for job in journal.jobs():
        usage.count(job)
    return usage


@define
class Survey:
    """The number of rows, of those that cannot be sent, and the highest cost of the others.

    `paid` counts the rows that the journal has a task for; `units` is what remains to be paid.
    """

    rows: int = 0
    bad: int = 0
    paid: int = 0
    units: int = 0
    most_images: int = 1  # of one row
    names: Counter[int] = field(factory=Counter)  # hashes of names, to save memory: there may be a million

    def count(self, row: Row, *, paid: bool = False) -> None:
        """Add a row."""
        self.rows += 1
        if row.request is None:
            self.bad += 1
            return
        self.names[hash(row.name.casefold())] += 1
        self.most_images = max(self.most_images, row.request.n)
        self.paid += paid
        self.units += 0 if paid else row.request.units

    def candidates(self, row: Row) -> tuple[str, ...]:
        """Return the possible names of the row's results, best first."""
        tagged = f"{row.name}-{row.tag}"
        shared = self.names[hash(row.name.casefold())] > 1
        return (tagged,) if shared else (row.name, tagged)

    def facts(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        good = self.rows - self.bad
        return {"rows": self.rows, "good": good, "bad": self.bad, "paid": self.paid, "units": self.units}

    def text(self) -> str:
        """Return the numbers on one line."""
        paid = f" ({self.paid} already paid for)" if self.paid else ""
        good = plural(self.rows - self.bad, "row")
        return f"{good} can be sent{paid}, {self.bad} cannot; cost: at most {money(self.units)}"

    def require_rows(self) -> None:
        """Raise `NothingDone` where no row can be sent."""
        if not self.rows:
            raise NothingDone("the manifest lists no photo")
        if self.bad == self.rows:
            raise NothingDone(f"none of {plural(self.rows, 'row')} can be sent")


def check_output(plan: BulkPlan, survey: Survey) -> None:
    """Raise `InvalidRequest` where results of two rows, or two results of one, would share a path."""
    distinct_names(["one row.jpg", "another row.jpg"], plan.output.target, survey.most_images)


def read_rows(plan: BulkPlan) -> Survey:
    """Return a survey of the rows without reading their photos.

    Raises:
        NothingDone: no row can be sent.
    """
    survey = Survey()
    for row in plan.rows():
        survey.count(row)
        if row.error is not None and not plan.output.as_json:
            click.echo(clean(f"{row.label}: {row.error}"), err=True)
    survey.require_rows()
    return survey


async def check_rows(plan: BulkPlan) -> Survey:
    """Return a survey of the rows and their photos.

    Raises:
        NothingDone: a row cannot be sent.
    """
    survey = await _survey_photos(plan, None)
    survey.require_rows()
    if survey.bad:
        raise NothingDone(f"{survey.bad} of {plural(survey.rows, 'row')} cannot be sent, so nothing was sent")
    return survey


async def dry_run(plan: BulkPlan) -> int:
    """Print what a run would cost, and return the exit code."""
    if await asyncio.to_thread(Path(plan.journal).exists):
        async with SQLiteStore(plan.journal) as journal:
            survey = await _survey_photos(plan, journal)
    else:
        survey = await _survey_photos(plan, None)
    check_output(plan, survey)
    if plan.output.as_json:
        show(survey.facts())
    else:
        click.echo(survey.text())
    return FAILED if survey.bad or not survey.rows else 0


async def _survey_photos(plan: BulkPlan, journal: JobStore | None) -> Survey:
    survey = Survey()
    for row in plan.rows():
        checked, problem = await _checked(row, plan.connection.dialect)
        paid = checked is not None and journal is not None and await _is_paid(checked, journal)
        survey.count(row if checked else evolve(row, request=None), paid=paid)
        for text in (problem, *(checked.notes if checked else ())):
            if text is None:
                continue
            if plan.output.as_json:
                show({"line": row.line, "source": row.label, "bad": checked is None, "note": text})
            else:
                click.echo(clean(f"{row.label}: {text}"), err=True)
    return survey


async def _checked(row: Row, dialect: str | None) -> tuple[Checked | None, str | None]:
    """Return the row's request with its photo, or why it cannot be sent."""
    if row.request is None:
        return None, row.error
    try:
        return await check(row.request, dialect), None
    except KlingError as error:
        return None, error.message


async def _is_paid(checked: Checked, journal: JobStore) -> bool:
    identity = identify(journal, checked.prepared)
    job = await journal.find(*identity) if identity else None
    return job is not None and job.state in PAID


# ---------------------------------------------------------------------------- names of results


class OutputNames:
    """Assigns names below *target*, a directory or a template, to results that are saved concurrently."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._claimed: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def name(self, task: Task, candidates: Sequence[str]) -> AsyncIterator[str]:
        """Reserve the first of *candidates* whose files do not exist, or the last: it is this task's own.

        Raises:
            InvalidRequest: the target is no directory and no template.
        """
        last = candidates[-1]
        # Rows with equal requests are one task, so their saves of the same pictures must not overlap.
        async with self._locks.setdefault(last, asyncio.Lock()):
            chosen = last
            for candidate in candidates[:-1]:
                if await self._claim(task, candidate):
                    chosen = candidate
                    break
            try:
                yield chosen
            finally:
                self._claimed.discard(chosen.casefold())

    async def _claim(self, task: Task, candidate: str) -> bool:
        if candidate.casefold() in self._claimed:
            return False
        self._claimed.add(candidate.casefold())
        if await asyncio.to_thread(_exists, output_paths(task, self.target, SaveOptions(name=candidate))):
            self._claimed.discard(candidate.casefold())
            return False
        return True


def _exists(paths: OutputPaths) -> bool:
    """Return whether any of the files exists, in any format that the service may choose."""
    return any(os.path.lexists(path) for path in _all_paths(paths))


def _all_paths(paths: OutputPaths) -> list[Path]:
    return [
        paths.path(place, suffix, watermark=watermark)
        for place in range(len(paths.numbers))
        for suffix in SUFFIXES
        for watermark in (False, True)
    ]


def _path(photo: str) -> PurePath:
    return PurePath(urlsplit(photo).path if "://" in photo else photo)


def distinct_names(photos: Sequence[str], target: str, n: int) -> list[str]:
    """Return one name for the results of each photo, *n* pictures each, and check all of their paths.

    Raises:
        InvalidRequest: two results would share a path, or a result would replace a photo.
    """
    chosen = _distinct(photos)
    taken = {_key(photo): f"the photo {photo}" for photo in photos}
    for index, (photo, name) in enumerate(zip(photos, chosen, strict=True)):
        paths = _possible_paths(index, name, target, n)
        for path in paths:
            if path in taken:
                problem = f"a result of {photo} would replace {taken[path]}"
                raise InvalidRequest("output", repr(target), problem, "choose another --output")
        taken |= dict.fromkeys(paths, f"a result of {photo}")
    return chosen


def _distinct(photos: Sequence[str]) -> list[str]:
    """Return the photos' names, prefixed by their folders if they coincide, else numbered."""
    stems = Counter(stem(photo).casefold() for photo in photos)
    chosen: list[str] = []
    for photo in photos:
        name = stem(photo)
        if stems[name.casefold()] > 1:
            folder = _path(photo).parent.name if "://" in photo else Path(photo).resolve().parent.name
            name = f"{folder}-{name}" if folder else name
        chosen.append(_numbered(name, chosen))
    return chosen


def _numbered(name: str, taken: list[str]) -> str:
    used, number, candidate = {other.casefold() for other in taken}, 1, name
    while candidate.casefold() in used:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _possible_paths(index: int, name: str, target: str, n: int) -> set[str]:
    """Return every path that a picture of the photo may get: only the service decides the format."""
    images = tuple(Image(number, "") for number in range(n))
    sample = Task(f"task {index}", "succeed", external_task_id=f"external {index}", images=images)
    return {_key(path) for path in _all_paths(output_paths(sample, target, SaveOptions(name=name)))}


def _key(path: str | os.PathLike[str]) -> str:
    return os.path.normcase(Path(path).resolve())
