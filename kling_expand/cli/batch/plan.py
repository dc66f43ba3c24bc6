"""What does a bulk command ask for? Its manifest, what counts where rows say nothing, and where all goes."""

from collections.abc import Iterator

from attrs import frozen

from kling_expand.cli.connection import Connection

from .manifest import Manifest
from .rows import Defaults, Row, rows


@frozen(kw_only=True)
class Errand:
    """The command line of `kling-expand bulk`, read."""

    manifest: Manifest
    defaults: Defaults
    connection: Connection
    journal: str
    output: str
    jobs: int
    budget: int | None
    max_failures: int | None
    deadline: float | None
    as_json: bool

    def rows(self) -> Iterator[Row]:
        """The manifest, read once more."""
        return rows(self.manifest, self.defaults)
