"""Pictures that are only read are in memory if they are small, and leave nothing behind."""

import tempfile
from pathlib import Path

import pytest

from kling_expand.downloads.spooled import SPOOLED_BYTES, SpooledPicture


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory for temporary files, which is empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("size", [1000, SPOOLED_BYTES + 1])
def test_written_bytes_are_read_back_in_chunks(folder: Path, size: int) -> None:
    """A small and a large picture are read back unchanged, and no named file is created."""
    part = SpooledPicture()
    part.create()
    content = PNG + bytes(range(256)) * (size // 256)
    part.write(content)
    part.flush()
    assert [*folder.iterdir()] == []
    for _ in range(2):
        part.rewind()
        pieces = [part.read(1 << 20) for _ in range(size // (1 << 20) + 1)]
        assert b"".join(pieces) == content
        assert part.read(1) == b""
    part.discard()
    assert [*folder.iterdir()] == []


def test_a_restart_discards_earlier_bytes() -> None:
    """After a restart, the bytes from before are not read."""
    part = SpooledPicture()
    part.create()
    part.write(PNG + b"the first answer")
    part.flush()
    part.restart()
    part.write(PNG + b"the next")
    part.flush()
    part.rewind()
    assert part.read(100) == PNG + b"the next"
    part.discard()


def test_discarding_before_the_start_removes_nothing(folder: Path) -> None:
    """Discarding a picture that was never created does not remove the directory."""
    SpooledPicture().discard()
    assert folder.exists()
