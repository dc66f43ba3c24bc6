"""Groups of command-line options. Each group is a frozen class, and a command receives an instance of it."""

import functools
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, get_args
from urllib.parse import urlsplit

import click
from attrs import asdict, evolve, field, fields, frozen

from kling_expand.config import PARALLEL_TASKS, Settings, credentials
from kling_expand.errors import ConfigurationError, require
from kling_expand.geometry import (
    MAX_PASSES,
    Anchor,
    Geometry,
    Padding,
    Ratios,
    ToAspect,
    ToSize,
    Towards,
    parse_aspect,
    shape_name,
)
from kling_expand.models import UNITS_PER_IMAGE, Dialect, ExpandRequest, request_fields
from kling_expand.shapes import SETS

from .terminal import NothingDone, redirect_warnings, shell_words

if TYPE_CHECKING:  # imported where they are used, so that `ratios` and `--help` do not load aiohttp
    from kling_expand.client import KlingClient
    from kling_expand.events import Listener
    from kling_expand.jobs.poll_schedule import PollSchedule
    from kling_expand.store.base import JobStore

Command = TypeVar("Command", bound=Callable[..., Any])
Declaration = tuple[tuple[str, ...], dict[str, Any]]  # names of an option, and arguments of `click.option`

POSITIVE = click.FloatRange(min=0, min_open=True)


def option(*names: str, default: Any = None, **settings: Any) -> Any:
    """Return a field of an option group. *settings* are arguments of `click.option`."""
    return field(default=default, metadata={"option": (names, {"default": default, **settings})})


@frozen
class OptionGroup:
    """A group of related options. A subclass declares each one with `option`.

    The help of a `GroupedCommand` lists all groups with the same `heading` together.
    """

    heading: ClassVar[str] = "Other options"

    @classmethod
    def declarations(cls) -> dict[str, Declaration]:
        """Return the options of the group, by the names of their fields."""
        return {each.name: each.metadata["option"] for each in fields(cls) if "option" in each.metadata}

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Return the group, with these *values* of its options."""
        return cls(**values)


class GroupedCommand(click.Command):
    """A command whose help lists its options under the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, with those of no group last."""
        groups: dict[str, type[OptionGroup]] = getattr(self.callback, "groups", {})
        headings = {name: group.heading for group in groups.values() for name in group.declarations()}
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                heading = headings.get(parameter.name or "", OptionGroup.heading)
                sections.setdefault(heading, []).append(record)
        for heading, records in sorted(sections.items(), key=lambda each: each[0] == OptionGroup.heading):
            with formatter.section(heading):
                formatter.write_dl(records)


def options(**groups: type[OptionGroup]) -> Callable[[Command], Command]:
    """Add the options of *groups* to a command, which receives each group as a keyword argument."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def grouped(**given: Any) -> Any:
            read = {
                name: group.read({option: given.pop(option) for option in group.declarations()})
                for name, group in groups.items()
            }
            return command(**given, **read)

        vars(grouped)["groups"] = groups
        decorated: Any = grouped
        for group in reversed(groups.values()):
            for name, (names, settings) in reversed(group.declarations().items()):
                decorated = click.option(*names, name, **settings)(decorated)
        return decorated  # type: ignore[no-any-return]  # click's decorators return the same type

    return decorate


# ---------------------------------------------------------------------------- output and limits


@frozen
class OutputOptions(OptionGroup):
    """The options for the results and for what is printed."""

    heading: ClassVar[str] = "Results"

    target: str = option(
        "-o",
        "--output",
        default="out",
        show_default=True,
        metavar="DIR",
        help="Directory for the results, or a template of their paths with {path} (the photo's directory, "
        "relative to the one you named), {folder} (the name of the directory that the photo is in), {name}, "
        "{shape}, {index}, {key}, {task_id}, {external_task_id} and {ext}. With several shapes, each file "
        "name includes the shape.",
    )
    full_size: bool = option(
        "--full-size",
        default=False,
        is_flag=True,
        help="Also save each picture at the scale of the photo, with the photo's own pixels put back.",
    )
    format: str | None = option(
        "--format",
        type=click.Choice(["jpeg", "png", "webp", "tiff"]),
        help="Convert the pictures to this format; the service returns PNG.",
    )
    quality: int | None = option(
        "--quality",
        type=click.IntRange(1, 100),
        metavar="N",
        help="With --format jpeg or webp: the quality, 92 by default.",
    )
    metadata: bool = option(
        "--metadata",
        default=False,
        is_flag=True,
        help="Copy the photo's date, place, camera and color profile to the pictures.",
    )
    check: bool = option(
        "--check",
        default=False,
        is_flag=True,
        help="Compare each picture with its photo, and warn about problems: a missing or shifted original, "
        "a visible seam, or a flat, black or mirrored area. Whether the picture makes sense is not checked.",
    )
    as_json: bool = option("--json", default=False, is_flag=True, help="Print JSON, one object per line.")
    quiet: bool = option(
        "-q", "--quiet", default=False, is_flag=True, help="Print only results and failures, no progress."
    )
    verbose: bool = option(
        "-v", "--verbose", default=False, is_flag=True, help="Print each failed call to the service."
    )

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Return the group, with ``~`` in the target expanded.

        Raises:
            UsageError: for a quality without a lossy format.
            MissingExtra: if an option needs a package that is not installed.
        """
        if values["quality"] and values["format"] not in {"jpeg", "webp"}:
            raise click.UsageError("--quality requires --format jpeg or webp")
        output = cls(**values | {"target": os.path.expanduser(values["target"])})  # noqa: PTH111 - it may be a template
        if output.full_size or output.check:
            require("images", "PIL", "numpy")
        elif output.format or output.metadata:
            require("images", "PIL")
        return output

    @property
    def needs_file(self) -> bool:
        """Whether the options need the user's own photo as a file."""
        return self.full_size or self.metadata or self.check

    @property
    def form(self) -> dict[str, Any]:
        """The format and quality of the pictures, as arguments of `SaveOptions`."""
        return {"format": self.format, "quality": self.quality}

    @property
    def notes(self) -> bool:
        """Whether notes and progress are printed as text."""
        return not (self.as_json or self.quiet)


@frozen
class JSONOption(OptionGroup):
    """The option to print JSON instead of text."""

    as_json: bool = option("--json", default=False, is_flag=True, help="Print JSON, one object per line.")


@frozen
class DeadlineOption(OptionGroup):
    """The time limit of each job."""

    heading: ClassVar[str] = "Limits"

    deadline: float | None = option(
        "--deadline",
        type=POSITIVE,
        metavar="SECONDS",
        help="Stop waiting for a task after this time; the task itself continues.",
    )


@frozen
class LimitOptions(OptionGroup):
    """The limits of a run with a journal."""

    heading: ClassVar[str] = "Limits"

    max_in_flight: int = option(
        "--max-in-flight",
        default=PARALLEL_TASKS,
        show_default=True,
        type=click.IntRange(min=1),
        metavar="N",
        help="Pictures in progress at the same time; set this to your account's parallel-task limit.",
    )
    budget: int | None = option(
        "--budget",
        type=click.IntRange(min=0),
        metavar="UNITS",
        help=f"Maximum units for all runs that share this journal; a picture costs {UNITS_PER_IMAGE}.",
    )


def exists(place: str) -> bool:
    """Return whether there is a file or a directory at *place*.

    Raises:
        NothingDone: if its directory cannot be searched.
    """
    try:
        os.stat(place)  # noqa: PTH116 - pathlib normalizes names
    except PermissionError as error:
        raise NothingDone(f"{place}: cannot be read ({error.strerror})") from None
    except (OSError, ValueError):  # the name is too long, or contains NUL
        return False
    return True


def find_journal(place: str) -> str:
    """Return the path of the journal at *place*: the file itself, or the newest journal in a directory.

    Raises:
        NothingDone: if there is no journal, or it cannot be read.
    """
    path = Path(place)
    if exists(place) and path.is_dir():
        journals = [each for each in path.glob(".kling-expand*.db") if exists(str(each))]
        found = sorted(journals, key=lambda each: each.stat().st_mtime)
        if not found:
            others = ", ".join(sorted(str(each) for each in path.glob("*.db")))
            advice = f"; to use the journal of a program, name its file: {others}" if others else ""
            raise NothingDone(f"{place}: no command has kept a journal in this directory{advice}")
        return str(found[-1])
    if not os.path.isfile(place):  # noqa: PTH113 - `Path.is_file` raises for a name that is too long
        raise NothingDone(f"{place}: no such journal")
    return place


# ---------------------------------------------------------------------------- the request


@frozen
class RequestOptions(OptionGroup):
    """The options that set fields of an `ExpandRequest`, by field name."""

    heading: ClassVar[str] = "Picture"

    values: Mapping[str, Any]

    @classmethod
    def declarations(cls) -> dict[str, Declaration]:
        """Return an option for each request field that has one."""
        return {
            each.name: (
                (each.option,),
                {"is_flag": True, "default": False, "help": each.help}
                if each.kind is bool
                else {
                    "type": each.parse if each.kind is Mapping else each.kind,
                    "default": each.default,
                    "show_default": each.default is not None,
                    "metavar": each.metavar,
                    "help": each.help,
                },
            )
            for each in request_fields()
            if each.option
        }

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Return the group. Raise `InvalidRequest` for an invalid value."""
        ExpandRequest("", Towards("all"), **values)
        return cls(values)

    def request(self, image: str, geometry: Geometry) -> ExpandRequest:
        """Return a request for *image* with these fields."""
        return ExpandRequest(image, geometry, **self.values)


SIDES = ("up", "down", "left", "right")
NO_SHAPE = "exactly one way to expand is required"
WAYS = ("aspect", "size", "pad", "direction", *SIDES)
# Options that refine another one: each requires one of the options listed with it.
REFINEMENTS: dict[str, tuple[str, ...]] = {
    "area": ("aspect",),
    "anchor": ("aspect", "size"),
    "ratio": ("direction",),
}

_SIZE = re.compile(r"(\d{1,9})[xX](\d{1,9})")


def parse_size(text: str) -> tuple[int, int] | None:
    """Return width and height from ``1920x1080``, or None for any other text."""
    found = _SIZE.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None


def _side(name: str, unit: str) -> Any:
    text = f"Extend {name} by this multiple of the photo's {unit}, 0 to 2."
    return option(f"--{name}", type=float, metavar="RATIO", help=text)


@frozen
class GeometryOptions(OptionGroup):
    """The geometry options, which offer several ways to expand a photo. Exactly one way must be given."""

    heading: ClassVar[str] = "Shape (choose one way; --aspect and --for can be combined)"

    aspect: str | None = option("--aspect", metavar="W:H", help="Extend to an aspect ratio, such as 16:9.")
    area: float | None = option(
        "--area",
        type=float,
        metavar="TIMES",
        help="With --aspect: area of the result as a multiple of the photo's area, 1 to 3.",
    )
    anchor: Anchor | None = option(  # noqa: RUF009 - a declaration, evaluated once
        "--anchor",
        type=click.Choice(get_args(Anchor)),
        metavar="PLACE",
        help="With --aspect or --size: position of the photo in the result. "
        f"One of {', '.join(get_args(Anchor))}.",
    )
    size: str | None = option(
        "--size", metavar="WxH", help="Extend to a canvas of this size, in pixels of the photo."
    )
    up: float | None = _side("up", "height")
    down: float | None = _side("down", "height")
    left: float | None = _side("left", "width")
    right: float | None = _side("right", "width")
    pad: str | None = option(
        "--pad",
        metavar="PIXELS",
        help="Extend by pixels of the photo, such as 200 (on every side) or up=100,right=250.",
    )
    direction: str | None = option(
        "--direction",
        metavar="SIDES",
        help="Sides to extend: left, right, top, bottom (joined by commas), or all.",
    )
    ratio: float | None = option(
        "--ratio",
        type=float,
        metavar="TIMES",
        help="With --direction: new width or height as a multiple of the old, 1.5 by default.",
    )

    @property
    def shape(self) -> str:
        """The name of the shape in file names, as close as possible to the user's own words."""
        text = self.aspect or self.size
        return re.sub("[:/X]", "x", text) if text else shape_name(self.geometry())

    @property
    def ways(self) -> set[str]:
        """The names of the given options that define a geometry."""
        return {name for name in WAYS if getattr(self, name) is not None}

    def geometry(self) -> Geometry:
        """Return the geometry that the options define.

        Raises:
            click.UsageError: if not exactly one way is given, or an option lacks the one that it refines.
            GeometryError: if a value is out of range.
        """
        self.require_one_way("--aspect")
        sides = {side: getattr(self, side) for side in SIDES if getattr(self, side) is not None}
        ways = [way for way in ("aspect", "size", "pad", "direction") if getattr(self, way) is not None]
        self._check_refinements(ways)
        if sides:
            return Ratios(**sides)
        makers = {
            "aspect": self._aspect,
            "size": self._size,
            "pad": self._padding,
            "direction": self._towards,
        }
        return makers[ways[0]]()

    def require_one_way(self, aspect: str) -> None:
        """Raise click's usage error unless exactly one way is given.

        *aspect* is how the message names the options that set aspect ratios.
        """
        ways = {"side" if way in SIDES else way for way in self.ways}
        if len(ways) != 1:
            wanted = f"{aspect}, --size, --pad, --direction, or any of --up/--down/--left/--right"
            raise click.UsageError(f"{NO_SHAPE}: {wanted}")

    def with_defaults(self, defaults: "GeometryOptions") -> "GeometryOptions":
        """Return these options, completed by *defaults*. A geometry in these options replaces the default."""
        inherited = {name: value for name, value in asdict(defaults).items() if value is not None}
        if ways := self.ways:
            inherited = {
                name: value for name, value in inherited.items() if ways & set(REFINEMENTS.get(name, ()))
            }
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return GeometryOptions(**(inherited | given))

    def _check_refinements(self, ways: list[str]) -> None:
        for name, refined in REFINEMENTS.items():
            if getattr(self, name) is not None and not set(ways) & set(refined):
                raise click.UsageError(f"--{name} requires --{' or --'.join(refined)}")

    def _aspect(self) -> Geometry:
        return ToAspect(self.aspect or "", area=self.area, anchor=self.anchor or "center")

    def _size(self) -> Geometry:
        size = parse_size(self.size or "")
        if size is None:
            raise click.BadParameter(
                f"must be WIDTHxHEIGHT in pixels, such as 1920x1080, got {self.size!r}", param_hint="--size"
            )
        return ToSize(*size, anchor=self.anchor or "center")

    def _padding(self) -> Geometry:
        text = (self.pad or "").replace(" ", "")
        if text.isdecimal():
            return Padding(*[int(text)] * 4)
        pairs = [pair.partition("=") for pair in text.split(",")]
        pixels = {side: int(number) for side, _, number in pairs if side in SIDES and number.isdecimal()}
        if len(pixels) != len(pairs):
            wanted = "must be pixels for all sides, such as 200, or for named ones, such as up=100,right=250"
            raise click.BadParameter(f"{wanted}, got {self.pad!r}", param_hint="--pad")
        return Padding(**pixels)

    def _towards(self) -> Geometry:
        towards = Towards(self.direction or "")
        return towards if self.ratio is None else evolve(towards, ratio=self.ratio)


@frozen
class ShapeOptions(OptionGroup):
    """The geometry options of a command that can make several shapes of a photo."""

    heading: ClassVar[str] = GeometryOptions.heading

    geometries: tuple[GeometryOptions, ...] = (GeometryOptions(),)

    @classmethod
    def declarations(cls) -> dict[str, Declaration]:
        """Return the geometry options with a repeatable --aspect, and --for, which selects sets of shapes."""
        found = GeometryOptions.declarations()
        names, settings = found["aspect"]
        several = "Extend to an aspect ratio, such as 16:9 or 1200x630. Repeat the option for several shapes."
        sets = "; ".join(f"{name}: {', '.join(shapes)}" for name, shapes in SETS.items())
        named = {
            "type": click.Choice(sorted(SETS)),
            "multiple": True,
            "help": f"Extend to each of a platform's standard shapes. {sets}. May be repeated.",
        }
        aspect = {"aspect": (names, settings | {"default": (), "multiple": True, "help": several})}
        return (
            aspect | {"sets": (("--for",), named)} | {name: found[name] for name in found if name != "aspect"}
        )

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Return the group without repeated shapes. Raise `GeometryError` for an invalid shape."""
        rest = dict(values)
        named = [*rest.pop("aspect"), *(each for name in rest.pop("sets") for each in SETS[name])]
        if not named:
            return cls((GeometryOptions(**rest),))
        chosen: dict[float, str] = {}
        for aspect in named:
            chosen.setdefault(parse_aspect(aspect), aspect)
        return cls(tuple(GeometryOptions(aspect=aspect, **rest) for aspect in chosen.values()))

    def require(self) -> None:
        """Raise click's usage error if no geometry is given, or if options contradict each other."""
        for each in self.geometries:
            each.require_one_way("--aspect or --for")
            each.geometry()


@frozen
class PassesOption(OptionGroup):
    """The number of tasks that one picture may take."""

    heading: ClassVar[str] = "Picture"

    passes: int = option(
        "--passes",
        default=1,
        show_default=True,
        type=click.IntRange(1, MAX_PASSES),
        metavar="N",
        help="Allow up to N tasks, one after another, for a shape of more than 3 times the photo's area. "
        "Each task is billed; as few as possible are used.",
    )


# ---------------------------------------------------------------------------- the connection


@frozen
class Connection(OptionGroup):
    """The options for the connection to the service."""

    heading: ClassVar[str] = "Service"

    base_url: str | None = option(
        "--base-url",
        metavar="URL",
        help="Address of the service; the default is KLING_BASE_URL, or else the address for keys that were "
        "created outside China.",
    )
    dialect: str | None = option(
        "--dialect",
        type=click.Choice([str(dialect) for dialect in Dialect]),
        help="Which of the two documented forms of the API to use; the default is editing.",
    )
    proxy: str | None = option(
        "--proxy",
        metavar="URL",
        help="Proxy for calls and downloads; the default is the variable HTTPS_PROXY.",
    )
    emulator: bool = False
    hint: ClassVar[str] = "without an account, `kling-expand serve` runs an emulator"

    def resume_command(self, command: str, output: str) -> str:
        """Return a command line for *command* with the options of this connection.

        Return an empty string for a local emulator, because its tasks end with it.
        """
        proxy = None if "@" in (self.proxy or "") else self.proxy  # before the @ there may be a password
        given = (
            ("-o", output),
            ("--base-url", self.base_url),
            ("--dialect", self.dialect),
            ("--proxy", proxy),
        )
        words = "".join(f"{name} {quote(value)} " for name, value in given if value)
        return "" if self.emulator else f"kling-expand {command} {words}"

    def require_credentials(self) -> None:
        """Raise `NothingDone` if credentials are required but missing."""
        if self.emulator:
            return
        try:
            credentials()
        except ConfigurationError as error:
            raise NothingDone(f"{shell_words(error.message)} ({self.hint})") from None

    @asynccontextmanager
    async def client(
        self,
        *,
        deadline: float | None = None,
        journal: "JobStore | None" = None,
        budget: int | None = None,
        max_in_flight: int | None = None,
        emulator_state: str = "",
        listener: "Listener | None" = None,
    ) -> AsyncIterator["KlingClient"]:
        """Open a client. A local emulator keeps its tasks in the file *emulator_state*, if given.

        Raises:
            NothingDone: if credentials or an extra are missing.
            click.UsageError: if both a local emulator and a proxy are requested.
        """
        from kling_expand.client import KlingClient

        if self.emulator and self.proxy:
            raise click.UsageError("--proxy cannot be combined with --emulator")

        redirect_warnings(None)
        self.require_credentials()
        async with AsyncExitStack() as stack:
            service: dict[str, str | None] = {"base_url": self.base_url}
            if self.emulator:
                service = await stack.enter_async_context(_emulator(emulator_state))
            client = KlingClient(
                api_key=service.get("api_key"),
                base_url=service["base_url"],
                dialect=self.dialect,
                schedule=schedule(service["base_url"]),
                deadline=deadline,
                journal=journal,
                run=journal.run if journal else "default",
                budget=budget,
                max_in_flight=max_in_flight,
                listener=listener,
                proxy=self.proxy,
                trust_env=not self.emulator,
            )
            yield await stack.enter_async_context(client)


@frozen
class EmulatedConnection(Connection):
    """The options for the connection to the service, or to an emulator that runs as long as the command."""

    hint: ClassVar[str] = "without an account, try --emulator or `kling-expand serve`"

    emulator: bool = option(
        "--emulator",
        "--local",
        default=False,
        is_flag=True,
        help="Use an emulator on this machine, without an account and at no cost.",
    )


def schedule(base_url: str | None) -> "PollSchedule | None":
    """Return a schedule of frequent polls for a service on this machine, or None for any other."""
    from random import Random

    from kling_expand.jobs.poll_schedule import ExponentialSchedule

    host = urlsplit(Settings.from_env(base_url=base_url).base_url).hostname
    if host not in {"127.0.0.1", "localhost", "::1"}:
        return None
    return ExponentialSchedule(Random(), first=0.2, longest=1.0)


@asynccontextmanager
async def _emulator(state: str) -> AsyncIterator[dict[str, str | None]]:
    from kling_expand.emulator import Emulator

    async with AsyncExitStack() as stack:
        try:
            emulator = Emulator(queue_seconds=0.2, work_seconds=0.3, state=state)
            await stack.enter_async_context(emulator)
        except (RuntimeError, OSError) as error:
            raise NothingDone(str(error)) from error
        yield {"base_url": emulator.url, "api_key": emulator.api_key}
