"""`kling-expand preview`: the canvas as a picture."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support.sample_pictures import BROKEN, claimed
from support.shell import COFFEE, Shell

from kling_expand.pictures.preview import FRAME, LARGEST, SMALLEST

kling = Shell()
COMMAND = ("preview", COFFEE, "--up", 0.5)


def test_the_photo_is_placed_as_in_the_result(tmp_path: Path) -> None:
    """The drawing has a frame around the photo, and hatching in the new area."""
    target = tmp_path / "new" / "canvas.png"
    done = kling("preview", COFFEE, "--right", 0.5, "-o", target)
    assert (done.exit_code, done.stdout) == (0, f"{target}\n")
    assert "900x400" in done.stderr
    with Image.open(target) as picture, Image.open(COFFEE) as photo:
        assert picture.width == 900
        assert picture.getpixel((599, 200)) == FRAME
        assert picture.getpixel((300, 200)) == photo.getpixel((300, 200))
        hatched = picture.crop((605, 5, 895, 150))
        assert 1 < len(hatched.getcolors() or ()) < 10
        assert len(picture.crop((620, 180, 880, 220)).getcolors() or ()) > len(hatched.getcolors() or ())


def test_several_passes_are_drawn_as_one_canvas(tmp_path: Path) -> None:
    """The photo is where it will be after the last pass, and the text has the price of all passes."""
    Image.new("RGB", (300, 700), "red").save(tmp_path / "photo.png")
    target = tmp_path / "c.png"
    done = kling("preview", tmp_path / "photo.png", "--aspect", "16:9", "--passes", 2, "-o", target, "--json")
    facts = json.loads(done.stdout)
    assert (len(facts["passes"]), facts["canvas"]["box"]) == (2, [472, 0, 772, 700])
    with Image.open(target) as picture:
        assert picture.getpixel((600, 350)) == (255, 0, 0)
        assert picture.getpixel((450, 10)) != (255, 0, 0)


@pytest.mark.parametrize(("size", "width"), [((300, 300), SMALLEST), ((4000, 3000), LARGEST)])
def test_the_drawing_has_a_readable_size(tmp_path: Path, size: tuple[int, int], width: int) -> None:
    """The drawing is neither tiny nor huge, even for a transparent photo."""
    Image.new("RGBA", size, (200, 30, 30, 128)).save(tmp_path / "photo.png")
    kling("preview", tmp_path / "photo.png", "--left", 0.5, "-o", tmp_path / "canvas.png")
    with Image.open(tmp_path / "canvas.png") as picture:
        assert picture.width == width
        assert picture.getpixel((width - 20, 20)) == pytest.approx((227, 142, 142), abs=2)


def test_a_rotated_photo_is_drawn_upright(tmp_path: Path) -> None:
    """EXIF orientation is applied to the photo and its size, and a note says so."""
    photo = Image.new("RGB", (400, 300), "blue")
    photo.paste("red", (0, 0, 200, 300))  # the left half, which orientation 6 turns to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.jpg", exif=exif)
    done = kling("preview", tmp_path / "photo.jpg", "--right", 0.5, "-o", tmp_path / "c.png", "--json")
    facts = json.loads(done.stdout)
    assert (facts["width"], facts["height"], facts["turned"]) == (300, 400, True)
    assert (facts["canvas"]["width"], facts["canvas"]["height"]) == (450, 400)
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.getpixel((100, 50)) == pytest.approx((254, 0, 0), abs=3)
        assert picture.getpixel((100, 500)) == pytest.approx((0, 0, 254), abs=3)
    assert "--fit" in kling("preview", tmp_path / "photo.jpg", "--up", 1, "-o", tmp_path / "c.png").stderr


def test_json_has_the_fields_of_ratios_and_the_path(tmp_path: Path) -> None:
    """JSON has the fields of `ratios`, and the path of the drawing."""
    facts = json.loads(kling("preview", COFFEE, "--pad", 9, "--json", "-o", tmp_path / "c.png").stdout)
    assert (facts["canvas"]["width"], facts["file"]) == (618, str(tmp_path / "c.png"))


def test_an_unsuitable_output_is_refused(tmp_path: Path) -> None:
    """Another format, the photo itself and an unwritable path are refused."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (300, 300)).save(photo)
    (tmp_path / "file").write_text("")
    before = photo.read_bytes()
    for target, message in [("c.jpg", ".png"), ("photo.png", "replace"), ("file/c.png", "cannot be written")]:
        done = kling("preview", photo, "--up", 1, "-o", tmp_path / target)
        assert (done.exit_code, done.stdout) == (2, "")
        assert message in done.stderr
    assert photo.read_bytes() == before


def test_a_terminal_shows_the_picture(tmp_path: Path) -> None:
    """A terminal that supports pictures shows the drawing, and the path is the last line."""
    target = tmp_path / "canvas.png"
    shown, _ = kling.on_a_terminal(*COMMAND, "-o", target)
    assert shown.strip().endswith(str(target))
    assert len(shown.splitlines()) > 5


def test_a_terminal_without_a_size_is_accepted(tmp_path: Path) -> None:
    """With a terminal that reports no size, the file is still written."""
    target = tmp_path / "canvas.png"
    shown, _ = kling.on_a_terminal(*COMMAND, "-o", target, size=(0, 0))
    assert shown.strip().endswith(str(target))


@pytest.mark.parametrize("content", [BROKEN, claimed(15_000, 15_000)])
def test_a_photo_that_cannot_be_decoded_is_refused(tmp_path: Path, content: bytes) -> None:
    """A damaged photo, or one of too many pixels, is an error with its name, and exit code 2."""
    (tmp_path / "photo.png").write_bytes(content)
    done = kling("preview", tmp_path / "photo.png", "--right", 0.5, "-o", tmp_path / "c.png")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "photo.png" in done.stderr
    assert "Pillow cannot read it" in done.stderr
