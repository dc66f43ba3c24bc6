"""Has anything happened? Those who show the emulator wait here; those who change it tell."""

import asyncio


class News:
    """`coming` is set by the next `tell`: take it, then look, then wait for it, and nothing is missed."""

    def __init__(self) -> None:
        self.coming = asyncio.Event()
        self.over = False

    def tell(self) -> None:
        """Something is different now."""
        self.coming.set()
        self.coming = asyncio.Event()

    def end(self) -> None:
        """There will be no more: whoever shows things may stop."""
        self.over = True
        self.tell()
