"""What do we talk about? Requests, tasks and their images, as frozen values without any I/O."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Any, BinaryIO

from attrs import field, frozen

from .errors import InvalidRequest
from .geometry import Geometry

if TYPE_CHECKING:
    from decimal import Decimal

MAX_PROMPT = 2500  # characters (doc)
MAX_IMAGES = 9  # n is 1 to 9 (doc)
UNITS_PER_IMAGE = 8  # image units an expanded picture costs (doc)
DOLLARS_PER_UNIT = 0.0035  # $0.028 a picture (doc)

# A path, a URL or `data:` URI, raw bytes, an open binary file, or a PIL image (extra `images`).
ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Any


class Dialect(StrEnum):
    """Which of the two documents the service is spoken to by. The editing one is the vendor's own."""

    EDITING = "editing"  # four ratios
    DIRECTION = "direction"  # directions and one ratio


class Status(StrEnum):
    """The words of `task_status`, and one for words nobody has documented."""

    SUBMITTED = "submitted"
    PROCESSING = "processing"
    SUCCEED = "succeed"
    FAILED = "failed"
    UNKNOWN = "unknown"

    @property
    def final(self) -> bool:
        """Whether the task has ended."""
        return not NEXT[self]


# Which status may be news after which. It is a strict order, so snapshots that arrive late,
# twice or in any order end in the same state. An undocumented word counts as a stage before
# `processing`: it is polled on, and never ends a wait.
NEXT: dict[Status, frozenset[Status]] = {
    Status.SUBMITTED: frozenset({Status.UNKNOWN, Status.PROCESSING, Status.SUCCEED, Status.FAILED}),
    Status.UNKNOWN: frozenset({Status.PROCESSING, Status.SUCCEED, Status.FAILED}),
    Status.PROCESSING: frozenset({Status.SUCCEED, Status.FAILED}),
    Status.SUCCEED: frozenset(),
    Status.FAILED: frozenset(),
}

# The vendor's newer interfaces say "succeeded" (live).
_WORDS = {str(status): status for status in Status} | {"succeeded": Status.SUCCEED}


@frozen
class Image:
    """One expanded picture. URLs live 30 days from the task's `updated_at` (doc)."""

    index: int
    url: str
    watermark_url: str | None = None


@frozen
class BalanceDeduction:
    """What newer answers say of the price, as the service's own decimal strings."""

    quota: str | None = None
    list_price: str | None = None


@frozen
class Task:
    """One snapshot of a task, as the service told it.

    `task_status` is the service's own word and `status` what it means. Times are Unix
    milliseconds. `final_unit_deduction` is what was billed, in units, once it is known.
    """

    task_id: str
    task_status: str
    task_status_msg: str | None = None
    external_task_id: str | None = None
    images: tuple[Image, ...] = ()
    final_unit_deduction: str | None = None
    final_balance_deduction: BalanceDeduction | None = None
    watermark: bool | None = None
    created_at: int | None = None
    updated_at: int | None = None

    @property
    def status(self) -> Status:
        """The meaning of `task_status`; UNKNOWN for a word nobody has documented."""
        return _WORDS.get(self.task_status, Status.UNKNOWN)

    @property
    def units(self) -> "Decimal | None":
        """What was billed, in units; None while unknown."""
        from decimal import Decimal  # here, as many never ask

        try:
            units = Decimal(self.final_unit_deduction or "nan")
        except ArithmeticError:
            return None
        return units if units.is_finite() else None


def source_name(source: ImageSource) -> str:
    """A short name for a photo: its path or URL, never its bytes."""
    if isinstance(source, str):
        return f"{source[:30]}…" if source.startswith("data:") else source
    if isinstance(source, os.PathLike):
        return str(os.fspath(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{memoryview(source).nbytes} bytes>"
    return f"<{type(source).__name__}>"


def _prompt(_request: Any, _attribute: Any, value: str | None) -> None:
    if value is not None and not isinstance(value, str):
        raise InvalidRequest("prompt", repr(value), "it must be text")
    if value is not None and len(value) > MAX_PROMPT:
        raise InvalidRequest("prompt", f"{len(value)} characters", f"at most {MAX_PROMPT} are allowed")


def _count(_request: Any, _attribute: Any, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_IMAGES:
        raise InvalidRequest("n", repr(value), f"a whole number from 1 to {MAX_IMAGES} is allowed")


def _callback(_request: Any, _attribute: Any, value: str | None) -> None:
    if value is not None and not (isinstance(value, str) and value.startswith(("http://", "https://"))):
        raise InvalidRequest("callback_url", repr(value), "it must be an http or https URL")


def _name(_request: Any, attribute: Any, value: str | None) -> None:
    if value is not None and not (isinstance(value, str) and value.strip() == value and value.isprintable()):
        raise InvalidRequest(attribute.name, repr(value), "printable text without outer blanks is allowed")
    if value in {".", ".."}:  # a URL cannot end in them, so the task could not be asked for
        raise InvalidRequest(attribute.name, repr(value), "it must be more than dots")


@frozen
class ExpandRequest:
    """One picture to expand; checked when made, so a bad one never reaches the network.

    `geometry` says how far on each side (see `kling_expand.geometry`). `external_task_id`
    is yours to set, unique within the account; the client sets one where you do not. `key` names
    the job within your run: the same job under the same key is one task, in any process and after
    any crash. Raises `InvalidRequest`.
    """

    image: ImageSource = field(repr=source_name)
    geometry: Geometry
    prompt: str | None = field(default=None, validator=_prompt)
    n: int = field(default=1, validator=_count, kw_only=True)
    watermark: bool = field(default=False, kw_only=True)
    callback_url: str | None = field(default=None, validator=_callback, kw_only=True)
    external_task_id: str | None = field(default=None, validator=_name, kw_only=True)
    key: str | None = field(default=None, validator=_name, kw_only=True)

    @property
    def units(self) -> int:
        """What it will cost when it succeeds: 8 units a picture (doc)."""
        return UNITS_PER_IMAGE * self.n
