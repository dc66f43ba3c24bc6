"""The blocking client for Kling image expansion, for programs without asyncio.

::

    with KlingClient() as kling:
        result = kling.expand("dog.png", ToAspect("16:9"))
        result.save("out/")

A background thread runs an event loop with the asynchronous client. Each method calls the method of the
same name there and waits until it returns. Methods may be called from any other thread. If that thread runs
its own event loop, as in a notebook, the call blocks that loop.

A client is closed by ``with``, by `KlingClient.close`, or when the main thread of the program ends. A closed
client can be reopened. A client does not survive `os.fork`: a child process must create its own.
"""

import asyncio
import atexit
import concurrent.futures
import concurrent.futures.thread  # registers its exit hook before ours, see the end of this file
import inspect
import logging
import math
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from types import GenericAlias, TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from attrs import frozen

from . import client
from ._portal import LoopThread, pull
from .config import Settings
from .errors import ClientClosed, DeadlineExceeded, KlingError
from .events import Stats
from .jobs import bulk, future
from .models import ExpandRequest, Task, check, portable
from .serialization import Serializable
from .store.base import JobRecord
from .webhooks import WebhookEvent

__all__ = ["ExpandResult", "KlingClient", "Outcome", "ResultImage", "TaskFuture"]

logger: logging.Logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
Inner = TypeVar("Inner")


class BlockingProxy(Generic[Inner]):
    """A blocking proxy for an object that belongs to the event loop of another thread."""

    def __init__(self, inner: Inner, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread

    def __repr__(self) -> str:
        return f"<blocking {self._inner!r}>"


Proxy = TypeVar("Proxy", bound=BlockingProxy[Any])

# Each of the three decorators below makes a blocking method with the parameters and the docstring of the
# asynchronous *method*. The decorated function converts the result.


def from_coroutine(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[[Callable[[Proxy, T], R]], Callable[Concatenate[Proxy, P], R]]:
    """Make a method that calls the coroutine function *method* and waits for its result."""

    def decorate(convert: Callable[[Proxy, T], R]) -> Callable[Concatenate[Proxy, P], R]:
        def blocking(self: Proxy, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return convert(self, self._thread.run(method(self._inner, *args, **kwargs)))

        return _described(blocking, method, inspect.signature(convert).return_annotation)

    return decorate


def from_function(
    method: Callable[Concatenate[Any, P], T],
) -> Callable[[Callable[[Proxy, T], R]], Callable[Concatenate[Proxy, P], R]]:
    """Make a method that calls the plain function *method* in the event loop."""

    def decorate(convert: Callable[[Proxy, T], R]) -> Callable[Concatenate[Proxy, P], R]:
        def blocking(self: Proxy, /, *args: P.args, **kwargs: P.kwargs) -> R:
            async def call() -> T:
                return method(self._inner, *args, **kwargs)

            return convert(self, self._thread.run(call()))

        return _described(blocking, method, inspect.signature(convert).return_annotation)

    return decorate


def from_generator(
    method: Callable[Concatenate[Any, P], AsyncGenerator[T, None]],
) -> Callable[[Callable[[Proxy, T], R]], Callable[Concatenate[Proxy, P], Iterator[R]]]:
    """Make a method that returns an iterator over the items of the asynchronous generator *method*."""

    def decorate(convert: Callable[[Proxy, T], R]) -> Callable[Concatenate[Proxy, P], Iterator[R]]:
        def blocking(self: Proxy, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
            items = self._thread.iterate(method(self._inner, *args, **kwargs))
            return (convert(self, item) for item in items)

        item_type = inspect.signature(convert).return_annotation
        return _described(blocking, method, GenericAlias(Iterator, item_type))

    return decorate


def _described(
    blocking: Callable[Concatenate[Proxy, P], R], method: Callable[..., Any], returns: Any
) -> Callable[Concatenate[Proxy, P], R]:
    """Give *blocking* the name, the docstring and the parameters of *method*, for `help` and editors."""
    blocking.__name__ = method.__name__
    blocking.__doc__ = method.__doc__
    blocking.__signature__ = inspect.signature(method).replace(return_annotation=returns)  # type: ignore[attr-defined] # read by `inspect`
    return blocking


class ResultImage(BlockingProxy[future.ResultImage]):
    """An expanded picture, with methods to read it."""

    @from_coroutine(future.ResultImage.read)
    def read(self, content: bytes) -> bytes:
        return content

    @from_generator(future.ResultImage.stream)
    def stream(self, chunk: bytes) -> bytes:
        return chunk

    @property
    def index(self) -> int:
        """The position of the picture within its task, from 0."""
        return self._inner.index

    @property
    def url(self) -> str:
        """The URL of the picture, which is valid for 30 days (documented)."""
        return self._inner.url

    @property
    def watermark_url(self) -> str | None:
        """The URL of the copy with a watermark, or None if there is none."""
        return self._inner.watermark_url

    def to_dict(self) -> dict[str, Any]:
        """Return the position and the URLs as JSON types."""
        return self._inner.to_dict()


class ExpandResult(BlockingProxy[future.ExpandResult], Serializable):
    """The result of a task that succeeded, with methods to save and read its pictures.

    It can be pickled. An unpickled copy has the URLs but no client, so it cannot save or read the pictures.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExpandResult) and self._inner == other._inner

    def __hash__(self) -> int:
        return hash(self._inner)

    @from_coroutine(future.ExpandResult.save)
    def save(self, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return paths

    @from_coroutine(future.ExpandResult.upload)
    def upload(self, urls: tuple[str, ...]) -> tuple[str, ...]:
        return urls

    @from_coroutine(future.ExpandResult.image)
    def image(self, image: Any) -> Any:
        return image

    @from_coroutine(future.ExpandResult.read)
    def read(self, contents: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return contents

    @property
    def task(self) -> Task:
        """The final snapshot of the task."""
        return self._inner.task

    @property
    def request(self) -> ExpandRequest | None:
        """The request, or None for an attached task."""
        return self._inner.request

    @property
    def earlier(self) -> "ExpandResult | None":
        """The result of the previous pass, or None if there was none."""
        return ExpandResult(self._inner.earlier, self._thread) if self._inner.earlier else None

    @property
    def name(self) -> str | None:
        """The photo's name, from which file names are formed, or None if it has no name."""
        return self._inner.name

    @property
    def shape(self) -> str | None:
        """The name of the shape, such as ``16x9``, or None for an attached task."""
        return self._inner.shape

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths to which an earlier run saved the pictures, if a journal has them and all files exist."""
        return self._inner.files

    def saved_at(self, target: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Return the paths of pictures that an earlier run saved where `save` would put them, or ``()``.

        Raises:
            InvalidRequest: if *target* is invalid.
        """
        return self._inner.saved_at(target)

    @property
    def images(self) -> tuple[ResultImage, ...]:
        """The expanded pictures. Their URLs are valid for 30 days (documented)."""
        return tuple(ResultImage(image, self._thread) for image in self._inner.images)

    @property
    def task_id(self) -> str:
        """The service's id of the task."""
        return self._inner.task_id

    @property
    def external_task_id(self) -> str | None:
        """The caller's id or the generated one, or None if neither is known."""
        return self._inner.external_task_id

    def to_dict(self) -> dict[str, Any]:
        """Return the ids, the images, the files, the request and the task as JSON types."""
        return self._inner.to_dict()

    def __reduce__(self) -> Any:
        return _without_thread, (self._inner,)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self


def _without_thread(result: future.ExpandResult) -> ExpandResult:
    return ExpandResult(result, LoopThread())


class TaskFuture(BlockingProxy[future.TaskFuture], concurrent.futures.Future[ExpandResult]):
    """A future for one task.

    `result` waits until the task has ended. A ``for`` loop over the future yields snapshots of the task.
    If `cancel` returns True, the future raises `NotSubmitted`.

    It is a `concurrent.futures.Future`, so `concurrent.futures.wait`, `as_completed` and
    `asyncio.wrap_future` accept it. Only clients create it, from the asynchronous future *inner* and their
    *thread*.
    """

    def __init__(self, inner: future.TaskFuture, thread: LoopThread) -> None:
        BlockingProxy.__init__(self, inner, thread)
        concurrent.futures.Future.__init__(self)
        if not inner.done():
            try:
                thread.call_soon(inner.add_done_callback, self._set_end)
            except ClientClosed:
                pass  # its outcome was set before the thread stopped
            else:
                return
        self._set_end(inner)

    def _set_end(self, inner: future.TaskFuture) -> None:
        """Set the outcome of the task, without marking it as retrieved."""
        if (error := inner.record.failure()) is not None:
            self.set_exception(error)
        elif inner.record.done():
            self.set_result(ExpandResult(inner.record.result(), self._thread))

    @from_coroutine(future.TaskFuture.recorded)
    def recorded(self, external_task_id: str) -> str:
        return external_task_id

    @from_coroutine(future.TaskFuture.accepted)
    def accepted(self, task: Task) -> Task:
        return task

    @from_coroutine(future.TaskFuture.wait)
    def wait(self, done: bool) -> bool:  # noqa: FBT001 - the result, not an option
        return done

    @from_function(future.TaskFuture.cancel)
    def cancel(self, cancelled: bool) -> bool:  # noqa: FBT001 - the result, not an option
        return cancelled

    def cancelled(self) -> bool:
        """Return whether the job was cancelled before it was sent."""
        return self._inner.cancelled()

    def running(self) -> bool:
        """Return whether the service has accepted the task and the task has not ended."""
        return self._inner.record.task is not None and not self.done()

    def result(self, timeout: float | None = None) -> ExpandResult:
        """Wait until the task has ended, at most *timeout* seconds, and return its result.

        Raises:
            TaskFailed: if the task failed.
            DeadlineExceeded: if *timeout* or the deadline passes. The task continues.
            KlingError: if the task could not be created or followed.
        """
        self._wait_end(timeout)
        return ExpandResult(self._inner.result(), self._thread)

    def exception(self, timeout: float | None = None) -> KlingError | None:
        """Wait as `result` does, at most *timeout* seconds, and return the exception it would raise, or None.

        Raises:
            DeadlineExceeded: if *timeout* or the deadline passes. The task continues.
        """
        self._wait_end(timeout)
        return self._inner.exception()

    def _wait_end(self, timeout: float | None) -> None:
        check(timeout=timeout)
        if not self._inner.done():
            self._thread.run(_ended(self._inner, timeout))

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[ExpandResult]], object]) -> None:
        """Call *fn* with this future when the task ends, or at once if it has already ended.

        When the task ends, *fn* is called in the client's background thread. It must not block, and it must
        not call the client.
        """
        super().add_done_callback(fn)

    def __iter__(self) -> Iterator[Task]:
        return self._thread.iterate(_snapshots(self._inner))

    def done(self) -> bool:
        """Return whether the outcome of the task is known."""
        return self._inner.done()

    @property
    def any_id(self) -> str:
        """The `task_id` once it is known, and the `external_task_id` before that."""
        return self._inner.any_id

    @property
    def number(self) -> int:
        """The job's number, unique within the process."""
        return self._inner.number

    @property
    def task_id(self) -> str | None:
        """The service's id of the task, or None until the service has accepted the task."""
        return self._inner.task_id

    @property
    def external_task_id(self) -> str | None:
        """The caller's id or the generated one, or None while neither is known."""
        return self._inner.external_task_id

    @property
    def task(self) -> Task | None:
        """The newest snapshot, or None until the service has accepted the task."""
        return self._inner.task

    @property
    def error(self) -> KlingError | None:
        """The exception that ended this future, or None. `task` reports a failed task."""
        return self._inner.error


@frozen(eq=False)
class Outcome(Serializable):
    """The outcome of one request of `KlingClient.map`, with the fields of `kling_expand.Outcome`.

    `index` is the position of the request, from 0. Either `result` or `error` is set, or both if the pictures
    could not be saved. `request` is None if the row gave no valid request. `files` are the paths of saved
    pictures.
    """

    index: int
    request: ExpandRequest | Any  # or None, but only for a row that is a mapping or a function
    result: ExpandResult | None = None
    error: KlingError | None = None
    files: tuple[Path, ...] = ()

    def __reduce__(self) -> Any:
        request = portable(self.request)
        return Outcome, (self.index, request, self.result, self.error, self.files)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self


def _from_map(
    method: Callable[Concatenate[Any, bulk.Requests, P], AsyncGenerator[T, None]],
) -> Callable[[Callable[[Proxy, T], R]], Callable[Concatenate[Proxy, Iterable[bulk.Row], P], Iterator[R]]]:
    """Make a method like `from_generator`, but read its requests in a separate thread.

    So the iterable may block, for example on a queue or on the same client.
    """

    async def outcomes(
        inner: Any, requests: Iterable[bulk.Row], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[T, None]:
        async with aclosing(method(inner, pull(requests), *args, **kwargs)) as found:
            async for outcome in found:
                yield outcome

    outcomes.__name__, outcomes.__doc__ = method.__name__, method.__doc__
    signature = inspect.signature(method)
    parameters = [
        each.replace(annotation=Iterable[bulk.Row]) if name == "requests" else each
        for name, each in signature.parameters.items()
    ]
    outcomes.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined] # as above
    return from_generator(outcomes)


class KlingClient(BlockingProxy[client.KlingClient]):
    """The blocking client for Kling image expansion, with the options of `kling_expand.KlingClient`.

    Use it in a ``with`` statement. In a notebook, call `open` and `close` instead.
    """

    @client.takes_options(client.KlingClient)
    def __init__(self, **options: Any) -> None:
        super().__init__(client.KlingClient(**options), LoopThread())

    def open(self) -> Self:
        """Start the background thread and open the client in it. If the client is open, do nothing.

        Raises:
            ClientClosed: if the client was opened before `os.fork`, in the parent process.
            KlingError: if the client cannot be opened, for example because its journal is in use.
        """
        if self._thread.start():
            try:
                self._thread.run(self._inner.__aenter__())
            except BaseException:
                self._thread.stop()
                raise
            _opened.add(self)
        return self

    def close(self, *, wait: bool = False) -> tuple[TaskFuture, ...]:
        """Close the client, and return the futures of the tasks that are still running at the service.

        With *wait*, the client first waits until all jobs have ended. Closing a closed client has no effect.
        """
        _opened.discard(self)
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
        running = [each._inner for each in self.close()]  # noqa: SLF001 - the two classes are one unit
        client.log_running(self._inner, running)

    @property
    def stats(self) -> Stats:
        """The statistics of this client so far, as `kling_expand.Stats`."""
        return self._inner.stats

    @property
    def settings(self) -> Settings:
        """The settings of this client."""
        return self._inner.settings

    @from_coroutine(client.KlingClient.expand)
    def expand(self, result: future.ExpandResult) -> ExpandResult:
        return ExpandResult(result, self._thread)

    @from_function(client.KlingClient.submit)
    def submit(self, submitted: future.TaskFuture) -> TaskFuture:
        return TaskFuture(submitted, self._thread)

    @from_function(client.KlingClient.attach)
    def attach(self, attached: future.TaskFuture) -> TaskFuture:
        return TaskFuture(attached, self._thread)

    @_from_map(client.KlingClient.map)
    def map(self, outcome: bulk.Outcome) -> Outcome:
        result = ExpandResult(outcome.result, self._thread) if outcome.result else None
        return Outcome(outcome.index, outcome.request, result, outcome.error, outcome.files)

    @from_generator(client.KlingClient.resume)
    def resume(self, resumed: future.TaskFuture) -> TaskFuture:
        return TaskFuture(resumed, self._thread)

    @from_function(client.KlingClient.resume_job)
    def resume_job(self, resumed: future.TaskFuture) -> TaskFuture:
        return TaskFuture(resumed, self._thread)

    @from_function(client.KlingClient.receive)
    def receive(self, event: WebhookEvent) -> WebhookEvent:
        return event

    @from_coroutine(client.KlingClient.create)
    def create(self, task: Task) -> Task:
        return task

    @from_coroutine(client.KlingClient.get)
    def get(self, task: Task) -> Task:
        return task

    @from_coroutine(client.KlingClient.job)
    def job(self, known: JobRecord | None) -> JobRecord | None:
        return known

    @from_generator(client.KlingClient.tasks)
    def tasks(self, task: Task) -> Task:
        return task

    @from_coroutine(client.KlingClient.list)
    def list(self, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        return tasks


async def _ended(inner: future.TaskFuture, timeout: float | None) -> None:  # noqa: ASYNC109 - as in the standard library
    """Wait until *inner* is done, or raise `DeadlineExceeded` after *timeout* seconds or its deadline."""
    now = asyncio.get_running_loop().time()
    left = math.inf if inner.deadline_at is None or inner.deadline_at <= now else inner.deadline_at - now
    if timeout is not None and timeout < left and not await inner.wait(timeout):
        raise DeadlineExceeded(
            f"the task did not end within {timeout:g} s; the future can be waited for again",
            task_id=inner.task_id,
            external_task_id=inner.external_task_id,
        )
    try:
        await inner
    except KlingError:
        if not inner.done():
            raise


async def _snapshots(inner: future.TaskFuture) -> AsyncGenerator[Task, None]:
    async for task in inner:
        yield task


# ---------------------------------------------------------------------------- program exit

_opened: set[KlingClient] = set()


def _close_all() -> None:
    for kling in tuple(_opened):
        try:
            kling.__exit__(None, None, None)
        except Exception:
            logger.exception("%r could not be closed at program exit", kling)


# `atexit` is too late: by then the interpreter has shut down all executors, and closing a journal needs one.
# `concurrent.futures` shuts them down in a hook of the same kind as ours, which was registered earlier. Hooks
# run in the reverse order, so ours runs first.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
