"""`kling-expand ratios`: print the four ratios of a request. Nothing is sent."""

from typing import Any

import click

from kling_expand.cli.options import SIDES, JSONOption, ShapeOptions, options, parse_size
from kling_expand.cli.terminal import show
from kling_expand.errors import InvalidRequest
from kling_expand.geometry import Canvas, Ratios


@click.command()
@click.argument("source", metavar="WxH|PHOTO")
@options(shapes=ShapeOptions, output=JSONOption)
def ratios(source: str, *, shapes: ShapeOptions, output: JSONOption) -> None:
    """Print the ratios up,down,left,right for a photo, or for a size such as 800x600.

    With several shapes, two lines are printed for each. The second has the canvas at the scale of the photo,
    and the expected size of the service's picture in pixels, which is about 1K whatever the size of the
    photo.

    \b
      kling-expand ratios 100x100 --area 3 --aspect 16:9
      kling-expand ratios dog.jpg --size 1920x1080
    """
    shapes.require()
    width, height = parse_size(source) or measure(source)
    for found in [each.geometry().ratios(width, height) for each in shapes.geometries]:
        canvas = found.canvas(width, height)
        if output.as_json:
            show(facts(width, height, found, canvas))
        else:
            click.echo(vendor_string(found))
            click.echo(describe(width, height, found, canvas))


def measure(photo: str) -> tuple[int, int]:
    """Return the photo's size in pixels. Raise `InvalidRequest` for a URL, which is not downloaded here."""
    import asyncio  # imported here, as a size given as WxH needs neither

    from kling_expand.api.photo import load_photo

    loaded = asyncio.run(load_photo(photo))
    if loaded.width is None or loaded.height is None:
        raise InvalidRequest("photo", photo, "must be a file", "for a URL, pass the photo's size as WxH")
    return loaded.width, loaded.height


def sides(ratios: Ratios) -> dict[str, float]:
    """Return the four ratios in the order of the vendor's string."""
    return {side: getattr(ratios, side) for side in SIDES}


def vendor_string(ratios: Ratios) -> str:
    """Return the four ratios as the vendor's helper prints them."""
    return ",".join(f"{value:.4f}" for value in sides(ratios).values())


def describe(width: int, height: int, ratios: Ratios, canvas: Canvas) -> str:
    """Return the canvas on one line."""
    left, top, right, bottom = canvas.box
    return (
        f"{width}x{height} becomes {canvas.width}x{canvas.height}, {ratios.area:.4g} times the area; "
        f"the photo covers {left},{top} to {right},{bottom}; "
        f"the service scales the picture to about {size_text(canvas)} pixels (its 1K tier)"
    )


def size_text(canvas: Canvas) -> str:
    """Return the expected size of the picture as text."""
    return "{}x{}".format(*canvas.expected_size)


def facts(width: int, height: int, ratios: Ratios, canvas: Canvas) -> dict[str, Any]:
    """Return ratios and canvas for JSON."""
    expected_width, expected_height = canvas.expected_size
    return {
        "width": width,
        "height": height,
        **sides(ratios),
        "area": ratios.area,
        "canvas": {"width": canvas.width, "height": canvas.height, "box": canvas.box},
        "expected_size": {"width": expected_width, "height": expected_height},
    }
