"""The flat engine."""

import numpy as np
from support.sample_pictures import floats, grain

from kling_expand.emulator.painting import engine
from kling_expand.emulator.painting.canvas import Canvas


def test_flat_is_flat_and_varies_by_seed() -> None:
    """The canvas has one color, which is near the mean of the edge and depends on the seed."""
    picture, place = grain(), Canvas(160, 60, (0, 0, 90, 60))
    first, again, other = (floats(engine.paint_flat(picture, place, seed=seed)) for seed in (1, 1, 2))
    assert first.std(axis=(0, 1)).max() == 0
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.abs(first[0, 0] - floats(picture).mean(axis=(0, 1))).max() < 40
