"""A local emulator of the image expansion service.

Start it with `async with Emulator()` or `python -m kling_expand.emulator`. It imports nothing from the SDK
except the check that its extra is installed, so the two share only the documented wire format.
"""

from typing import TYPE_CHECKING, Any

from kling_expand.errors import require

if TYPE_CHECKING:
    from .faults.plan import Fault
    from .server import Emulator

__all__ = ["Emulator", "Fault"]

require("emulator", "numpy", "PIL", "patchmatch")


def __getattr__(name: str) -> Any:
    """Import the server on first use, because the painting processes import this package without it."""
    if name == "Emulator":
        from .server import Emulator

        return Emulator
    if name == "Fault":
        from .faults.plan import Fault

        return Fault
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
