"""The size of a result and the position of the original in it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.emulator.painting.canvas import MAX_SIDE, TIER, Canvas, fit_canvas


def test_canvas_matches_the_live_service() -> None:
    """640x480 with right 0.5 gives the size that was observed on the live service."""
    assert Canvas(1664, 832, (0, 0, 1109, 832)) == fit_canvas(640, 480, (0, 0, 0, 0.5))


def test_canvas_prefers_multiples_of_32() -> None:
    """600x400 expanded to 16:9, with ratios of four decimals, gives 1536x864."""
    assert Canvas(1536, 864, (120, 0, 1416, 864)) == fit_canvas(600, 400, (0, 0, 0.0926, 0.0926))


sides = st.integers(300, 6000)
ratios = st.floats(0, 2, allow_subnormal=False)


@given(sides, sides, ratios, ratios, ratios, ratios)
def test_canvas_keeps_the_aspect_and_the_position(  # noqa: PLR0917 - two sizes, four sides
    width: int, height: int, up: float, down: float, left: float, right: float
) -> None:
    """The sides and the box are within one pixel of their exact values."""
    across, along = 1 + left + right, 1 + up + down
    aspect = across * width / (along * height)
    made = fit_canvas(width, height, (up, down, left, right))
    assert max(made.width, made.height) <= MAX_SIDE
    assert abs(made.width - made.height * aspect) <= 1
    assert abs(made.height - made.width / aspect) <= 1
    assert made.width * made.height <= 1.3 * TIER
    x = made.width / across
    y = made.height / along
    exact = (left * x, up * y, (left + 1) * x, (up + 1) * y)
    assert np.allclose(made.box, exact, rtol=0, atol=1)
    assert 0 <= made.box[0] < made.box[2] <= made.width
    assert 0 <= made.box[1] < made.box[3] <= made.height


@given(st.integers(1, 60_000), st.integers(1, 60_000), ratios, ratios)
def test_canvas_is_capped_for_any_aspect(width: int, height: int, up: float, left: float) -> None:
    """Extreme aspects give a canvas within MAX_SIDE that contains the original."""
    made = fit_canvas(width, height, (up, 0, left, 0))
    assert 1 <= min(made.width, made.height) <= max(made.width, made.height) <= MAX_SIDE
    assert made.box[2] == made.width
    assert made.box[3] == made.height
    assert made.box[0] < made.box[2]
    assert made.box[1] < made.box[3]


@pytest.mark.parametrize("bad", [(0, 40, 0), (60, 40, -0.1), (60, 40, float("nan")), (60, 40, float("inf"))])
def test_canvas_refuses_empty_pictures_and_invalid_ratios(bad: tuple[int, int, float]) -> None:
    """Empty pictures and ratios that are negative or infinite raise ValueError."""
    with pytest.raises(ValueError, match="no canvas"):
        fit_canvas(bad[0], bad[1], (0, 0, 0, bad[2]))
