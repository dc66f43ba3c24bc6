"""Kling AI image expansion (outpainting) for asyncio: submit, wait, save, and never pay twice.

async with KlingClient() as kling:
    result = await kling.expand("dog.png", ToAspect("16:9"))
    await result.save("out/")
"""

from . import errors
from .client import KlingClient
from .config import KeyPair, Settings, StaticKey
from .errors import *  # noqa: F403 - every name of the tree, and `errors.__all__` lists them
from .events import Event, EventKind, Quantiles, Stats
from .geometry import Padding, Ratios, ToAspect, ToSize, Towards, calculate_expansion_ratios
from .jobs.bulk import Outcome
from .jobs.future import ExpandResult, TaskFuture
from .jobs.poll_schedule import AdaptiveSchedule
from .jobs.scheduler import Slots
from .models import Dialect, ExpandRequest, Image, Status, Task

__version__ = "0.1.0"

__all__ = [
    "AdaptiveSchedule",
    "Dialect",
    "Event",
    "EventKind",
    "ExpandRequest",
    "ExpandResult",
    "Image",
    "KeyPair",
    "KlingClient",
    "Outcome",
    "Padding",
    "Quantiles",
    "Ratios",
    "Settings",
    "Slots",
    "StaticKey",
    "Stats",
    "Status",
    "Task",
    "TaskFuture",
    "ToAspect",
    "ToSize",
    "Towards",
    "calculate_expansion_ratios",
]
__all__ += errors.__all__
