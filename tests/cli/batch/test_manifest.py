"""What a manifest lists, in each of its forms; none is judged."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.cli.batch.manifest import FIELDS, Entry, Manifest, manifest, unknown
from kling_expand.cli.exit_codes import Stop


def listed(path: Path, text: str) -> list[Entry]:
    """The entries of a file with this text."""
    path.write_text(text, encoding="utf-8", newline="")
    return list(manifest([str(path)]).entries())


def test_a_table_tells_the_line_each_row_begins_at(tmp_path: Path) -> None:
    """Also behind blank lines, and behind a quoted cell of several lines."""
    text = 'image,prompt\r\na.jpg,"two\nlines"\r\n\r\nb.jpg,\r\n'
    found = listed(tmp_path / "m.csv", text)
    assert [(entry.line, entry.fields["image"]) for entry in found] == [(2, "a.jpg"), (5, "b.jpg")]
    assert found[0].fields["prompt"] == "two\nlines"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_spreadsheets_separate_as_they_like(tmp_path: Path, mark: str) -> None:
    """Comma, semicolon or tab; a byte order mark is no part of the first column's name."""
    (tmp_path / "m.csv").write_bytes(f"\ufeffImage{mark} UP\na.jpg{mark}0.5\n".encode())
    (entry,) = manifest([str(tmp_path / "m.csv")]).entries()
    assert entry.fields == {"image": "a.jpg", "up": "0.5"}


def test_too_many_cells_are_a_bad_row_and_too_few_are_blanks(tmp_path: Path) -> None:
    """A comma that was not quoted must not move a value into another column."""
    long, short = listed(tmp_path / "m.csv", "image,up,prompt\na.jpg,1,sun, and sea\nb.jpg\n")
    assert long.error is not None
    assert "4 cells" in long.error
    assert (short.error, short.fields) == (None, {"image": "b.jpg"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,apsect\n", "did you mean aspect?"),
        ("image,frobnicate\n", "there are image, aspect"),
        ("photo,up\n", "`image` must be one of them"),
        ("image,up,up\n", "two columns called up"),
        ("", "`image` must be one of them"),
    ],
)
def test_a_header_that_cannot_be_meant_stops_everything(tmp_path: Path, text: str, said: str) -> None:
    """A misspelt column would be a parameter that is silently not there, and paid for."""
    with pytest.raises(Stop, match=said.replace("?", r"\?").replace("`", "`")):
        listed(tmp_path / "m.csv", text)


def test_columns_of_ones_own_begin_with_an_underscore() -> None:
    """And a nameless last column is a spreadsheet's habit."""
    assert unknown(["image", "_id", ""]) is None
    assert unknown([*FIELDS]) is None


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
    """And the next line counts on."""
    bad, good = listed(tmp_path / "m.jsonl", f'\n{line}\n\n{{"image": "b.jpg"}}\n')
    assert (bad.line, said in (bad.error or "")) == (2, True)
    assert (good.line, good.fields, good.error) == (4, {"image": "b.jpg"}, None)


@given(
    st.dictionaries(st.sampled_from(FIELDS), st.text(max_size=20) | st.floats(allow_nan=False) | st.none())
)
def test_what_is_written_as_json_is_read(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object]
) -> None:
    """Whatever the text."""
    path = tmp_path_factory.mktemp("manifest") / "m.ndjson"
    (entry,) = listed(path, json.dumps(fields) + "\n")
    assert (entry.fields, entry.error) == (fields, None)


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    """A missing file, and text of another encoding."""
    path = tmp_path / name
    with pytest.raises(Stop, match="cannot be read"):
        list(manifest([str(path)]).entries())
    path.write_bytes(b"image\n{}\n\xff\xfe.jpg\n")
    with pytest.raises(Stop, match="not UTF-8"):
        list(manifest([str(path)]).entries())


def test_a_cell_beyond_all_measure_is_one_sentence(tmp_path: Path) -> None:
    """A quote that is never closed makes one cell of the whole file."""
    with pytest.raises(Stop, match="after line 0"):
        listed(tmp_path / "m.csv", 'image\n"' + "a" * 200_000)


def test_photos_of_a_directory_and_of_a_pattern(tmp_path: Path) -> None:
    """In order; without hidden files, other files and, of a directory, what lies deeper."""
    for name in ("b.JPG", "a.png", ".c.png", "d.txt", "deep/e.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(word: str) -> list[str]:
        return [Path(entry.fields["image"]).name for entry in manifest([word]).entries()]

    assert names(str(tmp_path)) == ["a.png", "b.JPG"]
    assert names(f"{tmp_path}/**/*.jpeg") == ["e.jpeg"]
    assert names(f"{tmp_path}/*.bmp") == []
    assert [entry.fields["image"] for entry in manifest(["a.jpg", "https://x.org/b"]).entries()] == [
        "a.jpg",
        "https://x.org/b",
    ]


@pytest.mark.parametrize("words", [["notes.txt"], ["a.jpg", "m.csv"]])
def test_what_is_no_manifest_is_told_what_is(words: list[str]) -> None:
    """Several words are photos that a shell has listed."""
    with pytest.raises(Stop, match=r"can be given"):
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
    """Beside it, so that running the same command finds it."""
    assert Manifest(name, kind).journal == journal
