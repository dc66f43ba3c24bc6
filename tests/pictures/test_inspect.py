"""The checks of a picture: damaged pictures fail for the right reason, and good ones pass."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.inspect_pictures import BREAKS, Case
from benchmarks.large_photos import texture
from kling_expand import Ratios
from kling_expand.emulator.painting.pictures import misregistered
from kling_expand.pictures.inspect import Report, inspect

SIDES = [Ratios(right=0.5), Ratios(up=0.4), Ratios(0.25, 0.1, 0.3, 0.3), Ratios(down=0.3, left=0.2)]
# The check that must fail for each kind of damage in `benchmarks.inspect_pictures`.
REASONS = {
    "shifted": "place",
    "wrong side": "place",
    "mirrored": "mirrored",
    "flipped": "place",
    "tinted": "colors",
    "tinted outside": "seam",
    "blurred": "sharpness",
    "posterized": "levels",
    "striped": "bands",
    "black": "black",
    "flat": "flat",
    "seam": "seam",
}


def case(ratios: Ratios, seed: int = 1) -> Case:
    """Return a photo that is cut out of a scene, where the scene is its picture."""
    canvas = ratios.canvas(400, 320)
    frame = texture(canvas.width, canvas.height, seed=seed)
    return Case(frame.crop(canvas.box), ratios, frame, seed)


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if check.failed}


@pytest.mark.parametrize("ratios", SIDES)
@pytest.mark.parametrize("misregister", [(0, 0, 1), (1.1, -0.7, 1.002), (-2, 2, 0.995)])
def test_a_good_picture_passes(ratios: Ratios, misregister: tuple[float, float, float]) -> None:
    """A picture that continues its photo passes every check, even if the service shifted it a little."""
    good = case(ratios)
    report = inspect(good.photo, misregistered(good.picture, *misregister), ratios)
    assert (failed(report), report.ok, str(report)) == (set(), True, "nothing suspicious")


@pytest.mark.parametrize("kind", sorted(BREAKS))
@pytest.mark.parametrize("ratios", SIDES[::2])
def test_a_broken_picture_is_found(kind: str, ratios: Ratios) -> None:
    """Each kind of damage fails its own check, and the summary lists every problem."""
    good = case(ratios)
    report = inspect(good.photo, BREAKS[kind](good), ratios)
    assert failed(report) & {REASONS[kind], "original"}
    assert not report.ok
    assert len(report.problems) == str(report).count(";") + 1


@pytest.mark.parametrize("side", ["up", "down", "left", "right"])
def test_a_single_bad_side_is_named(side: str) -> None:
    """If one of four sides is flat, the message names that side."""
    good = case(Ratios(0.2, 0.2, 0.2, 0.2))
    left, top, right, bottom = good.box
    parts = {
        "up": (0, 0, good.picture.width, top),
        "down": (0, bottom, good.picture.width, good.picture.height),
        "left": (0, 0, left, good.picture.height),
        "right": (right, 0, good.picture.width, good.picture.height),
    }
    picture = good.picture.copy()
    picture.paste((120, 120, 120), parts[side])
    assert any(
        f"({side})" in problem and "flat" in problem
        for problem in inspect(good.photo, picture, good.ratios).problems
    )


def test_a_plain_background_may_continue() -> None:
    """A white background that continues passes, because the photo next to it is just as plain."""
    photo = Image.new("RGB", (400, 400), "white")
    photo.paste(texture(200, 200, seed=3), (100, 100))
    picture = Image.new("RGB", (600, 400), "white")
    picture.paste(photo, (100, 0))
    assert failed(inspect(photo, picture, Ratios(left=0.25, right=0.25))) == set()


def test_a_dark_background_may_continue() -> None:
    """Darkness that continues from a night scene is neither black nor flat."""
    rng = np.random.default_rng(1)
    night = Image.fromarray(rng.integers(0, 6, (400, 600, 3)).astype(np.uint8))
    night.paste(texture(150, 150, seed=3), (225, 120))
    photo = night.crop((100, 0, 500, 400))
    assert failed(inspect(photo, night, Ratios(left=0.25, right=0.25))) == set()


def test_lines_across_the_seam_are_not_mirrored() -> None:
    """Lines that run straight across the seam do not count as mirrored."""
    bars = (np.sin(np.arange(320) / 3) * 60 + 128)[:, None, None] + np.zeros((320, 600, 3))
    noise = np.random.default_rng(1).normal(0, 4, (320, 600, 1))
    frame = Image.fromarray(np.clip(bars + noise, 0, 255).astype(np.uint8))
    photo = frame.crop((0, 0, 400, 320))
    assert "mirrored" not in failed(inspect(photo, frame, Ratios(right=0.5)))


def test_the_aspect_is_checked_to_a_pixel() -> None:
    """A picture that is four pixels too wide fails, and one with the exact size passes."""
    good = case(Ratios(right=0.5))
    width, height = good.picture.size
    for wrong, fails in ((0, False), (4, True)):
        picture = good.picture.resize((width + wrong, height))
        assert ("aspect" in failed(inspect(good.photo, picture, good.ratios))) is fails
