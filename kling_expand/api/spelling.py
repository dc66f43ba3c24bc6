"""How does the service spell a task? Parsed JSON → `Task`, by cattrs; imported with the first answer.

Importing cattrs costs a tenth of what aiohttp does, and many a program only submits.
"""

from collections.abc import Callable
from functools import cache
from types import NoneType
from typing import Any, cast, get_args

import cattrs
from attrs import define

from kling_expand.models import BalanceDeduction, Image, Status, Task

# Not `sys.intern`: since Python 3.12 what a forged callback says would never be freed.
_WORDS = {word: word for word in (*map(str, Status), "succeeded")}


@define(eq=False, repr=False)
class _Info:
    external_task_id: str | None = None


@define(eq=False, repr=False)
class _Images:
    images: list[Image] | None = None


@define(eq=False, repr=False)
class _Watermark:
    enabled: bool | None = None


@define(eq=False, repr=False)
class _TaskData:
    """A task as the service spells it."""

    task_id: str
    task_status: str
    task_status_msg: str | None = None
    task_info: _Info | None = None
    task_result: _Images | None = None
    watermark_info: _Watermark | None = None
    final_unit_deduction: str | None = None
    final_balance_deduction: BalanceDeduction | None = None
    created_at: int | None = None
    updated_at: int | None = None


def read_task(data: Any) -> Task:
    """A bare task object, as a list or a callback holds it. Raises ValueError saying where it is wrong."""
    raw = _structure(data)
    if not raw.task_id.strip() or not raw.task_id.isprintable():
        raise ValueError(f"{raw.task_id!a} is no id @ data.task_id")
    info, result, watermark = raw.task_info, raw.task_result, raw.watermark_info
    return Task(  # in the order of its fields: naming them takes half as long again
        raw.task_id,
        _WORDS.get(raw.task_status, raw.task_status),  # one object for many tasks
        raw.task_status_msg or None,
        (info and info.external_task_id) or None,
        tuple((result and result.images) or ()),
        raw.final_unit_deduction or None,
        raw.final_balance_deduction,
        watermark.enabled if watermark else None,
        raw.created_at,
        raw.updated_at,
    )


def restore_task(data: Any) -> Task:
    """A task out of its own fields, as a journal keeps it."""
    return _converter().structure(data, Task)


def _text(value: Any, _kind: Any) -> str:
    """Ids and amounts may come as numbers; whatever else is no text must not be made into one."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"text expected, not {type(value).__name__}")


def _flag(value: Any, _kind: Any) -> bool:
    """By itself cattrs would take the word "false" for True."""
    return str(value).lower() in {"true", "1"}


def _optional(kind: Any, converter: Any) -> Callable[[Any, Any], Any]:
    """A hook for `X | None` that already knows the one for X; cattrs' own would look it up each time."""
    (inner,) = (each for each in get_args(kind) if each is not NoneType)
    if inner is str:  # by far the most, and mostly as they should be
        return lambda value, _kind: value if value is None or type(value) is str else _text(value, str)
    structure = converter.get_structure_hook(inner)
    return lambda value, _kind: None if value is None else structure(value, inner)


@cache
def _converter(*, detailed: bool = False) -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=detailed)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(bool, _flag)
    converter.register_structure_hook_factory(lambda kind: NoneType in get_args(kind), _optional)
    return converter


@cache
def _hook() -> Callable[[Any, Any], Any]:
    """How a task is read, found once: its code is generated when it is first asked for."""
    return _converter().get_structure_hook(_TaskData)


def _structure(data: Any) -> _TaskData:
    try:
        return cast(_TaskData, _hook()(data, _TaskData))
    except Exception:  # noqa: BLE001 - generated code raises whatever the wrong type makes it raise
        return _explain(data)


def _explain(data: Any) -> _TaskData:
    """Read it once more, by the slower code that knows where it is."""
    try:
        return _converter(detailed=True).structure(data, _TaskData)
    except Exception as error:  # noqa: BLE001 - the same
        raise ValueError("; ".join(cattrs.transform_error(error, path="data"))) from None
