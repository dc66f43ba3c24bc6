"""How does a trained network paint the new area? MI-GAN in ONNX form, run from a weights file the user names.

No weights are shipped or fetched. The file is what MI-GAN's own pipeline export writes: inputs `image` of
(1, 3, H, W) and `mask` of (1, 1, H, W), 255 where known; one output like `image`; all of bytes. It scales
to the size it was trained for by itself.
"""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .canvas import Canvas
from .engine import Engine, UnknownEngine
from .seams import Pixels, meet


def painter(weights: str) -> Engine:
    """The engine that runs this file; raises UnknownEngine if it or its runtime is missing or unfit."""
    _session(weights)
    return partial(paint_migan, weights)


def paint_migan(weights: str, original: Image.Image, canvas: Canvas, *, seed: int) -> Image.Image:
    """Let the network fill the canvas. It has no chance of its own: odd seeds show it the scene mirrored."""
    left, top, right, bottom = canvas.box
    pixels = np.zeros((canvas.height, canvas.width, 3), np.uint8)
    pixels[top:bottom, left:right] = np.asarray(original)
    known = np.zeros((canvas.height, canvas.width, 1), np.uint8)
    known[top:bottom, left:right] = 255
    turn = -1 if seed % 2 else 1
    painted = _run(weights, pixels[:, ::turn], known[:, ::turn])[:, ::turn]
    return Image.fromarray(meet(painted, canvas))


def _run(weights: str, pixels: Pixels, known: Pixels) -> Pixels:
    planes = {"image": _planes(pixels), "mask": _planes(known)}
    result: Any = _session(weights).run(None, planes)[0]
    if result.shape != planes["image"].shape or result.dtype != np.uint8:
        raise UnknownEngine(
            f"{weights} answered {result.dtype}{list(result.shape)}, not a picture of the canvas"
        )
    return np.asarray(result[0].transpose(1, 2, 0), np.uint8)


def _planes(pixels: Pixels) -> Pixels:
    """(H, W, C) as (1, C, H, W), contiguous as the runtime wants it."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


@lru_cache(maxsize=1)  # one network in memory: a worker paints with one
def _session(weights: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UnknownEngine("migan needs onnxruntime: pip install 'kling-expand[migan]'") from None
    if not Path(weights).is_file():
        raise UnknownEngine(f"migan:{weights}: no such weights file; give migan:PATH.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # workers are the parallelism
    try:
        session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has a dozen exceptions for one fact, and no root of its own
        raise UnknownEngine(f"migan:{weights} is not a network onnxruntime can run: {error}") from error
    if {"image", "mask"} != {node.name for node in session.get_inputs()}:
        raise UnknownEngine(f"migan:{weights} does not take `image` and `mask`: export the whole pipeline")
    return session
