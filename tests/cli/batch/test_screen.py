"""What is seen on a terminal while tasks run, and what is left when they have ended."""

import json
import re
from pathlib import Path

from support.shell import CHELSEA, COFFEE, shell

from kling_expand.cli.connection import _schedule
from kling_expand.cli.formatting import clean, moment
from kling_expand.emulator.faults.plan import Fault


def test_a_terminal_sees_progress_and_then_the_paths(tmp_path: Path) -> None:
    """The live rows vanish; the paths of the results are the last lines."""
    with shell(work_seconds=0.4) as kling:
        shown, process = kling.on_a_terminal("expand", COFFEE, CHELSEA, "--up", 0.5, "-o", tmp_path)
    assert process.returncode == 0
    assert "0 of 2 done" in shown
    assert "coffee.jpg: " in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).split()
    assert sorted(lines[-2:]) == [str(tmp_path / "chelsea-0.png"), str(tmp_path / "coffee-0.png")]


def test_no_color_means_none(tmp_path: Path) -> None:
    """The screen may move its cursor, and paints nothing."""
    with shell() as kling:
        shown, _ = kling.on_a_terminal("expand", COFFEE, "--up", 0.5, "-o", tmp_path, NO_COLOR="1")
    assert re.findall(r"\x1b\[(?:[0-9]+;)*(?:3[0-9]|4[0-9]|9[0-9])[0-9;]*m", shown) == []


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    """Not one escape sequence."""
    with shell() as kling:
        shown, _ = kling.on_a_terminal("expand", COFFEE, "--up", 0.5, "-o", tmp_path, TERM="dumb")
    assert "\x1b" not in shown
    assert "coffee.jpg: " in shown


def test_a_failure_is_told_above_the_live_rows(tmp_path: Path) -> None:
    """And is still there at the end."""
    with shell() as kling:
        kling.emulator.faults.script("create", Fault("error", code=1301))
        shown, process = kling.on_a_terminal("expand", COFFEE, "--up", 0.5, "-o", tmp_path)
    assert (process.returncode, "code=1301" in shown) == (1, True)


def test_what_others_wrote_cannot_steer_a_terminal() -> None:
    """Escape sequences, line ends and the like are replaced; letters of any script are not."""
    assert clean("a\x1b[2Jb\r\n\u202ec\u00e9\u4e2d") == "a\ufffd[2Jb\ufffd\ufffd\ufffdc\u00e9\u4e2d"


def test_times_that_make_no_sense_are_shown_as_they_are() -> None:
    """And one that is missing is a dash."""
    assert moment(None) == "-"
    assert moment(10**20) == str(10**20)
    assert moment(1_750_000_000_000) == "2025-06-15 15:06:40 UTC"


def test_only_what_is_on_this_machine_is_asked_often() -> None:
    """A service that serves many is asked at the library's own pace."""
    assert _schedule("https://api.example.com") is None
    assert _schedule("http://127.0.0.1:8080") is not None


def test_a_url_can_be_a_photo(tmp_path: Path) -> None:
    """Its name in the URL becomes the result's; here it is the result of another task."""
    with shell(allow_private=True) as kling:
        first = json.loads(kling("expand", COFFEE, "--up", 0.5, "-o", tmp_path, "--json").stdout)
        done = kling("expand", first["urls"][0], "--left", 0.1, "-o", tmp_path)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / '0-0.png'}\n")
