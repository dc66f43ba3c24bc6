"""The paths of the results of a task: legal on every system, and distinct for each picture."""

import hashlib
import os
import string
from pathlib import Path

from attrs import frozen

from kling_expand.errors import InvalidRequest
from kling_expand.models import Task

FIELDS = frozenset({"name", "index", "task_id", "external_task_id", "ext"})
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_MAX_FIELD_BYTES = 100  # so that a few fields fit into one file name
_MAX_NAME_BYTES = 255  # the limit of ext4, APFS and (in characters) NTFS
_FORBIDDEN = frozenset('<>:"/\\|?*')
_PORTS = frozenset(f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³")
_DEVICES = _PORTS | {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}


def safe_name(text: str) -> str:
    """Return *text* as one path component for any system, never a separator, a dot name or a device.

    Changed text carries a digest of the original, so that two ids never become one name.
    """
    clean = "".join("_" if mark in _FORBIDDEN or not mark.isprintable() else mark for mark in text)
    clean = clean.strip(" .").encode()[:_MAX_FIELD_BYTES].decode(errors="ignore").rstrip(" .") or "_"
    if clean.split(".")[0].rstrip().upper() in _DEVICES:
        clean = f"_{clean}"
    if clean == text:
        return text
    return f"{clean}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


@frozen
class OutputPaths:
    """The paths of the results of one task; a `position` counts its images from 0."""

    template: str
    values: dict[str, str]
    numbers: tuple[int, ...]

    def path(self, position: int, ext: str, *, watermark: bool = False) -> Path:
        """Return the path of a picture, or of its watermarked version beside it."""
        plain = self.template.format(**self.values, index=self.numbers[position], ext=ext)
        return Path(_watermarked(plain) if watermark else plain)

    def folder(self, position: int) -> Path:
        """Return the directory of a picture, which does not depend on its format."""
        return self.path(position, ".png").parent


def output_paths(task: Task, target: str | os.PathLike[str], name: str | None = None) -> OutputPaths:
    """Return the paths that *target* means: a directory, a picture's path, or a template of `FIELDS`.

    The file system is only asked whether *target* is a directory.

    Raises:
        InvalidRequest: a field is unknown, or two pictures would share one path.
    """
    wanted = os.fspath(target)
    values = {
        "name": safe_name(name or task.task_id),
        "task_id": safe_name(task.task_id),
        "external_task_id": safe_name(task.external_task_id or task.task_id),
    }
    indexes = tuple(image.index for image in task.images)
    # A service that numbers its images wrongly must not cost a picture.
    numbers = indexes if len(set(indexes)) == len(indexes) else tuple(range(len(indexes)))
    try:
        found = OutputPaths(_template(wanted), values, numbers)
        paths = [*_paths(found, ".png"), *_paths(found, ".jpeg")]
    except InvalidRequest:
        raise
    except (ValueError, OverflowError, MemoryError) as error:
        raise InvalidRequest("target", repr(wanted), f"it is not a template: {error}") from None
    _check(wanted, paths)
    return found


def _template(wanted: str) -> str:
    """Return *wanted* as a template with all the fields it needs."""
    pieces = list(string.Formatter().parse(wanted))
    fields = [(field, spec or "") for _, field, spec, _ in pieces if field is not None]
    for field, spec in fields:
        if field not in FIELDS or "{" in spec:
            raise InvalidRequest("target", repr(wanted), f"its fields are {', '.join(sorted(FIELDS))}")
    literal = "".join(piece[0] for piece in pieces)
    # `Path.is_dir` raises where a name is too long, or a directory cannot be searched.
    named = fields or (literal.lower().endswith(SUFFIXES) and not os.path.isdir(literal))  # noqa: PTH112
    if named and not wanted.endswith(("/", os.sep)):
        return wanted
    return f"{wanted or os.curdir}/{{name}}-{{index}}{{ext}}"


def _paths(found: OutputPaths, ext: str) -> list[Path]:
    positions = range(len(found.numbers))
    return [found.path(position, ext, watermark=mark) for position in positions for mark in (False, True)]


def _check(wanted: str, paths: list[Path]) -> None:
    """Check *paths*, which hold every path twice: once with each of two extensions."""

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


def _watermarked(path: str) -> str:
    suffix = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")
    cut = len(path) - len(suffix)
    return f"{path[:cut]}-watermark{path[cut:]}"
