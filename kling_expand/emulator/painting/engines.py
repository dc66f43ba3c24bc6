"""Which engine has this name? The ones that are here, and those that a weights file brings."""

import numpy as np
from PIL import Image

from .canvas import Canvas
from .engine import Engine, UnknownEngine
from .patchmatch import paint_patches

__all__ = ["Engine", "UnknownEngine", "find", "paint_flat"]


def find(name: str) -> Engine:
    """The engine of this name: patchmatch, flat, or migan:PATH with a weights file; raises UnknownEngine."""
    kind, _, weights = name.partition(":")
    if kind == "migan":
        from .migan import painter  # its runtime is an extra of its own

        return painter(weights)
    try:
        return _ENGINES[name]
    except KeyError:
        known = ", ".join([*sorted(_ENGINES), "migan:PATH"])
        raise UnknownEngine(f"no engine is called {name!r}; known: {known}") from None


def paint_flat(original: Image.Image, canvas: Canvas, *, seed: int) -> Image.Image:
    """Fill with the mean colour of the original's edge, shifted by the seed: for load, not for looks."""
    pixels = np.asarray(original)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(axis=0)
    shift = np.random.default_rng(seed).uniform(-24, 24, 3)
    red, green, blue = (int(value) for value in np.clip(edge + shift, 0, 255))
    return Image.new("RGB", (canvas.width, canvas.height), (red, green, blue))


_ENGINES: dict[str, Engine] = {"patchmatch": paint_patches, "flat": paint_flat}
