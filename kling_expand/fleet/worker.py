"""What does one machine of a fleet do? It takes jobs until told to stop, and leaves none behind.

Every worker also looks after the others: jobs whose worker has not been heard of for a whole lease go back
to the queue. That needs no worker's free hands, as a job for it would, when all are busy waiting.
"""

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from random import Random
from typing import Any

from attrs import evolve
from procrastinate.worker import Worker as Engine

from kling_expand.api.codec import parse_json
from kling_expand.client import KlingClient
from kling_expand.errors import WebhookError
from kling_expand.jobs.runner import GRACE
from kling_expand.store.postgres_pool import listen

from .execute import SharedSlots, WorkerContext
from .permits import CHANNEL, Permits
from .queue import NEWS, Fleet

LEASE = 30.0  # seconds a worker may be silent before its jobs are given to others
DRAIN = 20.0  # seconds its jobs are given to end when it is told to stop
CONCURRENCY = 32  # jobs in hand, most of which wait for a slot
FETCH = 1.0  # seconds between two looks into an empty queue; an insertion is heard of at once

logger = logging.getLogger(__name__)


class Worker:
    """Works for *fleet* until `stop`: at most *concurrency* jobs in hand.

    With *max_in_flight* the account's slots are counted exactly over all workers that say the same number
    (and *account*); without, each finds out by itself how many it may use. Pictures go to *output*, a
    directory, template or object store; None: their URLs are enough. Further *options* are the client's.

    After `stop` nothing new is sent; what runs at the service has *drain* seconds to end and is then
    handed over. It is gone `drain` + 15 seconds later at the latest, and pays nothing twice.
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
        lease: float = LEASE,
        drain: float = DRAIN,
        rng: Random | None = None,
        **options: Any,
    ) -> None:
        self._fleet = fleet
        self._concurrency = concurrency
        self._limit = max_in_flight
        self._account = account
        self._output = output
        self._callback_url = callback_url
        self._lease, self._drain = lease, drain
        self._rng = rng or Random()
        self._options = options
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Take no more jobs, and end soon."""
        self._stop.set()

    async def run(self) -> None:
        """Work until told to stop. Raises `JournalError` where the database stays away."""
        async with AsyncExitStack() as stack:
            ledger = await stack.enter_async_context(self._fleet.ledger)
            most = max(self._limit or 0, self._concurrency, 9)
            doors = SharedSlots(most, self._rng)
            kling = KlingClient(
                journal=ledger,
                run=ledger.run,
                slots=doors,
                rng=self._rng,
                **{"max_in_flight": most, **self._options},
            )
            await stack.enter_async_context(kling)
            bench = WorkerContext(kling, ledger, self._output, callback_url=self._callback_url)
            permits = None
            if self._limit is not None:
                permits = Permits(
                    self._fleet.dsn,
                    self._limit,
                    owner=ledger.owner,
                    run=ledger.run,
                    account=self._account,
                    rng=self._rng,
                )
                await stack.enter_async_context(permits)
                bench = evolve(bench, hold=permits.hold)
            await self._work(kling, bench, doors, permits)

    async def _work(
        self, kling: KlingClient, bench: WorkerContext, doors: SharedSlots, permits: Permits | None
    ) -> None:
        engine = self._engine(bench)

        def heard(channel: str, payload: str) -> None:
            if channel == NEWS:
                _receive(kling, payload)
            elif permits is not None:
                permits.wake()

        running = asyncio.create_task(_run(engine))
        around = [
            asyncio.create_task(listen(self._fleet.dsn, heard, NEWS, CHANNEL)),
            asyncio.create_task(self._watch(engine)),
        ]
        told = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([running, told, *around], return_when=asyncio.FIRST_COMPLETED)
        finally:  # told to stop, cancelled, or something broke: the way out is the same
            doors.shut()
            if permits is not None:
                permits.shut()
            _halt(engine)
            await asyncio.wait([running], timeout=self._drain)
            await kling.aclose()  # what still waits is told so, and goes back to the queue
            await asyncio.wait([running])
            for task in (told, *around):
                task.cancel()
            ends = await asyncio.gather(running, *around, return_exceptions=True)
        for error in ends:
            if isinstance(error, Exception):
                raise error

    def _engine(self, bench: WorkerContext) -> Engine:
        return Engine(
            self._fleet.app,
            queues=[self._fleet.queue],
            concurrency=self._concurrency,
            fetch_job_polling_interval=FETCH,
            shutdown_graceful_timeout=self._drain + GRACE + 3.0,
            delete_jobs="always",  # the ledger keeps how it ended
            additional_context={"bench": bench},
            install_signal_handlers=False,
            update_heartbeat_interval=self._lease / 3,
            # Who begins right after an outage must not take those for dead who could not be heard in it.
            stalled_worker_timeout=100 * self._lease,
        )

    async def _watch(self, engine: Engine) -> None:
        """Say that we live, also while the engine ends its jobs; take back what the dead have left."""
        lost: set[int] = set()
        while True:
            await asyncio.sleep(min(self._lease / 3, 5.0))
            if engine.worker_id is None:
                continue
            await self._fleet.app.job_manager.update_heartbeat(engine.worker_id)
            # Fetched, but the answer was lost with its connection: nobody works on it.
            mine = await self._fleet.begun(engine.worker_id)
            running = {context.job.id for context in engine._running_jobs.values()}  # noqa: SLF001 - not told otherwise
            idle = mine - running
            back = await self._fleet.requeue_stalled(self._lease, sorted(idle & lost))
            lost = idle
            if back:
                logger.warning("%d jobs of workers that are no more were put back", back)


# Procrastinate leaves these two without types.
async def _run(engine: Any) -> None:
    await engine.run()


def _halt(engine: Any) -> None:
    engine.stop()


def _receive(kling: KlingClient, payload: str) -> None:
    """News that another process was given; it was checked there, and is checked here again."""
    with suppress(WebhookError, ValueError, KeyError, TypeError):
        news = parse_json(payload.encode())
        kling.receive(news["headers"], news["body"].encode())
