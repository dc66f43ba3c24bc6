"""Pictures that are downloaded for reading and never saved."""

import tempfile
from pathlib import Path

from .files import PartialFile

SPOOLED_BYTES = 8 << 20  # a larger picture moves from memory to a temporary file
CHUNK_BYTES = 256 << 10  # bytes per read


class SpooledPicture(PartialFile):
    """A picture that is downloaded for reading, into memory or, if it is large, into a temporary file."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.gettempdir()))

    def create(self) -> None:
        """Create the file, which has no name."""
        self._file = tempfile.SpooledTemporaryFile(SPOOLED_BYTES)  # noqa: SIM115 - `discard` closes it

    def read(self, size: int) -> bytes:
        """Return the next *size* bytes of the complete file, or fewer at its end."""
        chunk: bytes = self._file.read(size)
        return chunk

    def rewind(self) -> None:
        """Make `read` start again at the first byte."""
        self._file.seek(0)

    def discard(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
