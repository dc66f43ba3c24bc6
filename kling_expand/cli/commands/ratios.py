"""Which four ratios would be sent? Arithmetic only: nothing leaves this machine."""

from typing import Any

import click

from kling_expand.api.photo import load_photo
from kling_expand.cli import options
from kling_expand.cli.exit_codes import run
from kling_expand.cli.formatting import show
from kling_expand.cli.geometry import geometry_options, parse_size
from kling_expand.errors import InvalidRequest
from kling_expand.geometry import Canvas, Geometry, Ratios


@click.command(short_help="Print the four ratios for a size or a photo.")
@click.argument("source", metavar="WxH|PHOTO")
@geometry_options
@options.as_json
def ratios(source: str, geometry: Geometry, as_json: bool) -> None:
    """Print the ratios up,down,left,right for a photo, or a size such as 800x600.

    \b
      kling-expand ratios 100x100 --area 3 --aspect 16:9
      kling-expand ratios dog.jpg --size 1920x1080
    """
    width, height = parse_size(source) or measure(source)
    found = geometry.ratios(width, height)
    canvas = found.canvas(width, height)
    if as_json:
        show(facts(width, height, found, canvas))
    else:
        click.echo(vendor_string(found))
        click.echo(describe(width, height, found, canvas))


def measure(photo: str) -> tuple[int, int]:
    """The photo's size in pixels. Raises `InvalidRequest` where that is not known here."""
    loaded = run(load_photo(photo))
    if loaded.width is None or loaded.height is None:
        raise InvalidRequest("photo", photo, "its size is not known here: give it as WxH")
    return loaded.width, loaded.height


def sides(ratios: Ratios) -> dict[str, float]:
    """The four numbers, in the order of the vendor's string."""
    return {"up": ratios.up, "down": ratios.down, "left": ratios.left, "right": ratios.right}


def vendor_string(ratios: Ratios) -> str:
    """The four numbers as the vendor's helper prints them."""
    return ",".join(f"{value:.4f}" for value in sides(ratios).values())


def describe(width: int, height: int, ratios: Ratios, canvas: Canvas) -> str:
    """One line to read."""
    left, top, right, bottom = canvas.box
    return (
        f"{width}x{height} becomes {canvas.width}x{canvas.height}, {ratios.area:.4g} times the area; "
        f"the photo lies at {left},{top} to {right},{bottom}"
    )


def facts(width: int, height: int, ratios: Ratios, canvas: Canvas) -> dict[str, Any]:
    """The same for JSON."""
    return {
        "width": width,
        "height": height,
        **sides(ratios),
        "area": ratios.area,
        "canvas": {"width": canvas.width, "height": canvas.height, "box": canvas.box},
    }
