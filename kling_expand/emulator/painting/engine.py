"""What is an engine? Anything that paints a canvas around an original; it reads no files, knows no formats.

It is given the original, already scaled to its box, and answers with a whole picture. What it puts
where the original lies does not matter: the caller pastes the original there.
"""

from typing import Protocol

from PIL import Image

from .canvas import Canvas


class UnknownEngine(ValueError):
    """No engine has this name, or what it needs is not here; the text says which."""


class Engine(Protocol):
    """Paint a whole canvas around the original; the same seed gives the same picture."""

    def __call__(self, original: Image.Image, canvas: Canvas, *, seed: int) -> Image.Image: ...
