"""The state machine that creates the task of each attempt at most once.

An attempt is one `external_task_id` on its way to one task::

                      the response holds a task
    NEW ───> SENDING ─────────────────────────────────────> CREATED
              ^ │ │                                            ^
              │ │ │ refused, or not fully sent                 │
              │<┼─┴────────────────────────────> REFUSED       │
              │ │                                              │
              │ │ reset, timeout, 5xx, half a response         │ found
              │ └────────> UNCERTAIN ──────────────────────────┘
              │                │ not found
              └──── ABSENT <───┴──── INHERITED ───────────────> FOUND

=========  ==================================================  ==========================================
state      meaning                                             next states
=========  ==================================================  ==========================================
new        nothing was sent                                    sending, found, refused
inherited  an earlier run may have sent a create               found, absent
sending    a create is in progress                             created, found, refused, uncertain
refused    no task exists: refused, or not fully sent          sending
uncertain  a create had no usable response                     created, absent
absent     the service has no such task                        sending
created    the task exists, created by this attempt
found      the task existed before this attempt sent anything
=========  ==================================================  ==========================================

`AttemptState.may_cost` says whether this attempt may have spent money. Everything else follows from it. While
an attempt may have spent money, its units stay reserved, its slots stay taken, and `cancel` has no effect. If
the client is closed or the deadline passes meanwhile, the job ends with `SubmissionUnknown`. If no money can
have been spent, the units and slots are released, and a cancelled or late job ends with `NotSubmitted` or
`DeadlineExceeded`.

A task whose create had no usable response is looked up until it is found or can no longer appear. After the
last create, even one that an earlier run sent, the task can still appear for `create_timeout`, plus the time
that the body needs at `upload_speed`, plus `APPEAR_TIMEOUT`. After that, the same id is sent again on a new
connection.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial
from random import Random
from typing import NamedTuple

from attrs import evolve

from kling_expand.api import codec
from kling_expand.api.session import Body, Session, retry_waits
from kling_expand.config import Settings
from kling_expand.errors import (
    APIError,
    BadRequest,
    DuplicateTask,
    KlingError,
    NotFound,
    PermissionDenied,
    ProtocolError,
    RateLimited,
    ServerError,
    SubmissionUnknown,
    TransportError,
)
from kling_expand.events import EventKind
from kling_expand.models import LAST_PAGE, PAGE_SIZE, Dialect, Status, Task

from .scheduler import WeightedSemaphore

RECOVERY_PAGES = 40  # list pages read at most (20,000 tasks); beyond that, each job is looked up instead
APPEAR_TIMEOUT = 5.0  # seconds after the end of a create within which its task becomes visible to lookups

logger: logging.Logger = logging.getLogger(__name__)


class AttemptState(StrEnum):
    """The state of the create of one attempt."""

    NEW = "new"
    INHERITED = "inherited"
    SENDING = "sending"
    REFUSED = "refused"
    UNCERTAIN = "uncertain"
    ABSENT = "absent"
    CREATED = "created"
    FOUND = "found"

    @property
    def may_cost(self) -> bool:
        """Whether this attempt, or an earlier run's create of it, may have spent money."""
        return self in _MAY_COST


_MAY_COST = frozenset(
    {AttemptState.INHERITED, AttemptState.SENDING, AttemptState.UNCERTAIN, AttemptState.CREATED}
)
TRANSITIONS: dict[AttemptState, frozenset[AttemptState]] = {
    AttemptState.NEW: frozenset({AttemptState.SENDING, AttemptState.FOUND, AttemptState.REFUSED}),
    AttemptState.INHERITED: frozenset({AttemptState.FOUND, AttemptState.ABSENT}),
    AttemptState.SENDING: frozenset(
        {AttemptState.CREATED, AttemptState.FOUND, AttemptState.REFUSED, AttemptState.UNCERTAIN}
    ),
    AttemptState.REFUSED: frozenset({AttemptState.SENDING}),
    AttemptState.UNCERTAIN: frozenset({AttemptState.CREATED, AttemptState.ABSENT}),
    AttemptState.ABSENT: frozenset({AttemptState.SENDING}),
    AttemptState.CREATED: frozenset(),
    AttemptState.FOUND: frozenset(),
}


class Attempt:
    """One `external_task_id` and the state of its create.

    With *given*, the caller chose the id, so an existing task with it may belong to another job.
    `unanswered_at` is the loop time of the last create without a usable response, or None.
    """

    __slots__ = ("external_task_id", "given", "state", "unanswered_at")

    def __init__(
        self, external_task_id: str, *, given: bool = False, unanswered_at: float | None = None
    ) -> None:
        self.external_task_id: str = external_task_id
        self.given: bool = given
        self.unanswered_at: float | None = unanswered_at
        self.state: AttemptState = AttemptState.NEW if unanswered_at is None else AttemptState.INHERITED

    def move(self, state: AttemptState) -> None:
        """Move to *state*.

        Raises:
            ValueError: if the table of states does not allow it.
        """
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"an attempt that is {self.state} cannot become {state}")
        self.state = state

    def unknown(self, reason: str) -> SubmissionUnknown:
        """Return the error for an attempt whose task may exist."""
        return SubmissionUnknown(
            f"it is not known whether the task exists: {reason}; look it up by its external_task_id "
            "before submitting the job again",
            external_task_id=self.external_task_id,
        )


async def unrecorded() -> None:
    """Record nothing."""


class Create(NamedTuple):
    """The parts of a create: a factory of its body, and functions that record its progress.

    `mark_sending` is awaited before each send, and `mark_unsent` once it is known that no task exists.
    """

    attempt: Attempt
    body: Callable[[], Body]
    mark_sending: Callable[[], Awaitable[None]] = unrecorded
    mark_unsent: Callable[[], Awaitable[None]] = unrecorded
    deadline_at: float | None = None


class Submitter:
    """The creates of one client.

    `Settings.retry_timeout` limits how long one create is retried after failures. A 1302 is not a failure,
    and restarts the limit. At most `Settings.upload_bytes` bytes are uploaded at once.
    """

    def __init__(self, session: Session, settings: Settings, *, rng: Random) -> None:
        self._session = session
        self.dialect: Dialect = settings.dialect
        self._settings = settings
        self._rng = rng
        self._uploads = WeightedSemaphore(settings.upload_bytes)

    async def create(self, create: Create) -> Task:
        """Create the task of an attempt at most once, however often the network fails, and return it.

        Raises:
            SubmissionUnknown: if it could not be determined whether the task exists.
            DuplicateTask: if another job has the given id. The error's `task_id` is the id of its task.
            DeadlineExceeded: if the deadline passes before a task exists.
            ParallelLimit: if the account has no free slot.
            APIError: if the service refuses.
            TransportError: if the service could not be reached.
        """
        attempt = create.attempt
        task = None
        if attempt.state is AttemptState.NEW and attempt.given:
            await self._require_unused(create)
        elif attempt.state is AttemptState.INHERITED:
            task = await self.settle(attempt, create.body().size or 0, create.deadline_at)
        task = task or await self._send_until_settled(create)
        # The response to a create has no result (documented). If it says that the task has ended, the poller
        # reads the task for its pictures.
        incomplete = task.status is Status.SUCCEED and not task.images
        status = Status.PROCESSING if incomplete else task.task_status
        # The response may lack the id. Sharing the attempt's string also saves memory while the task is open.
        return evolve(task, task_status=status, external_task_id=attempt.external_task_id)

    async def settle(self, attempt: Attempt, size: int, deadline_at: float | None = None) -> Task | None:
        """Look up an attempt's task until it is found. Return None once it can no longer appear.

        *size* is the size of the create's body in bytes.

        Raises:
            SubmissionUnknown: if a lookup fails or the deadline passes first.
        """
        loop = asyncio.get_running_loop()
        created_here = attempt.state is AttemptState.UNCERTAIN
        settled_at = (attempt.unanswered_at or 0.0) + self._longest_create(size)
        waits = retry_waits(self._rng)
        while True:
            looked_up_at = loop.time()  # the response to a slow lookup may be older than the task
            found = await self._find(attempt, deadline_at)
            if found is not None:
                attempt.move(AttemptState.CREATED if created_here else AttemptState.FOUND)
                return found
            if looked_up_at >= settled_at:
                attempt.move(AttemptState.ABSENT)
                return None
            pause = min(next(waits), max(0.0, settled_at - loop.time()))
            await self._pause(attempt, pause, deadline_at, "the service does not show it yet")

    async def list_tasks(self) -> list[Task] | None:
        """Return all tasks of the account, or None if it has very many or its list is refused.

        Raises:
            KlingError: if no list could be read, for a reason that would stop every other call too.
        """
        tasks: list[Task] = []
        path = codec.create_path(self.dialect)
        for page in range(1, RECOVERY_PAGES + 1):
            params = {"pageNum": page, "pageSize": PAGE_SIZE}
            try:
                found = await self._session.read(path, codec.decode_tasks, params=params)
            except (BadRequest, NotFound, PermissionDenied, ProtocolError, ServerError) as error:
                logger.warning("no list can be read, so each job is looked up before it is sent: %s", error)
                return None
            tasks += found
            if len(found) < PAGE_SIZE:
                return tasks
        return None

    async def get_or_none(self, any_id: str, deadline_at: float | None = None) -> Task | None:
        """Return the task with this id, or None if the service has none."""
        path = codec.task_path(self.dialect, any_id)
        return await self._session.read(path, codec.decode_lookup, deadline_at=deadline_at)

    # ------------------------------------------------------------------ sending

    async def _send_until_settled(self, create: Create) -> Task:
        """Send until the task exists, is refused, or `retry_timeout` has passed without success."""
        attempt, fresh, retry = create.attempt, False, self._session.retry()
        report = partial(self._session.report_retry, EventKind.CREATE)
        tries = 0
        while True:
            tries += 1
            try:
                return await self._send(create, fresh=fresh, tries=tries)
            except DuplicateTask as error:
                return await self._adopt(create, error, tries)
            except RateLimited as error:
                if not error.retryable:
                    raise
                retry = self._session.retry()  # a 1302 is no failure, and the gate delays the next try
                report(error, tries, self._session.gates[EventKind.CREATE].remaining)
                continue
            except (TransportError, ServerError, ProtocolError) as error:
                failure, pause = error, retry.after(error)  # lookups do not count towards the time limit
            if attempt.state is not AttemptState.UNCERTAIN:
                if pause is not None:
                    report(failure, tries, pause)
            else:
                report(failure, tries)  # the lookups decide whether and when it is retried
                found = await self.settle(attempt, create.body().size or 0, create.deadline_at)
                if found is not None:
                    return found
            if pause is None:
                raise failure
            async with asyncio.timeout_at(create.deadline_at):
                await asyncio.sleep(pause)
            fresh = True  # the pooled connection may be dead

    async def _send(self, create: Create, *, fresh: bool, tries: int) -> Task:
        """Send one create as soon as the gate is open and there is room for its body."""
        size = min(create.body().size or 0, self._uploads.capacity)
        async with asyncio.timeout_at(create.deadline_at):
            await self._uploads.acquire(size)
        try:
            await self._wait_for_gate(create)
            return await self._post(create, fresh=fresh, tries=tries)
        finally:
            self._uploads.release(size)

    async def _wait_for_gate(self, create: Create) -> None:
        gate = self._session.gates[EventKind.CREATE]
        while True:
            await gate.wait(create.deadline_at)
            async with asyncio.timeout_at(create.deadline_at):
                await create.mark_sending()
            if not gate.remaining:  # a pause may have begun while the store was writing
                return

    async def _post(self, create: Create, *, fresh: bool, tries: int) -> Task:
        attempt, sent_at = create.attempt, asyncio.get_running_loop().time()
        attempt.move(AttemptState.SENDING)
        path = codec.create_path(self.dialect)
        try:
            task = await self._session.call(
                "POST",
                path,
                codec.decode_task,
                body=create.body,
                fresh=fresh,
                attempt=tries,
                deadline_at=create.deadline_at,
            )
        except DuplicateTask:
            raise  # the attempt stays `sending` until the other task has been looked up
        except Exception as error:
            if _may_have_arrived(error):
                attempt.unanswered_at = sent_at
                attempt.move(AttemptState.UNCERTAIN)
            else:
                attempt.move(AttemptState.REFUSED)
                if not isinstance(error, APIError) or error.retryable:  # the runner records a final refusal
                    await create.mark_unsent()
            raise
        attempt.move(AttemptState.CREATED)
        return task

    # ------------------------------------------------------------------ an id that is already in use

    async def _require_unused(self, create: Create) -> None:
        """Raise `DuplicateTask` if a given id has a task, which could be mistaken for this attempt's."""
        other = await self._find(create.attempt, create.deadline_at, sent=False)
        if other is not None:
            create.attempt.move(AttemptState.REFUSED)
            raise duplicate(create.attempt.external_task_id, other.task_id)

    async def _adopt(self, create: Create, error: DuplicateTask, tries: int) -> Task:
        """Return the existing task that the service reports, if it is this job's.

        Lookups may lag behind the service's own check, so they are repeated for `retry_timeout`.
        """
        attempt = create.attempt
        created_here = attempt.unanswered_at is not None
        if attempt.given and not created_here:
            attempt.move(AttemptState.REFUSED)
            other = await self._find(attempt, create.deadline_at, sent=False)
            raise duplicate(attempt.external_task_id, other.task_id if other else None) from error
        self._session.report_retry(EventKind.CREATE, error, tries)
        retry = self._session.retry()
        while True:
            found = await self._find(attempt, create.deadline_at)
            if found is not None:
                attempt.move(AttemptState.CREATED if created_here else AttemptState.FOUND)
                return found
            pause = retry.wait(None)
            if pause is None:
                raise attempt.unknown(f"{error.message}, but no task with this id was found") from None
            await self._pause(attempt, pause, create.deadline_at, error.message)

    # ------------------------------------------------------------------ lookups

    async def _find(self, attempt: Attempt, deadline_at: float | None, *, sent: bool = True) -> Task | None:
        """Return the task with the attempt's id, or None if the service has none.

        If a create may have been *sent*, a failed lookup raises `SubmissionUnknown`.
        """
        try:
            found = await self.get_or_none(attempt.external_task_id, deadline_at)
            if found is None and self.dialect is Dialect.DIRECTION:
                found = await self._find_in_list(attempt.external_task_id, deadline_at)
        except KlingError as error:
            if sent:
                raise attempt.unknown(error.message) from error
            raise
        return found

    async def _find_in_list(self, external_task_id: str, deadline_at: float | None) -> Task | None:
        """Search the list: the direction dialect documents no lookup by `external_task_id`."""
        path = codec.create_path(self.dialect)
        for page in range(1, LAST_PAGE + 1):
            params = {"pageNum": page, "pageSize": PAGE_SIZE}
            tasks = await self._session.read(path, codec.decode_tasks, params=params, deadline_at=deadline_at)
            for task in tasks:
                if task.external_task_id == external_task_id:
                    return task
            if len(tasks) < PAGE_SIZE:
                break
        return None

    async def _pause(self, attempt: Attempt, pause: float, deadline_at: float | None, reason: str) -> None:
        if deadline_at is not None and asyncio.get_running_loop().time() + pause > deadline_at:
            raise attempt.unknown(f"the deadline passed: {reason}")
        await asyncio.sleep(pause)

    def _longest_create(self, size: int) -> float:
        """Return the seconds from the start of a create within which its task appears, if it has one."""
        return self._settings.create_timeout + size / self._settings.upload_speed + APPEAR_TIMEOUT


def _may_have_arrived(error: Exception) -> bool:
    """Return whether a create that ended in *error* may have been accepted."""
    if isinstance(error, TransportError):
        return error.sent
    # Another exception, such as one raised by a trace hook, may occur after the response.
    return isinstance(error, ServerError | ProtocolError) or not isinstance(error, KlingError)


def duplicate(external_task_id: str, task_id: str | None) -> DuplicateTask:
    """Return the error for a given id that another task already has, with that task's id if it is known."""
    return other_task(
        "external_task_id must be unique in the account, but "
        f"{f'task {task_id}' if task_id else 'another task'} already has the id {external_task_id}; "
        "give another one, or attach to that task",
        external_task_id,
        task_id,
    )


def other_task(message: str, external_task_id: str, task_id: str | None) -> DuplicateTask:
    """Return a `DuplicateTask` with the values of the service's own refusal."""
    error = DuplicateTask(message, code=1201, status=400)
    error.task_id, error.external_task_id = task_id, external_task_id
    return error
