"""What will the canvas look like? A picture of it, before any money is spent."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from kling_expand.cli import options
from kling_expand.cli.formatting import show
from kling_expand.cli.geometry import geometry_options
from kling_expand.errors import InvalidRequest, MissingExtra
from kling_expand.geometry import Geometry
from kling_expand.pictures.preview import draw

from .ratios import describe, facts, measure, vendor_string


@click.command(short_help="Draw the canvas before any money is spent.")
@click.argument("photo", metavar="PHOTO", type=click.Path())
@geometry_options
@click.option(
    "-o",
    "--output",
    default="preview.png",
    show_default=True,
    type=click.Path(),
    metavar="FILE",
    help="The PNG file to write.",
)
@options.as_json
def preview(photo: str, geometry: Geometry, output: str, *, as_json: bool) -> None:
    """Draw what `expand` would ask for: PHOTO in place, the new area hatched.

    \b
      kling-expand preview dog.jpg --aspect 16:9

    Nothing is sent. Terminals that can show pictures show this one, if the extra
    `preview` is installed.
    """
    if find_spec("PIL") is None:
        raise MissingExtra("a preview is drawn by Pillow: pip install 'kling-expand[images]'")
    width, height = measure(photo)
    _check_output(photo, output)
    ratios = geometry.ratios(width, height)
    canvas = ratios.canvas(width, height)
    text = describe(width, height, ratios, canvas)
    caption = [*text.split("; "), f"up,down,left,right {vendor_string(ratios)}"]
    _save(draw(photo, ratios, canvas, caption), output)
    if as_json:
        show({**facts(width, height, ratios, canvas), "file": output})
        return
    click.echo(text, err=True)
    _display(output)
    click.echo(output)


def _check_output(photo: str, output: str) -> None:
    if Path(output).suffix.lower() != ".png":
        raise InvalidRequest("output", repr(output), "a preview is a .png file")
    if Path(photo).resolve() == Path(output).resolve():
        raise InvalidRequest("output", repr(output), "it would replace the photo")


def _save(picture: Any, output: str) -> None:
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        picture.save(output)
    except OSError as error:
        raise InvalidRequest("output", repr(output), f"it cannot be written: {error.strerror}") from error


def _display(path: str) -> None:
    """Show the picture where the terminal can and the library for it is there."""
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal or find_spec("textual_image") is None:
        return
    # What it could not find out of the terminal it also logs, with a traceback.
    logging.getLogger("textual_image").addHandler(logging.NullHandler())
    try:
        from textual_image.renderable import Image

        console.print(Image(path, width="auto", height=max(4, min(24, console.height - 4))))
    except Exception as error:  # noqa: BLE001 - it asks the terminal, and any answer may surprise it
        click.echo(f"this terminal cannot show it: {error}", err=True)
