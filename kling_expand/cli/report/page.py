"""What stands around the jobs on a page? Sums, filters, style and script, all within the one file."""

from collections.abc import Mapping
from html import escape
from importlib.resources import files

from kling_expand.cli.batch.usage import Spent
from kling_expand.cli.formatting import clean, money, span
from kling_expand.store.base import JobState

from .cards import KINDS

# Nothing is fetched, whatever a journal may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def head(title: str, states: Mapping[JobState, int], spent: Spent, durations: list[float], last: int) -> str:
    """The page up to its first job. *last* jobs at most will follow."""
    name = escape(clean(title))
    kinds = dict.fromkeys(("done", "failed", "open"), 0)
    for state, number in states.items():
        kinds[KINDS[state]] += number
    jobs = sum(kinds.values())
    note = f'<p class="note">The newest {last} of {jobs} jobs are shown.</p>' if jobs > last else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{name}</title>\n<style>\n{_file('report.css')}</style></head>\n"
        f"<body><header><h1>{name}</h1>{_sums(jobs, kinds, spent, durations)}{_filters(jobs, kinds)}{note}"
        "</header>\n<main>\n"
    )


def foot() -> str:
    """The page after its last job."""
    return f"</main>\n<script>\n{_file('report.js')}</script></body></html>\n"


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _sums(jobs: int, kinds: Mapping[str, int], spent: Spent, durations: list[float]) -> str:
    ordered = sorted(durations)
    facts = {
        "jobs": str(jobs),
        "done": str(kinds["done"]),
        "failed": str(kinds["failed"]),
        "open": str(kinds["open"]),
        "billed": money(spent.billed),
    }
    if ordered:
        facts["a task took"] = span(ordered[len(ordered) // 2])
        facts["19 of 20 within"] = span(ordered[min(len(ordered) * 19 // 20, len(ordered) - 1)])
    sums = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="sums">{sums}</dl>'


def _filters(jobs: int, kinds: Mapping[str, int]) -> str:
    choices = [("all", jobs), *((kind, number) for kind, number in kinds.items() if number)]
    if len(choices) < 3:
        return ""
    buttons = "".join(
        f'<button type="button" data-filter="{kind}" aria-pressed="{str(kind == "all").lower()}">'
        f"{kind} <span>{number}</span></button>"
        for kind, number in choices
    )
    return f'<nav class="filters" aria-label="Which jobs are shown">{buttons}</nav>'
