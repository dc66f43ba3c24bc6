"""A local emulator of the image expansion service.

Start it with `async with Emulator()` or `python -m kling_expand.emulator`. It imports
nothing of the SDK, so the two can agree only through the documented wire format.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .faults.plan import Fault
    from .server import Emulator

__all__ = ["Emulator", "Fault"]


def _is_missing(name: str) -> bool:
    try:
        return find_spec(name) is None
    except (ImportError, ValueError):  # its import is blocked
        return True


if _missing := [name for name in ("numpy", "PIL", "patchmatch") if _is_missing(name)]:
    from kling_expand.errors import MissingExtra  # the one name of the SDK, where no emulator can run

    raise MissingExtra(f"{_missing[0]} is not installed: pip install 'kling-expand[emulator]'")


def __getattr__(name: str) -> Any:
    """Import the server on first use: the painting processes import this package without it."""
    if name == "Emulator":
        from .server import Emulator

        return Emulator
    if name == "Fault":
        from .faults.plan import Fault

        return Fault
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
