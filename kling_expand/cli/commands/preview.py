"""`kling-expand preview`: draw the canvas of a request. Nothing is sent."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from kling_expand.cli.options import JSONOption, PassesOption, ShapeOptions, options
from kling_expand.cli.terminal import clean, print_path, redirect_warnings, show
from kling_expand.errors import InvalidRequest, require
from kling_expand.geometry import Ratios, chained_canvas, plan
from kling_expand.pictures.preview import draw, upright_size

from .ratios import describe, facts, measure, vendor_string


@click.command()
@click.argument("photo", metavar="PHOTO", type=click.Path())
@options(shapes=ShapeOptions, passes_option=PassesOption)
@click.option(
    "-o",
    "--output",
    "file",
    default="preview.png",
    show_default=True,
    type=click.Path(),
    metavar="FILE",
    help="The PNG file to write.",
)
@options(output=JSONOption)
def preview(
    photo: str, *, shapes: ShapeOptions, passes_option: PassesOption, file: str, output: JSONOption
) -> None:
    """Draw the canvas that `expand` would request: PHOTO in its place, the new area hatched.

    \b
      kling-expand preview dog.jpg --aspect 16:9

    Nothing is sent. With several shapes, one file is written for each, such as preview-16x9.png. A photo that
    is rotated by its EXIF data is drawn upright, as `expand --fit` would send it. The caption gives the
    expected size of the service's picture: about 1.4 megapixels, whatever the size of the photo. With the
    extra `preview`, the drawing is also shown in terminals that can display pictures.
    """
    require("images", "PIL")
    shapes.require()
    redirect_warnings(None)
    (width, height), turned = upright_size(photo, measure(photo))
    _check_output(photo, file)
    found = [
        (plan(width, height, each.geometry(), passes_option.passes), each.shape) for each in shapes.geometries
    ]
    for steps, shape in found:
        path = Path(file)
        target = file if len(found) == 1 else str(path.with_name(f"{path.stem}-{shape}{path.suffix}"))
        _draw(photo, (width, height), steps, target, turned=turned, output=output)


def _draw(
    photo: str, size: tuple[int, int], steps: Sequence[Ratios], file: str, *, turned: bool, output: JSONOption
) -> None:
    """Draw one canvas into a file, and print its facts."""
    text = describe(*size, steps)
    if turned:
        text += "; the photo is rotated by its EXIF data and drawn upright, so expand it with --fit"
    caption = [*text.split("; "), *(f"up,down,left,right {vendor_string(each)}" for each in steps)]
    _save(draw(photo, chained_canvas(*size, steps), caption), file)
    if output.as_json:
        show({**facts(*size, steps), "turned": turned, "file": file})
        return
    click.echo(text, err=True)
    _display(file)
    print_path(file)


def _check_output(photo: str, file: str) -> None:
    if Path(file).suffix.lower() != ".png":
        raise InvalidRequest("output", repr(file), "must be a .png file")
    if Path(photo).resolve() == Path(file).resolve():
        raise InvalidRequest("output", repr(file), "must not replace the photo")


def _save(picture: Any, file: str) -> None:
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    except OSError as error:
        raise InvalidRequest("output", repr(file), f"cannot be written ({error.strerror})") from error


def _display(file: str) -> None:
    """Show the picture if the terminal supports this and the library is installed."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal or console.is_dumb_terminal or find_spec("textual_image") is None:
        return
    # The library logs a traceback if the terminal does not respond to its queries.
    logging.getLogger("textual_image").addHandler(logging.NullHandler())
    try:
        from textual_image.renderable import Image

        console.print(Image(file, width="auto", height=max(4, min(24, console.height - 4))))
    except Exception as error:  # noqa: BLE001 - the library parses any response of the terminal
        click.echo(clean(f"this terminal cannot show the picture: {error}"), err=True)
