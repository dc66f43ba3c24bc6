"""A virtual-time loop that calls a function before a given step."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from kling_expand.testing import VirtualLoop

T = TypeVar("T")

_run_once: Callable[[asyncio.AbstractEventLoop], None] = vars(asyncio.BaseEventLoop)["_run_once"]


class SteppingLoop(VirtualLoop):
    """A loop that counts its steps from `arm` on. No callback runs between two steps."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 0
        self._act: Callable[[], object] = lambda: None

    def arm(self, steps: int, act: Callable[[], object]) -> None:
        """Call *act* before the step number *steps*, counted from 0."""
        self._left, self._act = steps + 1, act

    def _run_once(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()
        _run_once(self)

    def disarm(self) -> bool:
        """Cancel the call, and return whether it was already made."""
        reached, self._left = self._left <= 0, 0
        return reached


def arm(steps: int, act: Callable[[], object]) -> Callable[[], bool]:
    """Arm the running loop, and return its `disarm`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteppingLoop)
    loop.arm(steps, act)
    return loop.disarm


def stepped(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in a `SteppingLoop`."""
    with asyncio.Runner(loop_factory=SteppingLoop) as runner:
        return runner.run(main)
