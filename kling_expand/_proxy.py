"""How does a verb of the event loop become one that waits? Wrapped, keeping its arguments and its words."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from ._portal import LoopThread

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
Inner = TypeVar("Inner")


class BlockingProxy(Generic[Inner]):
    """An object of the event loop's, and the thread it lives in."""

    def __init__(self, inner: Inner, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread

    def __repr__(self) -> str:
        return f"<blocking {self._inner!r}>"


def waits(
    verb: Callable[Concatenate[Inner, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BlockingProxy[Inner], P], T]:
    """The same verb, which returns when it is done."""

    @wraps(verb)
    def wait(self: BlockingProxy[Inner], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.run(verb(self._inner, *args, **kwargs))

    return wait


def in_loop(verb: Callable[Concatenate[Inner, P], T]) -> Callable[Concatenate[BlockingProxy[Inner], P], T]:
    """The same verb, which takes no time but must be said in the event loop."""

    @wraps(verb)
    def say(self: BlockingProxy[Inner], /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def said() -> T:
            return verb(self._inner, *args, **kwargs)

        return self._thread.run(said())

    return say


def gives(
    verb: Callable[Concatenate[BlockingProxy[Inner], P], T], kind: Callable[[T, LoopThread], R]
) -> Callable[Concatenate[BlockingProxy[Inner], P], R]:
    """The same verb, which gives something whose verbs wait as well."""

    @wraps(verb)
    def give(self: BlockingProxy[Inner], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return kind(verb(self, *args, **kwargs), self._thread)

    return give


def iterates(
    verb: Callable[Concatenate[Inner, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[BlockingProxy[Inner], P], Iterator[T]]:
    """The same verb, for a plain ``for``."""

    @wraps(verb)
    def iterate(self: BlockingProxy[Inner], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._thread.iterate(verb(self._inner, *args, **kwargs))

    return iterate


def gives_each(
    verb: Callable[Concatenate[BlockingProxy[Inner], P], Iterator[T]], kind: Callable[[T, LoopThread], R]
) -> Callable[Concatenate[BlockingProxy[Inner], P], Iterator[R]]:
    """The same verb, which gives things one by one whose verbs wait as well."""

    @wraps(verb)
    def give(self: BlockingProxy[Inner], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        for item in verb(self, *args, **kwargs):
            yield kind(item, self._thread)

    return give
