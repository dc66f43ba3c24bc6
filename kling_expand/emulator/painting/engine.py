"""The interface of painting engines, and the flat engine for load tests.

An engine receives the original scaled to its box and returns a whole picture. It does not handle files or
formats. The caller pastes the original over the box, so the pixels painted there do not matter.
"""

from typing import Protocol

import numpy as np
from PIL import Image

from .canvas import Canvas


class UnknownEngine(ValueError):
    """The error for an unknown engine name. The message lists the engines."""


class Engine(Protocol):
    """A callable that paints a canvas around an original. Equal seeds give equal pictures."""

    def __call__(self, original: Image.Image, canvas: Canvas, *, seed: int) -> Image.Image:
        """Return the painted canvas."""
        ...


def paint_flat(original: Image.Image, canvas: Canvas, *, seed: int) -> Image.Image:
    """Fill the canvas with the mean color of the original's edge, shifted by the seed."""
    pixels = np.asarray(original)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(axis=0)
    shift = np.random.default_rng(seed).uniform(-24, 24, 3)
    red, green, blue = (int(value) for value in np.clip(edge + shift, 0, 255))
    return Image.new("RGB", (canvas.width, canvas.height), (red, green, blue))
