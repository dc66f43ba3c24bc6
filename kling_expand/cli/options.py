"""Which options do several commands share? Each set is read into one value before its command runs."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

C = TypeVar("C", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
output = click.option(
    "-o",
    "--output",
    default="out",
    show_default=True,
    metavar="DIR",
    help="Where results go: a directory, or a template of {name} {index} {task_id} {external_task_id} {ext}. "
    "Results of the same name are replaced.",
)
places = click.option(
    "-o",
    "--output",
    default="out",
    show_default=True,
    metavar="DIR",
    help="Where results go: a directory, or a template of {name} {index} {task_id} {external_task_id} {ext}.",
)
deadline = click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Wait no longer than this for each task; it goes on all the same.",
)
jobs = click.option(
    "--jobs",
    default=9,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Pictures in work at once: the slots your account has.",
)
budget = click.option(
    "--budget",
    type=click.IntRange(min=0),
    metavar="UNITS",
    help="The most that all runs with this journal may cost; 8 units a picture.",
)


def gathered(name: str, make: Callable[..., Any], **options: Callable[[C], C]) -> Callable[[C], C]:
    """Give a command *options*, and hand their values to it as the one value *name* that *make* makes."""

    def decorate(command: C) -> C:
        @functools.wraps(command)
        def with_value(**given: Any) -> Any:
            chosen = {option: given.pop(option) for option in options}
            return command(**{name: make(**chosen)}, **given)

        decorated: Any = with_value
        for option in reversed(options.values()):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]  # click's decorators keep what they are given

    return decorate
