"""The seam between the painted area and the original."""

import numpy as np

from kling_expand.emulator.painting import seams
from kling_expand.emulator.painting.canvas import Canvas


def test_no_line_is_left_along_the_seam() -> None:
    """A row next to the box that differs from both neighbors is averaged, on every side."""
    painted = np.full((30, 40, 3), 100, np.uint8)
    place = Canvas(40, 30, (10, 8, 30, 22))
    painted[[7, 22], 10:30] = painted[8:22, [9, 30]] = 60
    assert (seams.smooth_seam(painted, place) == 100).all()
