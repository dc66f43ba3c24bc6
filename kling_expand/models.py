"""The values of the package: requests, tasks and their pictures. They are immutable and do no I/O.

A field of a request is declared once, in `ExpandRequest`. Its metadata gives the names of the field on the
wire, on the command line and in a manifest (see `RequestField`). All code that reads or writes requests loops
over `request_fields`.
"""

import math
import os
import re
import sys
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from enum import StrEnum
from functools import cache, partial
from pathlib import PurePath
from reprlib import Repr
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    NamedTuple,
    Protocol,
    TypedDict,
    TypeGuard,
    TypeVar,
    get_args,
    get_origin,
)
from urllib.parse import urlsplit

from attrs import evolve, field, fields, frozen

from .errors import GeometryError, ImageError, InvalidRequest
from .geometry import MAX_PASSES, Expansion, Geometry, ToAspect, Towards
from .serialization import Serializable

if TYPE_CHECKING:
    from decimal import Decimal

Documented = TypeVar("Documented", bound=Callable[..., Any])

MAX_PROMPT = 2500  # characters (doc)
MAX_IMAGES = 9  # n is 1 to 9 (doc)
LAST_PAGE = 1000  # the highest page number of a list (doc)
PAGE_SIZE = 500  # the most tasks on a list page (doc)
GEOMETRY_FIELDS = (
    *(f"{side}_expansion_ratio" for side in ("up", "down", "left", "right")),
    "direction",
    "expansion_ratio",
)
UNITS_PER_IMAGE = 8  # the price of a picture in units (doc)
AMOUNT = re.compile(
    r"[0-9]{1,12}(\.[0-9]{1,12})?"
)  # no sign and no exponent, so that amounts can be summed and stored
DOLLARS_PER_UNIT = 0.0035  # $0.028 a picture (doc)


class PillowImage(Protocol):
    """A PIL image (extra `images`)."""

    @property
    def width(self) -> int:
        """Width in pixels."""

    @property
    def height(self) -> int:
        """Height in pixels."""

    @property
    def mode(self) -> str:
        """Color mode, such as RGB."""


# A path, a URL or `data:` URI, raw bytes, an open binary file, or a PIL image.
ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | PillowImage


class Dialect(StrEnum):
    """The two documented forms of the API. The production service uses the editing form."""

    EDITING = "editing"  # four ratios
    DIRECTION = "direction"  # directions and one ratio


class Status(StrEnum):
    """The values of `task_status`, plus UNKNOWN for other words and QUEUED for a job that waits for slots."""

    QUEUED = "queued"
    SUBMITTED = "submitted"
    PROCESSING = "processing"
    SUCCEED = "succeed"
    FAILED = "failed"
    UNKNOWN = "unknown"

    @property
    def final(self) -> bool:
        """Whether the task has ended."""
        return not NEXT[self]


# Which status may follow which. This is a strict order, so snapshots that arrive late, twice or in any order
# lead to the same state. An undocumented word counts as a stage before `processing`: polling continues, and
# the word never ends a wait. `queued` is our own status, for a job that has not been sent yet.
NEXT: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset(
        {Status.SUBMITTED, Status.UNKNOWN, Status.PROCESSING, Status.SUCCEED, Status.FAILED}
    ),
    Status.SUBMITTED: frozenset({Status.UNKNOWN, Status.PROCESSING, Status.SUCCEED, Status.FAILED}),
    Status.UNKNOWN: frozenset({Status.PROCESSING, Status.SUCCEED, Status.FAILED}),
    Status.PROCESSING: frozenset({Status.SUCCEED, Status.FAILED}),
    Status.SUCCEED: frozenset(),
    Status.FAILED: frozenset(),
}

# The vendor's newer interfaces say "succeeded" (observed).
STATUS_WORDS = {str(status): status for status in Status} | {"succeeded": Status.SUCCEED}


@frozen
class Image(Serializable):
    """One expanded picture: its `index` within the task, from 0, and its `url`.

    `watermark_url` is the URL of the copy with a watermark, if it was requested. URLs are valid for 30 days
    from the task's `updated_at` (documented).
    """

    index: int
    url: str
    watermark_url: str | None = None


@frozen
class BalanceDeduction(Serializable):
    """The price of a task in newer responses, as decimal strings."""

    quota: str | None = None
    list_price: str | None = None


@frozen(weakref_slot=False)
class Task(Serializable):
    """One snapshot of a task, as returned by the service.

    `task_id` is the service's id and `external_task_id` the caller's. `task_status` is the service's own
    word, `status` its meaning, and `task_status_msg` the reason for a failure. A succeeded task has `images`.
    `created_at` and `updated_at` are in Unix milliseconds. `final_unit_deduction` is the number of units that
    were billed, once it is known. `final_balance_deduction` is the price in newer responses. `watermark` says
    whether copies with a watermark were requested. `raw` is the whole response if it has a field that this
    version does not know, or else None.
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
    raw: dict[str, Any] | None = field(default=None, eq=False, repr=False)

    @property
    def status(self) -> Status:
        """The meaning of `task_status`, whatever its case, or UNKNOWN for an undocumented word."""
        word = self.task_status
        return STATUS_WORDS.get(word) or STATUS_WORDS.get(word.strip().lower(), Status.UNKNOWN)

    @property
    def units(self) -> "Decimal | None":
        """The units that were billed, or None if the number is not known."""
        from decimal import Decimal  # imported here, as many programs do not need it

        text = (self.final_unit_deduction or "").strip()
        return Decimal(text) if AMOUNT.fullmatch(text) else None


def source_name(source: ImageSource) -> str:
    """Return a short name for a photo, such as its path or URL. It never contains the photo's bytes."""
    if isinstance(source, str):
        return f"{source[:30]}…" if source.startswith("data:") else source
    if isinstance(source, os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{memoryview(source).nbytes} bytes>"
    return f"<{type(source).__name__}>"


def source_stem(source: ImageSource | None) -> str | None:
    """Return a photo's file name without its suffix, from which results are named, or None."""
    if isinstance(source, str) and "://" in source:
        source = urlsplit(source).path
    if isinstance(source, str | os.PathLike) and not str(source).startswith("data:"):
        return PurePath(os.fsdecode(source)).stem or None
    return None


def is_pillow_image(source: object) -> TypeGuard[PillowImage]:
    """Return whether *source* is a PIL image. Before Pillow is imported, there are none."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(source, pillow.Image)


# ---------------------------------------------------------------------------- rules of arguments


@frozen
class Rule:
    """A rule for a value, in words and as a function. It is also an attrs validator."""

    limit: str
    holds: Callable[[Any], bool]
    advice: str = ""
    error: Callable[[str, object, str, str], Exception] = InvalidRequest

    def __call__(self, _owner: object, attribute: Any, value: Any) -> None:
        """Check the value of an attribute, or raise the rule's error."""
        self.check(attribute.name, value)

    def check(self, name: str, value: object) -> None:
        """Check the value of the argument *name*, or raise the rule's error."""
        if not self.holds(value):
            raise self.error(name, shown(value), self.limit, self.advice)


def check(**values: object) -> None:
    """Check the arguments of a client method against `ARGUMENTS`.

    Raises:
        InvalidRequest: if a value is invalid.
    """
    for name, value in values.items():
        for rule in ARGUMENTS[name]:
            rule.check(name, value)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return "did you mean …?" with the known name most similar to *name*, or an empty string."""
    from difflib import get_close_matches  # imported here, as only messages need it

    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else ""


def shown(value: object) -> str:
    """Return *value* as a short text for an error message, without the bytes of a photo."""
    if isinstance(value, bytes | bytearray | memoryview):
        return source_name(value)
    if isinstance(value, str) and len(value) > 200:
        return f"{len(value)} characters"
    shorten = Repr()
    shorten.maxstring = shorten.maxother = 100
    return shorten.repr(value)


def optional(*rules: Rule) -> tuple[Rule, ...]:
    """Return *rules* for a value that may be None."""
    return tuple(evolve(rule, holds=partial(_none_or, rule.holds)) for rule in rules)


def _none_or(holds: Callable[[Any], bool], value: object) -> bool:
    return value is None or holds(value)


def between(low: int, high: int) -> tuple[Rule, Rule]:
    """Return the rules for a whole number from *low* to *high*."""
    return WHOLE, Rule(f"must be between {low} and {high}", lambda value: low <= value <= high)


def is_number(value: object) -> bool:
    """Return whether *value* is an int or a float, but not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_source(value: object) -> bool:
    """Return whether *value* can be a photo. Its content is checked when it is loaded."""
    if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview):
        return True
    readable = not isinstance(value, type) and callable(getattr(value, "read", None))
    return readable or is_pillow_image(value)


def _is_geometry(value: object) -> bool:
    ratios, needs_size = getattr(value, "ratios", None), getattr(value, "needs_size", None)
    return not isinstance(value, type) and callable(ratios) and isinstance(needs_size, bool)


def _is_stream(value: object) -> bool:
    """Return whether *value* can contain requests. Text and mappings cannot, although they are iterable."""
    return isinstance(value, Iterable | AsyncIterable) and not isinstance(value, str | bytes | Mapping)


def _is_json_mapping(value: object) -> bool:
    try:
        return isinstance(value, Mapping) and _plain(value) is not None
    except (InvalidRequest, RecursionError):
        return False


SOURCES = "a path, an http(s) URL, a data: URI, bytes, a binary file or a PIL image"
IMAGE = Rule(f"must be {SOURCES}", _is_source, error=ImageError)
GEOMETRY = Rule(
    "must say how far to expand", _is_geometry, 'pass "16:9" or Ratios(right=0.5)', error=GeometryError
)
FLAG = Rule("must be True or False", lambda value: isinstance(value, bool))
TEXT = Rule("must be text", lambda value: isinstance(value, str))
WHOLE = Rule("must be a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
AT_LEAST_1 = Rule("must be at least 1", lambda value: value >= 1)
SECONDS = Rule("must be a number of seconds", is_number, "for a timedelta, pass its total_seconds()")
ABOVE_0 = Rule("must be above 0 seconds", lambda value: 0 < value < math.inf)
NAME = Rule(
    "must be printable text without surrounding whitespace",
    lambda value: isinstance(value, str) and value.strip() == value and value.isprintable(),
)
PATH = Rule("must be a path or a template", lambda value: isinstance(value, str | os.PathLike))
# A URL path cannot end in a dot segment, so a task with such an id could not be read.
NOT_DOTS = Rule("must not consist of dots only", lambda value: value not in {".", ".."})
ID = Rule("must be an id of printable text", lambda value: isinstance(value, str) and value.isprintable())

# The arguments of the client's methods, beyond the fields of a request.
ARGUMENTS: dict[str, tuple[Rule, ...]] = {
    "any_id": (ID, NOT_DOTS, Rule("must not be empty", bool)),
    "deadline": optional(SECONDS, ABOVE_0),
    "external_task_id": (NAME, NOT_DOTS),
    "fresh": (FLAG,),
    "full_size": (
        Rule(
            "must be True, False or the path of the photo",
            lambda value: isinstance(value, bool | str | os.PathLike),
        ),
    ),
    "metadata": (
        Rule(
            "must be True, False or the path of the photo",
            lambda value: isinstance(value, bool | str | os.PathLike),
        ),
    ),
    "known": (Rule("must be a record of the journal", lambda value: hasattr(value, "params_hash")),),
    "max_failures": optional(WHOLE, AT_LEAST_1),
    "note": optional(Rule("must be a mapping of JSON values", _is_json_mapping)),
    "ordered": (FLAG,),
    "passes": between(1, MAX_PASSES),
    "position": between(0, MAX_IMAGES - 1),
    "page": between(1, LAST_PAGE),
    "page_size": between(1, PAGE_SIZE),
    "prefetch": optional(WHOLE, AT_LEAST_1),
    "priority": (WHOLE,),
    "overwrite": (FLAG,),
    "save_options": optional(Rule("must be a mapping", lambda value: isinstance(value, Mapping))),
    "save_to": optional(
        Rule(
            "must be a path, a template or a function of the request",
            lambda value: PATH.holds(value) or callable(value),
        )
    ),
    "target": (PATH,),
    "timeout": optional(SECONDS, Rule("must not be NaN", lambda value: value <= math.inf)),
    "url": (TEXT,),
    "request": (Rule("must be an ExpandRequest", lambda value: isinstance(value, ExpandRequest)),),
    "requests": (Rule("must be an iterable or async iterable of requests", _is_stream),),
    "wait": (FLAG,),
}


def as_source(value: ImageSource) -> ImageSource:
    """Return *value*, or the path of an `os.DirEntry`, which cannot be pickled."""
    return os.fsdecode(value) if isinstance(value, os.DirEntry) else value


def as_geometry(value: Geometry | str) -> Geometry:
    """Return *value* as a geometry. Text such as ``"16:9"`` becomes a `ToAspect`.

    Raises:
        GeometryError: if the text is not an aspect.
    """
    return ToAspect(value) if isinstance(value, str) else value


def as_extra(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a copy of `extra` with its names in sorted order, or None if it is empty.

    The order makes requests with equal fields the same job.

    Raises:
        InvalidRequest: if *value* is not a mapping of JSON values, or sets a field that has its own argument.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidRequest("extra", shown(value), "must be a mapping of names to values")
    for name in value:
        if name in reserved_names():
            raise InvalidRequest("extra", shown(name), "must not set a field that has its own argument")
    try:
        found: dict[str, Any] = _plain(value)
    except RecursionError:
        limit = "must not contain itself, or be nested hundreds of levels deep"
        raise InvalidRequest("extra", f"a {type(value).__name__}", limit) from None
    return found or None


def _plain(value: object) -> Any:
    """Return a copy of a JSON value with the names of its mappings in sorted order."""
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(value[name]) for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    if value is None or (isinstance(value, str | int | float) and finite):
        return value
    raise InvalidRequest("extra", shown(value), "must contain only JSON values")


@frozen(weakref_slot=False)
class ExpandRequest:
    """A request to expand one photo, validated on construction.

    If there is no `external_task_id`, the client generates it. Submitting the same request again under the
    same `key` leads to the same task, in any process and after any crash. A photo that is given as an
    `os.DirEntry` is replaced by its path.

    ::

        ExpandRequest("dog.jpg", "16:9", prompt="a meadow", n=2)

    Raises:
        InvalidRequest: if a field breaks a documented rule.
    """

    image: ImageSource = field(
        converter=as_source,
        repr=source_name,
        validator=IMAGE,
        metadata={
            "help": "The photo, PNG or JPEG: a path, a URL, bytes, an open file, a data: URI or a PIL image."
        },
    )
    geometry: Geometry = field(
        converter=as_geometry,
        validator=GEOMETRY,
        metadata={"help": 'The expansion, such as "16:9" or Ratios(left=0.5); see `kling_expand.geometry`.'},
    )
    prompt: str | None = field(
        default=None,
        validator=optional(
            TEXT,
            Rule(f"must have at most {MAX_PROMPT} characters", lambda value: len(value) <= MAX_PROMPT),
        ),
        metadata={
            "wire": "prompt",
            "option": "--prompt",
            "metavar": "TEXT",
            "column": "prompt",
            "help": f"What the new area should show, at most {MAX_PROMPT} characters.",
        },
    )
    n: int = field(
        default=1,
        validator=between(1, MAX_IMAGES),
        kw_only=True,
        metadata={
            "wire": "n",
            "sent_at_default": True,
            "option": "-n",
            "metavar": "N",
            "column": "n",
            "help": f"Pictures per photo, 1 to {MAX_IMAGES}.",
        },
    )
    watermark: bool = field(
        default=False,
        validator=FLAG,
        kw_only=True,
        metadata={
            "wire": "watermark_info.enabled",
            "editing_only": True,
            "option": "--watermark",
            "column": "watermark",
            "help": "Also make a copy of each picture with a watermark.",
        },
    )
    callback_url: str | None = field(
        default=None,
        validator=optional(
            TEXT,
            Rule(
                "must begin with http:// or https://", lambda value: value.startswith(("http://", "https://"))
            ),
        ),
        kw_only=True,
        metadata={
            "wire": "callback_url",
            "changes_result": False,
            "option": "--callback-url",
            "metavar": "URL",
            "column": "callback_url",
            "help": "URL to notify when the status of a task changes.",
        },
    )
    external_task_id: str | None = field(
        default=None,
        validator=optional(NAME, NOT_DOTS),
        kw_only=True,
        metadata={
            "wire": "external_task_id",
            "changes_result": False,
            "column": "external_task_id",
            "help": "Your own id for the task, unique within the account.",
        },
    )
    key: str | None = field(
        default=None,
        validator=optional(NAME, NOT_DOTS),
        kw_only=True,
        metadata={
            "changes_result": False,
            "column": "key",
            "help": "A name that distinguishes this job from identical jobs in the same run.",
        },
    )

    extra: Mapping[str, Any] | None = field(
        default=None,
        converter=as_extra,
        hash=False,
        kw_only=True,
        metadata={
            "wire": "",
            "option": "--extra",
            "metavar": "JSON",
            "column": "extra",
            "help": "Further request fields, as a JSON object.",
        },
    )

    @property
    def units(self) -> int:
        """The cost in units if the task succeeds: 8 per picture (documented)."""
        return UNITS_PER_IMAGE * self.n


def portable(request: ExpandRequest | None) -> ExpandRequest | None:
    """Return *request* in a form that can be pickled, or None if its photo is an open file without a path."""
    image: Any = request and request.image
    if isinstance(image, memoryview):
        image = bytes(image)
    elif hasattr(image, "read"):
        image = getattr(image, "name", None)
    if request is None or image is request.image:
        return request
    return evolve(request, image=image) if isinstance(image, str | bytes) else None


class RequestFields(TypedDict, total=False):
    """The fields of an `ExpandRequest` except its image and geometry, for editors and type checkers."""

    prompt: str | None
    n: int
    watermark: bool
    callback_url: str | None
    external_task_id: str | None
    key: str | None
    extra: Mapping[str, Any] | None


_TRUE, _FALSE = {"true", "yes", "1"}, {"false", "no", "0"}


def _flag(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


def _json(text: str) -> Any:
    from json import loads  # imported here, as only text of `extra` is JSON

    return loads(text)


_PARSERS: dict[type, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    int: (int, "a whole number"),
    bool: (_flag, "true or false"),
    Mapping: (_json, "a JSON object"),
}


class RequestField(NamedTuple):
    """One field of `ExpandRequest`, with its names outside Python.

    `wire` is its path in the body of a create, with a dot for each level of nesting. It is empty for a
    mapping that is merged into the body itself. `option` is its name on the command line, and `column` its
    name in a manifest. Each of the three is None if the field does not occur there.
    """

    name: str
    default: Any
    kind: type  # the type of a value that is not None: str, int, bool or Mapping
    help: str
    wire: str | None = None
    option: str | None = None
    metavar: str | None = None
    column: str | None = None
    changes_result: bool = True  # whether it is part of a job's identity
    sent_at_default: bool = False
    editing_only: bool = False  # the direction dialect has no such field

    def parse(self, text: str) -> Any:
        """Parse the value from *text*, as given on the command line or in a manifest.

        Raises:
            InvalidRequest: if *text* is not a value of this type.
        """
        parser, wanted = _PARSERS[self.kind]
        try:
            return parser(text)
        except ValueError:
            raise InvalidRequest(self.name, repr(text), f"must be {wanted}") from None

    def write(self, body: dict[str, Any], value: Any) -> None:
        """Put *value* into the *body* of a create, unless it is a default that need not be sent."""
        if self.wire is None or (value == self.default and not self.sent_at_default):
            return
        if not self.wire:
            body.update(value)
            return
        *outer, last = self.wire.split(".")
        for level in outer:
            body = body.setdefault(level, {})
        body[last] = value

    def read(self, body: dict[str, Any]) -> Any:
        """Return the value that `write` put into *body*, or the default if it put in none."""
        if self.wire is None:
            return self.default
        if not self.wire:
            return {name: body[name] for name in body.keys() - reserved_names()} or self.default
        found: Any = body
        for level in self.wire.split("."):
            found = found.get(level) if isinstance(found, dict) else None
        return self.default if found is None else found


@cache
def request_fields() -> tuple[RequestField, ...]:
    """Return every field of a request except its image and geometry, in declaration order."""
    return tuple(
        RequestField(name=each.name, default=each.default, kind=_kind(each.type), **each.metadata)
        for each in fields(ExpandRequest)
        if each.name not in {"image", "geometry"}
    )


def list_fields(documented: Documented) -> Documented:
    """Add the fields of a request to the ``Args:`` of a docstring."""
    text = documented.__doc__ or ""  # there is none under `python -OO`
    head, args, rest = text.partition("Args:\n")
    if not args:
        head, raises, rest = text.partition("Raises:\n")
        indent = head.rpartition("\n")[2]
        args, rest = "Args:\n", f"\n{indent}{raises}{rest}"
    indent = head.rpartition("\n")[2] + "    "
    described = [f"{indent}{each.name}: {each.metadata['help']}\n" for each in fields(ExpandRequest)]
    documented.__doc__ = "".join([head, args, *described, rest])
    return documented


list_fields(ExpandRequest)


@cache
def reserved_names() -> frozenset[str]:
    """Return the fields of a create that `extra` may not set, because they have their own arguments."""
    declared = {each.wire.partition(".")[0] for each in request_fields() if each.wire}
    return frozenset({"image", *GEOMETRY_FIELDS, *declared})


def _kind(annotation: Any) -> type:
    """Return the type of a field that may also be None."""
    (kind,) = {*(get_args(annotation) or (annotation,))} - {NoneType}
    found: type = get_origin(kind) or kind
    return found


def resolve_geometry(request: ExpandRequest, dialect: Dialect, size: tuple[int, int] | None) -> Expansion:
    """Return the geometry of *request* in the form of *dialect*.

    *size* is the width and height of the photo in pixels, or None if only the service can read the photo.

    Raises:
        InvalidRequest: if the dialect does not have the geometry or a field, or the size is needed and None.
        GeometryError: if no valid ratios expand this photo to the geometry.
    """
    geometry = request.geometry
    if dialect is Dialect.DIRECTION:
        return _direction(request)
    if size is None and geometry.needs_size:
        advice = "use Ratios or Towards, or the result of geometry.ratios(width, height)"
        raise InvalidRequest(
            "geometry", geometry, "must not need the size of the photo if the photo is a URL", advice
        )
    return geometry.ratios(*(size or (0, 0)))


def _direction(request: ExpandRequest) -> Towards:
    for each in request_fields():
        value = getattr(request, each.name)
        if each.editing_only and value != each.default:
            raise InvalidRequest(each.name, value, f"must be {each.default} in the direction dialect")
    if not isinstance(request.geometry, Towards):
        raise InvalidRequest("geometry", request.geometry, "must be Towards(…) in the direction dialect")
    return request.geometry
