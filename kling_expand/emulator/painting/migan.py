"""The MI-GAN engine: a trained network in ONNX form, run from a weights file that the user names.

No weights are shipped or downloaded. The file is the export of MI-GAN's whole pipeline. Its inputs are
`image` of shape (1, 3, H, W) and `mask` of (1, 1, H, W), 255 where known. Its output is like `image`, and all
are uint8. The pipeline scales to the size it was trained for.
"""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .canvas import Canvas
from .engine import Engine, UnknownEngine
from .seams import Pixels, match_colors


def load_engine(weights: str) -> Engine:
    """Return the engine that runs a weights file.

    Raises:
        UnknownEngine: when the file or its runtime is missing, or the file is another network.
    """
    _session(weights)
    return partial(paint_migan, weights)


def paint_migan(weights: str, original: Image.Image, canvas: Canvas, *, seed: int) -> Image.Image:
    """Let the network fill the canvas. It is deterministic, so odd seeds mirror the scene to vary it.

    Raises:
        UnknownEngine: when the output of the network is not a picture of the canvas.
    """
    left, top, right, bottom = canvas.box
    pixels = np.zeros((canvas.height, canvas.width, 3), np.uint8)
    pixels[top:bottom, left:right] = np.asarray(original)
    known = np.zeros((canvas.height, canvas.width, 1), np.uint8)
    known[top:bottom, left:right] = 255
    step = -1 if seed % 2 else 1
    painted = _run(weights, pixels[:, ::step], known[:, ::step])[:, ::step]
    return Image.fromarray(match_colors(painted, canvas))


def _run(weights: str, pixels: Pixels, known: Pixels) -> Pixels:
    planes = {"image": _planes(pixels), "mask": _planes(known)}
    result: Any = _session(weights).run(None, planes)[0]
    if result.shape != planes["image"].shape or result.dtype != np.uint8:
        raise UnknownEngine(
            f"{weights}: the output must be uint8 of the canvas, got {result.dtype}{list(result.shape)}"
        )
    return np.asarray(result[0].transpose(1, 2, 0), np.uint8)


def _planes(pixels: Pixels) -> Pixels:
    """Return (H, W, C) as contiguous (1, C, H, W), which the runtime requires."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


@lru_cache(maxsize=1)  # a worker uses one network
def _session(weights: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UnknownEngine("migan needs onnxruntime: pip install 'kling-expand[migan]'") from None
    if not Path(weights).is_file():
        raise UnknownEngine(f"migan:{weights}: no such weights file; use migan:PATH.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several workers run in parallel already
    try:
        session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has many exceptions and no base class for them
        raise UnknownEngine(f"migan:{weights} is not a network onnxruntime can run: {error}") from error
    if {"image", "mask"} != {node.name for node in session.get_inputs()}:
        raise UnknownEngine(
            f"migan:{weights}: the inputs must be `image` and `mask`; export the whole MI-GAN pipeline"
        )
    return session
