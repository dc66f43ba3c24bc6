"""Tables and JSON Lines: implausible input is an error with its line."""

import codecs
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.cli.batch.manifest import Defaults, read_manifest
from kling_expand.cli.batch.tables import COLUMNS, EXAMPLE, IMAGE_COLUMNS, Entry, unknown
from kling_expand.cli.options import GeometryOptions
from kling_expand.cli.terminal import NothingDone


def read_entries(path: Path, text: str) -> list[Entry]:
    """Return the entries of a file with this text."""
    path.write_text(text, encoding="utf-8", newline="")
    return list(read_manifest([str(path)]).entries())


def test_rows_of_a_table_have_their_line_numbers(tmp_path: Path) -> None:
    """Line numbers are correct after blank lines and after a quoted cell with several lines."""
    text = 'image,prompt\r\na.jpg,"two\nlines"\r\n\r\nb.jpg,\r\n'
    found = read_entries(tmp_path / "m.csv", text)
    assert [(entry.line, entry.cells["image"]) for entry in found] == [(2, "a.jpg"), (5, "b.jpg")]
    assert found[0].cells["prompt"] == "two\nlines"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_delimiter_is_detected(tmp_path: Path, mark: str) -> None:
    """The delimiter is a comma, semicolon or tab. A byte order mark is not part of the first name."""
    (tmp_path / "m.csv").write_bytes(f"\ufeffImage{mark} UP\na.jpg{mark}0.5\n".encode())
    (entry,) = read_manifest([str(tmp_path / "m.csv")]).entries()
    assert entry.cells == {"image": "a.jpg", "up": "0.5"}


def test_extra_cells_make_a_bad_row_and_missing_cells_are_blank(tmp_path: Path) -> None:
    """An unquoted comma must not move a value into another column."""
    long, short = read_entries(tmp_path / "m.csv", "image,up,prompt\na.jpg,1,sun, and sea\nb.jpg\n")
    assert long.error is not None
    assert "4 cells" in long.error
    assert (short.error, short.cells) == (None, {"image": "b.jpg"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,apsect\n", "did you mean aspect?"),
        ("image,frobnicate\n", "the columns are image, aspect"),
        ("picture,up\n", "image .or file, path, photo. must be one of them"),
        ("image,up,up\n", "two columns named up"),
        ("", "must be one of them"),
        ("photo,file\n", "unknown column 'photo'|two columns"),
        ("# only a comment\n", "must be one of them"),
    ],
)
def test_an_invalid_header_stops_the_run(tmp_path: Path, text: str, message: str) -> None:
    """A misspelled column stops the run, because its parameter would be missing from every paid task."""
    with pytest.raises(NothingDone, match=message.replace("mean aspect?", r"mean aspect\?")):
        read_entries(tmp_path / "m.csv", text)


def test_columns_with_an_underscore_are_ignored() -> None:
    """Columns with an underscore are ignored, and so is the nameless last column of a spreadsheet."""
    assert unknown(["image", "_id", ""]) is None
    assert unknown([*COLUMNS]) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"image": "a", "apsect": 1}', "aspect"),
        ("[" * 9999, ""),
    ],
)
def test_an_invalid_json_line_is_a_bad_row(tmp_path: Path, line: str, message: str) -> None:
    """A line that is not a JSON object is a bad row, and the next line is still read."""
    bad, good = read_entries(tmp_path / "m.jsonl", f'\n{line}\n\n{{"image": "b.jpg"}}\n')
    assert (bad.line, message in (bad.error or "")) == (2, True)
    assert (good.line, good.cells, good.error) == (4, {"image": "b.jpg"}, None)


@given(
    st.dictionaries(st.sampled_from(COLUMNS), st.text(max_size=20) | st.floats(allow_nan=False) | st.none())
)
def test_any_text_in_a_json_line_is_read_unchanged(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object]
) -> None:
    """Any text in a JSON line is read back unchanged."""
    path = tmp_path_factory.mktemp("manifest") / "m.ndjson"
    (entry,) = read_entries(path, json.dumps(fields) + "\n")
    assert (entry.cells, entry.error) == (fields, None)


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_an_unreadable_manifest_is_an_error(tmp_path: Path, name: str) -> None:
    """A missing file and text in another encoding raise `NothingDone`."""
    path = tmp_path / name
    with pytest.raises(NothingDone, match="cannot be read"):
        list(read_manifest([str(path)]).entries())
    path.write_bytes(b"image\n{}\n\xff\xfe.jpg\n")
    with pytest.raises(NothingDone, match="must be UTF-8"):
        list(read_manifest([str(path)]).entries())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('a.jpg,"sun\nb.jpg,x\n', "line 3: a quoted cell of this row does not end"),
        ('\na.jpg,x\n\nb.jpg,"' + "a" * 200_000, "line 6: a quoted cell of this row does not end"),
        ('a.jpg,"sun"set\n', "line 3: .* write a quote inside a quoted cell twice"),
    ],
)
def test_an_unclosed_quote_is_an_error_with_its_line(tmp_path: Path, rows: str, message: str) -> None:
    """An unclosed quote would combine all later rows into one prompt."""
    with pytest.raises(NothingDone, match=message):
        read_entries(tmp_path / "m.csv", f"# photos\nimage,prompt\n{rows}")


@pytest.mark.parametrize(
    ("cell", "warned"),
    [
        ("sun\nb.jpg,rain", True),
        ("sun\nb.jpg", True),
        ("sun\nrain, wind", True),
        ("sun\nand rain", False),
        ("sun, rain", False),
    ],
)
def test_a_cell_that_seems_to_contain_rows_causes_a_warning(
    tmp_path: Path, cell: str, *, warned: bool
) -> None:
    """A missing quote may hide the rows before the next quote in a cell. The format allows this."""
    (entry,) = read_entries(tmp_path / "m.csv", f'image,prompt\na.jpg,"{cell}"\n')
    assert entry.cells["prompt"] == cell
    assert (entry.warning is not None) is warned
    assert entry.error is None


def test_a_sep_line_names_the_delimiter(tmp_path: Path) -> None:
    """The line `sep=;` names the delimiter and is not the header."""
    (entry,) = read_entries(
        tmp_path / "m.csv", "sep=;\r\nimage;prompt,\r\na.jpg;x\r\n".replace("prompt,", "prompt")
    )
    assert (entry.line, entry.cells) == (3, {"image": "a.jpg", "prompt": "x"})


def test_comments_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    """Comments and blank lines count for line numbers. Within a quoted cell they are text."""
    text = '# a\n\nimage,prompt\n# b\na.jpg,"x\n# y\n\nz"\n  \n\t# c\nb.jpg,\n'
    first, second = read_entries(tmp_path / "m.csv", text)
    assert (first.line, first.cells["prompt"]) == (5, "x\n# y\n\nz")
    assert (second.line, second.cells["image"]) == (11, "b.jpg")


@pytest.mark.parametrize("column", IMAGE_COLUMNS)
def test_the_image_column_has_several_names(tmp_path: Path, column: str) -> None:
    """Tables of other programs call the column file, path or photo."""
    (entry,) = read_entries(tmp_path / "m.csv", f"{column.title()},up\na.jpg,1\n")
    assert entry.cells == {"image": "a.jpg", "up": "1"}
    (entry,) = read_entries(tmp_path / "m.jsonl", json.dumps({column: "a.jpg"}))
    assert (entry.cells, entry.error) == ({"image": "a.jpg"}, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "image\nböse.jpg\n".encode("cp1252"),
            "got another encoding, perhaps WINDOWS-1252.*iconv -f WINDOWS-1252",
        ),
        (codecs.BOM_UTF16_LE + "image\na.jpg\n".encode("utf-16-le"), "got UTF-16.*iconv -f UTF-16 -t UTF-8"),
        (b"PK\x03\x04\xff\xfe", "got an Excel workbook; in Excel, save it as"),
    ],
)
def test_a_wrong_encoding_is_named_with_the_command_that_converts_it(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """The message says which encoding the file seems to have, and which command converts it."""
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(NothingDone, match=f"must be UTF-8 text, {message}"):
        list(read_manifest([str(tmp_path / "m.csv")]).entries())


def test_the_printed_example_is_a_valid_manifest(tmp_path: Path) -> None:
    """Each row of the printed example can be sent if its photo exists."""
    (tmp_path / "m.csv").write_text(EXAMPLE)
    rows = list(read_manifest([str(tmp_path / "m.csv")]).rows(Defaults(GeometryOptions())))
    assert [row.error for row in rows] == [None, None]
    assert [row.names[0] for row in rows] == ["photos/beach", "cat-square"]
