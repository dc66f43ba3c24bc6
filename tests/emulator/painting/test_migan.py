"""The MI-GAN engine, with a tiny network that is written here byte by byte."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kling_expand.emulator.painting import engine, migan, pictures
from kling_expand.emulator.painting.canvas import Canvas

BYTES, BOOL, FLOAT = 2, 9, 1  # element types of ONNX
PLACE = Canvas(12, 6, (2, 0, 8, 6))


def varint(number: int) -> bytes:
    """Return an integer as protobuf encodes it."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, value: int | str | bytes) -> bytes:
    """Return one field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    body = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(body)) + body


def tensor(name: str, channels: int, kind: int = BYTES) -> bytes:
    """Return a named (1, channels, height, width) tensor."""
    sizes = [field(1, 1), field(1, channels), field(2, "height"), field(2, "width")]
    shape = b"".join(field(1, size) for size in sizes)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, shape)))


def node(kind: str, inputs: list[str], output: str, **numbers: int) -> bytes:
    """Return one operation with integer attributes."""
    attributes = b"".join(
        field(5, field(1, name) + field(3, n) + field(20, 2)) for name, n in numbers.items()
    )
    names = b"".join(field(1, name) for name in inputs)
    return field(1, names + field(2, output) + field(4, kind) + attributes)


def network(path: Path, *, mask: str = "mask", answer: int = BYTES) -> str:
    """Write a network that keeps known pixels and fills the others with the largest level of the picture.

    So its answer shows which picture and which mask it was given.
    """
    operations = [
        node("Cast", [mask], "known", to=BOOL),
        node("ReduceMax", ["image"], "largest"),
        node("Where", ["known", "image", "largest"], "filled"),
        node("Cast", ["filled"], "result", to=answer),
    ]
    ends = [field(11, tensor("image", 3)), field(11, tensor(mask, 1)), field(12, tensor("result", 3, answer))]
    graph = b"".join(operations) + field(2, "tiny") + b"".join(ends)
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))
    return str(path)


def ramp() -> Image.Image:
    """Return a picture that is brighter to the right, 40 to 90."""
    return Image.fromarray(np.tile(np.arange(40, 100, 10).astype(np.uint8)[None, :, None], (6, 1, 3)))


def test_the_network_gets_the_picture_and_the_mask(tmp_path: Path) -> None:
    """Known pixels are marked and come back unchanged, the rest is painted."""
    paint = pictures.find_engine("migan:" + network(tmp_path / "tiny.onnx"))
    pixels = np.asarray(paint(ramp(), PLACE, seed=2))
    assert pixels.shape == (6, 12, 3)
    assert np.array_equal(pixels[:, 2:8], np.asarray(ramp()))
    assert (pixels[:, 11] == 90).all()


def test_odd_seeds_come_back_the_right_way_round(tmp_path: Path) -> None:
    """The result of a mirrored scene is mirrored back."""
    paint = migan.load_engine(network(tmp_path / "tiny.onnx"))
    assert np.array_equal(np.asarray(paint(ramp(), PLACE, seed=1))[:, 2:8], np.asarray(ramp()))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """A missing file is named, and the message shows the form of the option."""
    with pytest.raises(engine.UnknownEngine, match="no such weights file"):
        pictures.find_engine(f"migan:{tmp_path / 'absent.onnx'}")
    with pytest.raises(engine.UnknownEngine, match=r"migan:PATH\.onnx"):
        pictures.find_engine("migan")


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    """A file that is not a network is refused with its name."""
    path = tmp_path / "text.onnx"
    path.write_text("not a network")
    with pytest.raises(engine.UnknownEngine, match="not a network onnxruntime can run"):
        pictures.find_engine(f"migan:{path}")


def test_a_network_with_other_inputs_is_refused(tmp_path: Path) -> None:
    """A network with other inputs is refused at the start."""
    with pytest.raises(engine.UnknownEngine, match="inputs must be"):
        migan.load_engine(network(tmp_path / "bare.onnx", mask="noise"))


def test_an_answer_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    """A network whose output is not uint8 is refused."""
    paint = migan.load_engine(network(tmp_path / "float.onnx", answer=FLOAT))
    with pytest.raises(engine.UnknownEngine, match="float32"):
        paint(ramp(), PLACE, seed=1)


def test_without_the_runtime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnxruntime the message names the extra."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(engine.UnknownEngine, match=r"kling-expand\[migan\]"):
        pictures.find_engine(f"migan:{tmp_path / 'any.onnx'}")
