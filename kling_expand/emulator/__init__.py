"""How is the other side of the wire had at home? `async with Emulator()` or `python -m` this.

A second set of books: it imports nothing of ours outside this folder, so that SDK and emulator can agree only
through the documented wire.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .server import Emulator

__all__ = ["Emulator"]


def __getattr__(name: str) -> Any:
    """Import the server only for those who want one; its painting processes do not."""
    if name == "Emulator":
        from .server import Emulator

        return Emulator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
