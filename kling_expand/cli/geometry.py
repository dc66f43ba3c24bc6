"""How far on each side, in words of a shell? Options that are read into one geometry."""

import re
from collections.abc import Callable
from typing import Any, get_args

import click

from kling_expand.geometry import Anchor, Geometry, Padding, Ratios, ToAspect, ToSize, Towards

from .options import gathered

SIDES = ("up", "down", "left", "right")
WAYS = ("aspect", "size", "pad", "direction", *SIDES)
EXTRAS = {
    "area": ("aspect",),
    "anchor": ("aspect", "size"),
    "ratio": ("direction",),
}  # and what they belong to
_HINT = "--aspect, --size, --pad, --direction, or --up/--down/--left/--right"
_SIZE = re.compile(r"(\d{1,9})[xX](\d{1,9})")


def parse_size(text: str) -> tuple[int, int] | None:
    """Width and height from ``1920x1080``; None for any other text."""
    found = _SIZE.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None


def geometry_of(**given: Any) -> Geometry:
    """The geometry that the options name; click's usage errors where they name none or several."""
    sides = {side: given[side] for side in SIDES if given[side] is not None}
    ways = [way for way in ("aspect", "size", "pad", "direction") if given[way] is not None]
    if len(ways) + bool(sides) != 1:
        raise click.UsageError(f"say how far to expand in one way: {_HINT}")
    way = ways[0] if ways else "sides"
    _check_extras(way, given)
    return Ratios(**sides) if sides else _MAKERS[way](given)


def _check_extras(way: str, given: dict[str, Any]) -> None:
    for option, ways in EXTRAS.items():
        if given[option] is not None and way not in ways:
            raise click.UsageError(f"--{option} only says something together with --{' or --'.join(ways)}")


def _aspect(given: dict[str, Any]) -> Geometry:
    return ToAspect(given["aspect"], area=given["area"], anchor=given["anchor"] or "center")


def _size(given: dict[str, Any]) -> Geometry:
    size = parse_size(given["size"])
    if size is None:
        raise click.BadParameter("WIDTHxHEIGHT in pixels, such as 1920x1080, is needed", param_hint="--size")
    return ToSize(*size, anchor=given["anchor"] or "center")


def _padding(given: dict[str, Any]) -> Geometry:
    text = given["pad"].replace(" ", "")
    if text.isdecimal():
        return Padding(*[int(text)] * 4)
    pairs = [pair.partition("=") for pair in text.split(",")]
    pixels = {side: int(number) for side, _, number in pairs if side in SIDES and number.isdecimal()}
    if len(pixels) != len(pairs):
        hint = "pixels on every side, or of named ones, such as 200 or up=100,right=250, are needed"
        raise click.BadParameter(hint, param_hint="--pad")
    return Padding(**pixels)


def _towards(given: dict[str, Any]) -> Geometry:
    return Towards(given["direction"], **({"ratio": given["ratio"]} if given["ratio"] is not None else {}))


_MAKERS: dict[str, Callable[[dict[str, Any]], Geometry]] = {
    "aspect": _aspect,
    "size": _size,
    "pad": _padding,
    "direction": _towards,
}


def _side(name: str, of: str) -> Any:
    text = f"Grow {name} by so many {of}, 0 to 2."
    return click.option(f"--{name}", type=float, metavar="RATIO", help=text)


OPTIONS: dict[str, Any] = {
    "aspect": click.option("--aspect", metavar="W:H", help="Grow to this shape, such as 16:9."),
    "area": click.option(
        "--area", type=float, metavar="TIMES", help="With --aspect: grow to so many times the area, up to 3."
    ),
    "anchor": click.option(
        "--anchor",
        type=click.Choice(get_args(Anchor)),
        metavar="PLACE",
        help=f"With --aspect or --size, where the photo lies in the result: {', '.join(get_args(Anchor))}.",
    ),
    "size": click.option("--size", metavar="WxH", help="Grow to a canvas of so many pixels."),
    "up": _side("up", "heights"),
    "down": _side("down", "heights"),
    "left": _side("left", "widths"),
    "right": _side("right", "widths"),
    "pad": click.option(
        "--pad", metavar="PIXELS", help="Grow by pixels: 200 on every side, or up=100,right=250."
    ),
    "direction": click.option(
        "--direction", metavar="SIDES", help="Grow towards left, right, top, bottom (comma-joined) or all."
    ),
    "ratio": click.option(
        "--ratio",
        type=float,
        metavar="TIMES",
        help="With --direction: new length over old; 1.5 if not given.",
    ),
}

geometry_options = gathered("geometry", geometry_of, **OPTIONS)
default_geometry_options = gathered("defaults", dict, **OPTIONS)  # what rows may say otherwise
