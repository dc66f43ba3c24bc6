"""`kling-expand ratios`: print the four ratios of a request. Nothing is sent."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import click

from kling_expand.cli.options import SIDES, JSONOption, PassesOption, ShapeOptions, options, parse_size
from kling_expand.cli.terminal import show
from kling_expand.errors import InvalidRequest
from kling_expand.geometry import Canvas, Ratios, chained_canvas, plan
from kling_expand.models import UNITS_PER_IMAGE


@click.command()
@click.argument("source", metavar="WxH|PHOTO")
@options(shapes=ShapeOptions, passes_option=PassesOption, output=JSONOption)
def ratios(source: str, *, shapes: ShapeOptions, passes_option: PassesOption, output: JSONOption) -> None:
    """Print the ratios up,down,left,right for a photo, or for a size such as 800x600.

    Two lines are printed for each shape: the ratios, and a description. It gives the canvas in pixels of the
    photo, and the expected size of the service's picture: about 1.4 megapixels, whatever the size of the
    photo. For a shape that needs several passes, two lines are printed for each pass, and one line for all
    passes together.

    \b
      kling-expand ratios 100x100 --area 3 --aspect 16:9
      kling-expand ratios dog.jpg --size 1920x1080
      kling-expand ratios 1080x1920 --aspect 16:9 --passes 2
    """
    shapes.require()
    width, height = parse_size(source) or measure(source)
    found = [plan(width, height, each.geometry(), passes_option.passes) for each in shapes.geometries]
    for steps in found:
        if output.as_json:
            show(facts(width, height, steps))
        else:
            click.echo("\n".join(_lines(width, height, steps)))


def _lines(width: int, height: int, steps: Sequence[Ratios]) -> list[str]:
    """Return two lines for each pass, and one for several passes together."""
    if len(steps) == 1:
        return [vendor_string(steps[0]), describe(width, height, steps)]
    found: list[str] = []
    for number, size in enumerate(photo_sizes(width, height, steps), 1):
        step = steps[number - 1]
        found += [vendor_string(step), f"pass {number} of {len(steps)}: {describe(*size, [step])}"]
    return [*found, describe(width, height, steps)]


def measure(photo: str) -> tuple[int, int]:
    """Return the photo's size in pixels. Raise `InvalidRequest` for a URL, which is not downloaded here."""
    import asyncio  # imported here with `load_photo`, because a size given as WxH needs neither

    from kling_expand.api.photo import load_photo

    loaded = asyncio.run(load_photo(photo))
    if loaded.width is None or loaded.height is None:
        advice = "download it, or use `ratios` with its size as WxH"
        raise InvalidRequest("photo", photo, "must be a file", advice)
    return loaded.width, loaded.height


def photo_sizes(width: int, height: int, steps: Sequence[Ratios]) -> Iterator[tuple[int, int]]:
    """Yield the size of each pass's input: the photo, and then the result of the previous pass."""
    yield width, height
    for number in range(1, len(steps)):
        yield chained_canvas(width, height, steps[:number]).expected_size


def sides(steps: Sequence[Ratios]) -> dict[str, float]:
    """Return the four ratios of all passes together, in the order of the vendor's string."""
    if len(steps) == 1:
        return {side: getattr(steps[0], side) for side in SIDES}
    return dict(zip(SIDES, chained_canvas(1, 1, steps).sides, strict=True))


def vendor_string(ratios: Ratios) -> str:
    """Return the four ratios as the vendor's helper prints them."""
    return ",".join(f"{value:.4f}" for value in sides([ratios]).values())


def describe(width: int, height: int, steps: Sequence[Ratios]) -> str:
    """Return the canvas after all passes on one line."""
    canvas = chained_canvas(width, height, steps)
    left, top, right, bottom = canvas.box
    passes = f"; {len(steps)} passes, {len(steps) * UNITS_PER_IMAGE} units" if len(steps) > 1 else ""
    return (
        f"{width}x{height} becomes {canvas.width}x{canvas.height}, {area(steps):.4g} times the area{passes}; "
        f"the photo covers {left},{top} to {right},{bottom}; "
        f"the service scales the picture to about {size_text(canvas)} pixels (its 1K tier)"
    )


def area(steps: Sequence[Ratios]) -> float:
    """Return the area after all passes as a multiple of the photo's."""
    return prod(each.area for each in steps)


def size_text(canvas: Canvas) -> str:
    """Return the expected size of the picture as text."""
    return "{}x{}".format(*canvas.expected_size)


def facts(width: int, height: int, steps: Sequence[Ratios]) -> dict[str, Any]:
    """Return ratios and canvas for JSON. For several passes, add those of each pass."""
    canvas = chained_canvas(width, height, steps)
    expected_width, expected_height = canvas.expected_size
    found = {
        "width": width,
        "height": height,
        **sides(steps),
        "area": area(steps),
        "canvas": {"width": canvas.width, "height": canvas.height, "box": canvas.box},
        "expected_size": {"width": expected_width, "height": expected_height},
    }
    if len(steps) == 1:
        return found
    each = zip(photo_sizes(width, height, steps), steps, strict=True)
    return found | {"passes": [facts(*size, [step]) for size, step in each]}
