"""Wrapped verbs: the same arguments and words, from a plain program."""

import inspect
from collections.abc import AsyncGenerator, Iterator

import pytest

from kling_expand._portal import LoopThread
from kling_expand._proxy import BlockingProxy, gives, gives_each, in_loop, iterates, waits


class Counter:
    """Something of the event loop's."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __repr__(self) -> str:
        return f"<Counter {self.start}>"

    async def later(self, more: int = 1) -> int:
        """Wait, and add."""
        return self.start + more

    def now(self, more: int = 1) -> int:
        """Add."""
        return self.start + more

    async def up(self, *, last: int) -> AsyncGenerator[int, None]:
        """Count."""
        for number in range(self.start, last):
            yield number


class Waiting(BlockingProxy[Counter]):
    """The same for a plain program."""

    later = waits(Counter.later)
    now = in_loop(Counter.now)
    up = iterates(Counter.up)
    text = gives(waits(Counter.later), lambda number, _thread: str(number))
    texts = gives_each(iterates(Counter.up), lambda number, _thread: str(number))


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    """A facade whose thread runs."""
    thread = LoopThread()
    thread.start()
    yield Waiting(Counter(3), thread)
    thread.stop()


def test_verbs_do_what_they_do_in_the_loop(waiting: Waiting) -> None:
    """Each kind of verb gives what it would give there."""
    assert waiting.later() == waiting.now(more=1) == 4
    assert waiting.later(5) == 8
    assert list(waiting.up(last=6)) == [3, 4, 5]
    assert waiting.text(more=2) == "5"
    assert list(waiting.texts(last=5)) == ["3", "4"]


def test_verbs_keep_their_words() -> None:
    """Help and editors show the arguments and the docstring of the original."""
    for name in ("later", "now", "up"):
        ours, theirs = getattr(Waiting, name), getattr(Counter, name)
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert ours.__doc__ == theirs.__doc__


def test_it_shows_what_it_stands_for(waiting: Waiting) -> None:
    """A notebook shows a facade as what is behind it."""
    assert repr(waiting) == "<blocking <Counter 3>>"
