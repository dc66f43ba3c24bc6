"""The files of a download: their final paths, and the hidden partial file of each picture.

Paths are valid on every operating system, and each picture of a task has its own path. By default, a file of
another origin is not replaced. Instead, the task's id is appended to the name of the picture.

The modification time of a saved picture carries a mark. The fraction of a second in this time, in
nanoseconds, is a digest of the task and of the format in which the picture was saved. With the mark, a later
save in any process recognizes the pictures of its own task. A picture loses its mark if it is edited or
touched, or if the file system does not store nanoseconds. It is then saved again, under a name with the
task's id.

A partial file is named ``.kling-<16 hex digits>.part``, and is in the same directory as its final path. The
process that writes it holds an exclusive ``flock`` on it. The kernel releases the lock of a dead process, so
`remove_stale_parts` can distinguish a download in progress from a leftover of a crash. On Windows an open
file cannot be removed, which has the same effect. A network file system must support ``flock`` between
machines.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import string
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar
from urllib.parse import urlsplit

from attrs import evolve, field, frozen

from kling_expand.api.codec import http_date
from kling_expand.errors import DownloadError, InvalidRequest, KlingError
from kling_expand.models import Image, ImageSource, Task

if TYPE_CHECKING:
    from kling_expand.pictures.convert import Metadata

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment] # the module is typed as always present

FIELDS = frozenset({"name", "index", "task_id", "external_task_id", "ext", "key", "folder", "path", "shape"})
FORMATS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tiff"}  # for conversions
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
_SPELLINGS = {".jpeg": ".jpg", ".tif": ".tiff"}  # other suffixes of the same format
_LOSSY = ("jpeg", "webp")

SECOND = 10**9  # nanoseconds
MAX_SWEPT_FOLDERS = 64  # directories to remember, so that memory stays bounded

_MAX_FIELD_BYTES = 100  # so that a few fields fit into one file name
_MAX_NAME_BYTES = 255  # the limit of ext4, APFS and (in characters) NTFS
_FORBIDDEN = frozenset('<>:"/\\|?*')
_PORTS = frozenset(f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³")
_DEVICES = _PORTS | {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}

P = ParamSpec("P")
T = TypeVar("T")

HEAD = 12  # bytes that `extension` needs
TAIL = 1024  # last bytes that `is_complete` needs; some encoders pad after the end marker
STRONG_AGE = 60.0  # seconds: a Last-Modified this much older than the response's Date is a strong validator

_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_ETAG = re.compile(r'"[!#-~]*"')
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_PART_NAME = re.compile(r"\.kling-[0-9a-f]{16}\.part")


def safe_name(text: str) -> str:
    """Return *text* as one path component that is valid on any system.

    Characters and names that a system does not allow are replaced, and a long text is shortened. A changed
    text ends in a digest of the original, so that two ids never share a name.
    """
    clean = "".join("_" if mark in _FORBIDDEN or not mark.isprintable() else mark for mark in text)
    clean = clean.strip(" .").encode()[:_MAX_FIELD_BYTES].decode(errors="ignore").rstrip(" .") or "_"
    if clean.split(".")[0].rstrip().upper() in _DEVICES:
        clean = f"_{clean}"
    if clean == text:
        return text
    return f"{clean}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _check_format(_options: Any, _attribute: Any, value: str | None) -> None:
    if value is not None and value not in FORMATS:
        raise InvalidRequest("format", repr(value), f"must be one of {', '.join(FORMATS)}")


def _check_quality(options: "SaveOptions", _attribute: Any, value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
        raise InvalidRequest("quality", repr(value), "must be a whole number from 1 to 100")
    if options.format not in _LOSSY:
        raise InvalidRequest("quality", value, f"must be omitted unless format is {' or '.join(_LOSSY)}")


Finish = Callable[[Task, tuple[Path, ...]], Awaitable[tuple[Path, ...]]]


@frozen(kw_only=True)
class SaveOptions:
    """The names and the format of the saved pictures of a task.

    `name` (by default the task's id), `key`, `folder` and `shape` are the values of the template fields with
    these names. The directories in `name` are the value of the field ``path``. With `overwrite`, a file of
    the same name is replaced. With `watermark`, the watermarked pictures are also saved. `pictures` is the
    number that was ordered, or 1 if that is not known. With `format`, each picture is converted to this
    format, with a `quality` from 1 to 100 if the format is lossy. `finish` is called with the task and the
    paths of the saved pictures, and the save returns the paths that `finish` returns. `metadata` is the
    metadata of the photo, which is added to each picture.
    """

    name: str | None = None
    key: str | None = None
    folder: str | None = None
    shape: str | None = None
    overwrite: bool = False
    watermark: bool = True
    pictures: int = 1
    format: str | None = field(default=None, validator=_check_format)
    quality: int | None = field(default=None, validator=_check_quality)
    finish: Finish | None = field(default=None, eq=False, repr=False)
    metadata: "Metadata | None" = field(default=None, repr=False)

    def converts(self, ext: str) -> bool:
        """Return whether a picture with this extension must be converted."""
        return self.format is not None and (FORMATS[self.format] != ext or self.quality is not None)


DEFAULTS = SaveOptions()


@frozen
class OutputPaths:
    """The paths of the results of one task.

    A *position* is the place of an image within the task, from 0. `tag` is appended to make a name unique.
    `form` describes the task and the format, and is part of the digest that marks each file.
    """

    template: str
    values: dict[str, str]
    numbers: tuple[int, ...]
    tag: str = ""
    form: str = ""

    def path(self, position: int, ext: str, *, watermark: bool = False, tagged: bool = False) -> Path:
        """Return the path of a picture, or of its watermarked version."""
        path = self.template.format(**self.values, index=self.numbers[position], ext=ext)
        for ending in [self.tag] * tagged + ["watermark"] * watermark:
            path = with_ending(path, ending)
        return Path(path)

    def full_size(self) -> "OutputPaths":
        """Return the paths of the full-size pictures, next to those of the service."""
        template = self.template
        ending = (
            template.replace("{ext}", "-full{ext}") if "{ext}" in template else with_ending(template, "full")
        )
        return evolve(self, template=ending, form=f"{self.form} full")

    def folder(self, position: int) -> Path:
        """Return the directory of a picture. It does not depend on the format."""
        return self.path(position, ".png").parent

    def mark(self, position: int, *, watermark: bool) -> int:
        """Return the mark of a picture, in nanoseconds below one second."""
        text = f"{self.form} {self.numbers[position]} {watermark}"
        return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8]) % SECOND

    def candidates(self, position: int, *, watermark: bool = False) -> Iterator[Path]:
        """Yield every path that a picture may have, because its format is not known before the download."""
        for tagged in (False, True):
            for suffix in SUFFIXES:
                yield self.path(position, suffix, watermark=watermark, tagged=tagged)

    def find_saved(self, position: int, *, watermark: bool) -> Path | None:
        """Return the path of a picture from an earlier save of this task, if it still exists."""
        mark = self.mark(position, watermark=watermark)
        paths = self.candidates(position, watermark=watermark)
        return next((path for path in paths if has_mark(path, mark)), None)

    def locate(self, files: tuple[Path, ...]) -> tuple[Path, ...]:
        """Return *files* as paths of this task, or ``()`` if a save would use other paths."""
        found = tuple(
            path
            for position, file in enumerate(files[: len(self.numbers)])
            for path in self.candidates(position)
            if path.absolute() == file.absolute()
        )
        return found if len(found) == len(files) else ()

    def is_taken(self) -> bool:
        """Return whether any of the names, in any format, is taken by a file that is not this task's."""
        for position in range(len(self.numbers)):
            for watermark in (False, True):
                mark = self.mark(position, watermark=watermark)
                paths = {self.path(position, suffix, watermark=watermark) for suffix in SUFFIXES}
                if any(os.path.lexists(path) and not has_mark(path, mark) for path in paths):
                    return True
        return False


class Destination(NamedTuple):
    """The names for the pictures of one task.

    With `tagged`, each name contains the task's id. With `overwrite`, existing files are replaced.
    """

    paths: OutputPaths
    tagged: bool = False
    overwrite: bool = False


def has_mark(path: Path, mark: int) -> bool:
    """Return whether *path* is a regular file with this *mark*."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return False
    lost = 100 if os.name == "nt" else 1  # NTFS counts in units of 100 ns
    return stat.S_ISREG(found.st_mode) and found.st_mtime_ns % SECOND // lost == mark // lost


def output_paths(task: Task, target: str | os.PathLike[str], options: SaveOptions = DEFAULTS) -> OutputPaths:
    """Return the paths of the results for *target*.

    A target is a directory, the path of a picture, or a template with the fields in `FIELDS`. A leading ``~``
    is the user's home directory. If *target* is a directory, the directories in the name of the *options* are
    recreated below it. The only access to the file system is a check whether *target* is a directory.

    Raises:
        InvalidRequest: if a field is unknown, two pictures would share one path, or *target* is a URL.
    """
    wanted = os.fsdecode(target)
    if is_url(wanted):
        advice = "to write to an object store, use `upload` of the result"
        raise InvalidRequest("target", repr(wanted), "must be a path on this machine", advice)
    wanted = os.path.expanduser(wanted)  # noqa: PTH111 - a Path would drop a trailing slash
    form = f"{task.task_id} {options.format} {options.quality}{' metadata' if options.metadata else ''}"
    try:
        found = OutputPaths(
            _template(wanted), _values(task, options), _numbers(task), f"{safe_name(task.task_id)}", form
        )
        _check(wanted, [*_paths(found, ".png"), *_paths(found, ".jpeg")])
    except InvalidRequest:
        raise
    except (ValueError, OverflowError, MemoryError) as error:
        raise InvalidRequest("target", repr(wanted), f"must be a valid template ({error})") from None
    if options.format:
        check_suffix(found.path(0, FORMATS[options.format]), FORMATS[options.format])
    return found


def check_target(name: str, target: str | os.PathLike[str], options: SaveOptions = DEFAULTS) -> None:
    """Check *target*, the value of the argument *name*, before anything is paid for.

    Raises:
        InvalidRequest: if *target* is not a valid directory, template or path, or contradicts the format.
    """
    try:
        output_paths(Task("0", "succeed", images=(Image(0, ""),)), target, options)
    except InvalidRequest as error:
        raise InvalidRequest(name, repr(os.fsdecode(target)), error.limit, error.advice) from None


def is_url(target: str) -> bool:
    """Return whether *target* is a URL rather than a path."""
    return _URL.match(target) is not None


def _values(task: Task, options: SaveOptions) -> dict[str, str]:
    """Return the values of a template's fields."""
    *folders, last = options.name.split("/") if options.name else [task.task_id]
    tree = "/".join(safe_name(folder) for folder in folders if folder)
    texts = {
        "name": last,
        "task_id": task.task_id,
        "external_task_id": task.external_task_id or task.task_id,
        "key": options.key or last,
        "shape": options.shape or "unknown",
    }
    values = {name: safe_name(text) for name, text in texts.items()}
    folder = options.folder or (folders[-1] if folders else "")
    return values | {"path": tree or os.curdir, "folder": safe_name(folder) if folder else os.curdir}


def _numbers(task: Task) -> tuple[int, ...]:
    """Return the number of each image. Positions are used if two images have the same index."""
    indexes = tuple(image.index for image in task.images)
    return indexes if len(set(indexes)) == len(indexes) else tuple(range(len(indexes)))


def check_suffix(path: Path, ext: str) -> None:
    """Raise `InvalidRequest` if the suffix of *path* belongs to a format other than that of *ext*."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES and _SPELLINGS.get(suffix, suffix) != ext:
        wanted = next(name for name, each in FORMATS.items() if each == _SPELLINGS.get(suffix, suffix))
        limit = f"must end in {ext}, the format of the picture"
        raise InvalidRequest("target", repr(str(path)), limit, f'format="{wanted}" converts it')


def source_folder(source: ImageSource | None) -> str | None:
    """Return the name of the directory of a photo, or None if it has none."""
    if isinstance(source, str) and "://" in source:
        url = urlsplit(source)
        return PurePath(url.path).parent.name or url.hostname
    if isinstance(source, str | os.PathLike) and not str(source).startswith("data:"):
        return Path(os.fsdecode(source)).absolute().parent.name or None
    return None


def _template(wanted: str) -> str:
    """Return *wanted* as a template with all necessary fields."""
    pieces = list(string.Formatter().parse(wanted))
    fields = [(name, spec or "") for _, name, spec, _ in pieces if name is not None]
    for name, spec in fields:
        if name not in FIELDS or "{" in spec:
            limit = f"must use only the fields {', '.join(sorted(FIELDS))}"
            raise InvalidRequest("target", repr(wanted), limit, "double each brace that is part of a name")
        if any(int(number) > _MAX_NAME_BYTES for number in re.findall(r"\d+", spec)):
            limit = f"must not have a field with a width above {_MAX_NAME_BYTES}"
            raise InvalidRequest("target", repr(wanted), limit)
    literal = "".join(piece[0] for piece in pieces)
    # `Path.is_dir` raises if a name is too long or a directory cannot be searched.
    named = fields or (literal.lower().endswith(SUFFIXES) and not os.path.isdir(literal))  # noqa: PTH112
    if named and not wanted.endswith(("/", os.sep)):
        return wanted
    return f"{wanted or os.curdir}/{{path}}/{{name}}-{{index}}{{ext}}"


def _paths(found: OutputPaths, ext: str) -> list[Path]:
    positions = range(len(found.numbers))
    return [found.path(position, ext, watermark=mark) for position in positions for mark in (False, True)]


def _check(wanted: str, paths: list[Path]) -> None:
    """Check *paths*. Their second half repeats the first half with another extension."""

    def refuse(reason: str) -> InvalidRequest:
        return InvalidRequest("target", repr(wanted), reason)

    half = len(paths) // 2
    if any("\0" in str(path) for path in paths):
        raise refuse("a path must not contain NUL")
    if any(len(os.fsencode(path.name)) > _MAX_NAME_BYTES for path in paths):
        raise refuse(f"a file name must be at most {_MAX_NAME_BYTES} bytes")
    if any(one.parent != other.parent for one, other in zip(paths[:half], paths[half:], strict=True)):
        raise refuse("{ext} must be in the file's name, not in a directory's")
    if len({_normalized(path) for path in paths[:half]}) < half:
        raise refuse(f"{half // 2} images would share one name; add {{index}}")


def _normalized(path: Path) -> str:
    return os.path.normcase(os.path.normpath(path))


def with_ending(path: str, ending: str) -> str:
    """Insert a hyphen and *ending* before the picture suffix of *path*, or append them if it has none."""
    suffix = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")
    cut = len(path) - len(suffix)
    return f"{path[:cut]}-{ending}{path[cut:]}"


# ---------------------------------------------------------------------------- partial files


class RetryLater(Exception):
    """A failed attempt that may be retried. *wait* is the server's ``Retry-After`` in seconds, or 0."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait: float = wait


def extension(head: bytes) -> str:
    """Return the file extension for a picture whose first `HEAD` bytes are *head*, or an empty string."""
    if head.startswith(_PNG):
        return ".png"
    if head.startswith(_JPEG):
        return ".jpg"
    return ".webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else ""


def is_complete(head: bytes, tail: bytes, size: int) -> bool:
    """Return whether a file of *size* bytes with this *head* and *tail* is a complete picture."""
    match extension(head):
        case ".png":
            return _PNG_END in tail
        case ".jpg":
            return _JPEG_END in tail
        case ".webp":
            return size >= int.from_bytes(head[4:8], "little") + 8
    return False


class PartialFile:
    """A picture that is being downloaded.

    Methods that access the file block, so they must be called through `in_thread`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder
        self._file: Any = None
        self._batch: list[bytes] = []
        self._head = self._tail = b""
        self._validator: str | None = None
        self.buffered: int = 0  # bytes received but not yet flushed
        self.size: int = 0
        self.total: int | None = None
        self.ext: str = ""

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *work* in a thread, and wait until it ends, even if cancelled.

        A cancelled caller must not close the file while a thread still writes to it.

        Raises:
            DownloadError: if the file system reports an error.
        """
        job = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
        cancelled: asyncio.CancelledError | None = None
        while not job.done():
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            job.exception()  # retrieved, or asyncio would log it
            raise cancelled
        try:
            return job.result()
        except KlingError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DownloadError(f"a file in {self._folder} cannot be written: {reason}") from error

    @property
    def path(self) -> Path:
        """The path of the file while it is incomplete."""
        return self._path

    def create(self) -> None:
        """Create the file under a new name, and its directories if they are missing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            path = self._folder / f".kling-{secrets.token_hex(8)}.part"
            file = path.open("x+b", buffering=0)
            if _lock(file.fileno()) and path.exists():
                self._path, self._file = path, file
            else:  # another process removed it before it was locked
                file.close()

    def flush(self) -> None:
        """Write the buffered bytes to the file."""
        rest = memoryview(b"".join(self._batch))
        while rest:
            rest = rest[self._file.write(rest) :]
        self._batch, self.buffered = [], 0

    def restart(self) -> None:
        """Discard everything received."""
        self._file.seek(0)
        self._file.truncate()
        self._batch, self.buffered, self.size = [], 0, 0
        self._head = self._tail = b""

    def rewrite(self, convert: Callable[[bytes], bytes], ext: str) -> None:
        """Convert the contents of the complete file with *convert*. *ext* is the suffix of the new format."""
        self._file.seek(0)
        content = convert(self._file.readall())
        self.restart()
        self._batch, self.ext = [content], ext
        self.flush()

    def commit(self, destination: "Destination", position: int, *, watermark: bool = False) -> Path:
        """Move the file durably to its final path, and return that path.

        Raises:
            InvalidRequest: if the path has the suffix of another format.
        """
        paths = destination.paths
        mark = paths.mark(position, watermark=watermark)
        first = paths.path(position, self.ext, watermark=watermark, tagged=destination.tagged)
        last = paths.path(position, self.ext, watermark=watermark, tagged=True)
        check_suffix(first, self.ext)
        self._set_mark(mark)
        os.fsync(self._file.fileno())
        if fcntl is None:  # Windows cannot move an open file
            self._file.close()
        names = [first] if destination.overwrite else [first, last]
        free = (path for path in names if not destination.overwrite and self._rename(path, mark))
        path = next(free, None)
        if path is None:
            path = names[-1]
            self._path.replace(path)
        self._file.close()
        sync_folder(path.parent)
        return path

    def _rename(self, path: Path, mark: int) -> bool:
        """Return whether *path* now has the picture, possibly from another save of the same task."""
        return rename(self._path, path) or has_mark(path, mark)

    def _set_mark(self, mark: int) -> None:
        seconds = os.fstat(self._file.fileno()).st_mtime_ns // SECOND - 1  # never in the future
        os.utime(self._path, ns=(seconds * SECOND, seconds * SECOND + mark))

    def discard(self) -> None:
        """Remove the file, unless it was committed or never created."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def headers(self) -> dict[str, str]:
        """Return the request headers, with a range if a validator can prove that the file is unchanged."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if self.size and self._validator is not None:
            headers |= {"Range": f"bytes={self.size}-", "If-Range": self._validator}
        return headers

    async def start(self, status: int, headers: Mapping[str, str], length: int | None) -> None:
        """Prepare for a body, which is the whole file with status 200, or the rest of it with 206.

        Raises:
            RetryLater: if the response does not continue this file.
        """
        plain = headers.get("Content-Encoding", "identity").lower() == "identity"
        if status == 206:
            if not (plain and self._continues(headers)):
                self.invalidate("the server sent a different part of the file than requested")
            return
        await self.in_thread(self.restart)
        self._validator = strong_validator(headers) if plain else None
        self.total = length if plain else None

    def _continues(self, headers: Mapping[str, str]) -> bool:
        found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if found is None or self._validator is None or int(found[1]) != self.size:
            return False
        if strong_validator(headers) not in {None, self._validator}:
            return False
        known = self.total
        if found[2] != "*":
            self.total = int(found[2])
        return known in {None, self.total}

    def write(self, chunk: bytes) -> None:
        """Buffer the next *chunk*.

        Raises:
            RetryLater: if the file does not begin like a picture.
        """
        self._tail = (self._tail + chunk[-TAIL:])[-TAIL:]
        self._batch.append(chunk)
        self.buffered += len(chunk)
        self.size += len(chunk)
        if len(self._head) < HEAD:
            self._head = (self._head + chunk)[:HEAD]
            self.ext = extension(self._head)
            if len(self._head) == HEAD and not self.ext:
                self.invalidate("the body is not a picture")

    def verify(self) -> None:
        """Check at the end of a body that the picture is complete.

        Raises:
            RetryLater: if there are too few or too many bytes, or the picture is truncated.
        """
        if self.total is not None and self.size < self.total:
            raise RetryLater(f"{self.size} of {self.total} bytes arrived")
        if self.total is not None and self.size > self.total:
            self.invalidate(f"{self.size} bytes arrived for a file of {self.total}")
        if not is_complete(self._head, self._tail, self.size):
            self.invalidate("the picture is truncated")

    def invalidate(self, reason: str) -> None:
        """Make the next attempt start from the first byte.

        Raises:
            RetryLater: always, with *reason*.
        """
        self._validator = None
        raise RetryLater(reason)


async def all_ended(*jobs: Awaitable[T]) -> list[T]:
    """Wait until all *jobs* have ended. Return their results, or raise the first exception among them.

    `asyncio.gather` alone raises while other jobs still read and write files.
    """
    results = []
    for outcome in await asyncio.gather(*jobs, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


async def publish(
    destination: Destination,
    position: int,
    write: Callable[[PartialFile], Awaitable[None]],
    *,
    watermark: bool = False,
) -> Path:
    """Return the path of a picture. Unless an earlier save has left it there, *write* creates it.

    The new file gets its final name only after *write* has returned, and is removed if *write* fails.
    """
    part = PartialFile(destination.paths.folder(position))
    try:
        saved = await part.in_thread(_find_saved, destination, position, watermark=watermark)
        if saved is not None:
            return saved
        await part.in_thread(part.create)
        await write(part)
        return await part.in_thread(part.commit, destination, position, watermark=watermark)
    finally:
        await part.in_thread(part.discard)


def _find_saved(destination: Destination, position: int, *, watermark: bool) -> Path | None:
    """Return the path of a picture from an earlier save, or None if there is none or it is replaced."""
    remove_stale_parts(destination.paths.folder(position).absolute())
    return None if destination.overwrite else destination.paths.find_saved(position, watermark=watermark)


def rename(part: Path, target: Path) -> bool:
    """Rename *part* to *target*, and return True. Return False if *target* already exists."""
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _take_name(part, target)
    part.unlink(missing_ok=True)
    return True


def _take_name(part: Path, target: Path) -> bool:
    """Rename on a file system without hard links, after reserving the name with an empty file."""
    try:
        target.open("xb").close()
    except FileExistsError:
        return False
    try:
        part.replace(target)
    except OSError:
        target.unlink()
        raise
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable. Some file systems do not support this, so errors are ignored."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def strong_validator(headers: Mapping[str, str]) -> str | None:
    """Return a validator that proves that two responses have the same content, or None.

    It is a strong entity tag, or a modification date that is old enough to be unique (RFC 9110, section 8.8).
    """
    tag = headers.get("ETag", "")
    if _ETAG.fullmatch(tag):
        return tag
    changed, now = http_date(headers.get("Last-Modified")), http_date(headers.get("Date"))
    old = changed is not None and now is not None and now - changed >= STRONG_AGE
    return headers["Last-Modified"] if old else None


@lru_cache(MAX_SWEPT_FOLDERS)
def remove_stale_parts(folder: Path) -> None:
    """Remove the partial files that dead processes left in *folder*. Subdirectories are not searched.

    A process searches each directory only once.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _PART_NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_unlocked(entry.path)


def _remove_if_unlocked(path: str) -> None:
    # Do not follow a link or block on a FIFO, because any program may have created that name.
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Path(path).unlink()
    finally:
        os.close(descriptor)
    if fcntl is None:  # Windows can remove a file only after every process has closed it
        Path(path).unlink()


def _lock(descriptor: int) -> bool:
    """Lock a new file. Return False if a concurrent `remove_stale_parts` holds it."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks, where `remove_stale_parts` cannot lock either
            return True
    return True
