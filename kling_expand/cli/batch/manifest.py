"""The photos of a batch, found in directories or listed in a manifest, and a request for each."""

import glob
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from fnmatch import fnmatch
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import click
from attrs import define, evolve, field, frozen

from kling_expand.api.photo import SharedPhoto
from kling_expand.cli.options import WAYS, GeometryOptions, RequestOptions, ShapeOptions
from kling_expand.cli.terminal import NothingDone
from kling_expand.errors import InvalidRequest
from kling_expand.geometry import MAX_PASSES
from kling_expand.models import ExpandRequest, source_stem

from .tables import (
    GEOMETRY,
    LINES,
    REQUEST_FIELDS,
    SENDABLE,
    STDIN,
    TABLES,
    Entry,
    read_lines,
    read_table,
)


@frozen
class Defaults:
    """The options of the command, which apply where a row has no value.

    The photo is expanded to `geometry` and to each of `other_geometries`. With several shapes, the names of
    the results end in the shape, unless the output is a template with ``{shape}``.
    """

    geometry: GeometryOptions = field(factory=GeometryOptions)
    values: Mapping[str, Any] = field(factory=dict)
    other_geometries: tuple[GeometryOptions, ...] = ()
    passes: int = 1
    output: str = ""

    @classmethod
    def of(cls, shapes: ShapeOptions, request: RequestOptions, passes: int, output: str) -> "Defaults":
        """Return the defaults. Raise click's usage error for contradictory options."""
        first, *other_geometries = shapes.geometries
        if first.ways:
            shapes.require()
        return cls(first, request.values, tuple(other_geometries), passes, output)

    @property
    def shape_in_names(self) -> bool:
        """Whether file names must include the shape."""
        return bool(self.other_geometries) and "{shape}" not in self.output


class Problem(NamedTuple):
    """The reason why a row cannot be sent: the name of the error's class, and its message."""

    type: str
    message: str


@frozen
class Row:
    """One row of a batch: its `request`, or the `error` that prevents one, of the class `error_type`.

    Its results get the first of `names` that no other row has: the photo's name, the name with its directory,
    or the name with a tag that depends only on the photo's path and the row's parameters. A name may begin
    with directories, which are recreated in the output. Rows with the same `line` are shapes of one photo.
    `cells` are the cells of its row in the file of --failures, by column.
    """

    line: int
    label: str
    names: tuple[str, ...] = ()
    request: ExpandRequest | None = None
    error: str | None = None
    error_type: str = InvalidRequest.__name__
    warning: str | None = None
    shape: str = ""
    passes: int = 1
    several: bool = False  # whether its photo has several shapes
    cells: Mapping[str, Any] = field(factory=dict)

    @property
    def id(self) -> tuple[int, str]:
        """The line and the shape, which distinguish the row from any other."""
        return self.line, self.shape


# ---------------------------------------------------------------------------- photos in directories

CONVERTIBLE = {  # formats that Pillow can read, with --fit
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".hif": "HEIC",
    ".webp": "WebP",
    ".avif": "AVIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".gif": "GIF",
}
JOURNAL_PREFIX = ".kling-expand"  # the prefix of the journals in output directories
_OWN_PREFIX = ".kling-"  # the prefix of all hidden files of this package


class LeftOut(StrEnum):
    """The reason why a file or directory is left out of a batch. The value is the word used in JSON."""

    RESULTS = "results"
    NEEDS_FIT = "needs_fit"
    UNREADABLE = "unreadable"
    OTHER = "other_files"
    HIDDEN = "hidden"
    EXCLUDED = "excluded"
    SUBFOLDERS = "subfolders"
    CLOSED = "closed_folders"
    HAS_SHAPE = "has_shape"


LEFT_OUT = {
    LeftOut.RESULTS: (
        "result of earlier runs",
        "results of earlier runs",
        "to expand one, make a copy of it",
    ),
    LeftOut.NEEDS_FIT: ("photo in another format", "photos in other formats", "--fit converts them"),
    LeftOut.UNREADABLE: (
        "photo in an unreadable format",
        "photos in an unreadable format",
        "to read more formats: pip install --upgrade 'kling-expand[heif]' pillow",
    ),
    LeftOut.OTHER: ("other file", "other files", ""),
    LeftOut.HIDDEN: ("hidden file or directory", "hidden files and directories", ""),
    LeftOut.EXCLUDED: ("excluded photo", "excluded photos", ""),
    LeftOut.SUBFOLDERS: ("subdirectory", "subdirectories", "--no-recursive was given"),
    LeftOut.CLOSED: ("unreadable directory", "unreadable directories", ""),
}


@frozen
class FoundPhoto:
    """A photo, and its directory relative to the one named on the command line."""

    path: str
    folder: str = ""


@define
class FoundPhotos:
    """The photos and journals that were found, and the number of files left out, by reason and kind."""

    photos: list[FoundPhoto] = field(factory=list)
    journals: set[str] = field(factory=set)
    left_out: dict[LeftOut, Counter[str]] = field(factory=dict)

    def leave_out(self, reason: LeftOut, kind: str = "") -> None:
        """Count a file or directory that is left out."""
        self.left_out.setdefault(reason, Counter())[kind] += 1

    def remove_results(self, results: Container[str]) -> None:
        """Leave out the photos in *results*, a set of `path_key` values."""
        kept = [photo for photo in self.photos if path_key(photo.path) not in results]
        for _ in range(len(self.photos) - len(kept)):
            self.leave_out(LeftOut.RESULTS)
        self.photos = kept

    def facts(self) -> dict[str, int]:
        """Return the numbers of files and directories that were left out, for JSON."""
        return {str(reason): kinds.total() for reason, kinds in self.left_out.items()}

    def lines(self) -> Iterator[str]:
        """Yield a line of text for each reason."""
        for reason, kinds in self.left_out.items():
            one, many, hint = LEFT_OUT[reason]
            total = kinds.total()
            known = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(5) if kind)
            details = f" ({known}{', …' if len(kinds) > 5 else ''})" if known else ""
            noun = one if total == 1 else many
            yield f"{total} {noun} left out{details}{f'; {hint}' if hint else ''}"


@frozen
class Selection:
    """The rules that select the photos of a batch from the command line's directories.

    With *recursive*, subdirectories are searched. Files and directories whose name or path matches one of
    *exclude* are left out, as is the *output* directory. With *fit*, formats other than PNG and JPEG are
    included. With *named*, a file on the command line is always a photo, whatever its suffix.
    """

    recursive: bool = True
    exclude: tuple[str, ...] = ()
    fit: bool = False
    output: str = ""
    named: bool = False


class PhotoFinder:
    """A finder of the photos named on the command line: files, directories, patterns and URLs."""

    def __init__(self, selection: Selection) -> None:
        self.selection: Selection = selection
        self._found = FoundPhotos()
        self._seen: set[str] = set()
        self._visited: set[tuple[int, int]] = set()  # directories already searched, to which links may lead
        self._output = os.path.realpath(selection.output) if selection.output else ""

    def find(self, sources: Sequence[str]) -> FoundPhotos:
        """Return the photos in the order of *sources*, each once."""
        for word in sources:
            if "://" in word:
                self._found.photos.append(FoundPhoto(word))
            elif os.path.isdir(word):  # noqa: PTH112 - pathlib normalizes names
                alone = len(sources) == 1
                self._walk(word, "" if alone else os.path.basename(os.path.abspath(word)), alone=alone)  # noqa: PTH100, PTH119
            elif not os.path.lexists(word) and glob.has_magic(word):
                self._match(word)
            else:
                self._add(word, "", listed=self.selection.named)
        return self._found

    def find_listed(self, names: Iterable[str]) -> FoundPhotos:
        """Return the photos of a list, with the directories of their relative paths."""
        for name in names:
            self._add(name, relative_folder(name), listed=False)
        return self._found

    def _match(self, pattern: str) -> None:
        """Add the matches of a pattern. Brackets may also be literal parts of a name."""
        parts = Path(pattern).parts
        choices = [(part, part.replace("[", "[[]")) if "[" in part else (part,) for part in parts]
        paths = {
            path
            for chosen in product(*choices)
            for path in glob.glob(os.path.join(*chosen), recursive=True)  # noqa: PTH118, PTH207 - pathlib normalizes names
        }
        root = _fixed_part(parts, paths)
        inside = self._output and self._output not in _with_parents(os.path.realpath(root))
        for path in sorted(paths):
            if not os.path.isdir(path):  # noqa: PTH112
                below = inside and self._output in _with_parents(os.path.realpath(os.path.dirname(path)))  # noqa: PTH120
                self._add(path, _below(path, root), reason=LeftOut.RESULTS if below else None)
            elif "**" not in pattern:
                self._walk(path, _below(path, root, whole=True), alone=False)

    def _walk(self, root: str, folder: str, *, alone: bool, reason: LeftOut | None = None) -> None:
        """Add the photos of a directory. With a *reason*, only count them as left out."""
        status = os.stat(root)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in self._visited:
            return
        self._visited.add((status.st_dev, status.st_ino))
        if not alone and os.path.realpath(root) == self._output:
            reason = LeftOut.RESULTS
        try:
            with os.scandir(root) as entries:
                found = sorted(entries, key=lambda entry: (entry.is_dir(), entry.name))
        except OSError:
            self._found.leave_out(LeftOut.CLOSED)
            return
        for entry in found:
            if entry.name.startswith("."):
                self._hidden(entry.path, reason)
            elif not entry.is_dir():
                self._add(entry.path, folder, reason=reason)
            elif not self.selection.recursive:
                self._found.leave_out(LeftOut.SUBFOLDERS)
            else:
                inner = f"{folder}/{entry.name}" if folder else entry.name
                left = reason or (LeftOut.EXCLUDED if self._is_excluded(inner) else None)
                self._walk(entry.path, inner, alone=False, reason=left)

    def _hidden(self, path: str, reason: LeftOut | None) -> None:
        name = os.path.basename(path)  # noqa: PTH119
        if name.startswith(JOURNAL_PREFIX) and name.endswith(".db"):
            self._found.journals.add(path)
        if not name.startswith(_OWN_PREFIX) and reason is None:
            self._found.leave_out(LeftOut.HIDDEN)

    def _add(self, path: str, folder: str, *, listed: bool = False, reason: LeftOut | None = None) -> None:
        """Add a file, or count the reason why it is left out. A missing file is reported as a bad row."""
        key = path_key(path)
        if key in self._seen:
            return
        self._seen.add(key)
        suffix = _suffix(path)
        known = suffix in SENDABLE or suffix in CONVERTIBLE
        if reason is None:
            reason = None if listed or not os.path.lexists(path) else self._reason(path, folder, suffix)
        elif not known:
            return
        if reason is not None:
            self._found.leave_out(
                reason, CONVERTIBLE.get(suffix, "") if known else suffix or "without suffix"
            )
            return
        self._found.photos.append(FoundPhoto(path, folder))

    def _reason(self, path: str, folder: str, suffix: str) -> LeftOut | None:
        if suffix not in SENDABLE and suffix not in CONVERTIBLE:
            return LeftOut.OTHER
        name = os.path.basename(path)  # noqa: PTH119
        if self._is_excluded(f"{folder}/{name}" if folder else name):
            return LeftOut.EXCLUDED
        if suffix in SENDABLE:
            return None
        if not self.selection.fit:
            return LeftOut.NEEDS_FIT
        return None if suffix in self._readable else LeftOut.UNREADABLE

    @cached_property
    def _readable(self) -> Container[str]:
        from kling_expand.pictures.fit import readable_suffixes  # imported here, because it loads Pillow

        return readable_suffixes()

    def _is_excluded(self, path: str) -> bool:
        """Return whether a path relative to the named directory, or its last part, matches `exclude`."""
        names = (path, path.rpartition("/")[2])
        return any(fnmatch(name, pattern.rstrip("/")) for pattern in self.selection.exclude for name in names)


def path_key(path: str) -> str:
    """Return the path of a file with the links of its directory resolved, for comparisons."""
    folder, name = os.path.split(path)
    return os.path.normcase(os.path.join(_real_folder(os.path.abspath(folder)), name))  # noqa: PTH100, PTH118


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122


def _fixed_part(parts: Sequence[str], paths: Iterable[str]) -> str:
    """Return the directories of a pattern before its first part with a wildcard."""
    fixed: list[str] = []
    sample = Path(min(paths, default="")).parts
    for part, found in zip(parts[:-1], sample, strict=False):
        if part != found:
            break
        fixed.append(part)
    return os.path.join(*fixed) if fixed else os.curdir  # noqa: PTH118


def _below(path: str, root: str, *, whole: bool = False) -> str:
    """Return the directories of *path* relative to *root*, or with *whole* the relative path itself."""
    relative = os.path.relpath(path, root)
    return relative_folder(os.path.join(relative, "x") if whole else relative)  # noqa: PTH118


def _with_parents(folder: str) -> set[str]:
    return {folder, *map(str, Path(folder).parents)}


# ---------------------------------------------------------------------------- manifests


@frozen
class Manifest:
    """The photos to expand. A file is read again by each iteration, so only `found` photos are in memory.

    The text of stdin is also kept, because it can be read only once.
    """

    name: str
    kind: str  # table, lines, list or photos
    found: FoundPhotos = field(factory=FoundPhotos)
    text: str = field(default="", repr=False)

    @property
    def folder(self) -> Path:
        """The directory of the file, to which its relative paths refer."""
        return Path(self.name).parent if self.kind in {"table", "lines"} and self.name != STDIN else Path()

    def rows(self, defaults: Defaults) -> Iterator[Row]:
        """Yield every row. Raise `NothingDone` if the manifest cannot be read."""
        return (row for entry in self.entries() for row in _rows(entry, self, defaults))

    def label(self, line: int, photo: str) -> str:
        """Return the name of a row in messages."""
        return f"line {line} ({photo})" if self.kind in {"table", "lines"} else photo

    def entries(self) -> Iterator[Entry]:
        """Yield the cells of every row. Raise `NothingDone` if the manifest cannot be read."""
        if self.kind in {"table", "lines"}:
            return read_table(self.name) if self.kind == "table" else read_lines(self.name, self.text)
        return (
            Entry(line, {"image": photo.path}, folder=photo.folder)
            for line, photo in enumerate(self.found.photos, 1)
        )


def read_manifest(sources: Sequence[str], selection: Selection | None = None) -> Manifest:
    """Return the photos that the *sources* of the command line name.

    Raises:
        NothingDone: if a manifest is named together with anything else.
    """
    finder = PhotoFinder(selection or Selection())
    special = [] if finder.selection.named else [source for source in sources if _special_kind(source)]
    if not special:
        return Manifest(sources[0] if len(sources) == 1 else "", "photos", finder.find(sources))
    if len(sources) > 1:
        raise NothingDone(f"a manifest must be the only SOURCE, got {special[0]} and others")
    kind = _special_kind(sources[0])
    return _from_stdin(finder) if kind == STDIN else Manifest(sources[0], kind)


def _special_kind(word: str) -> str:
    """Return the kind of manifest that a word names, or an empty string for photos and directories."""
    if word == STDIN:
        return STDIN
    suffix = os.path.splitext(word)[1].lower()  # noqa: PTH122
    if suffix in TABLES + LINES and not os.path.isdir(word):  # noqa: PTH112 - pathlib normalizes names
        return "table" if suffix in TABLES else "lines"
    return ""


def _from_stdin(finder: PhotoFinder) -> Manifest:
    """Read a list of photos, one per line or separated by NUL, or JSON Lines."""
    text = sys.stdin.buffer.read().decode("utf-8-sig", errors="surrogateescape")
    if text.lstrip().startswith("{"):
        return Manifest(STDIN, "lines", text=text)
    names = text.split("\0") if "\0" in text else text.splitlines()
    return Manifest(STDIN, "list", finder.find_listed([name for name in names if name.strip()]))


# ---------------------------------------------------------------------------- rows


def _rows(entry: Entry, manifest: Manifest, defaults: Defaults) -> Iterator[Row]:
    """Yield a row for each shape, or one for the entry's own geometry. All rows share the photo."""
    has_geometry = any(entry.cells.get(name) not in (None, "") for name in WAYS)
    if entry.error or has_geometry or not defaults.other_geometries:
        yield _row(entry, manifest, defaults)
        return
    image, shared = str(entry.cells.get("image", "")), None
    if image and "://" not in image:
        shared = SharedPhoto(str(manifest.folder / image))
    for geometry in (defaults.geometry, *defaults.other_geometries):
        row = _row(entry, manifest, evolve(defaults, geometry=geometry))
        if row.request is not None and shared is not None:
            row = evolve(row, request=evolve(row.request, image=shared))
        cells = {**row.cells, "aspect": geometry.aspect}
        label = f"{row.label} {geometry.shape}"
        yield evolve(row, label=label, shape=geometry.shape, several=True, cells=cells)


def _row(entry: Entry, manifest: Manifest, defaults: Defaults) -> Row:
    row = _checked_row(entry, manifest, defaults)
    plain = all(isinstance(value, str | int | float | None) for value in entry.cells.values())
    if row.request is None and (entry.error or not plain):
        # In a table, a list would become text. With names that `bulk` ignores, the row stays bad.
        return evolve(row, cells={f"_{name.removeprefix('_')}": cell for name, cell in entry.cells.items()})
    return evolve(row, cells=_resolved_cells(entry, manifest))


def _resolved_cells(entry: Entry, manifest: Manifest) -> dict[str, Any]:
    """Return the cells of a row with the path of its photo and the name that keeps its place."""
    cells, image = dict(entry.cells), str(entry.cells.get("image") or "")
    if image and "://" not in image:
        cells["image"] = str(manifest.folder / image)
    if image and not cells.get("name"):
        folder = entry.folder if manifest.kind == "photos" else relative_folder(image)
        cells["name"] = f"{folder}/{stem(image)}" if folder else stem(image)
    return cells


def _checked_row(entry: Entry, manifest: Manifest, defaults: Defaults) -> Row:
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
        passes = _passes(texts.get("passes"), defaults)
        geometry, request = _request(texts, manifest.folder, defaults)
    except click.UsageError as error:  # its message names options, but a row has columns
        return Row(entry.line, label, error=_plain(error.format_message(), manifest))
    except InvalidRequest as error:
        return Row(entry.line, label, error=error.message, error_type=type(error).__name__)
    folder = entry.folder if manifest.kind == "photos" else relative_folder(texts["image"])
    name = texts.get("name") or stem(str(request.image))
    if defaults.shape_in_names:
        name = f"{name}-{geometry.shape}"
    names = _names(name, "" if "name" in texts else folder, request)
    shape = geometry.shape
    return Row(entry.line, label, names, request, warning=entry.warning, shape=shape, passes=passes)


def _passes(text: str | None, defaults: Defaults) -> int:
    if text is None:
        return defaults.passes
    if not (text.isdecimal() and 1 <= int(text) <= MAX_PASSES):
        raise InvalidRequest("passes", repr(text), f"must be between 1 and {MAX_PASSES}")
    return int(text)


def _plain(message: str, manifest: Manifest) -> str:
    return message.replace("--", "") if manifest.kind in {"table", "lines"} else message


def _names(name: str, folder: str, request: ExpandRequest) -> tuple[str, ...]:
    """Return the possible names of a row's results. The last one is unique."""
    image = str(request.image)
    place = image if "://" in image else os.path.abspath(image)  # noqa: PTH100 - links must not be resolved
    content = repr(evolve(request, image=place)).encode(errors="surrogateescape")
    tag = hashlib.sha256(content).hexdigest()[:8]
    parent = os.path.basename(os.path.dirname(place))  # noqa: PTH119, PTH120
    choices = [name, *([f"{parent}-{name}"] if parent else []), f"{name}-{tag}"]
    return tuple(f"{folder}/{choice}" if folder else choice for choice in choices)


def stem(photo: str) -> str:
    """Return the name that the results of a photo get."""
    return source_stem(photo) or "photo"


def relative_folder(photo: str) -> str:
    """Return the directories of a relative path, which are recreated in the output, or an empty string."""
    if "://" in photo or os.path.isabs(photo):  # noqa: PTH117
        return ""
    folder = os.path.normpath(os.path.dirname(photo) or os.curdir).replace(os.sep, "/")  # noqa: PTH120
    return "" if folder == "." or folder.startswith("..") else folder


def _text(name: str, value: Any) -> str:
    if isinstance(value, dict) and name in REQUEST_FIELDS and REQUEST_FIELDS[name].kind is Mapping:
        return json.dumps(value)
    if not isinstance(value, str | int | float):
        raise InvalidRequest(name, repr(value), "must be text or a number")
    return str(value)


def _request(
    texts: dict[str, str], folder: Path, defaults: Defaults
) -> tuple[GeometryOptions, ExpandRequest]:
    image = texts.get("image")
    if image is None:
        raise InvalidRequest("image", "nothing", "must be a path or a URL")
    try:
        os.fsencode(image)
    except UnicodeEncodeError:  # JSON can contain half of a surrogate pair
        raise InvalidRequest("image", ascii(image), "must be valid Unicode") from None
    row_values = {
        each.name: each.parse(texts[name]) for name, each in REQUEST_FIELDS.items() if name in texts
    }
    given = GeometryOptions(**{name: _option(name, texts[name]) for name in GEOMETRY if name in texts})
    geometry = given.with_defaults(defaults.geometry)
    place = image if "://" in image else str(folder / image)
    return geometry, ExpandRequest(place, geometry.geometry(), **{**defaults.values, **row_values})


def _option(name: str, text: str) -> Any:
    if GEOMETRY[name] is not float:
        return text
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(name, repr(text), "must be a number") from None
