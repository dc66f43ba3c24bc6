"""`kling-expand ratios` and the geometry options that other commands share."""

import json

import pytest
from support.shell import COFFEE, Shell

from kling_expand import Ratios, Towards

kling = Shell()


def test_the_example_of_the_vendor_is_reproduced() -> None:
    """The first line is the vendor's string, and the second describes the canvas."""
    lines = kling("ratios", "100x100", "--area", 3, "--aspect", "16:9").stdout.splitlines()
    assert lines[0] == "0.1495,0.1495,0.6547,0.6547"
    assert "231x130" in lines[1]
    assert "about 1536x864 pixels (its 1K tier)" in lines[1]


def test_the_size_is_read_from_a_photo() -> None:
    """JSON has the four ratios, the canvas, and the position of the photo in it."""
    facts = json.loads(kling("ratios", COFFEE, "--size", "1000x600", "--anchor", "top-left", "--json").stdout)
    assert (facts["width"], facts["height"]) == (600, 400)
    assert (facts["up"], facts["down"], facts["left"], facts["right"]) == (0, 0.5, 0, pytest.approx(2 / 3))
    assert facts["canvas"] == {"width": 1000, "height": 600, "box": [0, 0, 600, 400]}
    assert facts["expected_size"] == {"width": 1440, "height": 864}


def test_several_passes_have_their_own_ratios() -> None:
    """Each pass has two lines, a last line has the total with its price, and JSON has both."""
    words = ("ratios", "300x700", "--aspect", "16:9", "--passes", 3)
    lines = kling(*words).stdout.splitlines()
    assert [line for line in lines if line[0].isdigit()] == [lines[0], lines[2], lines[4]]
    assert lines[0] == lines[2] == "0.0000,0.0000,0.5184,0.5184"
    assert lines[1].startswith("pass 1 of 2: 300x700 becomes 611x700")
    assert lines[4].startswith("300x700 becomes 1244x700, 4.148 times the area; 2 passes, 16 units;")
    facts = json.loads(kling(*words, "--json").stdout)
    first, second = facts["passes"]
    assert (facts["left"], facts["right"]) == (pytest.approx(4.148 / 2 - 0.5, abs=1e-3),) * 2
    assert (first["width"], first["area"]) == (300, second["area"])
    assert {"width": second["width"], "height": second["height"]} == first["expected_size"]
    assert "use --passes 2" in kling("ratios", "300x700", "--aspect", "16:9").stderr
    assert "passes" not in json.loads(
        kling("ratios", "300x700", "--aspect", "1:1", "--passes", 2, "--json").stdout
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--up", 0.5, "--left", 1], Ratios(0.5, 0, 1, 0)),
        (["--pad", 100], Ratios(0.25, 0.25, 0.25, 0.25)),
        (["--pad", "up=100, right=200"], Ratios(0.25, 0, 0, 0.5)),
        (["--direction", "left,right"], Towards("left,right").ratios()),
        (["--direction", "all", "--ratio", 1.2], Towards("all", 1.2).ratios()),
        (["--size", "800X400"], Ratios(0, 0, 0.5, 0.5)),
        (["--aspect", "2:1", "--anchor", "right"], Ratios(0, 0, 1, 0)),
    ],
)
def test_each_option_produces_its_geometry(options: list[object], expected: Ratios) -> None:
    """Each option produces the ratios of the library's geometry of the same kind."""
    facts = json.loads(kling("ratios", "400x400", *options, "--json").stdout)
    found = [facts[side] for side in ("up", "down", "left", "right")]
    assert found == pytest.approx([expected.up, expected.down, expected.left, expected.right])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["400x400"], "exactly one way"),
        (["400x400", "--up", 1, "--pad", 3], "exactly one way"),
        (["400x400", "--size", "3"], "WIDTHxHEIGHT"),
        (["400x400", "--pad", "north=3"], "--pad"),
        (["400x400", "--pad", "up=3,up"], "--pad"),
        (["400x400", "--aspect", "16:9", "--ratio", 2], "--direction"),
        (["400x400", "--direction", "left", "--anchor", "left"], "--aspect or --size"),
        (["400x400", "--aspect", "16:9", "--anchor", "middle"], "center"),
        (["0x400", "--up", 1], "pixels"),
        (["0x0", "--aspect", "16:9"], "width must be a whole number of pixels, at least 1, got 0"),
        (["400x0", "--pad", "up=3", "--passes", 2], "height must be a whole number"),
        (["400x400", "--aspect", "16:9", "--area", 1.2], "between 1.7778 and 3"),
        (["https://example.com/dog.jpg", "--up", 1], "WxH"),
        (["nothing.jpg", "--up", 1], "no such file"),
    ],
)
def test_an_impossible_geometry_is_refused(arguments: list[object], message: str) -> None:
    """For an impossible geometry, the exit code is 2, and the message says what is allowed."""
    done = kling("ratios", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
