"""Partial files: a picture is recognized and verified, and is never left incomplete."""

import asyncio
import io
import os
import random
import secrets
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from kling_expand.downloads.files import (
    HEAD,
    TAIL,
    Destination,
    PartialFile,
    RetryLater,
    all_ended,
    extension,
    is_complete,
    output_paths,
    strong_validator,
)
from kling_expand.errors import DownloadError
from kling_expand.models import Image, Task

NOW = "Wed, 21 Oct 2026 07:28:00 GMT"


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Pillow.frombytes("RGB", (20, 20), random.Random(0).randbytes(1200)).save(out, kind)
    return out.getvalue()


KINDS = {".png": picture("PNG"), ".jpg": picture("JPEG"), ".webp": picture("WEBP")}


@pytest.mark.parametrize("ext", KINDS)
def test_a_picture_is_recognized_by_its_first_bytes(ext: str) -> None:
    """The first bytes decide about the format, and not a header or a name."""
    assert extension(KINDS[ext][:HEAD]) == ext


@given(
    st.binary().filter(lambda head: head[:1] not in {b"\x89", b"\xff", b"R"})
    | st.sampled_from([b"<html>", b"GIF89a", b"RIFF1234WAVE", b"\x89PNG\r\n\x1a", b"\xff\xd8"])
)
def test_other_data_is_not_recognized(head: bytes) -> None:
    """HTML, sound, noise and too few bytes are not recognized as pictures."""
    assert extension(head) == ""
    assert not is_complete(head[:HEAD], head[-TAIL:], len(head))


@pytest.mark.parametrize("ext", KINDS)
def test_every_truncation_is_detected(ext: str) -> None:
    """No truncated picture counts as complete. A complete one does, even with padding after it."""
    body = KINDS[ext]
    for size in range(len(body)):
        cut = body[:size]
        assert not is_complete(cut[:HEAD], cut[-TAIL:], size)
    for padded in (body, body + b"\0", body + b"\n" * 500):
        assert is_complete(padded[:HEAD], padded[-TAIL:], len(padded))


@pytest.mark.parametrize("ext", KINDS)
@given(data=st.data())
def test_chunks_do_not_matter(ext: str, data: st.DataObject) -> None:
    """A picture is recognized however its bytes are divided into chunks."""
    body = KINDS[ext]
    part = PartialFile(Path())
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=20).map(sorted))
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        part.write(body[start:end])
    part.verify()
    assert (part.ext, part.size, part.buffered) == (ext, len(body), len(body))


def test_other_data_is_refused_at_once() -> None:
    """Other data is refused after its first bytes, before a long page is written to the disk."""
    part = PartialFile(Path())
    part.write(b"<!doctype h"[: HEAD - 1])
    with pytest.raises(RetryLater, match="not a picture"):
        part.write(b"t")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"ETag": '"a"'}, '"a"'),
        ({"ETag": '""'}, '""'),
        ({"ETag": 'W/"a"'}, None),
        ({"ETag": "a"}, None),
        ({"ETag": '"a"b"'}, None),
        ({"ETag": '"a\udce9"'}, None),
        ({"Last-Modified": "Wed, 21 Oct 2026 07:27:00 GMT", "Date": NOW}, "Wed, 21 Oct 2026 07:27:00 GMT"),
        ({"Last-Modified": "Wed, 21 Oct 2026 07:27:01 GMT", "Date": NOW}, None),
        ({"Last-Modified": "Wed, 21 Oct 2026 07:27:00 GMT"}, None),
        (
            {"Last-Modified": "Wed, 21 Oct 2026 07:27:00 -0000", "Date": NOW},
            "Wed, 21 Oct 2026 07:27:00 -0000",
        ),
        ({}, None),
    ],
)
def test_only_a_strong_tag_or_an_old_date_is_a_validator(
    headers: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a strong entity tag or an old modification date is a validator."""
    monkeypatch.setenv("TZ", "UTC")
    assert strong_validator(headers) == expected


DATES = st.text() | st.from_regex(
    r"[A-Z][a-z]{2}, [0-9]{1,2} [A-Z][a-z]{2} [0-9]{1,5} [0-9:]{8} (GMT|[+-][0-9]{4})"
)


@given(st.dictionaries(st.sampled_from(["ETag", "Last-Modified", "Date"]), DATES))
def test_any_headers_give_a_validator_or_none(headers: dict[str, str]) -> None:
    """Any headers lead to None or to a validator that is one of their values."""
    assert strong_validator(headers) in {None, *headers.values()}


async def test_a_cancelled_write_is_waited_for(tmp_path: Path) -> None:
    """However often the caller is cancelled, it waits until the thread has ended."""
    part = PartialFile(tmp_path)
    let_go, ended = threading.Event(), threading.Event()

    def slow() -> None:
        let_go.wait()
        ended.set()

    job = asyncio.create_task(part.in_thread(slow))
    for _ in range(3):
        await asyncio.sleep(0)
        job.cancel()
        await asyncio.sleep(0)
        assert not job.done()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert ended.is_set()


async def test_a_cancelled_write_that_fails_is_still_cancelled(tmp_path: Path) -> None:
    """The error of the file system is dropped, and asyncio does not log it."""
    part = PartialFile(tmp_path)
    let_go = threading.Event()

    def fails() -> None:
        let_go.wait()
        raise OSError(28, "No space left on device")

    job = asyncio.create_task(part.in_thread(fails))
    await asyncio.sleep(0)
    job.cancel()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_an_error_of_the_disk_is_raised(tmp_path: Path) -> None:
    """The error names the directory and the reason, and has the system's error as its cause."""

    def fails() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DownloadError, match="No space left on device") as caught:
        await PartialFile(tmp_path).in_thread(fails)
    assert str(tmp_path) in caught.value.message
    assert isinstance(caught.value.__cause__, OSError)


def place(target: Path, task_id: str = "1", *, tagged: bool = False, overwrite: bool = False) -> Destination:
    """Return the place of the only picture of a task."""
    task = Task(task_id, "succeed", images=(Image(0, "http://h/0"),))
    return Destination(output_paths(task, target), tagged, overwrite)


def test_discarding_a_file_that_was_never_created_is_harmless(tmp_path: Path) -> None:
    """A partial file that was never created can be discarded, and leaves nothing behind."""
    PartialFile(tmp_path).discard()
    assert [*tmp_path.iterdir()] == []


def test_a_partial_file_is_hidden_and_gone_after_commit(tmp_path: Path) -> None:
    """A partial file is hidden, and after the commit only the final file is left."""
    part = PartialFile(tmp_path / "new")
    part.create()
    part.write(KINDS[".png"])
    part.flush()
    [hidden] = (tmp_path / "new").iterdir()
    assert hidden.name.startswith(".")
    assert part.commit(place(tmp_path / "new" / "a.png"), 0) == tmp_path / "new" / "a.png"
    part.discard()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    assert (tmp_path / "new" / "a.png").read_bytes() == KINDS[".png"]


def test_a_partial_file_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the partial file's name exists, for example as a link, an error is raised."""
    monkeypatch.setattr(secrets, "token_hex", lambda _size: "known")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".kling-known.part").symlink_to(tmp_path / "precious")
    part = PartialFile(tmp_path)
    with pytest.raises(FileExistsError):
        part.create()
    part.discard()
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / ".kling-known.part").is_symlink()


def test_a_picture_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before it gets its final name, and the directory afterwards."""
    synced: list[tuple[bool, bool]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "a.png").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    part = PartialFile(tmp_path)
    part.create()
    part.write(KINDS[".png"])
    part.flush()
    part.commit(place(tmp_path / "a.png"), 0)
    assert synced == [(False, False), (True, True)]


def test_a_directory_that_cannot_be_synced_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that cannot be synced is not an error, as the picture is in place."""
    fsync = os.fsync

    def fail_for_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_directories)
    part = PartialFile(tmp_path)
    part.create()
    part.write(KINDS[".png"])
    part.flush()
    part.commit(place(tmp_path / "a.png"), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


async def test_the_first_exception_is_raised_when_every_job_has_ended() -> None:
    """The exception is the first in the order of the jobs, and no job outlives the call."""
    ended = []

    async def job(number: int, turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        ended.append(number)
        if number:
            raise ValueError(number)
        return number

    with pytest.raises(ValueError, match="1"):
        await all_ended(job(0, 9), job(1, 6), job(2, 3))
    assert ended == [2, 1, 0]
    assert await all_ended(job(0, 1), job(0, 0)) == [0, 0]
