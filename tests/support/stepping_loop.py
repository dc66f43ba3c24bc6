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
        self._function: Callable[[], object] = lambda: None

    def arm(self, steps: int, function: Callable[[], object]) -> None:
        """Call *function* before the step number *steps*, counted from 0."""
        self._left, self._function = steps + 1, function

    def _run_once(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._function()
        _run_once(self)

    def disarm(self) -> bool:
        """Cancel the call, and return whether it was already made."""
        reached, self._left = self._left <= 0, 0
        return reached


def arm(steps: int, function: Callable[[], object]) -> Callable[[], bool]:
    """Arm the running loop, and return its `disarm`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteppingLoop)
    loop.arm(steps, function)
    return loop.disarm


def stepped(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in a `SteppingLoop`."""
    with asyncio.Runner(loop_factory=SteppingLoop) as runner:
        return runner.run(main)
