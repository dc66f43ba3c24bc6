"""A strict reader of CSV tables and JSON Lines. It reports implausible input as an error with its line."""

import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from attrs import frozen

from kling_expand.cli.options import GeometryOptions
from kling_expand.cli.terminal import NothingDone
from kling_expand.models import request_fields

STDIN = "-"
TABLES, LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")  # suffixes
GEOMETRY = {name: settings.get("type") for name, (_, settings) in GeometryOptions.declarations().items()}
REQUEST_FIELDS = {each.column: each for each in request_fields() if each.column}
COLUMNS = ("image", *GEOMETRY, "passes", *REQUEST_FIELDS, "name")
SENDABLE = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif"})  # suffixes; the content decides
IMAGE_COLUMNS = ("image", "file", "path", "photo")  # names of the column of photos
DELIMITERS = ",;\t"
EXAMPLE = """\
# One row for each photo. Paths are relative to this file, and lines that begin with # are ignored.
# For an empty cell, the options of the command apply. `kling-expand bulk --help` lists all columns.
image,aspect,prompt,n,name
photos/beach.jpg,16:9,"a wide beach, early morning",1,
photos/2024/cat.jpg,1:1,,2,cat-square
"""


@frozen
class Entry:
    """A row of a manifest: its cells, and an error or a warning about them, if any."""

    line: int
    cells: dict[str, Any]
    error: str | None = None
    folder: str = ""  # the photo's directory, relative to the one named on the command line
    warning: str | None = None


def read_table(name: str) -> Iterator[Entry]:
    """Yield the rows of a CSV file.

    Raises:
        NothingDone: if the file cannot be read, or its header is invalid.
    """
    return _guarded(name, _table(name))


def read_lines(name: str, text: str = "") -> Iterator[Entry]:
    """Yield the rows of a JSON Lines file, or of *text* if it came from stdin.

    Raises:
        NothingDone: if the file cannot be read.
    """
    return _guarded(name, _lines(name, text))


def _guarded(name: str, entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield *entries*. Raise `NothingDone` if the file cannot be read."""
    line = 0
    try:
        for entry in entries:
            line = entry.line
            yield entry
    except UnicodeDecodeError as error:
        place = f"{name}, after line {line}" if line else name
        raise NothingDone(f"{place}: {_encoding_advice(name, error)}") from error
    except OSError as error:
        raise NothingDone(f"{name} cannot be read: {error.strerror}") from error


def _encoding_advice(name: str, error: UnicodeDecodeError) -> str:
    """Return the required encoding, the probable actual one, and how to convert the file."""
    with open(name, "rb") as file:  # noqa: PTH123 - errors must name it as given
        head = file.read(4096)
    if head.startswith(b"PK\x03\x04"):
        return 'must be UTF-8 text, got an Excel workbook; in Excel, save it as "CSV UTF-8"'
    is_utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head
    found = "UTF-16" if is_utf16 else "WINDOWS-1252"
    problem = f"got {found}" if is_utf16 else f"got another encoding, perhaps {found} ({error.reason})"
    return (
        f'must be UTF-8 text, {problem}; in a spreadsheet, save it as "CSV UTF-8", or run:'
        f" iconv -f {found} -t UTF-8 {name} > utf8-{name.rpartition('/')[2]}"
    )


def _open(name: str, text: str = "") -> TextIO:
    if name == STDIN:
        return io.StringIO(text, newline="")
    return open(name, encoding="utf-8-sig", newline="")  # noqa: PTH123 - errors must name it as given


# ---------------------------------------------------------------------------- tables


class _Records:
    """The lines of a table without blank lines and comments, except within a quoted cell."""

    def __init__(self, file: TextIO, number: int) -> None:
        self._file = file
        self._in_record = False  # whether the next line continues a record
        self.number = number  # number of the last line that was read
        self.first = number  # number of the record's first line

    def begin(self) -> None:
        """Expect the first line of a record."""
        self._in_record = False

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.number += 1
            if not self._in_record:
                if not line.strip() or line.lstrip().startswith("#"):
                    continue
                self.first, self._in_record = self.number, True
            yield line


def _table(name: str) -> Iterator[Entry]:
    """Yield the rows of a table. Its first line may name the delimiter, as in ``sep=;`` of spreadsheets."""
    with _open(name) as file:
        position, number, delimiter = _head(file)
        file.seek(position)
        records = _Records(file, number)
        reader = csv.reader(records, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            records.begin()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise NothingDone(_quoting_advice(name, records, error)) from error
            if cells is None:
                break
            if header is None:
                header = _checked_header(name, [cell.strip().lower() for cell in cells])
            elif any(map(str.strip, cells)):
                yield _entry(records.first, header, cells, delimiter)
        if header is None:
            _checked_header(name, [])


def _head(file: TextIO) -> tuple[int, int, str]:
    """Return the position of the header in the file, the number of lines before it, and the delimiter."""
    number = 0
    while True:
        position = file.tell()
        line = file.readline()
        if line.lower().startswith("sep=") and len(line.strip()) == 5:
            return file.tell(), number + 1, line[4]
        if not line or (line.strip() and not line.lstrip().startswith("#")):
            return position, number, max(DELIMITERS, key=line.count)
        number += 1


def _quoting_advice(name: str, records: _Records, error: csv.Error) -> str:
    if "unexpected end" in str(error) or "field larger" in str(error):
        return f"{name}, line {records.first}: a quoted cell of this row does not end; add the missing quote"
    advice = (
        'write a quote inside a quoted cell twice (""), and put the delimiter right after a closing quote'
    )
    return f"{name}, line {records.number}: {error}; {advice}"


def _checked_header(name: str, header: list[str]) -> list[str]:
    """Check the header, and return it with the name `image` for the column of photos."""
    named = next((column for column in IMAGE_COLUMNS if column in header), None)
    if named is None:
        wanted = "image (or file, path, photo)"
        raise NothingDone(f"{name}: the first line must name the columns, and {wanted} must be one of them")
    header = ["image" if column == named else column for column in header]
    duplicate = next((column for column in header if column and header.count(column) > 1), None)
    if duplicate:
        raise NothingDone(f"{name}: there are two columns named {duplicate}")
    problem = unknown(header)
    if problem:
        raise NothingDone(f"{name}: {problem}")
    return header


def _entry(line: int, header: list[str], cells: list[str], delimiter: str) -> Entry:
    found = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    if len(cells) > len(header):
        error = (
            f"the row has {len(cells)} cells, but the header has {len(header)}; quote cells that have commas"
        )
        return Entry(line, found | {header[-1]: delimiter.join(cells[len(header) - 1 :])}, error)
    suspect = next((name for name, cell in found.items() if _holds_rows(cell, len(header), delimiter)), None)
    if suspect is None:
        return Entry(line, found)
    return Entry(line, found, warning=f"{suspect} seems to contain whole rows; a quote may be missing")


def _holds_rows(cell: str, columns: int, delimiter: str) -> bool:
    """Return whether a later line of a cell seems to be a row: with a photo first, or all delimiters."""
    for line in cell.splitlines()[1:]:
        first = line.partition(delimiter)[0].strip().strip('"').lower()
        if first.endswith(tuple(SENDABLE)) or (columns > 1 and line.count(delimiter) >= columns - 1):
            return True
    return False


def unknown(names: Iterable[str]) -> str | None:
    """Return an error if a name is not a column, otherwise None. Names that begin with _ are ignored."""
    for name in names:
        if name not in COLUMNS and name and not name.startswith("_"):
            near = difflib.get_close_matches(name, COLUMNS, 1)
            hint = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(COLUMNS)}."
            return f"unknown column {name!r} ({hint} Columns that start with _ are ignored.)"
    return None


# ---------------------------------------------------------------------------- JSON lines


def _lines(name: str, text: str) -> Iterator[Entry]:
    with _open(name, text) as file:
        for line, content in enumerate(file, 1):
            if content.strip():
                yield _object(line, content)


def _object(line: int, text: str) -> Entry:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Entry(line, {}, f"the line is not JSON: {error}")
    if not isinstance(found, dict):
        return Entry(line, {}, "the line is not a JSON object")
    named = next((column for column in IMAGE_COLUMNS if column in found), "image")
    cells = {"image" if name == named else name: value for name, value in found.items()}
    return Entry(line, cells, unknown(cells))
