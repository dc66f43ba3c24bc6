"""A fleet worker, which takes jobs from the queue and executes them until it is stopped.

A worker runs in sessions, each with its own lease and client. A session ends when the worker is stopped or
its lease has ended. It also ends when the worker switches between normal jobs and jobs that must run alone.
The running tasks of a session are then handed over to later sessions, of this or another worker. This costs
nothing, because any session can follow any task.
"""

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from functools import partial
from random import Random
from typing import Any

from attrs import evolve, field, frozen

from kling_expand.api.codec import parse_json
from kling_expand.client import KlingClient
from kling_expand.errors import KlingError, WebhookError, require
from kling_expand.models import MAX_IMAGES
from kling_expand.store.postgres import PostgresStore

from .job import WorkerContext
from .lease import Lease, LeaseLost, Permits, SharedSlots
from .queue import CALLBACK_CHANNEL, Consumer, Fleet, NotificationHandler
from .schema import JOB_CHANNEL, PERMIT_CHANNEL

HEARTBEAT_TIMEOUT = 30.0  # seconds without a heartbeat after which a worker's jobs are requeued
MAX_HEARTBEAT_INTERVAL = 5.0  # seconds
SHUTDOWN_TIMEOUT = 20.0  # seconds for running jobs to finish after `stop`
HAND_OVER_TIMEOUT = 14.0  # further seconds for creates to finish and for jobs to be requeued
REQUEUE_TIMEOUT = 3.0  # seconds of HAND_OVER_TIMEOUT for the statements that requeue the jobs
CONCURRENCY = 32  # new jobs at a time, most of which wait for a slot

logger: logging.Logger = logging.getLogger(__name__)


@frozen
class _Session:
    """The parts of one session of a worker."""

    lease: Lease
    client: KlingClient
    slots: SharedSlots
    permits: Permits | None
    consumer: Consumer
    store: PostgresStore
    alone: bool
    orphans: dict[str, asyncio.Task[None]] = field(factory=dict)  # the watchers of orphans, by external id


class Worker:
    """A worker that executes the jobs of *fleet* until `stop`, at most *concurrency* new ones at a time.

    With *max_in_flight*, the account's slots are counted exactly across all workers of the same *account*,
    which must all have the same *max_in_flight*. Without it, each worker estimates how many slots it may use.

    Pictures are saved to *output*: a directory, a template or the URL of an object store. If it is None, only
    their URLs are kept. With *full_size*, each picture is also saved at the size of its photo. This needs the
    extra `images`, and the photo must not be at an http(s) URL. *callback_url* applies to requests without
    their own, and *rng* is for tests. Further *options* are those of `KlingClient`.

    A worker that sends no heartbeat for *heartbeat_timeout* seconds loses its jobs and permits to other
    workers. If it resumes, it starts again with a new lease. After `stop`, nothing new is sent. Running tasks
    have *shutdown_timeout* seconds to end and are then handed over to other workers. `run` returns at most 15
    seconds later, even if the database is unavailable. No task is paid for twice.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        concurrency: int = CONCURRENCY,
        max_in_flight: int | None = None,
        account: str = "default",
        output: str | None = None,
        full_size: bool = False,
        callback_url: str | None = None,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        shutdown_timeout: float = SHUTDOWN_TIMEOUT,
        rng: Random | None = None,
        **options: Any,
    ) -> None:
        self._fleet = fleet
        self._concurrency = concurrency
        self._max_in_flight = max_in_flight
        self._account = account
        if full_size:
            require("images", "numpy", "PIL")
        self._output = output
        self._full_size = full_size
        self._callback_url = callback_url
        self._heartbeat_timeout = heartbeat_timeout
        self._shutdown_timeout = shutdown_timeout
        self._rng = rng or Random()
        self._options = options
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begin the shutdown: take no more jobs, and finish or hand over the running ones."""
        self._stop.set()

    async def run(self) -> None:
        """Execute jobs until `stop`.

        Raises:
            JournalError: if the database stays unreachable, or its tables are of another version.
        """
        working = asyncio.create_task(self._work())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:  # after a cancellation too
            self._stop.set()
            stopping.cancel()
            await asyncio.wait([working], timeout=self._shutdown_timeout + HAND_OVER_TIMEOUT)
            if not working.done():
                logger.warning(
                    "the database is unreachable; others will take this worker's jobs when its lease ends"
                )
            while not working.done():  # the exit of each context manager may wait for the database again
                working.cancel()
                await asyncio.wait([working], timeout=0.1)
        if not working.cancelled():
            working.result()

    async def _work(self) -> None:
        """Run one session after another."""
        await self._fleet.check()
        alone = False
        while not self._stop.is_set():
            try:
                alone = await self._run_session(alone=alone)
            except LeaseLost as error:
                logger.warning("%s; the worker starts again", error)
                alone = False

    async def _run_session(self, *, alone: bool) -> bool:
        """Run one session, and return whether the next one is for jobs that must run alone."""
        fleet = self._fleet
        limit = max(self._max_in_flight or 0, self._concurrency, MAX_IMAGES)
        slots = SharedSlots(limit)
        lease = Lease(
            fleet.database,
            fleet.queue,
            fleet.run,
            timeout=self._heartbeat_timeout,
            account=self._account,
            exact=self._max_in_flight is not None,
            alone=alone,
        )
        store = PostgresStore(
            fleet.database, run=fleet.run, account=self._account, leased=True, clock=fleet.clock
        )
        client = KlingClient(
            journal=store,
            run=store.run,
            slots=slots,
            rng=self._rng,
            **{"max_in_flight": limit, **self._options},
        )
        await lease.begin()
        store.owner = lease.worker
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(client)
            context = WorkerContext(
                client, store, self._output, callback_url=self._callback_url, full_size=self._full_size
            )
            permits = None
            if self._max_in_flight is not None:
                permits = Permits(lease, self._max_in_flight)
                await stack.enter_async_context(permits)
                context = evolve(context, hold=permits.hold)
            enough = self._max_in_flight and 2 * self._max_in_flight  # for all slots, and as many waiting
            consumer = Consumer(lease, context, concurrency=self._concurrency, enough=enough, alone=alone)
            return await self._serve(_Session(lease, client, slots, permits, consumer, store, alone))

    async def _serve(self, session: _Session) -> bool:
        handlers: dict[str, NotificationHandler] = {
            CALLBACK_CHANNEL: partial(_receive, session.client),
            JOB_CHANNEL + self._fleet.queue: session.consumer.wake,
        }
        mode_changed = asyncio.Event()
        taking = asyncio.create_task(session.consumer.take_jobs())
        background = [
            asyncio.create_task(self._fleet.listen(handlers)),
            asyncio.create_task(self._beat(session, mode_changed)),
        ]
        if session.permits is not None:
            handlers[PERMIT_CHANNEL] = session.permits.wake
            background.append(session.permits.server)
        stop_events = [asyncio.create_task(event.wait()) for event in (self._stop, mode_changed)]
        try:
            await asyncio.wait([taking, *background, *stop_events], return_when=asyncio.FIRST_COMPLETED)
        finally:  # after a cancellation or a failure too
            taking.cancel()
            lost = any(task.done() for task in background)
            try:
                await self._hand_over(
                    session, 0.0 if lost or mode_changed.is_set() else self._shutdown_timeout
                )
            finally:
                for task in (*stop_events, *background, *session.orphans.values()):
                    task.cancel()
        for error in await asyncio.gather(taking, *background, return_exceptions=True):
            if isinstance(error, Exception):
                raise error
        return mode_changed.is_set() and not session.alone

    async def _hand_over(self, session: _Session, seconds: float) -> None:
        """Give running jobs *seconds* to finish, and requeue the rest."""
        session.slots.close()
        if session.permits is not None:
            session.permits.close()
        running = session.consumer.running
        try:
            if running:
                await asyncio.wait(running, timeout=seconds)
            await session.client.aclose()  # makes jobs that are still waiting fail, so that they are requeued
            if running:
                await asyncio.wait(running, timeout=REQUEUE_TIMEOUT)
        finally:
            for task in running:
                task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await session.lease.end()

    async def _beat(self, session: _Session, mode_changed: asyncio.Event) -> None:
        """Send heartbeats until cancelled, even during the shutdown, and act on their results."""
        consumer = session.consumer
        idle: set[int] = set()
        while True:
            await asyncio.sleep(min(self._heartbeat_timeout / 3, MAX_HEARTBEAT_INTERVAL))
            beat = await session.lease.beat(consumer.job_ids, idle)
            idle = beat.idle
            if beat.due:
                consumer.wake()
            for external_task_id, task_id in beat.orphans:
                if external_task_id not in session.orphans:
                    follower = asyncio.create_task(_follow_orphan(session, external_task_id, task_id))
                    session.orphans[external_task_id] = follower
            if beat.runs_alone != session.alone and not (session.alone and consumer.running):
                mode_changed.set()


async def _follow_orphan(session: _Session, external_task_id: str, task_id: str) -> None:
    """Record the end of a task whose run has no worker, so that the account's slots become free."""
    future = session.client.attach(task_id)
    with suppress(KlingError):
        await future.wait()
        if future.task is not None and future.task.status.final:
            await session.store.observe(external_task_id, future.task)


def _receive(client: KlingClient, payload: str) -> None:
    """Deliver a callback that another process received. The client verifies its signature again."""
    with suppress(WebhookError, ValueError, KeyError, TypeError, AttributeError):
        callback = parse_json(payload.encode())
        client.receive(callback["headers"], callback["body"].encode())
