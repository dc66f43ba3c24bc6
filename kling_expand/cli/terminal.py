"""Output of the commands: values as text or JSON, errors as one sentence on stderr, and exit codes.

Control characters in text from outside, such as file names, are escaped. No failure prints a traceback.

====  =====================================================================
0     success
1     a task failed, the service refused a request, or stdout failed
2     nothing was started: wrong options, input or configuration
3     stopped because no further job could succeed: credentials, account, network
130   interrupted by Ctrl-C or SIGTERM, or the terminal was closed
====  =====================================================================
"""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from kling_expand.errors import ConfigurationError, InvalidRequest, KlingError

if TYPE_CHECKING:
    from logging import LogRecord

    from kling_expand.models import Task

FAILED = 1
NOTHING_DONE = 2
FATAL = 3
INTERRUPTED = 130


class NothingDone(click.ClickException):
    """The error of a command that has not started anything. The message says what to do."""

    exit_code = NOTHING_DONE


class ServiceFailed(click.ClickException):
    """The error of a command that failed after it was started, such as a refusal by the service."""

    exit_code = FAILED


class Commands(click.Group):
    """A group of commands. It converts their exceptions to a message and an exit code.

    Commands may raise `KlingError`, `KeyboardInterrupt`, and `OSError` if stdout fails.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they were added."""
        del ctx
        return list(self.commands)

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run a command line and exit with its code."""
        settings["standalone_mode"] = False
        with standard_streams():
            try:
                code = super().main(*args, **settings)
            except click.Abort:  # Ctrl-C outside of a command
                code = INTERRUPTED
            except click.ClickException as error:
                vars(error)["message"] = "\n".join(map(clean, error.message.splitlines()))
                error.show()
                code = error.exit_code
            except OSError as error:
                if error.filename is not None:  # not stdout, which has no name
                    click.echo(clean(f"Error: {error.filename}: {error.strerror}"), err=True)
                elif not isinstance(error, BrokenPipeError):  # which is normal, for example with `| head`
                    click.echo(f"Error: the output cannot be written: {error.strerror}", err=True)
                code = FAILED
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the named command, and convert its exception to a message and an exit code."""
        try:
            return super().invoke(ctx)
        except KlingError as error:
            kind = NothingDone if exit_code(error) == NOTHING_DONE else ServiceFailed
            raise kind(clean(shell_words(str(error)))) from error
        except KeyboardInterrupt:
            leave(INTERRUPTED)


# The advice in messages of the library, and its equivalent for a user of the shell.
SHELL_WORDS = {
    "submit the job again with fresh=True; it is billed again": "use --fresh to make and pay for it again",
    ", or pass them to KlingClient": "",
    ", and the future can be awaited again": "; run the same command again to wait for it",
    "omit it to continue that job, or give another key, or fresh=True": "leave it out to continue that job, "
    "or give the row another value in the column `key`, or use --fresh",
    "convert it, for example with Pillow: Image.open(name).convert('RGB').save('photo.jpg')": "convert it to "
    "PNG or JPEG with another program",
    "give another one, or attach to that task": "give another one, or use `kling-expand wait`",
}


def shell_words(text: str) -> str:
    """Return a message of the library with its advice adapted to the shell."""
    for python_text, shell_text in SHELL_WORDS.items():
        text = text.replace(python_text, shell_text)
    text = re.sub(r'format="(\w+)"', r"--format \1", text)
    return re.sub(r"passes=(\d)( \(--passes \d in the shell\))?", r"--passes \1", text)


def exit_code(error: KlingError) -> int:
    """Return 2 for an error found before anything was sent, 1 for any other."""
    return NOTHING_DONE if isinstance(error, ConfigurationError | InvalidRequest) else FAILED


def leave(code: int) -> NoReturn:
    """End the command with an exit code and no message."""
    raise click.exceptions.Exit(code)


# ---------------------------------------------------------------------------- standard streams


class Stream:
    """A wrapper of a standard stream. It keeps the last failure in `error`, and raises it if *required*."""

    def __init__(self, stream: TextIO, *, required: bool) -> None:
        self._stream = stream
        self.required = required
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write *text*, and return its length."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the buffer."""
        self._try(self._stream.flush)

    def _try(self, function: Callable[..., object], *args: object) -> None:
        try:
            function(*args)
        except OSError as error:
            self.error = error
            if self.required:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Replace stdout and stderr with streams that can fail without a traceback.

    After a closed pipe, a closed terminal or a full disk, the command ends when it prints its next result. A
    failure of stderr does not end a command.
    """
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file name may contain any bytes
    streams = [
        stream and Stream(stream, required=required)
        for stream, required in zip(before, (True, False), strict=True)
    ]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        # A failed stream still buffers text, which Python would try to write at exit.
        sys.stdout, sys.stderr = (
            io.StringIO() if isinstance(stream, Stream) and stream.error else original
            for stream, original in zip(streams, before, strict=True)
        )


@contextmanager
def optional_stdout() -> Iterator[None]:
    """Let a command continue if stdout fails, because its results are files.

    Raises:
        OSError: at the end, if stdout failed for a reason other than a closed pipe (as with `| head`).
    """
    stream = sys.stdout
    if not isinstance(stream, Stream):
        yield
        return
    stream.required = False
    try:
        yield
    finally:
        stream.required = True
    if stream.error is not None and not isinstance(stream.error, BrokenPipeError):
        raise stream.error


class _Lines:
    """An output stream for a log handler. It prints only the first line of each text, so no traceback."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def write(self, text: str) -> None:
        self._write(text.partition("\n")[0])

    def flush(self) -> None:
        """Do nothing: each line is written at once."""


def redirect_warnings(write: Callable[[str], None] | None, *, unfiltered: bool = False) -> None:
    """Print the package's warnings with *write*, or on stderr if it is None.

    Unless *unfiltered* is set, warnings that the commands report themselves are omitted.
    """
    import logging  # imported here, because few commands need it

    logger = logging.getLogger("kling_expand")
    for handler in [each for each in logger.handlers if isinstance(getattr(each, "stream", None), _Lines)]:
        logger.removeHandler(handler)
    lines = logging.StreamHandler(_Lines(write or (lambda text: click.echo(clean(text), err=True))))
    if not unfiltered:
        lines.addFilter(_is_new)
    logger.addHandler(lines)


def _is_new(record: "LogRecord") -> bool:
    """Return whether the commands do not already report this warning themselves.

    They report tasks that continue after an interruption, failing calls and rotated photos.
    """
    shown_elsewhere = {"kling_expand.client", "kling_expand.jobs.future", "kling_expand.calls"}
    shown_elsewhere |= {"kling_expand.jobs.poll_schedule", "kling_expand.api.photo"}
    return record.levelname not in {"DEBUG", "INFO"} and record.name not in shown_elsewhere


# ---------------------------------------------------------------------------- values


def show(facts: Any) -> None:
    """Print one JSON object on one line."""
    click.echo(json.dumps(facts))


def print_path(path: str | os.PathLike[str]) -> None:
    """Print a path on one line. On a terminal its control characters are escaped."""
    text = os.fspath(path)
    click.echo(clean(text) if sys.stdout and sys.stdout.isatty() else text)


def clean(text: str) -> str:
    """Return *text* with its control characters escaped, because a terminal would interpret them."""
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)


def plural(number: int, noun: str) -> str:
    """Return a count with its noun: ``1 task``, ``2 tasks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def moment(milliseconds: int | None) -> str:
    """Return a time of the service as ``2026-11-20 06:49:58 UTC``, or a dash."""
    from datetime import UTC, datetime  # imported here, because few commands need it

    if milliseconds is None:
        return "-"
    try:
        return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return str(milliseconds)


def billed_units(*tasks: "Task | None") -> float | None:
    """Return the units that the service has billed for *tasks*, or None if they are all unknown."""
    known = [float(task.units) for task in tasks if task is not None and task.units is not None]
    if not known:
        return None
    units = sum(known, 0.0)
    return int(units) if units.is_integer() else units


def task_facts(task: "Task") -> dict[str, Any]:
    """Return a task for JSON, in the words of the API."""
    return {
        "task_id": task.task_id,
        "external_task_id": task.external_task_id,
        "task_status": task.task_status,
        "task_status_msg": task.task_status_msg,
        "units": billed_units(task),
        "created_at": task.created_at,
        "updated_at": task.updated_at,
        "images": [
            {"index": image.index, "url": image.url, "watermark_url": image.watermark_url}
            for image in task.images
        ],
    }


def task_lines(task: "Task") -> list[str]:
    """Return a task as text, one fact per line."""
    facts = {
        "task_id": task.task_id,
        "external_task_id": task.external_task_id,
        "task_status": task.task_status,
        "task_status_msg": task.task_status_msg,
        "units": task.final_unit_deduction,
        "created": moment(task.created_at),
        "updated": moment(task.updated_at),
    }
    for image in task.images:
        facts[f"image {image.index}"] = image.url
        facts[f"watermark {image.index}"] = image.watermark_url
    return [f"{name:<17} {clean(value)}" for name, value in facts.items() if value]


def task_row(task: "Task") -> str:
    """Return a task on one line."""
    units = task.final_unit_deduction or "-"
    row = f"{task.task_id}  {task.task_status:<10}  {moment(task.created_at)}  {units:>4}"
    return clean(f"{row}  {task.external_task_id or '-'}")


def money(units: float, *, emulated: bool = False) -> str:
    """Return units and their price: ``16 units ($0.06)``. An *emulated* service bills nothing."""
    from kling_expand.models import DOLLARS_PER_UNIT  # imported here, to keep `--help` fast

    price = "emulated, not billed" if emulated else f"${DOLLARS_PER_UNIT * units:,.2f}"
    return f"{units:.10g} {'unit' if units == 1 else 'units'} ({price})"


def estimate(units: float, *, emulated: bool = False) -> str:
    """Return the expected cost of a run. For an *emulated* service, add what the real one would charge."""
    if not emulated:
        return money(units)
    return money(units).replace("($", "(about $").replace(")", " on the real service; not billed here)")


def span(seconds: float) -> str:
    """Return a duration as text: ``45 s``, ``3:05``, ``2:00:10``, ``3 days 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole >= 48 * 3600:
        return f"{whole // 86400} days {whole % 86400 // 3600} h"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
