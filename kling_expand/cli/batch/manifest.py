"""Manifests: rows read from a table, JSON lines or a list of photos, and turned into requests."""

import csv
import difflib
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from attrs import field, frozen

from kling_expand.cli.options import GeometryOptions, RequestOptions
from kling_expand.cli.terminal import NothingDone
from kling_expand.errors import InvalidRequest
from kling_expand.models import ExpandRequest, request_fields, source_stem

GEOMETRY = {name: settings.get("type") for name, (_, settings) in GeometryOptions.declarations().items()}
REQUEST_FIELDS = {each.column: each for each in request_fields() if each.column}
COLUMNS = ("image", *GEOMETRY, *REQUEST_FIELDS, "name")
PHOTOS = (".png", ".jpg", ".jpeg")
TABLES, LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")


@frozen
class Entry:
    """A row of a manifest: its cells, or why they cannot be read. `line` counts from 1."""

    line: int
    cells: dict[str, Any]
    error: str | None = None


@frozen
class Defaults:
    """The options of the command, which apply where a row says nothing."""

    geometry: GeometryOptions = field(factory=GeometryOptions)
    values: Mapping[str, Any] = field(factory=dict)

    @classmethod
    def of(cls, geometry: GeometryOptions, request: RequestOptions) -> "Defaults":
        """Return the defaults; raise click's usage error for options that contradict each other."""
        if geometry.ways:
            geometry.geometry()
        return cls(geometry, request.values)


@frozen
class Row:
    """One row of a batch: its `request`, or the `error` that prevents one.

    Its results are called `name` unless another row has the same name. Then they are called `name` with
    `tag`, which depends only on what the row asks for.
    """

    line: int
    label: str
    name: str = ""
    tag: str = ""
    request: ExpandRequest | None = None
    error: str | None = None


@frozen
class Manifest:
    """The photos to expand. A file is read again on each pass, so that only *photos* are held in memory."""

    name: str
    kind: str  # table, lines, directory or photos
    photos: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """The directory that relative paths of a file start from: the file's own."""
        return Path(self.name).parent if self.kind in {"table", "lines"} else Path()

    @property
    def journal(self) -> str:
        """The default journal: beside the manifest, or `bulk.journal` for photos."""
        nameless = self.kind == "photos" or Path(self.name).name in {"", ".."}
        return "bulk.journal" if nameless else f"{Path(self.name)}.journal"

    def rows(self, defaults: Defaults) -> Iterator[Row]:
        """Yield every row, one at a time; raise `NothingDone` where the manifest cannot be read."""
        return (_row(entry, self, defaults) for entry in self.entries())

    def label(self, line: int, photo: str) -> str:
        """Return the name of a row in messages."""
        return f"line {line} ({photo})" if self.kind in {"table", "lines"} else photo

    def entries(self) -> Iterator[Entry]:
        """Yield the cells of every row; raise `NothingDone` if the manifest cannot be read."""
        if self.kind == "table":
            return _guarded(self.name, _table(self.name))
        if self.kind == "lines":
            return _guarded(self.name, _lines(self.name))
        photos = _inside(self.name) if self.kind == "directory" else self.photos
        return (Entry(line, {"image": photo}) for line, photo in enumerate(photos, 1))


def manifest(words: Sequence[str]) -> Manifest:
    """Return the manifest that *words* of the command line name; raise `NothingDone` for any other file."""
    if len(words) > 1:
        return Manifest("", "photos", _photos(words))
    (word,) = words
    path = Path(word)
    if path.is_dir():
        return Manifest(word, "directory")
    if path.suffix.lower() in TABLES + LINES:
        return Manifest(word, "table" if path.suffix.lower() in TABLES else "lines")
    if glob.has_magic(word) and not path.exists():
        found = sorted(name for name in glob.iglob(word, recursive=True) if os.path.isfile(name))  # noqa: PTH113, PTH207 - names stay as they are written
        return Manifest("", "photos", found)
    return Manifest("", "photos", _photos(words))


def _photos(words: Sequence[str]) -> Sequence[str]:
    for word in words:
        if "://" not in word and not word.lower().endswith(PHOTOS):
            wanted = "a .csv or .jsonl file, a directory, a pattern such as 'photos/*.jpg', or photos"
            raise NothingDone(f"the manifest must be {wanted}, got {word}")
    return words


def _inside(folder: str) -> list[str]:
    """Return the photos directly in *folder*, without hidden ones."""
    with os.scandir(folder) as entries:
        names = [
            entry.path
            for entry in entries
            if entry.name.lower().endswith(PHOTOS) and not entry.name.startswith(".") and entry.is_file()
        ]
    return sorted(names)


# ---------------------------------------------------------------------------- files


def _guarded(name: str, entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield *entries*, and raise `NothingDone` in place of an error of reading the file."""
    line = 0
    try:
        for entry in entries:
            line = entry.line
            yield entry
    except UnicodeDecodeError as error:
        raise NothingDone(f"{name}, after line {line}: must be UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        raise NothingDone(f"{name}, after line {line}: {error}") from error
    except OSError as error:
        raise NothingDone(f"{name} cannot be read: {error.strerror}") from error


def _table(name: str) -> Iterator[Entry]:
    """Yield the rows of a table. The delimiter is the comma, semicolon or tab that the header has most of."""
    with open(name, encoding="utf-8-sig", newline="") as file:  # noqa: PTH123 - errors name it as given
        first = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=max(",;\t", key=first.count))
        header = [cell.strip().lower() for cell in next(reader, [])]
        _check_header(name, header)
        before = reader.line_num
        for cells in reader:
            line, before = before + 1, reader.line_num
            if any(map(str.strip, cells)):
                yield _entry(line, header, cells)


def _entry(line: int, header: list[str], cells: list[str]) -> Entry:
    found = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    if len(cells) > len(header):
        error = f"the row has {len(cells)} cells, the header {len(header)} (quote cells that contain commas)"
        return Entry(line, found, error)
    return Entry(line, found)


def _check_header(name: str, header: list[str]) -> None:
    if "image" not in header:
        raise NothingDone(f"{name}: the first line must name the columns, and `image` must be one of them")
    twice = next((column for column in header if column and header.count(column) > 1), None)
    if twice:
        raise NothingDone(f"{name}: there are two columns called {twice}")
    problem = unknown(header)
    if problem:
        raise NothingDone(f"{name}: {problem}")


def unknown(names: Iterable[str]) -> str | None:
    """Return why one of *names* is no column, or None. Names that start with an underscore are ignored."""
    for name in names:
        if name not in COLUMNS and name and not name.startswith("_"):
            near = difflib.get_close_matches(name, COLUMNS, 1)
            hint = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(COLUMNS)}."
            return f"unknown column {name!r} ({hint} Columns that start with _ are ignored.)"
    return None


def _lines(name: str) -> Iterator[Entry]:
    with open(name, encoding="utf-8-sig") as file:  # noqa: PTH123 - errors name it as given
        for line, text in enumerate(file, 1):
            if text.strip():
                yield _object(line, text)


def _object(line: int, text: str) -> Entry:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Entry(line, {}, f"the line is not JSON: {error}")
    if not isinstance(found, dict):
        return Entry(line, {}, "the line is not a JSON object")
    return Entry(line, found, unknown(found))


# ---------------------------------------------------------------------------- rows


def _row(entry: Entry, manifest: Manifest, defaults: Defaults) -> Row:
    cells = {
        name: value
        for name, value in entry.cells.items()
        if value is not None and value != "" and not name.startswith("_")
    }
    label = manifest.label(entry.line, str(cells.get("image", "no image")))
    if entry.error:
        return Row(entry.line, label, error=entry.error)
    try:
        texts = {name: _text(name, value) for name, value in cells.items()}
        request = _request(texts, manifest.folder, defaults)
    except click.UsageError as error:  # the message names options, but a row has columns
        return Row(entry.line, label, error=error.format_message().replace("--", ""))
    except InvalidRequest as error:
        return Row(entry.line, label, error=error.message)
    tag = hashlib.sha256(repr(request).encode(errors="surrogateescape")).hexdigest()[:8]
    return Row(entry.line, label, texts.get("name") or stem(str(request.image)), tag, request)


def stem(photo: str) -> str:
    """Return the name that a photo gives its results."""
    return source_stem(photo) or "photo"


def _text(name: str, value: Any) -> str:
    if isinstance(value, dict) and name in REQUEST_FIELDS and REQUEST_FIELDS[name].kind is Mapping:
        return json.dumps(value)
    if not isinstance(value, str | int | float):
        raise InvalidRequest(name, repr(value), "must be text or a number")
    return str(value)


def _request(texts: dict[str, str], folder: Path, defaults: Defaults) -> ExpandRequest:
    image = texts.get("image")
    if image is None:
        raise InvalidRequest("image", "nothing", "must be a path or a URL")
    own = {each.name: each.parse(texts[name]) for name, each in REQUEST_FIELDS.items() if name in texts}
    geometry = GeometryOptions(**{name: _option(name, texts[name]) for name in GEOMETRY if name in texts})
    return ExpandRequest(
        image if "://" in image else str(folder / image),
        geometry.over(defaults.geometry).geometry(),
        **{**defaults.values, **own},
    )


def _option(name: str, text: str) -> Any:
    if GEOMETRY[name] is not float:
        return text
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(name, repr(text), "must be a number") from None
