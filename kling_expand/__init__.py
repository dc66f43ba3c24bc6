"""An asyncio SDK for Kling AI image expansion (outpainting).

::

    async with KlingClient() as kling:
        result = await kling.expand("dog.png", ToAspect("16:9"))
        await result.save("out/")
"""

from . import errors
from ._version import __version__ as __version__
from .errors import *  # noqa: F403 - the exceptions, which `errors.__all__` lists

TYPE_CHECKING = False  # `typing` is not imported for it: that would take most of the import time
if TYPE_CHECKING:
    from .api.photo import check_request
    from .client import KlingClient
    from .config import KeyPair, StaticKey
    from .config import Settings as Settings
    from .events import Event as Event
    from .events import EventKind, Quantiles, Stats
    from .geometry import Padding, Ratios, ToAspect, ToSize, Towards, calculate_expansion_ratios
    from .jobs.bulk import Outcome
    from .jobs.future import ExpandResult, ResultImage, TaskFuture
    from .jobs.poll_schedule import AdaptiveSchedule
    from .jobs.scheduler import Slots
    from .models import Dialect, ExpandRequest
    from .models import Image as Image
    from .models import Status as Status
    from .models import Task as Task
    from .store.base import JobRecord, JobState

# The names that ``from kling_expand import *`` imports. Very common names are left out, because they would
# hide the names of other packages, such as Pillow's `Image`.
__all__ = [
    "AdaptiveSchedule",
    "Dialect",
    "EventKind",
    "ExpandRequest",
    "ExpandResult",
    "JobRecord",
    "JobState",
    "KeyPair",
    "KlingClient",
    "Outcome",
    "Padding",
    "Quantiles",
    "Ratios",
    "ResultImage",
    "Slots",
    "StaticKey",
    "Stats",
    "TaskFuture",
    "ToAspect",
    "ToSize",
    "Towards",
    "calculate_expansion_ratios",
    "check_request",
]
__all__ += errors.__all__
_COMMON_NAMES = ("Event", "Image", "Settings", "Status", "Task")

# The public modules, those that import the least first. A name is imported when it is first used, so that the
# command line can print its help without loading aiohttp.
_MODULES = (
    "geometry",
    "models",
    "config",
    "events",
    "jobs.poll_schedule",
    "jobs.scheduler",
    "jobs.future",
    "jobs.bulk",
    "store.base",
    "api.photo",
    "client",
)


if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> object:
        """Import a public name or module when it is first used."""
        from importlib import import_module  # imported here: until `__main__` runs, Ctrl-C is not handled

        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name in __all__ or name in _COMMON_NAMES:
            for module in _MODULES:
                found = vars(import_module(f"{__name__}.{module}")).get(name)
                if found is not None:
                    globals()[name] = found
                    return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, including those that are not imported yet."""
    return sorted({*globals(), *__all__, *_COMMON_NAMES})
