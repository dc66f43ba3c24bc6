"""How is one job shown on a page? Its photo inside its result, with a slider, and what is known of it."""

from html import escape
from pathlib import PurePath

from kling_expand.api import codec
from kling_expand.cli.batch.rows import stem
from kling_expand.cli.formatting import clean, moment, span
from kling_expand.geometry import Ratios, Towards
from kling_expand.models import ExpandRequest, Status, Task
from kling_expand.store.base import JobRecord, JobState

from .thumbnails import Thumbnail, thumbnail

KINDS = {
    JobState.DONE: "done",
    JobState.SUCCEEDED: "open",
    JobState.SUBMITTED: "open",
    JobState.INTENT: "open",
    JobState.UNKNOWN: "open",
    JobState.FAILED: "failed",
    JobState.REJECTED: "failed",
}
WORDS = {
    JobState.DONE: "done",
    JobState.SUCCEEDED: "not saved yet",
    JobState.SUBMITTED: "at the service",
    JobState.INTENT: "not sent",
    JobState.UNKNOWN: "not known",
    JobState.FAILED: "failed",
    JobState.REJECTED: "refused",
}


def seconds(task: Task | None) -> float | None:
    """How long a task took that ended well, by the service's clock."""
    if task is None or task.status is not Status.SUCCEED or None in (task.created_at, task.updated_at):
        return None
    return max((task.updated_at or 0) - (task.created_at or 0), 0) / 1000


def card(job: JobRecord, size: int) -> str:
    """The job as HTML; its pictures at most *size* pixels wide and high."""
    request = codec.unpack_request(job.params, job.source or "", job.key)
    ratios = _ratios(request)
    before = thumbnail(job.source, size) if job.source else None
    after = [small for path in job.files if (small := thumbnail(path, size))]
    name = _text(stem(job.source) if job.source else job.external_task_id)
    kind = KINDS[job.state]
    return (
        f'<article class="card" data-kind="{kind}">'
        f"{_stage(name, before, after, ratios)}"
        f'<div class="about"><h2 title="{_text(job.source or "")}">{name}</h2>'
        f'<span class="badge {kind}">{WORDS[job.state]}</span></div>'
        f"{_prompt(request)}{_error(job)}{_facts(job, request, before, after)}</article>\n"
    )


def _ratios(request: ExpandRequest) -> Ratios:
    geometry = request.geometry
    return geometry if isinstance(geometry, Ratios) else geometry.ratios(0, 0)


def _text(words: str) -> str:
    """What others wrote, so that it is only text."""
    return escape(clean(words))


def _stage(name: str, before: Thumbnail | None, after: list[Thumbnail], ratios: Ratios) -> str:
    """The pictures: results, the photo where it lies in them, and the slider between them."""
    if not after and before is None:
        return '<div class="stage empty">no picture on this machine</div>'
    shape = after[0] if after else None
    if shape is None and before is not None:
        canvas = ratios.canvas(before.width, before.height)
        width, height = canvas.width, canvas.height
    else:
        width, height = (shape.width, shape.height) if shape else (1, 1)
    results = "".join(
        f'<img class="after{"" if number == 0 else " hidden"}" src="{small.uri}" alt="{name}, expanded">'
        for number, small in enumerate(after)
    )
    return (
        f'<div class="stage" style="aspect-ratio:{width}/{height}">{results}'
        f"{_original(name, before, ratios)}{_slider(name) if after and before else ''}</div>{_choice(after)}"
    )


def _original(name: str, before: Thumbnail | None, ratios: Ratios) -> str:
    """The photo on its hatched canvas, in the place it has in the result."""
    if before is None:
        return ""
    across, down = 1 + ratios.left + ratios.right, 1 + ratios.up + ratios.down
    place = (
        f"left:{100 * ratios.left / across:.4f}%;top:{100 * ratios.up / down:.4f}%;"
        f"width:{100 / across:.4f}%;height:{100 / down:.4f}%"
    )
    return f'<div class="before"><img src="{before.uri}" alt="{name}, as it was" style="{place}"></div>'


def _slider(name: str) -> str:
    return (
        '<div class="line"></div><input type="range" min="0" max="100" value="50" '
        f'aria-label="{name}: how much of the original is shown">'
    )


def _choice(after: list[Thumbnail]) -> str:
    if len(after) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" aria-pressed="{str(number == 0).lower()}">{number + 1}</button>'
        for number in range(len(after))
    )
    return f'<div class="choice" role="group" aria-label="pictures">{buttons}</div>'


def _prompt(request: ExpandRequest) -> str:
    return f'<p class="prompt">{_text(request.prompt)}</p>' if request.prompt else ""


def _error(job: JobRecord) -> str:
    return f'<p class="error">{_text(job.error)}</p>' if job.error else ""


def _facts(job: JobRecord, request: ExpandRequest, before: Thumbnail | None, after: list[Thumbnail]) -> str:
    task, took = job.task, seconds(job.task)
    sizes = [f"{small.width}×{small.height}" for small in (before, *after[:1]) if small]
    facts = {
        "ratios": _asked(request),
        "size": " → ".join(sizes),
        "pictures": str(request.n) if request.n > 1 else "",
        "took": span(took) if took is not None else "",
        "units": (task and task.final_unit_deduction) or "",
        "asked": moment(round(job.created_at * 1000)),
        "attempt": str(job.attempt) if job.attempt > 1 else "",
        "task": job.task_id or "",
        "external id": job.external_task_id,
        "files": ", ".join(PurePath(path).name for path in job.files),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts.items() if value)
    return f"<dl>{rows}</dl>"


def _asked(request: ExpandRequest) -> str:
    if isinstance(request.geometry, Towards):
        return f"{request.geometry.direction} {request.geometry.ratio:g}"
    ratios = _ratios(request)
    sides = {"up": ratios.up, "down": ratios.down, "left": ratios.left, "right": ratios.right}
    return ", ".join(f"{side} {value:.4g}" for side, value in sides.items() if value)
