"""Drawings of a canvas, with the photo in its place and the new area hatched and labeled (Pillow)."""

from typing import Any

from kling_expand.geometry import Canvas

from .fit import decoding, open_image, orientation

SMALLEST, LARGEST = 640, 1200  # pixels; limits for the longer side of a drawing
HATCH = 14  # pixels between two lines
PAPER, LINE, FRAME, INK = (245, 245, 245), (184, 190, 202), (214, 64, 32), (24, 24, 28)

Box = tuple[int, int, int, int]  # left, top, right, bottom


def upright_size(photo: str, stored: tuple[int, int]) -> tuple[tuple[int, int], bool]:
    """Return the size of a photo after its EXIF orientation is applied, and whether that changes it.

    Raises:
        ImageError: if Pillow cannot read it.
    """
    with open_image(photo) as image:
        turned = orientation(image)
    width, height = stored
    return ((height, width) if turned >= 5 else stored), turned != 1


def draw(photo: str, canvas: Canvas, caption: list[str]) -> Any:
    """Draw the canvas as a PIL image, with the upright photo in its place and the *caption* lines below.

    Raises:
        ImageError: if Pillow cannot read the photo.
    """
    from PIL import ImageDraw, ImageOps

    longer = max(canvas.width, canvas.height)
    scale = min(max(longer, SMALLEST), LARGEST) / longer
    small = canvas.scaled(max(1, round(canvas.width * scale)), max(1, round(canvas.height * scale)))
    picture = _hatched(small.width, small.height)
    left, top, right, bottom = small.box
    with decoding(photo), open_image(photo) as original:
        upright = opaque(ImageOps.exif_transpose(original))
        picture.paste(upright.resize((max(1, right - left), max(1, bottom - top))), (left, top))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((left, top, right - 1, bottom - 1), outline=FRAME, width=2)
    for (side, pixels), ratio in zip(_pixels(canvas).items(), canvas.sides, strict=True):
        if pixels:
            _label(pen, _band(side, small), f"{side} {ratio:.4f} ({pixels} px)")
    return _captioned(picture, caption)


def opaque(image: Any) -> Any:
    """Return a PIL image as RGB, with white in transparent areas."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _hatched(width: int, height: int) -> Any:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(picture)
    for start in range(-height, width, HATCH):
        pen.line((start, height, start + height, 0), fill=LINE, width=1)
    return picture


def _pixels(canvas: Canvas) -> dict[str, int]:
    """Return how many pixels are added on each side."""
    left, top, right, bottom = canvas.box
    return {"up": top, "down": canvas.height - bottom, "left": left, "right": canvas.width - right}


def _band(side: str, canvas: Canvas) -> Box:
    """Return the part of the new area next to the photo."""
    left, top, right, bottom = canvas.box
    return {
        "up": (left, 0, right, top),
        "down": (left, bottom, right, canvas.height),
        "left": (0, top, left, bottom),
        "right": (right, top, canvas.width, bottom),
    }[side]


def _label(pen: Any, band: Box, text: str) -> None:
    """Write *text* in the middle of a band, or nothing if the band is too small."""
    left, top, right, bottom = band
    middle = ((left + right) / 2, (top + bottom) / 2)
    for size in (20, 14, 10):
        box = pen.textbbox(middle, text, font=_font(size), anchor="mm")
        if left + 2 <= box[0] and box[2] <= right - 2 and top + 2 <= box[1] and box[3] <= bottom - 2:
            pen.rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), fill=PAPER)
            pen.text(middle, text, fill=INK, font=_font(size), anchor="mm")
            return


def _captioned(picture: Any, lines: list[str]) -> Any:
    from PIL import Image, ImageDraw

    whole = Image.new("RGB", (picture.width, picture.height + 22 * len(lines) + 8), "white")
    whole.paste(picture, (0, 0))
    pen = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        pen.text((8, picture.height + 6 + 22 * number), line, fill=INK, font=_font(14))
    return whole


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
