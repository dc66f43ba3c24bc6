"""A fleet worker: takes jobs from the queue and executes them until it is stopped.

Each worker also requeues the jobs of workers whose heartbeat has timed out. It does so beside its jobs:
as a queued job it would wait while every worker is busy.
"""

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from functools import partial
from random import Random
from typing import Any

from attrs import evolve
from procrastinate.worker import Worker as QueueWorker

from kling_expand.api.codec import parse_json
from kling_expand.client import KlingClient
from kling_expand.errors import WebhookError
from kling_expand.jobs.runner import GRACE
from kling_expand.models import MAX_IMAGES

from .job import SharedSlots, WorkerContext
from .permits import PERMIT_CHANNEL, Permits
from .queue import CALLBACK_CHANNEL, Fleet, NotificationHandler

HEARTBEAT_TIMEOUT = 30.0  # seconds without a heartbeat after which a worker's jobs are requeued
SHUTDOWN_TIMEOUT = 20.0  # seconds that running jobs have to end after `stop`
CONCURRENCY = 32  # jobs fetched at the same time, most of which wait for a slot
FETCH_INTERVAL = 1.0  # seconds between two polls of an empty queue, in case a notification is lost

logger: logging.Logger = logging.getLogger(__name__)


class Worker:
    """A process that executes the jobs of *fleet*, at most *concurrency* at a time, until `stop`.

    With *max_in_flight* the account's slots are counted exactly, over all workers that give the same
    *account* and number. Without it, each worker estimates by itself how many slots it may use. Images are
    saved to *output*: a directory, a template or the URL of an object store. With None only their URLs
    are kept. Further *options* are those of `KlingClient`.

    A worker without a heartbeat for *heartbeat_timeout* seconds loses its jobs to the others. After `stop`
    nothing new is sent. Running tasks have *shutdown_timeout* seconds to end, and are then handed over to
    other workers. `run` returns at most 15 seconds after that, and no task is paid twice.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        concurrency: int = CONCURRENCY,
        max_in_flight: int | None = None,
        account: str = "default",
        output: str | None = None,
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
        self._output = output
        self._callback_url = callback_url
        self._heartbeat_timeout = heartbeat_timeout
        self._shutdown_timeout = shutdown_timeout
        self._rng = rng or Random()
        self._options = options
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Start the shutdown: take no more jobs, and let `run` return."""
        self._stop.set()

    async def run(self) -> None:
        """Execute jobs until `stop`.

        Raises:
            JournalError: when the database stays unreachable.
        """
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(self._fleet.store)
            limit = max(self._max_in_flight or 0, self._concurrency, MAX_IMAGES)
            slots = SharedSlots(limit)
            client = KlingClient(
                journal=store,
                run=store.run,
                slots=slots,
                rng=self._rng,
                **{"max_in_flight": limit, **self._options},
            )
            await stack.enter_async_context(client)
            context = WorkerContext(client, store, self._output, callback_url=self._callback_url)
            permits = None
            if self._max_in_flight is not None:
                permits = Permits(
                    self._fleet.dsn,
                    self._max_in_flight,
                    owner=store.owner,
                    run=store.run,
                    account=self._account,
                    rng=self._rng,
                )
                await stack.enter_async_context(permits)
                context = evolve(context, hold=permits.hold)
            await self._execute_jobs(context, slots, permits)

    async def _execute_jobs(
        self, context: WorkerContext, slots: SharedSlots, permits: Permits | None
    ) -> None:
        queue_worker = self._queue_worker(context)

        handlers: dict[str, NotificationHandler] = {CALLBACK_CHANNEL: partial(_receive, context.client)}
        if permits is not None:
            handlers[PERMIT_CHANNEL] = permits.wake
        running = asyncio.create_task(queue_worker.run())  # type: ignore[no-untyped-call]  # procrastinate has no types here
        beside = [
            asyncio.create_task(self._fleet.listen(handlers)),
            asyncio.create_task(self._beat(queue_worker)),
        ]
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([running, stopping, *beside], return_when=asyncio.FIRST_COMPLETED)
        finally:  # after a stop, a cancellation or a failure
            slots.close()
            if permits is not None:
                permits.close()
            queue_worker.stop()  # type: ignore[no-untyped-call]  # nor here
            await asyncio.wait([running], timeout=self._shutdown_timeout)
            await context.client.aclose()  # jobs that still wait fail with this, and go back to the queue
            await asyncio.wait([running])
            for task in (stopping, *beside):
                task.cancel()
            results = await asyncio.gather(running, *beside, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                raise error

    def _queue_worker(self, context: WorkerContext) -> QueueWorker:
        return QueueWorker(
            self._fleet.app,
            queues=[self._fleet.queue],
            concurrency=self._concurrency,
            fetch_job_polling_interval=FETCH_INTERVAL,
            shutdown_graceful_timeout=self._shutdown_timeout + GRACE + 3.0,
            delete_jobs="always",  # the store keeps their outcomes
            additional_context={"context": context},
            install_signal_handlers=False,
            update_heartbeat_interval=self._heartbeat_timeout / 3,
            # A worker that starts right after an outage of the database must not prune the workers that
            # could not send heartbeats during it.
            stalled_worker_timeout=100 * self._heartbeat_timeout,
        )

    async def _beat(self, queue_worker: QueueWorker) -> None:
        """Send heartbeats, also while the last jobs end, and requeue the jobs of dead workers."""
        lost: set[int] = set()
        while True:
            await asyncio.sleep(min(self._heartbeat_timeout / 3, 5.0))
            if queue_worker.worker_id is None:
                continue
            await self._fleet.app.job_manager.update_heartbeat(queue_worker.worker_id)
            # If the answer to a committed fetch was lost with its connection, only the database assigns the
            # job to this worker. A job that is found like this twice is requeued.
            fetched = await self._fleet.fetched_jobs(queue_worker.worker_id)
            running = {context.job.id for context in queue_worker._running_jobs.values()}  # noqa: SLF001 - procrastinate has no public view
            idle = fetched - running
            requeued = await self._fleet.requeue_stalled(self._heartbeat_timeout, sorted(idle & lost))
            lost = idle
            if requeued:
                logger.warning("requeued %d jobs of workers without a heartbeat", requeued)


def _receive(client: KlingClient, payload: str) -> None:
    """Deliver a callback that another process received; its signature is verified here again."""
    with suppress(WebhookError, ValueError, KeyError, TypeError):
        callback = parse_json(payload.encode())
        client.receive(callback["headers"], callback["body"].encode())
