"""Manifests: photos found by directories and patterns, and the requests of rows."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, fields

from kling_expand import ExpandRequest, Ratios, ToAspect, ToSize, Towards
from kling_expand.cli.batch.manifest import (
    Defaults,
    FoundPhotos,
    Manifest,
    Row,
    Selection,
    path_key,
    read_manifest,
    relative_folder,
)
from kling_expand.cli.batch.tables import Entry
from kling_expand.cli.options import GeometryOptions
from kling_expand.cli.terminal import NothingDone
from kling_expand.models import request_fields


def touch(folder: Path, *names: str) -> None:
    """Create empty files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def find_photos(*words: object, **selection: Any) -> FoundPhotos:
    """Return the photos that these words of the command line name."""
    return read_manifest([str(word) for word in words], Selection(**selection)).found


def list_photos(*words: object, **selection: Any) -> list[tuple[str, str]]:
    """Return the directory and the name of each photo that is found."""
    return [(photo.folder, Path(photo.path).name) for photo in find_photos(*words, **selection).photos]


def test_a_directory_is_searched_recursively(tmp_path: Path) -> None:
    """Photos keep their subdirectories and are sorted. Files that are left out are counted by kind."""
    touch(tmp_path, "b.JPG", "a.png", ".c.png", "d.txt", "2024/May/e.jpeg", "2024/f.jfif", "2024/g.JPE")
    assert list_photos(tmp_path) == [
        ("", "a.png"),
        ("", "b.JPG"),
        ("2024", "f.jfif"),
        ("2024", "g.JPE"),
        ("2024/May", "e.jpeg"),
    ]
    assert find_photos(tmp_path).facts() == {"hidden": 1, "other_files": 1}
    assert list_photos(tmp_path, recursive=False) == [("", "a.png"), ("", "b.JPG")]
    assert list(find_photos(tmp_path, recursive=False).lines()) == [
        "1 hidden file or directory left out",
        "1 other file left out (1 .txt)",
        "1 subdirectory left out; --no-recursive was given",
    ]


def test_other_formats_are_found_only_with_fit(tmp_path: Path) -> None:
    """Without `fit` they are counted on one line with a hint. With `fit` each of them is found."""
    names = ["a.HEIC", "b.heif", "c.webp", "d.avif", "e.tif", "f.TIFF", "g.bmp", "h.gif", "i.jpg"]
    touch(tmp_path, *names)
    assert list_photos(tmp_path) == [("", "i.jpg")]
    (line,) = find_photos(tmp_path).lines()
    assert line.startswith("8 photos in other formats left out (2 HEIC, 2 TIFF, ")
    assert line.endswith("; --fit converts them")
    assert list_photos(tmp_path, fit=True) == [("", name) for name in sorted(names)]


def test_exclude_patterns_leave_out_photos(tmp_path: Path) -> None:
    """A pattern of `exclude` matches the name or the path of a file, or a whole directory."""
    touch(tmp_path, "a.jpg", "a-small.jpg", "raw/b.jpg", "raw/deep/c.jpg", "x/raw.jpg", "x/d.jpg")
    selection = {"exclude": ("*-small.jpg", "raw/", "x/d*")}
    assert list_photos(tmp_path, **selection) == [("", "a.jpg"), ("x", "raw.jpg")]
    assert find_photos(tmp_path, **selection).facts() == {"excluded": 4}


def test_photos_in_the_output_directory_are_left_out(tmp_path: Path) -> None:
    """Photos in an output directory below the named one are left out, and its other files are not counted."""
    touch(tmp_path, "a.jpg", "out/a-0.png", "out/2024/b-0.png", "out/note.txt")
    for words in ([tmp_path], [f"{tmp_path}/**/*.*"], [tmp_path / "a.jpg", tmp_path / "out"]):
        result = find_photos(*words, output=str(tmp_path / "out"))
        assert [Path(photo.path).name for photo in result.photos] == ["a.jpg"]
        assert result.facts() == {"results": 2}
    assert len(list_photos(tmp_path / "out", output=str(tmp_path / "out"))) == 2


def test_results_of_a_journal_are_left_out(tmp_path: Path) -> None:
    """Results next to the photos are left out, even if a link leads to their directory."""
    touch(tmp_path, "a.jpg", "a-0.png")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    result = find_photos(tmp_path / "link")
    result.remove_results({path_key(str(tmp_path / "a-0.png"))})
    assert [Path(photo.path).name for photo in result.photos] == ["a.jpg"]
    assert list(result.lines()) == [
        "1 result of earlier runs left out; to expand one, make a copy of it",
    ]


def test_a_journal_in_a_directory_is_found(tmp_path: Path) -> None:
    """The package's own hidden files are not counted, and the journals among them are found."""
    touch(tmp_path, "a.jpg", "b/.kling-expand.db", "b/.kling-expand.db-wal", "b/.kling-0123.part", "b/c.jpg")
    result = find_photos(tmp_path)
    assert result.journals == {str(tmp_path / "b/.kling-expand.db")}
    assert result.facts() == {}


def test_a_cycle_of_links_is_visited_once(tmp_path: Path) -> None:
    """A directory is visited once, however many links lead to it, and a photo is found once."""
    touch(tmp_path, "a/b.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert list_photos(tmp_path) == [("a", "b.jpg")]
    assert list_photos(tmp_path / "a" / "b.jpg", tmp_path / "a" / "up" / "a" / "b.jpg") == [("", "b.jpg")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every directory")
def test_an_unreadable_directory_is_counted(tmp_path: Path) -> None:
    """An unreadable directory is counted, and the other directories are read."""
    touch(tmp_path, "a/b.jpg", "c/d.jpg")
    (tmp_path / "a").chmod(0)
    assert find_photos(tmp_path).facts() == {"closed_folders": 1}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*.jpeg", [("deep", "e.jpeg")]),
        ("*.bmp", []),
        ("*", [("", "a.png"), ("deep", "e.jpeg"), ("trip [1]", "f.jpg")]),
        ("trip [1]/*.jpg", [("", "f.jpg")]),
        ("trip [[]1]/*.jpg", [("trip [1]", "f.jpg")]),
        ("t* [1]/[a-f].jpg", [("trip [1]", "f.jpg")]),
    ],
)
def test_patterns_also_match_names_with_brackets(
    tmp_path: Path, pattern: str, names: list[tuple[str, str]]
) -> None:
    """A photo keeps its directories from the first part of the pattern with a wildcard."""
    touch(tmp_path, "a.png", "deep/e.jpeg", "trip [1]/f.jpg")
    assert list_photos(f"{tmp_path}/{pattern}") == names


def test_sources_may_be_files_directories_and_urls(tmp_path: Path) -> None:
    """A shell expands `photos/*` to other files too, which are counted. A missing file is a bad row."""
    touch(tmp_path, "a.jpg", "b.txt", "c/d.jpg", "e.HEIC")
    words = [*sorted(map(str, tmp_path.iterdir())), "gone.jpg", "https://x.org/b"]
    result = read_manifest(words)
    assert [(photo.path.rpartition("/")[2], photo.folder) for photo in result.found.photos] == [
        ("a.jpg", ""),
        ("d.jpg", "c"),
        ("gone.jpg", ""),
        ("b", ""),
    ]
    assert result.found.facts() == {"other_files": 1, "needs_fit": 1}


def test_expand_accepts_files_with_any_suffix(tmp_path: Path) -> None:
    """`expand` judges a file by its content, and reads no manifest."""
    touch(tmp_path, "photo", "m.csv", "e.HEIC")
    assert [name for _, name in list_photos(*tmp_path.iterdir(), named=True)] == [
        path.name for path in tmp_path.iterdir()
    ]


@pytest.mark.parametrize("words", [["a.jpg", "m.csv"], ["-", "a.jpg"]])
def test_a_manifest_cannot_be_combined_with_photos(words: list[str]) -> None:
    """A manifest cannot be combined with photos."""
    with pytest.raises(NothingDone, match=r"a manifest must be the only SOURCE"):
        read_manifest(words)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a.jpg\n\n2024/b.jpg\n", [("line", "a"), ("line", "2024/b")]),
        ("a\n.jpg\0b.jpg\0", [("line", "a\n"), ("line", "b")]),
        ('{"image": "a.jpg", "n": 2}\n{"photo": "x/b.jpg"}\n', [("line", "a"), ("line", "x/b")]),
        ("\ufeffa.jpg\r\n", [("line", "a")]),
    ],
)
def test_photos_are_read_from_stdin(
    monkeypatch: pytest.MonkeyPatch, text: str, rows: list[tuple[str, str]]
) -> None:
    """Stdin has JSON Lines, or photos on lines or separated by NUL. They can be iterated repeatedly."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    result = read_manifest(["-"])
    for _ in range(2):
        made = list(result.rows(Defaults(GeometryOptions(up=0.5))))
        assert [row.error for row in made] == [None] * len(rows)
        assert [row.names[0] for row in made] == [name for _, name in rows]


@pytest.mark.parametrize(
    ("photo", "folder"),
    [
        ("a.jpg", ""),
        ("./a.jpg", ""),
        ("x/y/a.jpg", "x/y"),
        ("x/../y/a.jpg", "y"),
        ("../x/a.jpg", ""),
        ("/x/a.jpg", ""),
        ("https://x.org/y/a.jpg", ""),
    ],
)
def test_the_output_keeps_the_directories_of_relative_paths(photo: str, folder: str) -> None:
    """Absolute paths, and paths that lead upwards, have no directory in the output."""
    assert relative_folder(photo) == folder


# ------------------------------------------------------------------------ rows

TABLE = Manifest("jobs/m.csv", "table")


def row(cells: dict[str, Any], **geometry: Any) -> Row:
    """Return a row of a table in the directory `jobs`, with options as defaults."""
    defaults = Defaults(GeometryOptions(**geometry), {"prompt": "a park", "n": 2, "watermark": True})
    (made,) = rows_of(TABLE, [{"image": "a.jpg"} | cells], defaults)
    return made


def rows_of(source: Manifest, rows: list[dict[str, Any]], defaults: Defaults) -> list[Row]:
    """Return rows with these cells."""

    class GivenRows(Manifest):
        def entries(self) -> Iterator[Entry]:
            return (Entry(line, cells) for line, cells in enumerate(rows, 7))

    return list(GivenRows(source.name, source.kind).rows(defaults))


def request(fields: dict[str, Any], **geometry: Any) -> ExpandRequest:
    """Return the request of a row with these cells."""
    made = row(fields, **geometry)
    assert made.request is not None, made.error
    return made.request


def test_options_apply_where_cells_are_blank() -> None:
    """For blank cells and null, the options of the command apply. Ignored columns change nothing."""
    made = request({"up": "", "prompt": None, "_id": 5}, aspect="16:9", area=2.0)
    assert made == ExpandRequest("jobs/a.jpg", ToAspect("16:9", area=2.0), "a park", n=2, watermark=True)


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
def test_the_geometry_of_a_row_replaces_that_of_the_options(fields: dict[str, Any], geometry: object) -> None:
    """A row's way to expand replaces the options' way. Only options that refine it still apply."""
    assert request(fields, aspect="16:9", area=2.0, anchor="top").geometry == geometry


def test_cells_of_a_table_are_parsed() -> None:
    """Numbers, booleans and names are read from the text of a table."""
    fields = {"up": "1", "prompt": "sea", "n": "3", "watermark": "no", "key": "k", "name": "wide"}
    made = row({"image": "https://x.org/a.jpg"} | fields)
    assert made.request == ExpandRequest("https://x.org/a.jpg", Ratios(up=1), "sea", n=3, key="k")
    assert (made.names[0], made.label) == ("wide", "line 7 (https://x.org/a.jpg)")


@pytest.mark.parametrize(
    ("fields", "message"),
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
        ({"up": 1, "image": "\ud800.jpg"}, "image must be valid Unicode"),
        ({"up": 1, "prompt": "x" * 2501}, "at most 2500"),
    ],
)
def test_a_bad_row_has_a_reason(fields: dict[str, Any], message: str) -> None:
    """The reason names columns rather than options, and the row has its line number."""
    made = row(fields)
    assert made.request is None
    assert message in (made.error or "")
    assert "--" not in (made.error or "")
    assert made.line == 7


def test_relative_paths_start_at_the_manifest() -> None:
    """Relative paths begin in the manifest's directory, and absolute paths are unchanged."""
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
    """Otherwise a manifest could not set a field, and no error would say so."""
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
    (row,) = read_manifest([str(path)]).rows(Defaults())
    assert row.error is None
    assert row.request == wanted


def test_the_names_of_a_result_end_with_a_unique_one() -> None:
    """The photo's name comes first, then a name with its directory, then one that no other row can have."""
    names = {row({"image": image, "up": 1}).names for image in ("x/a.jpg", "y/a.jpg", "x/a.png")}
    assert {each[:2] for each in names} == {("x/a", "x/x-a"), ("y/a", "y/y-a")}
    assert len({each[-1] for each in names}) == 3
    assert row({"image": "x/a.jpg", "up": 1}).names != row({"image": "x/a.jpg", "up": 0.5}).names
    assert row({"image": "x/a.jpg", "up": 1, "name": "wide"}).names[0] == "wide"


TWO_SHAPES = Defaults(
    GeometryOptions(aspect="16:9"), other_geometries=(GeometryOptions(aspect="1:1"),), passes=2
)


def test_each_shape_is_a_row() -> None:
    """A row without a geometry of its own becomes a row for each shape, and these share the photo."""
    made = rows_of(TABLE, [{"image": "a.jpg"}, {"image": "b.jpg", "up": 0.5, "passes": "3"}], TWO_SHAPES)
    assert [(row.id, row.names[0], row.passes) for row in made] == [
        ((7, "16x9"), "a-16x9", 2),
        ((7, "1x1"), "a-1x1", 2),
        ((8, "up0.5"), "b-up0.5", 3),
    ]
    first, second, other = (row.request.image for row in made if row.request)
    assert first is second
    assert (str(first), other) == ("jobs/a.jpg", "jobs/b.jpg")
    in_path = evolve(TWO_SHAPES, output="{shape}/{name}{ext}")
    assert [row.names[0] for row in rows_of(TABLE, [{"image": "a.jpg"}], in_path)] == ["a", "a"]
    (bad,) = rows_of(TABLE, [{"image": "a.jpg", "passes": "9", "up": 1}], TWO_SHAPES)
    assert bad.error == "passes must be between 1 and 4, got '9'"
