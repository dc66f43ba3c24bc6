"""`kling-expand report`: one self-contained page, which no text from outside can break."""

import asyncio
import base64
import io
import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from attrs import evolve
from PIL import Image
from support.shell import CHELSEA, COFFEE, Shell, shell

from kling_expand.cli.report.report_html import make_card, seconds
from kling_expand.cli.report.thumbnails import Thumbnails
from kling_expand.models import Task
from kling_expand.store.sqlite import SQLiteStore

HOSTILE_TEXT = "</script><img src=https://evil.example/x onerror=alert(1)> \u202e \" '"


class Page(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the tag."""
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def all(self, tag: str, css: str = "") -> list[dict[str, str]]:
        """Return the attributes of every tag with this name and CSS class."""
        return [attrs for name, attrs in self.tags if name == tag and css in attrs.get("class", "")]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with one picture, two pictures of another photo, a failure and a refusal."""
    folder = tmp_path_factory.mktemp("report")
    rows = [
        {"image": COFFEE, "left": 0.5, "right": 0.5, "prompt": HOSTILE_TEXT},
        {"image": CHELSEA, "up": 1, "n": 2},
        {"image": COFFEE, "up": 1, "prompt": f"emulate-risk-control {HOSTILE_TEXT}"},
        {"image": COFFEE, "up": 1, "prompt": "emulate-1301"},
    ]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with shell() as kling:
        arguments = ["-o", folder / "out", "--journal", folder / "m.journal"]
        assert kling("bulk", folder / "m.jsonl", *arguments).exit_code == 1
    return folder / "m.journal"


def write_report(journal: Path, tmp_path: Path, *arguments: object) -> tuple[Page, str]:
    """Write the report about a journal, and return it parsed and as text."""
    done = Shell()("report", journal, "-o", tmp_path / "r.html", *arguments)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'r.html'}\n")
    text = (tmp_path / "r.html").read_text()
    return Page(text), text


def test_every_job_is_on_the_page(journal: Path, tmp_path: Path) -> None:
    """A card has the pictures, prompt, ratios, cost and error of its job."""
    page, text = write_report(journal, tmp_path)
    kinds = [card["data-kind"] for card in page.all("article")]
    assert sorted(kinds) == ["done", "done", "failed", "failed"]
    assert len(page.all("img", "after")) == 3
    assert len(page.all("input")) == 2
    assert "24 units ($0.08)" in text
    assert "left 0.5, right 0.5" in text
    assert "Failure to pass the risk control system" in text
    assert "1301" in text
    filters = [button["data-filter"] for button in page.all("button") if "data-filter" in button]
    assert filters == ["all", "done", "failed"]


def test_the_photo_is_placed_as_in_the_result(journal: Path, tmp_path: Path) -> None:
    """With half its width on each side, the photo begins at a quarter and covers half of the canvas."""
    page, _ = write_report(journal, tmp_path)
    places = {attrs["style"] for attrs in page.all("img") if "original" in attrs["alt"]}
    assert "left:25.0000%;top:0.0000%;width:50.0000%;height:100.0000%" in places


def test_nothing_is_fetched_and_foreign_text_is_escaped(journal: Path, tmp_path: Path) -> None:
    """Pictures are in the file, text from outside is escaped, and a policy forbids all requests."""
    page, text = write_report(journal, tmp_path)
    assert {attrs["src"][:11] for attrs in page.all("img")} == {"data:image/"}
    assert len(page.all("script")) == 1
    assert page.all("link") == []
    assert [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)] == []
    assert "&lt;/script&gt;" in text
    assert "\u202e" not in text
    assert re.search(
        r'http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:', text
    )


async def test_no_signature_of_a_url_is_on_the_page(journal: Path) -> None:
    """The page may be sent to others, so it shows a URL without its user, query and fragment."""
    async with SQLiteStore.snapshot(journal) as store:
        job = await anext(store.jobs())
    signed = evolve(job, source="https://me:word@h.example/dog.png?X-Amz-Signature=secret#part")
    card = make_card(signed, Thumbnails(64))
    assert (card.name, card.source) == ("dog", "https://h.example/dog.png")
    assert not any(word in repr(card) for word in ("secret", "word", "part"))


def test_the_page_is_not_written_through_a_link(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another user has put a link in place of the partial file, the page is not written through it."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    (tmp_path / "mine").write_text("precious")
    link = tmp_path / ".r.html-known.part"
    link.symlink_to(tmp_path / "mine")
    done = Shell()("report", journal, "-o", tmp_path / "r.html")
    assert (done.exit_code, "cannot be written" in done.stderr) == (2, True)
    assert ((tmp_path / "mine").read_text(), link.is_symlink()) == ("precious", True)


def test_no_picture_is_larger_than_size(journal: Path, tmp_path: Path) -> None:
    """No picture is larger than --size."""
    page, _ = write_report(journal, tmp_path, "--size", 64)
    for attrs in page.all("img"):
        with Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2]))) as image:
            assert max(image.size) == 64


def test_last_limits_the_jobs_but_not_the_totals(journal: Path, tmp_path: Path) -> None:
    """With --last the page shows the newest jobs, and the totals include all."""
    page, text = write_report(journal, tmp_path, "--last", 1)
    assert len(page.all("article")) == 1
    assert "The newest 1 of 4 jobs are shown." in text
    assert "24 units" in text


async def test_a_run_in_progress_can_be_reported(journal: Path, tmp_path: Path) -> None:
    """While a process has the journal open, the page is made from a snapshot of it."""
    copy = tmp_path / "run.journal"
    copy.write_bytes(journal.read_bytes())  # noqa: ASYNC240 - a test
    async with SQLiteStore(copy) as store:
        await store.set_rows(9)
        page, _ = await asyncio.to_thread(write_report, copy, tmp_path)
        assert len(page.all("article")) == 4
        assert await store.rows() == 9


def test_a_changed_photo_is_marked(tmp_path: Path) -> None:
    """A photo that has changed since the run is marked. A photo that was only touched is not."""
    photos = [tmp_path / "a.png", tmp_path / "b.png"]
    for number, photo in enumerate(photos):
        Image.new("RGB", (300, 300), (number, 0, 0)).save(photo)
    with shell() as kling:
        kling("bulk", *photos, "--up", 1, "--journal", tmp_path / "j", "-o", tmp_path / "out")
    later = time.time() + 60
    Image.new("RGB", (300, 300), "red").save(photos[0])
    for photo in photos:
        os.utime(photo, (later, later))
    _, text = write_report(tmp_path / "j", tmp_path)
    assert text.count("The photo has changed since it was sent") == 1


def test_pictures_are_reused_from_the_last_page(journal: Path, tmp_path: Path) -> None:
    """A second report reuses the pictures of the first, unless it has another size."""
    write_report(journal, tmp_path)
    page = tmp_path / "r.html"
    text = page.read_text()
    small = re.search(r'src="data:image/jpeg;base64,([A-Za-z0-9+/=]+)" data-key', text)
    assert small is not None
    page.write_text(text.replace(small[1], "AAAA"))
    assert "base64,AAAA" in write_report(journal, tmp_path)[1]
    assert "base64,AAAA" not in write_report(journal, tmp_path, "--size", 100)[1]


def test_progress_is_shown_on_a_terminal(journal: Path, tmp_path: Path) -> None:
    """On a terminal, a line counts the jobs. At the end only the path of the page remains."""
    shown, process = Shell().on_a_terminal("report", journal, "-o", tmp_path / "r.html")
    assert (process.returncode, shown.split("\x1b[K")[-1].strip()) == (0, str(tmp_path / "r.html"))


def test_the_page_is_written_without_the_result_files(journal: Path, tmp_path: Path) -> None:
    """The page is written even if the files of the results are gone."""
    copy = tmp_path / "j"
    copy.write_bytes(journal.read_bytes())
    for file in journal.parent.glob("out/*"):
        file.rename(tmp_path / file.name)
    try:
        page, _ = write_report(copy, tmp_path)
        assert page.all("img", "after") == []
        assert len(page.all("img")) == 4  # the photos are still there
    finally:
        for file in tmp_path.glob("*.png"):
            file.rename(journal.parent / "out" / file.name)


def test_a_failed_report_leaves_the_last_one(journal: Path, tmp_path: Path) -> None:
    """A failed report leaves no partial file."""
    (tmp_path / "r.html").mkdir()
    done = Shell()("report", journal, "-o", tmp_path / "r.html")
    assert (done.exit_code, "cannot be written" in done.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nothing"], "no such journal"), ([COFFEE, "-o", "photo.jpg"], "an .html file")],
)
def test_an_invalid_journal_or_output_is_refused(arguments: list[str], message: str) -> None:
    """The exit code is 2 for a missing journal, and for an output that is not an HTML file."""
    done = Shell()("report", *arguments)
    assert (done.exit_code, message in done.stderr) == (2, True)


def test_json_prints_the_path_and_the_totals(journal: Path, tmp_path: Path) -> None:
    """With --json, the path and the totals are printed as one object."""
    done = Shell()("report", journal, "-o", tmp_path / "r.html", "--json", "--last", 3)
    facts = {"file": str(tmp_path / "r.html"), "jobs": 4, "shown": 3, "units_billed": 24}
    assert json.loads(done.stdout) == facts


def test_the_page_of_an_empty_journal_has_no_cards(tmp_path: Path) -> None:
    """The page of an empty journal has no cards."""

    async def create() -> None:
        async with SQLiteStore(tmp_path / "j"):
            pass

    asyncio.run(create())
    page, text = write_report(tmp_path / "j", tmp_path)
    assert (page.all("article"), "0 units" in text) == ([], True)


def test_only_successful_tasks_have_a_duration() -> None:
    """Only successful tasks have a duration, and it is never negative."""
    assert seconds(Task("1", "succeed", created_at=1000, updated_at=3500)) == 2.5
    assert seconds(Task("1", "succeed", created_at=3500, updated_at=1000)) == 0
    assert seconds(Task("1", "succeed", created_at=1000)) is None
    assert seconds(Task("1", "failed", created_at=1000, updated_at=3500)) is None
    assert seconds(None) is None


def test_checks_shapes_and_passes_are_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card has the findings of `--check`, the shape and the pass. The first photo is in its place."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((540, 960), 40).convert("RGB").save("tower.png")
    with shell(queue_seconds=0, work_seconds=0) as kling:
        words = ("tower.png", "--aspect", "16:9", "--passes", 2, "--check", "-o", "out")
        assert kling("bulk", *words, "--json").exit_code == 0
    page, text = write_report(tmp_path / "out", tmp_path)
    assert "suspicious: tower-0.png: the new area" in text
    assert "1 of 1 checked" in text
    assert "<h1>out/</h1>" in text
    assert text.count("tower.png → 16:9</h2>") == 2
    assert sorted(card["data-kind"] for card in page.all("article")) == ["done", "suspicious"]
    filters = [button["data-filter"] for button in page.all("button") if "data-filter" in button]
    assert filters == ["all", "suspicious"]
    assert "<dt>pass</dt><dd>1 of 2</dd>" in text
    assert "<dt>pass</dt><dd>2 of 2</dd>" in text
    assert "<dt>shape</dt><dd>16x9</dd>" in text
    assert "<dt>canvas</dt><dd>1707×960</dd>" in text
    places = [each["style"] for each in page.all("img") if "original" in each.get("alt", "")]
    assert places[-1].startswith("left:34.1797%")
    assert len(page.all("article")) == 2


def test_a_photo_that_fit_rotated_is_shown_upright(tmp_path: Path) -> None:
    """The sizes on a card are those of the photo that was sent, which `--fit` had rotated."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = tmp_path / "in" / "trip" / "turned.jpg"
    photo.parent.mkdir(parents=True)
    Image.effect_noise((600, 400), 40).convert("RGB").save(photo, exif=exif)
    with shell(queue_seconds=0, work_seconds=0) as kling:
        words = ("bulk", tmp_path / "in", "--aspect", "1:1", "--fit", "-o", tmp_path / "out")
        assert kling(*words).exit_code == 0
    _, text = write_report(tmp_path / "out", tmp_path)
    assert "<dt>photo</dt><dd>400×600</dd>" in text
    assert "<dt>canvas</dt><dd>600×600</dd>" in text
    assert "trip/turned.jpg → 1:1</h2>" in text
