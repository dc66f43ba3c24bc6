"""What if it were interrupted right here? A virtual loop that does something before its n-th step."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from kling_expand.testing import VirtualLoop

T = TypeVar("T")

_run_once: Callable[[asyncio.AbstractEventLoop], None] = vars(asyncio.BaseEventLoop)["_run_once"]


class SteppingLoop(VirtualLoop):
    """Counts its steps from `arm` on; between two of them nothing of ours runs."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 0
        self._act: Callable[[], object] = lambda: None

    def arm(self, steps: int, act: Callable[[], object]) -> None:
        """Call *act* before the step that comes after so many others."""
        self._left, self._act = steps + 1, act

    def _run_once(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()
        _run_once(self)

    def disarm(self) -> bool:
        """Interrupt nothing any more; whether it came to that."""
        reached, self._left = self._left <= 0, 0
        return reached


def arm(steps: int, act: Callable[[], object]) -> Callable[[], bool]:
    """Interrupt the running loop; calling the answer ends that, and says whether it came to it."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteppingLoop)
    loop.arm(steps, act)
    return loop.disarm


def stepped(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in such a loop."""
    with asyncio.Runner(loop_factory=SteppingLoop) as runner:
        return runner.run(main)
