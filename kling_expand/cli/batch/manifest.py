"""What does a manifest list? Its rows one by one, from a table, JSON lines or photos; none is judged here."""

import csv
import difflib
import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from kling_expand.cli.exit_codes import Stop
from kling_expand.cli.geometry import OPTIONS

FIELDS = ("image", *OPTIONS, "prompt", "n", "watermark", "name", "key")
PHOTOS = (".png", ".jpg", ".jpeg")
TABLES, LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")

_WANTED = "a .csv or .jsonl file, a directory, a pattern such as 'photos/*.jpg', or photos"


@frozen
class Entry:
    """A row as it was written: its fields, or why they cannot be read. `line` counts from 1."""

    line: int
    fields: dict[str, Any]
    error: str | None = None


@frozen
class Manifest:
    """What is to be expanded. It is read anew on each pass, so only *photos* given one by one are held.

    `folder` is what relative paths in a file begin at: its own directory.
    """

    name: str
    kind: str
    photos: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """Where relative paths begin."""
        return Path(self.name).parent if self.kind in {"table", "lines"} else Path()

    @property
    def journal(self) -> str:
        """Which journal it has unless another is named: one beside it, or `bulk.journal` here."""
        nameless = self.kind == "photos" or Path(self.name).name in {"", ".."}
        return "bulk.journal" if nameless else f"{Path(self.name)}.journal"

    def label(self, line: int, photo: str) -> str:
        """What a row is called in a message."""
        return f"line {line} ({photo})" if self.kind in {"table", "lines"} else photo

    def entries(self) -> Iterator[Entry]:
        """Every row. Raises `Stop` where the whole cannot be read."""
        if self.kind == "table":
            return _guarded(self.name, _table(self.name))
        if self.kind == "lines":
            return _guarded(self.name, _lines(self.name))
        photos = _inside(self.name) if self.kind == "directory" else self.photos
        return (Entry(line, {"image": photo}) for line, photo in enumerate(photos, 1))


def manifest(words: Sequence[str]) -> Manifest:
    """The manifest that the *words* of the command line name. Raises `Stop`."""
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
            raise Stop(f"{word}: {_WANTED} can be given")
    return words


def _inside(folder: str) -> list[str]:
    """The photos directly in a directory, without hidden ones."""
    with os.scandir(folder) as entries:
        names = [
            entry.path
            for entry in entries
            if entry.name.lower().endswith(PHOTOS) and not entry.name.startswith(".") and entry.is_file()
        ]
    return sorted(names)


def _guarded(name: str, entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries; what reading a file may raise becomes one sentence."""
    line = 0
    try:
        for entry in entries:
            line = entry.line
            yield entry
    except UnicodeDecodeError as error:
        raise Stop(f"{name}, after line {line}: it is not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        raise Stop(f"{name}, after line {line}: {error}") from error
    except OSError as error:
        raise Stop(f"{name} cannot be read: {error.strerror}") from error


def _table(name: str) -> Iterator[Entry]:
    """Columns are told apart by whichever of comma, semicolon and tab the header has most of."""
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
                yield _row(line, header, cells)


def _row(line: int, header: list[str], cells: list[str]) -> Entry:
    fields = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    if len(cells) > len(header):
        error = f"it has {len(cells)} cells, and the header names {len(header)} (quote a cell with commas)"
        return Entry(line, fields, error)
    return Entry(line, fields)


def _check_header(name: str, header: list[str]) -> None:
    if "image" not in header:
        raise Stop(f"{name}: the first line names the columns, and `image` must be one of them")
    twice = next((column for column in header if column and header.count(column) > 1), None)
    if twice:
        raise Stop(f"{name}: there are two columns called {twice}")
    problem = unknown(header)
    if problem:
        raise Stop(f"{name}: {problem}")


def unknown(names: Iterable[str]) -> str | None:
    """Why one of the *names* is no field; what begins with an underscore is its author's own."""
    for name in names:
        if name not in FIELDS and name and not name.startswith("_"):
            near = difflib.get_close_matches(name, FIELDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FIELDS)}"
            return f"unknown field {name!r} ({hint} What begins with _ is ignored.)"
    return None


def _lines(name: str) -> Iterator[Entry]:
    with open(name, encoding="utf-8-sig") as file:  # noqa: PTH123 - errors name it as given
        for line, text in enumerate(file, 1):
            if text.strip():
                yield _object(line, text)


def _object(line: int, text: str) -> Entry:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Entry(line, {}, f"it is not JSON: {error}")
    if not isinstance(fields, dict):
        return Entry(line, {}, "it is not a JSON object")
    return Entry(line, fields, unknown(fields))
