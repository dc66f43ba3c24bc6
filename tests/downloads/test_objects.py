"""Uploads to object stores are complete, named as on disk, and never replace another task's picture."""

import sys
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from kling_expand.downloads.files import SaveOptions, output_paths
from kling_expand.downloads.objects import Upload, open_object
from kling_expand.errors import DownloadError, InvalidRequest, MissingExtra
from kling_expand.jobs.future import ExpandResult
from kling_expand.models import Image, Task


def result(task_id: str, content: bytes) -> ExpandResult:
    """Return the result of a task with two pictures, both with this *content*."""
    task = Task(task_id, "succeed", images=(Image(0, "http://h/0"), Image(1, "http://h/1")))

    async def save(
        task: Task, target: Any, options: SaveOptions, *, deadline_at: float | None
    ) -> tuple[Path, ...]:
        assert deadline_at is None
        names = output_paths(task, target, options)
        paths = tuple(names.path(number, ".png") for number in (0, 1))
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return paths

    return ExpandResult(task, name="dog", save=save)


@pytest.fixture
def bucket() -> str:
    """Return the URL of a folder that no other test uses."""
    return f"memory://{uuid4()}/out"


def content(url: str) -> bytes:
    """Return the content of the object at *url*."""
    with fsspec.open(url, "rb") as file:
        read: bytes = file.read()
    return read


async def test_pictures_get_the_names_they_would_have_on_disk(bucket: str) -> None:
    """A folder and a template work as for `save`, and the URLs of the objects are returned."""
    assert await result("1", b"a").upload(bucket) == (f"{bucket}/dog-0.png", f"{bucket}/dog-1.png")
    template = f"{bucket}/{{task_id}}/{{index}}{{ext}}"
    urls = await result("1", b"b").upload(template)
    assert urls == (f"{bucket}/1/0.png", f"{bucket}/1/1.png")
    assert [content(url) for url in urls] == [b"b", b"b"]


async def test_no_task_replaces_the_object_of_another(bucket: str) -> None:
    """A taken name gets the task's id, a repeated upload keeps its names, and `overwrite` replaces."""
    first, second = result("1", b"a"), result("2", b"b")
    urls = await first.upload(bucket)
    others = await second.upload(bucket)
    assert others == (f"{bucket}/dog-0-2.png", f"{bucket}/dog-1-2.png")
    assert await first.upload(bucket) == urls
    assert await second.upload(bucket) == others
    assert [content(url) for url in (*urls, *others)] == [b"a", b"a", b"b", b"b"]
    assert await second.upload(bucket, overwrite=True) == urls
    assert content(urls[0]) == b"b"


async def test_file_urls_are_supported(tmp_path: Path) -> None:
    """`file://` works like an object store, and missing folders are created."""
    urls = await result("1", b"a").upload(f"file://{tmp_path}/new/out")
    assert urls == (f"file://{tmp_path}/new/out/dog-0.png", f"file://{tmp_path}/new/out/dog-1.png")
    assert (tmp_path / "new" / "out" / "dog-0.png").read_bytes() == b"a"


@pytest.mark.parametrize(
    "url",
    [
        "out/",
        "https://bucket.example/out",
        "s3://bucket/../other",
        "s3:/bucket",
        "",
        "C:\\out",
        "filecache::s3://bucket/out",
        "zip://out::file:///tmp/out.zip",
    ],
)
async def test_an_invalid_target_is_refused(url: str) -> None:
    """An invalid target is refused before the download."""
    with pytest.raises(InvalidRequest, match="must be a directory in an object store"):
        await ExpandResult(Task("1", "succeed")).upload(url)


async def test_errors_of_a_store_raise_a_download_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any error of a store, and an unknown kind of store, raises a `DownloadError` with the URL."""

    def away(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the store is away")

    monkeypatch.setattr(MemoryFileSystem, "_open", away)
    with pytest.raises(DownloadError, match=r"dog-0\.png cannot be written: the store is away"):
        await result("1", b"a").upload(bucket)
    with pytest.raises(DownloadError, match="nosuchstore"):
        await result("1", b"a").upload("nosuchstore://bucket/out")


async def test_a_failure_is_raised_once_every_upload_has_ended(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is that of the first picture, even if a later picture failed before it."""
    second_failed = Event()

    def away(_: Any, path: str, **__: Any) -> Any:
        if path.endswith("dog-0.png"):
            assert second_failed.wait(10)
            ended.append(path)
        else:
            second_failed.set()
        raise RuntimeError("the store is away")

    ended: list[str] = []
    monkeypatch.setattr(MemoryFileSystem, "_open", away)
    with pytest.raises(DownloadError, match=r"dog-0\.png cannot be written"):
        await result("1", b"a").upload(bucket)
    assert len(ended) == 1


async def test_no_error_shows_a_password() -> None:
    """No message contains the password of a URL, for a refused target or a failed upload."""
    for url in ("ftp://me:pass%2Fword@127.0.0.1:1/out", "https://me:pass@word@host/out"):
        with pytest.raises((DownloadError, InvalidRequest), match=r"://me:\*\*\*@") as caught:
            await result("1", b"a").upload(url)
        assert "word" not in str(caught.value)


async def test_without_fsspec_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is made before the download."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtra, match=r"kling-expand\[objects\]"):
        Upload("s3://bucket/out")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "local:///etc/passwd",
        "FILE:///etc/passwd",
        "zip://photo.png::http://169.254.169.254/latest",
        "reference://key::https://evil.example/references.json",
        "memory://a.png::file:///etc/passwd",
        "webhdfs://169.254.169.254/photo.png",
        "github://owner:repository@main/photo.png",
        "nosuchstore://bucket/photo.png",
    ],
)
def test_a_photo_is_read_from_an_object_store_only(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL from a queue cannot read local files, reach other hosts or run code."""
    monkeypatch.setattr(fsspec, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match=r"must be an object in a store|Protocol not known"):
        open_object(url)
