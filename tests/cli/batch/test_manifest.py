"""Manifests: their files, and the requests that rows ask for."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from kling_expand import ExpandRequest, Ratios, ToAspect, ToSize, Towards
from kling_expand.cli.batch.manifest import COLUMNS, Defaults, Entry, Manifest, Row, manifest, unknown
from kling_expand.cli.options import GeometryOptions
from kling_expand.cli.terminal import NothingDone
from kling_expand.models import request_fields


def listed(path: Path, text: str) -> list[Entry]:
    """Return the entries of a file with this text."""
    path.write_text(text, encoding="utf-8", newline="")
    return list(manifest([str(path)]).entries())


def test_rows_of_a_table_know_their_line(tmp_path: Path) -> None:
    """Line numbers stay right after blank lines and after a quoted cell of several lines."""
    text = 'image,prompt\r\na.jpg,"two\nlines"\r\n\r\nb.jpg,\r\n'
    found = listed(tmp_path / "m.csv", text)
    assert [(entry.line, entry.cells["image"]) for entry in found] == [(2, "a.jpg"), (5, "b.jpg")]
    assert found[0].cells["prompt"] == "two\nlines"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_spreadsheets_separate_as_they_like(tmp_path: Path, mark: str) -> None:
    """Comma, semicolon or tab; a byte order mark is no part of the first column's name."""
    (tmp_path / "m.csv").write_bytes(f"\ufeffImage{mark} UP\na.jpg{mark}0.5\n".encode())
    (entry,) = manifest([str(tmp_path / "m.csv")]).entries()
    assert entry.cells == {"image": "a.jpg", "up": "0.5"}


def test_too_many_cells_are_a_bad_row_and_too_few_are_blanks(tmp_path: Path) -> None:
    """A comma that was not quoted must not move a value into another column."""
    long, short = listed(tmp_path / "m.csv", "image,up,prompt\na.jpg,1,sun, and sea\nb.jpg\n")
    assert long.error is not None
    assert "4 cells" in long.error
    assert (short.error, short.cells) == (None, {"image": "b.jpg"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,apsect\n", "did you mean aspect?"),
        ("image,frobnicate\n", "the columns are image, aspect"),
        ("photo,up\n", "`image` must be one of them"),
        ("image,up,up\n", "two columns called up"),
        ("", "`image` must be one of them"),
    ],
)
def test_a_header_that_cannot_be_meant_stops_everything(tmp_path: Path, text: str, said: str) -> None:
    """A misspelt column stops the run: its parameter would be missing from every paid task."""
    with pytest.raises(NothingDone, match=said.replace("?", r"\?").replace("`", "`")):
        listed(tmp_path / "m.csv", text)


def test_columns_with_an_underscore_are_ignored() -> None:
    """Columns with an underscore are ignored, and so is the nameless last column of a spreadsheet."""
    assert unknown(["image", "_id", ""]) is None
    assert unknown([*COLUMNS]) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"image": "a", "apsect": 1}', "aspect"),
        ("[" * 9999, ""),
    ],
)
def test_a_bad_line_of_json_is_a_bad_row(tmp_path: Path, line: str, said: str) -> None:
    """A line that is no JSON object is a bad row, and the next line is still read."""
    bad, good = listed(tmp_path / "m.jsonl", f'\n{line}\n\n{{"image": "b.jpg"}}\n')
    assert (bad.line, said in (bad.error or "")) == (2, True)
    assert (good.line, good.cells, good.error) == (4, {"image": "b.jpg"}, None)


@given(
    st.dictionaries(st.sampled_from(COLUMNS), st.text(max_size=20) | st.floats(allow_nan=False) | st.none())
)
def test_what_is_written_as_json_is_read(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object]
) -> None:
    """Any text in a JSON line is read back unchanged."""
    path = tmp_path_factory.mktemp("manifest") / "m.ndjson"
    (entry,) = listed(path, json.dumps(fields) + "\n")
    assert (entry.cells, entry.error) == (fields, None)


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    """A missing file, and text of another encoding."""
    path = tmp_path / name
    with pytest.raises(NothingDone, match="cannot be read"):
        list(manifest([str(path)]).entries())
    path.write_bytes(b"image\n{}\n\xff\xfe.jpg\n")
    with pytest.raises(NothingDone, match="must be UTF-8"):
        list(manifest([str(path)]).entries())


def test_a_cell_beyond_all_measure_is_one_sentence(tmp_path: Path) -> None:
    """A quote that is never closed makes one cell of the whole file."""
    with pytest.raises(NothingDone, match="after line 0"):
        listed(tmp_path / "m.csv", 'image\n"' + "a" * 200_000)


def test_photos_of_a_directory_and_of_a_pattern(tmp_path: Path) -> None:
    """Photos are sorted; hidden files, other files and subdirectories are left out."""
    for name in ("b.JPG", "a.png", ".c.png", "d.txt", "deep/e.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(word: str) -> list[str]:
        return [Path(entry.cells["image"]).name for entry in manifest([word]).entries()]

    assert names(str(tmp_path)) == ["a.png", "b.JPG"]
    assert names(f"{tmp_path}/**/*.jpeg") == ["e.jpeg"]
    assert names(f"{tmp_path}/*.bmp") == []
    assert [entry.cells["image"] for entry in manifest(["a.jpg", "https://x.org/b"]).entries()] == [
        "a.jpg",
        "https://x.org/b",
    ]


@pytest.mark.parametrize("words", [["notes.txt"], ["a.jpg", "m.csv"]])
def test_a_word_that_is_no_manifest_is_refused(words: list[str]) -> None:
    """A word that is no manifest is refused, and so is a manifest among photos."""
    with pytest.raises(NothingDone, match=r"the manifest must be"):
        manifest(words)


@pytest.mark.parametrize(
    ("name", "kind", "journal"),
    [
        ("jobs/m.csv", "table", "jobs/m.csv.journal"),
        ("photos/", "directory", "photos.journal"),
        (".", "directory", "bulk.journal"),
        ("..", "directory", "bulk.journal"),
        ("", "photos", "bulk.journal"),
    ],
)
def test_each_manifest_has_a_journal_of_its_own(name: str, kind: str, journal: str) -> None:
    """The journal lies beside the manifest, so that the same command finds it again."""
    assert Manifest(name, kind).journal == journal


# ------------------------------------------------------------------------ rows

TABLE = Manifest("jobs/m.csv", "table")


def row(cells: dict[str, Any], **geometry: Any) -> Row:
    """Return a row of a table in the directory `jobs`, with options as defaults."""
    defaults = Defaults(GeometryOptions(**geometry), {"prompt": "a park", "n": 2, "watermark": True})
    (found,) = written(TABLE, [{"image": "a.jpg"} | cells], defaults)
    return found


def written(listed: Manifest, rows: list[dict[str, Any]], defaults: Defaults) -> list[Row]:
    """Return rows with these cells."""

    class Given(Manifest):
        def entries(self) -> Iterator[Entry]:
            return (Entry(line, cells) for line, cells in enumerate(rows, 7))

    return list(Given(listed.name, listed.kind).rows(defaults))


def request(fields: dict[str, Any], **geometry: Any) -> ExpandRequest:
    """Return what the row asks for."""
    made = row(fields, **geometry)
    assert made.request is not None, made.error
    return made.request


def test_options_count_where_a_row_says_nothing() -> None:
    """Blank cells, null and ignored columns leave the options in force."""
    found = request({"up": "", "prompt": None, "_id": 5}, aspect="16:9", area=2.0)
    assert found == ExpandRequest("jobs/a.jpg", ToAspect("16:9", area=2.0), "a park", n=2, watermark=True)


@pytest.mark.parametrize(
    ("fields", "geometry"),
    [
        ({"up": "0.5"}, Ratios(up=0.5)),
        ({"up": 1, "left": 0.25}, Ratios(up=1, left=0.25)),
        ({"aspect": "1:1"}, ToAspect("1:1", area=2.0, anchor="top")),
        ({"area": 3}, ToAspect("16:9", area=3.0, anchor="top")),
        ({"aspect": 1.5, "anchor": "left"}, ToAspect(1.5, area=2.0, anchor="left")),
        ({"size": "1920x1080"}, ToSize(1920, 1080, anchor="top")),
        ({"direction": "left,right", "ratio": "1.2"}, Towards("left,right", 1.2)),
    ],
)
def test_a_row_that_says_how_far_says_it_alone(fields: dict[str, Any], geometry: object) -> None:
    """A row's way to expand replaces the options' way; only options that refine it still apply."""
    assert request(fields, aspect="16:9", area=2.0, anchor="top").geometry == geometry


def test_cells_of_a_table_are_text() -> None:
    """Numbers, booleans and names are read from the text of a table."""
    fields = {"up": "1", "prompt": "sea", "n": "3", "watermark": "no", "key": "k", "name": "wide"}
    made = row({"image": "https://x.org/a.jpg"} | fields)
    assert made.request == ExpandRequest("https://x.org/a.jpg", Ratios(up=1), "sea", n=3, key="k")
    assert (made.name, made.label) == ("wide", "line 7 (https://x.org/a.jpg)")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "exactly one way to expand is required: aspect"),
        ({"up": "1", "aspect": "1:1"}, "exactly one way"),
        ({"up": "much"}, "must be a number"),
        ({"up": "3"}, "between 0 and 2"),
        ({"up": True}, "must be a number"),
        ({"up": [1]}, "must be text or a number"),
        ({"size": "large"}, "1920x1080"),
        ({"area": 2, "up": 1}, "area requires aspect"),
        ({"up": 1, "n": "2.5"}, "must be a whole number"),
        ({"up": 1, "n": 10}, "between 1 and 9"),
        ({"up": 1, "watermark": "perhaps"}, "must be true or false"),
        ({"up": 1, "key": " x "}, "key"),
        ({"up": 1, "image": ""}, "must be a path or a URL"),
        ({"up": 1, "prompt": "x" * 2501}, "at most 2500"),
    ],
)
def test_a_bad_row_has_a_reason(fields: dict[str, Any], said: str) -> None:
    """The reason names columns rather than options, and the row keeps its line."""
    made = row(fields)
    assert made.request is None
    assert said in (made.error or "")
    assert "--" not in (made.error or "")
    assert made.line == 7


def test_relative_paths_begin_at_the_manifest() -> None:
    """Relative paths start from the manifest's directory, absolute ones stay as they are."""
    assert request({"up": 1}).image == str(Path("jobs/a.jpg"))
    assert request({"up": 1, "image": "/x/a.jpg"}).image == "/x/a.jpg"


SAMPLES: dict[type, Any] = {str: "text", int: 3, bool: True, Mapping: {"new_field": {"a": [1, None]}}}


def sample_request() -> ExpandRequest:
    """Return a request in which no field has its default value."""
    values = {each.name: SAMPLES[each.kind] for each in request_fields()} | {"callback_url": "https://x.org/"}
    assert set(values) == {each.name for each in fields(ExpandRequest)} - {"image", "geometry"}
    return ExpandRequest("https://x.org/a.jpg", Ratios(up=0.5), **values)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_every_field_of_a_request_is_a_column(tmp_path: Path, ending: str) -> None:
    """A field that has no column could not be set by a manifest, and that would be silent."""
    wanted = sample_request()
    cells = {"image": wanted.image, "up": 0.5}
    cells |= {each.column or each.name: getattr(wanted, each.name) for each in request_fields()}
    path = tmp_path / f"m.{ending}"
    if ending == "csv":
        cells["extra"] = json.dumps(cells["extra"])
        table = csv.DictWriter(file := io.StringIO(), [*cells])
        table.writeheader()
        table.writerow(cells)
        path.write_text(file.getvalue())
    else:
        path.write_text(json.dumps(cells))
    (found,) = manifest([str(path)]).rows(Defaults())
    assert found.error is None
    assert found.request == wanted
