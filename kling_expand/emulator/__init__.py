"""A local emulator of the image expansion service.

Start it with `async with Emulator()` or `python -m kling_expand.emulator`. It imports
nothing of the SDK, so the two can agree only through the documented wire format.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .faults.plan import Fault
    from .server import Emulator

__all__ = ["Emulator", "Fault"]


def __getattr__(name: str) -> Any:
    """Import the server on first use: the painting processes import this package without it."""
    if name == "Emulator":
        from .server import Emulator

        return Emulator
    if name == "Fault":
        from .faults.plan import Fault

        return Fault
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
