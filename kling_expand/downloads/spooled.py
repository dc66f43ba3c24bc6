"""Pictures that the program reads and never saves."""

import tempfile
from pathlib import Path

from .files import PartialFile

SPOOLED_BYTES = 8 << 20  # of a picture that is kept in memory, before a temporary file takes it
CHUNK_BYTES = 256 << 10  # read at once


class SpooledPicture(PartialFile):
    """A picture that is read and never saved. It is in memory, or in a temporary file if it is large."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.gettempdir()))

    def create(self) -> None:
        """Create the file without a name."""
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
