"""Output of the commands: values as text or JSON, errors as one sentence on stderr, and exit codes.

Control characters in text of the service are removed, and no failure prints a traceback.

====  ==============================================================
0     success
1     a task failed, or the service refused a request
2     nothing was started: wrong options, input or configuration
130   interrupted with Ctrl-C
====  ==============================================================
"""

import json
from datetime import UTC, datetime
from typing import Any, NoReturn

import click

from kling_expand.errors import ConfigurationError, InvalidRequest, KlingError
from kling_expand.models import DOLLARS_PER_UNIT, Task

FAILED = 1
NOTHING_DONE = 2
INTERRUPTED = 130


class NothingDone(click.ClickException):
    """The end of a command before it started anything; the message says what to do."""

    exit_code = NOTHING_DONE


class ServiceFailed(click.ClickException):
    """The end of a command because of an answer of the service."""

    exit_code = FAILED


class Commands(click.Group):
    """A group of commands that may raise `KlingError` and KeyboardInterrupt."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they were added."""
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the named command, and convert its exception to a message and an exit code."""
        try:
            return super().invoke(ctx)
        except KlingError as error:
            kind = NothingDone if exit_code(error) == NOTHING_DONE else ServiceFailed
            raise kind(str(error)) from error
        except KeyboardInterrupt:
            leave(INTERRUPTED)


def exit_code(error: KlingError) -> int:
    """Return 2 for an error found before anything was sent, 1 for any other."""
    return NOTHING_DONE if isinstance(error, ConfigurationError | InvalidRequest) else FAILED


def leave(code: int) -> NoReturn:
    """End the command with an exit code and no message."""
    raise click.exceptions.Exit(code)


# ---------------------------------------------------------------------------- values


def show(facts: Any) -> None:
    """Print one JSON object on one line."""
    click.echo(json.dumps(facts))


def clean(text: str) -> str:
    """Return *text* without control characters, which could be escape sequences."""
    return "".join(mark if mark.isprintable() else "�" for mark in text)


def plural(number: int, noun: str) -> str:
    """Return a count with its noun: ``1 task``, ``2 tasks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def moment(milliseconds: int | None) -> str:
    """Return a time of the service as ``2026-11-20 06:49:58 UTC``, or a dash."""
    if milliseconds is None:
        return "-"
    try:
        return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return str(milliseconds)


def billed_units(task: Task | None) -> float | None:
    """Return the units that the service has billed for *task*, or None while they are unknown."""
    if task is None or task.units is None:
        return None
    units = float(task.units)
    return int(units) if units.is_integer() else units


def task_facts(task: Task) -> dict[str, Any]:
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


def task_lines(task: Task) -> list[str]:
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


def task_row(task: Task) -> str:
    """Return a task on one line."""
    units = task.final_unit_deduction or "-"
    row = f"{task.task_id}  {task.task_status:<10}  {moment(task.created_at)}  {units:>4}"
    return clean(f"{row}  {task.external_task_id or '-'}")


def money(units: float) -> str:
    """Return units and their price: ``16 units ($0.06)``."""
    noun = "unit" if units == 1 else "units"
    return f"{units:.10g} {noun} (${DOLLARS_PER_UNIT * units:,.2f})"


def span(seconds: float) -> str:
    """Return a duration as text: ``45 s``, ``3:05``, ``2:00:10``, ``3 days 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole >= 48 * 3600:
        return f"{whole // 86400} days {whole % 86400 // 3600} h"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
