"""What is a result called on disk? Looks once whether a directory is there; opens nothing."""

import hashlib
import os
import string
from pathlib import Path
from typing import Any

from attrs import frozen

from kling_expand.errors import InvalidRequest
from kling_expand.models import Task

FIELDS = frozenset({"name", "index", "task_id", "external_task_id", "ext"})
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_LONGEST_VALUE = 100  # bytes one field may fill, so that a few of them fit into one name
_LONGEST_NAME = 255  # bytes: the limit of ext4, APFS and (in characters) NTFS
_FORBIDDEN = frozenset('<>:"/\\|?*')
_PORTS = frozenset(f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³")
_DEVICES = _PORTS | {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}


def safe(text: str) -> str:
    """*text* as one part of a path, on any system: never a separator, a dot name or a device.

    Text that had to be changed carries a digest of what it was, so that two ids never become one name.
    """
    clean = "".join("_" if mark in _FORBIDDEN or not mark.isprintable() else mark for mark in text)
    clean = clean.strip(" .").encode()[:_LONGEST_VALUE].decode(errors="ignore").rstrip(" .") or "_"
    if clean.split(".")[0].rstrip().upper() in _DEVICES:
        clean = f"_{clean}"
    if clean == text:
        return text
    return f"{clean}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


@frozen
class OutputPaths:
    """The paths of one task's results; `place` counts its images."""

    template: str
    values: dict[str, str]
    numbers: tuple[int, ...]

    def path(self, place: int, ext: str, *, watermark: bool = False) -> Path:
        """Where the picture goes, or the watermarked one beside it."""
        plain = self.template.format(**self.values, index=self.numbers[place], ext=ext)
        return Path(_watermarked(plain) if watermark else plain)

    def folder(self, place: int) -> Path:
        """The directory the picture goes to, which its format does not decide."""
        return self.path(place, ".png").parent


def names(task: Task, target: str | os.PathLike[str], name: str | None = None) -> OutputPaths:
    """Read *target*: a directory, a picture's path, or a template with some of `FIELDS`.

    Raises `InvalidRequest` for an unknown field, and where two pictures would share one path.
    """
    wanted = os.fspath(target)
    values = {
        "name": safe(name or task.task_id),
        "task_id": safe(task.task_id),
        "external_task_id": safe(task.external_task_id or task.task_id),
    }
    indexes = tuple(image.index for image in task.images)
    # A service that counts wrongly must not cost a picture.
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
    """*wanted* with whatever it leaves open filled in."""
    pieces = list(string.Formatter().parse(wanted))
    fields = [(field, spec or "") for _, field, spec, _ in pieces if field is not None]
    for field, spec in fields:
        if field not in FIELDS or "{" in spec:
            raise InvalidRequest("target", repr(wanted), f"its fields are {', '.join(sorted(FIELDS))}")
    literal = "".join(piece[0] for piece in pieces)
    # `Path.is_dir` would raise where a name is too long, or a directory cannot be searched.
    named = fields or (literal.lower().endswith(SUFFIXES) and not os.path.isdir(literal))  # noqa: PTH112
    if named and not wanted.endswith(("/", os.sep)):
        return wanted
    return f"{wanted or os.curdir}/{{name}}-{{index}}{{ext}}"


def _paths(found: OutputPaths, ext: str) -> list[Path]:
    places = range(len(found.numbers))
    return [found.path(place, ext, watermark=mark) for place in places for mark in (False, True)]


def _check(wanted: str, paths: list[Path]) -> None:
    """*paths* holds every name twice, once with each of two endings."""

    def refuse(reason: str) -> InvalidRequest:
        return InvalidRequest("target", repr(wanted), reason)

    half = len(paths) // 2
    if any("\0" in str(path) for path in paths):
        raise refuse("a path holds no NUL")
    if any(len(os.fsencode(path.name)) > _LONGEST_NAME for path in paths):
        raise refuse(f"a file name has at most {_LONGEST_NAME} bytes")
    if any(one.parent != other.parent for one, other in zip(paths[:half], paths[half:], strict=True)):
        raise refuse("{ext} belongs into the file's name, not into a directory's")
    if len({_key(path) for path in paths[:half]}) < half:
        raise refuse(f"{half // 2} images would share one name; add {{index}}")


def _key(path: Path) -> Any:
    return os.path.normcase(os.path.normpath(path))


def _watermarked(path: str) -> str:
    suffix = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")
    cut = len(path) - len(suffix)
    return f"{path[:cut]}-watermark{path[cut:]}"
