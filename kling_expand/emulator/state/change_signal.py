"""A signal of changes, for readers that wait for the next one."""

import asyncio


class ChangeSignal:
    """An event that is replaced at each change. Take `next`, read the state, then wait for that event."""

    def __init__(self) -> None:
        self.next: asyncio.Event = asyncio.Event()
        self.closed: bool = False

    def notify(self) -> None:
        """Wake all readers."""
        self.next.set()
        self.next = asyncio.Event()

    def close(self) -> None:
        """Wake all readers for the last time."""
        self.closed = True
        self.notify()
