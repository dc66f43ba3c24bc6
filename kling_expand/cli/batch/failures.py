"""The file of --failures: the rows whose pictures were not saved, as a manifest for `kling-expand bulk`."""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

from kling_expand.cli.terminal import NothingDone, ServiceFailed

from .progress import Job
from .tables import LINES

REASON = "_reason"  # `bulk` ignores columns that begin with an underscore


class FailuresFile:
    """A .csv, .tsv or .jsonl file with one row for each job that is not saved, and its reason.

    The file is written at the end, so *path* may be the manifest that the batch reads. Whether it can be
    written is checked at the start.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._suffix = Path(path).suffix.lower()
        self._folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120 - links must not be resolved
        self._columns = {"image": None, REASON: None}
        self._rows: IO[str] = io.StringIO()

    def __enter__(self) -> Self:
        try:
            Path(self._path).open("a").close()
        except OSError as error:
            raise NothingDone(f"--failures {self._path} cannot be written ({error.strerror})") from error
        self._rows = TemporaryFile("w+", encoding="ascii")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.seek(0)
        part = Path(self._folder, f".kling-{os.getpid()}-{Path(self._path).name}")
        part.unlink(missing_ok=True)
        try:
            # Mode "x" never follows a link that another program made.
            with self._rows, part.open("x", encoding="utf-8", errors="replace", newline="") as file:
                self._write(file)
            part.replace(self._path)
        except OSError as problem:
            part.unlink(missing_ok=True)
            raise ServiceFailed(
                f"--failures {self._path} cannot be written ({problem.strerror})"
            ) from problem

    def _write(self, file: IO[str]) -> None:
        if self._suffix in LINES:
            file.writelines(self._rows)
        else:
            delimiter = "\t" if self._suffix == ".tsv" else ","
            table = csv.DictWriter(file, self._columns, delimiter=delimiter, lineterminator="\n")
            table.writeheader()
            table.writerows(_texts(json.loads(row)) for row in self._rows)

    def add(self, job: Job) -> None:
        """Add the row of a job."""
        problem, image = job.reason, str(job.cells.get("image") or "")
        reason = f"{problem.type}: {problem.message}" if problem else job.outcome
        row = {"image": self._place(image), REASON: reason} | {
            name: value for name, value in job.cells.items() if name not in {"image", REASON}
        }
        self._columns |= dict.fromkeys(row)
        self._rows.write(f"{json.dumps(row)}\n")

    def _place(self, image: str) -> str:
        """Return the path of a photo for the table. A path below the table's directory is relative to it."""
        if not image or "://" in image:
            return image
        path = os.path.relpath(image, self._folder)
        return os.path.abspath(image) if path.startswith(os.pardir) else path  # noqa: PTH100


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    plain = {name: "" if value is None else value for name, value in row.items()}
    return {
        name: json.dumps(value) if isinstance(value, dict | list | bool) else str(value)
        for name, value in plain.items()
    }
