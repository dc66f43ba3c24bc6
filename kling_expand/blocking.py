"""How does a program without asyncio expand photos? With the same verbs, each waiting for its answer.

::

    with KlingClient() as kling:
        result = kling.expand("dog.png", ToAspect("16:9"))
        result.save("out/")

Nothing is done here: one background thread runs an event loop with the one real client in it, and every
verb is handed over to it. Any thread may call, also one that has an event loop of its own, such as a
notebook's (which stands still meanwhile).
"""

import atexit
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self

from attrs import frozen

from . import client
from ._portal import LoopThread, pull
from ._proxy import BlockingProxy, gives, gives_each, in_loop, iterates, waits
from .errors import ClientClosed, KlingError
from .jobs import bulk, future
from .models import ExpandRequest, Image, Task

__all__ = ["ExpandResult", "KlingClient", "Outcome", "TaskFuture"]

P = ParamSpec("P")


class ExpandResult(BlockingProxy[future.ExpandResult]):
    """A task that succeeded, and how to bring its pictures to disk."""

    save = waits(future.ExpandResult.save)

    @property
    def task(self) -> Task:
        """The last snapshot."""
        return self._inner.task

    @property
    def request(self) -> ExpandRequest | None:
        """What was asked for; None for a task that was attached."""
        return self._inner.request

    @property
    def files(self) -> tuple[Path, ...]:
        """Where an earlier run has put the pictures, if a journal says so and they are still there."""
        return self._inner.files

    @property
    def images(self) -> tuple[Image, ...]:
        """The expanded pictures; their URLs live 30 days."""
        return self._inner.images

    @property
    def task_id(self) -> str:
        """The service's id of the task."""
        return self._inner.task_id


class TaskFuture(BlockingProxy[future.TaskFuture]):
    """One task. `result` waits for its end, a ``for`` over it gives each newest snapshot."""

    accepted = waits(future.TaskFuture.accepted)
    finished = waits(future.TaskFuture.finished)

    def result(self) -> ExpandResult:
        """Wait for the end: the result, or whatever awaiting the future would raise."""
        return ExpandResult(self._thread.run(_awaited(self._inner)), self._thread)

    def __iter__(self) -> Iterator[Task]:
        return self._thread.iterate(_snapshots(self._inner))

    def done(self) -> bool:
        """Whether the end is known."""
        return self._inner.done()

    @property
    def task_id(self) -> str | None:
        """The service's id, once the task is accepted."""
        return self._inner.task_id

    @property
    def external_task_id(self) -> str | None:
        """Your id, or the one the client made; None while neither is known."""
        return self._inner.external_task_id

    @property
    def task(self) -> Task | None:
        """The newest snapshot; None before the task is accepted."""
        return self._inner.task

    @property
    def error(self) -> KlingError | None:
        """Why no more news will come, if that is so. A failed *task* is in `task` instead."""
        return self._inner.error


@frozen
class Outcome:
    """How one of many requests ended: `result` or `error`, never both."""

    index: int
    request: ExpandRequest
    result: ExpandResult | None = None
    error: KlingError | None = None


def _maps(
    verb: Callable[Concatenate[client.KlingClient, bulk.Requests, P], AsyncGenerator[bulk.Outcome, None]],
) -> Callable[Concatenate["KlingClient", Iterable[ExpandRequest], P], Iterator["Outcome"]]:
    """The same verb, which reads its requests outside the event loop, where they may wait."""

    @wraps(verb)
    def iterate(
        self: "KlingClient", requests: Iterable[ExpandRequest], /, *args: P.args, **kwargs: P.kwargs
    ) -> Iterator["Outcome"]:
        async def outcomes() -> AsyncGenerator[Outcome, None]:
            async with aclosing(verb(self._inner, pull(requests), *args, **kwargs)) as found:
                async for outcome in found:
                    yield _outcome(outcome, self._thread)

        return self._thread.iterate(outcomes())

    return iterate


class KlingClient(BlockingProxy[client.KlingClient]):
    """The client for programs without asyncio; its options are those of `kling_expand.KlingClient`.

    Use it inside ``with``, or between `open` and `close`, as in a notebook; at the latest it is closed
    when the program ends.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(client.KlingClient(**options), LoopThread())

    def open(self) -> Self:
        """Start the background thread, and open the client in it; one that is open stays so."""
        if self._thread.start():
            try:
                self._thread.run(self._inner.__aenter__())
            except BaseException:
                self._thread.stop()
                raise
            atexit.register(self.close)
        return self

    def close(self, *, wait: bool = False) -> tuple[TaskFuture, ...]:
        """Submit nothing more; the futures of the tasks that still run at the service.

        With *wait* they are waited for first. A client that is closed already stays so.
        """
        atexit.unregister(self.close)
        try:
            running = self._thread.run(self._inner.aclose(wait=wait))
        except ClientClosed:
            return ()
        finally:
            self._thread.stop()
        return tuple(TaskFuture(each, self._thread) for each in running)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    expand = gives(waits(client.KlingClient.expand), ExpandResult)
    submit = gives(in_loop(client.KlingClient.submit), TaskFuture)
    attach = gives(in_loop(client.KlingClient.attach), TaskFuture)
    map = _maps(client.KlingClient.map)
    resume = gives_each(iterates(client.KlingClient.resume), TaskFuture)
    receive = in_loop(client.KlingClient.receive)
    create = waits(client.KlingClient.create)
    get = waits(client.KlingClient.get)
    list = waits(client.KlingClient.list)
    tasks = iterates(client.KlingClient.tasks)


async def _awaited(waited: future.TaskFuture) -> future.ExpandResult:
    return await waited


async def _snapshots(watched: future.TaskFuture) -> AsyncGenerator[Task, None]:
    async for task in watched:
        yield task


def _outcome(outcome: bulk.Outcome, thread: LoopThread) -> Outcome:
    result = ExpandResult(outcome.result, thread) if outcome.result else None
    return Outcome(outcome.index, outcome.request, result, outcome.error)
