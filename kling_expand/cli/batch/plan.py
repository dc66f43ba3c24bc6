"""The plan of a batch: its options, its journal, and the check of all rows before the first is sent."""

import asyncio
import os
import shutil
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
from attrs import define, evolve, field, frozen

from kling_expand.api.photo import PhotoHeader, check_shape, read_header
from kling_expand.cli.options import NO_SHAPE, Connection, LimitOptions, OutputOptions
from kling_expand.cli.terminal import NothingDone, billed_units, clean, estimate, plural, shell_words, show
from kling_expand.config import Settings, account_name, credentials
from kling_expand.downloads.files import SUFFIXES, SaveOptions, check_target, output_paths
from kling_expand.errors import (
    GeometryError,
    ImageError,
    InvalidRequest,
    JournalError,
    KlingError,
    require,
)
from kling_expand.geometry import Canvas, Expansion, Ratios, ToAspect, chained_canvas
from kling_expand.geometry import plan as split_passes
from kling_expand.models import UNITS_PER_IMAGE, Dialect, ExpandRequest, Image, Task, resolve_geometry
from kling_expand.store.base import JobRecord, JobState, JobStore
from kling_expand.store.sqlite import SQLiteStore

from .manifest import (
    JOURNAL_PREFIX,
    Defaults,
    LeftOut,
    Manifest,
    Problem,
    Row,
    Selection,
    path_key,
    read_manifest,
)

PAID = (JobState.SUBMITTED, JobState.SUCCEEDED, JobState.DONE)  # a job in these states is not billed again
EMULATED = "the local emulator (--emulator)"  # the account in its journals, as its address always changes
SHOWN_LABELS = 5  # how many of the rows that are left out are named
ROWS_AT_ONCE = 64  # rows that one call to a thread checks
PICTURE_BYTES = 3 << 20  # approximate size of a result, for the check of free space
SMALL_SIDE = 512  # pixels: a photo smaller than this on both sides is scaled up by the service

LabelsByNote = dict[tuple[int | None, str], list[str]]  # labels of rows by note, for one line or any

_TURNED = "the photo is rotated by its EXIF data, which the service may ignore; --fit rotates it"
_SIDEWAYS = "its EXIF data rotates it sideways, so use --fit"
_ALPHA = "the photo has an alpha channel, which the service may ignore"
HAS_SHAPE = "the photo already has this shape"  # the error of a row that is left out
_SMALL = f"the photo has fewer than {SMALL_SIDE} pixels on each side, so the service scales the result up"


@frozen(kw_only=True)
class Plan:
    """The options of a batch: its connection, its output and its limits.

    A `detailed` batch has few jobs: each has its own line on the screen, and its paths are printed. At most
    `max_open` jobs are open at once; None means twice `max_in_flight`. `journal` is a file name, or empty for
    no journal.
    """

    title: str
    connection: Connection
    output: OutputOptions
    limits: LimitOptions = field(factory=LimitOptions)
    deadline: float | None = None
    max_failures: int | None = None
    max_open: int | None = None
    detailed: bool = False
    journal: str = ""
    own_journal: bool = False  # whether the user named the journal
    overwrite: bool = False  # whether results may replace files
    protected: frozenset[str] = frozenset()  # keys (see `path_key`) of files that are never replaced

    @property
    def dialect(self) -> Dialect:
        """The dialect in use."""
        return Settings.from_env(dialect=self.connection.dialect).dialect


@frozen(kw_only=True)
class BulkPlan(Plan):
    """The plan of `kling-expand expand` and `bulk` for the photos named by *sources*."""

    sources: Sequence[str]
    selection: Selection
    defaults: Defaults
    fresh: bool = False  # whether to make, and pay for, finished jobs again
    strict: bool = False  # whether to send nothing if a row is bad
    dry_run: bool = False
    failures: str = ""  # file for the rows that are not saved

    @property
    def fit(self) -> bool:
        """Whether photos are converted if necessary."""
        return self.selection.fit


# ---------------------------------------------------------------------------- the journal and the output


def output_folder(target: str) -> str:
    """Return the common directory of all results of *target*.

    Raises:
        InvalidRequest: if *target* is not a valid template.
    """
    try:
        pieces = list(string.Formatter().parse(target))
    except ValueError as error:
        limit = f"must be a directory or a template ({error})"
        raise InvalidRequest(
            "output", repr(target), limit, "to use a brace in a name, write it twice"
        ) from None
    literal = pieces[0][0] if pieces else ""
    is_file = literal.lower().endswith(SUFFIXES) and not os.path.isdir(literal)  # noqa: PTH112 - pathlib normalizes names
    whole = not is_file and all(name is None for _, name, _, _ in pieces)
    return (literal if whole else os.path.dirname(literal)) or os.curdir  # noqa: PTH120


def default_journal(target: str, connection: Connection) -> str:
    """Return the path of a journal in the output directory, which a run with the same output finds again."""
    suffix = "-emulator" if connection.emulator else ""
    return os.path.join(output_folder(target), f"{JOURNAL_PREFIX}{suffix}.db")  # noqa: PTH118


def journal_account(connection: Connection) -> str:
    """Return the name of the account to which the jobs of *connection* belong."""
    if connection.emulator:
        return EMULATED
    settings = Settings.from_env(base_url=connection.base_url, dialect=connection.dialect)
    return account_name(settings, credentials())


@asynccontextmanager
async def open_journal(plan: Plan) -> AsyncIterator[SQLiteStore | None]:
    """Open the journal of a batch, if it has one.

    If the journal belongs to another account, another file in the same directory is used. But if the user
    named the journal, that is an error.

    Raises:
        NothingDone: if the journal cannot be used.
    """
    if not plan.journal:
        yield None
        return
    account, path = journal_account(plan.connection), plan.journal
    async with AsyncExitStack() as stack:
        try:
            if not plan.own_journal and _is_file(path) and await _belongs_to_another(path, account):
                stem, suffix = os.path.splitext(path)  # noqa: PTH122
                path = f"{stem}-{sha256(account.encode()).hexdigest()[:8]}{suffix}"
            journal = await stack.enter_async_context(SQLiteStore(path, account=account))
        except JournalError as error:
            raise NothingDone(error.message) from error
        yield journal


async def _belongs_to_another(path: str, account: str) -> bool:
    async with SQLiteStore(path) as store:
        return store.account not in {"", account}


@asynccontextmanager
async def copied_journal(path: str) -> AsyncIterator[SQLiteStore]:
    """Open a temporary copy of a journal for reading.

    Raises:
        NothingDone: if the file is not a journal.
    """
    async with AsyncExitStack() as stack:
        try:
            journal = await stack.enter_async_context(SQLiteStore.snapshot(path))
        except JournalError as error:
            raise NothingDone(error.message) from error
        yield journal


def _is_file(path: str) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - pathlib normalizes names


def try_output(folder: str, *, pictures: int = 0) -> None:
    """Create *folder* if it is missing, and check that files can be written to it.

    Raises:
        NothingDone: if they cannot be written, or there is no space for *pictures* results.
    """
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        with tempfile.TemporaryFile(prefix=".kling-", dir=folder, buffering=0) as file:
            file.write(bytes(4096))
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise NothingDone(f"the output directory {folder} cannot be written to ({reason})") from None
    needed = pictures * PICTURE_BYTES
    if free < needed:
        sizes = f"{free >> 20} MB are free, and {plural(pictures, 'picture')} may take {needed >> 20} MB"
        raise NothingDone(f"the output directory {folder} has too little space: {sizes}")


async def saved_files(journals: Sequence[str]) -> set[str]:
    """Return the keys (see `path_key`) of all pictures that these journals name.

    If a directory was moved or copied together with its journal, the keys of the pictures in the new place
    are also returned.

    Raises:
        NothingDone: if a file is not a journal.
    """
    found: set[str] = set()
    for path in journals:
        if _is_file(path):
            async with copied_journal(path) as journal:
                folder, earlier = Path(path).parent, [f"{each}{os.sep}" for each in journal.folders]
                async for job in journal.attempts():
                    for file in job.files:
                        below = [file.removeprefix(each) for each in earlier if file.startswith(each)]
                        found.update(path_key(str(each)) for each in (file, *map(folder.joinpath, below)))
    return found


@define
class Usage:
    """The cost of all attempts in a journal, and the states of its jobs, from their last attempts.

    `due` is their cost in units if every open task succeeds, and `billed` the units billed so far.
    """

    due: int = 0
    billed: float = 0
    saved: int = 0
    open: int = 0  # tasks at the service
    states: Counter[JobState] = field(factory=Counter)

    async def add_costs(self, journal: JobStore) -> None:
        """Add the cost of every attempt, because each has its own task."""
        async for attempt in journal.attempts():
            if attempt.state in PAID:
                self.due += attempt.units
            self.billed += billed_units(attempt.task) or 0

    def count(self, job: JobRecord) -> None:
        """Add the state of a job, unless it is a pass before the last one."""
        if '"pass":' in job.params and job.state in {JobState.SUCCEEDED, JobState.DONE}:
            from kling_expand.passes import pass_of  # imported here, because few runs have passes

            step = pass_of(job)
            if step is not None and not step.is_last:
                return
        self.saved += job.state is JobState.DONE
        self.open += job.state is JobState.SUBMITTED
        self.states[job.state] += 1


async def read_usage(journal: JobStore | None) -> Usage:
    """Return the usage of all jobs of *journal*."""
    usage = Usage()
    if journal is not None:
        await usage.add_costs(journal)
        async for job in journal.jobs():
            usage.count(job)
    return usage


# ---------------------------------------------------------------------------- the check of one row


class Checked(NamedTuple):
    """The geometry of a request for its photo, notes for the user, and the canvas if its size is known.

    If the request needs several passes, the geometry is that of the first, and `steps` has the ratios of all.
    """

    expansion: Expansion
    notes: tuple[str, ...] = ()
    canvas: Canvas | None = None
    steps: tuple[Ratios, ...] = ()

    def units(self, request: ExpandRequest) -> int:
        """Return the cost of all passes."""
        return UNITS_PER_IMAGE * max(len(self.steps) - 1, 0) + request.units


class HasShape(GeometryError):
    """The error for a photo that already has the requested shape."""


def check(
    request: ExpandRequest,
    dialect: Dialect,
    *,
    fit: bool = False,
    passes: int = 1,
    decode: bool = False,
    needs_file: bool = False,
) -> Checked:
    """Check a request before it is sent, by the header of its photo.

    With *decode*, a photo that *fit* would convert is also decoded, because it may be damaged. With
    *needs_file*, a photo at a URL is refused.

    Raises:
        InvalidRequest: if the dialect cannot express the request, or the geometry does not suit the photo.
        HasShape: if the photo already has the requested shape.
        ImageError: if the service would refuse the photo, or with *fit* if it cannot be converted.
        MissingExtra: if fitting needs Pillow.
    """
    source = os.fspath(request.image)  # type: ignore[arg-type]  # the command line only has paths and URLs
    try:
        header = read_header(request.image)  # type: ignore[arg-type]  # the same
    except ImageError as error:
        if not fit or not os.path.isfile(source):  # noqa: PTH113
            raise _advised(error, source) from None
        return _check_fitted(request, dialect, source, passes, decode=decode)
    if header is None and needs_file:
        limit = "must be a file for --full-size, --metadata and --check"
        raise InvalidRequest("image", repr(source), limit, "download the photo")
    if header is None:  # a URL, which only the service reads
        return Checked(_expansion(request, dialect, None))
    if fit and header.orientation > 1:
        return _check_fitted(request, dialect, source, passes, decode=decode)
    try:
        return _resolved(request, dialect, (header.width, header.height), passes, _notes(header))
    except HasShape as error:
        if header.orientation <= 4:  # otherwise the shape is that of the photo on its side
            raise
        raise HasShape(error.field, error.value, error.limit, _SIDEWAYS) from None


def _check_fitted(
    request: ExpandRequest, dialect: Dialect, source: str, passes: int, *, decode: bool
) -> Checked:
    """Check a photo that is converted before it is sent."""
    from kling_expand.pictures.fit import check_pixels, upright_size  # imported here, because few runs fit

    size = upright_size(source)
    check_shape(*size, source)
    if decode:
        check_pixels(source)
    return _resolved(request, dialect, size, passes)


def _resolved(
    request: ExpandRequest,
    dialect: Dialect,
    size: tuple[int, int],
    passes: int,
    notes: tuple[str, ...] = (),
) -> Checked:
    steps = find_steps(request, dialect, size, passes)
    if len(steps) > 1:
        canvas = chained_canvas(*size, steps)
        cost = UNITS_PER_IMAGE * (len(steps) - 1) + request.units
        return Checked(steps[0], (*notes, f"needs {len(steps)} passes, {cost} units in all"), canvas, steps)
    expansion = _expansion(request, dialect, size)
    return Checked(expansion, notes, expansion.ratios().canvas(*size))


def find_steps(
    request: ExpandRequest, dialect: Dialect, size: tuple[int, int], passes: int
) -> tuple[Ratios, ...]:
    """Return the ratios of each pass if more than one is needed and allowed, or an empty tuple."""
    if passes == 1 or dialect is Dialect.DIRECTION:
        return ()
    with suppress(GeometryError):
        steps = split_passes(*size, request.geometry, passes)
        return tuple(steps) if len(steps) > 1 else ()
    return ()


def _notes(header: PhotoHeader) -> tuple[str, ...]:
    notes = {
        _TURNED: header.orientation > 1,
        _ALPHA: header.has_alpha,
        _SMALL: max(header.width, header.height) < SMALL_SIDE,
    }
    return tuple(note for note, applies in notes.items() if applies)


def _advised(error: ImageError, source: str) -> ImageError:
    """Return the error, with the advice to use --fit if that would help."""
    from kling_expand.pictures.fit import can_fit  # imported here, because most photos are good

    if not os.path.isfile(source) or not can_fit(source):  # noqa: PTH113
        return error
    return ImageError(error.field, error.value, error.limit, "use --fit")


def _expansion(request: ExpandRequest, dialect: Dialect, size: tuple[int, int] | None) -> Expansion:
    """Resolve the geometry. The advice of an error names command-line options."""
    try:
        return resolve_geometry(request, dialect, size)
    except GeometryError as error:
        geometry = request.geometry
        if size and isinstance(geometry, ToAspect) and geometry.area is None:
            up, down, left, right = geometry.sides(*size)
            if round(size[0] * (left + right)) == 0 == round(size[1] * (up + down)):
                raise HasShape(error.field, error.value, error.limit, error.advice) from None
        advice = shell_words(error.advice)
        raise GeometryError(error.field, error.value, error.limit, advice) from None
    except InvalidRequest as error:
        if error.field != "geometry":
            raise
        sides = "" if dialect is Dialect.DIRECTION else "--up/--down/--left/--right or "
        raise InvalidRequest(error.field, error.value, error.limit, f"use {sides}--direction") from None


# ---------------------------------------------------------------------------- the check of all rows


@define
class Survey:
    """The result of checking a batch: the number of rows, the bad rows, and the maximum cost.

    `paid` counts the rows for which the journal has every task, and `paid_in_part` those for which it has
    only the first passes. `units` is the remaining cost. `problems` and `notes` are keyed by the row's id.
    `already_shaped` rows need no expansion, because the photo already has the shape.
    """

    rows: int = 0
    paid: int = 0
    paid_in_part: int = 0
    units: int = 0
    pictures: int = 0
    max_images: int = 1  # the largest number of pictures of one row
    problems: dict[tuple[int, str], Problem] = field(factory=dict)
    notes: dict[tuple[int, str], tuple[str, ...]] = field(factory=dict)
    already_shaped: set[tuple[int, str]] = field(factory=set)
    names: Counter[int] = field(factory=Counter)  # hashes of names, to save memory: there may be a million
    left_out: dict[str, int] = field(factory=dict)
    sizes: Counter[str] = field(factory=Counter)  # expected sizes of the pictures, only in a dry run
    sources: set[str] = field(factory=set)  # keys of the photos, only if results may replace files
    shape_in_paths: bool = False
    noun: str = "row"

    @property
    def bad(self) -> int:
        """The number of rows that cannot be sent."""
        return len(self.problems)

    def count(self, row: Row, *, cost: int | None = None, paid: int = 0) -> None:
        """Add a row. *cost*, by default that of one task, includes the units that are already *paid*."""
        self.rows += 1
        if row.request is None or row.error is not None:
            self.problems[row.id] = Problem(row.error_type, row.error or "no request")
            return
        self.names.update(self._hash(row, name) for name in row.names[:-1])
        self.max_images = max(self.max_images, row.request.n)
        self.pictures += row.request.n
        due = (row.request.units if cost is None else cost) - paid
        self.paid += due == 0
        self.paid_in_part += paid > 0 and due > 0
        self.units += due

    def _hash(self, row: Row, name: str) -> int:
        """Return the hash of a name. With ``{shape}`` in the output, shapes of a photo may share a name."""
        return hash((name.casefold(), row.shape if self.shape_in_paths else ""))

    def names_for(self, row: Row) -> tuple[str, ...]:
        """Return the possible names of a row's results, beginning with the first unique one."""
        free = (name for name in row.names[:-1] if self.names[self._hash(row, name)] == 1)
        chosen = next(free, row.names[-1])
        return (chosen, *(name for name in row.names if name != chosen))

    def facts(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        good = self.rows - self.bad
        numbers = {"rows": self.rows, "good": good, "bad": self.bad, "paid": self.paid, "units": self.units}
        return numbers | {
            "paid_in_part": self.paid_in_part,
            "left_out": self.left_out,
            "expected_sizes": dict(self.sizes),
        }

    def text(self, *, emulated: bool = False) -> str:
        """Return the numbers, and the expected sizes of the pictures on a separate line."""
        paid = f"{self.paid} already paid for" if self.paid else ""
        in_part = f"the first passes of {self.paid_in_part} already paid for" if self.paid_in_part else ""
        known = ", ".join(filter(None, [paid, in_part]))
        good = plural(self.rows - self.bad, self.noun)
        cost = estimate(self.units, emulated=emulated)
        text = f"{good} can be sent{f' ({known})' if known else ''}, {self.bad} cannot; cost: at most {cost}"
        if not self.sizes:
            return text
        sizes = ", ".join(f"{size} ({plural(count, 'picture')})" for size, count in self.sizes.most_common(3))
        more = f" and {plural(len(self.sizes) - 3, 'other size')}" if len(self.sizes) > 3 else ""
        return (
            f"{text}\nthe service scales pictures to its 1K tier; approximate sizes in pixels: {sizes}{more}"
        )

    def require_rows(self) -> None:
        """Raise `NothingDone` if no row can be sent."""
        if not self.rows:
            raise NothingDone("no photo can be sent" if self.left_out else "no photo was found")
        if self.bad == self.rows:
            raise NothingDone(f"no {self.noun} can be sent ({plural(self.rows, f'bad {self.noun}')})")


async def find_rows(plan: BulkPlan) -> Manifest:
    """Return the photos of a batch without earlier results, and print how many files are left out.

    Raises:
        NothingDone: if a manifest is named together with anything else.
        MissingExtra: if fitting needs Pillow.
        InvalidRequest: if the output is neither a directory nor a template, or has another format's suffix.
    """
    _check_target(plan.output.target, plan.output.format)
    if plan.fit:
        require("images", "PIL")
    found = await asyncio.to_thread(read_manifest, plan.sources, plan.selection)
    photos = found.found
    folders = {os.path.dirname(photo.path) for photo in photos.photos if "://" not in photo.path}  # noqa: PTH120
    searched = {folder or os.curdir for folder in folders} | {plan.selection.output or os.curdir}
    nearby = await asyncio.to_thread(_journals_in, searched) if photos.photos else set()
    journals = {path_key(path): path for path in {*photos.journals, *nearby, plan.journal} if path}
    photos.remove_results(await saved_files(list(journals.values())))
    if plan.output.notes:
        for line in photos.lines():
            click.echo(clean(line), err=True)
    return found


def _journals_in(folders: set[str]) -> set[str]:
    found = set[str]()
    for folder in folders:
        with suppress(PermissionError):  # no photo in it can be read, and no result can be written to it
            found.update(map(str, Path(folder).glob(f"{JOURNAL_PREFIX}*.db")))
    return found


async def check_rows(
    plan: BulkPlan, listed: Manifest, paid_units: Callable[[Row, Checked], int] | None = None
) -> Survey:
    """Check all rows by the headers of their photos, and print problems and notes.

    *paid_units* returns how many of a row's units are already paid for, according to the journal. Photos to
    be converted are decoded only in a dry run or if one bad photo stops the batch, because decoding is slow.
    """
    survey = Survey(left_out=listed.found.facts(), shape_in_paths="{shape}" in plan.output.target)
    survey.noun = _noun(plan, listed)
    meter, rows = _Meter(plan, len(listed.found.photos)), listed.rows(plan.defaults)
    decode, needs_file = plan.dry_run or plan.strict, plan.output.needs_file
    check_row = partial(_checked, dialect=plan.dialect, fit=plan.fit, decode=decode, needs_file=needs_file)
    labels_by_note, have_shape = LabelsByNote(), list[str]()
    with meter:
        while chunk := list(islice(rows, ROWS_AT_ONCE)):
            for row, checked, notes in await asyncio.to_thread(list, map(check_row, chunk)):
                if row.error == HAS_SHAPE:
                    survey.already_shaped.add(row.id)
                    have_shape.append(row.label)
                    continue
                cost = checked.units(row.request) if checked and row.request else None
                paid = paid_units(row, checked) if checked and paid_units else 0
                survey.count(row, cost=cost, paid=paid)
                if checked is not None and checked.canvas is not None and plan.dry_run:
                    survey.sizes["{}x{}".format(*checked.canvas.expected_size)] += 1
                if plan.overwrite and row.request is not None:
                    survey.sources.add(path_key(str(row.request.image)))
                _collect_notes(plan, survey, labels_by_note, row, notes)
            meter.show(survey.rows)
    if survey.already_shaped:
        survey.left_out[str(LeftOut.HAS_SHAPE)] = len(survey.already_shaped)
        shown, more = ", ".join(have_shape[:SHOWN_LABELS]), max(len(have_shape) - SHOWN_LABELS, 0)
        number = f"{len(have_shape)} left out, because the photo already has the shape"
        labels_by_note[None, f"{number}: {shown}{f' and {more} more' if more else ''}"] = []
    problems = {problem.message for problem in survey.problems.values()}
    for (_, note), labels in labels_by_note.items():
        if plan.output.notes or (note in problems and not plan.output.as_json):
            click.echo(clean(_note_line(note, labels)), err=True)
    return survey


def _noun(plan: BulkPlan, listed: Manifest) -> str:
    """Return the word for the rows of a batch in messages. Only those of a manifest are called rows."""
    if listed.kind in {"table", "lines"}:
        return "row"
    return "picture" if plan.defaults.other_geometries else "photo"


def _checked(row: Row, *, dialect: Dialect, **options: bool) -> tuple[Row, Checked | None, tuple[str, ...]]:
    """Return the row, the result of its check, and notes. The `error` of a bad row is the reason."""
    if row.request is None:
        return row, None, ()
    warnings = (row.warning,) if row.warning else ()
    try:
        checked = check(row.request, dialect, passes=row.passes, **options)
    except HasShape as error:
        known = row.several and error.advice != _SIDEWAYS
        text = HAS_SHAPE if known else error.message
        return evolve(row, error=text, error_type=GeometryError.__name__), None, warnings
    except KlingError as error:
        return evolve(row, error=shell_words(error.message), error_type=type(error).__name__), None, warnings
    return row, checked, (*warnings, *checked.notes)


def _collect_notes(
    plan: BulkPlan, survey: Survey, labels_by_note: LabelsByNote, row: Row, notes: tuple[str, ...]
) -> None:
    """Keep the notes about a row. If the row is bad, print the reason."""
    if notes:
        survey.notes[row.id] = notes
    if row.error is not None and (NO_SHAPE in row.error or (row.several and not plan.output.as_json)):
        line = None if NO_SHAPE in row.error else row.line  # printed once for all rows, or for all shapes
        labels_by_note.setdefault((line, row.error), []).append(row.label)
    elif row.error is not None and not plan.output.as_json:
        click.echo(clean(f"{row.label}: {row.error}"), err=True)
    for note in notes:
        labels_by_note.setdefault((None, note), []).append(row.label)
    if plan.output.as_json and plan.dry_run:
        for text in (row.error, *notes):
            if text is not None:
                bad = row.error is not None
                show({"line": row.line, "source": row.label, "bad": bad, "note": text})


def _note_line(note: str, labels: list[str]) -> str:
    """Return a note about one photo, several photos or the whole batch, on one line."""
    if not labels:
        return note
    if len(labels) == 1:
        return f"{labels[0]}: {note}"
    more = f" and {len(labels) - 2} more" if len(labels) > 2 else ""
    return f"{labels[0]}, {labels[1]}{more}: {note}"


class _Meter:
    """A counter of checked rows on stderr, updated once a second."""

    def __init__(self, plan: Plan, total: int) -> None:
        self._quiet = not plan.output.notes
        self._total_text = f" of {total}" if total else ""
        self._shown_at = time.monotonic()
        self._line = ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_error: object) -> None:
        if self._line:
            click.echo(f"\r{' ' * len(self._line)}\r", nl=False, err=True)

    def show(self, checked: int) -> None:
        """Print the number of *checked* rows if it is time to do so."""
        now = time.monotonic()
        if self._quiet or now - self._shown_at < 1.0:
            return
        self._shown_at = now
        text = f"checked {checked}{self._total_text} photos"
        if sys.stderr.isatty():
            self._line = text
            click.echo(f"\r{text}", nl=False, err=True)
        else:
            click.echo(text, err=True)


def check_output(plan: BulkPlan, survey: Survey) -> None:
    """Check that the target has a path for every result.

    Raises:
        InvalidRequest: if results of two rows, or two results of one, would share a path.
    """
    target, n, shapes = plan.output.target, survey.max_images, len(plan.defaults.other_geometries) + 1
    first = _sample_paths(0, target, n)
    if survey.rows > shapes and first & _sample_paths(1, target, n):
        problem = "results of two photos would share a path"
        raise InvalidRequest("output", repr(target), problem, "add {name} to --output")
    if survey.rows > 1 and shapes > 1 and first & _sample_paths(0, target, n, shape=1):
        problem = "results of two shapes would share a path"
        raise InvalidRequest("output", repr(target), problem, "add {shape} or {name} to --output")


def _check_target(target: str, format: str | None) -> None:  # noqa: A002 - the name of the option
    """Raise `InvalidRequest` if no picture could be saved to *target*, before any is paid for."""
    check_target("output", target, SaveOptions(format=format))
    (path,) = _sample_paths(0, target, 1)
    if format is None and path.suffix.lower() in SUFFIXES and path.suffix.lower() != ".png":
        limit = "must not have the suffix of another format, because the pictures are PNG"
        raise InvalidRequest("output", repr(target), limit, "end it in {ext}")


def _sample_paths(number: int, target: str, n: int, shape: int = 0) -> set[Path]:
    images, task = tuple(Image(index, "") for index in range(n)), f"{number} {shape}"
    sample = Task(f"task {task}", "succeed", external_task_id=f"external {task}", images=images)
    name = f"photo-{number}" if "{shape}" in target else f"photo-{number}-{shape}"
    paths = output_paths(sample, target, SaveOptions(name=name, shape=f"shape-{shape}"))
    return {paths.path(position, ".png") for position in range(n)}
