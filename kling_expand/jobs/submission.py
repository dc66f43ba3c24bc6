"""How is a task created exactly once? A failed create is told apart, and what is unknown is looked up.

======================  ============================================  =================================
a create ended in       which means                                   so
======================  ============================================  =================================
connection refused      never sent: the request did not go out whole  send it again
1302                    refused, free of charge                       wait at the gate, send it again
1303                    refused, free of charge                       `ParallelLimit`: the scheduler's
any other 4xx           refused, free of charge                       raise it
"… already exists"      an earlier try was accepted                   look it up: found
time-out, reset, 5xx,   unknown: it may have been accepted            look the id up; only when it is
HTML, half an answer                                                  absent send the same id again
======================  ============================================  =================================
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from random import Random

from attrs import evolve

from kling_expand.api import codec
from kling_expand.api.retry import retry_waits
from kling_expand.api.session import Body, Session
from kling_expand.errors import (
    DeadlineExceeded,
    DuplicateTask,
    KlingError,
    ProtocolError,
    RateLimited,
    ServerError,
    SubmissionUnknown,
    TaskNotFound,
    TransportError,
)
from kling_expand.events import EventKind
from kling_expand.models import Dialect, Status, Task

SETTLE = 5.0  # seconds an unanswered create may still take to appear, before any has been timed


async def _unannounced() -> None:
    """Nobody needs to know before a create leaves."""


def _unasked() -> None:
    """Nobody asks whether the task is new."""


class Submitter:
    """Creates tasks over one session, each once.

    `budget` bounds, in seconds, how long one create is retried while the service only fails.
    """

    def __init__(self, session: Session, dialect: Dialect, *, rng: Random, budget: float) -> None:
        self._session = session
        self._dialect = dialect
        self._rng = rng
        self._budget = budget
        self._slowest = SETTLE
        self._doubted: set[str] = set()  # ids of creates whose fate is, or was for a while, unknown

    async def create(
        self,
        body: Callable[[], Body],
        external_task_id: str,
        *,
        adopt: bool = False,
        announce: Callable[[], Awaitable[None]] = _unannounced,
        earlier: Callable[[], object] = _unasked,
        deadline_at: float | None = None,
    ) -> Task:
        """The task with this id, created at most once however often the network fails.

        With *adopt* a task that is already there is taken as ours even on the first try (it is,
        when the id was derived from the job). *announce* is awaited before each POST, and *earlier*
        is called where the task was there before the first of them. Raises
        `SubmissionUnknown` when its fate could not be settled before *deadline_at* (loop time).
        """
        task = await self._find_doubted(external_task_id, deadline_at)
        if task is None:
            task = await self._settle(
                body,
                external_task_id,
                adopt=adopt,
                announce=announce,
                earlier=earlier,
                deadline_at=deadline_at,
            )
        else:
            earlier()
        self._doubted.discard(external_task_id)
        if task.status is Status.SUCCEED and not task.images:
            # The answer to a create is documented without a result: as news it would be an end without
            # pictures, so its end is left to be read.
            task = evolve(task, task_status=Status.PROCESSING)
        return task

    async def _settle(
        self,
        body: Callable[[], Body],
        external_task_id: str,
        *,
        adopt: bool,
        announce: Callable[[], Awaitable[None]],
        earlier: Callable[[], object],
        deadline_at: float | None,
    ) -> Task:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._budget
        waits = retry_waits(self._rng)
        fresh = False  # a create is repeated on a new connection: the pooled one may be dead
        while True:
            pause = next(waits)
            try:
                await announce()
                return await self._post(body, deadline_at, fresh=fresh)
            except DuplicateTask as error:
                if external_task_id not in self._doubted:
                    _claim(error, adopt=adopt, earlier=earlier)
                return await self._adopt(external_task_id, error, deadline_at)
            except RateLimited as error:
                if error.retryable:
                    give_up = loop.time() + self._budget  # it lives; the gate makes the next try wait
                    continue
                raise self._given_up(external_task_id, error) from None
            except DeadlineExceeded as error:
                raise self._given_up(external_task_id, error) from None
            except (TransportError, ServerError, ProtocolError) as error:
                self._doubt(external_task_id, error)
                failure = error
            if found := await self._find_doubted(external_task_id, deadline_at):
                return found
            if not failure.retryable or loop.time() + pause > min(give_up, deadline_at or math.inf):
                raise self._given_up(external_task_id, failure)
            fresh = True
            await asyncio.sleep(pause)

    def doubt(self, external_task_id: str) -> None:
        """Say that a create may have left for this id before: it is looked up before another does."""
        self._doubted.add(external_task_id)

    def _doubt(self, external_task_id: str, failure: KlingError) -> None:
        """Remember, until its task is found, a create that may have been accepted all the same."""
        if not isinstance(failure, TransportError) or failure.sent:
            self._doubted.add(external_task_id)

    def _given_up(self, external_task_id: str, failure: KlingError) -> KlingError:
        """What to raise instead of trying once more."""
        return _unknown(external_task_id, failure) if external_task_id in self._doubted else failure

    async def _find_doubted(self, external_task_id: str, deadline_at: float | None) -> Task | None:
        """The task of a create whose fate is unknown, if there is such a create and such a task."""
        return await self.find(external_task_id, deadline_at) if external_task_id in self._doubted else None

    async def _adopt(self, external_task_id: str, error: DuplicateTask, deadline_at: float | None) -> Task:
        """The task that the service says is there already."""
        found = await self.find(external_task_id, deadline_at)
        if found is None:
            raise _unknown(external_task_id, error) from None
        return found

    async def get_or_none(self, any_id: str, deadline_at: float | None = None) -> Task | None:
        """The task with this id, or None if the service knows none. Repeats what may pass."""
        path = codec.task_path(self._dialect, any_id)
        try:
            return await self._session.read(path, codec.decode_task, deadline_at=deadline_at)
        except TaskNotFound:
            return None

    async def _post(self, body: Callable[[], Body], deadline_at: float | None, *, fresh: bool) -> Task:
        loop = asyncio.get_running_loop()
        # A pause asked for says nothing of how long a create takes.
        await self._session.gates[EventKind.CREATE].wait(deadline_at)
        began = loop.time()
        path = codec.create_path(self._dialect)
        try:
            return await self._session.call(
                "POST", path, codec.decode_task, body=body, fresh=fresh, deadline_at=deadline_at
            )
        finally:
            self._slowest = max(self._slowest, loop.time() - began)

    async def find(self, external_task_id: str, deadline_at: float | None = None) -> Task | None:
        """Look for a task whose create was left unanswered, until it cannot still be on its way.

        It may be on its way for as long as the slowest create took so far.
        """
        loop = asyncio.get_running_loop()
        settled = loop.time() + self._slowest
        waits = retry_waits(self._rng)
        while True:
            asked = loop.time()  # a slow answer may tell of a moment before the task appeared
            try:
                found = await self.get_or_none(external_task_id, deadline_at)
            except KlingError as error:
                raise _unknown(external_task_id, error) from error
            if found is not None or asked >= settled:
                return found
            pause = min(next(waits), settled - loop.time())  # the look that settles it comes no later
            if deadline_at is not None and loop.time() + pause > deadline_at:
                raise _unknown(external_task_id, DeadlineExceeded("time is up"))
            await asyncio.sleep(pause)


def _claim(error: DuplicateTask, *, adopt: bool, earlier: Callable[[], object]) -> None:
    """Take the task that was there before the first create as ours, or raise *error*."""
    if not adopt:
        raise error
    earlier()


def _unknown(external_task_id: str, error: KlingError) -> SubmissionUnknown:
    return SubmissionUnknown(
        f"whether the task exists could not be settled: {error.message}; look it up by its external_task_id "
        "before submitting the job again",
        external_task_id=external_task_id,
    )
