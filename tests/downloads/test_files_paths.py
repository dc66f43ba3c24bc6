"""Paths of results stay in their directory, are distinct, and are valid on every operating system."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.downloads.files import FIELDS, SaveOptions, output_paths, safe_name, source_folder
from kling_expand.errors import InvalidRequest
from kling_expand.models import Image, Task

ID = "930810057590833241"
DOG = SaveOptions(name="dog")


def task(
    n: int = 1, external: str | None = "mine-1", watermark: str | None = None, task_id: str = ID
) -> Task:
    images = tuple(Image(index, f"http://h/{index}", watermark) for index in range(n))
    return Task(task_id, "succeed", external_task_id=external, images=images)


NASTY = (
    *("..", ".", "", "/", "../../etc/passwd", "a\0b", "C:\\x", ".ssh", "x. .", "a:b", "~", "  ", "-rf"),
    *("CON", "con.txt", "lpt1 .x", "COM\u00b9", "nul", "{name}", "%2e%2e", "\ud800", "\u202egpj"),
    *("é" * 300, "a" * 300, "x" * 99 + "."),
)
hostile = st.text() | st.sampled_from(NASTY)


@given(hostile)
def test_a_safe_name_is_one_path_segment(text: str) -> None:
    """No id becomes a separator, a dot name, a hidden file or a name that is too long."""
    name = safe_name(text)
    assert (name,) == PurePosixPath(name).parts == PureWindowsPath(name).parts
    assert name not in {"", ".", ".."}
    assert not name.startswith(".")
    assert name.rstrip(" .") == name
    assert name.isprintable()
    assert len(name.encode()) <= 120


@given(hostile)
def test_a_safe_name_is_no_windows_device(text: str) -> None:
    """No name is that of a Windows device, such as `con.png`, which is the console."""
    device = safe_name(text).split(".", maxsplit=1)[0].rstrip().upper()
    assert device not in {"CON", "PRN", "AUX", "NUL", "COM1", "COM\u00b9", "LPT9"}


@given(hostile, hostile)
def test_different_names_stay_different(one: str, other: str) -> None:
    """Different names stay different, so that no result replaces another."""
    assert (safe_name(one) == safe_name(other)) == (one == other)


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_ -]{0,60}[A-Za-z0-9_]", fullmatch=True))
def test_a_valid_name_is_not_changed(text: str) -> None:
    """A valid name, such as `summer dog`, is not changed."""
    assert safe_name(text) in {text, safe_name(f"_{text}")[1:]}


@given(hostile, hostile, hostile, st.sampled_from(sorted(FIELDS - {"index", "ext"})))
def test_no_id_leads_out_of_the_directory(name: str, task_id: str, external: str, field: str) -> None:
    """With any ids, paths stay below a target directory or the literal directories of a template."""
    one = task(task_id=task_id, external=external)
    assert output_paths(one, "out", SaveOptions(name=name.replace("/", ""))).path(0, ".png").parent == Path(
        "out"
    )
    path = output_paths(one, "out", SaveOptions(name=name)).path(0, ".png")
    assert (path.parts[0], ".." in path.parts) == ("out", False)
    assert output_paths(one, f"../a/{{{field}}}/x{{ext}}", SaveOptions(name=name)).path(0, ".png").parts[
        :2
    ] == ("..", "a")
    assert (
        output_paths(one, f"../a/{{{field}}}/x{{ext}}", SaveOptions(name=name)).path(0, ".png").name
        == "x.png"
    )


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (".", "dog-0.png"),
        ("", "dog-0.png"),
        ("out", "out/dog-0.png"),
        ("out/", "out/dog-0.png"),
        (Path("out"), "out/dog-0.png"),
        ("out.d", "out.d/dog-0.png"),
        ("../up", "../up/dog-0.png"),
        ("a.png", "a.png"),
        ("out/A.JPEG", "out/A.JPEG"),
        ("a.png/", "a.png/dog-0.png"),
        ("{{x}}", "{x}/dog-0.png"),
        ("{{x}}/a.png", "{x}/a.png"),
        ("out/{task_id}/", f"out/{ID}/dog-0.png"),
        ("out/{task_id}-{index}{ext}", f"out/{ID}-0.png"),
        ("{external_task_id}/{name}.{index:03}{ext}", "mine-1/dog.000.png"),
        ("{name}", "dog"),
    ],
)
def test_a_target_is_a_directory_a_path_or_a_template(target: str | os.PathLike[str], expected: str) -> None:
    """A target is a directory, the path of a picture, or a template."""
    assert output_paths(task(), target, DOG).path(0, ".png") == Path(expected)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("out", "out/2024/May/dog-0.png"),
        ("out/{name}{ext}", "out/dog.png"),
        ("{path}/{name}-wide{ext}", "2024/May/dog-wide.png"),
        ("{folder}/{name}{ext}", "May/dog.png"),
        ("a.png", "a.png"),
    ],
)
def test_a_name_may_contain_directories(target: str, expected: str) -> None:
    """The directories of a name are recreated below a target directory, and are a field of a template."""
    assert output_paths(task(), target, SaveOptions(name="2024/May/dog")).path(0, ".png") == Path(expected)
    assert output_paths(task(), "out/{path}/{name}{ext}", DOG).path(0, ".png") == Path("out/dog.png")


def test_an_existing_directory_may_have_any_name(tmp_path: Path) -> None:
    """An existing directory is recognized even if its name ends like a picture's."""
    (tmp_path / "holiday.png").mkdir()
    assert (
        output_paths(task(), tmp_path / "holiday.png", SaveOptions(name="x")).path(0, ".png")
        == tmp_path / "holiday.png" / "x-0.png"
    )


def test_without_a_name_the_task_id_is_used() -> None:
    """Without a name and an external id, pictures are named after the `task_id`."""
    bare = task(external=None)
    assert (
        output_paths(bare, ".").path(0, ".jpg")
        == output_paths(bare, ".", SaveOptions(name="")).path(0, ".jpg")
        == Path(f"{ID}-0.jpg")
    )
    assert output_paths(bare, "{external_task_id}{ext}").path(0, ".jpg") == Path(f"{ID}.jpg")


@pytest.mark.parametrize(
    ("target", "ext", "expected"),
    [
        ("out", ".jpg", "out/dog-0-watermark.jpg"),
        ("a.png", ".jpg", "a-watermark.png"),
        ("v1.5/{name}", ".jpg", "v1.5/dog-watermark"),
        ("{index}.v2", ".png", "0.v2-watermark"),
    ],
)
def test_a_watermarked_picture_is_named_after_the_plain_one(target: str, ext: str, expected: str) -> None:
    """A watermarked picture gets the path of the plain one, with `-watermark` before its suffix."""
    assert output_paths(task(), target, DOG).path(0, ext, watermark=True) == Path(expected)


@pytest.mark.parametrize(
    "target",
    [
        "{size}{ext}",
        "{}{ext}",
        "{0}{ext}",
        "{name.__class__}{ext}",
        "{name[0]}{ext}",
        "{name:{index}}{ext}",
        "{name",
        "name}",
        "{name!x}{ext}",
        "{name:d}{ext}",
        "{index:99999999999999999999}{ext}",
        "a\0b/{index}{ext}",
        "a\0b",
        "{ext}/{index}",
        "x" * 256 + ".png",
        "{name:300}{ext}",
        "{task_id:9999999999}{ext}",  # would fill the memory
        "{name:.256}{ext}",
        "{name:>300}/x-{index}{ext}\0",
    ],
)
def test_an_invalid_target_is_refused(target: str) -> None:
    """Every invalid target raises an error that names it."""
    with pytest.raises(InvalidRequest, match="target"):
        output_paths(task(), target, DOG)


@pytest.mark.parametrize("target", ["a.png", "{name}{ext}", "{name}/{task_id}", "{index:.0}{ext}"])
def test_two_images_need_two_names(target: str) -> None:
    """A target that gives two images the same path is refused."""
    with pytest.raises(InvalidRequest):
        output_paths(task(2), target, DOG)


def test_a_plain_and_a_watermarked_picture_need_two_names() -> None:
    """A target is also refused if a plain and a watermarked picture share a path."""
    with pytest.raises(InvalidRequest, match="share"):
        output_paths(task(2, watermark="http://h/w"), "x{index:->1}/../x{ext}")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_every_image_has_a_path_of_its_own(indexes: list[int]) -> None:
    """Every image has its own path, whatever indexes the service sends."""
    images = tuple(Image(index, "http://h/x") for index in sorted(indexes))
    found = output_paths(Task(ID, "succeed", images=images), "out")
    assert len({found.path(place, ".png") for place in range(len(images))}) == len(images)


def test_a_template_may_use_key_and_folder() -> None:
    """`{key}` and `{folder}` are made valid, and have a value even if the request has none."""
    options = SaveOptions(name="dog", key="a/b", folder="monday")
    template = "out/{folder}/{key}-{index}{ext}"
    assert output_paths(task(), template, options).path(0, ".png") == Path(
        f"out/monday/{safe_name('a/b')}-0.png"
    )
    assert output_paths(task(), template, DOG).path(0, ".png") == Path("out/dog-0.png")
    assert output_paths(task(), "{folder}/{name}{ext}", DOG).path(0, ".png") == Path("dog.png")
    assert output_paths(task(), "out", options).path(0, ".png") == Path("out/dog-0.png")


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("monday/dog.png", "monday"),
        (Path("/photos/monday/dog.png"), "monday"),
        ("https://h/a/monday/dog.png", "monday"),
        ("https://pictures.example/dog.png", "pictures.example"),
        ("data:image/png;base64,a/b", None),
        (b"bytes", None),
        ("/dog.png", None),
        (None, None),
    ],
)
def test_the_folder_of_a_photo_is_its_last_directory(source: Any, folder: str | None) -> None:
    """The folder is the last directory of a path or URL, or None."""
    assert source_folder(source) == folder


def test_a_leading_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` is the home directory at the beginning of a target, but an ordinary character in a name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_paths(task(), "~/out", DOG).path(0, ".png") == tmp_path / "out" / "dog-0.png"
    assert output_paths(task(), Path("~"), DOG).path(0, ".png") == tmp_path / "dog-0.png"
    assert output_paths(task(), "{name}{ext}", SaveOptions(name="~")).path(0, ".png") == Path("~.png")


@pytest.mark.parametrize(
    "target", ["s3://bucket/out/", "gs://b/{name}{ext}", "https://h/x.png", "memory://x"]
)
def test_a_url_is_refused_as_a_target(target: str) -> None:
    """A URL is refused, and the error names `upload`. No directory named `s3:` is created."""
    with pytest.raises(InvalidRequest, match=r"must be a path on this machine.*upload"):
        output_paths(task(), target)
